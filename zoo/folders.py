"""Which files of a folder are pictures: one walk and one list of endings for everything that reads folders."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from zoo.transforms import FORMATS

_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")  # of cameras
_NOT_READ = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", *_RAW)


def endings() -> frozenset[str]:
    """The endings, in small letters and with their dot, of the formats that ``zoo.transforms`` reads."""
    from PIL import Image

    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)


def walk(
    folder: str | Path,
    *,
    wanted: Collection[str] | None = None,
    links: bool = False,
    on_error: Callable[[str, OSError], None] | None = None,
) -> Iterator["os.DirEntry[str]"]:
    """The pictures of a folder, then those of the folders in it, each in the order of their names; by their endings.

    ``wanted``: other endings. Hidden files and folders are left out. With ``links``, links to folders are followed at
    the end, to each folder once. ``on_error`` is told of every folder that cannot be listed; without it such folders
    are passed over.
    """
    wanted = endings() if wanted is None else wanted
    waiting, linked = [os.fspath(folder)], list[str]()
    seen: set[tuple[int, int]] = set()
    while waiting or linked:
        place = waiting.pop() if waiting else linked.pop(0)
        try:
            if links:
                facts = os.stat(place)  # noqa: PTH116 - a string
                if (facts.st_dev, facts.st_ino) in seen:
                    continue
                seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(place) as inside:
                entries = sorted((entry for entry in inside if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            if on_error is not None:
                on_error(place, error)
            continue
        below = []
        for entry in entries:
            if _is_folder(entry):
                below.append(entry.path)
            elif links and _is_link_to_folder(entry):
                linked.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in wanted and _is_file(entry):  # noqa: PTH122 - a string
                yield entry
        waiting += reversed(below)


def not_listed(error: OSError) -> str:
    """What to say of a folder that ``walk`` could not list."""
    return f"cannot be listed ({error.strerror or type(error).__name__})"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False)
    return False


def _is_link_to_folder(entry: "os.DirEntry[str]") -> bool:
    with suppress(OSError):
        return entry.is_symlink() and entry.is_dir()
    return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    with suppress(OSError):  # a link whose target cannot be asked
        return entry.is_file()
    return False


def image_files(
    folder: str | Path, *, links: bool = False, on_error: Callable[[str, OSError], None] | None = None
) -> Iterator[Path]:
    """The pictures of a folder and below, in the order of ``walk``."""
    for entry in walk(folder, links=links, on_error=on_error):
        yield Path(entry.path)


def not_read(folders: Iterable[str | Path], *, links: bool = False) -> str:
    """What to say of the pictures in folders and below that are in formats which are not read: a line, "" for none."""
    entries = (entry for folder in folders for entry in walk(folder, wanted=_NOT_READ, links=links))
    found = Counter(os.path.splitext(entry.name)[1].lower() for entry in entries)  # noqa: PTH122 - a string
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in found.most_common())
    return f"passed over, as such formats are not read: {kinds}; convert them to JPEG or PNG" if found else ""


def none_in(folder: str | Path, *, links: bool = False) -> str:
    """What to say of a folder without pictures that are read."""
    others = not_read([folder], links=links)
    return f"{folder}: no images in it (looked for {', '.join(sorted(endings()))}{others and '; ' + others})."


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of ``paths``, each once and sorted: of a folder all pictures in it and below, hidden ones left out.

    Raises ValueError for a path that is not there and a folder without pictures.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            inside = set(image_files(path))
            if not inside:
                raise ValueError(none_in(path))
            found |= inside
        elif path.exists():
            found.add(path)
        else:
            raise ValueError(f"{path}: no such file or folder.")
    return sorted(found)
