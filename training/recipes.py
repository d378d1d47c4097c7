"""Recipes: name to frozen dataclass. They are the truth; flags of the command line only override."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from training.schedule import Scaling
from zoo.registry import SpecLike, suggest

_NOT_NEGATIVE = (
    "warmup_epochs",
    "learning_rate",
    "weight_decay",
    "momentum",
    "clip_norm",
    "ema_decay",
    "micro_batch",
    "workers",
    "seed",
    "save_every",
    "color_strength",
)
Statistics = Literal["micro", "global"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Data = Literal["auto", "stream", "resident"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every stage needs to know. ``learning_rate`` is scaled with the batch as ``scaling`` says."""

    model: SpecLike = "r50_1x"
    image_size: int = 224
    batch_size: int = 4096
    epochs: float = 800
    warmup_epochs: float = 0
    optimizer: Literal["lars", "nesterov"] = "lars"
    learning_rate: float = 0.1
    scaling: Scaling = "sqrt"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # of the whole gradient; 0: as it is
    ema_decay: float = 0.0  # the result is the moving average of the weights with this decay; 0: the weights themselves
    micro_batch: int = 0  # images of a process in the network at a time; 0: all
    batch_norm: Statistics = "micro"  # over each micro-batch, or pooled over the batch ("global"); see training/step.py
    recompute: bool = False  # activations of a block in the backward pass, instead of keeping them
    compile: bool = False
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1
    data: Data = "auto"  # decoded for every batch, or once onto the device; auto: the latter on a GPU where it fits
    log_every: int = 10  # steps
    save_every: float = 300.0  # seconds between checkpoints
    score_every: float = 5.0  # epochs between scores on the validation images
    tensorboard: bool = False
    note: str = ""  # hardware, hours, what to expect

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name}={value!r} is no finite number.")
        if self.optimizer == "nesterov" and not self.momentum:
            raise ValueError("optimizer='nesterov' needs a momentum above 0; the paper's is 0.9.")
        for name in ("image_size", "batch_size", "epochs", "log_every", "score_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is not positive.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name, 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is negative.")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} is not shorter than epochs={self.epochs}.")
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay={self.ema_decay!r} is not below 1; 0.999 averages over about 1,000 steps.")
        if self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch={self.micro_batch} is more than batch_size={self.batch_size}.")
        if self.batch_norm == "global" and not self.micro_batch:
            raise ValueError("batch_norm='global' pools the parts of a batch; it needs a micro_batch.")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """Stage 1 (paper: section 3.1): contrastive, no labels."""

    warmup_epochs: float = 40  # 5 % of the epochs
    weight_decay: float = 1e-4
    temperature: float = 0.1
    color_strength: float = 1.0
    blur: bool = True
    memory: int = 0  # projections of the moving-average encoder as more negatives (and positives); the paper's is 65536
    memory_decay: float = 0.999  # of that encoder

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_temperature(self.temperature)
        if self.memory < 0:
            raise ValueError(f"memory={self.memory!r} is negative; 0 is none, the paper's is 65536.")
        if not 0 <= self.memory_decay < 1:
            raise ValueError(f"memory_decay={self.memory_decay!r} is not in [0, 1); the paper's is 0.999.")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """Stage 2: few labels. ``freeze_backbone``, with ``classify_from`` 0, makes it linear evaluation; ``from_scratch``
    the supervised baseline."""

    color_strength: float = 0.0  # of pretraining's jitter and greyscale; 0: crop and flip only, as the paper
    batch_size: int = 1024
    epochs: float = 60
    learning_rate: float = 0.005
    classify_from: int = 1
    freeze_backbone: bool = False
    from_scratch: bool = False


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(Recipe):
    """Stage 3: the student learns the teacher's answers on all images."""

    epochs: float = 400
    warmup_epochs: float = 20
    weight_decay: float = 1e-4
    temperature: float = 1.0
    alpha: float = 1.0  # share of the teacher's answers in the loss; the rest goes to the labels there are
    scale_by_t2: bool = True
    start_from_teacher: bool = False  # copy the teacher's backbone (student of the same shape): for short runs

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_temperature(self.temperature)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} is not between 0 (labels only) and 1 (teacher only).")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} is not positive; the paper uses 0.1 to 1.")


