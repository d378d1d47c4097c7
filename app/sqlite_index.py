"""The embedded index: SQLite keeps pictures, vectors and thumbnails; exact search runs over one matrix in memory."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from app.index import (
    ANY,
    DELETED,
    UPLOADED,
    FileState,
    Filter,
    Hit,
    Item,
    Record,
    Vectors,
    below,
    checked_text,
    folder_of,
    lies_below,
    other_model,
    unit_query,
    unit_rows,
)
from export.embeddings import normalise

FORMAT = "simclrv2-gallery-2"
OLDER = ("simclrv2-gallery-1",)
DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
PATIENCE = 30  # seconds to wait for another process that writes

_CHANGES = 1000  # so many changes are remembered for other processes; who has missed more reads everything anew
_MANY = 500  # values in one statement
_CHUNK = 4096  # rows read at a time
_TRIES = 5  # searches, when another process deletes what was just found

_Stamp: TypeAlias = tuple[int, int, int]  # of a file: size, time of change in nanoseconds, inode

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT: a number is never used again, so what was added since is what has higher numbers
    "CREATE TABLE images (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, "
    "label TEXT NOT NULL)",
    "CREATE INDEX images_by_path ON images (path)",
    "CREATE INDEX images_by_label ON images (label)",
    "CREATE TABLE vectors (number INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    "CREATE TABLE thumbnails (number INTEGER PRIMARY KEY, jpeg BLOB NOT NULL)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, id TEXT, "
    "label TEXT NOT NULL, problem TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX files_by_id ON files (id)",
    # one row for each transaction that changed pictures; ``touched``: numbers (int64) deleted, moved or labelled
    "CREATE TABLE changes (version INTEGER PRIMARY KEY AUTOINCREMENT, touched BLOB NOT NULL)",
)


class _Rows(NamedTuple):
    """What is in memory, as of one version. Rows are written once, beyond ``used``; what changes is copied first.

    So one thread may search while another takes in changes, and an array handed out stays as it is.
    """

    version: int
    last: int  # the highest number seen
    used: int  # rows in use, of as many as the arrays have room for
    dead: int  # of these, deleted
    numbers: np.ndarray  # (room,) int64, ascending
    matrix: np.ndarray  # (room, D) float32, unit vectors
    labels: np.ndarray  # (room,) int32, codes
    folders: np.ndarray  # (room,) int32, codes
    alive: np.ndarray  # (room,) bool


class SqliteIndex:
    """The pictures of one file, embedded by one model; see ``Index`` for what each method promises.

    Write-ahead log, synced at every commit: what has returned survives ``kill -9``. One process writes at a time, the
    others wait; any number reads meanwhile. The matrix is loaded at the first search; afterwards only what was added,
    deleted or labelled since is read, whichever process did it. Who may not write the folder, and came while nobody had
    the file open for writing, reads all anew once the file has changed: that is when the writer closes it.

    Raises ValueError, in one line, for a file that is no index, is damaged, or belongs to another model.
    """

    def __init__(
        self, path: str | Path, *, model: str, dimension: int, vectors: Vectors = "fp16", create: bool = True
    ) -> None:
        self.path, self.model, self.dimension = Path(path), model, dimension
        self._lock = threading.RLock()
        self._rows: _Rows | None = None
        self._labels: dict[str, int] = {}
        self._folders: dict[str, int] = {}
        self._database, self.read_only, self._frozen = _connect(
            self.path, create=create, page=_page_size(dimension * DTYPES[vectors].itemsize)
        )
        try:
            with _told(self.path):
                self._take(self._made(vectors) if create and not self.read_only else _meta(self._database))
        except BaseException:
            self._database.close()
            raise

    def _take(self, stored: dict[str, str]) -> None:
        """What the file says of itself. Raises ValueError if it belongs to another model."""
        theirs, ours = _checked(self.path, stored), (self.model, self.dimension)
        if theirs != ours:
            raise ValueError(other_model(str(self.path), theirs, ours))
        self._kept = stored["vectors"]
        self._dtype = DTYPES[self._kept]

    def _made(self, vectors: Vectors) -> dict[str, str]:
        """What the file says of itself, after writing it if the file is empty."""
        with self._writing() as database:
            if not database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                for statement in _SCHEMA:
                    database.execute(statement)
                meta = {"format": FORMAT, "model": self.model, "dimension": str(self.dimension), "vectors": vectors}
                database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            return _meta(database)

    def close(self) -> None:
        with self._lock:
            self._database.close()
            self._rows = self._frozen = None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on disk afterwards, or nothing."""
        with self._lock, _told(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:  # an error; a full disk may have ended the transaction already
                    self._database.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read within is of one moment."""
        with self._lock, _told(self.path):
            if self._frozen is not None and self._frozen != _stamp(self.path):
                self._reopen()
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                if self._database.in_transaction:
                    self._database.execute("COMMIT")

    def _reopen(self) -> None:
        """Read a file anew that changed although it was opened as one that does not."""
        database, frozen = _opened_read_only(self.path)
        try:
            self._take(_meta(database))
        except BaseException:
            database.close()
            raise
        self._database.close()
        self._database, self._frozen, self._rows = database, frozen, None

    # Pictures

    def add(self, records: Sequence[Record]) -> int:
        vectors = unit_rows(records, self.dimension).astype(self._dtype)
        added = 0
        with self._writing() as database:
            for record, vector in zip(records, vectors, strict=True):
                new = database.execute(
                    "INSERT INTO images (id, path, label) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING", record[:3]
                )
                if new.rowcount > 0:
                    added += 1
                    number = new.lastrowid
                    database.execute("INSERT INTO vectors VALUES (?, ?)", (number, vector.tobytes()))
                    database.execute("INSERT INTO thumbnails VALUES (?, ?)", (number, record.thumbnail))
            if added:
                _note_change(database, [])
        return added

    def delete(self, ids: Iterable[str]) -> int:
        ids = list(ids)
        with self._writing() as database:
            numbers = [row[0] for row in _for_each(database, "SELECT number FROM images WHERE id IN (...)", ids)]
            _drop(database, numbers)
            for some in _chunks(ids):
                database.execute(f"UPDATE files SET problem = ? WHERE id IN ({_marks(some)})", (DELETED, *some))
        return len(numbers)

    def set_label(self, ids: Iterable[str], label: str) -> int:
        checked_text(label)
        with self._writing() as database:
            rows = _for_each(database, "SELECT number, label FROM images WHERE id IN (...)", list(ids))
            changed = [number for number, old in rows if old != label]
            database.executemany("UPDATE images SET label = ? WHERE number = ?", [(label, n) for n in changed])
            if changed:
                _note_change(database, changed)
        return len(rows)

    def count(self, where: Filter = ANY) -> int:
        condition, values = _condition(where)
        with self._reading() as database:
            return int(database.execute(f"SELECT COUNT(*) FROM images {condition}", values).fetchone()[0])

    def get(self, ids: Sequence[str]) -> list[Item]:
        with self._reading() as database:
            rows = _for_each(database, "SELECT id, path, label FROM images WHERE id IN (...)", list(ids))
        found = {row[0]: Item(*row) for row in rows}
        return [found[id_] for id_ in ids if id_ in found]

    def items(self, *, offset: int = 0, limit: int = 100, where: Filter = ANY) -> list[Item]:
        condition, values = _condition(where)
        page = (max(limit, 0), max(offset, 0))
        with self._reading() as database:
            rows = database.execute(
                f"SELECT id, path, label FROM images {condition} ORDER BY number LIMIT ? OFFSET ?", (*values, *page)
            )
            return [Item(*row) for row in rows]

    def thumbnail(self, id: str) -> bytes | None:
        with self._reading() as database:
            row = database.execute(
                "SELECT jpeg FROM images JOIN thumbnails USING (number) WHERE id = ?", (id,)
            ).fetchone()
        return row[0] if row else None

    def labels(self) -> dict[str, int]:
        with self._reading() as database:
            return dict(database.execute("SELECT label, COUNT(*) FROM images GROUP BY label ORDER BY label"))

    def folders(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        with self._reading() as database:
            for (path,) in database.execute("SELECT path FROM images ORDER BY path"):
                folder = folder_of(path)
                counts[folder] = counts.get(folder, 0) + 1
        return dict(sorted(counts.items()))

    def version(self) -> int:
        with self._reading() as database:
            return _version(database)

    def facts(self) -> dict[str, Any]:
        with self._reading() as database:
            unreadable = database.execute(
                "SELECT COUNT(*) FROM files WHERE problem NOT IN ('', ?)", (DELETED,)
            ).fetchone()[0]
            pictures = database.execute("SELECT COUNT(*) FROM images").fetchone()[0]
            labels = database.execute("SELECT COUNT(DISTINCT label) FROM images WHERE label <> ''").fetchone()[0]
        return {
            "pictures": int(pictures),
            "labels": int(labels),
            "unreadable_files": int(unreadable),
            "dimension": self.dimension,
            "search": "exact, cosine similarity of the features",
            "where": self.path.name,
            "kept_as": f"SQLite, vectors in {self._kept}",
            "model": self.model,
        }

    # Search

    def search(self, query: np.ndarray, k: int = 12, *, where: Filter = ANY, thumbnails: bool = True) -> list[Hit]:
        query = unit_query(query, self.dimension)
        hits: list[Hit] = []
        for _ in range(_TRIES):
            with self._reading() as database:
                rows = self._caught_up(database)
                among = self._among(rows, where)
            numbers, scores = _nearest(rows, query, k, among)
            hits = self._hits(numbers, scores, where, thumbnails=thumbnails)
            if len(hits) == len(numbers):
                break
        return hits

    def vectors(self) -> tuple[list[str], np.ndarray]:
        with self._reading() as database:
            rows = self._caught_up(database)
            if rows.dead:
                rows = self._rows = _compact(rows)
            ids = [row[0] for row in database.execute("SELECT id FROM images ORDER BY number")]
        matrix = rows.matrix[: rows.used]
        matrix.flags.writeable = False
        return ids, matrix

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        statement = "SELECT id, vector FROM images JOIN vectors USING (number) WHERE id IN (...)"
        with self._reading() as database:
            found = dict(_for_each(database, statement, list(dict.fromkeys(ids))))
        kept = [np.frombuffer(found[id_], self._dtype) for id_ in ids if id_ in found]
        return normalise(np.stack(kept)) if kept else np.empty((0, self.dimension), np.float32)

    def _hits(self, numbers: np.ndarray, scores: np.ndarray, where: Filter, *, thumbnails: bool) -> list[Hit]:
        """The pictures of these numbers that still are as they were found."""
        jpeg = "jpeg" if thumbnails else "x''"
        joined = "JOIN thumbnails USING (number)" if thumbnails else ""
        statement = f"SELECT number, id, path, label, {jpeg} FROM images {joined} WHERE number IN (...)"
        with self._reading() as database:
            found = {row[0]: row[1:] for row in _for_each(database, statement, numbers.tolist())}
        hits = []
        for number, score in zip(numbers.tolist(), scores.tolist(), strict=True):
            row = found.get(number)
            if row and (not where.labels or row[2] in where.labels):
                hits.append(Hit(row[0], row[1], row[2], min(max(score, -1.0), 1.0), row[3]))
        return hits

    def _among(self, rows: _Rows, where: Filter) -> np.ndarray | None:
        """Which rows are meant, bool (used,), or None for all."""
        chosen = rows.alive[: rows.used] if rows.dead else None
        wanted = []
        if where.labels:
            allowed = set(where.labels)
            wanted.append((rows.labels, [name in allowed for name in self._labels]))
        if where.folder:
            wanted.append((rows.folders, [lies_below(name, where.folder) for name in self._folders]))
        for codes, fits in wanted:
            mask = np.array(fits, bool)[codes[: rows.used]]
            chosen = mask if chosen is None else chosen & mask
        return chosen

    def _caught_up(self, database: sqlite3.Connection) -> _Rows:
        """What is in memory, brought up to what is on disk."""
        version, rows = _version(database), self._rows
        if rows is not None and rows.version == version:
            return rows
        if rows is not None:
            oldest = database.execute("SELECT MIN(version) FROM changes").fetchone()[0]
            if oldest is None or oldest > rows.version + 1:
                rows = None
        if rows is None:
            count = database.execute("SELECT COUNT(*) FROM images").fetchone()[0]
            rows = _room(None, count + count // 8 + 1024, self.dimension)
        else:
            rows = self._touched(database, rows)
        rows = self._extended(database, rows)._replace(version=version)
        if rows.dead > 1024 + rows.used // 4:
            rows = _compact(rows)
        self._rows = rows
        return rows

    def _touched(self, database: sqlite3.Connection, rows: _Rows) -> _Rows:
        """With what was deleted, moved or labelled since."""
        blobs = database.execute("SELECT touched FROM changes WHERE version > ?", (rows.version,)).fetchall()
        numbers = np.unique(np.frombuffer(b"".join(blob for (blob,) in blobs), "<i8"))
        places = np.searchsorted(rows.numbers[: rows.used], numbers)
        known = places < rows.used
        known[known] = rows.numbers[places[known]] == numbers[known]
        numbers, places = numbers[known], places[known]
        if not len(numbers):
            return rows
        alive, labels, folders = rows.alive.copy(), rows.labels.copy(), rows.folders.copy()
        row_of = dict(zip(numbers.tolist(), places.tolist(), strict=True))
        alive[places] = False
        for number, label, path in _for_each(
            database, "SELECT number, label, path FROM images WHERE number IN (...)", list(row_of)
        ):
            row = row_of[number]
            alive[row] = True
            labels[row], folders[row] = self._codes(label, path)
        dead = rows.used - int(np.count_nonzero(alive[: rows.used]))
        return rows._replace(alive=alive, labels=labels, folders=folders, dead=dead)

    def _extended(self, database: sqlite3.Connection, rows: _Rows) -> _Rows:
        """With what was added since."""
        added = database.execute("SELECT COUNT(*) FROM images WHERE number > ?", (rows.last,)).fetchone()[0]
        if not added:
            return rows
        if rows.used + added > len(rows.numbers):
            rows = _room(rows, max(rows.used + added, len(rows.numbers) * 3 // 2), self.dimension)
        pictures = database.execute(
            "SELECT number, label, path FROM images WHERE number > ? ORDER BY number", (rows.last,)
        )
        vectors = database.execute("SELECT number, vector FROM vectors WHERE number > ? ORDER BY number", (rows.last,))
        row, width, labels, folders = rows.used, self.dimension * self._dtype.itemsize, self._labels, self._folders
        while some := pictures.fetchmany(_CHUNK):
            blobs = vectors.fetchmany(_CHUNK)
            numbers = [picture[0] for picture in some]
            if numbers != [blob[0] for blob in blobs] or {len(blob[1]) for blob in blobs} != {width}:
                raise sqlite3.DatabaseError("vectors are missing or cut")
            kept = np.frombuffer(b"".join(blob[1] for blob in blobs), self._dtype)
            chunk = rows.matrix[row : row + len(some)]
            chunk[:] = kept.reshape(chunk.shape)
            length = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
            if not (np.abs(length - 1) < 0.01).all():  # not so for NaN either
                raise sqlite3.DatabaseError("vectors are spoilt")
            chunk /= length[:, None]
            here = slice(row, row + len(some))
            rows.numbers[here] = numbers
            rows.labels[here] = [labels.setdefault(label, len(labels)) for _, label, _ in some]
            rows.folders[here] = [folders.setdefault(folder_of(path), len(folders)) for _, _, path in some]
            rows.alive[here] = True
            row += len(some)
        return rows._replace(used=row, last=int(rows.numbers[row - 1]))

    def _codes(self, label: str, path: str) -> tuple[int, int]:
        folder = folder_of(path)
        return self._labels.setdefault(label, len(self._labels)), self._folders.setdefault(folder, len(self._folders))

    # The files the pictures came from

    def files(self) -> dict[str, FileState]:
        with self._reading() as database:
            rows = database.execute("SELECT path, size, modified, id, label, problem FROM files")
            return {row[0]: FileState(*row[1:]) for row in rows}

    def unnoted(self) -> list[str]:
        with self._reading() as database:
            rows = database.execute("SELECT path FROM images WHERE path NOT IN (SELECT path FROM files)")
            return [path for (path,) in rows]

    def note_files(self, states: dict[str, FileState]) -> None:
        for path, state in states.items():
            checked_text(path)
            checked_text(state.label)
        with self._writing() as database:
            before = _held(database, list(states))
            ids = [state.id for state in states.values() if state.id]
            for id_, path in _for_each(database, "SELECT id, path FROM images WHERE id IN (...)", ids):
                if path.startswith(UPLOADED):
                    before.setdefault(id_, set())
            database.executemany(
                "INSERT OR REPLACE INTO files (path, size, modified, id, label, problem) VALUES (?, ?, ?, ?, ?, ?)",
                [(path, *state) for path, state in states.items()],
            )
            _settle(database, before)

    def forget_files(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        with self._writing() as database:
            before = _held(database, paths)
            database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
            _settle(database, before)


def _held(database: sqlite3.Connection, paths: list[str]) -> dict[str, set[str]]:
    """The ids of the pictures that bear these paths or that these files hold, and the labels the files give them."""
    held: dict[str, set[str]] = {}
    for (id_,) in _for_each(database, "SELECT id FROM images WHERE path IN (...)", paths):
        held.setdefault(id_, set())
    statement = "SELECT id, label FROM files WHERE id NOT NULL AND path IN (...)"
    for id_, label in _for_each(database, statement, paths):
        held.setdefault(id_, set()).add(label)
    return held


def _settle(database: sqlite3.Connection, before: dict[str, set[str]]) -> None:
    """Pictures whose file is gone take the name of another file with the same bytes, or go too; those that came through
    the page take a file's name too, and stay without.

    The label goes with the name, unless a person has given another than the file did.
    """
    gone, moved = [], []
    for number, id_, path, label in _for_each(
        database, "SELECT number, id, path, label FROM images WHERE id IN (...)", list(before)
    ):
        holders = database.execute(
            "SELECT path, label FROM files WHERE id = ? AND problem = '' ORDER BY path", (id_,)
        ).fetchall()
        uploaded = path.startswith(UPLOADED)
        if holders and path not in dict(holders):
            by_file = not label if uploaded else label in before[id_]
            moved.append((holders[0][0], holders[0][1] if by_file else label, number))
        elif not holders and not uploaded:
            gone.append(number)
    database.executemany("UPDATE images SET path = ?, label = ? WHERE number = ?", moved)
    if moved:
        _note_change(database, [number for _, _, number in moved])
    _drop(database, gone)


def _drop(database: sqlite3.Connection, numbers: list[int]) -> None:
    for table in ("images", "vectors", "thumbnails"):
        database.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number in numbers])
    if numbers:
        _note_change(database, numbers)


def _note_change(database: sqlite3.Connection, numbers: list[int]) -> None:
    touched = np.array(numbers, "<i8").tobytes()
    database.execute("INSERT INTO changes (touched) VALUES (?)", (touched,))
    database.execute("DELETE FROM changes WHERE version <= ?", (_version(database) - _CHANGES,))


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT MAX(version) FROM changes").fetchone()[0] or 0)


def _condition(where: Filter) -> tuple[str, list[str]]:
    parts, values = [], list(where.labels)
    if where.labels:
        parts.append(f"label IN ({_marks(where.labels)})")
    if where.folder:  # paths that begin with "folder/" are those from it up to "folder0", the character after the slash
        start = below(where.folder)
        parts.append("path >= ? AND path < ?")
        values += [start, start[:-1] + "0"]
    return ("WHERE " + " AND ".join(parts) if parts else ""), values


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _chunks(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _MANY):
        yield values[start : start + _MANY]


def _for_each(database: sqlite3.Connection, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of a statement in which ``...`` stands for many values, each counted once."""
    rows: list[tuple[Any, ...]] = []
    for some in _chunks(list(dict.fromkeys(values))):
        rows += database.execute(statement.replace("...", _marks(some)), some).fetchall()
    return rows


# Rows in memory


def _room(rows: _Rows | None, room: int, dimension: int) -> _Rows:
    """The same rows with room for more; none yet where there were none."""
    made = _Rows(
        version=rows.version if rows else 0,
        last=rows.last if rows else 0,
        used=rows.used if rows else 0,
        dead=rows.dead if rows else 0,
        numbers=np.empty(room, np.int64),
        matrix=np.empty((room, dimension), np.float32),
        labels=np.empty(room, np.int32),
        folders=np.empty(room, np.int32),
        alive=np.ones(room, bool),
    )
    if rows:
        for new, old in zip(made[4:], rows[4:], strict=True):
            new[: rows.used] = old[: rows.used]
    return made


def _compact(rows: _Rows) -> _Rows:
    """The same without the dead."""
    living = np.flatnonzero(rows.alive[: rows.used])
    made = _room(None, len(living) + len(living) // 8 + 1024, rows.matrix.shape[1])
    for new, old in zip(made[4:], rows[4:], strict=True):
        np.take(old, living, axis=0, out=new[: len(living)], mode="clip")
    return made._replace(version=rows.version, last=rows.last, used=len(living))


def _nearest(rows: _Rows, query: np.ndarray, k: int, among: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers and cosines of the ``k`` rows nearest to a unit vector (D,), best first; exact."""
    places = None if among is None else np.flatnonzero(among)
    if places is None:
        scores = rows.matrix[: rows.used] @ query
    elif len(places) * 8 < rows.used:
        scores = rows.matrix[places] @ query
    else:
        scores = (rows.matrix[: rows.used] @ query)[places]
    k = min(k, len(scores))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]  # of equals, the first added
    return rows.numbers[best if places is None else places[best]], scores[best]


# Files


def stored_model(path: str | Path) -> tuple[str, int]:
    """The model's fingerprint and the width of the vectors of an index file. Raises ValueError if it is none."""
    path = Path(path)
    database, _, _ = _connect(path, create=False)
    try:
        with _told(path):
            return _checked(path, _meta(database))
    finally:
        database.close()


def _meta(database: sqlite3.Connection) -> dict[str, str]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return dict(database.execute("SELECT key, value FROM meta")) if "meta" in tables else {}


def _checked(path: Path, stored: dict[str, str]) -> tuple[str, int]:
    found = stored.get("format")
    if found in OLDER:
        raise ValueError(f"{path}: an index of an older version ({found}); delete it and index the pictures anew.")
    if found != FORMAT:
        raise ValueError(f"{path}: not an index of pictures, or of another version; choose another file, or delete it.")
    try:
        return stored["model"], int(stored["dimension"])
    except (KeyError, ValueError):
        raise ValueError(
            f"{path}: damaged, it does not say its model; delete it and index the pictures anew."
        ) from None


def _page_size(width: int) -> int:
    """Bytes of a new file's pages that vectors of ``width`` bytes fill; of 8,192 one of 4,096 leaves half empty."""
    for page in (8192, 16_384):
        if (page - 64) // (width + 16) * width > 0.7 * page:
            return page
    return 8192  # wider ones run over several pages


def _connect(path: Path, *, create: bool, page: int = 8192) -> tuple[sqlite3.Connection, bool, _Stamp | None]:
    """A connection, whether it can only read, and the stamp of a file that it takes to change no more."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not an index; give a file such as {path / 'pictures.sqlite'}.")
    if not path.exists():
        if not create:
            raise ValueError(f"{path}: no such index; make it with `simclr index`.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{path}: cannot be made ({error.strerror}); choose another place.") from None
    elif not _looks_right(path):
        raise ValueError(f"{path}: not an index of pictures; choose another file, or delete it.")
    with _told(path):
        if not path.exists() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            database = _opened(path.as_posix(), uri=False)
            try:
                if database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                    _checked(path, _meta(database))  # before the file is changed
                _use_wal(database, page)
            except BaseException:
                database.close()
                raise
            return database, False, None
        database, frozen = _opened_read_only(path)
        return database, True, frozen


def _looks_right(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None


def _opened(where: str, *, uri: bool) -> sqlite3.Connection:
    return sqlite3.connect(where, timeout=PATIENCE, check_same_thread=False, isolation_level=None, uri=uri)


def _use_wal(database: sqlite3.Connection, page: int) -> None:
    """Write-ahead log, synced. Asks again while others do the same: SQLite does not wait for this lock."""
    database.execute(f"PRAGMA page_size = {page}")  # of a new file
    until = time.monotonic() + PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
    database.execute("PRAGMA synchronous = FULL")


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _opened_read_only(path: Path) -> tuple[sqlite3.Connection, _Stamp | None]:
    """For a file or folder that may not be written: with the others' log where it lies there, else as it is, and then
    with its stamp, as SQLite notices no change of it."""
    place = path.absolute().as_uri()
    database = _opened(f"{place}?mode=ro", uri=True)
    try:
        database.execute("SELECT COUNT(*) FROM sqlite_master")
        return database, None
    except sqlite3.OperationalError:
        database.close()
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise ValueError(
            f"{path}: was left with unwritten changes, and its folder may not be written; open it there once."
        )
    frozen = _stamp(path)
    return _opened(f"{place}?mode=ro&immutable=1", uri=True), frozen


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors, in words."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "full" in text:
            reason = "the disk is full; nothing of this was kept, what was there before is"
        elif "readonly" in text:
            reason = "may only be read here; nothing was changed"
        elif "locked" in text or "busy" in text:
            reason = f"another process has been writing to it for {PATIENCE} s; try again later"
        elif "closed" in text:
            reason = "is closed"
        elif "unable to open" in text:
            reason = "cannot be opened; may its folder be written?"
        elif "I/O" in text:
            reason = "cannot be read or written (disk I/O error); nothing of this was kept"
        else:
            reason = f"not an index of pictures, or damaged ({text}); delete it and index the pictures anew"
        raise ValueError(f"{path}: {reason}.") from None
