"""Models to files and back, where weights are looked for, and what is said when there are none."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

import zoo
from zoo.files import written_whole


def test_round_trip_keeps_every_bit_and_fact(tiny_model: zoo.SimCLR, tmp_path: Path) -> None:
    tiny_model.facts = {"accuracy": 0.5, "nested": {"a": [1, 2]}}
    path = tmp_path / "tiny.safetensors"
    zoo.save_file(tiny_model, path)
    loaded = zoo.load_file(path)
    assert loaded.spec == TINY
    assert loaded.classes == ("circle", "square", "stripes")
    assert loaded.facts == tiny_model.facts
    assert not loaded.training
    state, again = tiny_model.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.safetensors"]
    assert zoo.load(TINY, weights=path).classes == loaded.classes


@pytest.mark.parametrize(
    "options", [{"num_classes": None}, {"projector": False}, {"classify_from": 3}, {"image_size": 32}]
)
def test_every_shape_of_model_comes_back(options: dict, tmp_path: Path) -> None:
    model = zoo.create(TINY, seed=0, **({"num_classes": 5, "image_size": 40} | options)).eval()
    zoo.save_file(model, tmp_path / "m.safetensors")
    loaded = zoo.load_file(tmp_path / "m.safetensors")
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(images), loaded(images)
    assert torch.equal(ours.features, theirs.features)
    assert (ours.logits is None) == (theirs.logits is None) == (loaded.num_classes is None)
    assert (loaded.projector is None) == (model.projector is None)


def test_half_precision_file(tiny_model: zoo.SimCLR, tmp_path: Path) -> None:
    zoo.save_file(tiny_model, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = zoo.load_file(tmp_path / "half.safetensors")
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_output_and_parts(tiny_model: zoo.SimCLR) -> None:
    images = torch.rand(2, 3, 48, 48)
    output = tiny_model(images)
    assert output.features.shape == (2, 32)
    assert output.logits.shape == (2, 3)
    assert tiny_model.projector(output.features).shape == (2, 128)
    assert tiny_model.projector(output.features, stop=1).shape == (2, 32)
    torch.testing.assert_close(tiny_model.classifier(output.features), output.logits)
    without = zoo.create(TINY, num_classes=None)
    assert without(images).logits is None
    with pytest.raises(ValueError, match="no classifier"):
        without.classify(output.features)


def test_missing_weights_say_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path))
    with pytest.raises(zoo.WeightsNotFoundError) as caught:
        zoo.load("r152_3x_sk")
    first, bundled, cache, hub, bucket, way_out = str(caught.value).splitlines()
    assert "'pretrained' of 'r152_3x_sk' were not found" in first
    assert "bundled: not among" in bundled
    assert f"cache: no file {tmp_path / 'r152_3x_sk' / 'pretrained' / 'model.safetensors'}" in cache
    assert "Hub: skipped; SIMCLR_HUB_NAMESPACE" in hub
    assert "authors' bucket: http://127.0.0.1:9/simclr-checkpoints/simclrv2/pretrained/r152_3x_sk1/" in bucket
    assert "no connection" in bucket
    assert "simclr convert" in way_out
    for offline in ({"local_files_only": True}, {}):
        monkeypatch.setenv("HF_HUB_OFFLINE", "" if offline else "1")
        with pytest.raises(zoo.WeightsNotFoundError, match="authors' bucket: skipped; offline"):
            zoo.load("r152_3x_sk", **offline)
    with pytest.raises(ValueError, match="Did you mean 'finetuned_10pct'"):
        zoo.load("r50_1x", weights="ft_10pct")
    with pytest.raises(ValueError, match="None are published"):
        zoo.load("r50_4x")


def test_cache_is_read_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path))
    zoo.save_file(zoo.create(TINY, num_classes=2), tmp_path / "r50_1x" / "pretrained.safetensors")
    with pytest.raises(ValueError, match=r"holds r18_0\.0625x, not r50_1x"):
        zoo.load("r50_1x")
    zoo.save_file(zoo.create("r18_1x", num_classes=2, seed=1), tmp_path / "own.safetensors")
    assert zoo.load("r18_1x", weights=str(tmp_path / "own.safetensors")).num_classes == 2


def damaged_files(folder: Path, good: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["simclrv2"])

    def rebuilt(**change: object) -> bytes:
        changed = header | {"__metadata__": {"simclrv2": json.dumps(facts | change)}}
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    foreign = json.dumps({k: v for k, v in header.items() if k != "__metadata__"}).encode()
    return {
        "empty": b"",
        "text": b"not a model at all",
        "truncated": good[: len(good) // 2],
        "huge_header": struct.pack("<Q", 2**62) + good[8:],
        "foreign": struct.pack("<Q", len(foreign)) + foreign + good[8 + length :],
        "other_depth": rebuilt(spec={"depth": 34, "width": 1 / 16, "sk": False}),
        "bad_depth": rebuilt(spec={"depth": 7, "width": 1, "sk": False}),
        "bad_spec": rebuilt(spec={"depth": 18, "wide": 1}),
        "bad_width": rebuilt(spec={"depth": 18, "width": 1e9, "sk": False}),
        "no_size": rebuilt(image_size=None),
        "no_projector": rebuilt(projector=False),
        "not_a_dict": rebuilt(facts=3),
    }


def test_damaged_and_foreign_files_are_refused_in_one_line(tiny_model: zoo.SimCLR, tmp_path: Path) -> None:
    zoo.save_file(tiny_model, tmp_path / "good.safetensors")
    for name, data in damaged_files(tmp_path, (tmp_path / "good.safetensors").read_bytes()).items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r".") as caught:
            zoo.load_file(path)
        assert "\n" not in str(caught.value), name
    with pytest.raises(ValueError, match="no such file"):
        zoo.load_file(tmp_path / "absent.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fill_the_disk() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_seeded_creation_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.create(TINY, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"classify_from": 4}, "classify_from=4"),
        ({"image_size": 4}, "image_size=4"),
    ],
)
def test_impossible_options(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        zoo.create(TINY, **options)


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, *args):
        if name.split(".")[0] in ("torch", "gradio", "onnx", "onnxruntime", "safetensors"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
import zoo
assert "numpy" in sys.modules
assert zoo.spec("r50_1x_sk1").name == "r50_1x_sk" and zoo.list_models("r18*") and zoo.list_weights("r50_1x")
assert zoo.preprocess(np.zeros((50, 60, 3), np.uint8), 40).shape == (3, 40, 40)
try:
    zoo.create
except ImportError as error:
    assert "torch" in str(error)
else:
    raise SystemExit("zoo.create must need torch")
print("fine")
"""


def test_names_and_preprocessing_need_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_convert_resolves_after_a_bare_import() -> None:
    code = "import sys, zoo; assert 'torch' not in sys.modules; print(zoo.convert.tensorflow_state_dict.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tensorflow_state_dict"


FULL = """
import resource, sys, zoo
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    zoo.save_file(zoo.create(zoo.Spec(18, 1 / 16)), sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_a_file_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path} cannot be written: ")
    assert len(done.stdout.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
