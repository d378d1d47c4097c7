"""Models out of torch: the same answers in onnxruntime, the same rounded weights, one small file, honest metadata."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import export
import zoo
from export import graph
from zoo.model_file import weights_sha256

LABELS = ("tench", "church", "golf ball")


def randomise(model: zoo.SimCLR, seed: int = 0) -> zoo.SimCLR:
    """Batch norms and classifier as if trained: at their initial values, folding them would test nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.2, generator=generator)
        if model.classifier is not None:
            model.classifier.weight.normal_(0, 2.0, generator=generator)
            model.classifier.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def tiny_model(*, classify_from: int = 0, image_size: int = 48) -> zoo.SimCLR:
    spec = zoo.Spec(18, 1 / 16)
    model = zoo.create(spec, num_classes=3, image_size=image_size, classify_from=classify_from, seed=0)
    model.classes = LABELS
    model.facts = {
        "weights": "tiny <i>",
        "licence": "Apache-2.0",
        "accuracy": {"top1": 0.875, "images": 16},
        "recipe": {"distill": {"epochs": 3}},
    }
    return randomise(model)


def tiny_student(folder: Path) -> Path:
    """A tiny exported student, made once a test run (``folder``: of the whole run)."""
    path = folder / "tiny.onnx"
    return path if path.exists() else export.to_onnx(tiny_model(), path, weights="fp16")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def projected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that classifies from projection layer 1, in float32."""
    return export.to_onnx(tiny_model(classify_from=1), tmp_path_factory.mktemp("onnx") / "projected.onnx")


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_equals_the_model_it_came_from(projected: Path, count: int) -> None:
    images = np.random.default_rng(count).random((count, 3, 48, 48), dtype=np.float32)
    with torch.inference_mode():
        wanted = tiny_model(classify_from=1)(torch.from_numpy(images))  # batch norms unfolded
    found = export.OnnxModel(projected)(images)
    for ours, theirs in zip(found[:2], wanted, strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()


def test_fp16_weights_are_the_folded_ones_rounded(student: Path) -> None:
    model = tiny_model()
    stem = model.backbone.stem.layers[0]
    scale = stem.norm.weight.double() / (stem.norm.running_var.double() + 1e-5).sqrt()
    folded = (stem.conv.weight.double() * scale[:, None, None, None]).detach().numpy()
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(student).graph.initializer}
    first = next(array for array in stored.values() if array.shape == folded.shape)
    assert first.dtype == np.float16
    np.testing.assert_array_equal(first, folded.astype(np.float32).astype(np.float16))
    assert {array.dtype for array in stored.values() if array.ndim > 1} == {np.dtype(np.float16)}
    assert {array.dtype for array in stored.values() if array.ndim == 1} <= {np.dtype(np.float32), np.dtype(np.int64)}
    images = np.random.default_rng(0).random((3, 3, 48, 48), dtype=np.float32)
    with torch.inference_mode():
        exact = model(torch.from_numpy(images)).logits.numpy()
    found = export.OnnxModel(student)(images).logits
    assert 0 < np.abs(found - exact).max() <= 0.02 * np.abs(exact).max()


def test_metadata_and_a_single_clean_file(student: Path, projected: Path) -> None:
    proto = onnx.load(student)
    onnx.checker.check_model(proto, full_check=True)
    meta = {entry.key: entry.value for entry in proto.metadata_props}
    model = tiny_model()
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert meta["format"] == "simclrv2-1"
    assert meta["architecture"] == "r18_0.0625x"
    assert zoo.Spec(**json.loads(meta["spec"])) == model.spec
    assert (meta["image_size"], meta["classify_from"], meta["licence"]) == ("48", "0", "Apache-2.0")
    assert tuple(json.loads(meta["labels"])) == LABELS
    assert json.loads(meta["facts"]) == model.facts
    assert meta["preprocessing"].startswith("simclrv2-eval-1: ")
    assert meta["weights_sha256"] == weights_sha256(model)
    assert weights_sha256(randomise(model, seed=1)) != meta["weights_sha256"]
    content = student.read_bytes()
    assert b"site-packages" not in content  # torch notes where the code lay
    assert not any("projector" in tensor.name for tensor in proto.graph.initializer)
    layers = {name for tensor in onnx.load(projected).graph.initializer if "projector" in (name := tensor.name)}
    assert {name.split("layers.")[1][0] for name in layers} == {"0"}
    assert sorted(path.name for path in projected.parent.iterdir()) == ["projected.onnx"]


def test_without_classifier_it_embeds_only(tmp_path: Path) -> None:
    model = randomise(zoo.create(zoo.Spec(18, 1 / 16), num_classes=None, image_size=32, projector=False, seed=0))
    student = export.OnnxModel(export.to_onnx(model, tmp_path / "embeds.onnx"))
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    features, logits, _ = student(images)
    assert logits is None
    with torch.inference_mode():
        np.testing.assert_allclose(features, model(torch.from_numpy(images)).features.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="has no classifier"):
        student.classify(images)


def test_what_differs_is_not_written(
    projected: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.check_parity(graph.fold_batch_norms(tiny_model(classify_from=1)), projected)
    wrong = tiny_model(classify_from=1)
    with torch.no_grad():
        wrong.classifier.bias[0] += 0.1
    with pytest.raises(export.ParityError, match=r"logits differ from torch's by 0\.1 at batch 1"):
        graph.check_parity(graph.fold_batch_norms(wrong), projected)
    exported = onnx.load(projected)
    del exported.metadata_props[:]
    monkeypatch.setattr(graph, "_export", lambda model: exported)
    with pytest.raises(export.ParityError, match="Nothing was written"):
        export.to_onnx(wrong, tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown weights 'int4'"):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", weights="int4")
    with torch.device("meta"):
        huge = zoo.SimCLR(zoo.spec("r152_3x_sk"), num_classes=10)
    with pytest.raises(ValueError, match=r"r152_3x_sk needs 3\.2 GB; a single ONNX file holds at most"):
        export.to_onnx(huge, tmp_path / "a.onnx")
    large = tiny_model()
    with torch.no_grad():
        large.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"classifier has weights up to 1e\+06, beyond float16"):
        export.to_onnx(large, tmp_path / "a.onnx", weights="fp16")
    named = tiny_model()
    named.classes = ("one",)
    with pytest.raises(ValueError, match="1 class names for 3 classes"):
        export.to_onnx(named, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model(classify_from=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph.round_to_half(graph.fold_batch_norms(model.train()))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_import_is_light() -> None:
    code = "import sys, export; print(any(name in sys.modules for name in ('torch', 'onnxruntime', 'onnx', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_bundled_architecture_fits(tmp_path: Path) -> None:
    model = zoo.create("r18_1x", num_classes=10, image_size=64, projector=False, seed=0)
    assert export.to_onnx(model, tmp_path / "a.onnx", weights="fp16").stat().st_size <= 25e6


@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 33])
def test_selective_kernels(tmp_path: Path, size: int) -> None:
    model = zoo.create(zoo.Spec(50, 1 / 16, sk=True), num_classes=5, image_size=size, classify_from=3, seed=0)
    path = export.to_onnx(randomise(model), tmp_path / "a.onnx", weights="fp16")
    assert export.OnnxModel(path).classify(np.zeros((2, 3, size, size), np.float32)).shape == (2, 5)
