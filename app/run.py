"""``simclr run``: images and a few labels to a student that is ready to serve, and a report."""

import importlib
import shlex
from pathlib import Path

import click
from click.core import ParameterSource

from zoo.folders import not_read

PATH = click.Path(path_type=Path)
_EXPORT_NEEDS = ("onnx", "onnxruntime")


@click.command()
@click.option("--images", type=PATH, required=True, help="A folder of images, nested as you like.")
@click.option("--labels", type=PATH, help="CSV with the columns path,label; else class folders.")
@click.option("--test", type=PATH, help="CSV of labelled images to measure on (never trained on).")
@click.option("--holdout", default=0.2, show_default=True, help="Without --test: share of the labels put aside.")
@click.option(
    "--budget",
    type=click.Choice(["auto", "quick", "standard", "paper"]),
    default="auto",
    show_default=True,
    help="quick: minutes. standard: hours on a GPU. paper: a cluster. auto: standard on a GPU, else quick.",
)
@click.option("--teacher", help="The network to pretrain; the budget's unless given.")
@click.option("--student", help="The network to distil into; the budget's unless given.")
@click.option("--out", type=PATH, required=True, help="The run folder. The same command goes on where it was.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.pass_context
def run(
    context: click.Context,
    images: Path,
    labels: Path | None,
    test: Path | None,
    holdout: float,
    budget: str,
    teacher: str | None,
    student: str | None,
    out: Path,
    device: str,
) -> None:
    """All three stages in a row, ending in an ONNX student, its accuracy and a report to look at.

    What was done before with the same images, labels and settings is not done again; a run that was stopped goes on
    when the same command is given.
    """
    for name in _EXPORT_NEEDS:
        importlib.import_module(name)  # now, and not after hours
    from export import to_onnx
    from training import data, pipeline, subsets

    data.refuse_inside(out, images)
    everything = data.from_folder(images)
    if labels is None and not any(path.parent != images for path in everything.paths):
        raise ValueError(f"{images} has no class folders: give --labels, a CSV with the columns path,label.")
    if others := not_read([images], links=True):
        click.echo(others)
    labelled = subsets.labelled_images(images, labels)
    held_out = data.from_table(test, root=images, classes=labelled.classes) if test else None
    figures = pipeline.run(
        everything,
        labelled,
        root=images,
        out=out,
        export=lambda model, path: to_onnx(model, path, weights="fp16"),
        teacher=teacher,
        student=student,
        budget=budget,  # type: ignore[arg-type]
        held_out=held_out,
        holdout=holdout,
        device=device,
        command=_command(context),
        labels_file=str(labels) if labels is not None and labels.suffix.lower() == ".csv" else "",
        say=click.echo,
    )
    click.echo("\n" + "\n".join(figures.lines()))
    command = ["simclr", "app", "--model", str(out / pipeline.STUDENT), "--gallery", str(images)]
    click.echo(f"\nNow: {shlex.join(command)}")


def _command(context: click.Context) -> str:
    """The command line, as the shell would take it."""
    words = ["simclr", "run"]
    for parameter in context.command.params:
        assert parameter.name is not None
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            words += [parameter.opts[0], str(context.params[parameter.name])]
    return shlex.join(words)
