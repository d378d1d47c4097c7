"""Pictures to look at rather than lines to read: thumbnails with captions, as one HTML file or one JPEG or PNG."""

import base64
import html
import io
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from zoo.files import written_whole

MOST = 1000  # pictures of a sheet: more are no longer looked at
_MADE_BY = "simclr contact sheet"  # in every sheet, so that no other file is overwritten
_CELL, _GAP, _LINE, _HEADING, _COLUMNS = 160, 12, 16, 30, 8
_WIDE, _HIGH = _CELL + _GAP, _CELL + 2 * _LINE + _GAP
_MOST_PIXELS = 65_000  # of a JPEG's side
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{made_by}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }}
body {{ margin: 24px; }}
h1 {{ font-size: 18px; font-weight: 600; }}
h2 {{ font-size: 14px; font-weight: 600; margin: 24px 0 8px; }}
ul {{ display: flex; flex-wrap: wrap; gap: 16px; list-style: none; margin: 0; padding: 0; }}
li {{ width: 160px; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 160px; max-height: 160px; border-radius: 4px; }}
small {{ display: block; opacity: .75; }}
</style></head><body><h1>{title}</h1>
{groups}</body></html>
"""


class Shown(NamedTuple):
    """A picture of a sheet: its thumbnail (a JPEG, may be empty), a caption, and the file it came from."""

    thumbnail: bytes
    caption: str
    path: str


def check_sheet(path: Path) -> None:
    """Raise ValueError if no sheet can be written there: another ending, or a file that is none of ours."""
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"{path}: a sheet ends in {', '.join(_WRITERS)}.")
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name a file to write.")
    if not path.exists():
        return
    with path.open("rb") as file:
        ours = _MADE_BY.encode() in file.read(4096)
    if not ours:
        raise ValueError(f"{path} is there and is no contact sheet of simclr; give another --sheet.")


def write_sheet(path: Path, groups: Sequence[tuple[str, Sequence[Shown]]], *, title: str) -> int:
    """Write groups of pictures, each with a heading ("" for none), to a file; how many it shows.

    That is at most 1,000, and of an image as many groups as 65,000 pixels of height take.

    Raises ValueError as ``check_sheet`` does.
    """
    check_sheet(path)
    kept, room = [], MOST
    for heading, pictures in groups:
        if room > 0 and pictures:
            kept.append((heading, pictures[:room]))
            room -= len(kept[-1][1])
    if path.suffix.lower() != ".html":
        kept = kept[: _fit(kept)]
    content = _WRITERS[path.suffix.lower()](kept, title)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
    return sum(len(pictures) for _, pictures in kept)


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _page(groups: Sequence[tuple[str, Sequence[Shown]]], title: str) -> bytes:
    parts = []
    for heading, pictures in groups:
        items = "".join(f"<li>{_item(picture)}</li>\n" for picture in pictures)
        parts.append((f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + f"<ul>\n{items}</ul>\n")
    return _PAGE.format(made_by=_MADE_BY, title=html.escape(title), groups="".join(parts)).encode("utf-8", "replace")


def _item(picture: Shown) -> str:
    data, name = base64.b64encode(picture.thumbnail).decode(), html.escape(Path(picture.path).name)
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{name}" loading="lazy">' if data else ""
    if Path(picture.path).is_absolute():
        image = f'<a href="{html.escape(Path(picture.path).as_uri())}">{image or name}</a>'
    return f"{image}{html.escape(picture.caption)}<small>{html.escape(picture.path)}</small>"


# ---- one image -------------------------------------------------------------------------------------------------------


def _layout(groups: Sequence[tuple[str, Sequence[Shown]]]) -> tuple[int, list[int]]:
    """How many columns an image has, and the height of each group in pixels."""
    columns = max(1, min(_COLUMNS, max((len(pictures) for _, pictures in groups), default=1)))
    if len(groups) == 1:
        columns = max(1, min(_COLUMNS, math.ceil(math.sqrt(len(groups[0][1])))))
    return columns, [
        (_HEADING if heading else 0) + math.ceil(len(pictures) / columns) * _HIGH for heading, pictures in groups
    ]


def _fit(groups: Sequence[tuple[str, Sequence[Shown]]]) -> int:
    """How many groups an image takes."""
    bottoms = accumulate(_layout(groups)[1], initial=_HEADING)
    return sum(bottom <= _MOST_PIXELS for bottom in bottoms) - 1


def _drawn(groups: Sequence[tuple[str, Sequence[Shown]]], title: str) -> Image.Image:
    columns, rows = _layout(groups)
    width = max(columns, 3) * _WIDE + _GAP
    sheet = Image.new("RGB", (width, _HEADING + sum(rows) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(11)
    draw.text((_GAP, 9), _fitting(draw, title, width - 2 * _GAP, large), fill="black", font=large)
    top = _HEADING
    for (heading, pictures), height in zip(groups, rows, strict=True):
        start = top
        if heading:
            draw.text((_GAP, top + 9), _fitting(draw, heading, width - 2 * _GAP, large), fill="black", font=large)
            start += _HEADING
        for place, picture in enumerate(pictures):
            left, upper = _GAP + place % columns * _WIDE, start + place // columns * _HIGH
            _paste(sheet, picture.thumbnail, left, upper)
            lines = ((picture.caption, "black"), (Path(picture.path).name, "#555555"))
            for line, (text, colour) in enumerate(lines):
                spot = (left, upper + _CELL + 2 + line * _LINE)
                draw.text(spot, _fitting(draw, text, _CELL, small), fill=colour, font=small)
        top += height
    return sheet


def _paste(sheet: Image.Image, jpeg: bytes, left: int, upper: int) -> None:
    if jpeg:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as opened:
            opened.thumbnail((_CELL, _CELL))
            sheet.paste(opened.convert("RGB"), (left, upper + _CELL - opened.height))


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, width: float, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont"
) -> str:
    """A text on one line, or as much of its end as fits."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    shown = text
    while text and draw.textlength(shown, font=font) > width:
        text = text[1:]
        shown = f"...{text}"
    return shown


def _jpeg(groups: Sequence[tuple[str, Sequence[Shown]]], title: str) -> bytes:
    buffer = io.BytesIO()
    _drawn(groups, title).save(buffer, "JPEG", quality=88, comment=_MADE_BY.encode())
    return buffer.getvalue()


def _png(groups: Sequence[tuple[str, Sequence[Shown]]], title: str) -> bytes:
    made_by = PngImagePlugin.PngInfo()
    made_by.add_text("Software", _MADE_BY)
    buffer = io.BytesIO()
    _drawn(groups, title).save(buffer, "PNG", pnginfo=made_by)
    return buffer.getvalue()


_WRITERS = {".html": _page, ".jpg": _jpeg, ".jpeg": _jpeg, ".png": _png}
