"""Hostile pictures: a corpus of files whose answer is known, and what reads it, in one process or over HTTP.

    python tests/hostile.py                    every file through read_upload, in this process
    python tests/hostile.py --mutants 20000    then as many mutants more
    python tests/hostile.py --http             every file through the running app, over HTTP on loopback

A file either has a picture, known from how it was made and not from reading it, or must be refused with one of some
codes; what was only damaged somewhere may end either way, but in no other. The corpus is a function of the seed.
"""

import argparse
import io
import os
import resource
import struct
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from app.uploads import MAX_BYTES, Refused, read_upload, steady_memory

SECONDS = 1.0  # for one file
GROWTH = 50e6  # bytes that the process may grow over the corpus
CODES = frozenset(
    ("missing", "empty", "too_large_file", "format", "too_many_pixels", "too_complex", "damaged", "answer")
)
REFUSALS = CODES - {"answer"}


class Case(NamedTuple):
    """A file. ``ends`` are the codes it may end in, "answer" among them if it may be read; then as ``pixels``."""

    kind: str
    name: str
    data: bytes
    ends: frozenset[str]
    pixels: np.ndarray | None = None  # uint8 (H, W, 3)
    tolerance: float = 0.0  # of the mean absolute difference; of a single value it is ten times that


def _answer(kind: str, name: str, data: bytes, pixels: np.ndarray, tolerance: float = 0.0) -> Case:
    return Case(kind, name, data, frozenset(["answer"]), pixels, tolerance)


def _refusal(kind: str, name: str, data: bytes, *codes: str) -> Case:
    return Case(kind, name, data, frozenset(codes) or REFUSALS)


# Pixels and their files, from small parts to the whole


def smooth(rng: Random, height: int, width: int) -> np.ndarray:
    """A picture that lossy formats keep: waves. uint8 (H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = [
        127 + 100 * np.sin(x * rng.uniform(0.02, 0.12) + y * rng.uniform(0.02, 0.12) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return np.stack(waves, 2).round().astype(np.uint8)


def noise(rng: Random, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(pixels: np.ndarray, form: str, *, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()) if mode else Image.fromarray(pixels)
    image.save(file, form, **options)
    return file.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.reshape(*values.shape[:2], 1), 3, 2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Laid on white, in exact arithmetic."""
    share = alpha.reshape(*alpha.shape[:2], 1).astype(np.float64) / 255
    return (rgb * share + 255 * (1 - share)).round().astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG = b"\x89PNG\r\n\x1a\n"


def png_header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(values: np.ndarray, *, depth: int = 8, colour: int = 2, interlace: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of values (H, W, channels) of ``depth`` bits, unfiltered; ``extra`` chunks go before the pixels."""
    height, width = values.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlace:  # Adam7: first row, first column, row step, column step
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b""
    for top, left, down, right in passes:
        part = values[top::down, left::right]
        if part.size:
            raw += b"".join(b"\0" + _packed(row.reshape(-1), depth) for row in part)
    head = png_header(width, height, depth, colour, int(interlace))
    return head + extra + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row[:, None].astype(np.uint8) >> np.arange(depth - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(bits.reshape(-1)).tobytes()


def flat_png(width: int, height: int, *, depth: int = 1, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size, written without holding its pixels; of ``rows`` rows only if that is given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row * n) for n in _portions(height if rows is None else rows, len(row)))
    return png_header(width, height, depth, colour) + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")


def _portions(rows: int, row_bytes: int) -> Iterator[int]:
    most = max(1, (1 << 20) // row_bytes)
    while rows > 0:
        yield min(most, rows)
        rows -= most


def bmp(pixels: np.ndarray, *, header: int = 40, bits: int = 24, top_down: bool = False) -> bytes:
    """An uncompressed BMP of RGB pixels, 24 or 32 bits."""
    height, width = pixels.shape[:2]
    values = pixels[..., ::-1]
    if bits == 32:
        values = np.concatenate([values, np.zeros((height, width, 1), np.uint8)], 2)
    rows = [row.tobytes().ljust((width * bits + 31) // 32 * 4, b"\0") for row in (values if top_down else values[::-1])]
    body = b"".join(rows)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        fields = (header, width, -height if top_down else height, 1, bits, 0, len(body), 0, 0, 0, 0)
        info = struct.pack("<IiiHHIIiiII", *fields).ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


def run_length_bmp(indices: np.ndarray, palette: np.ndarray, bits: int, rng: Random) -> bytes:
    """A BMP in runs, and in stretches of pixels as they are, of indices (H, W) into palette (colours, 3)."""
    body = b""
    for row in indices[::-1]:
        at = 0
        while at < len(row):
            if rng.random() < 0.3 and len(row) - at >= 3:
                part = row[at : at + min(rng.randrange(3, 20), len(row) - at)]
                raw = bytes(part.tolist())
                if bits == 4:
                    padded = raw + b"\0" * (len(raw) % 2)
                    raw = bytes(high << 4 | low for high, low in zip(padded[::2], padded[1::2], strict=True))
                body += bytes([0, len(part)]) + raw + b"\0" * (len(raw) % 2)
                at += len(part)
            else:
                length = 1
                while at + length < len(row) and length < 255 and row[at + length] == row[at]:
                    length += 1
                value = int(row[at])
                body += bytes([length, value if bits == 8 else value << 4 | value])
                at += length
        body += b"\0\0"
    body += b"\0\1"
    table = b"".join(bytes([*colour[::-1].tolist(), 0]) for colour in palette)
    compression = 1 if bits == 8 else 2
    info = (40, indices.shape[1], indices.shape[0], 1, bits, compression, len(body), 0, 0, len(palette), 0)
    offset = 54 + len(table)
    head = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", *info) + table + body


def exif(orientation: int, *, order: str = "<", kind: int = 3) -> bytes:
    """EXIF data with an orientation, as ``Exif`` and a TIFF of one entry."""
    value = struct.pack(order + "HH" if kind == 3 else order + "I", *([orientation, 0] if kind == 3 else [orientation]))
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1)
    return b"Exif\0\0" + tiff + value + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments at its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_chunks(file: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return file[:33] + b"".join(chunks) + file[33:]


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at < len(file):
        kind, length = struct.unpack_from("<4sI", file, at)
        found.append((kind, file[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def with_webp_exif(file: bytes, data: bytes, width: int, height: int) -> bytes:
    """A still WebP in its extended form, with EXIF data."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    picture = [webp_chunk(kind, body) for kind, body in webp_chunks(file) if kind in (b"VP8 ", b"VP8L")]
    return webp(webp_chunk(b"VP8X", b"\x08\0\0\0" + sizes), *picture, webp_chunk(b"EXIF", data))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels of a picture that looks like ``pixels`` under an EXIF orientation: its definition, undone."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    row, column = {  # where the pixel seen at (y, x) is stored
        1: (y, x), 2: (y, width - 1 - x), 3: (height - 1 - y, width - 1 - x), 4: (height - 1 - y, x),
        5: (x, y), 6: (width - 1 - x, y), 7: (width - 1 - x, height - 1 - y), 8: (x, height - 1 - y),
    }[orientation]  # fmt: skip
    stored = np.empty((width, height, 3) if orientation > 4 else pixels.shape, np.uint8)
    stored[row, column] = pixels
    return stored


