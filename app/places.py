"""Where a gallery's pictures lie, as people see it: no more of a path than tells two folders apart."""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from app.index import UPLOADED


class Places(NamedTuple):
    """The folders of a gallery's pictures, name -> full path, and the folder they have in common."""

    names: dict[str, str]
    root: str

    def shown(self, path: str) -> str:
        """A picture's path below the common folder, or its file's name."""
        try:
            return PurePosixPath(path).relative_to(self.root).as_posix()
        except ValueError:
            return PurePosixPath(path).name


def places(folders: Iterable[str]) -> Places:
    """Names are relative to the deepest folder that holds all; a name stands for itself and what lies below. Pictures
    that came through the page make a folder of their own."""
    given = [folder for folder in folders if folder]
    uploads = {folder: folder for folder in given if f"{folder}/" == UPLOADED}
    paths = [PurePosixPath(folder) for folder in given if folder not in uploads]
    root = PurePosixPath(_common([path.parts for path in paths]))
    inside = {path for full in paths for path in (full, *full.parents) if root in path.parents}
    return Places({path.relative_to(root).as_posix(): str(path) for path in sorted(inside)} | uploads, root.as_posix())


def _common(paths: Sequence[tuple[str, ...]]) -> str:
    same: list[str] = []
    for parts in zip(*paths, strict=False):  # the shortest path ends what all can have in common
        if len(set(parts)) > 1:
            break
        same.append(parts[0])
    return str(PurePosixPath(*same)) if same else ""
