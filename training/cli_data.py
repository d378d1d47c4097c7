"""The commands that look at images before anything is trained."""

import dataclasses
import json
from pathlib import Path

import click

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
    click.echo(json.dumps(dataclasses.asdict(report), ensure_ascii=False) if as_json else "\n".join(report.lines()))
    return 1 if report.unreadable else 0
