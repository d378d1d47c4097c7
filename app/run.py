"""``simclr run``: images and a few labels to a student that is ready to serve."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--images", type=click.Path(path_type=Path), required=True, help="A folder of images, nested as you like."
)
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with the columns path,label; else class folders.")
@click.option(
    "--test", type=click.Path(path_type=Path), help="CSV of labelled images to measure on (never trained on)."
)
@click.option("--holdout", default=0.2, show_default=True, help="Without --test: share of the labels put aside.")
@click.option("--teacher", default="r50_1x", show_default=True)
@click.option("--student", default="r18_1x", show_default=True)
@click.option("--budget", type=click.Choice(["quick", "standard", "paper"]), default="standard", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
def run(
    images: Path,
    labels: Path | None,
    test: Path | None,
    holdout: float,
    teacher: str,
    student: str,
    budget: str,
    out: Path,
    device: str,
    resume: bool,
) -> None:
    """All three stages in a row, ending in an ONNX student and its accuracy."""
    from export import to_onnx
    from training import data, pipeline

    labelled = data.from_csv(labels, root=images) if labels else data.from_class_folders(images)
    held_out = data.from_csv(test, root=images, classes=labelled.classes) if test else None
    everything = data.from_folder(images)
    if held_out is not None:  # what measures is never trained on, with or without its label
        measured = {path.resolve() for path in held_out.paths}
        everything = everything.subset([i for i, p in enumerate(everything.paths) if p.resolve() not in measured])
    figures = pipeline.run(
        everything,
        labelled,
        teacher=teacher,
        student=student,
        out=out,
        export=lambda model, path: to_onnx(model, path, weights="fp16"),
        budget=budget,  # type: ignore[arg-type]
        held_out=held_out,
        holdout=holdout,
        device=device,
        resume=resume,
        say=lambda line: click.echo(f"\n{line}"),
    )
    click.echo("\n" + "\n".join(figures.lines()))
    click.echo(f"\nNow: simclr app --model {out / 'student.onnx'} --gallery {images}")
