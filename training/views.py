"""A contact sheet: images beside their augmented views, exactly as training sees them. Look before you train."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.augment import Augmentation
from training.data import ImageSet
from training.dice import View
from training.recipes import AnyRecipe, FinetuneRecipe, PretrainRecipe
from zoo.console import plain
from zoo.files import written_whole
from zoo.transforms import read_image

_VIEWS = 6  # in a row
_LEAST, _MOST = 144, 256  # side of a cell in pixels: small views are enlarged by a whole factor, big ones reduced
_GAP, _MARGIN, _CAPTION, _HEAD = 10, 24, 34, 116
_PAPER, _INK, _FAINT, _LINE = (250, 250, 248), (28, 32, 38), (92, 98, 106), (214, 216, 218)
_FRAMES = ((31, 111, 178), (214, 96, 30))  # of the first two views, and of their crops in the original
_KEY = "Frames: the crops of the first epoch. Below a view: its share of the image, and what was done to it."


@dataclass(frozen=True)
class _Row:
    """An image, and its views with their parameters."""

    path: Path
    pixels: np.ndarray  # (H, W, 3) uint8
    views: list[tuple[View, np.ndarray]]  # (size, size, 3) uint8


def recipe_augmentation(recipe: AnyRecipe) -> tuple[Augmentation, Literal[1, 2]]:
    """The augmentation of a recipe's stage, and its views an image: two, and blur, in pretraining only."""
    if isinstance(recipe, PretrainRecipe):
        return Augmentation(recipe.image_size, strength=recipe.color_strength, blur=recipe.blur), 2
    if isinstance(recipe, FinetuneRecipe) and recipe.color_strength:
        return Augmentation(recipe.image_size, strength=recipe.color_strength, blur=False), 1
    return Augmentation(recipe.image_size, color=False, blur=False), 1


