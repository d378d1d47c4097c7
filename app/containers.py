"""Picture files taken apart before a decoder sees them: format, size, orientation, and the picture without the rest.

What comes back is a file with nothing but the parts that make pixels: no metadata, profiles, comments, thumbnails or
later frames, and nothing behind the picture's end. So none of these can be a bomb, and a file is only what its first
bytes say that it is. All limits are of work, and far beyond what cameras and programs write.
"""

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from zoo.upright import exif_orientation

MAX_PARTS = 20_000  # chunks or segments; a 10 MB PNG in chunks of 4 KB has 2,500
MAX_BLOCKS = 200_000  # of at most 255 bytes, in a GIF; 10 MB have 40,000
MAX_SCANS = 100  # of a JPEG; a progressive one has 10, in four colours 18
MAX_SCANNED = 325_000_000  # scans times pixels, 13 at 25 megapixels: each passes over the whole picture, however short
MAX_RUNS = 1_000_000  # bytes of a run-length coded BMP: these are unpacked here, in Python


class UnusableError(Exception):
    """Why a file is not read: a code, and the reason in words."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Plain(NamedTuple):
    """A file that holds the picture only. ``orientation`` as in EXIF, 1 to 8; size before it is applied."""

    format: str  # Pillow's name
    width: int
    height: int
    orientation: int
    data: bytes


def plain(data: bytes, *, max_pixels: int) -> Plain:
    """The picture in a file, decoded by nobody yet.

    Raises UnusableError with the codes "format" (none of JPEG, PNG, WebP, GIF, BMP, or a rare kind of these),
    "too_many_pixels" (in the header), "too_complex" (more work than a picture takes) or "damaged" (cut or broken).
    """
    for magic, reader in _READERS:
        if magic.match(data):
            try:
                return reader(data, max_pixels)
            except (struct.error, IndexError):  # read past the end
                _damaged("it ends too early")
    raise UnusableError("format", "not a picture in one of JPEG, PNG, WebP, GIF, BMP")


def _damaged(reason: str) -> NoReturn:
    raise UnusableError("damaged", f"damaged: {reason}")


def _rare(reason: str) -> NoReturn:
    raise UnusableError("format", f"{reason}; save it as a plain JPEG or PNG")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        _damaged(f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise UnusableError(
            "too_many_pixels", f"{width} x {height} pixels is more than the {max_pixels:,} allowed; make it smaller"
        )


# JPEG

_FILL = re.compile(rb"\xff+")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker that is neither a stuffed byte, fill nor a restart
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic


def _jpeg(data: bytes, max_pixels: int) -> Plain:
    kept, at = [data[:2]], 2
    width = height = scans = 0
    orientation: int | None = None
    for _ in range(MAX_PARTS):
        fill = _FILL.match(data, at)
        if fill is None:
            _damaged("it ends too early" if at >= len(data) else "no marker where one must be")
        at = fill.end()
        marker = data[at]
        if marker == _EOI:
            if not scans:
                _damaged("no picture in it")
            return Plain("JPEG", width, height, orientation or 1, b"".join([*kept, b"\xff\xd9"]))
        if marker in (0x00, 0x01, _SOI) or 0xD0 <= marker <= 0xD7:
            _damaged("a marker where none may be")
        end = at + 1 + struct.unpack_from(">H", data, at + 1)[0]
        body = data[at + 3 : end]
        if end > len(data) or end < at + 3:
            _damaged("it ends too early")
        segment = b"\xff" + data[at:end]
        if marker in _FRAMES:
            if width:
                _damaged("two pictures in one")
            width, height = _jpeg_size(body, max_pixels)
            kept.append(segment)
        elif marker in _OTHER_FRAMES:
            _rare("a rare kind of JPEG (lossless, hierarchical or arithmetic)")
        elif (
            marker in _TABLES
            or (marker == 0xE0 and body[:5] == b"JFIF\0")
            or (marker == 0xEE and body[:5] == b"Adobe")  # both say which colours these are
        ):
            kept.append(segment)
        elif marker == 0xE1 and body[:6] == b"Exif\0\0" and orientation is None:
            orientation = exif_orientation(body)
        elif marker == _SOS:
            scans += 1
            if not width:
                _damaged("a scan without a frame")
            if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
                raise UnusableError("too_complex", f"a JPEG of {scans} scans or more; save it as a plain one")
            stop = _SCAN_END.search(data, end)
            if stop is None:
                _damaged("it ends too early")
            kept += [segment, data[end : stop.start()].rstrip(b"\xff")]  # without fill
            end = stop.start()
        at = end
    raise UnusableError("too_complex", f"a JPEG of more than {MAX_PARTS:,} segments")


def _jpeg_size(body: bytes, max_pixels: int) -> tuple[int, int]:
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if precision != 8 or components not in (1, 3, 4):
        _rare(f"a rare kind of JPEG ({components} colours of {precision} bits)")
    _check_size(width, height, max_pixels)
    return width, height


# PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of a colour type


def _png(data: bytes, max_pixels: int) -> Plain:
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    at, orientation = len(_PNG), 1
    for number in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            _damaged("it ends too early")
        body = data[at + 8 : end - 4]
        if (number == 0) != (kind == b"IHDR"):
            _damaged("no header, or two")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT") and zlib.crc32(body, zlib.crc32(kind)) != _u32(data, end - 4):
            _damaged("a wrong checksum")
        if kind == b"IHDR":
            width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", body)
            _check_size(width, height, max_pixels)
            if depth not in _DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
                _damaged("a header that makes no sense")
        if kind in (b"IHDR", b"PLTE", b"tRNS"):
            if kind in kept or pixels or len(body) > 768:
                _damaged("chunks that make no sense")
            kept[kind] = body
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"eXIf":
            orientation = exif_orientation(body)
        elif kind == b"IEND":
            if not pixels or (colour == 3 and b"PLTE" not in kept):
                _damaged("no picture in it")
            chunks = [*kept.items(), (b"IDAT", b"".join(pixels)), (b"IEND", b"")]
            return Plain("PNG", width, height, orientation, _PNG + b"".join(_png_chunk(*chunk) for chunk in chunks))
        elif not kind[0] & 0x20:  # an upper-case letter: not to be read without knowing what it is
            _rare("a rare kind of PNG")
        at = end
    raise UnusableError("too_complex", f"a PNG of more than {MAX_PARTS:,} chunks")


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", data, at)[0])


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


# GIF


def _gif(data: bytes, max_pixels: int) -> Plain:
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    head, control, blocks = data[:at], b"", 0
    for _ in range(MAX_PARTS):
        introducer = data[at]
        if introducer == 0x21:  # an extension
            end, blocks = _after_blocks(data, at + 2, blocks)
            if data[at + 1] == 0xF9 and data[at + 2] == 4:  # says which colour is transparent
                control = data[at:end] if end == at + 8 else b""
            at = end
        elif introducer == 0x2C:  # a frame
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if not width or not height:
                _damaged(f"{width} x {height} pixels")
            width, height = max(screen_width, left + width), max(screen_height, top + height)
            _check_size(width, height, max_pixels)
            end, _ = _after_blocks(data, at + 10 + _palette_bytes(flags) + 1, blocks)
            return Plain("GIF", width, height, 1, b"".join([head, control, data[at:end], b";"]))
        else:
            _damaged("no picture in it")
    raise UnusableError("too_complex", f"a GIF of more than {MAX_PARTS:,} parts before its picture")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int, before: int) -> tuple[int, int]:
    """Where the blocks from ``at`` end, and how many there were up to there."""
    for blocks in range(before, MAX_BLOCKS):
        size = data[at]
        at += size + 1
        if not size:
            return at, blocks
    raise UnusableError("too_complex", f"a GIF of more than {MAX_BLOCKS:,} blocks")


# WebP

_KEEP = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # profile, EXIF, XMP


def _webp(data: bytes, max_pixels: int) -> Plain:
    stop = 8 + struct.unpack_from("<I", data, 4)[0]
    if stop > len(data):
        _damaged("it ends too early")
    kept: list[bytes] = []
    at, orientation, width, height, whole = 12, 1, 0, 0, False
    for _ in range(MAX_PARTS):
        if at + 8 > stop:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if at + 8 + length > stop:
            _damaged("it ends too early")
        body = data[at + 8 : at + 8 + length]
        if not kept:
            width, height = _webp_size(kind, body)
            _check_size(width, height, max_pixels)
            if kind == b"VP8X":
                kept.append(_webp_chunk(kind, bytes([body[0] & ~_METADATA_FLAGS]) + body[1:10]))
        if kind in _KEEP and not whole:
            kept.append(_webp_chunk(kind, body))
            whole = kind in (b"VP8 ", b"VP8L", b"ANMF")  # the picture, or the first of several
        elif kind == b"EXIF":
            orientation = exif_orientation(body)
        at = end
    else:
        raise UnusableError("too_complex", f"a WebP of more than {MAX_PARTS:,} chunks")
    if not whole:
        _damaged("no picture in it")
    chunks = b"".join(kept)
    return Plain("WEBP", width, height, orientation, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return _damaged("no picture in it")


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)


# BMP

_OLD_HEADER, _HEADERS = 12, (40, 52, 56, 64, 108, 124)
_RAW, _RUNS = (0, 3), {1: 8, 2: 4}  # as it is, with colour masks; run-length coded, and the bits of a pixel then


def _bmp(data: bytes, max_pixels: int) -> Plain:
    offset, header = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 14)[0]
    compression = colours = 0
    if header == _OLD_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif header in _HEADERS:
        width, height, _, bits, compression, _, _, _, colours = struct.unpack_from("<iiHHIIiiI", data, 18)
    else:
        _rare("not a picture in one of JPEG, PNG, WebP, GIF, BMP")
    _check_size(width, abs(height), max_pixels)
    if compression not in (*_RAW, *_RUNS) or bits != _RUNS.get(compression, bits) or bits not in (1, 4, 8, 16, 24, 32):
        _rare("a rare kind of BMP")
    if colours > 256 and bits <= 8:
        _damaged("more colours than there can be")
    palette_at, entry = 14 + header, 3 if header == _OLD_HEADER else 4
    palette = entry * (colours or 1 << bits) if bits <= 8 else 0
    if offset == palette_at:  # some writers forget the palette
        offset += palette
    if offset < palette_at:
        _damaged("pixels in the header")
    if compression in _RUNS:
        if height < 0:
            _rare("a rare kind of BMP")
        colour_table = data[palette_at : palette_at + palette].ljust(1024, b"\0")[:1024]
        return Plain("BMP", width, height, 1, _unpacked(data[offset:], width, height, bits, colour_table))
    end = offset + (width * bits + 31) // 32 * 4 * abs(height)
    if end > len(data):
        _damaged("it ends too early")
    return Plain("BMP", width, abs(height), 1, data[:end])


def _unpacked(runs: bytes, width: int, height: int, bits: int, colour_table: bytes) -> bytes:
    """A run-length coded BMP as one of 8 bits that is not; what the runs leave out gets the first colour."""
    if len(runs) > MAX_RUNS:
        raise UnusableError("too_complex", f"a run-length coded BMP of more than {MAX_RUNS:,} bytes; save it as a PNG")
    stride = (width + 3) // 4 * 4
    rows = bytearray(stride * height)
    at = x = y = 0
    while y < height:
        if at + 2 > len(runs):
            if y == height - 1 and x >= width:
                break
            _damaged("it ends too early")
        count, value = runs[at], runs[at + 1]
        at += 2
        if count:
            pair = bytes((value,)) * count if bits == 8 else bytes((value >> 4, value & 15)) * (count // 2 + 1)
            fits = min(count, width - x)
            if fits > 0:
                rows[y * stride + x : y * stride + x + fits] = pair[:fits]
            x += count
        elif value == 0:  # end of the row
            x, y = 0, y + 1
        elif value == 1:  # end of the picture
            break
        elif value == 2:  # a jump
            x, y = x + runs[at], y + runs[at + 1]
            at += 2
            if x > width or y >= height:
                _damaged("a jump out of the picture")
        else:  # pixels as they are, padded to two bytes
            size = value * bits // 8 + (value * bits % 8 > 0)
            raw = runs[at : at + size]
            if len(raw) < size:
                _damaged("it ends too early")
            if bits == 4:
                raw = bytes(nibble for byte in raw for nibble in (byte >> 4, byte & 15))
            fits = min(value, width - x)
            if fits > 0:
                rows[y * stride + x : y * stride + x + fits] = raw[:fits]
            x += value
            at += size + size % 2
    head = struct.pack("<2sIHHI", b"BM", 1078 + len(rows), 0, 0, 1078)
    return b"".join(
        [head, struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, len(rows), 0, 0, 256, 0), colour_table, rows]
    )


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes, int], Plain]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(re.escape(_PNG)), _png),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"RIFF[\x00-\xff]{4}WEBP"), _webp),
    (re.compile(rb"BM"), _bmp),
)
