"""Which finished work can be used again: what goes into a stage is hashed, and the hash names the stage's folder."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

import zoo
from training.data import ImageSet
from training.recipes import SAME_RESULT, AnyRecipe
from zoo.files import json_object, written_whole
from zoo.model_file import sha256_of
from zoo.registry import spec as find_spec

RUN_FILE = "run.json"  # by which a folder is known as one of `simclr run`
STAGES = "stages"
_HASHES = ".hashes.json"
_LOCK = ".lock"
_SETTLED = 2.0  # seconds; a file younger than this may change again without another time stamp


class Contents:
    """SHA-256 of image files, kept in the run folder by name, size and time: a second run reads none of them."""

    def __init__(self, root: Path, out: Path) -> None:
        self._root, self._cache = root.resolve(), out / _HASHES
        self._of: dict[Path, str] = {}
        self._names: dict[Path, str] = {}
        self._digests: dict[ImageSet, str] = {}
        try:
            self._known: dict[str, Any] = json_object(self._cache.read_bytes())
        except (OSError, ValueError):  # absent, or cut: everything is read anew
            self._known = {}

    def name(self, path: Path) -> str:
        """The path below the folder of images, with slashes; a file elsewhere keeps its whole path."""
        if path not in self._names:
            whole = path.resolve()
            below = whole.relative_to(self._root) if whole.is_relative_to(self._root) else whole
            self._names[path] = below.as_posix()
        return self._names[path]

    def read(self, paths: Sequence[Path]) -> None:
        """Hash what is not known yet, with a progress bar. Raises OSError for a file that cannot be read."""
        changed = False
        try:
            for path in tqdm(paths, desc="reading images", unit="image", disable=None, leave=False):
                name, state = self.name(path), path.stat()
                told = self._known.get(name)
                if isinstance(told, list) and told[:2] == [state.st_size, state.st_mtime_ns]:
                    self._of[path] = told[2]
                    continue
                self._of[path] = sha256_of(path)
                if time.time() - state.st_mtime > _SETTLED:
                    self._known[name] = [state.st_size, state.st_mtime_ns, self._of[path]]
                    changed = True
        finally:
            if changed:
                with written_whole(self._cache) as temporary:
                    temporary.write_text(json.dumps(self._known), encoding="utf-8")

    def __getitem__(self, path: Path) -> str:
        return self._of[path]

    def digest(self, images: ImageSet) -> str:
        """SHA-256 of names, contents and labels, in their order."""
        if images not in self._digests:
            listing = hashlib.sha256(json.dumps(images.classes).encode())
            labels = [-1] * len(images) if images.labels is None else images.labels.tolist()
            for path, label in zip(images.paths, labels, strict=True):
                listing.update(json.dumps([self.name(path), self._of[path], label]).encode())
            self._digests[images] = listing.hexdigest()
        return self._digests[images]


def stage_key(
    stage: str, recipe: AnyRecipe, *, images: str, weights: str | None = None, classes: Sequence[str] = ()
) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all that decides a stage's result.

    ``images``: ``Contents.digest`` of what it is trained on. ``weights``: SHA-256 of those it starts from or is taught
    by, with the ``classes`` they answer.
    """
    settings = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in SAME_RESULT}
    settings["model"] = dataclasses.asdict(find_spec(recipe.model))
    inputs = {
        "stage": stage,
        "recipe": settings,
        "images": images,
        "weights": weights,
        "classes": list(classes),
        "version": zoo.__version__,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def stage_folder(out: Path, stage: str, key: str) -> Path:
    return out / STAGES / f"{stage}-{key}"


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the run folder and hold it for this process.

    Raises ValueError, in one line, for a folder that holds something else, cannot be written, or is in use.
    """
    from filelock import FileLock, Timeout

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; choose another --out.")
    if out.exists() and not (out / RUN_FILE).exists():
        strangers = sorted(path.name for path in out.iterdir() if path.name not in (_LOCK, _HASHES))
        if strangers:
            shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
            raise ValueError(f"{out} holds something else ({shown}); give an empty or a new folder as --out.")
    lock = FileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{out} is in use by another run; wait for its end, or choose another --out.") from None
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); choose another --out.") from None
    try:
        yield
    finally:
        lock.release()


def unused(out: Path, used: Sequence[Path]) -> tuple[list[Path], int]:
    """Folders of stages that this run did not use, and the bytes in them."""
    folders = sorted(path for path in (out / STAGES).iterdir() if path.is_dir() and path not in used)
    sizes = (file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return folders, sum(sizes)
