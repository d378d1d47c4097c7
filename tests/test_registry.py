"""The table of architectures."""

import hashlib

import pytest
import torch

import zoo
from zoo.registry import BUNDLED, CATEGORIES, TABLE, paper_top1
from zoo.simclr import SimCLR
from zoo.sources import BUNDLED_FOLDER

PAPER_MILLIONS = {  # paper, Table 1, and the authors' code for the rest
    "r50_1x": 23.508, "r50_1x_sk": 35.216, "r50_2x": 93.907, "r50_2x_sk": 140.306,
    "r101_1x": 42.500, "r101_1x_sk": 64.662, "r101_2x": 169.771, "r101_2x_sk": 257.132,
    "r152_1x": 58.144, "r152_1x_sk": 88.941, "r152_2x": 232.254, "r152_2x_sk": 353.399, "r152_3x_sk": 794.704,
    "r18_1x": 11.181, "r34_1x": 21.289, "r200_1x": 62.625, "r50_4x": 375.378,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_parameters_of_every_architecture(name: str) -> None:
    with torch.device("meta"):
        model = SimCLR(zoo.spec(name))
    counted = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert counted == TABLE[name].parameters
    if name in PAPER_MILLIONS:
        assert round(counted / 1e6, 3) == pytest.approx(PAPER_MILLIONS[name], abs=6e-4)


def test_every_width_depth_and_sk_is_registered() -> None:
    expected = {f"r{d}_{w}x{sk}" for d in (50, 101, 152) for w in (1, 2, 3) for sk in ("", "_sk")}
    assert expected < set(zoo.list_models())
    assert set(zoo.list_models()) - expected == {"r18_1x", "r18_2x", "r34_1x", "r200_1x", "r50_4x"}


def test_the_published_combinations() -> None:
    published = [(name, weights) for name in zoo.list_models() for weights in zoo.list_weights(name)]
    own = [key for key in published if key[1] not in CATEGORIES]
    distilled = [key for key in published if key[1].startswith("distilled")]
    assert len(published) - len(own) - len(distilled) == 65
    assert own == list(BUNDLED)
    assert {name for name, _ in distilled} == {"r50_1x", "r50_2x_sk", "r152_3x_sk"}
    assert len(distilled) == 6
    assert all(paper_top1(*key) for key in published if key not in own)
    assert paper_top1("r50_1x", "pretrained") == 71.7
    assert zoo.spec("r152_3x_sk").authors_name == "r152_3x_sk1"
    assert zoo.spec("r50_2x").authors_name == "r50_2x_sk0"


def test_bundled_hashes() -> None:
    for (name, weights), sha256 in BUNDLED.items():
        data = (BUNDLED_FOLDER / f"{name}.{weights}.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256


def test_names_aliases_and_patterns() -> None:
    assert zoo.spec("r50_1x_sk0") == zoo.Spec(50)
    assert zoo.spec("r152_3x_sk1") == zoo.Spec(152, 3, True)
    assert zoo.Spec(50, 0.0625, True).name == "r50_0.0625x_sk"
    assert zoo.list_models("r18_*") == ["r18_1x", "r18_2x"]
    own = zoo.Spec(50, width=0.0625, sk=True)
    assert zoo.spec(own) is own


def test_paper_figures() -> None:
    assert TABLE["r152_3x_sk"].finetuned_1pct == 74.9
    assert TABLE["r152_3x_sk"].distilled_10pct == 80.9
    assert TABLE["r50_1x"].linear == 71.7
    assert TABLE["r50_3x"].linear is None


def test_weights_that_exist() -> None:
    published = ["pretrained", "finetuned_1pct", "finetuned_10pct", "finetuned_100pct", "supervised"]
    assert zoo.list_weights("r50_1x_sk") == published
    assert zoo.list_weights("r18_1x") == ["imagenette_distilled"]
    assert zoo.list_weights("r50_4x") == []


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("r50_1xsk", "'r50_1x_sk'"), ("resnet50", "r50_"), (50, "not 50"), ("r152_3x_sk2", "'r152_3x_sk'")],
)
def test_unknown_names_suggest_the_nearest(wrong: object, hint: str) -> None:
    with pytest.raises(ValueError, match="model") as caught:
        zoo.spec(wrong)  # type: ignore[arg-type]
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [{"depth": 51}, {"depth": 50, "width": 0}, {"depth": 18, "sk": True}])
def test_impossible_shapes(shape: dict) -> None:
    with pytest.raises(ValueError, match=r"depth|[Ww]idth|kernels"):
        zoo.Spec(**shape)
