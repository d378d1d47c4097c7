"""Tensors from any source into one safetensors file, one by one: in little memory, interruptible, resumable.

Every tensor has its place in the file from the beginning. A file that was left unfinished is gone through on the next
try: what is in its place already, byte for byte by the source's own CRC, is not asked for again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.ahead import interrupts_held
from zoo.files import cache_dir, check_room
from zoo.model_file import sha256_of

if TYPE_CHECKING:
    from filelock import FileLock

_SLAB = 16 << 20  # bytes laid out anew at a time


class Target:
    """A safetensors file that is being written: float32 tensors of known shapes, each at a known place."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> None:
        self.path, self.shapes = path, dict(shapes)
        self.partial = path.with_name(f".{path.name}.partial")
        self._header = self._make_header(metadata)
        position = len(self._header)
        self.places = {}
        for name, shape in self.shapes.items():
            self.places[name] = position
            position += _nbytes(shape)
        self.nbytes = position

    def _make_header(self, metadata: Mapping[str, str]) -> bytes:
        """Length, JSON, and spaces up to a multiple of eight bytes."""
        told: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, shape in self.shapes.items():
            told[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + _nbytes(shape)]}
            offset += _nbytes(shape)
        text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return len(text).to_bytes(8, "little") + text

    def begin(self) -> bool:
        """Make the unfinished file, or find one that an earlier try left: then True.

        Raises OSError, with the sizes, if the disk has no room for it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        resumed = self._is_unfinished()
        if not resumed:
            self.partial.unlink(missing_ok=True)
        # an unfinished file is sparse where nothing is yet
        there = getattr(self.partial.stat(), "st_blocks", 0) * 512 if resumed else 0
        check_room(self.path.parent, self.nbytes - there, self.path.name)
        if not resumed:
            with self.partial.open("wb") as file:
                file.write(self._header)
                file.truncate(self.nbytes)
        return resumed

    def _is_unfinished(self) -> bool:
        """Whether an earlier try left this very file."""
        if self.partial.is_symlink() or not self.partial.exists() or self.partial.stat().st_size != self.nbytes:
            return False
        with self.partial.open("rb") as file:
            return file.read(len(self._header)) == self._header

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a tensor, in any memory layout, at its place. Raises OSError, naming the file, if that fails."""
        assert array.shape == self.shapes[name], name
        rows = max(1, _SLAB // max(1, _nbytes(array.shape[1:])))
        try:
            with self.partial.open("rb+") as file:
                file.seek(self.places[name])
                for start in range(0, len(array), rows):
                    file.write(np.ascontiguousarray(array[start : start + rows], np.float32).data)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from None

    def get(self, name: str) -> np.ndarray:
        """What is at a tensor's place."""
        shape = self.shapes[name]
        return np.fromfile(self.partial, "<f4", _nbytes(shape) // 4, offset=self.places[name]).reshape(shape)

    def seal(self) -> str:
        """Bring the file, now whole, to the disk; its SHA-256."""
        with self.partial.open("rb+") as file:
            os.fsync(file.fileno())
        return sha256_of(self.partial)

    def finish(self) -> None:
        """Give the file its name."""
        self.partial.replace(self.path)


def fill(
    target: Target,
    read: Callable[[str], np.ndarray],
    is_right: Callable[[str, np.ndarray], bool],
    *,
    resume: bool,
    stop: Callable[[], None] = lambda: None,
    workers: int = 2,
    title: str = "",
) -> None:
    """Put every tensor at its place: ``read(name)`` gives it, in our axis order.

    With ``resume``, those for which ``is_right(name, array)`` says yes are left. Raises what ``read`` raises, or
    KeyboardInterrupt, once all workers have stopped; ``stop()`` is called to make them.
    """
    from tqdm import tqdm

    def work(name: str) -> int:
        if not (resume and is_right(name, target.get(name))):
            target.put(name, read(name))
        return _nbytes(target.shapes[name])

    total = sum(map(_nbytes, target.shapes.values()))
    bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=None, dynamic_ncols=True, leave=False)
    with bar, interrupts_held() as look, ThreadPoolExecutor(workers) as pool:
        tasks = {pool.submit(work, name) for name in target.shapes}
        try:
            while tasks:
                look()
                done, tasks = wait(tasks, timeout=0.2, return_when=FIRST_COMPLETED)
                for task in done:
                    bar.update(task.result())
        except BaseException:
            stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def alone(path: Path, say: Callable[[str], None] = lambda line: None, *, locks: Path | None = None) -> Iterator[None]:
    """Only one process at a time works on ``path``; the others wait, and say so.

    Lock files are kept in ``locks``, else in the cache folder, or in the system's temporary one if that cannot be
    written.
    """
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    lock = _acquired(locks or cache_dir() / "locks", name, path, say)
    try:
        yield
    finally:
        lock.release()


def _acquired(folder: Path, name: str, path: Path, say: Callable[[str], None]) -> "FileLock":
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process works on {path}; waiting for it.")
        lock.acquire()
    except OSError:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        fallback = Path(tempfile.gettempdir()) / f"simclr-locks-{user}"
        if folder == fallback:
            raise
        return _acquired(fallback, name, path, say)
    return lock


def _nbytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape, dtype=np.int64))
