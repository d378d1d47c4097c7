"""Which way up a picture was taken: by its EXIF orientation alone, as browsers show it (Pillow also obeys XMP)."""

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that EXIF data says; 1 where they say none or make no sense."""
    while exif.startswith(b"Exif\0\0"):  # some programs write it twice
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(min(count, 1000)):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                form = {3: "H", 4: "I"}.get(kind, "B")
                (value,) = struct.unpack_from(order + form, exif, start + 10 + 12 * entry)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def upright(image: "Image.Image", orientation: int) -> "Image.Image":
    """The picture turned or flipped so that an orientation of 1 to 8 is undone; 1 leaves it as it is."""
    from PIL.Image import Transpose

    if orientation == 1:
        return image
    return image.transpose(
        (
            Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
            Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
        )[orientation - 2]
    )  # fmt: skip
