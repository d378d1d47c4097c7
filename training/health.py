"""Is my training healthy? What the loss can be, what the embeddings look like, and warnings in plain words.

docs/health.md tells what each figure means and what to do about it.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training import schedule
from training.recipes import AnyRecipe, FinetuneRecipe, PretrainRecipe

StageName = Literal["pretrain", "finetune", "linear", "supervised", "distill"]

# ---- What the loss can be --------------------------------------------------------------------------------------------

_ANGLES = 1024  # nodes of the integral over the angle of two embeddings
_STEP = 0.2  # of the integral over log t: its error is about exp(-pi^2 / step)
LEAST_TEMPERATURE = 0.01  # below it the angles' nodes are too few


@dataclass(frozen=True)
class NtXentRange:
    """Marks on the scale of ``nt_xent_loss`` (both directions added), in nats.

    ``best``: the two views of an image are one point, the points spread evenly. ``chance``: all embeddings
    independent and spread evenly. ``collapsed``: all embeddings are one point, and every candidate is as likely.
    """

    best: float
    chance: float
    collapsed: float


def expected_nt_xent(batch_size: int, temperature: float, *, dimension: int = 128, memory: int = 0) -> NtXentRange:
    """The range of ``nt_xent_loss`` for ``batch_size`` images, and ``memory`` more negatives, on the unit sphere.

    Expectations over points uniform on the sphere of ``dimension`` dimensions, by quadrature, to about 1e-8: of
    log S, where S sums exp(cosine / temperature) over the 2 * batch_size - 1 + memory other embeddings, with
    E log S = integral of (exp(-t) - E exp(-t S)) / t over t > 0. ``best`` is no bound: of few points
    (batch_size <= dimension + 1) a regular simplex has a slightly lower loss. Raises ValueError for sizes below 1
    (``memory``: 0; ``dimension``: 2) or a temperature below 0.01.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("dimension", dimension, 2), ("memory", memory, 0)):
        if value < least:
            raise ValueError(f"{name}={value!r} is too small: it must be at least {least}.")
    if not LEAST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} is not at least {LEAST_TEMPERATURE}; the paper uses 0.1 to 1.")
    sphere = _Sphere(dimension, temperature)
    others = 2 * batch_size - 1 + memory
    return NtXentRange(
        best=2 * _mean_log_one_plus(sphere, pairs=batch_size - 1, singles=memory),
        chance=2 * _mean_log_sum(sphere, others),
        collapsed=2 * math.log(others),
    )


class _Sphere:
    """X = exp(c / temperature) for the cosine c of two independent points on the sphere."""

    def __init__(self, dimension: int, temperature: float) -> None:
        angle = (torch.arange(_ANGLES, dtype=torch.float64) + 0.5) * (math.pi / _ANGLES)
        weight = torch.softmax((dimension - 2) * angle.sin().log(), 0)  # the density of the angle
        self.least, self.log_x, self.weight = -1 / temperature, angle.cos() / temperature, weight
        self.log_mean = float(torch.logsumexp(self.log_x + weight.log(), 0))

    def log_laplace(self, log_t: Tensor) -> Tensor:
        """log E exp(-t X) for each t."""
        parts = [
            -(torch.expm1(-(part[:, None] + self.log_x).exp()) @ self.weight)  # E (1 - exp(-t X)), exact near 0
            for part in log_t.split(256)
        ]
        return torch.log1p(-torch.cat(parts).clamp(max=1.0))


def _mean_log_sum(sphere: _Sphere, count: int) -> float:
    """E log of the sum of ``count`` independent X."""
    scale = math.log(count) + sphere.log_mean  # the sum is taken in units of its mean
    u = torch.arange(-40.0, 4 + sphere.log_mean - sphere.least, _STEP, dtype=torch.float64)
    inner = (-u.exp()).exp() - (count * sphere.log_laplace(u - scale)).exp()
    return scale + _STEP * float(inner.sum())


