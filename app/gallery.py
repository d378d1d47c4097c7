"""Pictures of folders into an index: only what is new or changed is read, by threads, and what is done is kept."""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from app.index import DELETED, FileState, Index, Item, Record, open_index
from app.pictures import PICTURES
from app.uploads import pillow_is_restricted
from export.runtime import CHUNK, OnnxModel
from zoo.ahead import in_order
from zoo.files import cache_dir
from zoo.folders import endings, not_listed, walk
from zoo.folders import image_files as image_files
from zoo.transforms import read_image

THUMBNAIL = 160  # pixels, the longer side
AHEAD = 3  # batches that may lie read before the model takes them: bounds the memory
_ASKED = 1000  # pictures asked of an index at a time

LabelOf: TypeAlias = Callable[[Path], "str | None"]
Progress: TypeAlias = "bool | Callable[[int, int], None]"


class Report(NamedTuple):
    """What bringing an index up to date with its files did."""

    embedded: int  # pictures that are new in the index
    unchanged: int  # files looked at before and the same since
    gone: int  # files that are no longer there
    unreadable: dict[str, str]  # file, or folder that cannot be listed -> reason, in one line; also those of before
    copies: int = 0  # new files whose picture was there already
    relabelled: int = 0  # pictures that got another label because a table says so
    vanished: tuple[str, ...] = ()  # the files that are gone, by path


# ---- one picture -----------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """A file read: whose picture it is and, if that is new, what of it is kept and what the model takes."""

    id: str
    thumbnail: bytes = b""
    image: np.ndarray | None = None


class _Unreadable(NamedTuple):
    """Why a file cannot be used, in one line; ``lasting`` if only other bytes will change that."""

    reason: str
    lasting: bool


