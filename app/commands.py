"""The commands that serve and export; what they need is imported when they run."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def app(
    model: Annotated[Path | None, typer.Option(help="An exported student; the bundled one unless given.")] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="A folder of pictures to search; drawn ones unless given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 unless given.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Serve the page: classify pictures and search a gallery. Nothing leaves this machine."""
    from app.serve import serve

    serve(model, gallery, host=host, port=port, browser=browser)


def classify(
    model: Annotated[Path, typer.Argument(help="An exported model (.onnx).")],
    paths: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 5,
) -> None:
    """Classify picture files with an exported model.

    Files that cannot be read are named on the error output and skipped; the exit status is then 1.
    """
    from app.engine import Engine
    from app.gallery import image_files
    from export.runtime import OnnxModel

    engine = Engine(OnnxModel(model))
    files = [file for path in paths for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"No pictures in {', '.join(map(str, paths))}.")
    skipped = 0
    for file in files:
        try:
            ranked, none_likely = engine.classify(file, k=top)
        except ValueError as error:
            if not engine.model.num_classes:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            skipped += 1
            continue
        if as_json:
            predictions = [{"label": label, "probability": round(probability, 6)} for label, probability in ranked]
            answer = {"path": str(file), "predictions": predictions, "none_likely": none_likely}
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        else:
            named = ", ".join(f"{label} {probability:.1%}" for label, probability in ranked)
            print(f"{file}: {'none likely; ' if none_likely else ''}{named}", flush=True)
    if skipped:
        print(f"{skipped} of {len(files)} files skipped.", file=sys.stderr)
        raise SystemExit(1)


def export(
    model: Annotated[Path, typer.Argument(help="A model of this project (.safetensors).")],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    weights: Annotated[Literal["fp32", "fp16"], typer.Option(help="fp16 halves the file.")] = "fp32",
) -> None:
    """Write a trained model as one ONNX file, checked against torch."""
    from export.graph import to_onnx
    from zoo.weights import load_file

    path = to_onnx(load_file(model), out, weights=weights)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def list_models(pattern: Annotated[str, typer.Argument(help="A shell pattern, such as 'r50_*'.")] = "*") -> None:
    """List the models of the zoo: backbone parameters, ImageNet top-1 (paper: Table 1), weights."""
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
