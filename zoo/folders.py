"""Which files of a folder are pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from zoo.transforms import FORMATS


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of ``paths``, each once and sorted: of a folder all pictures in it and below, hidden ones left out.

    Pictures go by the endings of the formats that ``zoo.transforms`` reads. Raises ValueError for a path that is not
    there and a folder without pictures.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            inside = _pictures(path)
            if not inside:
                raise ValueError(f"{path}: no images in it (looked for {', '.join(sorted(_endings()))}).")
            found |= inside
        elif path.exists():
            found.add(path)
        else:
            raise ValueError(f"{path}: no such file or folder.")
    return sorted(found)


def _pictures(folder: Path) -> set[Path]:
    endings, found = _endings(), set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = (name for name in names if not name.startswith(".") and Path(name).suffix.lower() in endings)
        found |= {Path(place, name) for name in pictures}
    return found


def _endings() -> set[str]:
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