AnyRecipe: TypeAlias = PretrainRecipe | FinetuneRecipe | DistillRecipe

_LINEAR = FinetuneRecipe(
    classify_from=0,
    freeze_backbone=True,
    optimizer="nesterov",
    learning_rate=0.1,
    scaling="linear",
    batch_size=4096,
    epochs=90,
    weight_decay=1e-6,
    note="Linear evaluation as in the paper's Table 1.",
)
_NESTEROV = FinetuneRecipe(
    model="r18_1x",
    image_size=64,
    batch_size=64,
    epochs=50,
    warmup_epochs=2,
    learning_rate=0.1,
    scaling="linear",
    optimizer="nesterov",
    weight_decay=1e-4,
    note="With 10 % of the labels. Nesterov momentum: with few steps LARS underfits (docs/log.md).",
)
_SCRATCH = dataclasses.replace(
    _NESTEROV, epochs=100, classify_from=0, from_scratch=True, note="The baseline: 10 % of the images, all labelled."
)
_QUICK = (
    "For 2,000 images; on two cores a quarter of an hour in all. With other numbers the epochs change, not the work."
)

# fields that change nothing in what is computed
SAME_RESULT = ("workers", "recompute", "log_every", "save_every", "score_every", "tensorboard", "note")

RECIPES: dict[str, AnyRecipe] = {
    # The paper: ImageNet (Table 1). 128 TPU cores there; on GPUs, days.
    "imagenet_pretrain": PretrainRecipe(model="r152_3x_sk", note="250,228 steps; linear top-1 79.8 % (paper)."),
    "imagenet_linear": _LINEAR,
    "imagenet_finetune_1pct": FinetuneRecipe(
        model="r152_3x_sk", learning_rate=0.002, note="12,811 labels; top-1 74.9 % (paper)."
    ),
    "imagenet_finetune_10pct": FinetuneRecipe(
        model="r152_3x_sk", learning_rate=0.002, epochs=30, note="128,116 labels; top-1 80.1 % (paper)."
    ),
    "imagenet_finetune_100pct": FinetuneRecipe(
        model="r152_3x_sk", learning_rate=0.002, epochs=30, classify_from=0, note="top-1 83.1 % (paper)."
    ),
    "imagenet_self_distill": DistillRecipe(
        model="r152_3x_sk", temperature=0.1, note="top-1 76.6 % from 1 % of the labels (paper)."
    ),
    "imagenet_distill": DistillRecipe(model="r50_1x", note="top-1 73.9 % from 1 % of the labels (paper)."),
    "imagenet_supervised_1pct": FinetuneRecipe(
        model="r50_1x",
        epochs=90,
        warmup_epochs=5,
        learning_rate=0.1,
        scaling="linear",
        optimizer="nesterov",
        weight_decay=1e-4,
        classify_from=0,
        from_scratch=True,
        note="A baseline of ours on the same labels; the paper's supervised figures use all of them.",
    ),
    # CIFAR-10, as the authors' README has it
    "cifar10_pretrain": PretrainRecipe(
        model="r18_1x",
        image_size=32,
        batch_size=512,
        epochs=1000,
        warmup_epochs=10,
        learning_rate=1.0,
        scaling="linear",
        temperature=0.5,
        color_strength=0.5,
        blur=False,
        note="About 91 % in linear evaluation (authors' README).",
    ),
    "cifar10_linear": dataclasses.replace(
        _LINEAR, model="r18_1x", image_size=32, batch_size=512, epochs=100, weight_decay=0.0
    ),
    # One machine, a folder of images: what the command line takes unless told otherwise
    "standard_pretrain": PretrainRecipe(
        model="r50_1x_sk", image_size=96, batch_size=256, epochs=200, warmup_epochs=10, note="A GPU; hours."
    ),
    "standard_finetune": FinetuneRecipe(
        model="r50_1x_sk",
        image_size=96,
        batch_size=64,
        epochs=60,
        warmup_epochs=2,
        learning_rate=0.1,
        scaling="linear",
        optimizer="nesterov",
        weight_decay=1e-4,
        note="Nesterov momentum: with few steps LARS underfits (docs/log.md).",
    ),
    "standard_distill": DistillRecipe(
        model="r18_1x", image_size=96, batch_size=256, epochs=100, warmup_epochs=5, note="A GPU; hours."
    ),
    "standard_supervised": FinetuneRecipe(
        model="r18_1x",
        image_size=96,
        batch_size=64,
        epochs=60,
        warmup_epochs=2,
        learning_rate=0.1,
        scaling="linear",
        optimizer="nesterov",
        weight_decay=1e-4,
        classify_from=0,
        from_scratch=True,
        note="The baseline: only the labelled images.",
    ),
    "standard_linear": dataclasses.replace(_LINEAR, image_size=96, batch_size=256),
    # To see the whole path at work
    "quick_pretrain": PretrainRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=128,
        epochs=8,
        warmup_epochs=0.5,
        learning_rate=0.15,
        temperature=0.2,
        color_strength=0.5,
        note=_QUICK,
    ),
    "quick_finetune": FinetuneRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=32,
        epochs=25,
        warmup_epochs=1,
        learning_rate=0.1,
        scaling="linear",
        optimizer="nesterov",
        weight_decay=1e-4,
        note="For 200 labels. " + _QUICK,
    ),
    "quick_distill": DistillRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=64,
        epochs=5,
        warmup_epochs=0.25,
        start_from_teacher=True,
        note=_QUICK,
    ),
    "quick_supervised": FinetuneRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=32,
        epochs=40,
        warmup_epochs=1,
        learning_rate=0.1,
        scaling="linear",
        optimizer="nesterov",
        weight_decay=1e-4,
        classify_from=0,
        from_scratch=True,
        note="The baseline: only the labelled images. For 200 labels. " + _QUICK,
    ),
    # Imagenette at 64 pixels: the main line of benchmarks/paper.py, which tunes those of fine-tuning and the baselines
    "imagenette_pretrain": PretrainRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=256,
        epochs=100,
        warmup_epochs=5,
        learning_rate=0.15,
        temperature=0.2,
        color_strength=0.5,
        note="On two cores with bf16 about an hour and a half.",
    ),
    "imagenette_finetune_1pct": dataclasses.replace(
        _NESTEROV, batch_size=32, epochs=100, learning_rate=0.2, note="With 1 % of the labels."
    ),
    "imagenette_finetune": _NESTEROV,
    "imagenette_finetune_100pct": dataclasses.replace(
        _NESTEROV, batch_size=128, epochs=30, classify_from=0, note="With all labels."
    ),
    "imagenette_distill": DistillRecipe(
        model="r18_1x",
        image_size=64,
        batch_size=128,
        epochs=30,
        warmup_epochs=1.5,
        start_from_teacher=True,
        note="Thirty epochs are few: the student begins with the teacher's backbone.",
    ),
    "imagenette_supervised_1pct": dataclasses.replace(
        _SCRATCH, batch_size=32, epochs=200, learning_rate=0.2, note="The baseline: 1 % of the images, all labelled."
    ),
    "imagenette_supervised": _SCRATCH,
    "imagenette_supervised_100pct": dataclasses.replace(
        _SCRATCH, batch_size=128, epochs=40, note="The baseline: all images, all labelled."
    ),
}


def recipe(name: str) -> AnyRecipe:
    """The recipe of that name. Raises ValueError for an unknown one, suggesting the nearest."""
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}.{suggest(name, list(RECIPES))}")
    return RECIPES[name]
