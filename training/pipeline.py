"""The three stages in a row, and a baseline: a folder of images and a few labels in, a student and a report out.

A run folder holds run.json (what was used), stages/NAME-KEY/ (a run directory each, see stage_cache.py), held_out.json,
student.onnx, figures.json and report.html.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import zoo
from training import estimate, evaluate, findings, report, runs
from training.budgets import BUDGETS, SHORTER, Stage, plan
from training.data import ImageSet
from training.holdout import HELD_OUT, Split, check, few_of, split
from training.loop import InterruptedRunError, pick_device, pick_precision
from training.recipes import DistillRecipe, FinetuneRecipe, PretrainRecipe
from training.stage_cache import RUN_FILE, Contents, claimed, stage_folder, stage_key, unused
from zoo.files import check_room, write_json
from zoo.model_file import MODEL_FILE, load_file, weights_sha256
from zoo.registry import Spec, SpecLike
from zoo.registry import spec as find_spec
from zoo.simclr import SimCLR

BudgetName = Literal["auto", "quick", "standard", "paper"]
Say = Callable[[str], None]

STUDENT, FIGURES, REPORT = "student.onnx", "figures.json", "report.html"
_LARGEST_ONNX = 2**31 - 2**20  # bytes, of one ONNX file; weights are stored in two bytes each


# ---- before work starts ----------------------------------------------------------------------------------------------


def _seconds(stages: Sequence[Stage], views: float, where: torch.device) -> dict[str, float]:
    """An estimate for each stage; ``views``: seconds to read and augment one."""
    found = {}
    specs = {stage.name: find_spec(stage.recipe.model) for stage in stages}
    for stage in stages:
        size, precision = stage.recipe.image_size, pick_precision(stage.recipe.precision, where)
        count = 2 if isinstance(stage.recipe, PretrainRecipe) else 1
        compute = count * estimate.step_seconds(specs[stage.name], size, where, precision)
        if isinstance(stage.recipe, DistillRecipe):  # the teacher only looks
            compute += estimate.step_seconds(specs["pretrain"], size, where, precision) / 3
        workers = stage.recipe.workers
        found[stage.name] = stage.images_seen * estimate.together(compute, count * views, device=where, workers=workers)
    return found


def parameters(spec: Spec) -> int:
    """Of the backbone."""
    with torch.device("meta"):
        model = SimCLR(spec, num_classes=None, projector=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _check_room(out: Path, stages: Sequence[Stage]) -> None:
    """Each stage keeps two checkpoints (a third while it writes) of weights and momentum, and its model."""
    sizes = [4 * parameters(find_spec(stage.recipe.model)) * (3 * 2 + 1) for stage in stages]
    check_room(out, sum(sizes), "what the stages keep")


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What ``simclr run`` prints: accuracy on held-out labelled images, and the files."""

    teacher: evaluate.Score
    student: evaluate.Score  # the ONNX file, as it is shipped
    baseline: evaluate.Score
    knn: evaluate.Score
    self_distilled: evaluate.Score | None
    images: int
    labels_used: int
    held_out: int
    student_file: str
    report_file: str

    def lines(self) -> list[str]:
        scores = {
            "kNN of the pretrained features": self.knn,
            "teacher, fine-tuned": self.teacher,
            "teacher, self-distilled": self.self_distilled,
            "student, distilled, as ONNX": self.student,
            "baseline, on the labels alone": self.baseline,
        }
        return [
            f"trained on {self.images} images, {self.labels_used} of them with a label; {self.held_out} held out",
            *(f"{name:<32}{score}" for name, score in scores.items() if score is not None),
            f"{'student':<32}{self.student_file}",
            f"{'report':<32}{self.report_file}",
        ]


def run(
    images: ImageSet,
    labelled: ImageSet,
    *,
    root: Path,
    out: Path,
    export: Callable[[SimCLR, Path], Any],
    teacher: SpecLike | None = None,
    student: SpecLike | None = None,
    budget: BudgetName = "auto",
    held_out: ImageSet | None = None,
    holdout: float = 0.2,
    device: str = "auto",
    workers: int | None = None,
    command: str = "simclr run",
    labels_file: str = "",
    say: Say = print,
) -> Figures:
    """Pretrain a teacher on ``images``, fine-tune it on ``labelled``, distil it into a student, ``export`` that, train
    the baseline, measure all of them and write the report.

    ``root`` is the folder that the images' names start from, ``labels_file`` the CSV of the labels, if they are in one,
    for the report's advice. ``held_out`` images measure the result; without them a
    ``holdout`` share of the labelled ones is put aside first. What measures is trained on in no stage, with or without
    its label. ``budget`` auto is standard on a GPU and quick on a CPU. A stage whose inputs have not changed since an
    earlier run in ``out`` is not repeated; one that was interrupted goes on.

    Raises ValueError (or OSError, for a full disk) for what cannot work, before any stage begins.
    """
    where = pick_device(device)
    if budget != "auto" and budget not in BUDGETS:
        raise ValueError(f"Unknown budget {budget!r}. Choose from: auto, {', '.join(BUDGETS)}.")
    name = budget if budget != "auto" else ("quick" if where.type == "cpu" else "standard")
    small = find_spec(student or BUDGETS[name].student)
    find_spec(teacher or BUDGETS[name].teacher)
    if 2 * parameters(small) > _LARGEST_ONNX:
        raise ValueError(f"{small.name} does not fit into one ONNX file (2.1 GB); choose a smaller --student.")
    check(images, labelled, held_out, holdout)
    workers = workers if workers is not None else 1 if where.type == "cpu" else max(1, min(8, estimate.cores() - 1))
    with claimed(out):
        if not (out / RUN_FILE).exists():  # first of all: by it the same command knows the folder again
            write_json(out / RUN_FILE, {"version": zoo.__version__, "command": command, "stages": {}})
        contents = Contents(root, out)
        contents.read(images.paths)
        sets = split(images, labelled, held_out, holdout=holdout, contents=contents, out=out)
        _announce_sets(sets, out, say)

        def stages_of(budget: str) -> list[Stage]:
            return plan(budget, teacher, student, sets.unlabeled, sets.few, workers=workers)

        stages = stages_of(name)
        left = [stage for stage in stages if stage.name not in _finished(stages, contents, out)]
        _check_room(out, left)
        _announce_time(name, budget == "auto", stages_of, left, where, say)
        work = _Work(stages, sets, contents, out, device, where, say)
        return _measured(work, export, name, command, root, labels_file)