def thumbnail(pixels: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a small JPEG whose longer side is at most 160 pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _look(path: str, model: OnnxModel, known: Callable[[str, str], bool]) -> _Seen | _Unreadable:
    """Read a file; no further than its bytes' hash if ``known(path, id)``."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a string
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # rights or a disk: may be mended without a change of the file
        return _Unreadable(error.strerror or type(error).__name__, False)
    if known(path, digest):
        return _Seen(digest)
    try:
        pixels = read_image(path)
        return _Seen(digest, thumbnail(pixels), model.prepare(pixels))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
        return _Unreadable(reason, not pillow_is_restricted())  # another process may read what a server must not
    except MemoryError:
        return _Unreadable("too large for the memory that is left", False)


# ---- which files -----------------------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """The files there are now, by absolute POSIX path, and where they were looked for."""

    files: dict[str, tuple[int, int]]  # size, time of change in nanoseconds
    folders: dict[str, int]  # given ones, none in another, and how many files each has
    named: frozenset[str]  # files given themselves
    problems: dict[str, str]


def _absolute(path: str | Path) -> str:
    return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100 - takes ".." out, follows no links


def _folder_of(path: str, folders: Container[str]) -> str | None:
    """Which of some folders a path lies in, at any depth; the outermost."""
    found, end = None, path.rfind("/")
    while end >= 0:
        above = path[:end] or "/"
        found = above if above in folders else found
        end = path.rfind("/", 0, end)
    return found


def _listed(paths: Sequence[str | Path], *, emptied: bool, progress: Progress) -> _Listing:
    """All files of ``paths``. Raises ValueError for a path that is missing or cannot be listed."""
    files: dict[str, tuple[int, int]] = {}
    problems: dict[str, str] = {}
    folders: dict[str, None] = {}  # in the order given
    named = set()
    for path in map(_absolute, paths):
        if os.path.isdir(path) or (emptied and not os.path.lexists(path)):  # noqa: PTH112
            folders[path] = None
        elif not os.path.isfile(path):  # noqa: PTH113
            what = "not a regular file" if os.path.lexists(path) else "no such file or folder"
            raise ValueError(f"{path}: {what}.")
        else:
            named.add(path)
    outer = {path: 0 for path in folders if path == "/" or _folder_of(path, folders) is None}

    def cannot(place: str, error: OSError) -> None:
        reason = not_listed(error)
        if place in outer and emptied and isinstance(error, FileNotFoundError):
            return
        if place in outer:
            raise ValueError(f"{place}: {reason}.")
        problems[Path(place).as_posix()] = reason

    def note(path: str, state: os.stat_result) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            problems[shown] = "its name is not UTF-8; rename it"
        else:
            files[path] = state.st_size, state.st_mtime_ns

    entries = (entry for folder in outer for entry in walk(folder, on_error=cannot))
    quiet = None if progress is True else True
    for entry in tqdm(entries, desc="Looking for pictures", unit=" files", delay=1, leave=False, disable=quiet):
        try:
            note(entry.path if os.sep == "/" else Path(entry.path).as_posix(), entry.stat())
        except OSError:  # gone since the folder was listed
            continue
    for path in sorted(named):
        note(path, os.stat(path))  # noqa: PTH116
    for path in files:
        folder = _folder_of(path, outer)
        if folder is not None:
            outer[folder] += 1
    return _Listing(files, outer, frozenset(named), problems)


def _vanished(listing: _Listing, known: Iterable[str], *, emptied: bool) -> list[str]:
    """Files looked at before, below the folders given, that are no longer there.

    Raises ValueError, unless ``emptied``, for a folder without any file that held some: rather not mounted.
    """
    gone: dict[str, list[str]] = {}
    for path in sorted(known):
        folder = _folder_of(path, listing.folders)
        if folder is not None and path not in listing.files and _is_gone(path):
            gone.setdefault(folder, []).append(path)
    for folder, paths in gone.items():
        if not listing.folders[folder] and not emptied:
            raise ValueError(
                f"{folder}: no pictures in it, but {len(paths):,} of its files are in the index. Is its disk mounted? "
                "If they were deleted on purpose, `simclr index` forgets them with --emptied."
            )
    return [path for paths in gone.values() for path in paths]


def _is_gone(path: str) -> bool:
    """Whether there is no such file; no if that cannot be told."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - a string
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


# ---- from files to the index -----------------------------------------------------------------------------------------


def embed_paths(
    paths: Sequence[str | Path],
    model: OnnxModel,
    index: Index,
    *,
    label_of: LabelOf | None = None,
    progress: Progress = True,
    forget: bool = True,
    emptied: bool = False,
    readers: int | None = None,
) -> Report:
    """Bring an index up to date with files and folders of pictures.

    A file is read when it is new or its size or time of change differ; equal files are one picture. Pictures whose
    files are gone are taken out, unless ``forget=False``. A picture that a person deleted from the index stays away,
    unless its file is named itself or changes. Interrupted or killed, what is embedded stays, and so do the pictures of
    files that changed: the next call goes on from there.

    ``label_of`` names the label of a file by its absolute path; where it says None, or without it, that is the name of
    the file's folder, none for files directly in a folder given. A file that is unchanged gets another label only where
    ``label_of`` says one, and another than when it was last indexed. Of equal files, one that ``label_of`` labels
    counts before those that only their folders do. ``progress``: a bar on a terminal, none, or a function called with
    the files done and all to do. ``emptied``: folders that are missing or hold no file were emptied on purpose.
    ``readers``: threads that read; one a core, at most 8, unless given.

    Raises ValueError, in one line and before any work, for a path that is missing, a folder that cannot be listed or
    is empty while the index knows files of it, or when there is no picture at all.
    """
    known = index.files()
    listing = _listed(paths, emptied=emptied, progress=progress)
    unnoted = index.unnoted()  # of those below these folders a call was stopped just before it noted them
    gone = _vanished(listing, [*known, *unnoted], emptied=emptied)
    if not listing.files and not gone:
        raise ValueError(f"No pictures in {', '.join(map(str, paths))}; looked for {', '.join(sorted(endings()))}.")
    for folder, count in listing.folders.items():
        if not count and not emptied:
            listing.problems.setdefault(folder, "no pictures in it")

    todo = [path for path, now in listing.files.items() if _to_read(path, now, known.get(path), listing.named)]
    work = _Work(model, index, listing, known, label_of)
    with _told(progress, len(todo)) as advance:
        for some in _batches(work.read(todo, readers or min(8, os.cpu_count() or 1)), CHUNK):
            work.keep(some)
            advance(len(some))
    work.finish()
    read = set(todo)
    unchanged = {path: known[path] for path in listing.files if path not in read}
    if gone and forget:
        index.forget_files(gone)  # now only: a file that was moved keeps its picture
    relabelled = work.relabel(label_of, unchanged, gone) if label_of is not None else 0
    before = {path: state.problem for path, state in unchanged.items() if state.problem not in ("", DELETED)}
    unreadable = listing.problems | before | work.problems
    return Report(work.embedded, len(unchanged), len(gone), unreadable, work.copies, relabelled, tuple(gone))


def _to_read(path: str, now: tuple[int, int], before: FileState | None, named: frozenset[str]) -> bool:
    if before is None or before[:2] != now:
        return True
    return path in named and before.problem != ""  # asked for by name: once more


class _Work:
    """The files of one call on their way into the index, and what became of them.

    Files that held a picture and now hold something else are noted last and at once: until then the index holds on to
    that picture, as a file read later may have it (photos that were renumbered; the original beside an edited copy).
    """

    def __init__(
        self,
        model: OnnxModel,
        index: Index,
        listing: _Listing,
        known: Mapping[str, FileState],
        label_of: LabelOf | None,
    ) -> None:
        self.model, self.index, self.listing, self.before, self.label_of = model, index, listing, known, label_of
        self.there = {state.id for state in known.values() if state.id and not state.problem}
        self.away = {state.id for state in known.values() if state.problem == DELETED} - self.there
        self.embedded = self.copies = 0
        self.problems: dict[str, str] = {}
        self.changed: dict[str, FileState] = {}
        self.copied: dict[str, FileState] = {}  # files of pictures that were there; labelled by their folders as yet

    def read(self, todo: Sequence[str], readers: int) -> Iterator[tuple[str, _Seen | _Unreadable]]:
        """The files read by threads, in order, a few batches ahead."""
        look = partial(_look, model=self.model, known=self._known)
        return zip(todo, in_order(look, todo, threads=readers, ahead=AHEAD * CHUNK), strict=True)

    def _known(self, path: str, id_: str) -> bool:
        if id_ in self.there or self._stays_away(path, id_):
            return True
        return path in self.before and bool(self.index.get([id_]))  # a call that was stopped may have embedded it

    def _stays_away(self, path: str, id_: str) -> bool:
        return id_ in self.away and path not in self.listing.named

    def keep(self, some: Sequence[tuple[str, _Seen | _Unreadable]]) -> None:
        """Embed a batch and write it: first the pictures, then their files, so that a file noted is a picture kept."""
        fresh: dict[str, tuple[str, _Seen]] = {}  # by id: equal files are one picture
        for path, seen in some:
            if isinstance(seen, _Seen) and seen.image is not None and seen.id not in self.there:
                fresh.setdefault(seen.id, (path, seen))
        images = [seen.image for _, seen in fresh.values() if seen.image is not None]
        vectors = self.model.embed(np.stack(images)) if images else ()
        records, pointless = [], set()
        for (path, seen), vector in zip(fresh.values(), vectors, strict=True):
            if np.isfinite(vector).all() and vector.any():
                records.append(Record(seen.id, path, self._label(path), seen.thumbnail, vector))
            else:
                pointless.add(seen.id)
        self.embedded += self.index.add(records) if records else 0
        added = {record.id for record in records}
        copies = {seen.id for _, seen in some if isinstance(seen, _Seen) and seen.id not in fresh}
        there = {item.id for item in self.index.get(sorted(copies))} | added if copies else added
        states = {}
        for path, seen in some:
            if isinstance(seen, _Unreadable):
                self.problems[path] = seen.reason
                if seen.lasting:
                    states[path] = self._state(path, None, seen.reason)
            elif seen.id in there:
                states[path] = self._state(path, seen.id, "")
                if seen.id in copies or fresh[seen.id][0] != path:
                    self.copies += 1
                    states[path] = self.copied[path] = states[path]._replace(label=self._folders_label(path))
            elif seen.id in pointless:
                self.problems[path] = "the model gives it no direction"
                states[path] = self._state(path, None, self.problems[path])
            elif self._stays_away(path, seen.id):
                states[path] = self._state(path, seen.id, DELETED)
            # else another process deleted it while this one ran: the next call sees that
        self._note(states)
        self.there |= added

    def _note(self, states: Mapping[str, FileState]) -> None:
        now: dict[str, FileState] = {}
        for path, state in states.items():
            held = self.before[path].id if path in self.before else None
            (now if held in (None, state.id) else self.changed)[path] = state
        if now:
            self.index.note_files(now)

    def finish(self) -> None:
        """Note the files that changed; what none holds any more goes."""
        there = {item.id for item in self.index.get([state.id for state in self.changed.values() if state.id])}
        noted = {path: state for path, state in self.changed.items() if state.problem or state.id in there}
        if noted:  # without those whose picture another process took out meanwhile: the next call looks again
            self.index.note_files(noted)

    def _state(self, path: str, id_: str | None, problem: str) -> FileState:
        size, modified = self.listing.files[path]
        return FileState(size, modified, id_, self._label(path), problem)

    def _label(self, path: str) -> str:
        found = self.label_of(Path(path)) if self.label_of is not None else None
        return self._folders_label(path) if found is None else found

    def _folders_label(self, path: str) -> str:
        parent, _, _ = path.rpartition("/")
        return "" if parent in self.listing.folders else parent.rpartition("/")[2]

    def relabel(self, label_of: LabelOf, unchanged: Mapping[str, FileState], gone: Sequence[str]) -> int:
        """Files of which something else is said than is noted of them; their pictures follow. How many pictures.

        Of a picture's files, the one whose path it bears counts first, then the others in order. A label that a person
        gave in the app is only replaced by another, not taken away; it stays when the file was only moved.
        """
        given = {(state.id, state.label) for state in self.before.values()}
        by_files = given | {(state.id, state.label) for state in self.copied.values()}
        left = [path for path in (*self.changed, *gone) if path in self.before]
        lost = {self.before[path].id for path in left}  # these may bear another file's path now
        files = {path: state for path, state in (*unchanged.items(), *self.copied.items()) if not state.problem}
        said = {path: label_of(Path(path)) for path in files}
        first = {files[path].id: path for path in reversed(files) if said[path]}
        words = ((path, text) for path, text in said.items() if text is not None)
        asked = ((path, text) for path, text in words if text != files[path].label or (text and files[path].id in lost))
        count = 0
        for some in _batches(asked, _ASKED):
            items = {item.id: item for item in self.index.get([files[path].id or "" for path, _ in some])}
            noted: dict[str, FileState] = {}
            ids: dict[str, list[str]] = {}
            for path, text in some:
                item = items.get(files[path].id or "")
                if item is None:  # another process deleted it
                    continue
                noted[path] = files[path]._replace(label=text)
                counts = item.path if label_of(Path(item.path)) else first.get(item.id, item.path)
                by_file, news = (item.id, item.label) in by_files, text and self._is_news(path, text, item, given)
                if path == counts and item.label != text and (by_file or news):
                    ids.setdefault(text, []).append(item.id)
            for text, those in ids.items():
                count += self.index.set_label(those, text)
            if noted:
                self.index.note_files(noted)
        return count

    def _is_news(self, path: str, text: str, item: Item, given: Container[tuple[str | None, str]]) -> bool:
        """Whether a picture was not given this label before; a file that was only moved brings no news."""
        if path in self.before and self.before[path].id == item.id:
            return self.before[path].label != text
        return path != item.path and (item.id, text) not in given


def _batches(items: Iterator, size: int) -> Iterator[list]:
    while some := list(islice(items, size)):
        yield some


@contextmanager
def _told(progress: Progress, total: int) -> Iterator[Callable[[int], object]]:
    """A function that is told of files done, and tells whoever wants to know."""
    if callable(progress):
        tell, done = progress, 0
        tell(0, total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell(done, total)

        yield advance
    elif not progress or not total:
        yield lambda count: None
    else:
        with tqdm(total=total, desc="Embedding", unit=" images", disable=None, dynamic_ncols=True) as bar:
            yield bar.update


# ---- the app's gallery -----------------------------------------------------------------------------------------------


def is_index(gallery: str | Path) -> bool:
    """Whether this names an index, an address or a file that SQLite wrote, rather than pictures."""
    if "://" in str(gallery):
        return True
    try:
        with Path(gallery).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return Path(gallery).suffix == ".sqlite" and not Path(gallery).is_dir()


def folder_named(text: str) -> Path:
    """The folder of this machine that a person names, ``~`` being the home of who runs this.

    Raises ValueError, in one line, if there is none.
    """
    text = text.strip()
    if not text:
        raise ValueError("Name a folder of this machine, such as /home/me/photos.")
    with suppress(RuntimeError):  # the home of nobody
        folder = Path(text).expanduser()
        if folder.is_dir():
            return folder
    raise ValueError(f"{text}: no such folder on the machine that serves this page.")


def index_path(paths: Sequence[str | Path], fingerprint: str, *, kind: str) -> Path:
    """Where the index of folders and files embedded by a model is kept."""
    places = "\n".join(sorted(set(map(_absolute, paths))))  # as files are noted: by a link is another index
    digest = hashlib.sha256(places.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir() / kind / f"{digest[:16]}-{fingerprint[:16]}-2.sqlite"


def open_gallery(
    gallery: str | Path | None, model: OnnxModel, *, progress: Progress = True
) -> tuple[Index | None, Report]:
    """What the app searches, open: an index (a file or an address) as it is, or a folder of pictures, its index kept in
    the cache and brought up to date. None: the pictures that come with the package, and no index if the model can read
    none of them, as one for 32 x 32 pixels, which does not resize.

    Raises ValueError for a folder or index that is missing, a folder without a picture that can be read, or an index of
    another model.
    """
    if gallery is not None and is_index(gallery):
        opened = open_index(gallery, model=model.fingerprint, dimension=model.feature_width, create=False)
        return opened, Report(0, 0, 0, {})
    if gallery is None:
        index, report = _brought_up_to_date([PICTURES], model, progress=progress, kind="galleries")
        if index.count():
            return index, report
        index.close()
        return None, report
    folder = Path(gallery)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder." if not folder.exists() else f"{folder}: no folder and no index.")
    return open_pictures([folder], model, progress=progress, kind="galleries")


def open_pictures(
    paths: Sequence[str | Path],
    model: OnnxModel,
    *,
    progress: Progress = True,
    readers: int | None = None,
    kind: str = "folders",
) -> tuple[Index, Report]:
    """The index of folders and files of pictures, kept in the cache and brought up to date.

    ``kind``: "folders" holds what is in these, "galleries" also what people added and deleted in the app.

    Raises ValueError as ``embed_paths`` does, and if no file can be read.
    """
    index, report = _brought_up_to_date(paths, model, progress=progress, readers=readers, kind=kind)
    if not index.count():
        index.close()
        reasons = list(report.unreadable.items())
        detail = f" ({len(reasons)} unreadable, such as {reasons[0][0]}: {reasons[0][1]})" if reasons else ""
        raise ValueError(f"No pictures in {', '.join(map(str, paths))}{detail}.")
    return index, report


def _brought_up_to_date(
    paths: Sequence[str | Path], model: OnnxModel, *, progress: Progress, kind: str, readers: int | None = None
) -> tuple[Index, Report]:
    place = index_path(paths, model.fingerprint, kind=kind)
    index = open_index(place, model=model.fingerprint, dimension=model.feature_width)
    try:
        return index, embed_paths(paths, model, index, progress=progress, readers=readers)
    except BaseException:
        index.close()
        raise
