"""What measures is trained on in no stage: the held-out images, drawn once and kept, and their copies put aside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data import ImageSet, stratified_subset
from training.stage_cache import Contents
from zoo.files import json_object, write_json

HELD_OUT = "held_out.json"


def check(images: ImageSet, labelled: ImageSet, held_out: ImageSet | None, holdout: float) -> None:
    """Raise ValueError for sets that cannot work."""
    if labelled.labels is None or not len(labelled):
        raise ValueError("There are no labels: give --labels, a CSV with the columns path,label, or class folders.")
    if len(labelled.classes) < 2:
        raise ValueError(f"There is only one class, {labelled.classes[0]}; it takes two to tell apart.")
    known = {path.resolve() for path in images.paths}
    strange = [path for path in labelled.paths if path.resolve() not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} labelled images are not among the images: {few_of(strange)}. Put them into --images, or "
            "take them out of the labels."
        )
    if held_out is not None:
        if held_out.classes != labelled.classes:
            raise ValueError(f"The test classes {held_out.classes} are not the labelled ones, {labelled.classes}.")
        return
    if not 0 < holdout < 1:
        raise ValueError(f"holdout={holdout!r} is not between 0 and 1.")
    counts = np.bincount(labelled.labels, minlength=len(labelled.classes))
    if counts.min() < 2:
        lonely = [name for name, count in zip(labelled.classes, counts, strict=True) if count < 2]
        raise ValueError(f"Too few labels to put any aside for: {few_of(lonely)}. Label two of each, or give --test.")


def few_of(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


@dataclass(frozen=True)
class Split:
    """What is trained on, and what measures. ``copies``: images left out because they equal a held-out one."""

    unlabeled: ImageSet
    few: ImageSet
    held_out: ImageSet
    copies: int
    unmeasured: tuple[str, ...]  # classes without a held-out image


def split(
    images: ImageSet, labelled: ImageSet, held_out: ImageSet | None, *, holdout: float, contents: Contents, out: Path
) -> Split:
    """Put the held-out images, and copies of them, out of every training set.

    The draw is kept in held_out.json: other labels on a later run change neither what measures nor, therefore, what was
    pretrained on. Raises ValueError if a class has nothing left to train on.
    """
    assert labelled.labels is not None
    if held_out is None:
        names = _kept_draw(out / HELD_OUT, labelled, holdout, contents)
        held_out = labelled.subset([i for i, path in enumerate(labelled.paths) if contents.name(path) in names])
    else:
        names = {contents.name(path) for path in held_out.paths}
    contents.read(held_out.paths)
    measured = {contents[path] for path in held_out.paths}
    aside = [contents.name(path) in names for path in images.paths]
    copy = [contents[path] in measured and not out_ for path, out_ in zip(images.paths, aside, strict=True)]
    unlabeled = images.subset([i for i in range(len(images)) if not aside[i] and not copy[i]])
    kept = {path.resolve() for path in unlabeled.paths}
    few = labelled.subset([i for i, path in enumerate(labelled.paths) if path.resolve() in kept])
    contents.read(few.paths)  # a table may spell them otherwise than the folder does
    assert few.labels is not None
    assert held_out.labels is not None
    for number, name in enumerate(labelled.classes):
        if not (few.labels == number).any():
            raise ValueError(f"No label of {name!r} is left to train on: all of them are held out. Label more of it.")
    if not len(held_out):
        raise ValueError(f"No held-out image has a label any more; label them, or delete {out / HELD_OUT}.")
    unmeasured = [name for number, name in enumerate(labelled.classes) if not (held_out.labels == number).any()]
    return Split(unlabeled, few, held_out, sum(copy), tuple(unmeasured))


def _kept_draw(path: Path, labelled: ImageSet, share: float, contents: Contents) -> set[str]:
    """Names of the held-out images: those drawn before for this share, else drawn now."""
    try:
        before = json_object(path.read_bytes())
        if before["share"] == share:
            return set(before["paths"])
    except (OSError, ValueError, KeyError):
        pass
    assert labelled.labels is not None
    drawn = stratified_subset(labelled.labels, fraction=share, seed=0)
    names = [contents.name(labelled.paths[i]) for i in drawn]
    write_json(path, {"share": share, "paths": names})
    return set(names)
