"""Images in, arrays out: reading pictures safely and the authors' evaluation transform, in numpy.

Pillow is imported at the first picture that is no array.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from zoo.upright import exif_orientation, upright

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray"

MAX_PIXELS = 100_000_000  # a 100-megapixel picture decodes to 300 MB; beyond that it is a mistake or an attack
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")  # none whose reader starts other programs
CROP_FRACTION = 0.875  # of the shorter side (code: data_util.py, CROP_PROPORTION)
_TABLE = 1024  # TensorFlow looks cubic weights up at multiples of 1/1024
_CUBIC_A = -0.75
_HEADER = 1 << 16  # bytes read of a file at first
_opening = threading.Lock()


def read_image(image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A path, PIL image or uint8 array as a uint8 array (H, W, 3).

    Files are turned upright as their EXIF orientation says; every mode becomes RGB (16-bit greys are scaled,
    transparency is laid on white).

    Raises ValueError, in one line, for what cannot be read, is truncated, is in none of ``FORMATS``, or has more than
    ``max_pixels`` pixels, or twice ``Image.MAX_IMAGE_PIXELS`` (checked from the header, before anything is decoded).
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"An image array must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}."
            )
        return image
    from PIL import Image, UnidentifiedImageError

    name = "The PIL image" if isinstance(image, Image.Image) else str(image)
    try:
        with nullcontext(image) if isinstance(image, Image.Image) else _opened(image) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise _NotTakenError(
                    f"{width} x {height} pixels is more than the {max_pixels:,} allowed; make it smaller."
                )
            return np.asarray(_to_rgb(opened))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image in a known format ({', '.join(_formats())}).") from None
    except Image.DecompressionBombError:
        allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # Pillow's own, which a process may lower
        raise ValueError(f"{name}: more than the {allowed:,} pixels allowed here; make it smaller.") from None
    except _NotTakenError as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:  # decoders raise many things on damaged files
        reason = str(error) if isinstance(error, OSError) else type(error).__name__
        raise ValueError(f"{name}: cannot be read as an image ({reason}).") from None


@contextmanager
def _opened(path: str | Path) -> Iterator["Image.Image"]:
    from PIL import Image

    with io.BufferedReader(io.FileIO(path), _HEADER) as file:
        start = file.peek(12)[:12]  # all threads at once wait for the disk here,
        whole = start[:4] == b"RIFF" or start[4:8] == b"ftyp"  # as for WebP and AVIF, which Pillow reads whole to open
        source = io.BytesIO(file.read()) if whole else file
        with _opening, warnings.catch_warnings():  # and here, as the filters are the process's, for each other
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixels are counted next
            opened = Image.open(source, formats=_formats())
        with opened:
            opened.info.pop("xmp", None)  # by which Pillow would turn a TIFF
            yield opened


class _NotTakenError(Exception):
    """An image that could be decoded, and is not: why, and what to do."""


def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()  # once; but a process may take decoders away later
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    kind = image.format
    image.load()  # the EXIF data of a PNG may follow its pixels
    image = upright(image, exif_orientation(image.info.get("exif") or b""))
    if image.mode == "F" or (image.mode == "I" and kind == "TIFF"):
        raise _NotTakenError("pixels of unknown range (floating point or 32 bits); save it with 8 or 16 bits each.")
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray((grey / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def central_crop(height: int, width: int, *, fraction: float = CROP_FRACTION) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the evaluation crop for a square output (code: data_util.center_crop)."""
    side = max(1, int(np.rint(fraction * min(height, width))))  # rint: half to even, as TensorFlow's
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def bicubic_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and weights, each (4, target), of TensorFlow 1's ``resize_bicubic`` from ``source`` to ``target`` pixels.

    Cubic with a = -0.75, no half-pixel centres, borders clamped, no antialias. The source coordinate is computed in
    float32 and its fraction rounded to 1/1024, as there: without that the result is 6e-4 off.
    """
    scale = np.float32(source) / np.float32(target)
    position = np.arange(target, dtype=np.float32) * scale
    floor = np.floor(position).astype(np.int64)
    x = np.rint((position - floor.astype(np.float32)) * _TABLE).astype(np.float64) / _TABLE
    a = _CUBIC_A

    def near(t: np.ndarray) -> np.ndarray:  # |distance| <= 1
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:  # 1 <= |distance| <= 2
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = np.stack([far(x + 1), near(x), near(1 - x), far(2 - x)]).astype(np.float32)
    rows = np.clip(floor + np.arange(-1, 3)[:, None], 0, source - 1)
    return rows, weights


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) uint8 or float to float32 (height, width, C), values unscaled and unclipped."""
    rows, weights = bicubic_taps(image.shape[0], height)
    tall = sum(w[:, None, None] * image[r].astype(np.float32) for r, w in zip(rows, weights, strict=True))
    columns, weights = bicubic_taps(image.shape[1], width)
    return sum(w[:, None] * tall[:, c] for c, w in zip(columns, weights, strict=True))


def preprocess(image: ImageLike, size: int = 224, *, crop: float | None = CROP_FRACTION) -> np.ndarray:
    """The authors' evaluation transform: float32 (3, size, size) in [0, 1], no mean or deviation taken out.

    Central crop of 87.5 % of the shorter side (``crop``: of another share, 0 to 1), then TensorFlow 1's bicubic resize
    (code: data_util.py). At sizes of 32 and below, or with ``crop=None``, there is neither crop nor resize and the
    image must have that size already.

    Raises ValueError for an unreadable image, or for one of another size where there is no resize.
    """
    pixels = read_image(image)
    if size <= 32 or crop is None:
        if pixels.shape[:2] != (size, size):
            raise ValueError(
                f"A model for {size} x {size} images takes images of exactly that size, "
                f"not {pixels.shape[1]} x {pixels.shape[0]}; resize it first."
            )
        resized = pixels.astype(np.float32)
    else:
        top, left, height, width = central_crop(*pixels.shape[:2], fraction=crop)
        resized = resize_bicubic(pixels[top : top + height, left : left + width], size, size)
    return np.ascontiguousarray((resized / 255.0).clip(0.0, 1.0).transpose(2, 0, 1), dtype=np.float32)
