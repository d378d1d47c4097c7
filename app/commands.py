"""The commands that serve and export; what they need is imported when they run."""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import click

from zoo.console import plain

PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--model",
    "models",
    type=PATH,
    multiple=True,
    help="An exported student; the bundled one unless given. Several times: side by side.",
)
@click.option(
    "--gallery", help="A folder of pictures, or an index, to search; pictures that come with it unless given."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=int, help="The first free one from 7860 unless given.")
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@click.option("--public", is_flag=True, help="For strangers: nothing of the gallery can be changed.")
@click.option("--auth", type=PATH, help="A file with lines user:password; $SIMCLR_AUTH holds one, too.")
@click.option(
    "--labels",
    type=PATH,
    default=Path("labels.csv"),
    show_default=True,
    help="The CSV of path,label that the tab Label writes.",
)
def app(
    models: tuple[Path, ...],
    gallery: str | None,
    host: str,
    port: int | None,
    browser: bool,
    public: bool,
    auth: Path | None,
    labels: Path,
) -> None:
    """Serve the page: classify pictures, search a gallery, teach new classes. Nothing leaves this machine.

    Pictures can be added, labelled and deleted on this machine alone, or with a password; other machines see the
    gallery read-only unless --auth is given.
    """
    from app.serve import serve

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        serve(models, gallery, host=host, port=port, browser=browser, public=public, auth=auth, labels=labels)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)  # all is closed; threads that hold connections of open pages would keep Python waiting


@click.command()
@click.argument("model", type=PATH)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model and of reading; all cores unless given.")
def classify(model: Path, paths: tuple[Path, ...], as_json: bool, top: int, threads: int | None) -> int:
    """Classify picture files, or folders of them, with MODEL, an exported .onnx file.

    A line for each file: its most probable classes (on a terminal, as many as fit), and "none likely" where the best
    of them is improbable. Files that cannot be read are named on the error output and skipped; the exit status is then
    1.
    """
    from tqdm import tqdm

    from app import classify as work
    from app.engine import Engine
    from export.runtime import CHUNK, OnnxModel

    engine = Engine(OnnxModel(model, threads=threads))
    if not engine.model.num_classes:
        raise ValueError(f"{model} has no classifier; it embeds only. Export a fine-tuned or distilled model.")
    files, problems = work.files_of(paths)
    table = work.Table(files, engine.labels, top=top, width=work.terminal_width())
    for folder, reason in problems.items():
        print(f"skipped: {plain(folder)}: {reason}.", file=sys.stderr)
    skipped = 0
    silent = sys.stdout.isatty() or not sys.stderr.isatty() or len(files) <= CHUNK  # lines that appear tell as much
    with tqdm(total=len(files), desc="Classifying", unit=" images", delay=1, leave=False, disable=silent) as bar:
        for batch in work.answers(engine, files, readers=threads or min(4, os.cpu_count() or 1), top=top):
            lines = []
            for file, found in batch:
                if isinstance(found, str):
                    bar.clear()
                    print(f"skipped: {plain(found)}", file=sys.stderr)
                    skipped += 1
                else:
                    lines.append(work.json_line(file, found) if as_json else table.line(file, found))
            if lines:
                print("\n".join(lines), flush=True)
            bar.update(len(batch))
    if skipped:
        print(f"{skipped} of {len(files)} files skipped.", file=sys.stderr)
    return 1 if skipped or problems else 0


