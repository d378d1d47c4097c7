"""An index of pictures: what is kept and found, what every backend can do, and which backend an address means."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

UPLOADED = "upload/"  # how the path of a picture begins that came through the page: no known file holds it
DELETED = "deleted"  # the problem of a file whose picture was deleted: it counts as seen, and is not embedded again

Vectors = Literal["fp16", "fp32"]


class Record(NamedTuple):
    """A picture to keep. ``vector``: float32 (D,), features of any length but zero."""

    id: str  # SHA-256 (hex) of the file's bytes
    path: str  # absolute POSIX path of the file, or "upload/<name>" for one that came through the page
    label: str  # "" = none
    thumbnail: bytes  # JPEG
    vector: np.ndarray


class Hit(NamedTuple):
    """A picture found, and its cosine with the query, -1 to 1."""

    id: str
    path: str
    label: str
    score: float
    thumbnail: bytes  # b"" when none were asked for


class Item(NamedTuple):
    """A picture kept, without its vector and thumbnail."""

    id: str
    path: str
    label: str


class FileState(NamedTuple):
    """What was known of a file when it was last looked at; ``problem`` says why it gives no picture, or is empty."""

    size: int
    modified: int  # nanoseconds, as stat says
    id: str | None
    label: str
    problem: str


class Filter(NamedTuple):
    """Which pictures are meant; all that is given must hold."""

    labels: tuple[str, ...] = ()  # one of these; () = any
    folder: str = ""  # the path lies below this folder; "" = any


ANY = Filter()


class Index(Protocol):
    """What the app asks of an index of pictures, whichever keeps it. Safe to use from several threads.

    What ``add``, ``delete`` and ``set_label`` have returned from is durable, and seen by every later call of any
    process. Errors are ValueError, in one line, and leave the index as it was.
    """

    def add(self, records: Sequence[Record]) -> int:
        """Keep pictures; how many of them are new. Known ids are left as they are.

        Raises ValueError for a vector of another width, without direction, or not finite; nothing is added then.
        """
        ...

    def search(self, query: np.ndarray, k: int = 12, *, where: Filter = ANY, thumbnails: bool = True) -> list[Hit]:
        """The ``k`` pictures most similar to a vector (D,), by cosine, best first, among those that ``where`` means.

        Raises ValueError for a query of another width or without direction.
        """
        ...

    def delete(self, ids: Iterable[str]) -> int:
        """Forget pictures; how many there were. Their files stay noted, with the problem ``DELETED``."""
        ...

    def count(self, where: Filter = ANY) -> int:
        """How many pictures there are."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a page can say of this index; plain values."""
        ...

    def get(self, ids: Sequence[str]) -> list[Item]:
        """The pictures of these ids that there are, in the order asked."""
        ...

    def items(self, *, offset: int = 0, limit: int = 100, where: Filter = ANY) -> list[Item]:
        """A page of pictures, in the order of adding."""
        ...

    def thumbnail(self, id: str) -> bytes | None:
        """The JPEG of a picture, or None if there is no such picture."""
        ...

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The ids of all pictures in the order of adding, and their unit vectors, float32 (N, D), not to be written."""
        ...

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """The unit vectors of the pictures of these ids that there are, in the order asked, float32 (n, D)."""
        ...

    def labels(self) -> dict[str, int]:
        """How many pictures bear each label, by label; "" are those without."""
        ...

    def folders(self) -> dict[str, int]:
        """How many pictures lie directly in each folder, by folder."""
        ...

    def set_label(self, ids: Iterable[str], label: str) -> int:
        """Give pictures a label ("" takes it away); how many of them there are."""
        ...

    def files(self) -> dict[str, FileState]:
        """Every file looked at so far, by path."""
        ...

    def unnoted(self) -> list[str]:
        """The paths of pictures of which no file was noted: those that came through the page, and who was stopped."""
        ...

    def note_files(self, states: dict[str, FileState]) -> None:
        """Remember files as they are now. A picture that its file no longer holds is dropped, or takes another's name.

        Only files named here are judged. A picture that came through the page takes the name of one that holds it.
        """
        ...

    def forget_files(self, paths: Iterable[str]) -> None:
        """Forget files; their pictures are dropped, or take the name of another file with the same bytes."""
        ...

    def version(self) -> int:
        """A number that changes whenever pictures were added, deleted or labelled, by any process."""
        ...

    def close(self) -> None:
        """Let go of the file or connection."""
        ...


def open_index(uri: str | Path, *, model: str, dimension: int, vectors: Vectors = "fp16", create: bool = True) -> Index:
    """The index at ``uri``, made if it is not there and ``create``.

    ``uri`` is the path of a file (SQLite, searched exactly in memory), or ``http://host:port/collection`` of a Milvus
    server (extra ``milvus``; its password or key comes from the environment variable ``SIMCLR_MILVUS_TOKEN``; a new
    collection is searched exactly, or by a graph with ``?index=HNSW``). ``model`` is the fingerprint of the model that
    embeds, ``dimension`` the width of its features. ``vectors`` says how a new file keeps them; an older one keeps its
    own way, and Milvus fp32.

    Raises ValueError, in one line, for an index of another model or width, something that is no index, one that is
    missing and not to be made, or a server that cannot be reached.
    """
    if vectors not in ("fp16", "fp32"):
        raise ValueError(f"Vectors are kept as fp16 or fp32, not {vectors!r}.")
    if _is_file(uri):
        from app.sqlite_index import SqliteIndex

        return SqliteIndex(uri, model=model, dimension=dimension, vectors=vectors, create=create)
    from app.milvus_index import MilvusIndex

    return MilvusIndex(str(uri), model=model, dimension=dimension, create=create)


def index_model(uri: str | Path) -> tuple[str, int]:
    """The fingerprint of the model that the index at ``uri`` was made with, and the width of its vectors.

    Raises ValueError, in one line, where there is no index.
    """
    if _is_file(uri):
        from app import sqlite_index

        return sqlite_index.stored_model(uri)
    from app import milvus_index

    return milvus_index.stored_model(str(uri))


def _is_file(uri: str | Path) -> bool:
    return isinstance(uri, Path) or "://" not in uri


# What backends share


def unit_rows(records: Sequence[Record], dimension: int) -> np.ndarray:
    """The records' vectors at length one, float32 (N, D). Raises ValueError for one that has no direction."""
    rows = np.empty((len(records), dimension), np.float32)
    for row, record in enumerate(records):
        vector = np.asarray(record.vector)
        if vector.shape != (dimension,):
            raise ValueError(f"{record.path}: vector of shape {vector.shape}, not ({dimension},).")
        unit = _unit(vector)
        if unit is None:
            raise ValueError(f"{record.path}: its vector is zero or not finite; is the model trained?")
        rows[row] = unit
        for text in (record.id, record.path, record.label):
            checked_text(text)
    return rows


