"""Where files are kept, and how they appear: whole or not at all; written aside, synced, renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs


def platform_cache_dir() -> Path:
    """The platform's folder for such things."""
    return platformdirs.user_cache_path("simclrv2", appauthor=False)


def cache_dir() -> Path:
    """Where weights and galleries are kept: ``SIMCLR_CACHE``, else the platform's cache folder."""
    return Path(os.environ.get("SIMCLR_CACHE") or platform_cache_dir())


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it becomes ``path`` if the block ends without an error.

    Raises OSError if the disk is full or the folder cannot be written; an older file at ``path`` is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """A JSON object as a file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json_text(content, indent=2) + "\n", encoding="utf-8")


def json_text(content: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON with all letters as they are; what is no UTF-8 in a file's name is escaped, and read back as it was."""
    text = json.dumps(content, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON writes a lone surrogate in the same way


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text that may be anything. Raises ValueError if it is none."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object but {type(found).__name__}")
    return found


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise OSError, with the sizes, if a folder's disk has no room for ``needed`` bytes of ``what``."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but {what} takes {needed / 1e9:.2f} GB; make room, or choose "
            "another folder."
        )


def sync_folder(folder: Path) -> None:
    """Make a rename itself durable, where the system allows it (Windows does not open folders)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
