"""Cost against size: NT-Xent, a training step in batch and in processes, the index, embedding; plots and tables.

    python benchmarks/scaling.py [--part [loss step processes index embed]] [--quick] [--write docs/scaling.md]
        [--plots docs/images] [--images DIR]

Every figure is of a process of its own: a median of some repetitions, and memory as its greatest resident size beyond
that before. --quick takes small sizes, to see that all works. --write puts the tables between the marks of a page and
what was measured into benchmarks/results/scaling.json, which benchmarks/paper_estimate.py reads; parts that were not
measured this time stay as they were (`--part` alone measures none and draws all). --images is a folder of JPEGs to
decode (those that come with the app unless given). lightly is left out where it is not installed. A quarter of an
hour on two cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paper_estimate import RESULTS, put_between_marks

from zoo.files import written_whole

ROOT = Path(__file__).parents[1]
PARTS = ("loss", "step", "processes", "index", "embed")
Point = dict[str, Any]
_COLOURS = ("#1f4e79", "#c55a11", "#548235", "#7030a0")


# ---- what one process measures ---------------------------------------------------------------------------------------


def resident(kind: str) -> float:
    """MB of this process, now (VmRSS) or at its greatest (VmHWM)."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1024


def median_seconds(call: Callable[[], object], *, least: int = 3, longest: float = 2.0, warm_up: bool = True) -> float:
    """The median of at least ``least`` calls, and of as many as fit in ``longest`` seconds; one before, if asked."""
    if warm_up:
        call()
    times: list[float] = []
    end = time.perf_counter() + longest
    while len(times) < least or (time.perf_counter() < end and len(times) < 200):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure_loss(form: str, rows: int) -> Point:
    """NT-Xent of ``rows`` = 2N rows of 128, forward and backward."""
    import nt_xent
    import torch

    compute = nt_xent.loss(form)
    z0, z1 = torch.randn(2, rows // 2, 128, generator=torch.Generator().manual_seed(0)).unbind()
    z0.requires_grad_(), z1.requires_grad_()
    z0.grad, z1.grad = torch.zeros_like(z0), torch.zeros_like(z1)
    compute(z0[:8], z1[:8]).backward()
    before = resident("VmRSS")
    large = rows > 16384  # many seconds: nothing to warm up
    seconds = median_seconds(lambda: compute(z0, z1).backward(), least=1 if large else 3, warm_up=not large)
    return {"seconds": seconds, "megabytes": resident("VmHWM") - before}


def _step(batch: int) -> Callable[[], object]:
    """One SimCLR step of this process as training does it: r18_1x with the stem of 32 pixels."""
    import torch
    from step import our_step

    from training.data import keep_freed_memory

    keep_freed_memory()
    step = our_step("r18_1x", 32)
    views = torch.rand(2, batch, 3, 32, 32)
    return lambda: step({"view0": views[0], "view1": views[1]})


def measure_step(batch: int) -> Point:
    take = _step(batch)
    before = resident("VmRSS")
    seconds = median_seconds(take, least=3, longest=4.0)
    return {"views_per_second": 2 * batch / seconds, "megabytes": resident("VmHWM") - before}


def measure_processes(batch: int, threads: int) -> Point:
    """As one of torchrun's processes, with its share of the batch. All take the same number of steps."""
    import torch

    from training import distributed

    torch.set_num_threads(threads)
    with distributed.processes(torch.device("cpu")):
        take = _step(batch // distributed.size())
        take()
        seconds = []
        for _ in range(5):
            distributed.wait_for_all()
            began = time.perf_counter()
            take()
            seconds.append(time.perf_counter() - began)
        first = distributed.is_first()
    return {"views_per_second": 2 * batch / statistics.median(seconds)} if first else {}


def measure_index(images: int, width: int, folder: Path) -> Point:
    """An index of ``images`` vectors: adding, opening with the first answer, one query, bytes on disk and in memory."""
    from app.index import Record, open_index

    generator = np.random.default_rng(0)
    place = folder / f"{images}x{width}.sqlite"
    thumbnail = generator.bytes(4000)
    if not place.exists():
        with_index = open_index(place, model="0" * 64, dimension=width)
        began = time.perf_counter()
        for start in range(0, images, 2000):
            rows = generator.standard_normal((min(2000, images - start), width), dtype=np.float32)
            with_index.add(
                [
                    Record(f"{start + k:064x}", f"/pictures/{start + k}.jpg", "", thumbnail, row)
                    for k, row in enumerate(rows)
                ]
            )
        adding = time.perf_counter() - began
        with_index.close()
        return {"adding": adding}
    before = resident("VmRSS")
    query = generator.standard_normal(width, dtype=np.float32)
    began = time.perf_counter()
    index = open_index(place, model="0" * 64, dimension=width, create=False)
    index.search(query, 12, thumbnails=False)
    opening = time.perf_counter() - began
    seconds = median_seconds(lambda: index.search(query, 12, thumbnails=False), least=10)
    after = resident("VmRSS")
    index.close()
    size = sum(file.stat().st_size for file in folder.glob(f"{place.name}*"))
    return {"open_seconds": opening, "query_ms": seconds * 1e3, "bytes": size, "megabytes": after - before}


def measure_embed(name: str, images: int, folder: Path, where: str) -> Point:
    """Features of prepared images on one thread, in batches of 32: onnxruntime or torch."""
    import torch

    import zoo
    from export.runtime import OnnxModel

    size = 224
    torch.set_num_threads(1)
    batches = [
        np.random.default_rng(0).random((min(32, images - k), 3, size, size), np.float32) for k in range(0, images, 32)
    ]
    if where == "onnxruntime":
        exported = OnnxModel(folder / f"{name}.onnx", threads=1)
        run: Callable[[np.ndarray], object] = exported
    else:
        model = zoo.load_file(folder / f"{name}.safetensors").eval().to(memory_format=torch.channels_last)

        def run(batch: np.ndarray) -> object:
            with torch.inference_mode():
                return model(torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)).features

    run(batches[0][:1])
    began = time.perf_counter()
    for batch in batches:
        run(batch)
    seconds = time.perf_counter() - began
    return {"ms_an_image": seconds / images * 1e3}


def measure_decode(images: str) -> Point:
    """One core, JPEGs of 500 x 375: pictures a second read and prepared, and views a second of two of each picture."""
    import torch
    from PIL import Image

    from training.data import from_folder
    from training.estimate import view_seconds
    from zoo.transforms import preprocess

    torch.set_num_threads(1)
    paths = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:400:4]
    with tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(paths):
            Image.open(path).convert("RGB").resize((500, 375)).save(Path(name) / f"{number}.jpg", quality=90)
        large = sorted(Path(name).iterdir())
        seconds = median_seconds(lambda: [preprocess(path, 224) for path in large])
        views = statistics.median(view_seconds(from_folder(Path(name)), 224) for _ in range(5))
    return {"decode_per_core": len(large) / seconds, "views_per_core": 1 / views}