@click.command()
@click.argument("model")
@click.argument("out", type=PATH)
@click.option(
    "--weights",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 halves OUT; int8 quarters it and computes in integers.",
)
@click.option("--calibration", type=PATH, help="For int8: a folder of a few hundred pictures, no labels.")
@click.option("--images", type=PATH, help="A folder of pictures to check and measure on.")
@click.option("--labels", type=PATH, help="CSV or Parquet with path,label for --images: measures the accuracy.")
@click.option(
    "--image-input",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="What the graph takes: float (N, 3, S, S) in [0, 1], or uint8 (N, S, S, 3).",
)
@click.option("--opset", type=int, default=20, show_default=True, help="Of the ONNX standard.")
@click.option("--report", type=PATH, help="Write the tables of what was measured to this Markdown file.")
def export(
    model: str,
    out: Path,
    weights: Literal["fp32", "fp16", "int8"],
    calibration: Path | None,
    images: Path | None,
    labels: Path | None,
    image_input: Literal["float", "uint8"],
    opset: int,
    report: Path | None,
) -> None:
    """Write MODEL, a .safetensors file of this project or a zoo name, as one ONNX file, checked against torch.

    A zoo name goes with its weights, such as r18_1x:imagenette_distilled. Without --labels, class folders in --images
    that are called as the model's classes (or their WordNet numbers) count as labels.
    """
    from export.write import export_model
    from training.cli import load_model
    from zoo.files import written_whole

    for file in (out, report):
        if file is not None and file.is_dir():
            raise ValueError(f"{file}: a folder; name a file to write.")
    network = load_model(model)
    pictures, truth = _pictures(images, labels, network)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            done = export_model(
                network, out, weights=weights, calibration=calibration, images=pictures, labels=truth,
                image_input=image_input, opset=opset,
            )  # fmt: skip
        finally:
            for warning in told:
                if issubclass(warning.category, UserWarning):
                    print(f"warning: {warning.message}", file=sys.stderr)
    print(done.markdown(), end="")
    if report is not None:
        with written_whole(report) as temporary:
            temporary.write_text(done.markdown(), encoding="utf-8")


def _pictures(images: Path | None, labels: Path | None, network: Any) -> tuple["Path | list[Path] | None", Any]:
    """What to measure on, and the class numbers where they are known."""
    from training import data

    if images is None:
        if labels is not None:
            raise ValueError(f"--labels {labels} needs --images, the folder that its paths are relative to.")
        return None, None
    classes = network.classes
    if labels is not None:
        if not classes:
            raise ValueError("--labels needs a model that knows the names of its classes; this one does not.")
        labelled = data.from_table(labels, root=images, classes=classes)
        return list(labelled.paths), labelled.labels
    folders = {path.name for path in images.iterdir() if path.is_dir()} if images.is_dir() else set()
    synsets = tuple(network.facts.get("synsets", ()))
    for names in (classes, synsets if len(synsets) == len(classes) else ()):
        if folders and folders <= set(names):
            labelled = data.from_class_folders(images)
            numbers = [names.index(name) for name in labelled.classes]
            return list(labelled.paths), [numbers[label] for label in labelled.labels]  # type: ignore[union-attr]
    if folders:
        print(
            f"The folders in {images} are not called as the model's classes: no accuracy is measured.", file=sys.stderr
        )
    return images, None


@click.command()
@click.argument("pattern", default="*")
def list_models(pattern: str) -> None:
    """The models of the zoo that match a shell PATTERN: parameters, ImageNet top-1 (paper: Table 1), weights."""
    from zoo import registry

    names = registry.list_models(pattern)
    if not names:
        raise ValueError(f"No model is called {pattern!r}.{registry.suggest(pattern, list(registry.TABLE))}")
    columns = ("1 %", "10 %", "100 %", "linear", "superv.")
    print(f"{'model':<12}{'parameters':>14}" + "".join(f"{name:>9}" for name in columns) + "  weights")
    for name in names:
        row = registry.TABLE[name]
        figures = (row.finetuned_1pct, row.finetuned_10pct, row.finetuned_100pct, row.linear, row.supervised)
        shown = "".join(f"{'-' if figure is None else format(figure, '.1f'):>9}" for figure in figures)
        print(f"{name:<12}{row.parameters:>14,}{shown}  {', '.join(registry.list_weights(name)) or '-'}")