def scans_jpeg(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of a few hundred bytes that has a decoder pass over it ``scans`` times."""
    small = saved(np.full((16, 16, 3), 128, np.uint8), "JPEG", progressive=True, subsampling=0)
    frame = small.find(b"\xff\xc2")
    sized = small[: frame + 5] + struct.pack(">HH", height, width) + small[frame + 9 :]
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0x10])) + bytes(4)  # refines: looks at every coefficient
    return sized[:-2] + scan * (scans - 10) + sized[-2:]  # it has ten


# The kinds


def pictures(rng: Random) -> Iterator[Case]:
    """What cameras and programs write, in every mode and eight sizes."""
    for height, width in ((48, 64), (31, 17), (1, 1), (8, 8), (5, 90), (90, 5), (64, 64), (33, 47)):
        yield from _pngs(rng, height, width)
        yield from _others(rng, height, width)


def _pngs(rng: Random, height: int, width: int) -> Iterator[Case]:
    for interlace in (False, True):
        kind = "PNG interlaced" if interlace else "PNG"
        for depth in (1, 2, 4, 8):
            values = noise(rng, height, width, 1) >> (8 - depth)
            pixels = grey((values.astype(int) * 255 // (2**depth - 1)).astype(np.uint8))
            yield _answer(kind, f"grey{depth}.png", png(values, depth=depth, colour=0, interlace=interlace), pixels)
            palette = noise(rng, 1, 2**depth)[0]
            shades = noise(rng, 1, 2**depth, 1)[0]
            table = chunk(b"PLTE", palette.tobytes())
            plain = png(values, depth=depth, colour=3, interlace=interlace, extra=table)
            yield _answer(kind, f"palette{depth}.png", plain, palette[values[..., 0]])
            table += chunk(b"tRNS", shades.tobytes())
            clear = png(values, depth=depth, colour=3, interlace=interlace, extra=table)
            laid = on_white(palette[values[..., 0]], shades[values[..., 0]])
            yield _answer(kind, f"transparent{depth}.png", clear, laid, 0.2)
        for depth in (8, 16):
            for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
                high = noise(rng, height, width, channels)
                values = high if depth == 8 else high.astype(np.uint16) * 257
                pixels = grey(high[..., :1]) if channels < 3 else high[..., :3]
                pixels = on_white(pixels, high[..., -1:]) if channels in (2, 4) else pixels
                file = png(values, depth=depth, colour=colour, interlace=interlace)
                yield _answer(kind, f"colour{colour}_{depth}.png", file, pixels, 0.2 if channels in (2, 4) else 0)


def _others(rng: Random, height: int, width: int) -> Iterator[Case]:
    rgb = smooth(rng, height, width)
    lossy = 4.0
    yield _answer("JPEG", "grey.jpg", saved(rgb[..., 0], "JPEG", quality=95), grey(rgb[..., 0]), lossy)
    for options in (
        {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"optimize": True},
        {"progressive": True, "subsampling": 0}, {"restart_marker_blocks": 1}, {"subsampling": 0, "keep_rgb": True},
    ):  # fmt: skip
        yield _answer("JPEG", "a.jpg", saved(rgb, "JPEG", quality=95, **options), rgb, lossy)
    inks = np.concatenate([rgb, smooth(rng, height, width)[..., :1] // 2], 2)
    seen = ((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255).round().astype(np.uint8)
    yield _answer("JPEG CMYK", "cmyk.jpg", saved(inks, "JPEG", mode="CMYK", quality=95), seen, lossy)
    yield _answer("JPEG CMYK", "ycck.jpg", _ycck(inks), seen, lossy)
    yield _answer("WebP", "lossy.webp", saved(rgb, "WEBP", quality=95), rgb, 2 * lossy)
    yield _answer("WebP", "lossless.webp", saved(rgb, "WEBP", lossless=True), rgb)
    clear = np.concatenate([rgb, noise(rng, height, width, 1)], 2)
    yield _answer(
        "WebP", "clear.webp", saved(clear, "WEBP", lossless=True, exact=True), on_white(rgb, clear[..., 3:]), 0.2
    )
    indices, palette = noise(rng, height, width, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
    for index in (None, 3):
        pixels = palette[indices].copy()
        if index is not None:
            pixels[indices == index] = 255
        yield _answer("GIF", "a.gif", gif(indices, palette, transparent=index), pixels)
    window = np.full((height + 3, width + 5), 0, np.uint8)
    window[2 : 2 + height, 4 : 4 + width] = indices
    yield _answer("GIF", "offset.gif", gif(indices, palette, left=4, top=2, screen=window.shape), palette[window])
    for header in (12, 40, 56, 108, 124):
        yield _answer("BMP", "a.bmp", bmp(rgb, header=header), rgb)
    yield _answer("BMP", "down.bmp", bmp(rgb, top_down=True), rgb)
    yield _answer("BMP", "32.bmp", bmp(rgb, bits=32), rgb)
    yield _answer("BMP", "grey.bmp", saved(rgb[..., 0], "BMP"), grey(rgb[..., 0]))
    yield _answer("BMP", "runs8.bmp", run_length_bmp(indices, palette, 8, rng), palette[indices])
    yield _answer("BMP", "runs4.bmp", run_length_bmp(indices % 16, palette[:16], 4, rng), palette[indices % 16])


def _ycck(inks: np.ndarray) -> bytes:
    """CMYK stored as luminance and two colour differences of C, M, Y, and K; inverted, as Adobe's programs do it."""
    c, m, y, k = (inks[..., n].astype(np.float64) for n in range(4))
    luminance = 0.299 * c + 0.587 * m + 0.114 * y
    stored = [luminance, 128 + (y - luminance) / 1.772, 128 + (c - luminance) / 1.402, 255 - k]
    values = np.stack(stored, 2).round().clip(0, 255).astype(np.uint8)
    file = saved(255 - values, "JPEG", mode="CMYK", quality=95)  # which is stored inverted
    at = file.find(b"Adobe") + 11  # its last byte: how colours are stored
    return file[:at] + b"\2" + file[at + 1 :]


def gif(
    indices: np.ndarray,
    palette: np.ndarray,
    *,
    transparent: int | None = None,
    left: int = 0,
    top: int = 0,
    screen: tuple[int, int] | None = None,
    extra: bytes = b"",
    trailer: bytes = b";",
) -> bytes:
    """A GIF of indices (H, W) into 64 colours, with LZW codes that never grow: each is a pixel or a reset."""
    height, width = indices.shape
    screen_height, screen_width = screen or indices.shape
    head = b"GIF89a" + struct.pack("<HHBBB", screen_width, screen_height, 0x85, 0, 0) + palette.tobytes()
    control = b"" if transparent is None else struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 1, 0, transparent, 0)
    codes: list[int] = []
    for number, value in enumerate(indices.reshape(-1).tolist()):
        if number % 60 == 0:
            codes.append(64)
        codes.append(value)
    codes.append(65)
    bits = "".join(f"{code:07b}"[::-1] for code in codes)
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(packed[at : at + 255])]) + packed[at : at + 255] for at in range(0, len(packed), 255))
    frame = b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\6" + blocks + b"\0"
    return head + extra + control + frame + trailer