def draw_views(
    images: ImageSet,
    augmentation: Augmentation,
    path: str | Path,
    *,
    views: Literal[1, 2],
    seed: int,
    rows: int = 8,
    epoch: int = 0,
) -> None:
    """A PNG at ``path``: in each of ``rows`` rows an image and six views of it, of ``epoch`` and the epochs after it.

    ``views`` is the number of views that training takes of an image in an epoch: with 2 there are three epochs in a
    row, with 1 six. Which images are shown depends on the seed and the epoch; files that cannot be read are passed
    over. The crops of the first epoch are drawn into the original.

    Raises ValueError if no image can be read.
    """
    shown = [(epoch + k // views, k % views) for k in range(_VIEWS)]
    found: list[_Row] = []
    for index in np.random.default_rng([seed, epoch]).permutation(len(images)).tolist():
        if len(found) == rows:
            break
        try:
            pixels = read_image(images.paths[index])
        except ValueError:
            continue
        found.append(
            _Row(images.paths[index], pixels, list(_seen(pixels, augmentation, shown, index=index, seed=seed)))
        )
    if not found:
        raise ValueError(f"None of the {len(images)} images can be read: there is nothing to draw.")
    sheet = _sheet(found, augmentation, shown, views=views, seed=seed)
    with written_whole(path) as temporary:
        sheet.save(temporary, format="PNG")


def _seen(
    pixels: np.ndarray, augmentation: Augmentation, shown: list[tuple[int, int]], *, index: int, seed: int
) -> Iterator[tuple[View, np.ndarray]]:
    for epoch, view in shown:
        key: dict[str, Any] = {"indices": [index], "epoch": epoch, "view": view, "seed": seed}
        (drawn,) = augmentation.draw(np.array([pixels.shape[:2]]), **key)
        (seen,) = augmentation([pixels], **key)
        yield drawn, (seen * 255).round().byte().permute(1, 2, 0).numpy()


# ---- drawing ---------------------------------------------------------------------------------------------------------


def cell_side(size: int) -> int:
    """The side at which views of ``size`` pixels are drawn: a whole multiple of it, or less than it if it is big."""
    return min(size * max(1, math.ceil(_LEAST / size)), _MOST) if size <= _MOST else _MOST


def _sheet(
    rows: list[_Row], augmentation: Augmentation, shown: list[tuple[int, int]], *, views: int, seed: int
) -> Image.Image:
    cell = cell_side(augmentation.size)
    lefts = _lefts(cell, views)
    height = _HEAD + len(rows) * (cell + _CAPTION + _GAP) + _MARGIN
    sheet = Image.new("RGB", (lefts[-1] + cell + _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 18), _title(augmentation, seed), fill=_INK, font=_font(20))
    draw.text((_MARGIN, 48), _KEY, fill=_FAINT, font=_font(13))
    draw.text((lefts[0], _HEAD - 26), "original", fill=_FAINT, font=_font(14))
    for left, (epoch, view) in zip(lefts[1:], shown, strict=True):
        said = f"epoch {epoch}, view {view}" if views == 2 else f"epoch {epoch}"
        draw.text((left, _HEAD - 26), said, fill=_FAINT, font=_font(14))
    for number, row in enumerate(rows):
        _draw_row(sheet, row, lefts, _HEAD + number * (cell + _CAPTION + _GAP), cell, views)
    return sheet


def _lefts(cell: int, views: int) -> list[int]:
    """Left edges of the original and the views; a wider gap parts the epochs' pairs."""
    lefts = [_MARGIN]
    for place in range(_VIEWS):
        lefts.append(lefts[-1] + cell + (2 * _GAP if place == 0 or (views == 2 and place % 2 == 0) else _GAP))
    return lefts


def _title(augmentation: Augmentation, seed: int) -> str:
    color = f"colour strength {augmentation.strength:g}" if augmentation.color else "no colour jitter"
    return f"{augmentation.size} pixels, {color}, {'blur' if augmentation.blur else 'no blur'}, seed {seed}"


def _draw_row(sheet: Image.Image, row: _Row, lefts: list[int], top: int, cell: int, views: int) -> None:
    draw = ImageDraw.Draw(sheet)
    scale = cell / max(row.pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in row.pixels.shape[:2])
    at = (lefts[0] + (cell - width) // 2, top + (cell - height) // 2)
    sheet.paste(Image.fromarray(row.pixels).resize((width, height), Image.Resampling.LANCZOS), at)
    for (view, _), colour in zip(row.views[:views], _FRAMES, strict=False):  # one view takes one of the two colours
        y, x, h, w = (round(number * scale) for number in view.crop)
        # of a panorama a crop may be a pixel high here; frames need four
        box = (at[0] + x, at[1] + y, at[0] + x + max(w, 4) - 1, at[1] + y + max(h, 4) - 1)
        draw.rectangle(box, outline=_PAPER, width=4)  # so that it shows on a dark image, too
        draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=colour, width=2)
    _caption(draw, row.path.name, lefts[0], top + cell, cell, _INK)
    for place, (left, (view, pixels)) in enumerate(zip(lefts[1:], row.views, strict=True)):
        sheet.paste(_fit(pixels, cell), (left, top))
        framed, frame = place < views, (left - 3, top - 3, left + cell + 2, top + cell + 2)
        draw.rectangle(frame, outline=_FRAMES[place] if framed else _LINE, width=2 if framed else 1)
        _caption(draw, _said(view, row.pixels), left, top + cell, cell, _FAINT)


def _fit(pixels: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(pixels)
    enlarged = cell >= image.width
    return image.resize((cell, cell), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _said(view: View, pixels: np.ndarray) -> str:
    """What was done, in a few words: the crop as a share of the image, and what else there is."""
    share = view.crop[2] * view.crop[3] / (pixels.shape[0] * pixels.shape[1])
    words = [f"{share:.0%}"]
    words += ["flip"] if view.flip else []
    words += ["colour"] if view.order else []
    words += ["grey"] if view.grayscale else []
    words += [f"blur {view.sigma:.1f}"] if view.sigma else []
    return ", ".join(words)


def _caption(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, most: int, colour: tuple[int, int, int]
) -> None:
    """A line below a cell, cut at its start if it is wider than that."""
    font, text = _font(12), plain(text)
    if draw.textlength(text, font=font) > most:
        while text and draw.textlength("..." + text, font=font) > most:
            text = text[1:]
        text = "..." + text
    draw.text((left, top + 6), text, fill=colour, font=font)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font, which knows most of the letters that file names have

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
