"""Which images to label: a folder of images to a short list to fill in, and a contact sheet of it. Needs no torch."""

import csv as csv_module
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from tqdm import tqdm

from export.embeddings import NEAR_DUPLICATE, choose
from training.embed import Embedder, OnSkip, embed_files, find_files, read_embeddings, skipped_files
from zoo.console import plain
from zoo.files import written_whole
from zoo.transforms import read_image

THUMBNAIL = 180  # pixels, the longer side
MOST_SHOWN = 1000  # pictures of a sheet: more are no longer looked at
_CAPTION, _GAP, _MOST_COLUMNS = 26, 10, 8
AnyFont: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
_MADE_BY = "simclr pick"  # in the PNG's text, so that no other picture is overwritten


# ---- lists of path and label -----------------------------------------------------------------------------------------


def listed(csv: Path) -> dict[str, str]:
    """Label by path of a CSV file with the columns ``path`` and ``label``; labels may be empty.

    Raises ValueError for a file that is missing or is not such a list.
    """
    try:
        with csv.open(encoding="utf-8-sig", newline="") as file:
            reader = csv_module.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not {"path", "label"} <= set(reader.fieldnames):
                raise ValueError(f"{csv}: its first line does not name the columns 'path' and 'label'.")
            return {(row["path"] or "").strip(): (row["label"] or "").strip() for row in reader}
    except FileNotFoundError:
        raise ValueError(f"{csv}: no such file.") from None
    except (UnicodeDecodeError, csv_module.Error) as error:
        raise ValueError(f"{csv}: cannot be read as CSV in UTF-8 ({error}).") from None


def write_list(rows: Sequence[tuple[str, str]], out: Path) -> None:
    """(path, label) as CSV, whole or not at all. Raises ValueError if ``out`` is more than a list not yet filled in."""
    text = io.StringIO(newline="")
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    writer.writerows(rows)
    content = text.getvalue().encode()
    if out.exists() and out.read_bytes() != content:
        refuse_filled(out)
    with written_whole(out) as temporary:
        temporary.write_bytes(content)


def refuse_filled(csv: Path) -> None:
    """Raise ValueError if there is a file that is not a list without labels: somebody's work."""
    if not csv.exists():
        return
    try:
        labels = [label for label in listed(csv).values() if label]
    except ValueError:
        raise ValueError(f"{csv} is there and is no list of path,label; give another --out.") from None
    if labels:
        raise ValueError(f"{csv} has {len(labels)} labels filled in and is not overwritten; give another --out.")


# ---- the contact sheet -----------------------------------------------------------------------------------------------


