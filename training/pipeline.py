"""The three stages in a row: a folder of images and a few labels in; teacher, student and printed figures out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training import evaluate, runs
from training.data import ImageSet, stratified_subset
from training.loop import pick_device
from training.recipes import AnyRecipe, DistillRecipe, FinetuneRecipe, PretrainRecipe, recipe
from zoo.files import written_whole
from zoo.registry import SpecLike
from zoo.registry import spec as find_spec
from zoo.simclr import SimCLR

Budget = Literal["quick", "standard", "paper"]
BUDGETS: dict[str, tuple[str, str, str]] = {
    "quick": ("quick_pretrain", "quick_finetune", "quick_distill"),
    "standard": ("standard_pretrain", "standard_finetune", "standard_distill"),
    "paper": ("imagenet_pretrain", "imagenet_finetune_1pct", "imagenet_distill"),
}
_QUICK_FOR = (2000, 200, 2000)  # images each quick recipe's epochs are meant for


@dataclasses.dataclass(frozen=True)
class Figures:
    """What ``simclr run`` prints: accuracy on held-out labelled images, and the files."""

    teacher: evaluate.Score
    student: evaluate.Score
    knn: evaluate.Score
    labels_used: int
    images: int
    student_file: str

    def lines(self) -> list[str]:
        return [
            f"images {self.images}, labels used {self.labels_used}, held out {self.student.images}",
            f"kNN of the pretrained features   {self.knn}",
            f"teacher, fine-tuned              {self.teacher}",
            f"student, distilled               {self.student}",
            f"student as ONNX                  {self.student_file}",
        ]


def run(
    images: ImageSet,
    labelled: ImageSet,
    *,
    teacher: SpecLike,
    student: SpecLike,
    out: Path,
    export: Callable[[SimCLR, Path], Any],
    budget: Budget = "standard",
    held_out: ImageSet | None = None,
    holdout: float = 0.2,
    device: str = "auto",
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Figures:
    """Pretrain ``teacher`` on ``images``, fine-tune it on ``labelled``, distil it into ``student`` and ``export`` that.

    ``held_out`` images measure the result; without them a ``holdout`` share of the labelled ones is put aside first and
    never trained on. Raises ValueError for what cannot work, before any stage begins.
    """
    if budget not in BUDGETS:
        raise ValueError(f"Unknown budget {budget!r}. Choose from: {', '.join(BUDGETS)}.")
    teacher_spec, student_spec = find_spec(teacher), find_spec(student)
    pick_device(device)
    if held_out is None:
        labelled, held_out = _put_aside(labelled, holdout)
    elif held_out.classes != labelled.classes:
        raise ValueError(f"The test classes {held_out.classes} are not the labelled ones, {labelled.classes}.")
    stages = [recipe(name) for name in BUDGETS[budget]]
    if budget == "quick":
        sizes = (len(images), len(labelled), len(images))
        stages = [_same_work(r, n, meant) for r, n, meant in zip(stages, sizes, _QUICK_FOR, strict=True)]
    first, second, third = stages
    assert isinstance(first, PretrainRecipe)
    assert isinstance(second, FinetuneRecipe)
    assert isinstance(third, DistillRecipe)
    common: dict[str, Any] = {"device": device, "resume": resume}
    say(f"1/3 pretraining {teacher_spec.name} on {len(images)} images")
    pretrained = runs.pretrain(dataclasses.replace(first, model=teacher), images, out=out / "1_pretrain", **common)
    say(f"2/3 fine-tuning on {len(labelled)} labels")
    tuned = runs.finetune(
        dataclasses.replace(second, model=teacher), labelled, pretrained, out=out / "2_finetune", **common
    )
    say(f"3/3 distilling into {student_spec.name}")
    third = dataclasses.replace(
        third, model=student, start_from_teacher=third.start_from_teacher and teacher_spec == student_spec
    )
    distilled = runs.distill(third, images, tuned, out=out / "3_distill", **common)
    say("evaluating")
    where = pick_device(device)
    figures = Figures(
        teacher=evaluate.accuracy(tuned, held_out, device=where),
        student=evaluate.accuracy(distilled, held_out, device=where),
        knn=evaluate.knn_score(pretrained, labelled, held_out, k=min(20, len(labelled)), device=where),
        labels_used=len(labelled),
        images=len(images),
        student_file=str(out / "student.onnx"),
    )
    distilled.facts |= {"accuracy": dataclasses.asdict(figures.student), "budget": budget}
    export(distilled.to("cpu"), out / "student.onnx")
    with written_whole(out / "figures.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(figures), indent=2), encoding="utf-8")
    return figures


def _put_aside(labelled: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    assert labelled.labels is not None
    if not 0 < share < 1:
        raise ValueError(f"holdout={share!r} is not between 0 and 1.")
    counts = np.bincount(labelled.labels, minlength=len(labelled.classes))
    if counts.min() < 2:
        lonely = [name for name, count in zip(labelled.classes, counts, strict=True) if count < 2]
        raise ValueError(
            f"Too few labels to put any aside for: {', '.join(lonely[:5])}. Label two of each, or give --test."
        )
    aside = stratified_subset(labelled.labels, fraction=share, seed=0)
    kept = np.setdiff1d(np.arange(len(labelled)), aside)
    return labelled.subset(kept), labelled.subset(aside)


def _same_work(stage: AnyRecipe, images: int, meant: int) -> AnyRecipe:
    """The recipe with the epochs that take as many steps on ``images`` as its own take on ``meant`` ones."""
    factor = meant / max(images, 1)
    return dataclasses.replace(stage, epochs=stage.epochs * factor, warmup_epochs=stage.warmup_epochs * factor)
