"""The command line of training: one command a stage, with an option for every field of its recipe."""

import dataclasses
import json
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from training.recipes import RECIPES, AnyRecipe, DistillRecipe, FinetuneRecipe, PretrainRecipe, recipe
from zoo.console import run_command
from zoo.registry import SpecLike
from zoo.registry import spec as find_spec

_EXISTING_FOLDER = click.Path(path_type=Path)
_SHORT = {"batch_size": "--batch", "micro_batch": "--micro"}
_F = TypeVar("_F", bound=Callable[..., Any])


def _option(name: str, kind: Any) -> click.Option:
    flag = "--" + name.replace("_", "-")
    flags = [name, flag] + ([_SHORT[name]] if name in _SHORT else [])
    help_text = "Overrides the recipe."
    if kind == SpecLike:
        kind = str
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help_text)
    if typing.get_origin(kind) is Literal:
        return click.Option(flags, type=click.Choice(typing.get_args(kind)), help=help_text)
    return click.Option(flags, type=kind, help=help_text)


def recipe_options(kind: type[AnyRecipe]) -> list[click.Parameter]:
    """A command-line option for every field of a recipe."""
    hints = typing.get_type_hints(kind)
    return [_option(field.name, hints[field.name]) for field in dataclasses.fields(kind) if field.name != "note"]


def _chosen(kind: type[AnyRecipe], name: str, overrides: dict[str, Any]) -> AnyRecipe:
    found = recipe(name)
    if not isinstance(found, kind):
        suiting = [other for other, value in RECIPES.items() if isinstance(value, kind)]
        raise ValueError(f"Recipe {name!r} is for another stage. Choose from: {', '.join(suiting)}.")
    names = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in overrides.items() if key in names and value is not None}
    return dataclasses.replace(found, **given)


def _images_option(help_text: str) -> Callable[[_F], _F]:
    return click.option("--images", type=_EXISTING_FOLDER, required=True, help=help_text)


def _run_options(function: _F) -> _F:
    for option in (
        click.option("--resume", is_flag=True, help="Go on with the run in --out."),
        click.option(
            "--validation",
            type=click.Path(path_type=Path),
            help="Labelled images to score on the way: class folders, or a table of path,label.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu."),
        click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory."),
    ):
        function = option(function)
    return function


def _label_options(function: _F) -> _F:
    for option in (
        click.option("--label-seed", default=0, show_default=True, help="Which labels the share takes."),
        click.option("--label-share", type=float, help="Use this share of the labels, of every class alike."),
        click.option(
            "--labels",
            type=click.Path(path_type=Path),
            help="CSV or Parquet with path,label; or imagenet_1pct, imagenet_10pct.",
        ),
    ):
        function = option(function)
    return function


def _labelled(images: Path, labels: Path | None, share: float | None, seed: int) -> Any:
    """Labelled images from a table, a published list, or class folders; a share of them if asked for."""
    from training import subsets

    return subsets.labelled_images(images, labels, share, seed)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun starts several, of which one speaks


def _say(line: str) -> None:
    if _is_first():
        click.echo(line)