# ---- the parts -------------------------------------------------------------------------------------------------------


def fresh(*arguments: object, processes: int = 1) -> Point | None:
    """One measurement in a process of its own (several by torchrun); None if it failed, with its reason on stderr."""
    code = [str(Path(__file__).resolve()), "--one", *map(str, arguments)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *code]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    if done.returncode:
        print(f"{' '.join(map(str, arguments))}: {(done.stderr.strip() or 'killed').splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def part_loss(quick: bool) -> list[Point]:
    sizes = (256, 512) if quick else (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    points = []
    for rows in sizes:
        for form in ("tiles", "dense", "lightly"):
            if form != "tiles" and rows > 16384:
                continue  # 32,768 rows of the whole matrix are 4.3 GB, and several of it
            found = fresh("loss", form, rows)
            points += [{"form": form, "rows": rows} | found] if found else []
    return points


def part_step(quick: bool) -> list[Point]:
    sizes = (4, 8) if quick else (16, 32, 64, 128, 256)
    return [{"batch": batch} | found for batch in sizes if (found := fresh("step", batch))]


def part_processes(quick: bool) -> list[Point]:
    sizes = (8,) if quick else (32, 64, 128)
    points = []
    for batch in sizes:
        for processes, threads in ((1, 1), (1, 2), (2, 1)):
            found = fresh("processes", batch, threads, processes=processes)
            points += [{"batch": batch, "processes": processes, "threads": threads} | found] if found else []
    return points


def part_index(quick: bool) -> list[Point]:
    cases = [(500, 64), (1000, 64)] if quick else [(n, 512) for n in (1000, 10_000, 50_000, 200_000)] + [(50_000, 2048)]
    points = []
    with tempfile.TemporaryDirectory() as name:
        for images, width in cases:
            made = fresh("index", images, width, name)
            found = fresh("index", images, width, name)
            if made and found:
                points.append({"images": images, "width": width} | made | found)
            for file in Path(name).iterdir():
                file.unlink()
    return points


def part_embed(quick: bool, images: Path | None) -> list[Point]:
    import zoo
    from app.pictures import PICTURES
    from export import to_onnx

    points: list[Point] = []
    found = fresh("decode", images or PICTURES)
    points += [found] if found else []
    with tempfile.TemporaryDirectory() as name:
        for network in ("r18_1x",) if quick else ("r18_1x", "r50_1x"):
            model = zoo.create(network, num_classes=None, projector=False, image_size=224, seed=0)
            zoo.save_file(model, Path(name) / f"{network}.safetensors")
            to_onnx(model.eval(), Path(name) / f"{network}.onnx")
            for count in (2, 4) if quick else (32, 64, 128, 256):
                for where in ("onnxruntime", "torch"):
                    found = fresh("embed", network, count, name, where)
                    points += [{"network": network, "images": count, "where": where} | found] if found else []
    return points


def one(arguments: Sequence[str]) -> None:
    """A measurement, printed as JSON."""
    kind, *rest = arguments
    found = {
        "loss": lambda: measure_loss(rest[0], int(rest[1])),
        "step": lambda: measure_step(int(rest[0])),
        "processes": lambda: measure_processes(int(rest[0]), int(rest[1])),
        "index": lambda: measure_index(int(rest[0]), int(rest[1]), Path(rest[2])),
        "embed": lambda: measure_embed(rest[0], int(rest[1]), Path(rest[2]), rest[3]),
        "decode": lambda: measure_decode(rest[0]),
    }[kind]()
    if found:
        print(json.dumps(found), flush=True)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost against log size by least squares: 1 is linear, 2 quadratic."""
    x, y = np.log(sizes), np.log(costs)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def table(points: Iterable[Point]) -> list[str]:
    """A Markdown table of points that have the same names."""
    rows = list(points)
    if not rows:
        return ["(nothing was measured)"]
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(_shown(row.get(name)) for name in names) + " |")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


Lines = dict[str, tuple[list[float], list[float]]]


def lines_of(points: Iterable[Point], x: str, y: str, by: Sequence[str] = ()) -> Lines:
    """Points as lines: (sizes, costs) by what the columns ``by`` say."""
    lines: Lines = {}
    for point in points:
        if x in point and y in point:
            name = " ".join(f"{point[one]}" for one in by)
            xs, ys = lines.setdefault(name, ([], []))
            xs.append(point[x]), ys.append(point[y])
    return lines


def plot(path: Path, panels: Sequence[tuple[str, str, Lines]], *, logarithmic: bool = True) -> None:
    """Panels side by side (title, words below, lines), as PNG; the exponent of each line of three points or more."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, below, lines) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for colour, (name, (xs, ys)) in zip(_COLOURS, lines.items(), strict=False):  # more colours than lines
            rising = f" (exponent {exponent(xs, ys):.2f})" if logarithmic and len(xs) > 2 and min(ys) > 0 else ""
            axes.plot(xs, ys, color=colour, marker="o", markersize=3, linewidth=1, label=name + rising)
        if logarithmic:
            axes.set(xscale="log", yscale="log")
        else:
            axes.set_ylim(0, 1.35 * max(max(ys) for _, ys in lines.values()))  # room for the names
        axes.set(title=title, xlabel=below)
        axes.grid(alpha=0.2)
        axes.legend(fontsize="x-small", loc="upper left", ncols=1 if logarithmic else 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def draw(found: dict[str, list[Point]], folder: Path) -> None:
    """A picture for each part that was measured."""
    if points := found.get("loss"):
        panels = [
            (title, "rows (2N)", lines_of(points, "rows", name, ["form"]))
            for title, name in (("NT-Xent, seconds", "seconds"), ("NT-Xent, MB beyond the inputs", "megabytes"))
        ]
        plot(folder / "scaling_loss.png", panels)
    if points := found.get("step"):  # its speed is among the processes' lines
        named = [{"name": "r18_1x, 32 px", **one} for one in points]
        panels = [("a step, MB beyond the weights", "batch (images)", lines_of(named, "batch", "megabytes", ["name"]))]
        plot(folder / "scaling_step.png", panels, logarithmic=False)
    if points := found.get("processes"):
        named = [{**one, "name": f"{one['processes']} x {one['threads']} thread(s)"} for one in points]
        panels = [("training, views/s", "whole batch (images)", lines_of(named, "batch", "views_per_second", ["name"]))]
        plot(folder / "scaling_processes.png", panels, logarithmic=False)
    if points := found.get("index"):
        width = points[0]["width"]
        same = [{**one, "name": f"{width} numbers each"} for one in points if one["width"] == width]
        panels = [
            (title, "images", lines_of(same, "images", name, ["name"]))
            for title, name in (
                ("open to the first answer, s", "open_seconds"),
                ("a query, ms", "query_ms"),
                ("bytes on disk", "bytes"),
            )
        ]
        plot(folder / "scaling_index.png", panels)
    if points := [one for one in found.get("embed", ()) if "network" in one]:
        panels = [
            (
                "embedding on one core, ms an image",
                "images",
                lines_of(points, "images", "ms_an_image", ["network", "where"]),
            )
        ]
        plot(folder / "scaling_embed.png", panels, logarithmic=False)


def constants(found: dict[str, list[Point]]) -> dict[str, float]:
    """What the estimates on paper need of this."""
    told: dict[str, float] = {}
    for point in found.get("embed", ()):
        told |= {name: point[name] for name in ("decode_per_core", "views_per_core") if name in point}
        if point.get("where") == "onnxruntime":
            told[f"embed_{point['network'].split('_')[0]}_224"] = 1e3 / point["ms_an_image"]
    if points := found.get("index"):
        largest = max(points, key=lambda point: point["images"])
        told["index_bytes"] = largest["bytes"] / largest["images"] - 2 * largest["width"]
        told["search_bandwidth"] = 4 * largest["width"] * largest["images"] / (largest["query_ms"] / 1e3)
    return told


def text(found: dict[str, list[Point]], about: dict[str, str]) -> str:
    """The tables, as Markdown, each with how it came about."""
    titles = {
        "loss": "NT-Xent, d = 128, forward and backward",
        "step": "A training step: r18_1x with the stem of 32 pixels",
        "processes": "The same step by one and two processes (`torchrun`)",
        "index": "The index: random vectors, thumbnails of 4,000 bytes, fp16",
        "embed": "Embedding at 224 pixels on one core",
    }
    parts = []
    for name in PARTS:
        points = found.get(name)
        if points is None:
            continue
        lines = [f"### {titles[name]}", "", about[name], ""]
        if name == "embed":
            for point in points:
                if "network" not in point:
                    lines += [
                        f"JPEGs of 500 x 375, one core: {point['decode_per_core']:,.0f} a second read and prepared, "
                        f"{point['views_per_core']:,.0f} augmented views a second of two views each.",
                        "",
                    ]
            points = [point for point in points if "network" in point]
        parts.append("\n".join(lines + table(points)))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--write", type=Path, help="a page with the marks of the tables")
    parser.add_argument("--plots", type=Path, help="a folder for the pictures (docs/images)")
    parser.add_argument("--images", type=Path, help="a folder of JPEGs to decode")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    import torch

    found: dict[str, list[Point]] = {}
    about: dict[str, str] = {}
    for part in options.part:
        began = time.perf_counter()
        measure = globals()[f"part_{part}"]
        found[part] = measure(options.quick, options.images) if part == "embed" else measure(options.quick)
        about[part] = (
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}; "
            f"`python benchmarks/scaling.py --part {part}{' --quick' * options.quick}`, "
            f"{(time.perf_counter() - began) / 60:.0f} minutes, load {os.getloadavg()[0]:.1f} at the end."
        )
        print(f"\n## {part}\n\n{about[part]}\n\n" + "\n".join(table(found[part])), flush=True)
    if options.write:
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"parts": {}, "about": {}}
        found, about = before["parts"] | found, before["about"] | about
        with written_whole(RESULTS) as temporary:
            kept = {"about": about, "constants": constants(found), "parts": found}
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        put_between_marks(options.write, "measured", text(found, about))
    if options.plots:
        draw(found, options.plots)


if __name__ == "__main__":
    main()
