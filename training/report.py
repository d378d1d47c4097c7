"""The one-page report of `simclr run`: one HTML file with what was found and what it is worth."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from training import charts, schedule
from training.charts import interval_words, percent
from training.estimate import in_words
from training.evaluate import Score
from training.recipes import AnyRecipe
from zoo.files import written_whole
from zoo.registry import spec as find_spec

_MOST_CLASSES = 20  # of a confusion matrix; beyond, the most frequent mistakes are listed
_FEW_HELD_OUT = 100
BANK = 2000  # training images among which neighbours are looked for
_STAGES = {  # name -> in the tables, above its curve
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "self_distill": "self-distillation",
    "distill": "distillation",
    "supervised": "baseline",
}
_SHARES = {
    "contrast_accuracy": "views nearer to their positive than to any negative",
    "accuracy": "answered rightly, while training",
    "agreement": "answered as the teacher does",
}
_MARK = (
    '<svg viewBox="0 0 48 32" aria-hidden="true"><circle cx="17" cy="16" r="14"/><circle cx="31" cy="16" r="14"/></svg>'
)


@dataclass(frozen=True)
class Network:
    """What is told of a network: name, parameters (backbone and classifier), pixels."""

    name: str
    parameters: int
    image_size: int


@dataclass(frozen=True)
class Neighbour:
    """A training image near a query; ``label`` None if it has none, ``similarity`` the cosine."""

    path: Path
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Query:
    """A held-out image, its label, the student's answer, and what is near."""

    path: Path
    label: str
    answer: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the report tells.

    ``labels`` and ``held_out`` are counts a class. ``scores`` and ``hits`` (bool, an entry for each measured image) are
    by name: knn (scores only), teacher, self_distilled (if there is one), student, baseline. ``truth`` and ``answers``
    are the student's, as places in ``classes``.
    """

    title: str
    command: str
    budget: str
    images_folder: str
    labels_file: str  # a CSV, or "" for labels of another kind
    student_file: str
    classes: Sequence[str]
    images: int
    labels: np.ndarray
    held_out: np.ndarray
    copies: int
    teacher: Network
    student: Network
    student_bytes: int
    student_milliseconds: float
    teacher_milliseconds: float
    scores: Mapping[str, Score]
    hits: Mapping[str, np.ndarray]
    truth: np.ndarray
    answers: np.ndarray
    queries: Sequence[Query]
    logs: Mapping[str, Sequence[Mapping[str, Any]]]
    recipes: Mapping[str, AnyRecipe]
    seconds: Mapping[str, float]
    machine: str
    versions: Mapping[str, str]
    views: Path | None = None


def write(page: Page, path: Path) -> None:
    """Write the report, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(html(page), encoding="utf-8", errors="replace")  # file names may be no text


def html(page: Page) -> str:
    """The report as one HTML document."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = [
        _top(page),
        _accuracy(page),
        _mistakes(page),
        _neighbours(page),
        _cost(page),
        _curves(page),
        _views(page),
    ]
    sections += [_facts(page), _next(page)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}: simclr run</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


# ---- what it says in words -------------------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: how often a fair coin is as one-sided as ``wins`` against ``losses``."""
    n, less = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(less + 1)) / 2**n)


def verdict(page: Page) -> str:
    """How the student compares with the baseline, and whether the held-out images can tell."""
    student, baseline = page.hits["student"], page.hits["baseline"]
    wins, losses = int((student & ~baseline).sum()), int((baseline & ~student).sum())
    if not wins + losses:
        return "Student and baseline are right on the same pictures."
    told = (
        f"Where only one of student and baseline is right, it is the student on {wins} of the held-out pictures and "
        f"the baseline on {losses}."
    )
    p = sign_test(wins, losses)
    test = f"(sign test, p\u00a0=\u00a0{_p(p)})"
    if p >= 0.05:
        return f"{told} Chance alone would often do that {test}: so few cannot tell which is better."
    better = "student" if wins > losses else "baseline"
    return f"{told} The {better} is better by more than chance explains {test}."


def _p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.05 else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")