def _mean_log_one_plus(sphere: _Sphere, *, pairs: int, singles: int) -> float:
    """E log(1 + Y), Y = exp(-1 / temperature) * (twice the sum of ``pairs`` X, plus the sum of ``singles`` X)."""
    if pairs + singles == 0:
        return 0.0
    log_mean = sphere.log_mean + math.log(2 * pairs + singles) + sphere.least
    u = torch.arange(-40.0 - max(0.0, log_mean), 4.0, _STEP, dtype=torch.float64)
    log_laplace = torch.zeros_like(u)
    for count, log_times in ((pairs, math.log(2)), (singles, 0.0)):
        if count:
            log_laplace = log_laplace + count * sphere.log_laplace(u + log_times + sphere.least)
    return _STEP * float(((-u.exp()).exp() * -torch.expm1(log_laplace)).sum())


# ---- What the embeddings look like -----------------------------------------------------------------------------------


def alignment(z0: Tensor, z1: Tensor) -> float:
    """Mean squared distance of two views' normalised rows, (B, D) each: 0 the same, 2 unrelated, 4 opposite.

    Wang and Isola 2020, section 4. NaN for values that are not finite; ValueError for unequal shapes.
    """
    if z0.shape != z1.shape:
        raise ValueError(f"z0 and z1 must be (B, D) of one shape, not {tuple(z0.shape)} and {tuple(z1.shape)}.")
    return float((_unit(z0, least=1) - _unit(z1, least=1)).square().sum(1).mean())


def uniformity(z: Tensor, t: float = 2.0, *, chunk: int = 1024) -> float:
    """log of the mean of exp(-t |x - y|^2) over the pairs i < j of normalised rows (B, D): 0 collapsed, low spread out.

    Wang and Isola 2020, section 4. Uniform on the sphere, t = 2: about -4 + 8 / D. Memory: chunk * B. NaN for values
    that are not finite; ValueError for fewer than two rows.
    """
    rows = _unit(z, least=2)
    parts = []
    for start in range(0, len(rows), chunk):
        block = rows[start : start + chunk]
        exponents = (2 * t) * (block @ rows[start:].T - 1).clamp(max=0)  # (chunk, B - start)
        earlier = torch.ones_like(exponents, dtype=torch.bool).tril()  # pairs counted already, and itself
        parts.append(exponents.masked_fill(earlier, -math.inf).flatten().logsumexp(0))
    pairs = len(rows) * (len(rows) - 1) / 2
    return float(torch.stack(parts).logsumexp(0)) - math.log(pairs)


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum, of the normalised rows (B, D): 1 to min(B, D).

    Roy and Vetterli 2007. The rows are normalised, as the loss and kNN see them. They are **not** centred: embeddings
    that are all one vector and a little noise have rank 1, as they should; centring would show the noise's rank, which
    is high. 0 if all is zero; NaN for values that are not finite.
    """
    rows = _unit(z, least=1)
    if not bool(rows.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(rows)
    total = values.sum()
    if float(total) == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def feature_spread(h: Tensor) -> float:
    """Mean over dimensions of the deviation of the normalised rows (B, D), times sqrt(D): 1 spread out, 0 collapsed.

    Features behind a ReLU have a mean, and are healthy at 0.2 to 0.7. NaN for values that are not finite; ValueError
    for fewer than two rows.
    """
    rows = _unit(h, least=2)
    return float(rows.std(0, correction=0).mean()) * math.sqrt(rows.shape[1])


def _unit(z: Tensor, *, least: int) -> Tensor:
    if z.ndim != 2 or len(z) < least or z.shape[1] < 1:
        raise ValueError(f"Embeddings must be (B, D) with B at least {least}, not {tuple(z.shape)}.")
    z = z.detach()
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1, eps=1e-12)


# ---- Warnings while it trains ----------------------------------------------------------------------------------------

_LEAST_BATCH = 32  # of fewer images the loss's marks and the contrast accuracy say little
_LEAST_ROWS = 16  # of fewer embeddings rank, uniformity and spread say little


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Facts about a run at one moment; None is not known, and what needs it is not judged.

    ``projection_rows`` and ``feature_rows``: on how many rows these were measured (projections, if None: on
    2 * batch_size); of fewer than 16 nothing is concluded. ``knn``: the scores so far, oldest first. ``knn_chance``:
    1 / classes, or the share of the commonest class. ``expected`` follows from ``batch_size``, ``temperature`` and
    ``memory`` if it is not given.
    """

    stage: StageName = "pretrain"
    step: int | None = None  # steps done
    total_steps: int | None = None
    warmup_steps: int = 0
    loss: float | None = None  # of a batch; better the mean of the last few
    expected: NtXentRange | None = None
    contrast_accuracy: float | None = None  # in [0, 1]
    alignment: float | None = None
    uniformity: float | None = None
    projection_rank: float | None = None
    projection_dimension: int | None = None
    projection_rows: int | None = None
    feature_rank: float | None = None
    feature_dimension: int | None = None
    feature_rows: int | None = None
    feature_spread: float | None = None
    knn: tuple[float, ...] = ()  # in [0, 1]
    knn_chance: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    weight_norm: float | None = None
    loss_scale: float | None = None  # of fp16: halved whenever a gradient overflows, and that step is left out
    batch_size: int | None = None  # images over all processes
    temperature: float | None = None
    memory: int = 0


