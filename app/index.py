"""Galleries on disk: SQLite keeps pictures' vectors and thumbnails, exact search runs over one matrix in memory."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from export.embeddings import cosine_topk, normalise

FORMAT = "simclrv2-gallery-1"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, label TEXT NOT NULL,
    thumbnail BLOB NOT NULL, vector BLOB NOT NULL
);
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,
    id TEXT, label TEXT NOT NULL, problem TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX files_by_id ON files (id);
"""


class Record(NamedTuple):
    """A picture to keep. ``id``: SHA-256 of the file's bytes; ``vector``: float32 (D,), of any length but zero."""

    id: str
    path: str
    label: str
    thumbnail: bytes  # JPEG
    vector: np.ndarray


class Hit(NamedTuple):
    """A picture found, and its cosine with the query, -1 to 1."""

    id: str
    path: str
    label: str
    score: float
    thumbnail: bytes


class FileState(NamedTuple):
    """What was known of a file when it was last looked at; ``problem`` says why it could not be read, or is empty."""

    size: int
    modified: int  # nanoseconds, as stat says
    id: str | None
    label: str
    problem: str


class Index(Protocol):
    """What the app asks of an index of pictures."""

    def add(self, records: Sequence[Record]) -> int: ...
    def search(self, query: np.ndarray, k: int = 12) -> list[Hit]: ...
    def delete(self, ids: Iterable[str]) -> int: ...
    def count(self) -> int: ...
    def facts(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


def open_index(uri: str | Path, *, fingerprint: str, dimension: int) -> "GalleryIndex":
    """The index at ``uri``, a file's path, made if it is not there. ``fingerprint`` and ``dimension`` are the model's.

    Raises ValueError for another kind of address, a file that is no gallery, or a gallery of another model.
    """
    if "://" in str(uri):
        raise ValueError(f"{uri}: only files are supported as galleries here; give a path such as gallery.sqlite.")
    return GalleryIndex(uri, fingerprint=fingerprint, dimension=dimension)


class GalleryIndex:
    """Pictures of one gallery, embedded by one model. Safe to use from several threads.

    What ``add`` and ``delete`` have returned from is on disk (write-ahead log, synced at every commit). Adding a
    picture again changes nothing. The matrix of unit vectors is loaded at the first search, and anew after a change,
    also by another process.

    Raises ValueError, in one line, for a file that is not a gallery or belongs to another model.
    """

    def __init__(self, path: str | Path, *, fingerprint: str, dimension: int) -> None:
        self.path, self.fingerprint, self.dimension = Path(path), fingerprint, dimension
        self._lock = threading.RLock()
        self._ids: list[str] = []
        self._matrix: np.ndarray | None = None
        self._seen = -1  # SQLite's data_version at loading: changes when another connection commits
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
        except sqlite3.Error as error:
            raise ValueError(f"{self.path}: cannot be opened as a gallery ({error}).") from None
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._make_or_check()
        except sqlite3.Error as error:
            self._database.close()
            raise ValueError(f"{self.path}: not a gallery, or damaged ({error}); delete it to make it anew.") from None
        except ValueError:
            self._database.close()
            raise

    def _make_or_check(self) -> None:
        mine = {"format": FORMAT, "fingerprint": self.fingerprint, "dimension": str(self.dimension)}
        with self._transaction() as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.executemany("INSERT INTO meta VALUES (?, ?)", mine.items())
            stored = dict(database.execute("SELECT key, value FROM meta")) if not tables or "meta" in tables else {}
        if stored.get("format") != FORMAT:
            raise ValueError(f"{self.path}: not a gallery of this version; delete it, or choose another file.")
        if stored != mine:
            raise ValueError(
                f"{self.path}: made with another model ({stored.get('fingerprint', '')[:12]}, "
                f"{stored.get('dimension')}-d) than this one ({self.fingerprint[:12]}, {self.dimension}-d); "
                "delete it to embed anew, or use its model."
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._database.close()
            self._matrix, self._ids = None, []

    # Pictures

    def add(self, records: Sequence[Record]) -> int:
        """Keep pictures; when this returns they are on disk. Known ones are left as they are. Returns how many are new.

        Raises ValueError for a vector of another width, without direction, or not finite; nothing is added then.
        """
        rows = []
        for record in records:
            vector = np.asarray(record.vector, dtype=np.float32)
            if vector.shape != (self.dimension,):
                raise ValueError(f"{record.path}: vector of shape {vector.shape}, not ({self.dimension},).")
            if not np.isfinite(vector).all() or not vector.any():
                raise ValueError(f"{record.path}: its vector is zero or not finite; is the model trained?")
            rows.append((record.id, record.path, record.label, record.thumbnail, vector.tobytes()))
        with self._transaction() as database:
            before = database.total_changes
            database.executemany(
                "INSERT INTO images (id, path, label, thumbnail, vector) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                rows,
            )
            added = database.total_changes - before
            self._matrix = None if added else self._matrix
        return added

    def delete(self, ids: Iterable[str]) -> int:
        """Forget pictures; how many there were."""
        with self._transaction() as database:
            before = database.total_changes
            database.executemany("DELETE FROM images WHERE id = ?", [(id_,) for id_ in ids])
            deleted = database.total_changes - before
            self._matrix = None if deleted else self._matrix
        return deleted

    def count(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT COUNT(*) FROM images").fetchone()[0])

    def search(self, query: np.ndarray, k: int = 12) -> list[Hit]:
        """The ``k`` pictures most similar to a vector (D,), by cosine, exactly; best first.

        Raises ValueError for a query of another width.
        """
        query = np.asarray(query, dtype=np.float32)
        if query.shape != (self.dimension,):
            raise ValueError(f"The query has shape {query.shape}; this gallery holds vectors of ({self.dimension},).")
        with self._lock:
            ids, matrix = self._loaded()
            rows, scores = cosine_topk(matrix, query, k, normalised=True)
            hits = []
            for row, score in zip(rows, scores, strict=True):
                found = self._database.execute(
                    "SELECT id, path, label, thumbnail FROM images WHERE id = ?", (ids[row],)
                ).fetchone()
                if found is not None:  # another process may just have deleted it
                    hits.append(Hit(found[0], found[1], found[2], float(score), found[3]))
        return hits

    def _loaded(self) -> tuple[list[str], np.ndarray]:
        version = int(self._database.execute("PRAGMA data_version").fetchone()[0])
        if self._matrix is None or version != self._seen:
            count = self.count()
            matrix, ids = np.empty((count, self.dimension), np.float32), []
            rows = self._database.execute("SELECT id, vector FROM images ORDER BY number LIMIT ?", (count,))
            for row, (id_, vector) in enumerate(rows):
                matrix[row] = np.frombuffer(vector, np.float32)
                ids.append(id_)
            self._ids, self._matrix, self._seen = ids, normalise(matrix[: len(ids)]), version
        return self._ids, self._matrix

    def labels(self) -> dict[str, int]:
        """How many pictures bear each label, by label."""
        with self._lock:
            return dict(self._database.execute("SELECT label, COUNT(*) FROM images GROUP BY label ORDER BY label"))

    def facts(self) -> dict[str, Any]:
        """What a page can say of this gallery; plain values."""
        with self._lock:
            unreadable = self._database.execute("SELECT COUNT(*) FROM files WHERE problem <> ''").fetchone()[0]
        return {
            "pictures": self.count(),
            "labels": len([label for label in self.labels() if label]),
            "unreadable_files": int(unreadable),
            "dimension": self.dimension,
            "search": "exact, cosine similarity of the features",
            "index": self.path.name,
        }

    # The files the pictures came from

    def files(self) -> dict[str, FileState]:
        """Every file looked at so far, by path."""
        with self._lock:
            rows = self._database.execute("SELECT path, size, modified, id, label, problem FROM files")
            return {row[0]: FileState(*row[1:]) for row in rows}

    def note_files(self, states: dict[str, FileState]) -> None:
        """Remember files as they are now; pictures that no file holds any more are dropped."""
        with self._transaction() as database:
            database.executemany(
                "INSERT OR REPLACE INTO files (path, size, modified, id, label, problem) VALUES (?, ?, ?, ?, ?, ?)",
                [(path, *state) for path, state in states.items()],
            )
            self._drop_orphans(database)

    def forget_files(self, paths: Iterable[str]) -> None:
        """Forget files; pictures that no file holds any more are dropped."""
        with self._transaction() as database:
            database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
            self._drop_orphans(database)

    def _drop_orphans(self, database: sqlite3.Connection) -> None:
        """A picture whose file is gone takes the name of another file with the same bytes, or goes too."""
        before = database.total_changes
        orphans = "NOT EXISTS (SELECT 1 FROM files WHERE files.path = images.path AND files.id = images.id)"
        database.execute(f"DELETE FROM images WHERE {orphans} AND id NOT IN (SELECT id FROM files WHERE id NOTNULL)")
        database.execute(
            "UPDATE images SET (path, label) = "
            "(SELECT path, label FROM files WHERE files.id = images.id ORDER BY path LIMIT 1) "
            f"WHERE {orphans}"
        )
        if database.total_changes != before:
            self._matrix = None