def _talk() -> None:
    """Runs tell of the images, of what they skip and of what looks wrong, on the error output."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("simclrv2").setLevel(logging.INFO if _is_first() else logging.WARNING)


def _validation(given: Path | None, images: Path, classes: tuple[str, ...] | None) -> Any:
    """The images of --validation, in the order of ``classes`` if there are some."""
    from training import data

    if given is None:
        return None
    if given.is_dir():
        return data.from_class_folders(given)
    return data.from_table(given, root=images, classes=classes or None)


def load_model(name: str) -> Any:
    """A ``.safetensors`` file, or ``name:weights`` of the zoo, such as ``r18_1x:imagenette_distilled``."""
    import zoo
    from zoo.weights import load_given

    if name.endswith(".safetensors"):
        return load_given(name)
    model, _, weights = name.partition(":")
    return zoo.load(model, weights=weights or "pretrained")


@click.command(epilog="Recipes: " + ", ".join(n for n, r in RECIPES.items() if isinstance(r, PretrainRecipe)))
@click.option("--recipe", "name", default="standard_pretrain", show_default=True)
@_images_option("A folder of images, nested as you like; labels are not used.")
@_run_options
def pretrain(
    name: str, images: Path, out: Path, device: str, resume: bool, validation: Path | None, **overrides: Any
) -> None:
    """Stage 1: contrastive pretraining on images without labels."""
    chosen = _chosen(PretrainRecipe, name, overrides)
    assert isinstance(chosen, PretrainRecipe)
    from training import data, runs

    data.refuse_inside(out, images)
    few = _validation(validation, images, None)
    _talk()
    runs.pretrain(chosen, data.from_folder(images), out=out, device=device, resume=resume, validation=few)
    _say(f"Pretrained model: {out / runs.MODEL_FILE}")


@click.command(epilog="Recipes: " + ", ".join(n for n, r in RECIPES.items() if isinstance(r, FinetuneRecipe)))
@click.option("--recipe", "name", default="standard_finetune", show_default=True)
@click.option(
    "--from", "source", help="Pretrained model: a .safetensors file, or a zoo name such as r50_1x:pretrained."
)
@_images_option("Class folders; or the folder that the paths in --labels start from.")
@_label_options
@_run_options
def finetune(
    name: str,
    source: str | None,
    images: Path,
    labels: Path | None,
    label_share: float | None,
    label_seed: int,
    out: Path,
    device: str,
    resume: bool,
    validation: Path | None,
    **overrides: Any,
) -> None:
    """Stage 2: fine-tuning on few labels; --recipe standard_linear makes it linear evaluation."""
    chosen = _chosen(FinetuneRecipe, name, overrides)
    assert isinstance(chosen, FinetuneRecipe)
    from training import data, runs

    if labels is None:
        data.refuse_inside(out, images)
    few = _labelled(images, labels, label_share, label_seed)
    model = load_model(source) if source and not chosen.from_scratch else None
    wanted = overrides["model"]
    if model is not None and wanted is not None and find_spec(wanted) != model.spec:
        raise ValueError(f"--model {wanted}, but {source} is a {model.spec.name}; leave --model out.")
    held_out = _validation(validation, images, few.classes)
    _talk()
    runs.finetune(chosen, few, model, out=out, device=device, resume=resume, validation=held_out)
    _say(f"Fine-tuned model ({len(few)} labels): {out / runs.MODEL_FILE}")


@click.command(epilog="Recipes: " + ", ".join(n for n, r in RECIPES.items() if isinstance(r, DistillRecipe)))
@click.option("--recipe", "name", default="standard_distill", show_default=True)
@click.option(
    "--teacher",
    required=True,
    help="A .safetensors or .onnx file, a zoo name, or a folder of answers that `simclr score` wrote.",
)
@click.option(
    "--preset",
    type=click.Choice(["self", "small"]),
    help="self: temperature 0.1, the student has the teacher's architecture; small: temperature 1.",
)
@_images_option("A folder of images; labels are used only with --alpha below 1.")
@_label_options
@_run_options
def distill(
    name: str,
    teacher: str,
    preset: str | None,
    images: Path,
    labels: Path | None,
    label_share: float | None,
    label_seed: int,
    out: Path,
    device: str,
    resume: bool,
    validation: Path | None,
    **overrides: Any,
) -> None:
    """Stage 3: distillation into a student on images without labels."""
    chosen = _chosen(DistillRecipe, name, overrides)
    assert isinstance(chosen, DistillRecipe)
    from training import data, runs
    from training.teachers import ModelTeacher, open_teacher

    found = open_teacher(teacher)
    if preset is not None and overrides["temperature"] is None:
        chosen = dataclasses.replace(chosen, temperature={"self": 0.1, "small": 1.0}[preset])
    if preset == "self" and overrides["model"] is None:
        if not isinstance(found, ModelTeacher):
            raise ValueError(f"--preset self takes the teacher's architecture, but {teacher} tells none; add --model.")
        chosen = dataclasses.replace(chosen, model=found.model.spec)
    if chosen.alpha == 1 and (labels is not None or label_share is not None):
        raise ValueError("Labels are used only with --alpha below 1: give one, or leave the labels out.")
    data.refuse_inside(out, images)
    everything = data.from_folder(images)
    if chosen.alpha < 1:
        everything = data.with_labels(everything, _labelled(images, labels, label_share, label_seed))
    held_out = _validation(validation, images, found.classes)
    _talk()
    runs.distill(chosen, everything, found, out=out, device=device, resume=resume, validation=held_out)
    _say(f"Student: {out / runs.MODEL_FILE} (the last), {out / runs.BEST_FILE} (the best on the way)")


@click.command()
@click.argument("model")
@_images_option("Class folders; or the folder that the paths in --labels start from.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with the columns path,label.")
@click.option("--knn", type=_EXISTING_FOLDER, help="Class folders whose images vote, none on itself: a kNN score.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(model: str, images: Path, labels: Path | None, knn: Path | None, device: str, as_json: bool) -> None:
    """Accuracy of MODEL (.safetensors file or zoo name) on labelled images; with --knn, of its features."""
    from training import data
    from training import evaluate as evaluation
    from training.loop import pick_device

    test = _labelled(images, labels, None, 0)
    network, where = load_model(model), pick_device(device)
    if knn:
        found = evaluation.knn_score(network, data.from_class_folders(knn), test, device=where)
    else:
        found = evaluation.accuracy(network, test, device=where)
    click.echo(json.dumps(dataclasses.asdict(found) | {"interval": found.interval}) if as_json else str(found))


for _command, _kind in ((pretrain, PretrainRecipe), (finetune, FinetuneRecipe), (distill, DistillRecipe)):
    _command.params.extend(recipe_options(_kind))


def main(arguments: list[str] | None = None) -> int:
    """``python -m training RECIPE --images DIR --out DIR [--field value ...]``; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0].startswith("-"):
        print("usage: python -m training RECIPE --images DIR --out DIR [overrides]\nRecipes:")
        for name, value in RECIPES.items():
            print(f"  {name:26} {find_spec(value.model).name:12} {value.image_size:4} px  {value.note}")
        return 0 if given and given[0] in ("-h", "--help") else 2
    try:
        stage = {PretrainRecipe: pretrain, FinetuneRecipe: finetune, DistillRecipe: distill}[type(recipe(given[0]))]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(stage, ["--recipe", *given], name=f"python -m training {given[0]}")
