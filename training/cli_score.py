"""The command `simclr score`: a teacher answers once, and students train without it."""

import os
from pathlib import Path

import click


@click.command()
@click.argument("teacher")
@click.option(
    "--images", type=click.Path(path_type=Path), required=True, help="A folder of images, nested as you like."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Where the answers go; a rerun goes on there."
)
@click.option("--crops", default=5, show_default=True, help="Random crops of each image.")
@click.option("--crop-seed", default=0, show_default=True, help="Which crops.")
@click.option("--image-size", type=int, help="Side of the crops in pixels: the students'.  [default: the teacher's]")
@click.option("--top-k", type=int, help="Logits kept for each crop.  [default: all of up to 128 classes, else 64]")
@click.option("--batch-size", default=128, show_default=True, help="Crops that the teacher sees at once.")
@click.option("--workers", default=1, show_default=True, help="Processes that read images.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
def score(
    teacher: str,
    images: Path,
    out: Path,
    crops: int,
    crop_seed: int,
    image_size: int | None,
    top_k: int | None,
    batch_size: int,
    workers: int,
    device: str,
) -> None:
    """Let TEACHER answer about crops of all images once, for students to learn from without it.

    TEACHER is a .safetensors or .onnx file, or a zoo name such as r18_1x:imagenette_distilled. Give the folder --out to
    `simclr distill --teacher`. Interrupted, the same command goes on. Runs under torchrun, a share of the images each.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch size {batch_size}, workers {workers}: at least 1 and 0.")
    import torch

    from training import data
    from training.loop import pick_device
    from training.scoring import plan_scoring, score_teacher
    from training.teachers import open_teacher

    where = pick_device(device)
    if where.type == "cuda" and "LOCAL_RANK" in os.environ:
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    found, source = open_teacher(teacher), data.from_folder(images)
    plan = plan_scoring(found, source, crops=crops, seed=crop_seed, image_size=image_size, top_k=top_k)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        kept = "all" if plan.top_k == plan.num_classes else f"the best {plan.top_k} of"
        click.echo(
            f"{len(source):,} images, {crops} crops of {plan.image_size} pixels and an evaluation view each, "
            f"{kept} {plan.num_classes:,} classes: {plan.bytes_per_image:,} bytes an image, "
            f"{_size(plan.bytes_per_image * len(source))} in all."
        )
    manifest = score_teacher(
        found,
        source,
        out,
        crops=crops,
        seed=crop_seed,
        image_size=image_size,
        top_k=top_k,
        batch_size=batch_size,
        device=where,
        workers=workers,
    )
    if manifest is None:
        click.echo("This process is done; others are still at work. If they were stopped, run the command again.")
        return
    written = sum(path.stat().st_size for name in [*plan.shards, "manifest.json"] if (path := out / name).is_file())
    lost = f" ({manifest['unreadable']:,} of them unreadable)" if manifest["unreadable"] else ""
    outside = manifest["outside_top_k"]
    rest = f" The classes not kept have {outside:.2%} of the probability on average." if outside else ""
    click.echo(
        f"Answers for {len(source):,} images{lost} in {out}: {_size(written)}, {written / len(source):,.0f} bytes each."
        + rest
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
