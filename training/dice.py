"""The dice of the augmentation, for whole batches: a view's are a function of (seed, epoch, image, view).

The generator is Philox4x64-10 (Salmon et al. 2011), a function of a key and a counter: block b of a view is what
``numpy.random.Philox(key=[seed, 0], counter=[b, view, index, epoch])`` gives as its first four numbers. Every number
has a fixed place in the blocks, so all views of a batch are drawn at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any, Self

import numpy as np

ORDERS = np.array(list(permutations(range(4))))  # (24, 4): of brightness, contrast, saturation, hue

_MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], dtype=np.uint64)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def uniforms(blocks: Sequence[int], *, seed: int, epoch: int, indices: np.ndarray, view: int) -> np.ndarray:
    """Numbers in [0, 1), (B, len(blocks), 4) float64: four for each block of each image in ``indices`` (B,)."""
    shape = len(indices), len(blocks)
    counter = np.empty((4, *shape), dtype=np.uint64)
    counter[0] = np.asarray(blocks, dtype=np.uint64) + np.uint64(1)  # numpy's counts up before it draws
    counter[1], counter[2], counter[3] = view, indices[:, None], epoch
    return (_philox(counter, seed) >> np.uint64(11)).transpose(1, 2, 0) * 2.0**-53


def _philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Ten rounds on counters (4, ...) under the key (key, 0)."""
    keys = [key % 2**64, 0]
    for _ in range(10):
        high, low = _multiply(counter[::2])
        counter = np.stack(
            [
                high[1] ^ counter[1] ^ np.uint64(keys[0]),
                low[1],
                high[0] ^ counter[3] ^ np.uint64(keys[1]),
                low[0],
            ]
        )
        keys = [(k + step) % 2**64 for k, step in zip(keys, _KEY_STEPS, strict=True)]
    return counter


