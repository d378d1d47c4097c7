"""Taught heads in files: the same features to the last bit, the head's logits, nothing left of the old classifier."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_files
import pytest
from test_export import randomise, tiny_model

import export
import zoo
from export import runtime
from export.head_file import save_head, taught_facts
from export.heads import Head, teach

CLASSES = ("cat", "Überraschung 🐈", "a <b>'\"", "d")


def head_of(width: int, *, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    return Head(
        classes,
        random.normal(size=(len(classes), width)).astype(np.float32),
        random.normal(size=len(classes)).astype(np.float32),
    )


def by_hand(head: Head, features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return np.array(
        [
            [sum(row * weight) + bias for weight, bias in zip(head.weight.astype(float), head.bias, strict=True)]
            for row in wide
        ]
    )


def names(path: Path) -> set[str]:
    graph = onnx.load(path).graph
    return {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}


def textures(count: int) -> np.ndarray:
    return np.random.default_rng(3).random((count, 3, 48, 48), dtype=np.float32)


KINDS = {
    "fp32": lambda: (tiny_model(), {}),
    "fp16, uint8": lambda: (tiny_model(), {"weights": "fp16", "image_input": "uint8"}),
    "int8": lambda: (tiny_model(), {"weights": "int8", "calibration": textures(8)}),
    "from a projection": lambda: (tiny_model(classify_from=1), {}),
    "from the last projection, fp16": lambda: (tiny_model(classify_from=3), {"weights": "fp16"}),
    "no classifier": lambda: (randomise(zoo.create(zoo.Spec(18, 1 / 16), image_size=48, seed=0)), {}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, options = KINDS[request.param]()
    folder = tmp_path_factory.mktemp("students")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that integers are slower than float here
        return export.to_onnx(model, folder / "student.onnx", **options)


def test_any_student(student: Path, tmp_path: Path) -> None:
    before = student.read_bytes()
    head = head_of(32)
    path = save_head(student, head, tmp_path / "new" / "taught.onnx", facts={"examples": {"cat": 3}})
    assert path == tmp_path / "new" / "taught.onnx"
    assert [file.name for file in path.parent.iterdir()] == ["taught.onnx"]
    assert student.read_bytes() == before
    old, new = export.OnnxModel(student), export.OnnxModel(path)
    for count in (1, 7):
        images = textures(count)
        theirs, ours = old(images), new(images)
        assert ours.features.tobytes() == theirs.features.tobytes()
        if theirs.projections is not None:
            assert ours.projections is not None
            assert ours.projections.tobytes() == theirs.projections.tobytes()
        wanted = by_hand(head, ours.features)
        assert np.abs(ours.logits - wanted).max() <= 1e-5 * np.abs(wanted).max()
        assert np.abs(new.classify(images) - runtime.softmax(wanted)).max() < 1e-5
    assert (new.labels, new.num_classes) == (CLASSES, 4)
    same = (
        "architecture",
        "image_size",
        "preprocessing",
        "weights",
        "image_input",
        "feature_width",
        "projection_width",
    )
    assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]
    assert new.accuracy == {"source": {}, "measured": {}}
    assert "accuracy" not in json.dumps(new.facts)
    assert new.facts["taught"]["examples"] == {"cat": 3}
    assert len(new.facts["taught"]["date"]) == 10
    assert (new.facts["student"]["file"], new.facts["student"]["sha256"]) == ("student.onnx", old.fingerprint)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["classify_from"] == "0"
    assert "weights_sha256" not in told
    recorded = json.loads(told["self_test"])["outputs"]
    assert set(recorded) == {"features", "logits"} | ({"projections"} if old.projection_width else set())
    assert onnx.load(path).graph.output[1].name == "logits"


def test_what_only_the_old_classifier_needed_goes(tmp_path: Path) -> None:
    """A student that classifies from a projection layer and gives no projections: its projector has no use any more."""
    student = export.to_onnx(tiny_model(classify_from=2), tmp_path / "student.onnx")
    proto = onnx.load(student)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    place = [value.name for value in proto.graph.output].index("projections")
    del proto.graph.output[place]
    recorded = json.loads(told["self_test"])
    del recorded["outputs"]["projections"]
    onnx_files.write(student, proto, told | {"self_test": json.dumps(recorded)})
    assert any(name.startswith("projector") for name in names(student))
    path = save_head(student, head_of(32), tmp_path / "taught.onnx")
    assert not any(name.startswith("projector") for name in names(path))
    assert path.stat().st_size < student.stat().st_size


@pytest.mark.parametrize("takes", ["float", "uint8"])
def test_files_of_other_names(takes: str, tmp_path: Path) -> None:
    """A file whose tensors are called otherwise; it, and what is made of it, can be taught again."""
    student = onnx_files.student(tmp_path / "student.onnx", takes=takes, projector=True)
    first = save_head(student, head_of(4), tmp_path / "first.onnx")
    again = save_head(first, head_of(4, classes=("x", "y"), seed=1), tmp_path / "again.onnx")
    assert not {"dense", "shift"} & names(first)
    assert names(again) == names(first)
    images = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    images = np.rint(images * 255) / np.float32(255)
    wanted = onnx_files.answers(images)
    made = export.OnnxModel(again)(images)
    np.testing.assert_allclose(made.features, wanted["features"], rtol=1e-4)
    np.testing.assert_allclose(
        made.logits, by_hand(head_of(4, classes=("x", "y"), seed=1), wanted["features"]), rtol=1e-3
    )
    assert made.projections is not None
    np.testing.assert_allclose(made.projections, wanted["projections"], rtol=1e-3, atol=1e-5)
    assert export.OnnxModel(again).facts["student"]["file"] == "first.onnx"


def test_a_changed_head_is_noticed(tmp_path: Path) -> None:
    """The self-test holds the logits: a file whose head was changed afterwards is not opened."""
    path = save_head(onnx_files.student(tmp_path / "student.onnx"), head_of(4), tmp_path / "taught.onnx")
    proto = onnx.load(path)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "logits.weight")
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.1)).tobytes()
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="logits differ"):
        export.OnnxModel(path)


def test_taught_and_saved(tmp_path: Path) -> None:
    student = onnx_files.student(tmp_path / "student.onnx", labels=["tench", "church", "golf ball"])
    images = np.random.default_rng(5).random((12, 3, 8, 8), dtype=np.float32)
    images[::2, 0] *= 0.2
    labels = ["dull", "red"] * 6
    taught = teach(export.OnnxModel(student).embed(images), labels)
    model = export.OnnxModel(save_head(student, taught.head, tmp_path / "taught.onnx", facts=taught_facts(taught)))
    told = model.facts["taught"]
    assert told["examples"] == {"dull": 6, "red": 6}
    assert told["leave_one_out"] == taught.accuracy
    answers = [taught.head.classes[row] for row in model.classify(images).argmax(1)]
    assert np.mean([a == b for a, b in zip(answers, labels, strict=True)]) > 0.9


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("a", "a"), "'a' is there twice"),
        (("a", "b\nc"), "line breaks"),
        (("a", "b\x00"), "control characters"),
        (("a", "b\u2028c"), "line breaks"),
        (("a", "\ud800"), "control characters"),
        (("a", "x" * 10_000), "has 10000 letters; 200 is the most"),
        (("a", ""), "no name of a class"),
        (("a", 3), "3 is no name of a class"),
    ],
)
def test_names_that_are_refused(classes: Any, said: str, tmp_path: Path) -> None:
    student = onnx_files.student(tmp_path / "student.onnx")
    with pytest.raises(ValueError, match=said) as caught:
        save_head(student, head_of(4)._replace(classes=classes), tmp_path / "taught.onnx")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "taught.onnx").exists()


def test_names_that_are_kept(tmp_path: Path) -> None:
    kept = ("x" * 200, "</script>", "../../etc/passwd", "👨‍👩‍👧", " padded ", "ש\u202e")
    student = onnx_files.student(tmp_path / "student.onnx")
    path = save_head(student, head_of(4, classes=kept), tmp_path / "taught.onnx")
    assert export.OnnxModel(path).labels == kept


def test_a_head_of_another_file_is_refused(tmp_path: Path) -> None:
    student, out = onnx_files.student(tmp_path / "student.onnx"), tmp_path / "taught.onnx"
    fingerprint = export.OnnxModel(student).fingerprint
    save_head(student, head_of(4), out, fingerprint=fingerprint)
    onnx_files.student(student, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"student\.onnx: replaced since .*; open it again \(restart the app\)"):
        save_head(student, head_of(4), out, fingerprint=fingerprint)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, out, good = onnx_files.student(tmp_path / "student.onnx"), tmp_path / "taught.onnx", head_of(4)
    outside = onnx_files.student(tmp_path / "large.onnx", external="large.data")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("no model")
    out.write_bytes(b"older")
    infinite = good.weight.copy()
    infinite[0, 0] = np.inf
    cases: list[tuple[Path, Head, Path, dict[str, Any], str]] = [
        (student, head_of(5), out, {}, "reads 5 features and .* makes 4"),
        (student, good._replace(bias=good.bias[:2]), out, {}, "does not fit"),
        (student, good._replace(weight=infinite), out, {}, "no finite numbers"),
        (outside, good, out, {}, "weights lie in a second file"),
        (tmp_path / "none.onnx", good, out, {}, "no such file"),
        (tmp_path / "text.onnx", good, out, {}, "not a readable ONNX file"),
        (student, good, student, {}, "the student itself"),
        (student, good, tmp_path / "folder", {}, "a folder"),
        (student, good, student / "x.onnx", {}, "not in a folder"),
        (student, good, tmp_path / ".x.onnx", {}, "without a leading dot"),
        (student, good, out, {"a": {1, 2}}, "cannot be kept as JSON"),
        (student, good, out, {"a": float("nan")}, "cannot be kept as JSON"),
    ]
    for path, head, to, facts, said in cases:
        with pytest.raises(ValueError, match=said) as caught:
            save_head(path, head, to, facts=facts)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="pip install onnx"):
        save_head(student, good, out)
    assert out.read_bytes() == b"older"
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []
