"""A folder of pictures into an index: only what is new or changed is embedded, and what is done is kept."""

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from app.index import FileState, Index, Record, open_index
from app.pictures import drawn_folder
from export.runtime import CHUNK, OnnxModel
from zoo.files import cache_dir
from zoo.transforms import read_image

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
THUMBNAIL = 160  # pixels, the longer side


class Report(NamedTuple):
    """What embedding a folder did: pictures embedded now, files unchanged since, files gone, files not readable."""

    embedded: int
    unchanged: int
    gone: int
    unreadable: dict[str, str]  # path -> reason, in one line


def index_path(folder: Path, fingerprint: str) -> Path:
    """Where the index of a folder embedded by a model is kept."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return cache_dir() / "galleries" / f"{place[:16]}-{fingerprint[:16]}.pictures.sqlite"


def open_gallery(folder: Path | None, model: OnnxModel, *, progress: bool = True) -> tuple[Index, Report]:
    """The index of a folder, brought up to date; of the drawn pictures when there is no folder.

    Raises ValueError for a folder that is missing or holds no picture.
    """
    if folder is None:
        folder = drawn_folder(cache_dir())
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    path = index_path(folder, model.fingerprint)
    index = open_index(path, model=model.fingerprint, dimension=model.feature_width)
    try:
        report = embed_folder(folder, model, index, progress=progress)
        if not index.count():
            reasons = list(report.unreadable.items())
            detail = f" ({len(reasons)} unreadable, such as {reasons[0][0]}: {reasons[0][1]})" if reasons else ""
            raise ValueError(f"{folder}: no pictures in it{detail}; looked for {', '.join(sorted(SUFFIXES))}.")
    except BaseException:
        index.close()
        raise
    return index, report


def image_files(folder: Path) -> Iterator[Path]:
    """Files that look like pictures, in every folder below, in the order of their names; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def embed_folder(folder: Path, model: OnnxModel, index: Index, *, progress: bool = True) -> Report:
    """Bring an index up to date with a folder. A file is looked at again when its size or time of change differs.

    Interrupted, what is embedded stays: the next call goes on from there.
    """
    known = index.files()
    now: dict[str, tuple[int, int]] = {}
    for path in image_files(folder):
        try:
            state = path.stat()
        except OSError:  # gone since the folder was listed
            continue
        now[path.relative_to(folder).as_posix()] = (state.st_size, state.st_mtime_ns)
    gone = sorted(set(known) - set(now))
    if gone:
        index.forget_files(gone)
    todo = [name for name, stat in now.items() if name not in known or known[name][:2] != stat]
    embedded = 0
    if todo:
        with (
            tqdm(total=len(todo), desc="Embedding the gallery", unit=" images", disable=not progress) as bar,
            ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        ):
            for start in range(0, len(todo), CHUNK):
                names = todo[start : start + CHUNK]
                embedded += _embed_some(folder, names, now, model, index, pool)
                bar.update(len(names))
    unreadable = {name: state.problem for name, state in index.files().items() if state.problem}
    return Report(embedded, len(now) - len(todo), len(gone), unreadable)


class _Seen(NamedTuple):
    """A picture read: what of it is kept, and what the model takes."""

    id: str
    thumbnail: bytes
    pixels: np.ndarray


def _embed_some(
    folder: Path,
    names: list[str],
    stats: dict[str, tuple[int, int]],
    model: OnnxModel,
    index: Index,
    pool: ThreadPoolExecutor,
) -> int:
    seen: dict[str, _Seen] = {}
    states: dict[str, FileState] = {}
    looked = pool.map(lambda name: _look(folder / name, model), names)
    for name, outcome in zip(names, looked, strict=True):
        label = Path(name).parent.name
        if isinstance(outcome, str):
            states[name] = FileState(*stats[name], None, label, outcome)
        else:
            seen[name] = outcome
    vectors = model.embed(np.stack([item.pixels for item in seen.values()])) if seen else ()
    records = []
    for (name, item), vector in zip(seen.items(), vectors, strict=True):
        label = Path(name).parent.name
        if np.isfinite(vector).all() and vector.any():
            records.append(Record(item.id, name, label, item.thumbnail, vector))
            states[name] = FileState(*stats[name], item.id, label, "")
        else:
            states[name] = FileState(*stats[name], None, label, "the model gives it no direction")
    added = index.add(records)
    index.note_files(states)  # after the pictures: a file noted is a picture kept
    return added


def _look(path: Path, model: OnnxModel) -> _Seen | str:
    """A picture, or in one line why it cannot be used."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        pixels = read_image(path)
        return _Seen(digest, thumbnail(pixels), model.prepare(pixels))
    except (ValueError, OSError, MemoryError) as error:
        return " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__


def thumbnail(pixels: np.ndarray) -> bytes:
    """A picture (H, W, 3) as a small JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