def _top(page: Page) -> str:
    student = page.scores["student"]
    labelled = int(page.labels.sum())
    difference = student.top1 - page.scores["baseline"].top1
    right = round(student.top1 * student.images)
    lead = (
        f"From {page.images:,} images, {labelled:,} of them with a label, the student learnt to answer "
        f"{right:,} of {student.images:,} held-out pictures rightly: {percent(student.top1)}, with a 95\u00a0% "
        f"interval of {interval_words(student)}."
    )
    tiles = [
        (percent(student.top1), f"student, right on held-out pictures ({interval_words(student)})"),
        (
            f"{100 * difference:+.1f}".replace("-", "\u2212").replace("+0.0", "0.0"),
            "points over the baseline on the same labels alone",
        ),
        (f"{page.student_bytes / 1e6:.1f}\u00a0MB", "the student as one ONNX file"),
        (f"{page.student_milliseconds:.3g}\u00a0ms", "a picture on this machine, one at a time"),
    ]
    shown = "".join(f'<div class="tile"><strong>{value}</strong><span>{what}</span></div>' for value, what in tiles)
    when = datetime.now().strftime("%d %B %Y, %H:%M").lstrip("0")
    return (
        f'<header class="top">{_MARK}<div><h1>{escape(page.title)}</h1><p>A report of <code>simclr run</code>, '
        f'budget {escape(page.budget)}, {when}</p></div></header>\n<p class="lead">{lead}</p>\n'
        f'<div class="tiles">{shown}</div>'
    )


def _accuracy(page: Page) -> str:
    names = {
        "student": (f"student {page.student.name}, distilled", "student"),
        "self_distilled": (f"teacher {page.teacher.name}, self-distilled", "teacher"),
        "teacher": (f"teacher {page.teacher.name}, fine-tuned", "teacher"),
        "baseline": (f"baseline {page.student.name}, labels alone", "baseline"),
        "knn": ("kNN of the pretrained features", "knn"),
    }
    rows = [(*names[name], page.scores[name]) for name in names if name in page.scores]
    chance = float(page.held_out.max() / max(page.held_out.sum(), 1))
    copies = f", nor were {page.copies} copies of them" if page.copies else ""
    words = [
        verdict(page),
        "The held-out pictures were used in no stage, not even without their labels" + copies + ".",
    ]
    missing = [name for name, count in zip(page.classes, page.held_out, strict=True) if not count]
    if missing:
        words.append(f"No picture is held out of: {escape(', '.join(missing))}; nothing is known about these.")
    low, high = page.scores["student"].interval
    if page.scores["student"].images < _FEW_HELD_OUT:
        words.append(
            f"<strong>{page.scores['student'].images} held-out pictures are few:</strong> the student's interval is "
            f"{100 * (high - low):.0f} points wide, and a smaller difference may be luck. Four times as many pictures "
            "halve it."
        )
    return (
        "<h2>Accuracy</h2>\n"
        + charts.bars(rows, chance=chance)
        + '<p class="note">Share of held-out pictures answered rightly; the line in a bar is the 95\u00a0% interval '
        f"(Wilson). Dotted: always answering the most frequent class, {percent(chance)}. The student is measured as "
        "the ONNX file that was exported. Intervals tell the chance in which pictures are held out, not that of "
        "another draw of labels or another seed.</p>\n" + "".join(f"<p>{line}</p>" for line in words)
    )


def _counts(page: Page) -> np.ndarray:
    counts = np.zeros((len(page.classes), len(page.classes)), int)
    np.add.at(counts, (page.truth, page.answers), 1)
    return counts


def _mistakes(page: Page) -> str:
    counts = _counts(page)
    if len(page.classes) <= _MOST_CLASSES:
        told = "Each row is what the pictures are, each column (numbered as the rows) what the student answers."
        return f"<h2>What it confuses</h2>\n<p>{told}</p>\n{charts.confusion(counts, page.classes)}"
    pairs = charts.confused_pairs(counts)
    if not pairs:
        return "<h2>What it confuses</h2>\n<p>Nothing: every held-out picture is answered rightly.</p>"
    rows = [[page.classes[truth], page.classes[answer], str(count)] for truth, answer, count in pairs]
    return "<h2>What it confuses most</h2>\n" + _table(["it is", "the student says", "pictures"], rows)