def _announce_sets(sets: Split, out: Path, say: Say) -> None:
    classes = len(sets.few.classes)
    say(
        f"{len(sets.unlabeled)} images to train on, {len(sets.few)} of them with a label, {classes} classes; "
        f"{len(sets.held_out)} held out to measure"
    )
    if sets.copies:
        say(f"{sets.copies} images are left out: they are copies of held-out ones")
    if sets.unmeasured:
        say(
            f"not measured, for none is held out: {few_of(sets.unmeasured)}; to draw anew, delete {out / HELD_OUT} "
            "(pretraining then runs again)"
        )


def _announce_time(
    name: str,
    automatic: bool,
    stages_of: Callable[[str], list[Stage]],
    left: Sequence[Stage],
    where: torch.device,
    say: Say,
) -> None:
    """How long what is left will take, and how to have it shorter (or, where auto chose quick, better)."""
    stages = stages_of(name)
    recipe = stages[0].recipe
    teacher, student = (find_spec(stage.recipe.model).name for stage in (stages[0], stages[-1]))
    chosen = "no GPU here, so budget quick" if automatic and where.type == "cpu" else f"budget {name}"
    say(f"{chosen}: teacher {teacher}, student {student}, {recipe.image_size} pixels")
    if not left:
        say("all stages are done already")
        return
    views = estimate.view_seconds(left[0].images, recipe.image_size)
    found = _seconds(stages, views, where)
    parts = {stage.name: found[stage.name] for stage in left}
    shown = ", ".join(f"{stage} {estimate.in_words(seconds)}" for stage, seconds in parts.items())
    say(f"on this machine about {estimate.in_words(sum(parts.values()))}: {shown}")
    other = "standard" if automatic and name == "quick" else SHORTER.get(name)
    if other:
        seconds = sum(_seconds(stages_of(other), views, where).values())
        say(f"--budget {other} would take about {estimate.in_words(seconds)}" + (", and do better" * (name == "quick")))


def _finished(stages: Sequence[Stage], contents: Contents, out: Path) -> set[str]:
    """Names of the stages that need no work, as far as that can be known before."""
    models: dict[str, tuple[str, tuple[str, ...]]] = {}
    for stage in stages:
        if stage.source is not None and stage.source not in models:
            continue
        weights, classes = models.get(stage.source or "", (None, ()))
        key = stage_key(
            stage.name, stage.recipe, images=contents.digest(stage.images), weights=weights, classes=classes
        )
        path = stage_folder(out, stage.name, key) / MODEL_FILE
        if path.exists():
            model = load_file(path)
            models[stage.name] = weights_sha256(model), model.classes
    return set(models)


