"""Files in, lines out: pictures read by threads and answered in batches, as a table or as JSON. Knows no options."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from app.engine import Classification, Engine, classification
from export.runtime import CHUNK
from zoo.ahead import in_order
from zoo.console import plain
from zoo.files import json_text
from zoo.folders import not_listed, walk

LONGEST_LABEL = 32  # columns of a table
_SHORTEST_PATH = 16


def files_of(paths: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """The files and those in the folders, in order; and the folders that give none, with the reason.

    Raises ValueError, in one line, for a path that is not there, or when there is no picture at all.
    """
    files: list[Path] = []
    problems: dict[str, str] = {}

    def cannot(place: str, error: OSError) -> None:
        problems[place] = not_listed(error)

    for path in paths:
        if not os.path.lexists(path):
            raise ValueError(f"{path}: no such file or folder.")
        found = [Path(entry.path) for entry in walk(path, on_error=cannot)] if path.is_dir() else [path]
        files += found
        if not found:
            problems.setdefault(str(path), "no pictures in it")
    if not files:
        raise ValueError("; ".join(f"{place}: {why}" for place, why in problems.items()) + ".")
    return files, problems


def answers(
    engine: Engine, files: Sequence[Path], *, readers: int, top: int
) -> Iterator[list[tuple[Path, Classification | str]]]:
    """Batch by batch, what each file is, or in one line why it cannot be read. The next batch is read meanwhile."""
    reading = in_order(partial(_read, engine), files, threads=readers, ahead=CHUNK)
    for start in range(0, len(files), CHUNK):
        some = files[start : start + CHUNK]
        yield _answer(engine, some, list(islice(reading, len(some))), top=top)
    next(reading, None)  # there is none, but Ctrl-C may have come meanwhile


def _read(engine: Engine, file: Path) -> np.ndarray | str:
    try:
        return engine.model.prepare(file)
    except (ValueError, OSError, MemoryError) as error:
        return " ".join(str(error).split()) or f"{file}: {type(error).__name__}"


def _answer(
    engine: Engine, files: Sequence[Path], read: list[np.ndarray | str], *, top: int
) -> list[tuple[Path, Classification | str]]:
    batch = [image for image in read if not isinstance(image, str)]
    rows = iter(engine.model.classify(np.stack(batch)) if batch else ())
    return [
        (file, image)
        if isinstance(image, str)
        else (file, classification(next(rows), engine.labels, engine.none_likely_below, k=top))
        for file, image in zip(files, read, strict=True)
    ]


def json_line(file: Path, found: Classification) -> str:
    predictions = [{"label": label, "probability": round(probability, 6)} for label, probability in found.ranked]
    return json_text({"path": str(file), "predictions": predictions, "none_likely": found.none_likely})


class Table:
    """Lines of equal columns: file, then the most probable classes, and "none likely" where the best is below the
    model's threshold.

    ``width``: columns of the terminal; longer paths are shortened in the middle and classes that do not fit are left
    out (one stays). None: nothing is shortened.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[str], *, top: int, width: int | None) -> None:
        self.label = min(max((columns(plain(label)) for label in labels), default=0), LONGEST_LABEL)
        self.path = max(columns(plain(str(file))) for file in files)
        self.top = min(top, len(labels))
        if width is not None:
            one = 2 + self.label + 1 + len("100.0%")
            for_paths = min(self.path, max(_SHORTEST_PATH, width // 3))
            self.top = max(1, min(self.top, (width - for_paths - len("  none likely")) // one))
            self.path = min(self.path, max(_SHORTEST_PATH, width - len("  none likely") - self.top * one))

    def line(self, file: Path, found: Classification) -> str:
        cells = [padded(shortened(plain(str(file)), self.path), self.path)]
        for label, probability in found.ranked[: self.top]:
            cells.append(f"{padded(shortened(plain(label), self.label), self.label)} {probability:6.1%}")
        return "  ".join(cells + ["none likely"] * found.none_likely)


def terminal_width() -> int | None:
    """Columns of the terminal, or ``COLUMNS``; None when the output goes elsewhere."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def columns(text: str) -> int:
    """What a text takes on a terminal: two for wide letters, none for accents that combine."""
    return sum(0 if unicodedata.combining(a) else 2 if unicodedata.east_asian_width(a) in "WF" else 1 for a in text)


def padded(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def shortened(text: str, width: int) -> str:
    """A text of at most ``width`` columns: the middle goes, more of the end stays."""
    if columns(text) <= width:
        return text
    head, tail, used = "", "", 1
    for letter in text:
        if used + columns(letter) > 1 + (width - 1) // 3:
            break
        head, used = head + letter, used + columns(letter)
    for letter in reversed(text):
        if used + columns(letter) > width:
            break
        tail, used = letter + tail, used + columns(letter)
    return f"{head}…{tail}"
