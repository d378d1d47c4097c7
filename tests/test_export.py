"""Models out of torch: the same answers in onnxruntime, the same rounded weights, one small file, honest metadata."""

import hashlib
import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import export
import zoo
from export import checks, fold, graph, samples, session, write
from zoo.model_file import weights_sha256, write_config

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
    assert meta["format"] == "simclrv2-2"
    assert meta["architecture"] == "r18_0.0625x"
    assert zoo.Spec(**json.loads(meta["spec"])) == model.spec
    assert (meta["image_size"], meta["classify_from"], meta["licence"]) == ("48", "0", "Apache-2.0")
    assert tuple(json.loads(meta["labels"])) == LABELS
    assert json.loads(meta["facts"]) == model.facts
    assert meta["preprocessing"].startswith("simclrv2-eval-1: ")
    assert meta["weights_sha256"] == weights_sha256(model)
    assert weights_sha256(randomise(model, seed=1)) != meta["weights_sha256"]
    content = student.read_bytes()
    assert str(Path.home()).encode() not in content  # nothing of the machine that wrote it
    assert [output.name for output in onnx.load(projected).graph.output] == ["logits", "features", "projections"]
    assert meta["image_input"] == "float"
    assert json.loads(meta["preprocess"]) == {
        "crop": 0.875, "resize": "tf1-bicubic", "channels": "RGB", "range": [0, 1],
    }  # fmt: skip
    assert json.loads(meta["external_data"]) == {}
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


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = tiny_model(classify_from=1), tiny_model(classify_from=1)
    with torch.no_grad():
        wrong.classifier.bias[0] += 0.1
    pictures = samples.textures(32, 48)
    running = session.open_graph(graph.build(fold.fold_batch_norms(right)), opset=20)
    checks.check_parity(checks.torch_outputs(right, pictures, "float"), running, pictures, "float")
    with pytest.raises(export.ParityError, match=r"logits differ from torch's by 0\.1 at batch 1"):
        checks.check_parity(checks.torch_outputs(wrong, pictures, "float"), running, pictures, "float")
    monkeypatch.setattr(write, "fold_batch_norms", lambda model: fold.fold_batch_norms(right))
    with pytest.raises(export.ParityError, match="Nothing was written"):
        export.to_onnx(wrong, tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


class Pretended:
    """A session that answers as it is told to."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self.answer = answer

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="logits")]

    def run(self, names: list[str], fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.answer(fed["images"])]


def test_what_depends_on_the_batch_is_refused() -> None:
    pictures = np.random.default_rng(0).random((32, 3, 4, 4), dtype=np.float32)

    def honest(images: np.ndarray) -> np.ndarray:
        return images.mean((2, 3))

    checks.check_places(Pretended(honest), pictures, "float")
    for cheat, said in (
        (lambda images: honest(images) + 1e-3 * np.arange(len(images))[:, None], "place in the batch"),
        (lambda images: honest(images) + 1e-3 * len(images), "of an image alone differ"),
        (lambda images: honest(images) - honest(images).mean(0), "of an image alone differ"),
        (lambda images: honest(images) * np.nan, "place in the batch"),
    ):
        with pytest.raises(export.ParityError, match=said):
            checks.check_places(Pretended(cheat), pictures, "float")


def test_another_class_is_refused_only_where_the_first_two_are_apart() -> None:
    pictures = np.zeros((32, 3, 4, 4), np.float32)

    def wanted(gap: float) -> list[dict[str, np.ndarray]]:
        return [{"logits": np.tile(np.float32([10, 10 - gap, 0]), (count, 1))} for count in checks.BATCHES]

    turned = Pretended(lambda images: np.tile(np.float32([10, 10.0005, 0]), (len(images), 1)))
    checks.check_parity(wanted(0.0001), turned, pictures, "float")  # 0.001 is the tolerance, and torch is undecided
    close = Pretended(lambda images: np.tile(np.float32([9.9993, 9.9995, 0]), (len(images), 1)))
    with pytest.raises(export.ParityError, match="another class for 1 of 1 images"):
        checks.check_parity(wanted(0.0012), close, pictures, "float")


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_uint8_images_are_the_rounded_ones(tmp_path: Path, weights: str) -> None:
    path = export.to_onnx(tiny_model(), tmp_path / "a.onnx", image_input="uint8", weights=weights)
    proto = onnx.load(path)
    (images,) = proto.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_value for side in images.type.tensor_type.shape.dim][1:] == [48, 48, 3]
    takes_float = export.OnnxModel(export.to_onnx(tiny_model(), tmp_path / "b.onnx", weights=weights))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    wanted = takes_float(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255))
    for found, reference in zip(export.OnnxModel(path)(pixels)[:2], wanted[:2], strict=True):
        assert np.abs(found - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("classify_from", [0, 1, 3])
def test_projections_travel_where_a_projector_is_kept(tmp_path: Path, classify_from: int) -> None:
    model = tiny_model(classify_from=classify_from)
    student = export.OnnxModel(export.to_onnx(model, tmp_path / "a.onnx"))
    images = np.random.default_rng(0).random((3, 3, 48, 48), dtype=np.float32)
    with torch.inference_mode():
        wanted = model.projector(model(torch.from_numpy(images)).features).numpy()
    assert student.projection_width == 128
    assert np.abs(student(images).projections - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21])
def test_the_opset_asked_for_is_written(tmp_path: Path, opset: int) -> None:
    path = export.to_onnx(tiny_model(image_size=33), tmp_path / "a.onnx", opset=opset)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]


def _refused(*arguments: object, **options: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = export.OnnxModel(export.to_onnx(tiny_model(), tmp_path / "one" / "a.onnx"))
    monkeypatch.setattr(write, "MOST_BYTES", 10_000)
    folder = tmp_path / "two"
    model = export.OnnxModel(export.to_onnx(tiny_model(), folder / "a.onnx"))
    images = np.random.default_rng(0).random((2, 3, 48, 48), dtype=np.float32)
    np.testing.assert_array_equal(model(images).logits, wanted(images).logits)
    (beside,) = folder.glob("*.data")
    content = beside.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert beside.name == f"a.onnx.{sha256[:12]}.data"
    meta = {entry.key: entry.value for entry in onnx.load(folder / "a.onnx", load_external_data=False).metadata_props}
    assert json.loads(meta["external_data"]) == {"file": beside.name, "sha256": sha256, "bytes": len(content)}
    assert (folder / "a.onnx").stat().st_size < len(content) / 4
    onnx.checker.check_model(str(folder / "a.onnx"), full_check=True)
    foreign = folder / "a.onnx.notes.data"
    foreign.write_text("not ours")
    export.to_onnx(randomise(tiny_model(), seed=1), folder / "a.onnx")  # the older weights go, once the new are there
    assert len(list(folder.glob("a.onnx.*.data"))) == 2
    assert foreign.exists()
    assert not beside.exists()
    (folder / "a.onnx").rename(folder / "v1.onnx")  # which names its weights still
    export.to_onnx(randomise(tiny_model(), seed=3), folder / "a.onnx")
    export.OnnxModel(folder / "v1.onnx")
    assert write.export_model(randomise(tiny_model(), seed=4), folder / "a.onnx").file_bytes == (
        export.OnnxModel(folder / "a.onnx").file_bytes
    )
    assert len(list(folder.glob("a.onnx.*.data"))) == 3  # one a model, and the foreign one
    (folder / "gone.onnx").symlink_to(folder / "nowhere")
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", _refused)
        export.to_onnx(randomise(tiny_model(), seed=5), folder / "a.onnx")
    assert len(list(folder.glob("a.onnx.*.data"))) == 4  # whose weights they are cannot be told
    (folder / "v1.onnx").unlink()
    export.to_onnx(randomise(tiny_model(), seed=6), folder / "a.onnx")
    assert len(list(folder.glob("a.onnx.*.data"))) == 2
    export.OnnxModel(folder / "a.onnx")
    monkeypatch.setattr(write, "OnnxModel", lambda path: 1 / 0)
    before = sorted(folder.iterdir())
    with pytest.raises(ZeroDivisionError):
        export.to_onnx(randomise(tiny_model(), seed=2), folder / "a.onnx")
    assert sorted(folder.iterdir()) == before
    export.OnnxModel(folder / "a.onnx")


def test_names_of_classes_that_are_no_text(tmp_path: Path) -> None:
    """A folder's name may be bytes that are no UTF-8; training keeps it as Python does."""
    model = tiny_model()
    model.classes = ("caf\udce9", *map(str, range(1, model.num_classes or 0)))
    model.facts = {"data": "caf\udce9"}
    student = export.OnnxModel(export.to_onnx(model, tmp_path / "a.onnx"))
    assert student.labels == model.classes
    assert student.facts == model.facts
    write_config(tmp_path / "config.json", {"classes": model.classes})
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == list(model.classes)


def test_accuracy_is_measured_and_told(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((40, 3, 48, 48), dtype=np.float32)
    with torch.inference_mode():
        answers = tiny_model()(torch.from_numpy(images)).logits.argmax(1).numpy()
    labels = np.where(np.arange(40) < 10, (answers + 1) % 3, answers)  # a quarter wrong
    path = export.to_onnx(tiny_model(), tmp_path / "a.onnx", images=images, labels=labels)
    assert export.OnnxModel(path).accuracy == {
        "source": {"top1": 0.875, "images": 16},
        "measured": {"top1": 0.75, "images": 40},
    }


def test_refusals(tmp_path: Path) -> None:
    some = np.zeros((3, 3, 48, 48), np.float32)
    for given, said in (
        ({"weights": "int4"}, "Unknown weights 'int4'. Choose from: fp32, fp16, int8."),
        ({"image_input": "nhwc"}, "Unknown image_input 'nhwc'. Choose from: float, uint8."),
        ({"opset": 12}, r"opset=12: choose from 13 to \d+; 20 is the default."),
        ({"weights": "int8"}, "weights='int8' needs calibration, a folder of a few hundred"),
        ({"calibration": some}, "calibration is for weights='int8', not 'fp32'"),
        ({"images": some, "labels": [0, 1]}, "2 labels for 3 images; give one for each."),
        ({"labels": [0, 1]}, "2 labels for 0 images"),
        ({"images": some, "labels": [0, 1, 3]}, "class numbers from 0 to 2, not 0 to 3"),
        ({"images": some, "labels": ["a", "b", "c"]}, "class numbers from 0 to 2, not 'a' to 'c'"),
        ({"images": some[:, :, :40]}, r"images: an array .* is float32 \(N, 3, 48, 48\), not float32 \(3, 3, 40, 48\)"),
        ({"images": some + 2}, "images: values from 0 to 1, not 2 to 2."),
        ({"images": some * np.nan}, "images: values from 0 to 1, not nan"),
        ({"images": some.astype(np.float64)}, "is float32 .*, not float64"),
        ({"images": 3}, "images: a folder, a list of pictures or an array, not int."),
        ({"images": some, "labels": [[0], [1], [2]]}, r"An array \(3, 1\) of labels for 3 images"),
        ({"opset": "20"}, "opset='20': choose from"),
        ({"images": []}, "images: no pictures given."),
        ({"images": tmp_path / "none"}, "images='.*none': no such folder of pictures."),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            export.to_onnx(tiny_model(), tmp_path / "a.onnx", **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a folder; name a file to write"):
        export.to_onnx(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match="A Linear is not a model of zoo"):
        export.to_onnx(torch.nn.Linear(2, 2), tmp_path / "a.onnx")
    vanishing = tiny_model()
    with torch.no_grad():
        vanishing.classifier.weight *= 1e-9
        vanishing.classifier.bias *= 0
    with pytest.raises(export.ParityError, match=r"logits differ from torch's by .* allowed 0\.01 of it"):
        export.to_onnx(vanishing, tmp_path / "a.onnx", weights="fp16")
    large = tiny_model()
    with torch.no_grad():
        large.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"classifier has weights up to 1e\+06, beyond float16"):
        export.to_onnx(large, tmp_path / "a.onnx", weights="fp16")
    named = tiny_model()
    named.classes = ("one",)
    with pytest.raises(ValueError, match="1 class names for 3 classes"):
        export.to_onnx(named, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="without a leading dot or a colon"):
        export.to_onnx(tiny_model(), tmp_path / ".onnx")
    assert not list(tmp_path.iterdir())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model(classify_from=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold.round_to_half(fold.fold_batch_norms(model.train()))
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


@pytest.mark.slow
def test_the_largest_network_takes_two_files(tmp_path: Path) -> None:
    """3.2 GB of weights: about 16 GB of memory, some minutes."""
    with torch.device("meta"):
        model = zoo.SimCLR(zoo.spec("r152_3x_sk"), num_classes=10, image_size=64, projector=False)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
            tensor.copy_(torch.full_like(tensor, 0.5 if name.endswith(("norm.weight", "running_var")) else 0.0))
            if tensor.dim() > 1:
                tensor.uniform_(-1, 1).mul_(1 / fan_in**0.5)
    path = export.to_onnx(model, tmp_path / "large.onnx")
    (beside,) = tmp_path.glob("large.onnx.*.data")
    assert beside.stat().st_size > 2**31
    assert path.stat().st_size < 2**22
    student = export.OnnxModel(path)
    assert student.file_bytes == path.stat().st_size + beside.stat().st_size
    assert student.classify(samples.textures(2, 64)).shape == (2, 10)
