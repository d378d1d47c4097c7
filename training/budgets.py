"""What `simclr run` does for a budget: which networks and recipes, fitted to the number of images and labels."""

import dataclasses
from dataclasses import dataclass

from training import schedule
from training.data import ImageSet
from training.recipes import AnyRecipe, DistillRecipe, recipe
from zoo.registry import SpecLike
from zoo.registry import spec as find_spec


@dataclass(frozen=True)
class Budget:
    """The recipes of a budget by stage, and the networks unless others are named.

    ``meant_for``: images and labels for which the recipes' epochs are meant; with other numbers the epochs change and
    the work does not. Without it the epochs hold, but a small set is gone through more often, for ``least_steps``.
    """

    teacher: str
    student: str
    recipes: dict[str, str]
    meant_for: tuple[int, int] | None = None
    least_steps: int = 0


BUDGETS: dict[str, Budget] = {
    "quick": Budget(
        "r18_1x",
        "r18_1x",
        {
            "pretrain": "quick_pretrain",
            "finetune": "quick_finetune",
            "distill": "quick_distill",
            "supervised": "quick_supervised",
        },
        meant_for=(2000, 200),
    ),
    "standard": Budget(
        "r50_1x_sk",
        "r18_1x",
        {
            "pretrain": "standard_pretrain",
            "finetune": "standard_finetune",
            "distill": "standard_distill",
            "supervised": "standard_supervised",
        },
        least_steps=1000,
    ),
    "paper": Budget(
        "r152_3x_sk",
        "r50_1x",
        {
            "pretrain": "imagenet_pretrain",
            "finetune": "imagenet_finetune_1pct",
            "self_distill": "imagenet_self_distill",
            "distill": "imagenet_distill",
            "supervised": "imagenet_supervised_1pct",
        },
    ),
}
SHORTER = {"paper": "standard", "standard": "quick"}
_SOURCE = {"finetune": "pretrain", "self_distill": "finetune"}  # whose weights a stage begins from, or is taught by
_ON_LABELS = ("finetune", "supervised")


def fitted(recipe: AnyRecipe, images: int, *, meant_for: int | None = None, least_steps: int = 0) -> AnyRecipe:
    """The recipe for a set of ``images``: a batch of at most half of it (but 16, if there are so many), and epochs that
    see as many images as the recipe's own would of ``meant_for``, or that take ``least_steps``."""
    batch = min(recipe.batch_size, max(images // 2, 16), images)
    if meant_for is not None:
        epochs = recipe.epochs * meant_for / images
    else:
        epochs = max(recipe.epochs, least_steps * batch / images)
    warmup = recipe.warmup_epochs * epochs / recipe.epochs
    return dataclasses.replace(recipe, batch_size=batch, epochs=epochs, warmup_epochs=warmup)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its recipe, fitted, and the images it is trained on."""

    name: str
    title: str
    recipe: AnyRecipe
    images: ImageSet
    source: str | None  # the stage whose model goes in

    @property
    def images_seen(self) -> int:
        return self.recipe.batch_size * schedule.total_steps(
            len(self.images), self.recipe.epochs, self.recipe.batch_size
        )


def plan(
    budget: str, teacher: SpecLike | None, student: SpecLike | None, unlabeled: ImageSet, few: ImageSet, *, workers: int
) -> list[Stage]:
    """The stages of a budget for these sets, in their order."""
    chosen = BUDGETS[budget]
    big, small = find_spec(teacher or chosen.teacher), find_spec(student or chosen.student)
    titles = {
        "pretrain": f"pretraining {big.name} on {len(unlabeled)} images",
        "finetune": f"fine-tuning it on {len(few)} labels",
        "self_distill": f"distilling {big.name} into itself",
        "distill": f"distilling it into {small.name}",
        "supervised": f"the baseline: {small.name} on the {len(few)} labels alone",
    }
    stages = []
    for name, recipe_name in chosen.recipes.items():
        images = few if name in _ON_LABELS else unlabeled
        meant = None if chosen.meant_for is None else chosen.meant_for[name in _ON_LABELS]
        found = fitted(recipe(recipe_name), len(images), meant_for=meant, least_steps=chosen.least_steps)
        spec = small if name in ("distill", "supervised") else big
        found = dataclasses.replace(found, model=spec.name if spec.facts else spec, workers=workers)
        if isinstance(found, DistillRecipe):
            found = dataclasses.replace(found, start_from_teacher=found.start_from_teacher and spec == big)
        source = _SOURCE.get(name)
        if name == "distill":
            source = "self_distill" if "self_distill" in chosen.recipes else "finetune"
        stages.append(Stage(name, titles[name], found, images, source))
    return stages