def orientations(rng: Random) -> Iterator[Case]:
    for orientation in range(1, 9):
        pixels = smooth(rng, 40, 56)
        stored = turned(pixels, orientation)
        height, width = stored.shape[:2]
        for order in "<>":
            data = exif(orientation, order=order)
            jpeg = with_segments(saved(stored, "JPEG", quality=95, subsampling=0), segment(0xE1, data))
            yield _answer("orientation", "a.jpg", jpeg, pixels, 4)
            yield _answer("orientation", "a.png", with_chunks(png(stored), chunk(b"eXIf", data[6:])), pixels)
            lossless = with_webp_exif(saved(stored, "WEBP", lossless=True), data[6:], width, height)
            yield _answer("orientation", "a.webp", lossless, pixels)
    for wrong in (0, 9, 65535):
        pixels = smooth(rng, 24, 40)
        jpeg = with_segments(saved(pixels, "JPEG", quality=95), segment(0xE1, exif(wrong)))
        yield _answer("orientation", "wrong.jpg", jpeg, pixels, 4)


def metadata(rng: Random) -> Iterator[Case]:
    """Pictures that carry bombs and rubbish beside the pixels: none of it is looked at."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    nested = zlib.compress(zlib.compress(bomb))
    pixels = smooth(rng, 40, 56)
    jpeg, plain = saved(pixels, "JPEG", quality=95), png(pixels)
    endless = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHII", 0x8769, 4, 1, 8) * 2000
    loop = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    far = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 0xFFFFFFF0, 65535, 0x0112, 3, 0xFFFFFFFF, 0xFFFFFFFF)
    for body in (endless, loop, far, b"Exif\0\0", b"Exif\0\0II*\0", rng.randbytes(900)):
        yield _answer("metadata", "a.jpg", with_segments(jpeg, segment(0xE1, body)), pixels, 4)
        yield _answer("metadata", "a.png", with_chunks(plain, chunk(b"eXIf", body[6:])), pixels)
        lossless = with_webp_exif(saved(pixels, "WEBP", lossless=True), body, 56, 40)
        yield _answer("metadata", "a.webp", lossless, pixels)
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        for content in (bomb, nested, rng.randbytes(500)):
            head = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
            one = chunk(kind, head + content)
            for count in (1, 5):
                yield _answer("metadata", "bomb.png", with_chunks(plain, *[one] * count), pixels)
    profile = b"ICC_PROFILE\0"
    for part in (bytes([1, 1]), bytes([1, 255]), bytes([0, 0]), b""):
        file = with_segments(jpeg, *[segment(0xE2, profile + part + rng.randbytes(60_000))] * 20)
        yield _answer("metadata", "profile.jpg", file, pixels, 4)
    for marker, body in (
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        (0xFE, b""),
    ):
        file = with_segments(jpeg, *[segment(marker, body + rng.randbytes(300))] * 50)
        yield _answer("metadata", "more.jpg", file, pixels, 4)
    for mpo in (struct.pack("<4sI", b"II*\0", 8) + rng.randbytes(200), b"MM\0*" + bytes(4), b""):
        yield _answer("metadata", "broken_mpo.jpg", with_segments(jpeg, segment(0xE2, b"MPF\0" + mpo)), pixels, 4)
    file = io.BytesIO()
    second = Image.fromarray(255 - pixels)
    Image.fromarray(pixels).save(file, "MPO", save_all=True, append_images=[second, second], quality=95)
    for name in ("DSC_0001.JPG", "a.mpo"):
        yield _answer("MPO", name, file.getvalue(), pixels, 4)


def animations(rng: Random) -> Iterator[Case]:
    for count in (2, 3, 9):
        frames = [smooth(rng, 32, 40) for _ in range(count)]
        images = [Image.fromarray(frame) for frame in frames]
        for form, name in (("PNG", "a.png"), ("WEBP", "a.webp")):
            file = io.BytesIO()
            images[0].save(file, form, save_all=True, append_images=images[1:], lossless=True, duration=50)
            yield _answer("animation", name, file.getvalue(), frames[0])
        indices, palette = noise(rng, 32, 40, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
        one = gif(indices, palette)
        later = gif(63 - indices, palette)[205:-1]
        yield _answer("animation", "a.gif", one[:-1] + later * count + b";", palette[indices])
        yield _answer("animation", "cut.gif", one[:-1] + later[: rng.randrange(1, len(later))], palette[indices])
        yield _answer("animation", "junk.gif", one[:-1] + rng.randbytes(400), palette[indices])


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), data)  # of 1980, whenever it is made
    return file.getvalue()


def polyglots(rng: Random) -> Iterator[Case]:
    """Files that are something else too: read as the picture that their first bytes say."""
    tails = (
        zipped("a.html", b"<script>alert(1)</script>" * 50),
        b"<html><script>alert(document.domain)</script></html>", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj",
        b"<?php system($_GET['c']); ?>", b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", b"#!/bin/sh\nid\n", bytes(10_000),
        b"\xff\xd9" * 100, b"MZ" + rng.randbytes(300),
    )  # fmt: skip
    for tail in tails:
        pixels = smooth(rng, 32, 48)
        indices, palette = noise(rng, 32, 48, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
        yield _answer("polyglot", "a.jpg", saved(pixels, "JPEG", quality=95) + tail, pixels, 4)
        yield _answer("polyglot", "a.png", png(pixels) + tail, pixels)
        yield _answer("polyglot", "a.gif", gif(indices, palette) + tail, palette[indices])
        yield _answer("polyglot", "a.webp", saved(pixels, "WEBP", lossless=True) + tail, pixels)
        yield _answer("polyglot", "a.bmp", bmp(pixels) + tail, pixels)
        comment = segment(0xFE, tail[:60_000])
        yield _answer("polyglot", "a.html", with_segments(saved(pixels, "JPEG", quality=95), comment), pixels, 4)
        text = chunk(b"tEXt", b"Comment\0" + tail)
        yield _answer("polyglot", "a.php", with_chunks(png(pixels), text), pixels)
        blocks = b"".join(bytes([len(tail[at : at + 255])]) + tail[at : at + 255] for at in range(0, len(tail), 255))
        script = b"\x21\xfe" + blocks + b"\0"
        yield _answer("polyglot", "a.js", gif(indices, palette, extra=script), palette[indices])


NAMES = (
    "n" * 300 + ".png", "line\nbreak.png", "carriage\rreturn.png", "../../etc/passwd", "..\\..\\windows\\win.ini",
    "/etc/shadow", "C:\\boot.ini", "nul\0byte.png", "photo\u202egnp.exe", "\u2066left\u2069.png",
    "smile \U0001f600.png", "<script>alert(1)</script>.png", "\"'><img src=x onerror=alert(1)>.png", "%00.png",
    "a.png%00.jpg", "CON", "NUL.png",
    "trailing...", "space ", " ", "", ".", "..", ".htaccess", "a" * 255, "\x1b[2J\x1b[31mred.png", "tab\there.png",
    "\ufeffbom.png", "e\u0301\u0301\u0301.png", "\u200bzero.png", "{{7*7}}.png", "${HOME}.png", "`id`.png", "$(id).png",
    "; rm -rf x;.png", "|id.png", "file:///etc/passwd", "http://127.0.0.1/a.png", "\\\\host\\share.png", "\ud800.png",
    "a:b.png", "*?.png", "-rf", "--help", "aux.jpg", "\u2028line.png", "\u0600arabic.png", "picture.png/", "\x7f.png",
)  # fmt: skip


def names(rng: Random) -> Iterator[Case]:
    for name in NAMES:
        pixels = noise(rng, 9, 11)
        yield _answer("name", name, png(pixels), pixels)
        yield _refusal("name", name, png(pixels)[:50], "damaged")


def lying_extensions(rng: Random) -> Iterator[Case]:
    pixels = smooth(rng, 24, 24)
    files = {
        "jpg": (saved(pixels, "JPEG", quality=95), 4), "png": (png(pixels), 0), "bmp": (bmp(pixels), 0),
        "webp": (saved(pixels, "WEBP", lossless=True), 0),
    }  # fmt: skip
    for true, (data, tolerance) in files.items():
        for said in ("jpg", "png", "gif", "bmp", "webp", "svg", "eps", "tiff", "psd", "exe", "html", "txt"):
            if said != true:
                yield _answer("extension", f"a.{said}", data, pixels, tolerance)


def sizes(rng: Random) -> Iterator[Case]:
    """The largest that is allowed, one more, and none."""
    black = np.zeros((1, 1, 3), np.uint8)
    for width, height in ((5000, 5000), (25_000_000, 1), (1, 25_000), (100_000, 1), (250, 100_000)):
        pixels = np.broadcast_to(black, (height, width, 3))
        yield _answer("size", "most.png", flat_png(width, height), pixels)
    for width, height in ((5001, 5000), (5000, 5001), (25_000_001, 1), (1, 25_000_001)):
        yield _refusal("size", "one_more.png", flat_png(width, height, rows=1), "too_many_pixels")
    for width, height in ((0, 0), (0, 9), (9, 0)):
        yield _refusal("size", "none.png", flat_png(width, height), "damaged")
        yield _refusal("size", "none.bmp", _sized_bmp(width, height), "damaged")
        jpeg = saved(smooth(rng, 16, 16), "JPEG")
        at = jpeg.find(b"\xff\xc0") + 5
        yield _refusal("size", "none.jpg", jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :], "damaged")
    long = saved(np.full((65_500, 1), 77, np.uint8), "JPEG", quality=95)
    yield _answer("size", "long.jpg", long, np.full((65_500, 1, 3), 77, np.uint8), 1)


def largest(rng: Random) -> Iterator[Case]:
    """25 megapixels in each format; as a BMP of a byte each they are too many bytes."""
    for form, options in (
        ("JPEG", {"quality": 90}),
        ("WEBP", {"lossless": True, "method": 0}),
        ("GIF", {}),
        ("BMP", {}),
    ):
        values = np.full((5000, 5000), 200, np.uint8)
        if form == "BMP":
            yield _refusal("largest", "25 MB.bmp", saved(values, form), "too_large_file")
            continue
        file = saved(values if form != "WEBP" else grey(values), form, **options)
        yield _answer("largest", f"most.{form.lower()}", file, np.broadcast_to(np.uint8(200), (5000, 5000, 3)), 1)


def _sized_bmp(width: int, height: int, *, bits: int = 24, compression: int = 0, body: bytes = b"") -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54) + info + body


def bombs(rng: Random) -> Iterator[Case]:
    """A few bytes that promise, or hold, a great many pixels; and a few that promise hours of work."""
    for colour, depth in ((0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (6, 8), (6, 16)):
        for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1), (1, 2**31 - 1)):
            file = flat_png(1, 1, depth=depth, colour=colour)
            header = png_header(width, height, depth, colour)
            yield _refusal("bomb", "a.png", header + file[len(header) :], "too_many_pixels")
    yield _refusal("bomb", "zeros.png", flat_png(50_000, 50_000, rows=10_000), "too_many_pixels")
    yield _refusal("bomb", "rows.png", flat_png(40_000, 40_000, depth=8, rows=1000), "too_many_pixels")
    indices, palette = noise(rng, 4, 4, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
    for screen in ((65535, 65535), (5001, 5000), (65535, 1000)):
        yield _refusal("bomb", "a.gif", gif(indices, palette, screen=screen), "too_many_pixels")
    yield _refusal("bomb", "far.gif", gif(indices, palette, left=65000, top=65000), "too_many_pixels")
    for flags in (0, 2, 0x10, 0x3E):
        head = webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + b"\xff\xff\xff" * 2)
        yield _refusal("bomb", "a.webp", webp(head, webp_chunk(b"VP8L", rng.randbytes(99))), "too_many_pixels")
    most = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14)
    yield _refusal("bomb", "most.webp", webp(webp_chunk(b"VP8L", most + rng.randbytes(99))), "too_many_pixels")
    most = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)
    yield _refusal("bomb", "most.webp", webp(webp_chunk(b"VP8 ", most + rng.randbytes(99))), "too_many_pixels")
    for width, height in ((2**31 - 1, 2**31 - 1), (60_000, -60_000), (1, -(2**31)), (30_000, 30_000)):
        for bits, compression in ((1, 0), (24, 0), (8, 1), (4, 2), (32, 3)):
            file = _sized_bmp(width, height, bits=bits, compression=compression, body=bytes(2000))
            yield _refusal("bomb", "a.bmp", file, "too_many_pixels")
    for bits, compression in ((24, 0), (8, 1)):  # 25 megapixels promised, 2 KB there
        file = _sized_bmp(5000, 5000, bits=bits, compression=compression, body=bytes([1, 1]) * 1000)
        yield _refusal("bomb", "lying.bmp", file, "damaged")
    yield _refusal(
        "bomb", "jump.bmp", _sized_bmp(25_000_000, 1, bits=8, compression=1, body=b"\0\2\xff\xff" * 400), "damaged"
    )
    jpeg = saved(smooth(rng, 16, 16), "JPEG")
    at = jpeg.find(b"\xff\xc0") + 5
    for width, height in ((65500, 65500), (65535, 65535), (5001, 5000), (65535, 500)):
        file = jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]
        yield _refusal("bomb", "a.jpg", file, "too_many_pixels")
    yield Case("bomb", "lying.jpg", jpeg[:at] + struct.pack(">HH", 5000, 5000) + jpeg[at + 4 :], CODES)
    yield _refusal("bomb", "big.jpg", jpeg + bytes(MAX_BYTES), "too_large_file")


def time_bombs(rng: Random) -> Iterator[Case]:
    """Ten megabytes, or a few hundred bytes, that would keep a reader busy."""
    jpeg, plain = saved(smooth(rng, 16, 16), "JPEG"), png(smooth(rng, 16, 16))
    for scans in (1000, 100_000):
        yield _refusal("time bomb", "scans.jpg", scans_jpeg(5000, 5000, scans), "too_complex")
        yield _refusal("time bomb", "scans.jpg", scans_jpeg(16, 16, scans), "too_complex")
    yield Case("time bomb", "scans.jpg", scans_jpeg(5000, 5000, 13), CODES)
    yield _refusal("time bomb", "segments.jpg", with_segments(jpeg, segment(0xFE, b"") * 2_400_000), "too_complex")
    yield Case("time bomb", "fill.jpg", jpeg[:2] + b"\xff" * 9_900_000 + jpeg[2:], CODES)
    yield Case("time bomb", "stuffed.jpg", jpeg[:-2] + b"\xff\0" * 4_900_000 + jpeg[-2:], CODES)
    yield Case("time bomb", "filled.jpg", jpeg[:-2] + b"\xff" * 9_900_000 + jpeg[-2:], CODES)
    yield Case("time bomb", "restarts.jpg", jpeg[:-2] + b"\xff\xd0\xff\xd1" * 2_400_000 + jpeg[-2:], CODES)
    empty = chunk(b"IDAT", b"") * 800_000
    yield _refusal("time bomb", "chunks.png", with_chunks(plain, empty), "too_complex")
    yield _refusal("time bomb", "texts.png", with_chunks(plain, chunk(b"tEXt", b"a\0b") * 600_000), "too_complex")
    indices, palette = noise(rng, 8, 8, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * 38_000 + b"\0"
    yield _answer("time bomb", "comment.gif", gif(indices, palette, extra=comment), palette[indices])
    comment = b"\x21\xfe" + b"\1c" * 4_900_000 + b"\0"
    yield _refusal("time bomb", "blocks.gif", gif(indices, palette, extra=comment), "too_complex")
    yield _refusal(
        "time bomb", "comments.gif", gif(indices, palette, extra=b"\x21\xfe\1c\0" * 1_900_000), "too_complex"
    )
    one = gif(indices, palette)
    yield _answer("time bomb", "frames.gif", one[:-1] + one[205:-1] * 60_000 + b";", palette[indices])
    lossless = with_webp_exif(saved(smooth(rng, 16, 16), "WEBP", lossless=True), b"", 16, 16)
    yield _refusal(
        "time bomb", "chunks.webp", webp(lossless[12:] + webp_chunk(b"abcd", b"") * 1_200_000), "too_complex"
    )
    for body in (b"\0\0" * 4_000_000, b"\0\3abc\0" * 1_600_000, b"\1\1" * 4_900_000):
        file = _sized_bmp(5000, 5000, bits=8, compression=1, body=bytes(1024) + body)
        yield _refusal("time bomb", "runs.bmp", file, "too_complex")
    for body in (b"\1\1" * 490_000, b"\0\3abc\0" * 160_000, b"\0\2\0\0" * 240_000):
        file = _sized_bmp(5000, 5000, bits=8, compression=1, body=bytes(1024) + body)
        yield Case("time bomb", "runs.bmp", file, CODES)


def _bases(rng: Random) -> dict[str, tuple[bytes, np.ndarray, float]]:
    """A small file of each sort: (bytes, pixels, tolerance)."""
    rgb = smooth(rng, 40, 52)
    indices, palette = noise(rng, 40, 52, 1)[..., 0] >> 2, noise(rng, 1, 64)[0]
    jpeg = saved(rgb, "JPEG", quality=95)
    clear = np.concatenate([rgb, noise(rng, 40, 52, 1)], 2)
    lossless = saved(rgb, "WEBP", lossless=True)
    animated = io.BytesIO()
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    inks = np.concatenate([rgb, rgb[..., :1] // 2], 2)
    seen = ((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255).round().astype(np.uint8)
    return {
        "a.jpg": (jpeg, rgb, 4),
        "progressive.jpg": (saved(rgb, "JPEG", quality=95, progressive=True), rgb, 4),
        "cmyk.jpg": (saved(inks, "JPEG", mode="CMYK", quality=95), seen, 4),
        "exif.jpg": (with_segments(jpeg, segment(0xE1, exif(1)), segment(0xE2, bytes(300))), rgb, 4),
        "a.png": (png(rgb), rgb, 0),
        "interlaced.png": (png(rgb, interlace=True), rgb, 0),
        "palette.png": (
            png(indices[..., None], colour=3, extra=chunk(b"PLTE", palette.tobytes())), palette[indices], 0,
        ),
        "a.gif": (gif(indices, palette), palette[indices], 0),
        "lossy.webp": (saved(rgb, "WEBP", quality=95), rgb, 8),
        "lossless.webp": (lossless, rgb, 0),
        "clear.webp": (saved(clear, "WEBP", lossless=True, exact=True), on_white(rgb, clear[..., 3:]), 0.2),
        "animated.webp": (animated.getvalue(), rgb, 0),
        "a.bmp": (bmp(rgb), rgb, 0),
        "runs.bmp": (run_length_bmp(indices, palette, 8, rng), palette[indices], 0),
    }  # fmt: skip


def truncations(rng: Random) -> Iterator[Case]:
    """Cut at every place of the header, and at many behind it: always refused, for the picture is not whole."""
    for name, (data, pixels, tolerance) in _bases(rng).items():
        places = [*range(1, 40), *(rng.randrange(40, len(data)) for _ in range(26)), len(data) - 1, len(data) - 2]
        for place in places:
            if name == "a.gif" and place == len(data) - 1:  # the picture is whole, only the end mark is missing
                yield _answer("truncated", name, data[:place], pixels, tolerance)
            elif name == "runs.bmp" and place >= len(data) - 2:
                yield Case("truncated", name, data[:place], frozenset(["answer", "damaged"]), pixels, tolerance)
            else:
                yield _refusal("truncated", name, data[:place], "damaged", "format")


def bit_flips(rng: Random) -> Iterator[Case]:
    for name, (data, _, _) in _bases(rng).items():
        for _ in range(45):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8, 40))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            yield Case("bit flips", name, bytes(changed), CODES)


def foreign(rng: Random) -> Iterator[Case]:
    """Formats that are not read, under names of formats that are."""
    image = Image.fromarray(smooth(rng, 32, 32))
    files: dict[str, bytes] = {}
    long_ago = time.gmtime(0)
    for form in (
        "TIFF",
        "ICO",
        "PPM",
        "JPEG2000",
        "AVIF",
        "PDF",
        "EPS",
        "TGA",
        "SGI",
        "PCX",
        "DDS",
        "ICNS",
        "IM",
        "MSP",
    ):
        file = io.BytesIO()
        image.convert("1" if form == "MSP" else "RGB").save(
            file, form, **({"creationDate": long_ago, "modDate": long_ago} if form == "PDF" else {})
        )
        files[form] = file.getvalue()
    files |= {
        "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "entities": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(400),
        "HEIC": struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + rng.randbytes(300),
        "JXL": b"\xff\x0a" + rng.randbytes(200), "JPEG LS": b"\xff\xd8\xff\xf7" + rng.randbytes(100),
        "ZIP": zipped("a.png", png(smooth(rng, 8, 8))),
        "ELF": b"\x7fELF\2\1\1" + rng.randbytes(300), "EXE": b"MZ" + rng.randbytes(300),
        "HTML": b"<!doctype html><img src=x onerror=alert(1)>", "JSON": b'{"path": "/etc/passwd"}',
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.", "gzip": b"\x1f\x8b\x08" + rng.randbytes(90),
        "PostScript": b"%!PS\n(/etc/passwd) (r) file\nshowpage\n",
        "MVG": b"push graphic-context\nimage over 0,0 0,0 '|id'",
        "WAV": b"RIFF" + struct.pack("<I", 100) + b"WAVE" + bytes(92),
        "text": b"BMW and other words that start like a BMP.",
        "MNG": b"\x8aMNG\r\n\x1a\n" + bytes(60), "late": b"\n" + png(smooth(rng, 8, 8)),
    }  # fmt: skip
    for form, data in files.items():
        for suffix in ("jpg", "png", "gif", "webp", "bmp"):
            codes = ("format", "damaged") if form in ("JPEG LS", "text") else ("format",)
            yield _refusal("foreign", f"{form}.{suffix}", data, *codes)


MAGIC = (
    b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xd9", PNG, b"GIF87a", b"GIF89a", b"RIFF\4\0\0\0WEBP", b"BM",
    b"RIFF\xff\xff\xff\xffWEBP", b"RIFF\0\0\0\0WEBP", PNG + chunk(b"IEND", b""), png_header(9, 9, 8, 2),
)  # fmt: skip


def nothing(rng: Random) -> Iterator[Case]:
    """No bytes, only first bytes, and first bytes with noise behind."""
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "", "empty"):
        yield _refusal("empty", name, b"", "empty")
    for magic in MAGIC:
        yield _refusal("only magic", "a.jpg", magic, "damaged", "format")
        for size in (1, 2, 10, 40, 300, 5000):
            yield _refusal("noise", "a.png", magic + rng.randbytes(size))
            yield _refusal("noise", "a.png", magic + bytes(size))
    for size in (1, 16, 1000, 100_000):
        yield _refusal("noise", "a.gif", bytes(size), "format")


def structure(rng: Random) -> Iterator[Case]:
    """Files that say two things at once."""
    pixels = smooth(rng, 24, 24)
    jpeg, plain = saved(pixels, "JPEG"), png(pixels)
    frame = jpeg.find(b"\xff\xc0")
    sof = jpeg[frame : frame + 19]
    yield _refusal("structure", "two_frames.jpg", jpeg[:frame] + sof + jpeg[frame:], "damaged")
    huge = sof[:5] + struct.pack(">HH", 60_000, 60_000) + sof[9:]
    yield _refusal("structure", "two_sizes.jpg", jpeg[:frame] + huge + jpeg[frame:], "too_many_pixels", "damaged")
    yield _refusal("structure", "two_sizes.jpg", jpeg[:-2] + huge + jpeg[-2:], "damaged")
    for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF):
        other = jpeg[:frame] + bytes([0xFF, marker]) + jpeg[frame + 2 :]
        yield _refusal("structure", "rare.jpg", other, "format")
    for bits in (0, 12, 16):
        yield _refusal("structure", "deep.jpg", jpeg[: frame + 4] + bytes([bits]) + jpeg[frame + 5 :], "format")
    for parts in (0, 2, 5, 255):
        yield _refusal("structure", "parts.jpg", jpeg[: frame + 9] + bytes([parts]) + jpeg[frame + 10 :], "format")
    yield _refusal("structure", "two_headers.png", plain[:33] + plain[8:], "damaged")
    huge = png_header(60_000, 60_000, 8, 2)[8:]
    yield _refusal("structure", "two_sizes.png", plain[:33] + huge + plain[33:], "damaged")
    yield _refusal("structure", "apple.png", PNG + chunk(b"CgBI", bytes(4)) + plain[8:], "damaged", "format")
    yield _refusal("structure", "critical.png", with_chunks(plain, chunk(b"ABCD", bytes(4))), "format")
    yield _refusal("structure", "checksum.png", plain[:29] + bytes(4) + plain[33:], "damaged")
    yield _refusal("structure", "no_palette.png", png(noise(rng, 8, 8, 1), colour=3), "damaged")
    for depth, colour in ((3, 0), (16, 3), (8, 1), (8, 5), (8, 255), (0, 0), (1, 2)):
        header = png_header(8, 8, 8, 2)
        wrong = png_header(8, 8, depth, colour)
        yield _refusal("structure", "header.png", wrong + png(noise(rng, 8, 8))[len(header) :], "damaged")
    long = plain[:33] + struct.pack(">I", 2**31 - 1) + plain[37:]
    yield _refusal("structure", "long.png", long, "damaged")
    # Pillow takes a stream that ends well for whole, and the missing rows for black
    black = np.zeros((64, 64, 3), np.uint8)
    yield Case("structure", "short.png", flat_png(64, 64, depth=8, rows=10), frozenset(["answer", "damaged"]), black)
    more = flat_png(64, 64, depth=8, rows=5000)
    yield _answer("structure", "more_pixels.png", more, black)
    for header in (0, 13, 41, 2**31, 2**32 - 1):
        file = bmp(pixels)
        yield _refusal("structure", "header.bmp", file[:14] + struct.pack("<I", header) + file[18:], "format")
    for offset in (0, 1, 53, 2**31, 2**32 - 1):
        file = bmp(pixels)
        yield _refusal("structure", "offset.bmp", file[:10] + struct.pack("<I", offset) + file[14:], "damaged")
    for compression in (4, 5, 6, 11, 255):
        yield _refusal("structure", "inner.bmp", _sized_bmp(9, 9, compression=compression, body=plain), "format")
    inner = webp_chunk(b"VP8L", b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(50))
    small = webp_chunk(b"VP8X", bytes(4) + b"\x08\0\0" * 2)
    yield _refusal("structure", "two_sizes.webp", webp(small, inner), "damaged")
    frame_head = bytes(6) + b"\xff\x3f\0" * 2 + bytes(4)
    many = webp(webp_chunk(b"VP8X", b"\2\0\0\0" + b"\x08\0\0" * 2), webp_chunk(b"ANIM", bytes(6)),
                webp_chunk(b"ANMF", frame_head + inner))  # fmt: skip
    yield _refusal("structure", "two_sizes.webp", many, "damaged")


KINDS: tuple[Callable[[Random], Iterator[Case]], ...] = (
    pictures, orientations, metadata, animations, polyglots, names, lying_extensions, sizes, largest, bombs, time_bombs,
    truncations, bit_flips, foreign, nothing, structure,
)  # fmt: skip


def corpus(seed: int = 0, *, without: Container[Callable[[Random], Iterator[Case]]] = ()) -> Iterator[Case]:
    """Every file, made one after the other; some kinds left out."""
    for kind in KINDS:
        if kind not in without:
            yield from kind(Random(f"{seed} {kind.__name__}"))


def mutants(seed: int, count: int) -> Iterator[Case]:
    """Changed pictures: flipped bits, cut, spliced, doubled, and numbers replaced by extreme ones."""
    rng = Random(f"{seed} mutants")
    bases = [data for data, _, _ in _bases(rng).values()]
    extreme = (
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\x00\x00\x00\x01",
        b"\x01\0\0\0",
    )
    for _ in range(count):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            at, action = rng.randrange(len(data)), rng.randrange(6)
            if rng.random() < 0.5:
                at = min(at, rng.randrange(100))  # headers are worth more tries
            if action == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                data[at] = rng.randrange(256)
            elif action == 2:
                data[at : at + rng.choice((2, 4))] = rng.choice(extreme)[: rng.choice((2, 4))]
            elif action == 3:
                del data[at : at + rng.randrange(1, 60)]
            elif action == 4:
                data[at:at] = data[max(0, at - rng.randrange(1, 200)) : at]
            else:
                other = rng.choice(bases)
                start = rng.randrange(len(other))
                data[at:at] = other[start : start + rng.randrange(1, 300)]
            if not data:
                data = bytearray(b"\0")
        yield Case("mutant", "a.jpg", _repaired(bytes(data)) if rng.random() < 0.7 else bytes(data), CODES)


def _repaired(data: bytes) -> bytes:
    """A PNG's checksums and a WebP's length made right again, so that a change reaches what lies behind them."""
    if data[:8] == PNG:
        out, at = [PNG], 8
        while at + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, at)
            if at + 12 + length > len(data):
                break
            out.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
            at += 12 + length
        return b"".join([*out, data[at:]])
    if data[:4] == b"RIFF" and len(data) > 12:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data


# Reading it


class Findings(NamedTuple):
    """What a run found. ``wrong`` is empty if all is well."""

    files: int
    kinds: Counter[str]
    ends: Counter[tuple[str, str]]  # (kind, end)
    wrong: list[str]
    slowest: list[tuple[float, str]]  # seconds of the processor
    grown: float  # bytes of memory, after a warm-up
    peak: float
    left: list[str]  # threads and open files

    def summary(self) -> str:
        lines = [f"{'kind':16}{'files':>7}  ends"]
        for kind, count in self.kinds.items():
            ends = sorted((end, n) for (of, end), n in self.ends.items() if of == kind)
            lines.append(f"{kind:16}{count:7}  {', '.join(f'{end} {n}' for end, n in ends)}")
        slow = ", ".join(f"{seconds:.2f} s {what}" for seconds, what in self.slowest)
        lines.append(f"{self.files} files, {len(self.wrong)} wrong; slowest: {slow}")
        lines.append(f"memory: {self.grown / 1e6:+.1f} MB after a warm-up, peak {self.peak / 1e6:.0f} MB")
        return "\n".join([*lines, *self.left, *self.wrong[:20]])


def judged(case: Case, end: str, pixels: np.ndarray | None, line: str) -> str:
    """What is wrong about how a case ended; nothing if it is ""."""
    if end not in case.ends:
        return f"ended in {end} ({line!r}), not in one of {sorted(case.ends)}"
    if end == "answer":
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            return "no picture as answer"
        if case.pixels is not None:
            if pixels.shape != case.pixels.shape:
                return f"shape {pixels.shape}, not {case.pixels.shape}"
            worst, mean = _differences(pixels, case.pixels)
            if mean > case.tolerance or worst > 10 * case.tolerance:
                return f"other pixels: {mean:.2f} on average, {worst} at most"
    elif not line.isprintable() or len(line) > 300 or "/" in line.partition(": ")[0] or not line.endswith("."):
        return f"said {line!r}"
    return ""


def _differences(a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    """The largest and the mean absolute difference, in strips: large pictures are not copied whole."""
    worst, total, step = 0, 0, max(1, 1_000_000 // a.shape[1])
    for top in range(0, len(a), step):
        apart = np.abs(a[top : top + step].astype(np.int16) - b[top : top + step])
        worst, total = max(worst, int(apart.max())), total + int(apart.sum(dtype=np.int64))
    return worst, total / a.size


def ended(case: Case, source: bytes | Path) -> tuple[str, np.ndarray | None, str]:
    """The end of a case, its pixels, and the line that was said; anything but an answer or Refused is a finding."""
    try:
        return "answer", read_upload(source, name=case.name), ""
    except Refused as refused:
        return refused.code, None, str(refused)
    except Exception as error:
        return f"{type(error).__name__}", None, str(error)


def memory() -> float:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read_all(cases: Iterable[Case], *, warm_up: Iterable[Case] = (), seconds: float = SECONDS) -> Findings:
    """Every case through read_upload: every other as bytes, the rest as a file."""
    for case in warm_up:
        ended(case, case.data)
    kinds: Counter[str] = Counter()
    ends: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    slow: list[tuple[float, str]] = []
    before = memory(), threading.active_count(), open_files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        for number, case in enumerate(cases):
            if as_file := number % 2 == 1:
                path.write_bytes(case.data)
            started, cpu = time.perf_counter(), time.thread_time()
            end, pixels, line = ended(case, path if as_file else case.data)
            wall, worked = time.perf_counter() - started, time.thread_time() - cpu
            kinds[case.kind] += 1
            ends[case.kind, end] += 1
            what = f"{case.kind} {number} {case.name[:30]!r}"
            if fault := judged(case, end, pixels, line):
                wrong.append(f"{what}: {fault}")
            if worked > seconds:  # of this thread: what else the machine does is no fault of the reader
                wrong.append(f"{what}: {worked:.2f} s")
            slow = sorted([*slow, (worked, f"({wall:.2f} on the clock) {what}")], reverse=True)[:5]
            del pixels
    grown = memory() - before[0]
    left = []
    if threading.active_count() > before[1]:
        left.append(f"{threading.active_count() - before[1]} threads left")
    if open_files() > before[2]:
        left.append(f"{open_files() - before[2]} files left open")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return Findings(sum(kinds.values()), kinds, ends, wrong, slow, grown, peak, left)


def some(
    cases: Iterable[Case], count: int, seed: int = 0, *, largest: int = 300_000, pixels: int = 3_000_000
) -> list[Case]:
    """About ``count`` of the cases, every kind among them, none that is large."""
    by_kind: dict[str, list[Case]] = {}
    for case in cases:
        if len(case.data) <= largest and (case.pixels is None or case.pixels.size <= 3 * pixels):
            by_kind.setdefault(case.kind, []).append(case)
    rng = Random(seed)
    share = -(-count // len(by_kind))
    return [case for kind in by_kind.values() for case in rng.sample(kind, min(share, len(kind)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--http", action="store_true")
    options = parser.parse_args()
    steady_memory()
    if options.http:
        from hostile_http import check

        return check(corpus(options.seed))
    warm = [*orientations(Random(1)), *largest(Random(1))]
    found = read_all(corpus(options.seed), warm_up=warm)
    print(found.summary())
    if options.mutants:
        more = read_all(mutants(options.seed, options.mutants))
        print(more.summary())
        found.wrong.extend([*more.wrong, *more.left])
    too_much = found.grown > GROWTH
    return int(bool(found.wrong or found.left or too_much))


if __name__ == "__main__":
    sys.exit(main())
