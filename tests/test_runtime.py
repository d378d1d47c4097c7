"""An exported model at work without torch: what it takes, what it gives, and what it refuses."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from test_export import LABELS, tiny_student

import export
import zoo
from export import embeddings, runtime


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.getbasetemp())


@pytest.fixture
def model(student: Path) -> export.OnnxModel:
    return export.OnnxModel(student, threads=1)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def test_attributes(model: export.OnnxModel, student: Path) -> None:
    assert (model.path, model.architecture, model.image_size) == (student, "r18_0.0625x", 48)
    assert (model.labels, model.num_classes, model.feature_width) == (LABELS, 3, 32)
    assert model.facts["accuracy"] == {"top1": 0.875, "images": 16}
    assert model.fingerprint == hashlib.sha256(student.read_bytes()).hexdigest()
    assert "r18_0.0625x" in repr(model)


def test_every_way_to_give_an_image_is_the_same(model: export.OnnxModel, picture: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(picture).save(file)
    batch = zoo.preprocess(picture, 48)[None]
    wanted = model(batch)
    for one in (picture, Image.fromarray(picture), file, str(file), [file], (picture,), batch):
        np.testing.assert_array_equal(model.embed(one), wanted.features)
        exact = np.exp(wanted.logits.astype(np.float64))
        np.testing.assert_allclose(model.classify(one), exact / exact.sum(), rtol=1e-5)
    assert model.classify(picture).dtype == model.embed(picture).dtype == np.float32


def test_long_lists_go_in_pieces(model: export.OnnxModel, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.roll(picture, step * 9, axis=1) for step in range(5)]
    whole = model.embed(pictures)
    monkeypatch.setattr(runtime, "CHUNK", 2)
    np.testing.assert_allclose(model.embed(pictures), whole, rtol=1e-4, atol=1e-5)
    assert model.classify(np.stack([zoo.preprocess(image, 48) for image in pictures])).shape == (5, 3)


def test_no_images(model: export.OnnxModel) -> None:
    for none in ([], np.empty((0, 3, 48, 48), np.float32)):
        assert model.classify(none).shape == (0, 3)
        assert model.embed(none).shape == (0, 32)
    features, logits = model(np.empty((0, 3, 48, 48), np.float32))
    assert features.shape == (0, 32)
    assert logits.shape == (0, 3)


def test_wrong_input(model: export.OnnxModel, tmp_path: Path) -> None:
    for batch in (np.zeros((1, 3, 47, 48), np.float32), np.zeros((1, 48, 48, 3), np.float32)):
        with pytest.raises(ValueError, match=r"float32 of shape \(N, 3, 48, 48\)"):
            model.embed(batch)
    with pytest.raises(ValueError, match=r"\(N, 3, S, S\), not \(3, 48, 48\)"):
        model.embed(np.zeros((3, 48, 48), np.float32))
    with pytest.raises(ValueError, match="must be uint8"):
        model.classify(np.zeros((4, 48, 48, 3)))
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"a\.jpg: not an image in a known format"):
        model.classify(tmp_path / "a.jpg")


def test_unknown_provider(student: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown onnxruntime provider 'NoSuch'\. Choose from: .*CPUExecution"):
        export.OnnxModel(student, providers=["NoSuch"])


def foreign(path: Path, *, domain: str = "", meta: dict[str, str] | None = None, external: bool = False) -> Path:
    """Somebody else's ONNX file: y = x + 1."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    if external:
        onnx.external_data_helper.set_external_data(one, "../secret.bin")
        one.ClearField("raw_data")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy")
    add = helper.make_node("Add", ["x", "one"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    proto = helper.make_model(helper.make_graph([add], "g", [x], [y], [one]), opset_imports=opsets, ir_version=10)
    for key, value in (meta or {}).items():
        proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


GOOD = {
    "format": "simclrv2-1", "architecture": "r18_1x", "image_size": "48", "preprocessing": "p", "labels": "[]",
    "facts": "{}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, r"not a model of this project \(metadata 'format' is None"),
        ({"meta": {"format": "other-9"}}, "metadata 'format' is 'other-9'"),
        ({"meta": {"format": "simclrv2-1"}}, "its metadata is damaged"),
        ({"meta": GOOD | {"labels": "{"}}, "its metadata is damaged"),
        ({"meta": GOOD}, r"its input is .*, not images \(N, 3, 48, 48\)"),
        ({"domain": "evil.ops"}, r"operators outside the ONNX standard \(evil.ops\)"),
        ({"external": True}, "its weights lie in other files"),
    ],
)
def test_foreign_files(tmp_path: Path, made: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        export.OnnxModel(foreign(tmp_path / "foreign.onnx", **made))
    assert "\n" not in str(caught.value)


def test_external_data_inside_a_subgraph(tmp_path: Path) -> None:
    proto = onnx.load(foreign(tmp_path / "a.onnx", external=True), load_external_data=False)
    inner = helper.make_graph([], "inner", [], [], list(proto.graph.initializer))
    del proto.graph.initializer[:]
    proto.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))
    (tmp_path / "b.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="its weights lie in other files"):
        export.OnnxModel(tmp_path / "b.onnx")


def test_damaged_files(student: Path, tmp_path: Path) -> None:
    content = student.read_bytes()
    path = tmp_path / "damaged.onnx"
    noise = np.random.default_rng(0).bytes(5000)
    for damaged in (b"", b"hello", b"\xff" * 300, noise, content[: len(content) // 2], content[:-1], content[:40]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.onnx: ") as caught:
            export.OnnxModel(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        export.OnnxModel(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="cannot be read"):
        export.OnnxModel(tmp_path)


def test_serving_needs_no_torch(student: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'onnx', 'safetensors'], None))\n"
        "import numpy, export, app.engine, app.gallery, app.index, app.pictures, app.cli, app.commands, app.serve\n"
        "model = export.OnnxModel(sys.argv[1])\n"
        "print(model.classify(numpy.zeros((60, 60, 3), numpy.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(student)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 3)", done.stderr


def test_cosine_topk_equals_sorting() -> None:
    rng = np.random.default_rng(0)
    matrix, query = rng.normal(size=(200, 8)), rng.normal(size=8)
    matrix[3] = 0
    matrix[50:60] = matrix[7]  # ties
    cosines = [
        float(row @ query) / (np.linalg.norm(row) * np.linalg.norm(query)) if row.any() else 0.0 for row in matrix
    ]
    for k in (1, 5, 100, 200, 500):
        wanted = sorted(range(200), key=lambda i: (-round(cosines[i], 5), i))[:k]
        rows, scores = embeddings.cosine_topk(matrix, query, k)
        np.testing.assert_allclose(scores, [cosines[i] for i in wanted], atol=1e-6)
        assert [row for row in rows if not 50 <= row < 60] == [row for row in wanted if not 50 <= row < 60]
    for k, rows_given in ((0, matrix), (-2, matrix), (3, matrix[:0])):
        assert [len(part) for part in embeddings.cosine_topk(rows_given, query, k)] == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(embeddings.normalise(matrix), axis=1)[[0, 3]], [1, 0], rtol=1e-6)
