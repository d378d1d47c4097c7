"""The runs of benchmarks/paper.py as plain data: what each trains, on which labels, and which others it needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from paper_linear import fold_count

from training.estimate import multiply_adds
from training.recipes import RECIPES, AnyRecipe, DistillRecipe, FinetuneRecipe, PretrainRecipe
from zoo.files import json_object
from zoo.registry import Spec, SpecLike
from zoo.registry import spec as find_spec
from zoo.resnet import SMALL_IMAGE

PARTS = {
    1: "supervised only",
    2: "pretraining, linear evaluation, kNN",
    3: "fine-tuning",
    4: "distillation",
    5: "width",
    6: "memory",
    7: "beside lightly",
}
Kind = Literal["choose", "supervised", "pretrain", "linear", "finetune", "distill", "lightly", "neighbours", "speed"]
TRAINED: tuple[Kind, ...] = ("supervised", "pretrain", "finetune", "distill", "lightly")
"""Kinds of which a model is left, for the runs that need it."""
_FEWEST = 0.03  # share of the labels below which a recipe is that for 1 %
_Some = TypeVar("_Some", PretrainRecipe, FinetuneRecipe, DistillRecipe)
Change = Mapping[str, float]
"""What a candidate changes in a recipe: ``color_strength``; ``epochs`` and ``learning_rate`` are factors."""

SUPERVISED: tuple[Change, ...] = ({}, {"color_strength": 0.5}, {"color_strength": 0.5, "epochs": 2})
FINETUNE: tuple[Change, ...] = ({}, {"color_strength": 0.5}, {"learning_rate": 0.3})
FINETUNE_FEWEST: tuple[Change, ...] = (*FINETUNE, {"learning_rate": 0.1})  # 1 %: the lowest of three won by far
TEACHER: tuple[Change, ...] = ({"learning_rate": 0.3}, {"learning_rate": 0.3, "epochs": 2})  # Imagenette's, and longer
LARGER = 1.5  # times the pixels of a side: 96 for 64


@dataclass(frozen=True)
class PeerRecipe:
    """lightly's SimCLR: its SimCLRTransform, head and NT-Xent loss with their defaults on torchvision's network, and
    the optimizer of its tutorial (SGD, cosine by epochs)."""

    model: str = "r18_1x"  # torchvision's resnet18
    image_size: int = 64
    batch_size: int = 256
    epochs: float = 30
    learning_rate: float = 0.06
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run is one file of results. ``recipe`` is None where nothing is trained."""

    name: str
    part: int
    kind: Kind
    recipe: AnyRecipe | PeerRecipe | None = None
    needs: tuple[str, ...] = ()
    share: float | None = None  # of the labels
    seed: int = 0  # of the draw of labels, and of the training
    draws: tuple[tuple[float, int], ...] = ()  # share and seed of each draw of labels: of a linear evaluation
    candidates: tuple[Change, ...] = ()
    of: Literal["supervised", "finetune"] = "supervised"  # what is chosen for
    lasting: bool = False  # its model stays beside its result, in float16: later parts need not repeat hours

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON values."""
        told = dataclasses.asdict(self)
        for name in ("name", "part", "lasting", *(() if self.draws else ("draws",))):
            del told[name]
        if self.recipe is not None:
            for name in ("workers", "note", "save_every", "log_every"):
                told["recipe"].pop(name, None)
        return told


@dataclass(frozen=True)
class Grid:
    """What the whole grid is made with. ``main`` is the main line's network and the teacher, ``small`` the narrower
    one, ``wide`` the wider one if it is wanted; ``pretrain`` is the recipe of every pretraining."""

    pretrain: str = "imagenette_pretrain"
    main: SpecLike = "r18_1x"
    small: SpecLike = Spec(18, 0.5)  # noqa: RUF009
    wide: SpecLike | None = None
    size: int = 64
    epochs: float = 100
    short_epochs: float = 30
    distill_epochs: float = 15  # of a student that begins with the teacher's backbone
    effort: float = 1  # times the epochs of supervised training and fine-tuning
    batch: int = 256
    memory_batch: int = 64
    memory: int = 4096
    memory_decay: float = 0.999  # the paper's, for 250,000 steps
    fast_decay: float = 0.99  # an average that keeps up with a run of few thousand steps
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)  # of the labels, ascending; the last are all
    seeds: tuple[int, ...] = (0, 1, 2)  # of labels; the first alone for all labels
    workers: int = 1

    @property
    def some(self) -> float:
        """The largest share that is not all: what is chosen on it is taken for all labels."""
        return self.shares[-2]


QUICK = Grid(
    main=Spec(18, 1 / 16),
    small=Spec(18, 1 / 32),
    size=40,
    epochs=1,
    short_epochs=1,
    distill_epochs=1,
    effort=0.01,
    batch=64,
    memory_batch=32,
    memory=64,
    shares=(0.2, 0.4, 1.0),
    seeds=(0, 1),
    workers=0,
)


def percent(share: float) -> str:
    """``10pct``."""
    return f"{100 * share:g}pct"


def shares_of(labels: Sequence[int], images: int, classes: int) -> tuple[float, ...]:
    """Shares of so many labels of all images, and all. Raises ValueError for none, a number given twice, fewer than two
    a class (one of them is held out to choose by), or more than there are."""
    if not labels or len(set(labels)) < len(labels) or min(labels) < 2 * classes or max(labels) >= images:
        wanted = f"{2 * classes} (two of each class) to {images - 1}"
        raise ValueError(f"labels {list(labels)}: give different numbers from {wanted}; all are added.")
    return *(count / images for count in sorted(labels)), 1.0


# ---- the table -------------------------------------------------------------------------------------------------------


def table(grid: Grid) -> list[Run]:
    """All runs, each after those it needs."""
    return [*_supervised(grid), *_main(grid), *_finetuned(grid), *_distilled(grid), *_short(grid)]


def _labels(grid: Grid) -> list[tuple[float, int]]:
    """Share and seed of every draw of labels."""
    few = [(share, seed) for share in grid.shares[:-1] for seed in grid.seeds]
    return [*few, (grid.shares[-1], grid.seeds[0])]


def _few_labels(grid: Grid) -> list[tuple[float, int]]:
    return _labels(grid)[:-1]


def _choice(of: str, share: float, grid: Grid) -> str:
    """Where the recipe for these labels was chosen."""
    return f"choose_{of}_{percent(min(share, grid.some))}"


def _on_labels(name: str, share: float, grid: Grid, model: SpecLike) -> FinetuneRecipe:
    """``imagenette_{name}`` for a share of the labels, in the grid's size."""
    suffix = "_1pct" if share < _FEWEST else "_100pct" if share == grid.shares[-1] else ""
    found = RECIPES[f"imagenette_{name}{suffix}"]
    assert isinstance(found, FinetuneRecipe)
    scaled = _scaled(found, max(1.0, found.epochs * grid.effort))
    return dataclasses.replace(scaled, model=model, image_size=grid.size, workers=grid.workers)


