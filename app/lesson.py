"""Classes that a visitor makes up, with a few examples each: kept for the session, fitted at every change."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.batching import Busy
from export.embeddings import normalise
from export.head_file import save_head, taught_facts
from export.heads import Taught, check_classes, for_length, probabilities, teach
from export.runtime import OnnxModel

MOST_CLASSES = 50
MOST_EXAMPLES = 500  # of all classes together: a session's examples are kept in memory
PATIENCE = 5.0  # seconds to wait for a turn at the arithmetic
_TURNS = threading.BoundedSemaphore(2)


class Example(NamedTuple):
    """A picture that shows a class. ``source``: where the browser gets its small version."""

    id: str
    name: str
    source: str
    vector: np.ndarray  # its features (D,) at length one
    length: float  # which they had


class Lesson(NamedTuple):
    """Class name -> its examples, in the order they came; and the class that new examples go to.

    The head is fitted to directions alone, since the gallery keeps nothing else of its pictures.
    """

    classes: dict[str, tuple[Example, ...]] = {}  # noqa: RUF012 (never changed, only replaced)
    active: str = ""

    def examples(self) -> list[tuple[str, Example]]:
        return [(name, example) for name, some in self.classes.items() for example in some]


def add_class(lesson: Lesson, name: str) -> Lesson:
    """With a new class, which becomes the active one. Raises ValueError for a name that cannot be used."""
    name = " ".join(name.split())
    if not name:
        raise ValueError("Give the class a name.")
    check_classes([name])
    if name in lesson.classes:
        return lesson._replace(active=name)
    if len(lesson.classes) >= MOST_CLASSES:
        raise ValueError(f"There are {MOST_CLASSES} classes already; remove one first.")
    return Lesson({**lesson.classes, name: ()}, name)


def remove_class(lesson: Lesson, name: str) -> Lesson:
    kept = {other: examples for other, examples in lesson.classes.items() if other != name}
    return Lesson(kept, lesson.active if lesson.active in kept else next(iter(kept), ""))


def add_examples(lesson: Lesson, examples: list[Example]) -> Lesson:
    """With examples of the active class; one that showed another class before shows this one now.

    Raises ValueError without an active class, or for more examples than a session keeps.
    """
    if not lesson.active:
        raise ValueError("Name a class first.")
    new = {example.id for example in examples}
    kept = {name: tuple(one for one in some if one.id not in new) for name, some in lesson.classes.items()}
    unique = tuple({example.id: example for example in examples}.values())
    if sum(map(len, kept.values())) + len(unique) > MOST_EXAMPLES:
        raise ValueError(f"A lesson has at most {MOST_EXAMPLES} examples; remove some.")
    return lesson._replace(classes={**kept, lesson.active: kept[lesson.active] + unique})


def check_room(lesson: Lesson, count: int) -> None:
    """Raise ValueError if ``count`` new examples are more than a session keeps, so that none need be read."""
    if len(lesson.examples()) + count > MOST_EXAMPLES:
        raise ValueError(f"A lesson has at most {MOST_EXAMPLES} examples; remove some, or upload fewer.")


def remove_example(lesson: Lesson, id_: str) -> Lesson:
    kept = {name: tuple(one for one in some if one.id != id_) for name, some in lesson.classes.items()}
    return lesson._replace(classes=kept)


def fit(lesson: Lesson) -> Taught | None:
    """The head of the classes that have examples; None while fewer than two have. Raises Busy."""
    examples = lesson.examples()
    if len({name for name, _ in examples}) < 2:
        return None
    return fitted(np.stack([example.vector for _, example in examples]), [name for name, _ in examples])


def fitted(vectors: np.ndarray, labels: list[str]) -> Taught:
    """``export.heads.teach``, for as many at a time as there is room for.

    Raises ValueError for more classes or examples than a lesson has, and as ``teach`` does; Busy when others wait.
    """
    if len(labels) > MOST_EXAMPLES or not 2 <= len(set(labels)) <= MOST_CLASSES:
        raise ValueError(f"Teach 2 to {MOST_CLASSES} classes, with at most {MOST_EXAMPLES} examples in all.")
    with _turn():
        return teach(vectors, labels)


def answers(taught: Taught, vectors: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of the taught classes for features (N, D) of any length. Raises Busy."""
    with _turn():
        return probabilities(taught.head, normalise(vectors))


@contextmanager
def _turn() -> Iterator[None]:
    if not _TURNS.acquire(timeout=PATIENCE):
        raise Busy("Others are teaching just now; try again in a few seconds.")
    try:
        yield
    finally:
        _TURNS.release()


def save(lesson: Lesson, taught: Taught, student: OnnxModel, folder: Path) -> Path:
    """A copy of the student's file with the taught classes, in ``folder``.

    Raises ValueError for a student whose file cannot be changed so, or was replaced since it was opened.
    """
    length = float(np.median([example.length for _, example in lesson.examples()]))
    out = folder / f"{student.path.stem}.taught.onnx"
    head, facts = for_length(taught.head, length), taught_facts(taught)
    return save_head(student.path, head, out, facts=facts, fingerprint=student.fingerprint)
