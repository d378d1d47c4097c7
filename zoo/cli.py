"""The command line of the zoo: weights converted, verified, fetched, bundled, locked and pushed."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import click

from zoo.registry import CATEGORIES, list_weights
from zoo.registry import spec as find_spec

_PATH = click.Path(path_type=Path)
_TORCHVISION_LINES = """\
model = torchvision.models.resnet{depth}(num_classes={classes})
model.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)  # TensorFlow's padding where it meets an even size, as at 224
model.load_state_dict(safetensors.torch.load_file("{out}"))"""


@click.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--model", help="Recognised from the variables unless given; the authors' names work too.")
@click.option(
    "--weights", type=click.Choice(list(CATEGORIES)), help="Recognised from the path and step where it can be."
)
@click.option("--ema", is_flag=True, help="Take the moving averages.")
@click.option("--num-classes", type=click.IntRange(min=0), help="What the classifier must have; 0 leaves it out.")
@click.option("--image-size", type=int, help="Pixels of the evaluation transform; 224, or 32 for small stems.")
@click.option("--to", type=click.Choice(["simclrv2", "torchvision"]), default="simclrv2", show_default=True)
def convert(
    source: Path,
    out: Path,
    model: str | None,
    weights: str | None,
    ema: bool,
    num_classes: int | None,
    image_size: int | None,
    to: Literal["simclrv2", "torchvision"],
) -> None:
    """Convert SOURCE into OUT, a .safetensors file, with its config.json.

    SOURCE: a TensorFlow checkpoint (prefix, file or folder), or a pickle in the layout of
    lightly-ai/simclrv2-imagenet1k-* or of VISSL's converted file.
    """
    from zoo import conversion

    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: the output is a .safetensors file; give it that ending.")
    config = conversion.convert(
        source, out, model=model, weights=weights, ema=ema, num_classes=num_classes, image_size=image_size, to=to
    )
    told = json.loads(config.read_text(encoding="utf-8"))
    category = told["facts"]["weights"] or "weights of no known category"
    click.echo(f"{out}: {told['architecture']}, {category}, {out.stat().st_size / 1e6:.1f} MB; see {config.name}")
    if to == "torchvision":
        lines = _TORCHVISION_LINES.format(
            depth=told["spec"]["depth"], classes=told["num_classes"] or 1000, out=out.as_posix()
        )
        if told["num_classes"] is None:
            lines = lines.replace("model.load", "model.fc = torch.nn.Identity()\nmodel.load")
        click.echo(f"\n{lines}")


@click.command()
@click.argument("files", type=_PATH, nargs=-1, required=True)
def verify(files: tuple[Path, ...]) -> int:
    """Verify model FILES: hash, every tensor, and outputs on generated images against those kept when converted.

    The exit status is 1 if one of them differs.
    """
    from zoo import conversion

    bad = 0
    for file in files:
        verdict = conversion.verify(file)
        bad += not verdict.good
        click.echo(f"{file}: {'good' if verdict.good else 'NOT GOOD'}")
        for line in verdict.lines():
            click.echo(f"  {line}")
    return 1 if bad else 0


def _name(text: str) -> tuple[str, str]:
    """``r50_1x`` or ``r50_1x:finetuned_1pct``; without weights, the first there are. Raises ValueError for a path."""
    from zoo.weights import HUB_SCHEME, required_name

    model, _, weights = text.partition(":")
    spec = find_spec(model)
    weights = weights or next(iter(list_weights(spec)), "pretrained")
    if not weights.startswith(HUB_SCHEME):
        required_name(weights, spec)
    return spec.name, weights


def _source_options(function: Any) -> Any:
    for option in (
        click.option("--cache", "cache_dir", type=_PATH, help="The cache folder; SIMCLR_CACHE, or the platform's."),
        click.option("--namespace", help="Whose repositories on the Hub to ask; SIMCLR_HUB_NAMESPACE."),
        click.option("--offline", "local_files_only", is_flag=True, help="No network."),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--revision", help="A tag, branch or commit on the Hub.")
@_source_options
def pull(names: tuple[str, ...], **options: Any) -> None:
    """Fetch weights into the cache and check them. NAMES are like r50_1x:finetuned_1pct."""
    from zoo.weights import locate

    for name in names:
        model, weights = _name(name)
        click.echo(f"{model}:{weights}  {locate(model, weights=weights, **options)}")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.argument("out", type=_PATH)
@_source_options
def bundle(names: tuple[str, ...], out: Path, **options: Any) -> None:
    """Make OUT, a folder with the weights NAMES (like r50_1x:finetuned_1pct) that works with no network anywhere."""
    from zoo import bundling

    for model, weights in map(_name, names):
        path = bundling.add(out, model, weights, **options)
        click.echo(f"{model}:{weights}  {path}")
    click.echo(f'Take {out} along; there: zoo.load({_name(names[0])[0]!r}, ..., cache_dir="{out.name}")')


@click.command()
@click.argument("names", nargs=-1)
@click.option("--forget", is_flag=True, help="Forget what is recorded for NAMES.")
@_source_options
def lock(names: tuple[str, ...], forget: bool, cache_dir: Path | None, **options: Any) -> None:
    """Show the SHA-256 recorded for weights at their first use; with NAMES, fetch, check and record them."""
    from zoo import lock as locks
    from zoo.files import cache_dir as default_cache_dir

    path = locks.lock_path(cache_dir or default_cache_dir())
    if forget and not names:
        raise ValueError("--forget what? Give names, such as r50_1x:pretrained.")
    for name in names:
        if forget:
            locks.forget(path, name if name.startswith("hf://") else ":".join(_name(name)))
        else:
            from zoo.weights import locate

            model, weights = _name(name)
            locate(model, weights=weights, cache_dir=cache_dir, **options)
    click.echo(f"{path}:")
    for key, files in sorted(locks.read(path).items()):
        for file, sha256 in sorted(files.items()):
            click.echo(f"  {sha256}  {key}  {file}")


@click.command()
@click.argument("model")
@click.argument("repo_id")
@click.option("--measured", multiple=True, metavar="DATASET=FILE", help="What `simclr evaluate --json` printed.")
@click.option("--onnx", type=_PATH, help="The exported model, to go with it.")
@click.option("--tag", help="Name this version for good.")
@click.option("--private", is_flag=True, default=None, help="Make a private repository.")
def push(
    model: str, repo_id: str, measured: tuple[str, ...], onnx: Path | None, tag: str | None, private: bool | None
) -> None:
    """Push MODEL (a .safetensors file, or a name like r18_1x:imagenette_distilled) to REPO_ID on the Hub.

    Log in first: hf auth login.
    """
    import zoo
    from zoo.weights import load_given

    def load() -> Any:
        if model.endswith(".safetensors"):
            return load_given(model)
        name, weights = _name(model)
        return zoo.load(name, weights=weights)

    figures = [_measurement(text) for text in measured]
    commit = zoo.push(load(), repo_id, measured=figures, onnx=onnx, tag=tag, private=private)
    print(f"{repo_id}: commit {commit}" + (f", tag {tag}" if tag else ""), file=sys.stdout)


def _measurement(text: str) -> dict[str, Any]:
    dataset, equals, file = text.partition("=")
    if not equals:
        raise ValueError(f"--measured {text}: write DATASET=FILE, such as 'Imagenette validation=result.json'.")
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        return {"dataset": dataset, **found}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"--measured {file}: not what `simclr evaluate --json` prints ({error}).") from None