def _scaled(recipe: _Some, epochs: float) -> _Some:
    """Another number of epochs, and the warm-up with it."""
    return dataclasses.replace(recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs)


def _pretraining(grid: Grid, model: SpecLike, epochs: float, **changes: Any) -> PretrainRecipe:
    found = RECIPES[grid.pretrain]
    assert isinstance(found, PretrainRecipe)
    common = {"model": model, "image_size": grid.size, "batch_size": grid.batch, "workers": grid.workers}
    return dataclasses.replace(_scaled(found, epochs), **common | changes)


def _evaluation(line: str, trained: str, part: int, grid: Grid) -> Run:
    """Linear evaluation and kNN of what a run trained, with every draw of labels."""
    return Run(name=f"linear_{line}", part=part, kind="linear", needs=(trained,), draws=tuple(_labels(grid)))


def _choosing(
    name: str,
    part: int,
    of: Literal["supervised", "finetune"],
    share: float,
    grid: Grid,
    candidates: tuple[Change, ...],
) -> Run:
    """The choice of a recipe on held-out labels of the first draw, for the main network."""
    return Run(
        name=name,
        part=part,
        kind="choose",
        recipe=_on_labels(of, share, grid, grid.main),
        needs=("pretrain_main",) if of == "finetune" else (),
        share=share,
        seed=grid.seeds[0],
        candidates=candidates,
        of=of,
    )


def _supervised(grid: Grid) -> list[Run]:
    found = [
        _choosing(_choice("supervised", share, grid), 1, "supervised", share, grid, SUPERVISED)
        for share in grid.shares[:-1]
    ]
    for share, seed in _labels(grid):
        recipe = dataclasses.replace(_on_labels("supervised", share, grid, grid.main), seed=seed)
        needs = (_choice("supervised", share, grid),)
        name = f"supervised_{percent(share)}_s{seed}"
        found.append(Run(name=name, part=1, kind="supervised", recipe=recipe, needs=needs, share=share, seed=seed))
    return found


def _main(grid: Grid) -> list[Run]:
    recipe = _pretraining(grid, grid.main, grid.epochs)
    return [
        Run(name="pretrain_main", part=2, kind="pretrain", recipe=recipe, lasting=True),
        _evaluation("main", "pretrain_main", 2, grid),
        Run(name="neighbours", part=2, kind="neighbours", needs=("pretrain_main",)),
    ]


