"""Labels given by a person: which pictures are worth it first, and the CSV file that training reads."""

import codecs
import csv
import io
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from app import atlas
from app.engine import Engine
from app.index import UPLOADED, Filter, Item
from export.embeddings import normalise
from export.heads import check_classes
from zoo.files import written_whole
from zoo.transforms import read_image

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


def put_label(
    table: Path,
    picture: str,
    label: str | None,
    *,
    root: str = "",
    over: Collection[str | None] | None = None,
) -> str | None:
    """Write the label of a picture, by its full path, into the table; None takes its row out. What stood there before:
    None if it had no row, "" if the row had no label yet.

    All else in the table stays, other columns too. Of two writers, threads or processes, one waits. ``root``: as in
    ``labelled_ids``. ``over``: what may stand there before, by default anything.

    Raises ValueError, in one line, for a file that is not such a table or cannot be written, and ``Labelled`` where
    something else than ``over`` stands there; the table is then untouched.
    """
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with _alone(table):
            read = _read(table)
            path, place = read.places
            mine = _rows_of(picture, read, _Starts(table, root))
            before = next((row[place].strip() for row in mine), None)
            if over is not None and before not in over:
                says = f"says {before!r} of it" if before else "gives it no label"
                raise Labelled(f"{PurePosixPath(picture).name}: {table.name} {says} by now, and was left as it is.")
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


class _Starts:
    """From where the paths of a table may start: its own folder, ``root`` and those above it, and the folders beside
    the table and beside ``root``."""

    def __init__(self, table: Path, root: str) -> None:
        self._own, self._root = table.parent.absolute(), root
        self._depth = len(root.rstrip("/").split("/")) if root else 0
        self._holding: dict[str, list[Path]] = {}

    @cached_property
    def _folders(self) -> list[Path]:
        above = [Path(self._root), *Path(self._root).parents] if self._root else []
        beside = [*_folders_in(self._own), *(_folders_in(above[0].parent) if above else [])]
        return list(dict.fromkeys((self._own, *above, *beside)))

    def names(self, picture: str) -> list[str]:
        """How the table may name a picture, by its full path last."""
        near = _plain(os.path.relpath(picture, self._own))
        nearer = [] if near.startswith("../") else [near.partition("/")[2]]  # from the folder beside the table
        parts = picture.split("/")
        return [*("/".join(parts[first:]) for first in range(1, self._depth + 1)), *nearer, near, picture]

    def doubtful(self, path: str, picture: str) -> bool:
        """Whether one of the names of a picture is that of another file, too."""
        places = (folder / path for folder in self._that_hold(path.partition("/")[0]))
        return path != picture and any(place.is_file() and not _same(place, Path(picture)) for place in places)

    def _that_hold(self, name: str) -> list[Path]:
        if name not in self._holding:
            self._holding[name] = [folder for folder in self._folders if (folder / name).exists()]
        return self._holding[name]


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as inside:
            return [Path(entry.path) for entry in inside if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _same(place: Path, picture: Path) -> bool:
    return picture.exists() and place.samefile(picture)


def _plain(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _rows_of(picture: str, read: _Table, starts: _Starts) -> list[list[str]]:
    """The rows that name a picture and no other file."""
    names, path = starts.names(picture), read.places[0]
    named = [(row, _plain(row[path].strip())) for row in read.rows]
    return [row for row, name in named if name in names and not starts.doubtful(name, picture)]


class Labelled(ValueError):  # noqa: N818
    """The table says something else of a picture meanwhile."""


class Before(NamedTuple):
    """What was said of a picture before it was labelled: in the table (None: it had no row), and in the gallery; and
    the label that it was given."""

    id: str
    path: str
    table: str | None
    gallery: str
    label: str


def give_label(
    engine: Engine, table: Path, item: Item, label: str, *, over: Collection[str | None] | None = None
) -> Before:
    """Label a gallery picture, in the table and in the gallery. ``over``: as in ``put_label``.

    Raises ValueError for a label that cannot be used, a picture that no file holds, or as ``put_label`` does.
    """
    if item.path.startswith(UPLOADED):
        raise ValueError("This picture came through the page; no file holds it, so training could not read it.")
    label = clean_label(label, known={*engine.model.labels, *read_labels(table).values()})
    said = put_label(table, item.path, label, root=engine.places().root, over=over)
    before = Before(item.id, item.path, said, item.label, label)
    try:
        _label_in_gallery(engine, item.id, label)
    except ValueError:
        with suppress(ValueError):  # the first problem is the one to tell
            _put_back(engine, table, before)
        raise
    return before


def take_label(engine: Engine, table: Path, before: Before) -> None:
    """Undo ``give_label``, if its label still stands in the table. Raises ValueError as ``put_label`` does."""
    _put_back(engine, table, before)
    try:
        _label_in_gallery(engine, before.id, before.gallery)
    except ValueError:
        with suppress(ValueError):
            put_label(table, before.path, before.label, root=engine.places().root, over=(before.table,))
        raise


def _put_back(engine: Engine, table: Path, before: Before) -> None:
    put_label(table, before.path, before.table, root=engine.places().root, over=(before.label.strip(),))


def _label_in_gallery(engine: Engine, id_: str, label: str) -> None:
    if engine.index is not None:
        engine.index.set_label([id_], label)


def clean_label(text: str, *, known: Collection[str] = ()) -> str:
    """A label as it is kept: one of those ``known`` as it is, a new one with single blanks. Raises ValueError, as
    ``export.heads.check_classes`` does, for one that cannot be used."""
    if text in known and text.strip():
        return text
    text = " ".join(text.split())
    check_classes([text])
    return text


def optional_label(text: str | None) -> str:
    """A label as it is kept, or "" if there is none. Raises ValueError for one that cannot be used."""
    return clean_label(text) if text and text.strip() else ""


def labelled_ids(engine: Engine, table: Path) -> dict[str, str]:
    """id -> label of the gallery's pictures that the table names: by their full path, or one relative to the table's
    folder or one in it, to the folder that all the gallery's pictures have in common (``root``), or to a folder above
    that. A relative path that may be that of another file, too, names none."""
    given = {_plain(path): label for path, label in read_labels(table).items()}
    if engine.index is None or not given:
        return {}
    starts, found = _Starts(table, engine.places().root), {}
    files = {path.rpartition("/")[2] for path in given}
    for item in engine.index.items(limit=engine.index.count()):
        if item.path.rpartition("/")[2] in files and not item.path.startswith(UPLOADED):
            for path in starts.names(item.path):
                if path in given and not starts.doubtful(path, item.path):
                    found[item.id] = given[path]
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
