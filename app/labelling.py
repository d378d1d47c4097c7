"""Labels given by a person: which pictures are worth it first, and the CSV file that training reads."""

import csv
import io
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from app import atlas
from app.engine import Engine
from app.index import Item
from export.embeddings import normalise
from zoo.files import written_whole
from zoo.transforms import read_image

LONGEST_LABEL = 60
SHOWN = 640  # pixels of the longer side of a picture to look at
FEWEST = 5  # labels from which the nearest ones say something
_COLUMNS = ["path", "label"]
_WRITING = threading.Lock()  # between reading a table and writing it anew


def read_labels(table: Path) -> dict[str, str]:
    """path -> label of a CSV file, as it is written there; empty if there is none.

    Raises ValueError, in one line, for a file that is not such a table.
    """
    if not table.exists():
        return {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if [name.strip() for name in reader.fieldnames or ()] != _COLUMNS:  # others would be lost
                raise ValueError(f"{table.name}: not a table of path,label alone; name another file with --labels.")
            return {row["path"]: row["label"] or "" for row in reader if row["path"]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{table.name}: cannot be read as a table of path,label ({getattr(error, 'strerror', None) or error})."
        ) from None


def write_labels(table: Path, labels: Mapping[str, str]) -> None:
    """The whole table, or the old one if that fails."""
    with written_whole(table) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(labels.items())


def give_label(engine: Engine, table: Path, item: Item, label: str) -> int:
    """Label a gallery picture, in the table and in the gallery; how many labels the table has now.

    Raises ValueError for a label that cannot be used, or a table that is none.
    """
    with _WRITING:
        labels = {**read_labels(table), item.path: clean_label(label)}
        write_labels(table, labels)
    if engine.index is not None:
        engine.index.set_label([item.id], labels[item.path])
    return len(labels)


def take_label(engine: Engine, table: Path, item: Item, before: str) -> None:
    """Undo ``give_label``; ``before``: what the gallery called the picture."""
    with _WRITING:
        labels = read_labels(table)
        labels.pop(item.path, None)
        write_labels(table, labels)
    if engine.index is not None:
        engine.index.set_label([item.id], before)


def clean_label(text: str) -> str:
    """A label as it is kept. Raises ValueError for one that cannot be used."""
    text = " ".join(text.split())
    if not text or len(text) > LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"A label has 1 to {LONGEST_LABEL} letters; {text[:20]!r} cannot be used.")
    return text


def labelled_ids(engine: Engine, table: Path) -> dict[str, str]:
    """id -> label of the gallery's pictures that the table names, by their path or relative to the table's folder."""
    if engine.index is None:
        return {}
    given = read_labels(table)
    ids = {item.path: item.id for item in engine.index.items(limit=engine.index.count())} if given else {}
    places = {path: (path, (table.parent / path).as_posix()) for path in given}
    return {ids[place]: given[path] for path, both in places.items() for place in both if place in ids}


def worklist(engine: Engine, labelled: Mapping[str, str], count: int) -> list[str]:
    """Ids of up to ``count`` gallery pictures to label, most worth first (``app.atlas.worth_labelling``).

    ``labelled``: id -> label of those that have one.
    """
    if engine.index is None:
        return []
    ids, vectors = engine.index.vectors()
    rows = [row for row, id_ in enumerate(ids) if id_ in labelled]
    return [ids[row] for row in atlas.worth_labelling(vectors, rows, None, count)]


def nearest_labels(engine: Engine, id_: str, given: Mapping[str, str], *, k: int = 3) -> list[str]:
    """The labels of the ``k`` labelled pictures most like this one, most frequent first: what it probably is.

    ``given``: id -> label.
    """
    query, vectors = engine.vectors_of([id_]), engine.vectors_of(list(given))
    if not len(query) or len(vectors) < FEWEST or len(set(given.values())) < 2:  # everything would be the one there is
        return []
    near = np.argsort(-(vectors @ normalise(query[0])), kind="stable")[:k]
    names = [list(given.values())[row] for row in near]
    return sorted(set(names), key=lambda name: (-names.count(name), names.index(name)))


def picture_to_look_at(path: str, thumbnail: bytes | None) -> bytes:
    """A gallery picture as JPEG of at most 640 pixels, from its file, or its thumbnail where that is gone."""
    try:
        image = Image.fromarray(read_image(PurePosixPath(path).as_posix()))
    except ValueError:
        return thumbnail or b""
    image.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