def _multiply(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The high and the low 64 bits of x (2, ...) times the two multipliers, from products of 32-bit halves."""
    by = _MULTIPLIERS.reshape(2, *[1] * (x.ndim - 1))
    x_high, x_low, by_high, by_low = x >> _HALF, x & _LOW, by >> _HALF, by & _LOW
    cross = x_high * by_low + (x_low * by_low >> _HALF)
    other = x_low * by_high + (cross & _LOW)
    return x_high * by_high + (cross >> _HALF) + (other >> _HALF), x * by


# ---- crop ------------------------------------------------------------------------------------------------------------

_ASPECTS = (3 / 4, 4 / 3)
_AREAS = (0.08, 1.0)
_MIN_COVERED = 0.1  # of the image, which is the one "object"
_TRIES = 100


def crop_of(numbers: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One try at a random crop for each image (tf.image.sample_distorted_bounding_box).

    ``numbers`` (B, 4) in [0, 1) choose aspect, height, top and left; ``shapes`` (B, 2) are heights and widths. Gives
    the crops (B, 4) as top, left, height, width, and (B,) whether the try counts. The aspect is uniform in (3/4, 4/3);
    the height is uniform among those for which the area lies in (0.08, 1) and the crop fits; crops of less than a tenth
    of the image are to be drawn again (``min_object_covered`` 0.1).
    """
    height, width = shapes.T
    least, most = _AREAS[0] * height * width, _AREAS[1] * height * width
    aspect = _ASPECTS[0] + (_ASPECTS[1] - _ASPECTS[0]) * numbers[:, 0]
    shortest, tallest = np.rint((least / aspect) ** 0.5), np.rint((most / aspect) ** 0.5)  # half to even, as lrintf
    narrower = np.floor((width + 0.5 - 1e-7) / aspect)
    narrower -= np.rint(narrower * aspect) > width
    tallest = np.minimum(np.where(np.rint(tallest * aspect) > width, narrower, tallest), height)
    shortest = np.minimum(shortest, tallest)
    h = shortest + np.floor(numbers[:, 1] * (tallest + 1 - shortest))
    h += h * np.rint(h * aspect) < least  # rounding alone must not fail a crop
    h -= h * np.rint(h * aspect) > most
    w = np.rint(h * aspect)
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    counts = fits & (h * w >= np.maximum(least, _MIN_COVERED * height * width)) & (h * w <= most)
    # Offsets stop one short of the last place where the crop fits, as TensorFlow's do.
    top, left = (np.floor(numbers[:, k] * np.maximum(1, room)) for k, room in ((2, height - h), (3, width - w)))
    return np.stack([top, left, h, w], axis=1).astype(np.int64), counts


def sample_crops(
    shapes: np.ndarray, *, seed: int, epoch: int, indices: np.ndarray, view: int, first_block: int = 0
) -> np.ndarray:
    """Random crops (B, 4), top, left, height, width, of images of ``shapes`` (B, 2); after 100 tries the whole image.

    Try t takes the numbers of block ``first_block`` + t. On 256 x 256 the mean area is 0.42 and the median 0.38.
    """
    shapes = np.asarray(shapes, dtype=np.int64).reshape(-1, 2)
    crops = np.concatenate([np.zeros_like(shapes), shapes], axis=1)
    left = np.arange(len(shapes))
    for block in range(first_block, first_block + _TRIES):
        numbers = uniforms([block], seed=seed, epoch=epoch, indices=indices[left], view=view)[:, 0]
        found, counts = crop_of(numbers, shapes[left])
        crops[left[counts]] = found[counts]
        left = left[~counts]
        if not len(left):
            break
    return crops


# ---- the whole -------------------------------------------------------------------------------------------------------

_PARAMETER_BLOCKS = 3


@dataclass(frozen=True)
class View:
    """The random parameters of one view of one image."""

    crop: tuple[int, int, int, int]  # top, left, height, width
    flip: bool
    order: tuple[int, ...]  # of brightness, contrast, saturation, hue (0..3); empty: no jitter
    factors: tuple[float, ...]  # of these four; the hue's is a shift in turns
    grayscale: bool
    sigma: float  # of the blur, in pixels; 0: none


@dataclass(frozen=True)
class Views:
    """The random parameters of a batch of views; each is also to be had as a ``View``."""

    crops: np.ndarray  # (B, 4) int64: top, left, height, width
    flip: np.ndarray  # (B,) bool
    order: np.ndarray  # (B,) int64: a row of ORDERS, -1: no jitter
    factors: np.ndarray  # (B, 4) float32: brightness, contrast, saturation; shift of the hue in turns
    grayscale: np.ndarray  # (B,) bool
    sigma: np.ndarray  # (B,) float32: of the blur in pixels, 0: none

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, place: int) -> View:
        order = int(self.order[place])
        top, left, height, width = self.crops[place].tolist()
        return View(
            crop=(top, left, height, width),
            flip=bool(self.flip[place]),
            order=() if order < 0 else tuple(ORDERS[order].tolist()),
            factors=tuple(self.factors[place].tolist()),
            grayscale=bool(self.grayscale[place]),
            sigma=float(self.sigma[place]),
        )

    def __iter__(self) -> Iterator[View]:
        return (self[place] for place in range(len(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One batch after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def draw_views(
    shapes: np.ndarray,
    *,
    strength: float,
    color: bool,
    blur: bool,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    view: int,
) -> Views:
    """The parameters of one view of each image; ``shapes`` (B, 2) are heights and widths (paper appendix, v2's code).

    Block 0 has flip, jitter, grayscale and blur; block 1 the four factors; block 2 the blur's sigma and the order; the
    blocks from 3 on the tries at a crop.
    """
    indices = np.asarray(indices, dtype=np.uint64)
    key: dict[str, Any] = {"seed": seed, "epoch": epoch, "indices": indices, "view": view}
    dice, factors, rest = uniforms(range(_PARAMETER_BLOCKS), **key).transpose(1, 0, 2)  # (B, 4) each
    low = max(0.0, 1 - 0.8 * strength), 1 - 0.8 * strength, 1 - 0.8 * strength, -0.2 * strength
    high = 1 + 0.8 * strength, 1 + 0.8 * strength, 1 + 0.8 * strength, 0.2 * strength
    jitter = (dice[:, 1] < 0.8) & color
    return Views(
        crops=sample_crops(shapes, **key, first_block=_PARAMETER_BLOCKS),
        flip=dice[:, 0] < 0.5,
        order=np.where(jitter, np.floor(rest[:, 1] * len(ORDERS)).astype(np.int64), -1),
        factors=(low + (np.array(high) - low) * factors).astype(np.float32),
        grayscale=(dice[:, 2] < 0.2) & color,
        sigma=np.where((dice[:, 3] < 0.5) & blur, 0.1 + 1.9 * rest[:, 0], 0).astype(np.float32),
    )