def _finetuning(grid: Grid, line: str, part: int, share: float, seed: int, layer: int) -> Run:
    recipe = dataclasses.replace(
        _on_labels("finetune", share, grid, _networks(grid)[line]), classify_from=layer, seed=seed
    )
    place = "" if line == "main" else f"_{line}"
    return Run(
        name=f"finetune{place}_{percent(share)}_layer{layer}_s{seed}",
        part=part,
        kind="finetune",
        recipe=recipe,
        needs=(f"pretrain_{line}", _choice("finetune", share, grid)),
        share=share,
        seed=seed,
    )


def _finetuned(grid: Grid) -> list[Run]:
    found = [
        _choosing(_choice("finetune", share, grid), 3, "finetune", share, grid, candidates)
        for share in grid.shares[:-1]
        for candidates in [FINETUNE if share == grid.some else FINETUNE_FEWEST]
    ]
    for layer in (1, 0, 2):
        found += [_finetuning(grid, "main", 3, share, seed, layer) for share, seed in _few_labels(grid)]
    return [*found, _finetuning(grid, "main", 3, grid.shares[-1], grid.seeds[0], 0)]


class Distilled(NamedTuple):
    """``epochs`` and ``size``: times the grid's; ``changes``: what differs from imagenette_distill; ``once``: of the
    largest share and the first draw alone; ``teacher``: the fine-tuning that it learns from."""

    epochs: float
    changes: Mapping[str, Any]
    once: bool = False
    teacher: str = "finetune"
    size: float = 1


DISTILLED: dict[str, Distilled] = {
    "self": Distilled(1, {"temperature": 0.1}),  # the paper's for a student of the teacher's shape
    "labels": Distilled(1, {"temperature": 0.1, "alpha": 0.5}),
    "small": Distilled(2, {"temperature": 1.0, "start_from_teacher": False}),
    "long": Distilled(4, {"temperature": 0.1}, once=True),
    "teacher": Distilled(1, {"temperature": 0.1}, once=True, teacher="finetune_teacher"),
    "large": Distilled(1, {"temperature": 0.1}, once=True, teacher="finetune_large", size=LARGER),
}


def _teachers(grid: Grid) -> list[Run]:
    """A teacher that was offered twice the epochs, and one that sees larger images, with its baseline, once each: the
    student of the largest share had missed its aim."""
    few, seed = percent(grid.some), grid.seeds[0]
    choice = _choosing(f"choose_teacher_{few}", 4, "finetune", grid.some, grid, TEACHER)
    tuned = _finetuning(grid, "main", 4, grid.some, seed, 1)
    needs = ("pretrain_main", choice.name)
    found = [choice, dataclasses.replace(tuned, name=f"finetune_teacher_{few}_layer1_s{seed}", needs=needs)]
    if grid.size > SMALL_IMAGE:
        alone = next(run for run in _supervised(grid) if run.name == f"supervised_{few}_s{seed}")
        found += [_larger(tuned), _larger(alone)]
    return found


def _larger(run: Run) -> Run:
    """The same with larger images."""
    assert isinstance(run.recipe, FinetuneRecipe)
    kind, _, rest = run.name.partition("_")
    recipe = dataclasses.replace(run.recipe, image_size=round(run.recipe.image_size * LARGER))
    return dataclasses.replace(run, name=f"{kind}_large_{rest}", part=4, recipe=recipe)


def _distilled(grid: Grid) -> list[Run]:
    """From the teachers that were fine-tuned from layer 1: into the same network, with labels too, and into a smaller
    one; once for longer, once from a teacher that was fine-tuned for longer, and once with larger images."""
    base = RECIPES["imagenette_distill"]
    assert isinstance(base, DistillRecipe)
    found = _teachers(grid)
    for name, kind in DISTILLED.items():
        if kind.size > 1 and grid.size <= SMALL_IMAGE:
            continue  # the first convolution of small images does not fit larger ones
        for share, seed in [(grid.some, grid.seeds[0])] if kind.once else _few_labels(grid):
            recipe = dataclasses.replace(
                _scaled(base, grid.distill_epochs * kind.epochs),
                model=grid.small if name == "small" else grid.main,
                image_size=round(grid.size * kind.size),
                workers=grid.workers,
                seed=seed,
                **kind.changes,
            )
            needs = (f"{kind.teacher}_{percent(share)}_layer1_s{seed}",)
            run = Run(name=f"distill_{name}_{percent(share)}_s{seed}", part=4, kind="distill", recipe=recipe)
            found.append(dataclasses.replace(run, needs=needs, share=share, seed=seed))
    return [*found, Run(name="speed", part=4, kind="speed")]


def _networks(grid: Grid) -> dict[str, SpecLike]:
    """The lines of pretraining by name: the main one, and those of fewer epochs that are compared with each other."""
    wide = {} if grid.wide is None else {"wide": grid.wide}
    return {"main": grid.main, "short": grid.main, "narrow": grid.small} | wide