def contact_sheet(files: Sequence[Path], names: Sequence[str]) -> Image.Image:
    """Numbered thumbnails of the first 1,000 pictures, from 1, row by row, with their names: at most 8 in a row, 180
    pixels each."""
    files, names = files[:MOST_SHOWN], names[:MOST_SHOWN]
    columns = max(1, min(math.ceil(math.sqrt(len(files))), _MOST_COLUMNS))
    wide, high = THUMBNAIL + _GAP, THUMBNAIL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, -(-len(files) // columns) * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(17), ImageFont.load_default(11)
    for place, (file, name) in enumerate(zip(files, names, strict=True)):
        left, top = place % columns * wide + _GAP, place // columns * high + _GAP
        thumbnail = Image.fromarray(read_image(file))
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        draw.text((left, top), f"{place + 1}", fill="black", font=bold)
        indent = draw.textlength(f"{place + 1}", font=bold) + 7
        draw.text((left + indent, top + 5), _fitting(draw, name, THUMBNAIL - indent, small), fill="#555555", font=small)
        sheet.paste(thumbnail, (left + (THUMBNAIL - thumbnail.width) // 2, top + _CAPTION))
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, name: str, width: float, font: AnyFont) -> str:
    """A name, or as much of its end as fits."""
    shown = name = plain(name)
    while draw.textlength(shown, font=font) > width:
        name = name[1:]
        shown = f"...{name}"
    return shown


def _write_sheet(sheet: Image.Image, path: Path) -> None:
    made_by = PngImagePlugin.PngInfo()
    made_by.add_text("Software", _MADE_BY)
    with written_whole(path) as temporary:
        sheet.save(temporary, "PNG", pnginfo=made_by)


def _refuse_picture(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        ours = _MADE_BY.encode() in file.read(4096)
    if not ours:
        raise ValueError(f"{path} is there and is no contact sheet of `simclr pick`; give another --sheet.")


# ---- the whole -------------------------------------------------------------------------------------------------------


class Picked(NamedTuple):
    """What was picked, of how many images, and how many were left out and why."""

    files: list[Path]
    images: int
    labelled: int
    near_duplicates: int
    unusable: int


def pick(
    images: Path,
    budget: int,
    *,
    model: Callable[[], Embedder] | None = None,
    embeddings: Path | None = None,
    out: Path,
    sheet: Path,
    method: Literal["kmeans", "kcenter"] = "kmeans",
    labels: Path | None = None,
    duplicates: float = NEAR_DUPLICATE,
    seed: int = 0,
    on_skip: OnSkip | None = None,
) -> Picked:
    """The ``budget`` images of a folder to label first (``export.embeddings.choose``), as a CSV file to fill in, paths
    relative to the folder, and a contact sheet (PNG), both in the same order.

    Vectors come from the model that ``model()`` opens once all else is checked, or from ``embeddings``, a folder that
    ``simclr embed`` wrote. ``labels`` lists images that are labelled already: they and their near-duplicates are not
    picked, nor images of their clusters.

    Raises ValueError, in one line and before any work, for a budget that cannot be met, a list that holds labels
    already, a picture in the place of the sheet, or labels that name unknown images.
    """
    if (model is None) == (embeddings is None):
        raise ValueError("Give either a model or a folder of embeddings.")
    if out.resolve() == sheet.resolve():
        raise ValueError(f"{out}: the list and the contact sheet cannot be one file; give another --sheet.")
    refuse_filled(out)
    _refuse_picture(sheet)
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder.")
    files = find_files([images])
    known = _known(labels, images) if labels is not None else set()
    if not 1 <= budget <= len(files):
        raise ValueError(f"A budget of {budget} for {len(files)} images: choose from 1 to {len(files)}.")
    files += sorted(known - {file.resolve() for file in files})  # labelled images from outside the folder
    skipped = 0
    if model is not None:
        embedder = model()
        with tqdm(total=len(files), desc="embedding", unit=" images", disable=None, dynamic_ncols=True) as bar:
            found = embed_files(embedder, files, bar=bar, on_skip=on_skip)
        skipped = len(found.problems)
        files, features = [files[place] for place in found.places], found.features
    else:
        assert embeddings is not None
        files, features = _stored(embeddings, files)
    before = [row for row, file in enumerate(files) if file.resolve() in known]
    choice = choose(features, budget, method=method, known=before, duplicates=duplicates, seed=seed)
    picked = [files[row] for row in choice.rows]
    names = [file.relative_to(images).as_posix() for file in picked]
    _write_sheet(contact_sheet(picked, names), sheet)
    write_list([(name, "") for name in names], out)
    return Picked(picked, len(files), len(before), choice.near_duplicates, skipped + choice.unusable)


def _known(labels: Path, images: Path) -> set[Path]:
    """The files that a list names, whether a label is filled in or not: they have been picked."""
    files = {images / path for path in listed(labels)}
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing:
        shown = ", ".join(missing[:5]) + (f", ... ({len(missing)} in all)" if len(missing) > 5 else "")
        raise ValueError(f"{labels}: no such file: {shown}. Its paths must start from --images {images}.")
    return {file.resolve() for file in files}


def _stored(folder: Path, files: list[Path]) -> tuple[list[Path], np.ndarray]:
    """Files and their vectors from a folder of embeddings. Raises ValueError if some are not in it."""
    paths, features, _ = read_embeddings(folder)
    rows = {path.resolve(): row for row, path in enumerate(paths)}
    skipped = {path.resolve() for path in skipped_files(folder)}
    files = [file for file in files if file.resolve() not in skipped]
    missing = [file for file in files if file.resolve() not in rows]
    if missing:
        raise ValueError(
            f"{folder} has no vectors of {len(missing)} of {len(files)} images, such as {missing[0]}; "
            "run `simclr embed` on the same folder again."
        )
    return files, features[[rows[file.resolve()] for file in files]]