class _Work:
    """The stages of one run, done one by one."""

    def __init__(
        self,
        stages: Sequence[Stage],
        sets: Split,
        contents: Contents,
        out: Path,
        device: str,
        where: torch.device,
        say: Say,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.sets, self.contents, self.out = sets, contents, out
        self.device, self.where, self.say = device, where, say
        self.folders: dict[str, Path] = {}
        self.keys: dict[str, str] = {}

    def do(self, name: str, source: SimCLR | None) -> SimCLR:
        """Train a stage, go on with it, or load what it left. Raises InterruptedRunError."""
        stage = self.stages[name]
        key = stage_key(
            name,
            stage.recipe,
            images=self.contents.digest(stage.images),
            weights=None if source is None else weights_sha256(source),
            classes=() if source is None else source.classes,
        )
        self.keys[name] = key
        folder = self.folders[name] = stage_folder(self.out, name, key)
        done = " (done before)" if (folder / MODEL_FILE).exists() else ""
        self.say(f"{list(self.stages).index(name) + 1}/{len(self.stages)} {stage.title}{done}")
        common: dict[str, Any] = {"out": folder, "device": self.device, "resume": True}
        try:
            if isinstance(stage.recipe, PretrainRecipe):
                return runs.pretrain(stage.recipe, stage.images, validation=self.sets.few, **common)
            if isinstance(stage.recipe, FinetuneRecipe):
                return runs.finetune(stage.recipe, stage.images, source, **common)
            assert source is not None
            return runs.distill(stage.recipe, stage.images, source, **common)
        except InterruptedRunError as stop:
            told = str(stop).removesuffix(" Go on with --resume.")
            raise InterruptedRunError(f"{told} Give the same command again to go on.") from None

    def log(self, name: str) -> list[dict[str, Any]]:
        return report.read_log(self.folders[name] / "log.jsonl")

    def answers(self, model: SimCLR) -> tuple[torch.Tensor, np.ndarray]:
        """Logits of the held-out images that can be read, and the labels."""
        _, logits, kept = evaluate.embed(model, self.sets.held_out, device=self.where, title="measuring")
        model.to("cpu")
        assert logits is not None
        assert self.sets.held_out.labels is not None
        return logits, self.sets.held_out.labels[kept]


def _measured(
    work: _Work, export: Callable[[SimCLR, Path], Any], budget: str, command: str, root: Path, labels_file: str
) -> Figures:
    """All the stages, measured one by one, the exported student and the report."""
    from export.runtime import OnnxModel

    out, sets = work.out, work.sets
    pretrained = work.do("pretrain", None)
    knn = evaluate.knn_score(pretrained, sets.few, sets.held_out, k=min(20, len(sets.few)), device=work.where)
    tuned = work.do("finetune", pretrained.to("cpu"))
    answers = {"teacher": work.answers(tuned)}
    del pretrained
    if "self_distill" in work.stages:
        tuned = work.do("self_distill", tuned)
        answers["self_distilled"] = work.answers(tuned)
    distilled = work.do("distill", tuned)
    baseline = work.do("supervised", None)
    answers["baseline"] = work.answers(baseline)
    del baseline
    work.say("exporting and measuring the student")
    distilled.facts |= {"budget": budget}
    export(distilled.to("cpu"), out / STUDENT)
    exported = OnnxModel(out / STUDENT)
    features, logits, kept = findings.onnx_answers(exported, sets.held_out)
    assert sets.held_out.labels is not None
    answers["student"] = torch.from_numpy(logits), sets.held_out.labels[kept]
    scores = {name: evaluate.score(found, labels) for name, (found, labels) in answers.items()}
    hits = {name: (found.argmax(1).numpy() == labels) for name, (found, labels) in answers.items()}
    figures = Figures(
        teacher=scores["teacher"],
        student=scores["student"],
        baseline=scores["baseline"],
        knn=knn,
        self_distilled=scores.get("self_distilled"),
        images=len(sets.unlabeled),
        labels_used=len(sets.few),
        held_out=len(sets.held_out),
        student_file=str(out / STUDENT),
        report_file=str(out / REPORT),
    )
    logs = {name: work.log(name) for name in work.stages}
    seconds = {name: report.seconds_of(log) for name, log in logs.items()}
    write_json(out / FIGURES, dataclasses.asdict(figures))
    write_json(
        out / RUN_FILE,
        {
            "version": zoo.__version__,
            "command": command,
            "stages": {
                name: {"folder": folder.relative_to(out).as_posix(), "key": work.keys[name], "seconds": seconds[name]}
                for name, folder in work.folders.items()
            },
        },
    )
    page = report.Page(
        title=out.resolve().name,
        command=command,
        budget=budget,
        images_folder=str(root),
        labels_file=labels_file,
        student_file=str(out / STUDENT),
        classes=sets.few.classes,
        images=len(sets.unlabeled),
        labels=np.bincount(np.asarray(sets.few.labels), minlength=len(sets.few.classes)),
        held_out=np.bincount(sets.held_out.labels, minlength=len(sets.few.classes)),
        copies=sets.copies,
        teacher=findings.network(tuned),
        student=findings.network(distilled),
        student_bytes=exported.file_bytes,
        student_milliseconds=findings.milliseconds(lambda: exported(findings.noise(exported.image_size))),
        teacher_milliseconds=findings.torch_milliseconds(tuned),
        scores={"knn": knn} | scores,
        hits=hits,
        truth=answers["student"][1],
        answers=logits.argmax(1),
        queries=findings.queries(exported, sets, features, logits, kept),
        logs=logs,
        recipes={name: stage.recipe for name, stage in work.stages.items()},
        seconds=seconds,
        machine=findings.machine(work.where),
        versions=findings.versions(),
        views=next(iter(sorted(work.folders["pretrain"].glob("*views*.png"))), None),
    )
    report.write(page, out / REPORT)
    _mention_unused(out, list(work.folders.values()), work.say)
    return figures


def _mention_unused(out: Path, used: Sequence[Path], say: Say) -> None:
    old, size = unused(out, used)
    if old:
        names = shlex.join(map(str, old))
        say(f"kept from earlier runs, {size / 1e6:.0f} MB; to delete: rm -r -- {names}")