def _short(grid: Grid) -> list[Run]:
    found = []
    for line, model in _networks(grid).items():
        if line == "main":
            continue
        recipe = _pretraining(grid, model, grid.short_epochs)
        found += [
            Run(name=f"pretrain_{line}", part=5, kind="pretrain", recipe=recipe, lasting=line == "narrow"),
            _evaluation(line, f"pretrain_{line}", 5, grid),
        ]
        found += [
            _finetuning(grid, line, 5, share, seed, 0 if share == grid.shares[-1] else 1)
            for share, seed in _labels(grid)
        ]
    modes = {
        "memory_off": (0, grid.memory_decay),
        "memory_on": (grid.memory, grid.memory_decay),
        "memory_fast": (grid.memory, grid.fast_decay),
    }
    for name, (memory, decay) in modes.items():
        recipe = _pretraining(
            grid,
            grid.small,
            grid.short_epochs,
            batch_size=grid.memory_batch,
            memory=memory,
            memory_decay=decay,
        )
        found += [
            Run(name=f"pretrain_{name}", part=6, kind="pretrain", recipe=recipe),
            _evaluation(name, f"pretrain_{name}", 6, grid),
        ]
    peer = PeerRecipe(image_size=grid.size, batch_size=grid.batch, epochs=grid.short_epochs)
    return [
        *found,
        Run(name="lightly", part=7, kind="lightly", recipe=peer),
        _evaluation("lightly", "lightly", 7, grid),
    ]


# ---- what to do ------------------------------------------------------------------------------------------------------


def apply(recipe: FinetuneRecipe, change: Change) -> FinetuneRecipe:
    """A candidate's recipe. Raises KeyError for a change that there is none of."""
    new: dict[str, Any] = {
        name: {"color_strength": value, "epochs": recipe.epochs * value, "learning_rate": recipe.learning_rate * value}[
            name
        ]
        for name, value in change.items()
    }
    return dataclasses.replace(recipe, **new)


def wanted(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs whose name fits a pattern (or ``part4``), and all that they need, in the table's order.

    Raises ValueError for a pattern that fits none.
    """
    by_name = {run.name: run for run in runs}
    chosen: set[str] = set()
    for pattern in patterns or ["*"]:
        found = [run.name for run in runs if any(fnmatchcase(n, pattern) for n in (run.name, f"part{run.part}"))]
        if not found:
            raise ValueError(f"No run is called {pattern!r}; --list shows them all.")
        chosen.update(found)
    queue = list(chosen)
    while queue:
        for need in by_name[queue.pop()].needs:
            if need not in chosen:
                chosen.add(need)
                queue.append(need)
    return [run for run in runs if run.name in chosen]


def resting_on(runs: Sequence[Run], name: str) -> list[str]:
    """The runs that begin with what this one leaves, or with what one of those does."""
    found = [name]
    for run in runs:
        if set(run.needs) & set(found):
            found.append(run.name)
    return found[1:]


def read_result(path: Path, *needed: str) -> dict[str, Any]:
    """The result of a run. Raises ValueError, in one line, for one that is damaged or lacks what is needed."""
    try:
        found: dict[str, Any] = json_object(path.read_bytes())
        if found["name"] != path.stem:
            raise ValueError(f"of {found['name']}")
        for key in needed:
            found[key]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged, or no result ({error}); remove it, and that run is done again.") from None
    return found


def to_do(runs: Sequence[Run], finished: set[str], kept: set[str]) -> list[Run]:
    """Those without a result, and those whose model is needed by one of them and not ``kept``, in order."""
    left: list[Run] = []
    for run in reversed(runs):
        needed = run.kind in TRAINED and any(run.name in other.needs for other in left)
        if run.name not in finished or (needed and run.name not in kept):
            left.append(run)
    return left[::-1]


def work(run: Run, images: int) -> float:
    """How long it takes, in views of r18_1x at 64 pixels in training; ``images`` are those without labels."""
    if run.recipe is None:
        return 2.0 * images  # decoding most of all
    recipe = run.recipe
    yardstick = multiply_adds(Spec(18), 64)
    one = multiply_adds(find_spec(recipe.model), recipe.image_size) / yardstick
    seen = recipe.epochs * images * (1 if run.share is None or run.kind == "distill" else run.share)
    views = 2 if run.kind in ("pretrain", "lightly") else 1
    if isinstance(recipe, PretrainRecipe) and recipe.memory:
        one *= 4 / 3  # the average looks at everything too
    if run.kind == "distill":
        one += multiply_adds(Spec(18), recipe.image_size) / yardstick / 3  # the teacher looks only
    if run.kind == "choose":
        folds = fold_count(round(images * (run.share or 1)))
        seen *= folds * sum(change.get("epochs", 1) for change in run.candidates)
    return seen * views * one + 0.6 * images  # and the evaluation
