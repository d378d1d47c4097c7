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

    Pictures of a folder that cannot be read are left out with a warning; of a list they raise ValueError. Raises
    ValueError, in one line that begins with ``what``, for a source that is missing or has no picture.
    """

    def __init__(self, source: Source, size: int, *, what: str, most: int | None = None) -> None:
        self.size, self.what, self._is_folder = size, what, isinstance(source, str | Path)
        if isinstance(source, str | Path):
            if not Path(source).is_dir():
                raise ValueError(f"{what}={str(source)!r}: no such folder of pictures.")
            items: Sequence[ImageLike] | np.ndarray = find_files([source])
        elif isinstance(source, np.ndarray) and (source.ndim != 4 or source.shape[1:] != (3, size, size)):
            raise ValueError(
                f"{what}: an array of preprocessed pictures is float32 (N, 3, {size}, {size}), not {source.shape}."
            )
        else:
            items = source
        if not len(items):
            raise ValueError(f"{what}: no pictures given.")
        if most is not None and len(items) > most:
            places = np.linspace(0, len(items) - 1, most).astype(int)
            items = items[places] if isinstance(items, np.ndarray) else [items[place] for place in places]
        self._items = items
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def at_most(self, most: int) -> "Samples":
        """These, or as many of them, evenly spaced."""
        return self.part(0, -(-len(self) // most))

    def part(self, start: int, step: int) -> "Samples":
        """Every ``step``-th picture from the ``start``-th."""
        part = object.__new__(Samples)
        part.size, part.what, part._is_folder, part._kept = self.size, self.what, self._is_folder, None
        part._items = self._items[start::step]
        return part

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
                if bad and not self._is_folder:
                    raise ValueError(f"{self.what}: {bad[0]}")
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
