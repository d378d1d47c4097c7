"""The commands that choose before training: vectors of a folder, which images to label, a share of the labels."""

import json
import sys
from pathlib import Path
from typing import Literal

import click

PATH = click.Path(path_type=Path)
BUNDLED = "r18_1x:imagenette_distilled"


def _told_skipped(path: Path, reason: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"skipped: {path}: {reason}", file=sys.stderr)


@click.command()
@click.argument("model")
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default="embeddings", show_default=True, help="The folder to write.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option(
    "--shard",
    type=click.IntRange(min=1),
    help="Images a shard at most, 10000 unless given; under torchrun one shard a process unless given.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def embed(
    model: str,
    paths: tuple[Path, ...],
    out: Path,
    batch: int,
    device: str,
    shard: int | None,
    dtype: Literal["float32", "float16"],
    as_json: bool,
) -> None:
    """Vectors of PATHS, image files or folders of them, by MODEL: a zoo name such as r18_1x:imagenette_distilled, a
    .safetensors file or an .onnx file.

    Files that cannot be read are named, skipped and listed. Finished shards are not made again. Under torchrun every
    process makes its own: torchrun --nproc-per-node 2 --no-python simclr embed ...
    """
    from training import embed as embedding

    files = embedding.find_files(paths)
    embedder = embedding.open_model(model, device=device)
    done = embedding.embed_to(embedder, files, out, batch=batch, shard=shard, dtype=dtype, on_skip=_told_skipped)
    if done.images is None:  # other processes are still at work: the last one tells
        return
    if as_json:
        told = {"out": str(out), "model": embedder.name, "fingerprint": embedder.fingerprint}
        click.echo(json.dumps(told | {"dimension": embedder.dimension, **done._asdict()}))
        return
    before = f", {done.done_before} of them there before" if done.done_before else ""
    skipped = f"; {done.skipped} files skipped, see {out / embedding.SKIPPED}" if done.skipped else ""
    plural = "shard" if done.shards == 1 else "shards"
    click.echo(f"{out}: {done.images} vectors of {embedder.dimension} in {done.shards} {plural}{before}{skipped}")


@click.command()
@click.option("--images", type=PATH, required=True, help="A folder of images, nested as you like.")
@click.option("--budget", type=int, required=True, help="How many images to pick.")
@click.option(
    "--model", help="A zoo name, .safetensors or .onnx file; the bundled student (r18_1x, 96 pixels) unless given."
)
@click.option("--embeddings", type=PATH, help="Instead of a model: a folder that `simclr embed` wrote of these images.")
@click.option(
    "--method",
    type=click.Choice(["kmeans", "kcenter"]),
    default="kmeans",
    show_default=True,
    help="kmeans: the middle of each of as many clusters; kcenter: each the farthest from those before it.",
)
@click.option("--labels", type=PATH, help="CSV path,label of images labelled already: new picks are unlike them.")
@click.option("--out", type=PATH, default="labels.csv", show_default=True, help="The list to fill in.")
@click.option("--sheet", type=PATH, help="The contact sheet, PNG; beside --out, with its name, unless given.")
@click.option(
    "--duplicates",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    help="Of images with this cosine or more only one is considered; 1 considers all.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of k-means.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
def pick(
    images: Path,
    budget: int,
    model: str | None,
    embeddings: Path | None,
    method: Literal["kmeans", "kcenter"],
    labels: Path | None,
    out: Path,
    sheet: Path | None,
    duplicates: float,
    seed: int,
    device: str,
) -> None:
    """Which images to label first: a list to fill in, path,label, and a contact sheet to look at."""
    from training import data
    from training import embed as embedding
    from training import pick as picking

    if model is not None and embeddings is not None:
        raise ValueError("--model and --embeddings exclude each other: the embeddings were made by a model.")
    sheet = sheet or out.with_suffix(".png")
    data.refuse_inside(sheet, images, option="--sheet")
    picked = picking.pick(
        images,
        budget,
        model=(lambda: embedding.open_model(model or _bundled(), device=device)) if embeddings is None else None,
        embeddings=embeddings,
        out=out,
        sheet=sheet,
        method=method,
        labels=labels,
        duplicates=duplicates,
        seed=seed,
        on_skip=_told_skipped,
    )
    numbers = {"labelled": picked.labelled, "near-duplicates": picked.near_duplicates, "unusable": picked.unusable}
    besides = "".join(f", {number} {what}" for what, number in numbers.items() if number)
    click.echo(f"Picked {len(picked.files)} of {picked.images} images{besides}.")
    first = f" (the first {picking.MOST_SHOWN:,})" if len(picked.files) > picking.MOST_SHOWN else ""
    click.echo(f"To fill in: {out}\nTo look at: {sheet}{first}")


def _bundled() -> str:
    """The bundled student, as the ONNX file that needs no torch where this copy has it."""
    from export import embeddings

    onnx = Path(embeddings.__file__).parent / "bundled" / f"{BUNDLED.replace(':', '.')}.onnx"
    return str(onnx) if onnx.is_file() else BUNDLED


@click.command()
@click.option("--images", type=PATH, help="Class folders; or, with --labels, the folder that its paths start from.")
@click.option("--labels", type=PATH, help="CSV with the columns path,label; its own folder unless --images is given.")
@click.option("--share", type=float, help="Of each class this share, 0.01 for 1 %, but at least one image.")
@click.option("--per-class", type=int, help="Of each class so many images.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With the same seed a small subset is part of a large one.",
)
@click.option("--out", type=PATH, required=True, help="The list to write, path,label.")
def subset(
    images: Path | None, labels: Path | None, share: float | None, per_class: int | None, seed: int, out: Path
) -> None:
    """A stratified random subset of labelled images as a list path,label; paths as from --images, or as in --labels."""
    import numpy as np

    from training import data
    from training.pick import write_list

    if images is None and labels is None:
        raise ValueError("Give --images with class folders, or --labels with a CSV.")
    if (share is None) == (per_class is None):
        raise ValueError("Give either --share or --per-class.")
    root = images if images is not None else labels.parent  # type: ignore[union-attr]
    found = data.from_csv(labels, root=root) if labels is not None else data.from_class_folders(root)
    assert found.labels is not None
    for name, size in zip(found.classes, np.bincount(found.labels), strict=True):
        if per_class is not None and size < per_class:
            raise ValueError(f"Class {name!r} has {size} images, fewer than --per-class {per_class}.")
    places = data.stratified_subset(found.labels, fraction=share, per_class=per_class, seed=seed)
    few = found.subset(places)
    assert few.labels is not None
    rows = [
        ((path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), found.classes[label])
        for path, label in zip(few.paths, few.labels, strict=True)
    ]
    write_list(rows, out)
    click.echo(f"{out}: {len(rows)} of {len(found)} images, {len(found.classes)} classes")
