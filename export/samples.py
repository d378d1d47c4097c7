"""Pictures to calibrate, compare and measure with: a folder, a list, or preprocessed arrays, in batches."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np

from export.graph import ImageInput
from zoo.folders import find_files
from zoo.transforms import ImageLike, preprocess

Source: TypeAlias = "str | Path | Sequence[ImageLike] | np.ndarray"

_KEPT_BYTES = 512 * 2**20  # of preprocessed pictures that are kept, and not read again


class Samples:
    """Pictures of one size. ``source``: a folder (all pictures in it and below), a list of paths, PIL images and uint8
    arrays, or float32 (N, 3, S, S) in [0, 1], preprocessed. ``most``: take at most so many, evenly spaced.

    Pictures that cannot be read are left out with a warning. Raises ValueError, in one line that begins with ``what``,
    for a source that is missing, has no picture, or is something else.
    """

    def __init__(self, source: Source, size: int, *, what: str, most: int | None = None) -> None:
        self.size, self.what = size, what
        self._items: Sequence[ImageLike] | np.ndarray
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = None
        if isinstance(source, str | Path):
            if not Path(source).is_dir():
                raise ValueError(f"{what}={str(source)!r}: no such folder of pictures.")
            self._items = find_files([source])
        elif isinstance(source, np.ndarray):
            self._items = _preprocessed(source, size, what)
        elif isinstance(source, Sequence):
            self._items = source
        else:
            raise ValueError(f"{what}: a folder, a list of pictures or an array, not {type(source).__name__}.")
        if not len(self):
            raise ValueError(f"{what}: no pictures given.")
        if most is not None:
            self._items = self.at_most(most)._items

    def __len__(self) -> int:
        return len(self._items)

    def at_most(self, most: int) -> "Samples":
        """These, or ``most`` of them, evenly spaced."""
        if len(self) <= most:
            return self
        return self._of(np.linspace(0, len(self) - 1, most).astype(int))

    def part(self, start: int, step: int) -> "Samples":
        """Every ``step``-th picture from the ``start``-th."""
        return self._of(np.arange(start, len(self), step))

    def without(self, other: "Samples") -> "Samples":
        """Those whose files are not among the other's. Raises ValueError if none is left."""
        theirs = {_file(item) for item in other._items}
        places = [
            place for place, item in enumerate(self._items) if (file := _file(item)) is None or file not in theirs
        ]
        if not places:
            raise ValueError(f"{self.what}: the same pictures as {other.what}; leave {other.what} out, or give others.")
        return self._of(np.array(places))

    def _of(self, places: np.ndarray) -> "Samples":
        some = object.__new__(Samples)
        some.size, some.what, some._kept = self.size, self.what, None
        items = self._items
        some._items = items[places] if isinstance(items, np.ndarray) else [items[place] for place in places]
        return some

    def batches(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places (n,) and pictures, float32 (n, 3, S, S) in [0, 1], up to ``count`` at a time."""
        if self._kept is not None:
            yield from self._split(self._kept, count)
            return
        room = len(self) * 3 * self.size**2 * 4 <= _KEPT_BYTES
        kept = []
        for batch in self._read(count):
            if room:
                kept.append(batch)
            yield batch
        if room:
            self._kept = kept

    @staticmethod
    def _split(kept: list[tuple[np.ndarray, np.ndarray]], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for places, pictures in kept:
            for start in range(0, len(places), count):
                yield places[start : start + count], pictures[start : start + count]

    def first(self, count: int) -> np.ndarray:
        """``count`` pictures, float32 (count, 3, S, S); if there are fewer, they come again and again."""
        found: list[np.ndarray] = []
        for _, pictures in self._read(min(count, 32)):
            found.extend(pictures)
            if len(found) >= count:
                break
        return np.stack([found[place % len(found)] for place in range(count)])

    def _read(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if isinstance(self._items, np.ndarray):
            for start in range(0, len(self), count):
                places = np.arange(start, min(start + count, len(self)))
                yield places, np.ascontiguousarray(self._items[places], np.float32)
            return
        unread: list[str] = []
        with ThreadPoolExecutor(2) as readers:
            for start in range(0, len(self), count):
                outcomes = list(readers.map(self._one, self._items[start : start + count]))
                bad = [outcome for outcome in outcomes if isinstance(outcome, str)]
                unread += bad
                found = [start + k for k, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
                if found:
                    yield np.array(found), np.stack([outcomes[place - start] for place in found])
        if len(unread) == len(self):
            raise ValueError(f"{self.what}: none of the {len(self)} pictures can be read ({unread[0]}).")
        if unread:
            warnings.warn(f"{self.what}: {len(unread)} pictures cannot be read, such as {unread[0]}", stacklevel=2)

    def _one(self, item: ImageLike) -> np.ndarray | str:
        try:
            return preprocess(item, self.size)
        except ValueError as error:
            return str(error)


def _preprocessed(array: np.ndarray, size: int, what: str) -> np.ndarray:
    """An array of preprocessed pictures, once it is one."""
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != (3, size, size):
        raise ValueError(
            f"{what}: an array of preprocessed pictures is float32 (N, 3, {size}, {size}), not {array.dtype} "
            f"{array.shape}."
        )
    for picture in array:
        if not (picture.min() >= 0 and picture.max() <= 1):  # NaN too
            raise ValueError(f"{what}: values from 0 to 1, not {picture.min():.4g} to {picture.max():.4g}.")
    return array


def _file(item: object) -> Path | None:
    return Path(item).resolve() if isinstance(item, str | Path) else None


def as_input(pictures: np.ndarray, image_input: ImageInput) -> np.ndarray:
    """Pictures, float32 (N, 3, S, S) in [0, 1], as a graph takes them."""
    if image_input == "float":
        return pictures
    return np.ascontiguousarray(np.rint(pictures * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def textures(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Generated images, float32 (count, 3, size, size) in [0, 1]: waves of every scale in colours, with some noise."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(0, 1, size, dtype=np.float32)
    y, x = grid[:, None], grid[None, :]
    images = np.empty((count, 3, size, size), np.float32)
    for image in images:
        image[:] = 0.5 + 0.05 * generator.standard_normal((3, size, size))
        for _ in range(6):
            across, down = generator.normal(0, 2.0 ** generator.integers(1, 6), 2)
            wave = np.sin(2 * np.pi * (across * x + down * y) + generator.uniform(0, 7))
            image += generator.uniform(-0.2, 0.2, (3, 1, 1)) * wave
    return images.clip(0, 1)
