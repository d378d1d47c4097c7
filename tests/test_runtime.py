"""An exported model at work without torch: what it takes, what it gives, and what it refuses."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_files
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from test_export import LABELS, tiny_student

import export
import zoo
from export import embeddings, runtime, selftest


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
    features, logits, projections = model(np.empty((0, 3, 48, 48), np.float32))
    assert projections.shape == (0, 128)
    assert features.shape == (0, 32)
    assert logits.shape == (0, 3)


def test_wrong_input(model: export.OnnxModel, tmp_path: Path) -> None:
    for batch in (np.zeros((1, 3, 47, 48), np.float32), np.zeros((1, 48, 48, 3), np.float32)):
        with pytest.raises(ValueError, match=r"float32 of shape \(N, 3, 48, 48\)"):
            model.embed(batch)
    with pytest.raises(ValueError, match=r"\(N, 3, S, S\), not \(3, 48, 48\)"):
        model.embed(np.zeros((3, 48, 48), np.float32))
    for images, said in (
        (np.zeros((4, 48, 48, 3)), r"must be uint8 of shape \(H, W, 3\), not float64 of shape \(48, 48, 3\)"),
        (np.zeros((48, 48), np.uint8), r"not uint8 of shape \(48, 48\)"),
        (np.zeros((48, 48, 4), np.uint8), r"not uint8 of shape \(48, 48, 4\)"),
        (np.zeros((0, 48, 3), np.uint8), r"not uint8 of shape \(0, 48, 3\)"),
        (np.zeros((48, 48, 3), bool), r"not bool of shape"),
        (3, r"paths, PIL images, uint8 arrays \(H, W, 3\), or a list of them, not int"),
        (None, r"not NoneType"),
        ({"a": 1}, r"not dict"),
        (iter(["a.png"]), r"not list_iterator"),
        ([None], r"cannot be read as an image"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            model.classify(images)
        assert "\n" not in str(caught.value)
    for batch in (
        [[1.0]],
        np.zeros((2, 48, 48, 3), np.int64),
        np.zeros((2, 3, 48, 48)),
        np.zeros((2, 3, 48, 48), bool),
    ):
        with pytest.raises(ValueError, match=r"or uint8 of shape \(N, 48, 48, 3\), not "):
            model(batch)
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"a\.jpg: not an image in a known format"):
        model.classify(tmp_path / "a.jpg")


def test_pictures_of_every_mode(model: export.OnnxModel, picture: np.ndarray) -> None:
    """Pillow's own conversion to RGB is the answer; transparency is laid on white."""
    image = Image.fromarray(picture)
    for mode in ("L", "P", "CMYK", "1", "YCbCr", "HSV"):
        converted = image.convert(mode)
        np.testing.assert_array_equal(model.embed(converted), model.embed(np.asarray(converted.convert("RGB"))))
    clear = image.convert("RGBA")
    clear.putalpha(0)
    np.testing.assert_array_equal(model.embed(clear), model.embed(np.full_like(picture, 255)))
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(model.embed(deep), model.embed(np.repeat(picture[..., :1], 3, axis=2)))


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads(student: Path, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; it must be 1 or more"):
        export.OnnxModel(student, threads=threads)


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
        ({"meta": GOOD | {"labels": '"abc"'}}, "not a list of texts"),
        ({"meta": GOOD | {"labels": "[" * 100_000}}, "its metadata is damaged"),
        ({"meta": GOOD | {"facts": "[]"}}, "is not an object"),
        ({"meta": GOOD | {"image_size": "4097"}}, "image_size is 4097, not 1 to 4096"),
        ({"meta": GOOD | {"image_size": "0"}}, "image_size is 0"),
        ({"meta": GOOD | {"image_size": "1" * 5000}}, "image_size is 1+…, not"),
        ({"meta": GOOD | {"format": "a\nb"}}, "metadata 'format' is 'a.b'"),
        ({"meta": GOOD}, r"its input is .*, not images \(N, 3, 48, 48\)"),
        ({"domain": "evil.ops"}, r"operators outside the ONNX standard \(evil.ops\)"),
        ({"external": True}, "its weights lie in other files"),
    ],
)
def test_foreign_files(tmp_path: Path, made: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        export.OnnxModel(foreign(tmp_path / "foreign.onnx", **made))
    assert "\n" not in str(caught.value)


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
    with pytest.raises(ValueError, match=r"a folder; name an \.onnx file"):
        export.OnnxModel(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.onnx")
        with pytest.raises(ValueError, match="not a regular file"):
            export.OnnxModel(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("image_input", ["float", "uint8"])
def test_values_that_are_no_image(tmp_path: Path, image_input: str) -> None:
    model = export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", size=40, takes=image_input))
    batch = np.full((2, 3, 40, 40), 0.5, np.float32)
    for wrong in (200.0, -1.0, np.nan):
        batch[1, 2, 3, 4] = wrong
        with pytest.raises(ValueError, match="A float batch has values from 0 to 1, not "):
            model(batch)
    with pytest.raises(ValueError, match=r"providers='CPUExecutionProvider': give a list"):
        export.OnnxModel(tmp_path / "a.onnx", providers="CPUExecutionProvider")
    with pytest.raises(ValueError, match="threads is '2'; it must be 1 or more"):
        export.OnnxModel(tmp_path / "a.onnx", threads="2")


# ---- format simclrv2-2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_input", ["float", "uint8"])
def test_either_batch_for_either_file(tmp_path: Path, image_input: str) -> None:
    path = onnx_files.student(tmp_path / "a.onnx", takes=image_input, projector=True)
    model = export.OnnxModel(path, threads=1)
    assert (model.image_input, model.weights, model.projection_width, model.num_classes) == (image_input, "fp32", 5, 3)
    assert model.accuracy == {"source": {"top1": 0.5}, "measured": {"top1": 0.4}}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    wanted = onnx_files.answers(pixels.transpose(0, 3, 1, 2) / 255)
    for batch in (pixels, (pixels / np.float32(255)).transpose(0, 3, 1, 2)):
        found = model(batch)
        for name, values in wanted.items():
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-4, atol=1e-5)
            assert getattr(found, name).dtype == np.float32
    assert [part.shape for part in model(pixels[:0])] == [(0, 4), (0, 3), (0, 5)]
    exact = np.exp(wanted["logits"])
    np.testing.assert_allclose(model.classify(list(pixels)), exact / exact.sum(1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(model.embed(pixels[0]), wanted["features"][:1], rtol=1e-4, atol=1e-5)


def test_floats_are_rounded_half_to_even(tmp_path: Path) -> None:
    model = export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", takes="uint8"), threads=1)
    batch = np.full((1, 3, 8, 8), 0.5, np.float32)  # 127.5
    batch[0, 0, 0, :4] = (100.5 / 255, 101.5 / 255, 1.005, -0.005)
    levels = model._as_input(batch)
    assert levels[0, 0, :4, 0].tolist() == [100, 102, 255, 0]
    assert set(levels[0, 1:].ravel().tolist()) == {128}
    np.testing.assert_array_equal(model(batch).logits, model(levels).logits)
    for wrong in (np.nan, 255.0, -1.0):
        batch[0, 0, 0, 0] = wrong
        with pytest.raises(ValueError, match="A float batch has values from 0 to 1, not "):
            model(batch)


def test_without_classifier_or_labels(tmp_path: Path) -> None:
    model = export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", classifier=False, projector=True), threads=1)
    found = model(np.zeros((2, 8, 8, 3), np.uint8))
    assert found.logits is None
    assert found.projections is not None
    assert found.projections.shape == (2, 5)
    with pytest.raises(ValueError, match="has no classifier"):
        model.classify(np.zeros((8, 8, 3), np.uint8))
    unnamed = export.OnnxModel(onnx_files.student(tmp_path / "b.onnx", labels=[]), threads=1)
    assert (unnamed.labels, unnamed.num_classes) == ((), 3)
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        export.OnnxModel(onnx_files.student(tmp_path / "c.onnx", labels=["a", "b"]), threads=1)


def preprocess(**changes: object) -> str:
    return json.dumps({"crop": 0.875, "resize": "tf1-bicubic", "channels": "RGB", "range": [0, 1]} | changes)


def test_the_metadata_say_how_to_preprocess(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    half = export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", size=40, preprocess=preprocess(crop=0.5)))
    whole = export.OnnxModel(onnx_files.student(tmp_path / "b.onnx", size=40, preprocess=preprocess(crop=1)))
    middle = picture[28:63, 18:53]  # 35 of 70 pixels; what is left over goes first, (90 - 35 + 1) // 2
    np.testing.assert_array_equal(half.prepare(picture), whole.prepare(middle))
    np.testing.assert_array_equal(half.embed(picture), whole.embed(middle))
    usual = export.OnnxModel(onnx_files.student(tmp_path / "c.onnx", size=40))
    np.testing.assert_array_equal(usual.prepare(picture), zoo.preprocess(picture, 40))
    told = preprocess(crop=None, resize=None)
    exact = export.OnnxModel(onnx_files.student(tmp_path / "d.onnx", size=40, preprocess=told))
    np.testing.assert_array_equal(
        exact.prepare(picture[:40, :40]).transpose(1, 2, 0), picture[:40, :40] / np.float32(255)
    )
    for model, image in ((exact, picture), (export.OnnxModel(onnx_files.student(tmp_path / "e.onnx")), picture)):
        size = model.image_size
        with pytest.raises(ValueError, match="takes images of exactly that size, not 70 x 90"):
            model.embed(image)
        assert model.embed(image[:size, :size]).shape == (1, 4)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"preprocess": preprocess(resize="lanczos")}, "preprocess is .*lanczos.*update simclrv2"),
        ({"preprocess": preprocess(mean=[0.5])}, "preprocess is .*mean"),
        ({"preprocess": preprocess(channels="BGR")}, "preprocess is .*BGR"),
        ({"preprocess": preprocess(crop=1.5)}, "preprocess is "),
        ({"preprocess": preprocess(crop=float("nan"))}, "preprocess is "),
        ({"preprocess": preprocess(crop="all")}, "preprocess is "),
        ({"preprocess": preprocess(crop=None)}, "preprocess is "),
        ({"preprocess": None}, "KeyError: 'preprocess'"),
        ({"image_input": "bfloat16"}, "'bfloat16' is none of float, uint8"),
        ({"image_input": "uint8"}, r"its input is .*, not images \(N, 40, 40, 3\), tensor\(uint8\)"),
        ({"image_input": None}, "KeyError: 'image_input'"),
        ({"weights": "int4"}, "'int4' is none of fp32, fp16, int8"),
        ({"accuracy": "3"}, "3 is not an object"),
        ({"format": "simclrv2-3"}, "'simclrv2-3', not 'simclrv2-1' or 'simclrv2-2'.*or update simclrv2"),
        ({"image_size": "41"}, "its input is "),
    ],
)
def test_what_is_unknown_is_refused(tmp_path: Path, told: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", size=40, **told))
    assert "\n" not in str(caught.value)


# ---- the self-test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 33])
def test_self_test_images(size: int) -> None:
    found = runtime.self_test_images(3, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, onnx_files.waves(3, size))


def test_a_pixel_of_the_self_test_by_hand() -> None:
    """Image 1, row 3, column 2, blue, of 8 pixels: phases 8*64+0+340+97, 1*64+100+680+194, 29*64+300+1020+291."""
    assert [8 * 64 + 437, 64 + 974, 29 * 64 + 1611] == [949, 1038, 3467]  # modulo 512: 437, 14, 395
    wave = [abs(437 - 256), abs(14 - 256), abs(395 - 256)]
    assert runtime.self_test_images(2, 8)[1, 3, 2, 2] == (2 * wave[0] + wave[1] + wave[2]) // 4


def test_what_is_written_can_be_read() -> None:
    outputs = {"logits": np.arange(6, dtype=np.float32).reshape(2, 3), "features": np.ones((2, 4), np.float32)}
    found = selftest.expected_outputs(selftest.self_test(outputs), {"logits": 3, "features": 4})
    for name, values in outputs.items():
        np.testing.assert_array_equal(found[name], values)


def stored(path: Path, name: str) -> tuple[dict, np.ndarray]:
    told = json.loads(next(entry.value for entry in onnx.load(path).metadata_props if entry.key == "self_test"))
    return told, np.frombuffer(base64.b64decode(told["outputs"][name]), "<f4").copy()


@pytest.mark.parametrize(("weights", "allowed"), [("fp32", 1e-3), ("fp16", 1e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("name", ["features", "logits", "projections"])
def test_a_machine_that_answers_differently(tmp_path: Path, weights: str, allowed: float, name: str) -> None:
    path = onnx_files.student(tmp_path / "a.onnx", projector=True)
    told, values = stored(path, name)
    largest = np.abs(values).max()
    for share in (0.9, 1.1, np.nan):
        changed = values.copy()
        changed[np.abs(values).argmin()] += share * allowed * largest
        told["outputs"][name] = base64.b64encode(changed.tobytes()).decode()
        onnx_files.student(path, projector=True, weights=weights, self_test=json.dumps(told))
        if share == 0.9:
            assert export.OnnxModel(path).weights == weights
            continue
        said = (
            rf"answers differently on this machine .*: {name} differ by [0-9.e-]+ \(allowed "
            rf"{allowed * largest:.3g}, {allowed:g} of the largest, {largest:.3g}\); onnxruntime .* with "
            r"CPUExecutionProvider\. Try "
        )
        with pytest.raises(ValueError, match="values that are no numbers" if np.isnan(share) else said) as caught:
            export.OnnxModel(path)
        assert "\n" not in str(caught.value)
        if share == 1.1:
            figure = re.search("differ by ([0-9.e-]+) ", str(caught.value))
            assert figure is not None
            assert float(figure[1]) == pytest.approx(share * allowed * largest, rel=0.01)


def test_a_machine_that_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN compares with nothing: it must not pass for equal."""
    path = onnx_files.student(tmp_path / "a.onnx")
    real = export.OnnxModel._run

    def broken(self: export.OnnxModel, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = real(self, batch)
        found["logits"][1, 1] = np.nan
        return found

    monkeypatch.setattr(export.OnnxModel, "_run", broken)
    with pytest.raises(ValueError, match="logits differ by nan"):
        export.OnnxModel(path)


@pytest.mark.parametrize(
    "told",
    [None, "", "{}", "[]", "3", "[" * 100_000, '{"pattern": "simclrv2-waves-1", "images": 2, "outputs": {}}',
     '{"pattern": "simclrv2-waves-1", "images": 2, "outputs": {"features": "AAAA", "logits": "AAAA"}}',
     '{"pattern": "simclrv2-waves-1", "images": 2, "outputs": {"features": "ö", "logits": "AAAA"}}',
     '{"pattern": "simclrv2-waves-1", "images": 2, "outputs": {"features": 3, "logits": 4}}',
     '{"pattern": "simclrv2-waves-1", "images": 2, "outputs": ["features", "logits"]}',
     '{"pattern": "simclrv2-waves-1", "images": 1000000, "outputs": {}}',
     '{"pattern": "simclrv2-waves-9", "images": 2, "outputs": {}}'],
)  # fmt: skip
def test_a_damaged_self_test(tmp_path: Path, told: str | None) -> None:
    with pytest.raises(ValueError, match="its self-test is damaged") as caught:
        export.OnnxModel(onnx_files.student(tmp_path / "a.onnx", self_test=told))
    assert "\n" not in str(caught.value)


# ---- what serving needs ----------------------------------------------------------------------------------------------


def test_importing_it_is_light(student: Path) -> None:
    """Beyond onnxruntime: our few modules and no package; Pillow comes with the first picture that is no array."""
    code = (
        "import sys, onnxruntime, numpy\n"
        "before = set(sys.modules)\n"
        "from export import OnnxModel\n"
        "new = {name for name in set(sys.modules) - before if name.split('.')[0] not in sys.stdlib_module_names}\n"
        "print(sorted(new))\n"
        "sys.modules['PIL'] = None\n"
        "print(OnnxModel(sys.argv[1]).classify(numpy.zeros((60, 60, 3), numpy.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(student)], capture_output=True, text=True, check=False)
    ours = ["export", "export.runtime", "export.selftest", "export.wire"]
    ours += ["zoo", "zoo.registry", "zoo.transforms", "zoo.upright"]
    assert done.stdout.splitlines() == [str(ours), "(1, 3)"], done.stderr


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


def test_onnxruntime_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """As it comes it keeps a number of this device and a list of events to send below the home folder."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    code = "from export import OnnxModel; from app.engine import bundled_student; OnnxModel(bundled_student())"
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []
