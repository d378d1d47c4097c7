"""Labels given by a person: which pictures are worth it first, and the CSV file that training reads."""

import codecs
import csv
import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from app import atlas
from app.engine import Engine
from app.index import UPLOADED, Filter, Item
from export.embeddings import normalise
from zoo.files import written_whole
from zoo.transforms import read_image

LONGEST_LABEL = 60
SHOWN = 640  # pixels of the longer side of a picture to look at
FEWEST = 5  # labels from which the nearest ones say something
_COLUMNS = ("path", "label")
_writing = threading.Lock()


class _Table(NamedTuple):
    """A CSV file as it is: all its columns and rows, and how it is written."""

    rows: list[list[str]]  # without the first line
    columns: list[str]
    encoding: str = "utf-8"
    ending: str = "\n"

    @property
    def places(self) -> tuple[int, int]:
        """Where path and label stand."""
        names = [name.strip() for name in self.columns]
        return names.index("path"), names.index("label")


def _read(table: Path) -> _Table:
    """Raises ValueError, in one line, for a file that is not a table of labels."""
    if not table.exists():
        return _Table([], list(_COLUMNS))
    try:
        content = table.read_bytes()
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{table.name}: cannot be read as a table of path,label ({why}).") from None
    columns = rows[0] if rows else []
    if not set(_COLUMNS) <= {name.strip() for name in columns}:
        raise ValueError(f"{table.name}: not a table of path,label; name another file with --labels.")
    rows = [row + [""] * (len(columns) - len(row)) for row in rows[1:] if row]
    encoding = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
    return _Table(rows, columns, encoding, "\r\n" if b"\r\n" in content else "\n")


def read_labels(table: Path) -> dict[str, str]:
    """path -> label of a CSV file, as it is written there, without those that have no label; empty if there is no file.

    Raises ValueError, in one line, for a file that is not such a table.
    """
    read = _read(table)
    path, label = read.places
    return {row[path].strip(): row[label].strip() for row in read.rows if row[path].strip() and row[label].strip()}


def put_label(table: Path, picture: str, label: str | None, *, root: str = "") -> str | None:
    """Write the label of a picture, by its full path, into the table; None takes its row out. What stood there before:
    None if it had no row, "" if the row had no label yet.

    All else in the table stays, other columns too. Of two writers, threads or processes, one waits. ``root``: as in
    ``labelled_ids``. Raises ValueError, in one line, for a file that is not such a table or cannot be written; the old
    one is then untouched.
    """
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with _alone(table):
            read = _read(table)
            path, place = read.places
            names = {picture, *(os.path.relpath(picture, folder) for folder in _folders(table, root))}
            mine = [row for row in read.rows if os.path.normpath(row[path].strip()) in names]
            before = next((row[place].strip() for row in mine), None)
            rows = read.rows if label is not None else [row for row in read.rows if row not in mine]
            for row in mine:
                row[place] = label or ""
            if label is not None and not mine:
                rows.append([picture if column == path else label if column == place else "" for column in
                             range(len(read.columns))])  # fmt: skip
            _write(table, read._replace(rows=rows))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{table.name}: cannot be written ({reason}); the label was not kept.") from None
    return before


def _write(table: Path, content: _Table) -> None:
    with written_whole(table.resolve()) as aside, aside.open("w", encoding=content.encoding, newline="") as file:
        writer = csv.writer(file, lineterminator=content.ending)
        writer.writerow(content.columns)
        writer.writerows(content.rows)


@contextmanager
def _alone(table: Path) -> Iterator[None]:
    """No other thread, and on POSIX no other process, changes a table in this folder meanwhile."""
    with _writing:
        try:
            import fcntl
        except ImportError:
            yield
            return
        folder = os.open(table.resolve().parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # file systems that lock nothing
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _folders(table: Path, root: str) -> list[str]:
    """From where the paths of a table may start: its own folder, ``root``, and those above."""
    above = [folder.as_posix() for folder in (Path(root), *Path(root).parents)] if root else []
    return [table.parent.as_posix(), *above]


class Before(NamedTuple):
    """What was said of a picture before it was labelled: in the table (None: it had no row), and in the gallery."""

    id: str
    path: str
    table: str | None
    gallery: str


def give_label(engine: Engine, table: Path, item: Item, label: str) -> Before:
    """Label a gallery picture, in the table and in the gallery.

    Raises ValueError for a label that cannot be used, a picture that no file holds, or as ``put_label`` does.
    """
    if item.path.startswith(UPLOADED):
        raise ValueError("This picture came through the page; no file holds it, so training could not read it.")
    label = clean_label(label)
    before = put_label(table, item.path, label, root=engine.places().root)
    if engine.index is not None:
        engine.index.set_label([item.id], label)
    return Before(item.id, item.path, before, item.label)


def take_label(engine: Engine, table: Path, before: Before) -> None:
    """Undo ``give_label``. Raises ValueError as ``put_label`` does."""
    put_label(table, before.path, before.table, root=engine.places().root)
    if engine.index is not None:
        engine.index.set_label([before.id], before.gallery)


def clean_label(text: str) -> str:
    """A label as it is kept. Raises ValueError for one that cannot be used."""
    text = " ".join(text.split())
    if not text or len(text) > LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"A label has 1 to {LONGEST_LABEL} letters; {text[:20]!r} cannot be used.")
    return text


def optional_label(text: str | None) -> str:
    """A label as it is kept, or "" if there is none. Raises ValueError for one that cannot be used."""
    return clean_label(text) if text and text.strip() else ""


def labelled_ids(engine: Engine, table: Path) -> dict[str, str]:
    """id -> label of the gallery's pictures that the table names: by their full path, or one relative to the table's
    folder, to the folder that all the gallery's pictures have in common, or to a folder above that."""
    if engine.index is None:
        return {}
    given = read_labels(table)
    ids = {item.path: item.id for item in engine.index.items(limit=engine.index.count())} if given else {}
    folders, found = _folders(table, engine.places().root), {}
    for path, label in given.items():
        places = (Path(os.path.normpath(f"{folder}/{path}")).as_posix() for folder in folders)
        place = path if path in ids else next((place for place in places if place in ids), None)
        if place is not None:
            found[ids[place]] = label
    return found


def worklist(engine: Engine, labelled: Mapping[str, str], count: int) -> list[str]:
    """Ids of up to ``count`` gallery pictures to label, most worth first (``app.atlas.worth_labelling``).

    ``labelled``: id -> label of those that have one. Pictures that came through the page are left out: no file holds
    them, so training could not read what is said of them.
    """
    if engine.index is None:
        return []
    ids, vectors = engine.index.vectors()
    uploaded = {item.id for item in engine.index.items(limit=len(ids), where=Filter(folder=UPLOADED))}
    if uploaded:
        files = [row for row, id_ in enumerate(ids) if id_ not in uploaded]
        ids, vectors = [ids[row] for row in files], vectors[files]
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