def unit_query(query: np.ndarray, dimension: int) -> np.ndarray:
    """A query at length one, float32 (D,). Raises ValueError for another width, or one that has no direction."""
    query = np.asarray(query)
    if query.shape != (dimension,):
        raise ValueError(f"The query has shape {query.shape}; this index holds vectors of ({dimension},).")
    unit = _unit(query)
    if unit is None:
        raise ValueError("The query is zero or not finite, so nothing is near to it; is the model trained?")
    return unit


def _unit(vector: np.ndarray) -> np.ndarray | None:
    wide = vector.astype(np.float64)
    most = np.abs(wide).max(initial=0)
    if not np.isfinite(most) or most == 0:
        return None
    wide /= most  # so that squares neither overflow nor vanish
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def checked_text(text: str) -> str:
    """A text that can be kept. Raises ValueError for a file's name that is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r}: not valid Unicode, so it cannot be kept; rename the file.") from None
    if "\0" in text:
        raise ValueError(f"{text!r}: holds a NUL character, so it cannot be kept.")
    return text


def folder_of(path: str) -> str:
    """The folder that a path lies in directly; "" if it names none."""
    folder, slash, _ = path.rpartition("/")
    return folder or slash


def below(folder: str) -> str:
    """How every path below a folder begins."""
    return folder.rstrip("/") + "/"


def lies_below(path: str, folder: str) -> bool:
    """Whether a folder is another, or lies below it."""
    start = below(folder)
    return path.startswith(start) or (path != "" and path == start[:-1])


def other_model(where: str, theirs: tuple[str, int], ours: tuple[str, int]) -> str:
    """What to say when an index belongs to another model."""
    return (
        f"{where}: made with another model ({theirs[0][:12]}, {theirs[1]}-d) than this one ({ours[0][:12]}, "
        f"{ours[1]}-d); use the model it was made with, choose another place, or delete it to embed anew."
    )
