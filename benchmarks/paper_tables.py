"""docs/results.md's tables and plots, from the result files of benchmarks/paper.py alone.

    python benchmarks/paper_tables.py [--results benchmarks/results/paper] [--write docs/results.md]

--write puts the tables between the page's marks, and the plots into images/ beside it.
"""

import argparse
import itertools
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_estimate import put_between_marks
from paper_runs import PARTS, percent, read_result

from training.evaluate import Score
from zoo.files import written_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
Found = dict[str, Any]
Results = Mapping[str, Found]
Lines = list[str]

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided 95 %, for so many values
PAPER = {  # ImageNet top-1 in %, ResNet-50 (Table 1; distilled: its students): 1 %, 10 %, 100 % of the labels
    "supervised only": (25.4, 56.4, 76.6),  # of few labels: Zhai et al. 2019 (arXiv 1905.03670)
    "linear evaluation": (None, None, 71.7),
    "fine-tuned": (57.9, 68.4, 76.3),
    "self-distilled": (None, None, None),
    "distilled into a smaller one": (73.9, 77.5, None),
}


# ---- figures ---------------------------------------------------------------------------------------------------------


def load(folder: Path) -> dict[str, Found]:
    """All results in a folder, by name. Raises ValueError for a file that is none."""
    return {path.stem: read_result(path) for path in sorted(folder.glob("*.json"))}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over draws (Student's t); at most five draws, at least two."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def _exact(share: float, images: int) -> float:
    """Of a share of the images that a file rounds to four digits: rounding it once more could be one off."""
    return round(share * images) / images


def score_of(told: Found) -> Score:
    """Of a result file's entry."""
    images = told["images"]
    return Score(_exact(told["top1"], images), _exact(told["top5"], images), images)


def _interval(scores: Sequence[Score]) -> tuple[float, float, float]:
    """In %: mean over draws of labels, and how far its interval reaches below and above."""
    if len(scores) > 1:
        mean, half = mean_interval([100 * score.top1 for score in scores])
        return mean, half, half
    top1, (low, high) = scores[0].top1, scores[0].interval
    return 100 * top1, 100 * (top1 - low), 100 * (high - top1)


def cell(scores: Sequence[Score]) -> str:
    """``71.2 ± 1.3`` over draws of labels; of a single one Wilson's interval over the images, ``71.2 (69.8-72.6)``."""
    if not scores:
        return "–"
    middle, below, above = _interval(scores)
    if len(scores) == 1:
        return f"{middle:.1f} ({middle - below:.1f}–{middle + above:.1f})"
    return f"{middle:.1f} ± {above:.1f}"


def shares(results: Results) -> list[float]:
    """Of labels, ascending."""
    of_runs = {found["share"] for found in results.values() if found["share"] is not None}
    of_draws = {draw["share"] for found in results.values() for draw in found.get("draws", ())}
    return sorted(of_runs | of_draws)


def on_test(results: Results, start: str) -> list[Score]:
    """Test scores of the runs ``{start}_s0``, ``_s1``, ..."""
    return [score_of(found["scores"]["test"]) for name, found in results.items() if name.rpartition("_s")[0] == start]


def draws(results: Results, name: str, kind: str, share: float) -> list[Score]:
    """Scores of linear evaluation or kNN of a line, of every draw of a share of the labels."""
    found = results.get(name, {"draws": []})["draws"]
    return [score_of(draw[kind]) for draw in found if draw["share"] == share]


Method = Callable[[Results, float], list[Score]]


def _tuned(share: float, few: str, whole: str, results: Results) -> list[Score]:
    return on_test(results, (whole if share == 1 else few).format(percent(share)))


METHODS: dict[str, Method] = {
    "supervised only": lambda r, s: on_test(r, f"supervised_{percent(s)}"),
    "kNN": lambda r, s: draws(r, "linear_main", "knn", s),
    "linear evaluation": lambda r, s: draws(r, "linear_main", "linear", s),
    "fine-tuned": lambda r, s: _tuned(s, "finetune_{}_layer1", "finetune_{}_layer0", r),
    "self-distilled": lambda r, s: on_test(r, f"distill_self_{percent(s)}"),
    "distilled into a smaller one": lambda r, s: on_test(r, f"distill_small_{percent(s)}"),
}


# ---- tables ----------------------------------------------------------------------------------------------------------


def rows_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    """A Markdown table, numbers to the right."""
    line = "| " + " | ".join(head) + " |"
    return [line, "|---" + "|---:" * (len(head) - 1) + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def _heads(results: Results) -> list[str]:
    return [f"{100 * share:g} % of the labels" for share in shares(results)]


def methods_table(results: Results) -> Lines:
    """Every method by share of labels, beside the paper's."""
    paper = [f"paper, {head}" for head in ("1 %", "10 %", "100 %")]
    rows = []
    for name, method in METHODS.items():
        theirs = ["–" if value is None else value for value in PAPER.get(name, (None,) * 3)]
        rows.append([name, *(cell(method(results, share)) for share in shares(results)), *theirs])
    return rows_of(["", *_heads(results), *paper], rows)


def layers_table(results: Results) -> Lines:
    """Fine-tuning from the features and from projection layers 1 and 2."""
    names = {0: "the features (0)", 1: "projection layer 1", 2: "projection layer 2"}
    found = shares(results)
    rows = (
        [name, *(cell(on_test(results, f"finetune_{percent(share)}_layer{k}")) for share in found)]
        for k, name in names.items()
    )
    return rows_of(["fine-tuned from", *_heads(results)], rows)


def distilled_table(results: Results) -> Lines:
    """Teachers and their students."""
    names = {
        "the teacher": "finetune_{}_layer1",
        "student of its shape, no labels in the loss (alpha 1)": "distill_self_{}",
        "the same, four times the epochs, one draw": "distill_long_{}",
        "a teacher that was offered twice the epochs, one draw": "finetune_teacher_{}_layer1",
        "its student of its shape, one draw": "distill_teacher_{}",
        "a teacher at 1.5 times the resolution, one draw": "finetune_large_{}_layer1",
        "its student, at that resolution too, one draw": "distill_large_{}",
        "the labels alone at that resolution, one draw": "supervised_large_{}",
        "student of its shape, labels half of the loss (alpha 0.5)": "distill_labels_{}",
        "narrower student, no labels": "distill_small_{}",
    }
    few = shares(results)[:-1]
    rows = (
        [name, *(cell(on_test(results, start.format(percent(share)))) for share in few)]
        for name, start in names.items()
    )
    return rows_of(["", *_heads(results)[:-1]], rows)


def _network(found: Found) -> str:
    return f"{found['model']} ({found['parameters'] / 1e6:.2f} M)"


def widths_table(results: Results) -> Lines:
    """Networks of other widths, pretrained for the same epochs and fine-tuned."""
    rows = []
    for line in ("narrow", "short", "wide"):
        if f"pretrain_{line}" not in results:
            continue
        measured = [
            cell(_tuned(share, f"finetune_{line}_{{}}_layer1", f"finetune_{line}_{{}}_layer0", results))
            for share in shares(results)
        ]
        linear = cell(draws(results, f"linear_{line}", "linear", shares(results)[-1]))
        rows.append([_network(results[f"pretrain_{line}"]), *measured, linear])
    return rows_of(["fine-tuned", *_heads(results), "linear, all labels"], rows)


def _lines_table(results: Results, lines: Mapping[str, tuple[str, str]]) -> Lines:
    """kNN and linear accuracy of some pretrained networks, by name: (pretraining, its evaluation)."""
    found, rows = shares(results), []
    for name, (pretraining, linear) in lines.items():
        if pretraining not in results or linear not in results:
            continue
        told = results[pretraining]
        measured = [cell(draws(results, linear, kind, share)) for kind in ("knn", "linear") for share in found[1:]]
        rows.append([name, _network(told), *measured, f"{told['seconds'] / 60:.0f} minutes"])
    heads = [f"{kind}, {head}" for kind in ("kNN", "linear") for head in _heads(results)[1:]]
    return rows_of(["", "network", *heads, "training"], rows)


def memory_table(results: Results) -> Lines:
    """Memory on and off at a small batch."""
    names = {"off": "memory off", "on": "memory on", "fast": "memory on, a faster average"}
    return _lines_table(
        results, {name: (f"pretrain_memory_{key}", f"linear_memory_{key}") for key, name in names.items()}
    )


def peer_table(results: Results) -> Lines:
    """Ours beside lightly's, of the same epochs and images."""
    names = {"ours": "short", "ours, narrower": "narrow"}
    ours = {name: (f"pretrain_{line}", f"linear_{line}") for name, line in names.items()}
    return _lines_table(results, ours | {"lightly": ("lightly", "linear_lightly")})


def choices_table(results: Results) -> Lines:
    """What was chosen on held-out training labels."""
    rows = []
    for name, found in results.items():
        for candidate in found.get("candidates", ()):
            change = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in candidate["change"].items())
            chosen = "chosen" if candidate["change"] == found["chosen"] else ""
            images = candidate["held_out_images"]
            figures = f"{100 * _exact(candidate['held_out_top1'], images):.1f}", images
            rows.append([name.removeprefix("choose_"), change or "the recipe as it is", *figures, chosen])
    return rows_of(["for", "change (epochs, learning rate: times)", "held-out top-1", "images", ""], rows)


def runs_table(results: Results) -> Lines:
    """Runs, time and hardware by part."""
    rows = []
    for part, title in PARTS.items():
        found = [result for result in results.values() if result["part"] == part]
        if found:
            machines = "; ".join(sorted({result["hardware"] for result in found}))
            taken = f"{sum(result['seconds'] for result in found) / 3600:.1f} h"
            rows.append([title, len(found), taken, machines])
    return rows_of(["part", "runs", "time", "on"], rows)


TABLES: dict[str, Callable[[Results], Lines]] = {
    "methods": methods_table,
    "layers": layers_table,
    "distilled": distilled_table,
    "widths": widths_table,
    "memory": memory_table,
    "peer": peer_table,
    "choices": choices_table,
    "runs": runs_table,
}


# ---- plots -----------------------------------------------------------------------------------------------------------


def _figure(xlabel: str, ylabel: str, panels: int = 1, *, sharey: bool = True) -> tuple[Any, Any]:
    """A figure and its first panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 + 3 * (panels - 1), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]:
        axes.grid(alpha=0.2)
    figure.axes[0].set(xlabel=xlabel, ylabel=ylabel)
    return figure, figure.axes[0]


def shares_plot(results: Results) -> Any:
    """Accuracy against the share of labels, a line for each method; bars are the tables' intervals."""
    figure, axes = _figure("labels, % of the training images", "top-1, %")
    for place, (name, method) in enumerate(METHODS.items()):
        found = [(share, method(results, share)) for share in shares(results)]
        found = [(share, scores) for share, scores in found if scores]
        if not found:
            continue
        x = [100 * share * 1.04 ** (place - len(METHODS) // 2) for share, _ in found]  # bars side by side
        y, *bars = zip(*(_interval(scores) for _, scores in found), strict=True)
        axes.errorbar(x, y, bars, marker="o", markersize=4, capsize=3, label=name, color=f"C{place}")
    axes.set(xscale="log")
    axes.minorticks_off()
    axes.set_xticks([100 * share for share in shares(results)], [f"{100 * share:g}" for share in shares(results)])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    return figure


def sizes_plot(results: Results) -> Any:
    """Teacher, students and supervised networks against parameters and milliseconds, a mark for each share of few
    labels."""
    figure, first = _figure("parameters of the backbone, millions", "top-1, %", panels=2)
    second = figure.axes[1]
    second.set(xlabel="ms an image, ONNX on one thread")
    milliseconds = results.get("speed", {}).get("milliseconds", {})
    starts = {"supervised only": "supervised_{}", "teacher": "finetune_{}_layer1"}
    starts |= {"student": "distill_self_{}", "narrower student": "distill_small_{}"}
    for share, marker in zip(shares(results)[:-1], itertools.cycle("ovs^D"), strict=False):  # no end
        for place, (name, start) in enumerate(starts.items()):
            runs = [r for key, r in results.items() if key.rpartition("_s")[0] == start.format(percent(share))]
            if runs:
                y, *_ = _interval([score_of(run["scores"]["test"]) for run in runs])
                label = f"{name}, {100 * share:g} % of the labels"
                first.plot(runs[0]["parameters"] / 1e6, y, marker, color=f"C{place}", label=label)
                if runs[0]["model"] in milliseconds:
                    second.plot(milliseconds[runs[0]["model"]], y, marker, color=f"C{place}")
    if first.get_legend_handles_labels()[0]:
        first.legend(fontsize="small")
    return figure


def curves_plot(results: Results) -> Any:
    """Leave-one-out kNN on labelled training images while pretraining; losses while pretraining, and with the largest
    share of few labels."""
    figure, _ = _figure("epoch of pretraining", "kNN on training images, %", panels=3, sharey=False)
    knn, pretraining, tuning = figure.axes
    pretraining.set(xlabel="epoch of pretraining", ylabel="NT-Xent")
    few = percent(shares(results)[-2]) if len(shares(results)) > 1 else ""
    tuning.set(xlabel="epoch, share of all", ylabel=f"loss, {few} of the labels", yscale="log")
    shown = (f"supervised_{few}_s0", f"finetune_{few}_layer1_s0", f"distill_self_{few}_s0")
    for name, found in results.items():
        curves, title = found.get("curves", {}), name.removeprefix("pretrain_")
        if points := curves.get("knn"):
            knn.plot(*zip(*[(x, 100 * y) for x, y in points], strict=True), label=title)
        if (points := curves.get("loss")) and found["kind"] == "pretrain":
            pretraining.plot(*zip(*points, strict=True), label=title)
        elif points and name in shown:
            end = points[-1][0]
            tuning.plot(*zip(*[(x / end, y) for x, y in points], strict=True), label=name.partition("_")[0])
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


PLOTS: dict[str, Callable[[Results], Any]] = {"shares": shares_plot, "sizes": sizes_plot, "curves": curves_plot}


def write(results: Results, page: Path, folder: Path) -> None:
    """Tables between the page's marks, plots and the picture of neighbours into images/ beside it."""
    for mark, made in TABLES.items():
        put_between_marks(page, mark, "\n".join(made(results)))
    for name, plot in PLOTS.items():
        with written_whole(page.parent / "images" / f"results_{name}.png") as temporary:
            plot(results).savefig(temporary, format="png", dpi=110)
    if (folder / "neighbours.jpg").exists():
        shutil.copyfile(folder / "neighbours.jpg", page.parent / "images" / "results_neighbours.jpg")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="a page with the marks of these tables")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results)
        if not results:
            raise ValueError(f"no results in {options.results}; make them with benchmarks/paper.py.")
        for mark, made in TABLES.items():
            sys.stdout.write("\n".join([f"### {mark}", "", *made(results), "", ""]))
        if options.write:
            write(results, options.write, options.results)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
