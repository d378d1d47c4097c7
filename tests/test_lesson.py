"""Classes that a visitor makes up: examples come and go, the head follows, the copy of the student knows them."""

from pathlib import Path

import numpy as np
import onnx_files
import pytest
from test_export import tiny_student

import export
from app import lesson as lessons
from app.lesson import Example, Lesson
from export.embeddings import normalise


def example(name: str, vector: np.ndarray) -> Example:
    return Example(name, f"{name}.jpg", "", normalise(vector), float(np.linalg.norm(vector)))


def taught_apart(classes: int = 2, each: int = 4, width: int = 8) -> Lesson:
    """A lesson whose classes lie along axes of their own."""
    rng = np.random.default_rng(0)
    lesson = Lesson()
    for number in range(classes):
        lesson = lessons.add_class(lesson, f"kind {number}")
        vectors = 5 * np.eye(width)[number] + rng.normal(0, 0.5, (each, width))
        lesson = lessons.add_examples(lesson, [example(f"{number}-{row}", vectors[row]) for row in range(each)])
    return lesson


def test_there_is_no_head_before_two_classes_have_examples() -> None:
    one = taught_apart(classes=1)
    assert lessons.fit(one) is None
    assert lessons.fit(lessons.add_class(one, "empty")) is None
    taught = lessons.fit(taught_apart())
    assert taught is not None
    assert taught.head.classes == ("kind 0", "kind 1")
    assert taught.accuracy == 1.0
    assert taught.examples == {"kind 0": 4, "kind 1": 4}


def test_answers_do_not_depend_on_the_length_of_features() -> None:
    taught = lessons.fit(taught_apart(classes=3))
    assert taught is not None
    queries = np.eye(8)[:3] * [[1.0], [7.0], [0.01]]
    found = lessons.answers(taught, queries)
    assert found.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(found, lessons.answers(taught, queries * 100), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_an_example_shows_one_class_only_and_can_be_taken_away() -> None:
    lesson = taught_apart()
    moved = lesson.classes["kind 0"][0]
    lesson = lessons.add_examples(lesson, [moved, moved])
    assert [one.id for one in lesson.classes["kind 0"]] == ["0-1", "0-2", "0-3"]
    assert [one.id for one in lesson.classes["kind 1"]] == ["1-0", "1-1", "1-2", "1-3", "0-0"]
    lesson = lessons.remove_example(lesson, "0-0")
    assert len(lesson.examples()) == 7
    lesson = lessons.remove_class(lesson, "kind 1")
    assert (list(lesson.classes), lesson.active) == (["kind 0"], "kind 0")
    assert lessons.remove_class(lesson, "kind 0") == Lesson({}, "")


def test_names_and_numbers_are_bounded() -> None:
    lesson = lessons.add_class(Lesson(), "  my \n dog ")
    assert lesson == Lesson({"my dog": ()}, "my dog")
    assert lessons.add_class(lessons.add_class(lesson, "b"), "my dog").active == "my dog"
    for name, said in ((" ", "Give the class a name"), ("x" * 201, "201 letters"), ("a\x07b", "control characters")):
        with pytest.raises(ValueError, match=said):
            lessons.add_class(lesson, name)
    with pytest.raises(ValueError, match="Name a class first"):
        lessons.add_examples(Lesson(), [example("a", np.ones(8))])
    with pytest.raises(ValueError, match="at most 500 examples"):
        lessons.add_examples(lesson, [example(str(n), np.ones(8)) for n in range(501)])
    many = lesson
    for number in range(49):
        many = lessons.add_class(many, f"class {number}")
    with pytest.raises(ValueError, match="50 classes already"):
        lessons.add_class(many, "one more")


def test_the_copy_of_the_student_knows_the_taught_classes(tmp_path: Path) -> None:
    student = export.OnnxModel(tiny_student(tmp_path), threads=1)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    pictures[3:] //= 8  # dark ones
    features = student.embed(list(pictures))
    lesson = Lesson()
    for name, rows in (("bright", range(3)), ("dark", range(3, 6))):
        lesson = lessons.add_class(lesson, name)
        lesson = lessons.add_examples(lesson, [example(str(row), features[row]) for row in rows])
    taught = lessons.fit(lesson)
    assert taught is not None
    file = lessons.save(lesson, taught, student, tmp_path)
    copy = export.OnnxModel(file, threads=1)
    assert copy.labels == ("bright", "dark")
    np.testing.assert_array_equal(copy.embed(list(pictures)), features)
    assert copy.classify(list(pictures)).argmax(1).tolist() == [0, 0, 0, 1, 1, 1]
    assert "accuracy" not in copy.facts  # the student's, which is not the copy's


@pytest.mark.parametrize("name", ["می‌خواهم", "👩‍🔬 lab", "x" * 200])
def test_names_that_a_head_takes(name: str) -> None:
    assert lessons.add_class(Lesson(), name).active == name


def test_a_student_replaced_meanwhile_is_not_saved_into(tmp_path: Path) -> None:
    path = onnx_files.student(tmp_path / "student.onnx")
    student = export.OnnxModel(path, threads=1)
    lesson = taught_apart(width=student.feature_width)
    taught = lessons.fit(lesson)
    assert taught is not None
    onnx_files.student(path, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="replaced since the head was taught on it"):
        lessons.save(lesson, taught, student, tmp_path)
    assert list(tmp_path.glob("*.taught.onnx")) == []


def test_too_many_examples_are_refused_before_they_are_read() -> None:
    lesson = lessons.add_examples(lessons.add_class(Lesson(), "a"), [example(str(n), np.ones(8)) for n in range(498)])
    lessons.check_room(lesson, 2)
    with pytest.raises(ValueError, match="at most 500 examples"):
        lessons.check_room(lesson, 3)