def _neighbours(page: Page) -> str:
    if not page.queries:
        return ""
    rows = []
    for query in page.queries:
        missed = (
            "" if query.answer == query.label else f'<br><span class="missed">answered {escape(query.answer)}</span>'
        )
        shown = [_picture(query.path, f"{escape(query.label)}{missed}", f"held out: {query.label}")]
        for near in query.neighbours:
            label = '<span class="none">no label</span>' if near.label is None else escape(near.label)
            shown.append(_picture(near.path, f"{label} <small>{near.similarity:.2f}</small>", near.label or "no label"))
        rows.append(f'<div class="query">{"".join(shown)}</div>')
    among = f"of {BANK:,} training pictures, drawn at random, those" if page.images > BANK else "the training pictures"
    found = [near for query in page.queries for near in query.neighbours]
    unlabeled = sum(near.label is None for near in found) > len(found) / 2
    return (
        f"<h2>What it finds alike</h2>\n<p>First a held-out picture, then {among} whose features in the student are "
        "nearest, with their cosine."
        + " Most of them have no label, and are found all the same." * unlabeled
        + "</p>\n"
        + "\n".join(rows)
    )


def _picture(path: Path, caption: str, alt: str) -> str:
    image = (
        f'<img src="{charts.thumbnail(path)}" alt="{escape(alt)}" title="{escape(path.name)}" width="112" height="112">'
    )
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _cost(page: Page) -> str:
    faster = page.teacher_milliseconds / page.student_milliseconds
    rows = [
        [
            "network",
            f"{page.teacher.name}, {page.teacher.image_size} pixels",
            f"{page.student.name}, {page.student.image_size} pixels",
        ],
        ["parameters", f"{page.teacher.parameters / 1e6:.1f} M", f"{page.student.parameters / 1e6:.1f} M"],
        ["runs on", "torch, CPU", "onnxruntime, CPU (no torch)"],
        ["one picture, median", f"{page.teacher_milliseconds:.3g} ms", f"{page.student_milliseconds:.3g} ms"],
        [
            "weights on disk",
            f"{4 * page.teacher.parameters / 1e6:.1f} MB",
            f"{page.student_bytes / 1e6:.1f} MB (float16)",
        ],
    ]
    return (
        "<h2>Size and speed</h2>\n"
        + _table(["", "teacher", "student"], rows)
        + f'<p class="note">Batch of one, without reading and scaling the picture; the student takes {1 / faster:.0%} '
        f"of the teacher's time. On: {escape(page.machine)}.</p>"
    )


def _curves(page: Page) -> str:
    figures = []
    for name, log in page.logs.items():
        caption = "Nothing was logged."
        if log:
            first, last = log[0], log[-1]
            caption = f'<span class="key loss"></span>loss {first["loss"]:.2f} to {last["loss"]:.2f}'
            share = charts.share_name(last)
            if share and share in first:
                caption += (
                    f'<br><span class="key share"></span>{_SHARES[share]}, '
                    f"{percent(first[share], 0)} to {percent(last[share], 0)}"
                )
        figures.append(charts.curve(f"{_STAGES[name]} ({find_spec(page.recipes[name].model).name})", log, caption))
    return f'<h2>How it learnt</h2>\n<div class="curves">{"".join(figures)}</div>'


def _views(page: Page) -> str:
    if page.views is None:
        return ""
    told = "Two random views of each of some images: pretraining learns that they belong together."
    return (
        f'<h2>What pretraining saw</h2>\n<p>{told}</p><img class="sheet" src="{charts.png(page.views)}" '
        'alt="Augmented views of some training images">'
    )


def _facts(page: Page) -> str:
    labels = ", ".join(
        f"{escape(name)} {used} + {aside}"
        for name, used, aside in list(zip(page.classes, page.labels, page.held_out, strict=True))[:_MOST_CLASSES]
    )
    more = len(page.classes) - _MOST_CLASSES
    facts = [
        ["images trained on", f"{page.images:,}"],
        ["labels used", f"{int(page.labels.sum()):,}"],
        ["held out", f"{int(page.held_out.sum()):,}" + (f", and {page.copies} copies of them" if page.copies else "")],
        ["a class, used + held out", labels + (f", and {more} classes more" if more > 0 else "")],
        ["machine", escape(page.machine)],
        ["versions", ", ".join(f"{escape(name)} {escape(version)}" for name, version in page.versions.items())],
    ]
    shown = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in facts)
    return (
        f'<h2>The facts</h2>\n<p>Made by</p><pre><code>{escape(page.command)}</code></pre>\n<div class="wide">'
        f'<table class="plain"><tbody>{shown}</tbody></table></div>\n<h3>Recipes</h3>\n{_recipes(page)}'
    )


