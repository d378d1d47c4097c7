"""The commands that look at images before anything is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from zoo.files import json_text
from zoo.folders import not_read

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--images", type=_FOLDER, required=True, help="A folder of images, nested as you like.")
@click.option("--labels", type=_FOLDER, help="CSV or Parquet with path,label; or imagenet_1pct, imagenet_10pct.")
@click.option("--class-folders", is_flag=True, help="The folders in --images are classes.")
@click.option("--image-size", type=click.IntRange(min=1), help="Count the images smaller than this.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every file named.")
def check(
    images: Path, labels: Path | None, class_folders: bool, image_size: int | None, workers: int, as_json: bool
) -> int:
    """Decode every image once and report: sizes, formats, copies, labels, what cannot be read.

    The exit status is 1 if there are files that cannot be read.
    """
    if labels and class_folders:
        raise ValueError("Give either --labels or --class-folders.")
    from training import data, subsets
    from training.survey import survey

    found = data.from_class_folders(images) if class_folders else data.from_folder(images)
    if labels:
        found = data.with_labels(found, subsets.labelled_images(images, labels))
    report = survey(found, workers=workers, smallest=image_size)
    click.echo(json_text(dataclasses.asdict(report)) if as_json else "\n".join(report.lines()))
    if others := not_read([images], links=True):
        click.echo(others, err=as_json)
    return 1 if report.unreadable else 0


@click.command()
@click.option("--images", type=_FOLDER, required=True, help="A folder of images, nested as you like.")
@click.option("--recipe", "name", default="standard_pretrain", show_default=True)
@click.option("--out", type=_FOLDER, default="views.png", show_default=True, help="The PNG to write.")
@click.option("--rows", type=click.IntRange(min=1), default=8, show_default=True, help="How many images.")
@click.option("--epoch", type=click.IntRange(min=0), default=0, show_default=True, help="The first epoch to show.")
@click.option("--image-size", type=int, help="Overrides the recipe.")
@click.option("--color-strength", type=float, help="Overrides the recipe.")
@click.option("--blur/--no-blur", default=None, help="Overrides the recipe.")
@click.option("--seed", type=int, help="Overrides the recipe.")
def views(
    images: Path,
    name: str,
    out: Path,
    rows: int,
    epoch: int,
    image_size: int | None,
    color_strength: float | None,
    blur: bool | None,
    seed: int | None,
) -> None:
    """Draw some images beside their augmented views, exactly as training with the recipe sees them."""
    from training import data
    from training.recipes import recipe
    from training.views import draw_views, recipe_augmentation

    given: dict[str, Any] = {"image_size": image_size, "color_strength": color_strength, "blur": blur, "seed": seed}
    found = recipe(name)
    overrides = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(found)})
    if unknown:
        option = "--" + unknown[0].replace("_", "-")
        raise ValueError(f"{option} is for pretraining; the views of {name!r} are cropped and flipped only.")
    chosen = dataclasses.replace(found, **overrides)
    augmentation, each = recipe_augmentation(chosen)
    data.refuse_inside(out, images)
    draw_views(data.from_folder(images), augmentation, out, views=each, seed=chosen.seed, rows=rows, epoch=epoch)
    click.echo(f"Views of {name}: {out}")
