"""Strangers' pictures: five formats, limits that hold before anything is decoded, and one typed line for all else.

``read_upload`` trusts nothing: the file is taken apart by ``app.containers`` and only the part that makes the pixels
reaches a decoder of Pillow, by the name of its format. ``restrict_pillow`` and ``uploads_only`` are for what stands
before it: other code that calls ``Image.open``, and Gradio, which opens uploads and takes paths on its own.
"""

import ctypes
import io
import itertools
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.containers import Plain, UnusableError, plain
from zoo.transforms import read_image
from zoo.upright import upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 10_000_000
MAX_PIXELS = 25_000_000
LARGE_PIXELS = 4_000_000  # of these, LARGE_AT_ONCE are decoded at a time: each may take 0.4 GB for a second
LARGE_AT_ONCE = 2
_STRIP = 1_000_000  # pixels turned into RGB at a time: a quarter of the memory, and faster than all at once
_NAME = 60  # letters of a file's name that are repeated
_UNNAMED = "The picture"
_M_MMAP_THRESHOLD = -3  # malloc.h

_large = threading.BoundedSemaphore(LARGE_AT_ONCE)


class Refused(ValueError):  # noqa: N818  (a name for people: what became of the file)
    """A file that is not read. One printable line that names the file, without a folder; and a ``code``:

    "missing", "empty", "too_large_file", "format", "too_many_pixels", "size", "too_complex" or "damaged".
    """

    def __init__(self, code: str, line: str) -> None:
        super().__init__(line)
        self.code = code


def read_upload(source: str | Path | bytes, *, name: str = "") -> np.ndarray:
    """A stranger's file, or its bytes, as a uint8 array (H, W, 3): upright, RGB, without metadata.

    JPEG, PNG, WebP, and the first frame of GIF and BMP; at most 10 MB and 25 megapixels, read from the header. The
    format is what the first bytes say. Pixels are those of ``zoo.read_image``. ``name`` is what errors call the file.

    Raises Refused (a ValueError).
    """
    shown = shown_name(name or ("" if isinstance(source, bytes) else Path(source).name))
    try:
        data = source if isinstance(source, bytes) else _contents(Path(source))
        if not data:
            raise UnusableError("empty", "the file is empty")
        if len(data) > MAX_BYTES:
            raise UnusableError("too_large_file", f"more than the {MAX_BYTES / 1e6:.0f} MB allowed; make it smaller")
        picture = plain(data, max_pixels=MAX_PIXELS)
        with _slot(picture):
            return _decoded(picture)
    except UnusableError as problem:
        raise Refused(problem.code, f"{shown}: {problem}.") from None


def shown_name(name: str) -> str:
    """A stranger's name for a file, safe to repeat: without folders, printable, at most 60 letters."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in last).strip()
    if len(printable) > _NAME:
        printable = f"{printable[: _NAME - 13]}…{printable[-12:]}"
    return printable or _UNNAMED


def _contents(path: Path) -> bytes:
    """At most one byte more than is allowed; whatever is no file is not opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnusableError("missing", "no such file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise UnusableError("missing", "no such file") from None


@contextmanager
def _slot(picture: Plain) -> Iterator[None]:
    if picture.width * picture.height <= LARGE_PIXELS:
        yield
        return
    with _large:
        yield


def _decoded(picture: Plain) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture.data), formats=(picture.format,)) as opened:
            if opened.size != (picture.width, picture.height):
                raise UnusableError("damaged", "damaged: two sizes in one file")
            opened.load()
            image = upright(opened, picture.orientation)
            width, height = image.size
            pixels = np.empty((height, width, 3), np.uint8)
            step = max(1, _STRIP // width)
            for top, left in itertools.product(range(0, height, step), range(0, width, _STRIP)):
                box = (left, top, min(left + _STRIP, width), min(top + step, height))
                pixels[top : box[3], left : box[2]] = read_image(image.crop(box))
            return pixels
    except UnusableError:
        raise
    except Exception:  # decoders raise many things on damaged files
        raise UnusableError("damaged", "damaged: its pixels cannot be decoded") from None


def restrict_pillow() -> None:
    """From now on, ``Image.open`` in this process knows the five formats only, at most 25 megapixels, whoever calls it.

    Gradio opens uploads with every decoder that Pillow has before its caller is asked. Nothing brings the others back:
    neither ``Image.init`` nor a plugin that is imported later. Ghostscript is never started. To be called once, before
    a server starts and after a gallery was read that may hold other formats or larger pictures.
    """
    from PIL import EpsImagePlugin, Image, ImageFile

    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    for name in set(Image.OPEN) - set(FORMATS):
        del Image.OPEN[name]
    Image.register_open = _register_allowed
    EpsImagePlugin.gs_binary = False  # what its own search leaves when there is none
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns here, and refuses what is twice as much
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def pillow_is_restricted() -> bool:
    """Whether ``restrict_pillow`` was called in this process."""
    from PIL import Image

    return Image.register_open is _register_allowed


def _register_allowed(id: str, factory: Any, accept: Any = None) -> None:
    """In place of ``Image.register_open``: whatever is not allowed is not registered."""
    from PIL import Image

    name = id.upper()
    if name in FORMATS:
        if name not in Image.ID:
            Image.ID.append(name)
        Image.OPEN[name] = factory, accept


def steady_memory() -> None:
    """Give the memory of every large block back to the system as soon as it is free, where the C library is glibc.

    By itself glibc keeps blocks of up to 32 MB once one was freed, in an arena for each thread: a server that decodes
    large pictures in ten threads grew by 0.4 GB. To be called once, before threads start.
    """
    threshold = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if threshold is not None:
        threshold(_M_MMAP_THRESHOLD, 1 << 20)  # which also stops it from adapting


def uploads_only(component: Any) -> Any:
    """Make a Gradio ``Image``, ``File``, ``UploadButton`` or ``Gallery`` hand over paths of uploads, unopened.

    Gradio would open an image to look at it, fetch an address that a client names, and hand over any path of the
    server for an image or gallery whose data lack ``meta``. The value becomes a path or None; of a gallery, or of
    several files, a list of paths. Anything but a file in the upload folder is refused with the same words, whether it
    is there or not.

    Returns the component.
    """
    original = component.async_move_resource_to_block_cache

    async def without_addresses(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise _not_uploaded()
        kept: str | None = await original(path)
        return kept

    def paths(payload: Any) -> Any:
        return _paths(payload, folder=Path(component.GRADIO_CACHE))

    component.async_move_resource_to_block_cache = without_addresses
    component.preprocess = paths
    component.takes_uploads_only = True  # app.sessions makes it so again when an event has changed the component
    return component


def _paths(payload: Any, *, folder: Path) -> Any:
    """The path in a payload, or in each of its parts, checked; None if there is none."""
    if payload is None:
        return None
    if isinstance(payload, list | tuple):
        return [path for part in payload if (path := _paths(part, folder=folder)) is not None]
    for inner in ("root", "image", "video"):  # a list of files; a picture or video with its caption
        if hasattr(payload, inner):
            return _paths(getattr(payload, inner), folder=folder)
    if not payload.path:
        if getattr(payload, "url", None):
            raise _not_uploaded()
        return None
    try:
        real = Path(os.path.realpath(payload.path))
        inside = real.is_relative_to(os.path.realpath(folder)) and real.is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        inside = False
    if not inside:
        raise _not_uploaded()
    return str(real)


def _not_uploaded() -> Exception:
    import gradio as gr

    error: Exception = gr.Error(
        "Only uploaded files are read.", title="This picture cannot be used", print_exception=False
    )
    return error