def diagnose(signs: Signs) -> list[str]:
    """Warnings, a line each: what is seen, what it means, what to do. Empty for a run that looks healthy.

    Warnings about what training should have reached wait until it had time to: the warm-up and then 50 steps or a tenth
    of the rest, whichever is more, or the end of the run. Signs without a step count as settled.
    """
    if broken := _not_numbers(signs):
        return broken
    settled = _settled(signs)
    collapse = _collapse(signs) if settled else []
    found = [*_no_gradient(signs), *_same_views(signs, collapsed=bool(collapse), settled=settled), *_too_easy(signs)]
    if settled:
        found += collapse or [*_few_dimensions(signs), *_loss(signs)]
        found += _knn_at_chance(signs)
    return found + _knn_falling(signs)


def _not_numbers(signs: Signs) -> list[str]:
    values = {field.name: getattr(signs, field.name) for field in dataclasses.fields(signs)}
    values |= {"knn": signs.knn[-1] if signs.knn else None}
    bad = [f"{name} {value}" for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if not bad:
        return []
    rate = f" (now {signs.learning_rate:g})" if signs.learning_rate and math.isfinite(signs.learning_rate) else ""
    return [
        f"Not a number: {', '.join(bad)}. The run has diverged and will not recover: go back to the last checkpoint, "
        f"lower the learning rate{rate} or lengthen the warm-up; in fp16, try bf16 or fp32."
    ]


def _settled(signs: Signs) -> bool:
    if signs.step is None:
        return True
    left = (signs.total_steps or 0) - signs.warmup_steps
    ended = signs.total_steps is not None and signs.step >= signs.total_steps
    return ended or signs.step >= signs.warmup_steps + max(50, left / 10)


def _no_gradient(signs: Signs) -> list[str]:
    found = []
    if signs.gradient_norm == 0:
        found.append(
            "The gradient is exactly 0: nothing is learnt. All is frozen, the loss is cut off from the network, or "
            "every ReLU is dead; check what requires a gradient, and lower the learning rate."
        )
    if signs.loss_scale is not None and signs.loss_scale < 1:
        found.append(
            f"Gradients overflow in fp16: the loss is scaled by {signs.loss_scale:g}, halved for each step left out. "
            "Go on with bf16 or fp32."
        )
    if signs.weight_norm == 0:
        found.append(
            "All weights are 0: the network gives one answer to everything. Start from a fresh initialisation."
        )
    return found


def _rows(signs: Signs) -> tuple[int | None, int | None]:
    """On how many rows the projections and the features were measured."""
    return signs.projection_rows or (2 * signs.batch_size if signs.batch_size else None), signs.feature_rows


def _collapse(signs: Signs) -> list[str]:
    projections, features = (rows is None or rows >= _LEAST_ROWS for rows in _rows(signs))
    seen = []
    if projections and signs.projection_rank is not None and signs.projection_rank < 1.5:
        seen.append(f"projections of effective rank {signs.projection_rank:.2f}")
    if projections and signs.uniformity is not None and signs.uniformity > -0.1:
        seen.append(f"uniformity {signs.uniformity:.3f}")
    if features and signs.feature_rank is not None and signs.feature_rank < 1.5:
        seen.append(f"features of effective rank {signs.feature_rank:.2f}")
    if features and signs.feature_spread is not None and signs.feature_spread < 0.05:
        seen.append(f"feature spread {signs.feature_spread:.3f}")
    if not seen:
        return []
    marks = _expected(signs)
    if marks is not None and signs.loss is not None and signs.loss > 0.99 * marks.collapsed:
        seen.append(f"loss {signs.loss:.2f}, where {marks.collapsed:.2f} is that of one point")
    return [
        f"Collapse: {'; '.join(seen)}. The network answers (almost) the same to every image: lower the learning rate, "
        "lengthen the warm-up, check that images differ and that batch norm is in training mode; then start anew."
    ]


def _few_dimensions(signs: Signs) -> list[str]:
    found = []
    projections, features = _rows(signs)
    for what, rank, dimension, rows, share in (
        ("projections", signs.projection_rank, signs.projection_dimension, projections, 1 / 20),
        ("features", signs.feature_rank, signs.feature_dimension, features, 1 / 50),
    ):
        if rank is None or dimension is None:
            continue
        possible = min(dimension, rows or dimension)
        if rank < share * possible:
            found.append(
                f"Dimensional collapse: the {what} have effective rank {rank:.1f} of {possible} possible. Few "
                "directions carry all: use stronger augmentation, a larger batch or another temperature, and check the "
                "weight decay."
            )
    return found


def _expected(signs: Signs) -> NtXentRange | None:
    if signs.expected is not None or signs.stage != "pretrain" or not signs.batch_size:
        return signs.expected
    if signs.temperature is None or signs.temperature < LEAST_TEMPERATURE:
        return None
    dimension = max(2, signs.projection_dimension or 128)
    return expected_nt_xent(signs.batch_size, signs.temperature, dimension=dimension, memory=signs.memory)


def _loss(signs: Signs) -> list[str]:
    marks = _expected(signs)
    if signs.loss is None or marks is None:
        return []
    given = [
        f"{name}={value:,g}"
        for name, value in (("N", signs.batch_size), ("T", signs.temperature), ("memory", signs.memory))
        if value
    ]
    setting = f"with {', '.join(given)}" if given else "here"
    if signs.loss > marks.collapsed - 0.03 * (marks.collapsed - marks.best):
        rate = f" (now {signs.learning_rate:g})" if signs.learning_rate is not None else ""
        return [
            f"The loss is stuck at {signs.loss:.2f}: {setting}, {marks.collapsed:.2f} to {marks.chance:.2f} is what "
            f"guessing gives, {marks.best:.2f} the best. Nothing is learnt yet: check that the two views are of one "
            f"image and not too strongly augmented, and try another learning rate{rate} or a longer warm-up."
        ]
    if signs.loss < marks.best and (signs.batch_size is None or signs.batch_size >= _LEAST_BATCH):
        return [
            f"The loss is {signs.loss:.3f}, below the best there is {setting}, {marks.best:.3f}. Either the answer "
            "leaks (views that are the same, or no augmentation), or this is not this loss (the mean of the directions "
            "is half of our sum; another batch or temperature): look at the views."
        ]
    return []


def _same_views(signs: Signs, *, collapsed: bool, settled: bool) -> list[str]:
    apart = signs.uniformity is not None and signs.uniformity < -0.5  # the images are not all one point
    if signs.alignment is None or signs.alignment > 1e-3 or collapsed or not (settled or apart):
        return []
    return [
        f"The two views of an image are the same to the network: alignment {signs.alignment:.1e}. There is nothing to "
        "learn from: look at the views; the augmentation is off, or both views come from one seed."
    ]


def _too_easy(signs: Signs) -> list[str]:
    accuracy, step, total = signs.contrast_accuracy, signs.step, signs.total_steps
    if accuracy is None or step is None or not total or step > max(0.2 * total, signs.warmup_steps) or step == total:
        return []
    if accuracy < 0.99 or (signs.batch_size is not None and signs.batch_size < _LEAST_BATCH):
        return []
    return [
        f"Contrast accuracy is {accuracy:.1%} after {step} of {total} steps: the task is too easy to teach much. The "
        "augmentation is too weak, or there is a shortcut (borders, watermarks, brightness): look at the views, raise "
        "the color strength, use a larger batch."
    ]


def _knn_falling(signs: Signs) -> list[str]:
    scores, falls = signs.knn, 3
    if len(scores) <= falls:
        return []
    last = scores[-falls - 1 :]
    drop = last[0] - last[-1]
    if not all(a > b for a, b in itertools.pairwise(last)) or drop < max(0.02, 0.05 * last[0]):
        return []
    return [
        f"The kNN score has fallen {falls} times in a row, from {last[0]:.1%} to {last[-1]:.1%}: the features are "
        f"getting worse. Keep the checkpoint of the best score ({max(scores):.1%}); lower the learning rate or stop."
    ]


def _knn_at_chance(signs: Signs) -> list[str]:
    if not signs.knn or signs.knn_chance is None:
        return []
    score, chance = signs.knn[-1], signs.knn_chance
    if score >= min(1.2 * chance, chance + 0.05):
        return []
    return [
        f"The kNN score is {score:.1%}, where guessing gives {chance:.1%}: the features tell the classes no better. If "
        "the loss does fall, the views may share a shortcut, or the augmentation erase what the classes differ in."
    ]


# ---- Warnings before it trains ---------------------------------------------------------------------------------------

_LARS_RULE = {"pretrain": 0.1, "distill": 0.1, "finetune": 0.005}  # * sqrt(batch); paper, section 3, and the code
_LARS_SLACK = {"pretrain": 5.0, "distill": 5.0, "finetune": 8.0}  # how many times more or less is still usual
_FEWEST_STEPS = 50


def learning_rate_sanity(
    *,
    optimizer: Literal["lars", "nesterov"],
    learning_rate: float,
    scaling: schedule.Scaling,
    batch_size: int,
    images: int,
    epochs: float,
    warmup_epochs: float,
    stage: StageName,
    temperature: float | None = None,
) -> list[str]:
    """What is unusual about a schedule, a line each, before any work begins; empty for all recipes that we ship.

    ``learning_rate`` is scaled with the batch as ``scaling`` says (training/schedule.py); ``batch_size`` is the global
    one. ``temperature`` is judged in pretraining. Raises ValueError for an unknown stage or scaling.
    """
    if stage not in ("pretrain", "finetune", "linear", "supervised", "distill"):
        raise ValueError(f"Unknown stage {stage!r}. Choose from: pretrain, finetune, linear, supervised, distill.")
    batch = max(1, min(batch_size, images))  # what the loop makes of it
    peak = schedule.base_rate(learning_rate, batch, scaling)
    total = schedule.total_steps(images, epochs, batch)
    warmup = schedule.warmup_steps(images, warmup_epochs, batch)
    rate = _rate(optimizer, peak, batch, stage) or _linear_scaling(optimizer, peak, batch, stage, scaling)
    return [
        *_batches(batch_size, images, stage),
        *rate,
        *_length(optimizer, peak, total, warmup, batch, stage),
        *_temperature(temperature, stage),
    ]


def check_recipe(recipe: AnyRecipe, *, images: int) -> list[str]:
    """``learning_rate_sanity`` of a recipe on so many images, and whether a memory's average follows fast enough."""
    found = learning_rate_sanity(
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        scaling=recipe.scaling,
        batch_size=recipe.batch_size,
        images=images,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        stage=stage_name(recipe),
        temperature=recipe.temperature if isinstance(recipe, PretrainRecipe) else None,
    )
    return found + _memory(recipe, images) if isinstance(recipe, PretrainRecipe) else found


def stage_name(recipe: AnyRecipe) -> StageName:
    """What a recipe trains."""
    if isinstance(recipe, FinetuneRecipe):
        return "linear" if recipe.freeze_backbone else "supervised" if recipe.from_scratch else "finetune"
    return "pretrain" if isinstance(recipe, PretrainRecipe) else "distill"


def _batches(batch_size: int, images: int, stage: StageName) -> list[str]:
    if batch_size > images:
        return [
            f"The batch of {batch_size} is larger than the {images} images: every batch is all of them. "
            f"Use a batch of at most {max(1, images // 2)}, or more images."
        ]
    if images // batch_size == 1 and stage in ("pretrain", "distill"):
        return [
            f"An epoch is a single batch ({batch_size} of {images} images): always nearly the same images together. "
            f"Use a batch of at most {max(1, images // 4)}."
        ]
    return []


def _rate(optimizer: str, peak: float, batch: int, stage: StageName) -> list[str]:
    if peak == 0:
        return ["The learning rate is 0: nothing will be learnt. Give a positive one."]
    if optimizer == "lars":
        if stage not in _LARS_RULE:
            return []
        rule, slack = _LARS_RULE[stage] * math.sqrt(batch), _LARS_SLACK[stage]
        usual = f"the paper's {_LARS_RULE[stage]:g} * sqrt(batch) is {rule:.3g}"
        if peak > slack * rule:
            harm = "destroys what pretraining found" if stage == "finetune" else "diverges or collapses easily"
            return [f"The peak learning rate is {peak:.3g}; {usual} for a batch of {batch}. So high a rate {harm}."]
        if peak < rule / slack:
            return [
                f"The peak learning rate is {peak:.3g}; {usual} for a batch of {batch}. That is a rate for SGD: LARS "
                "scales every step by 0.001, so little will be learnt. Raise it, or use Nesterov momentum."
            ]
        return []
    rule = 0.1 * batch / 256  # linear evaluation's (paper, section 3)
    usual = f"usual with Nesterov momentum is 0.1 * batch / 256, {rule:.3g} for a batch of {batch}"
    if peak > 8 * rule or (stage != "linear" and peak > max(1.0, 2 * rule)):
        return [f"The peak learning rate is {peak:.3g}; {usual}. That is a rate for LARS: lower it, or use LARS."]
    if peak < rule / 50:
        return [f"The peak learning rate is {peak:.3g}; {usual}. So low a rate learns little in the time."]
    return []


def _linear_scaling(optimizer: str, peak: float, batch: int, stage: StageName, scaling: schedule.Scaling) -> list[str]:
    if scaling != "linear" or batch <= 1024 or optimizer != "lars" or stage not in _LARS_RULE:
        return []
    rule = _LARS_RULE[stage] * math.sqrt(batch)
    if peak <= 1.5 * rule:
        return []
    return [
        f"Linear scaling gives {peak:.3g} for a batch of {batch}; the paper's {_LARS_RULE[stage]:g} * sqrt(batch) gives"
        f" {rule:.3g}. Beyond a batch of 1,024 scale with the square root."
    ]


def _length(optimizer: str, peak: float, total: int, warmup: int, batch: int, stage: StageName) -> list[str]:
    found = []
    if total < _FEWEST_STEPS:
        found.append(
            f"The run has only {total} step{'s' * (total > 1)}, which is too few to learn from. Use more epochs, or a "
            f"smaller batch than {batch}."
        )
    if 3 * warmup > total:
        found.append(f"The warm-up takes {warmup} of {total} steps. A twentieth is usual: use fewer warm-up epochs.")
    high = stage in ("pretrain", "distill") and peak > 0.05 * math.sqrt(batch) if optimizer == "lars" else peak > 0.5
    if high and stage != "linear" and warmup < min(10, 0.03 * total):
        found.append(
            f"The warm-up takes {warmup} of {total} steps, up to a rate of {peak:.3g}. Fresh networks diverge or "
            "collapse under a high rate: give the warm-up a twentieth of the epochs."
        )
    return found


def _temperature(temperature: float | None, stage: StageName) -> list[str]:
    if temperature is None or stage != "pretrain" or 0.05 <= temperature <= 1:
        return []
    effect = "looks at the nearest negatives only" if temperature < 0.05 else "barely tells near from far"
    return [f"The temperature is {temperature:g}; the loss then {effect}. Usual is 0.1 to 0.5."]


def _memory(recipe: PretrainRecipe, images: int) -> list[str]:
    """The lag that lost (docs/results.md) was 23 % of its run, the one that won 2 %; the bound lies between."""
    total = schedule.total_steps(images, recipe.epochs, max(1, min(recipe.batch_size, images)))
    lag = 1 / (1 - recipe.memory_decay)
    if not recipe.memory or 10 * lag <= total:
        return []
    better = 1 - 1 / max(2, total // 40)
    return [
        f"The memory's average lags {lag:.0f} steps behind, in a run of {total}: the memory may then cost more than it "
        f"gives. A fortieth is better: a memory_decay of about {better:.3g}."
    ]