def _recipes(page: Page) -> str:
    rows = []
    columns = list(page.recipes.items())
    for name, shown in _SETTINGS.items():
        values = [shown(recipe) if hasattr(recipe, name) else "" for _, recipe in columns]
        if any(values):
            rows.append([name.replace("_", " "), *values])
    images = {
        name: int(page.labels.sum()) if name in ("finetune", "supervised") else page.images for name in page.recipes
    }
    steps = [schedule.total_steps(images[name], r.epochs, r.batch_size) for name, r in columns]
    rows.append(["steps", *(f"{count:,}" for count in steps)])
    rows.append(["took", *(in_words(page.seconds[name]) if page.seconds.get(name) else "" for name, _ in columns)])
    return _table(["", *(_STAGES[name] for name, _ in columns)], rows)


def _g(value: float) -> str:
    return f"{value:.3g}"


_SETTINGS = {
    "model": lambda r: find_spec(r.model).name,
    "image_size": lambda r: str(r.image_size),
    "batch_size": lambda r: str(r.batch_size),
    "epochs": lambda r: _g(r.epochs),
    "warmup_epochs": lambda r: _g(r.warmup_epochs),
    "optimizer": lambda r: r.optimizer.upper() if r.optimizer == "lars" else r.optimizer,
    "learning_rate": lambda r: _g(schedule.base_rate(r.learning_rate, r.batch_size, r.scaling)),
    "weight_decay": lambda r: _g(r.weight_decay),
    "temperature": lambda r: _g(r.temperature),
    "color_strength": lambda r: _g(r.color_strength),
    "classify_from": lambda r: f"projection layer {r.classify_from}" if r.classify_from else "features",
    "start_from_teacher": lambda r: "yes" if r.start_from_teacher else "no",
    "seed": lambda r: str(r.seed),
}


def _next(page: Page) -> str:
    images, student, table = (
        escape(shlex.quote(path)) for path in (page.images_folder, page.student_file, page.labels_file)
    )
    advice = [
        "Use it: <code>simclr app --model "
        + student
        + " --gallery "
        + images
        + "</code> classifies pictures and finds "
        "similar ones; <code>simclr classify " + student + " FILE...</code> does it in the shell.",
    ]
    if page.scores["student"].images < _FEW_HELD_OUT or page.labels.sum() < 10 * len(page.classes):
        how = "put more pictures into the class folders"
        if page.labels_file:
            command = f"simclr pick --images {images} --labels {table} --budget 20 --out more.csv"
            how = f"<code>{command}</code> says which are worth it. Fill in more.csv, add its rows to the CSV"
        advice.append(
            f"Label more: {how}, and give the same command again; pretraining is not repeated on the same pictures; "
            "the same ones measure."
        )
    pairs = charts.confused_pairs(_counts(page), most=1)
    if pairs:
        truth, answer, count = pairs[0]
        advice.append(
            f"Look at {escape(page.classes[truth])} and {escape(page.classes[answer])}: {count} "
            f"picture{'s' if count > 1 else ''} of the first {'are' if count > 1 else 'is'} taken for the second. A "
            "few more labels of both help most; and some labels may be wrong."
        )
    difference = page.scores["student"].top1 - page.scores["teacher"].top1
    if difference < -0.03:
        advice.append(
            "The student is behind its teacher: a larger <code>--student</code>, or more images, may close the gap."
        )
    if page.scores["student"].top1 <= page.scores["baseline"].top1:
        advice.append(
            "Pretraining has not paid here: it wants more images or more epochs. Until then the baseline is as good."
        )
    if page.budget == "quick":
        advice.append(
            "This was the quick budget, which shows the path. <code>--budget standard</code> (best on a GPU) trains a "
            "larger teacher for longer; in the same folder nothing done is lost."
        )
    return "<h2>What to do next</h2>\n<ul>" + "".join(f"<li>{line}</li>" for line in advice) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="wide"><table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


# ---- logs ------------------------------------------------------------------------------------------------------------


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log.jsonl; lines that are no entry (cut by a crash) are passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "loss" in entry:
            entries.append(entry)
    return entries


def seconds_of(log: Sequence[Mapping[str, Any]]) -> float:
    """What a stage took: its clock begins anew whenever it is resumed."""
    total = before = 0.0
    for entry in log:
        now = float(entry.get("seconds", before))
        if now < before:
            total += before
        before = now
    return total + before
