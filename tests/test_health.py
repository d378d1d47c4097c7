"""Is my training healthy: the loss's range against sampling, figures against loops, alarms and no false alarms."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from training.health import (
    NtXentRange,
    Signs,
    alignment,
    check_recipe,
    diagnose,
    effective_rank,
    expected_nt_xent,
    feature_spread,
    learning_rate_sanity,
    uniformity,
)
from training.losses import nt_xent_loss
from training.recipes import RECIPES, FinetuneRecipe, PretrainRecipe

PAGE = Path(__file__).parents[1] / "docs" / "health.md"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


# ---- the range of the loss


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
def test_expected_loss_equals_sampling(temperature: float) -> None:
    """Few embeddings of few dimensions, where log(2N - 1) and even the mean of the sum are far off. 5 standard errors
    of 40,000 draws: a right value fails once in two million."""
    images, memory, dimension = 4, 3, 8
    expected = expected_nt_xent(images, temperature, dimension=dimension, memory=memory)
    cosines = F.normalize(normal(40_000, 2 * images - 1 + memory, dimension), dim=2)[..., 0]  # with a fixed anchor
    mean, error = mean_and_error(2 * (cosines / temperature).logsumexp(1))
    assert abs(expected.chance - mean) < 5 * error
    assert error < 0.01 * expected.chance
    negatives, remembered = cosines[:, : images - 1], cosines[:, images - 1 : images - 1 + memory]
    own = torch.ones(len(cosines), 1, dtype=torch.float64)
    everything = torch.cat([own, negatives, negatives, remembered], 1)  # each negative image's two views are one point
    mean, error = mean_and_error(2 * ((everything / temperature).logsumexp(1) - 1 / temperature))
    assert abs(expected.best - mean) < 5 * error


@pytest.mark.parametrize(("images", "temperature"), [(32, 0.1), (128, 0.5)])
def test_expected_loss_is_that_of_our_loss(images: int, temperature: float) -> None:
    """100 draws of a batch, whose mean is known to half a per cent; 5 standard errors, as above."""
    expected = expected_nt_xent(images, temperature)
    draws = [normal(2, images, 128, seed=seed) for seed in range(100)]
    mean, error = mean_and_error(torch.stack([nt_xent_loss(*draw, temperature) for draw in draws]))
    assert abs(expected.chance - mean) < 5 * error < 0.025 * mean
    mean, error = mean_and_error(torch.stack([nt_xent_loss(draw[0], draw[0], temperature) for draw in draws]))
    assert abs(expected.best - mean) < 5 * error < 0.05 * expected.chance
    one = torch.ones(images, 128, dtype=torch.float64)
    assert nt_xent_loss(one, one, temperature).item() == pytest.approx(expected.collapsed, rel=1e-12)


def test_expected_loss_equals_an_integral_written_out() -> None:
    """In three dimensions the cosine is uniform in [-1, 1]. The midpoint rule on 1,000 x 1,000 is exact to 1e-5."""
    cosine = (torch.arange(1000, dtype=torch.float64) + 0.5) / 500 - 1
    written = torch.logaddexp(cosine[:, None] / 0.3, cosine[None] / 0.3).mean()
    expected = expected_nt_xent(1, 0.3, dimension=3, memory=1)
    assert expected.chance == pytest.approx(2 * float(written), abs=2e-5)
    assert expected.best == pytest.approx(2 * float(((cosine - 1) / 0.3).exp().log1p().mean()), abs=2e-5)
    assert expected.collapsed == 2 * math.log(2)


def test_expected_loss_of_many_is_that_of_the_mean() -> None:
    """With ten million images log of the sum is log of its mean: the moment generating function of the circle and the
    sphere. What is left is half the relative variance over the count, below 1e-6."""
    others = 2 * 10**7 - 1
    circle = math.log(float(torch.special.i0(torch.tensor(2.0, dtype=torch.float64))))
    for dimension, moment in ((2, circle), (3, math.log(math.sinh(2) / 2))):
        chance = expected_nt_xent(10**7, 0.5, dimension=dimension).chance
        assert chance == pytest.approx(2 * (math.log(others) + moment), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
def test_marks_are_in_order(temperature: float) -> None:
    for images, memory in ((2, 0), (64, 0), (4096, 65536)):
        marks = expected_nt_xent(images, temperature, memory=memory)
        assert 0 < marks.best < marks.collapsed < marks.chance


def test_a_simplex_is_a_little_better_than_best() -> None:
    points = torch.eye(8, dtype=torch.float64) - 1 / 8
    loss = nt_xent_loss(points, points, 0.5).item()
    marks = expected_nt_xent(8, 0.5, dimension=8)
    assert loss == pytest.approx(2 * (math.log(math.exp(2) + 14 * math.exp(-2 / 7)) - 2), rel=1e-12)
    assert 0.5 * marks.best < loss < marks.best


def test_a_single_image_has_nothing_to_be_told_from() -> None:
    assert expected_nt_xent(1, 0.1) == NtXentRange(0.0, pytest.approx(0.0, abs=1e-10), 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"memory": -1}, "memory=-1 is too small"),
        ({"dimension": 1}, "dimension=1 is too small"),
        ({"temperature": 0.0}, r"temperature=0.0 is not at least 0.01"),
        ({"temperature": math.nan}, "temperature=nan"),
    ],
)
def test_impossible_ranges(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_nt_xent(**{"batch_size": 8, "temperature": 0.1} | arguments)


# ---- figures of embeddings


def written_out(rows: list[list[float]]) -> list[list[float]]:
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_alignment_and_uniformity_written_out(chunk: int) -> None:
    z0, z1 = 3 * normal(7, 5), normal(7, 5, seed=1)
    a, b = written_out(z0.tolist()), written_out(z1.tolist())
    assert alignment(z0, z1) == pytest.approx(sum(map(squared, a, b)) / 7, rel=1e-12)
    pairs = [math.exp(-3 * squared(a[i], a[j])) for i in range(7) for j in range(i + 1, 7)]
    assert uniformity(z0, 3, chunk=chunk) == pytest.approx(math.log(sum(pairs) / 21), rel=1e-12)


def test_alignment_and_uniformity_at_known_places() -> None:
    x = normal(4, 6)
    assert alignment(x, 2 * x) == pytest.approx(0, abs=1e-15)
    assert alignment(x, -x) == pytest.approx(4)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]]), 50) == pytest.approx(-200)  # exp(-200) is 0 in float32
    assert uniformity(normal(2000, 128)) == pytest.approx(-4 + 8 / 128, abs=0.01)  # log E exp(4 c) is near 16 / (2 D)


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor that was made."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


def test_uniformity_of_many_rows_needs_no_matrix() -> None:
    rows = normal(3000, 4).float()
    with Largest() as largest:
        found = uniformity(rows, chunk=70)
    assert largest.values == 70 * 3000
    unit = F.normalize(rows.double(), dim=1)
    pairs = sum(float(((unit[i + 1 :] @ unit[i] - 1) * 4).exp().sum()) for i in range(3000))
    assert found == pytest.approx(math.log(pairs / (3000 * 2999 / 2)), abs=1e-5)


def test_effective_rank_at_known_places() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-6)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.tensor([[1.0, 0], [1, 0], [0, 5], [0, 5]])) == pytest.approx(2, rel=1e-6)
    three = torch.tensor([[1.0, 0]] * 9 + [[0, 1]])  # singular values 3 and 1: entropy of 3/4 and 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(three) == pytest.approx(math.exp(entropy), rel=1e-6)
    assert effective_rank(normal(40, 2048)) == pytest.approx(40, rel=0.01)  # fewer rows than dimensions
    assert effective_rank(torch.zeros(3, 4)) == 0


def test_effective_rank_of_a_collapse_is_one() -> None:
    """What centring would hide: all embeddings one vector, and noise of a thousandth in every direction."""
    collapsed = normal(1, 64) + 1e-3 * normal(256, 64, seed=1)
    assert effective_rank(collapsed) < 1.5
    assert effective_rank(collapsed - collapsed.mean(0)) > 50


def test_spread() -> None:
    assert feature_spread(normal(4000, 50)) == pytest.approx(1, abs=0.01)
    assert feature_spread(torch.ones(9, 50)) == pytest.approx(0, abs=1e-6)
    x = [[0.6, 0.8], [1.0, 0.0]]  # deviations 0.2 and 0.4
    assert feature_spread(10 * torch.tensor(x)) == pytest.approx(0.3 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_figures_of_short_floats_are_computed_in_float32(dtype: torch.dtype) -> None:
    h, other = ((300 * normal(32, 300, seed=seed)).to(dtype) for seed in (0, 1))  # their squares overflow in float16
    for figure in (effective_rank, feature_spread, uniformity):
        assert figure(h) == pytest.approx(figure(h.double()), rel=1e-4)
    assert alignment(h, other) == pytest.approx(alignment(h.double(), other.double()), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_of_what_is_no_number_are_nan(bad: float) -> None:
    h = normal(5, 3)
    h[2, 1] = bad
    assert all(math.isnan(figure(h)) for figure in (effective_rank, feature_spread, uniformity))
    assert math.isnan(alignment(h, h))


def test_figures_leave_no_graph_and_refuse_bad_shapes() -> None:
    h = normal(4, 3).requires_grad_()
    assert isinstance(effective_rank(h), float)
    with pytest.raises(ValueError, match=r"one shape, not \(4, 3\) and \(3, 3\)"):
        alignment(h, h[:3])
    for figure in (uniformity, feature_spread):
        with pytest.raises(ValueError, match=r"B at least 2, not \(1, 3\)"):
            figure(h[:1])
    with pytest.raises(ValueError, match=r"\(B, D\) with B at least 1, not \(4,\)"):
        effective_rank(h[:, 0])


# ---- diagnosis: real runs of a tiny network

IMAGES, BATCH, STEPS, WARMUP, TEMPERATURE, CLASSES = 512, 64, 160, 16, 0.2, 8


def tiny_run(*, same_views: bool = False, unrelated: bool = False, pull_only: bool = False) -> list[Signs]:
    """Contrastive training of a small network on noisy points in clusters; a Signs every 8 steps."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    label = torch.arange(IMAGES) % CLASSES
    images = noise(CLASSES, 32)[label] + 0.7 * noise(IMAGES, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        head = nn.Linear(64, 32) if pull_only else nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32, affine=False))
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.0, momentum=0.9)
    found, knn = [], []
    for step in range(1, STEPS + 1):
        chosen = images[torch.randperm(IMAGES, generator=generator)[:BATCH]]
        view0 = chosen + 0.8 * noise(*chosen.shape)
        view1 = view0 if same_views else chosen + 0.8 * noise(*chosen.shape)
        if unrelated:
            view1 = noise(*chosen.shape)
        z0, z1 = head(backbone(torch.cat([view0, view1]))).chunk(2)
        loss = nt_xent_loss(z0, z1, TEMPERATURE)
        optimizer.zero_grad()
        (F.normalize(z0, dim=1) @ F.normalize(z1, dim=1).T).mean().neg().backward() if pull_only else loss.backward()
        optimizer.param_groups[0]["lr"] = (1.0 if pull_only else 0.05) * min(1, step / WARMUP)
        optimizer.step()
        if step % 8:
            continue
        with torch.no_grad():
            h = backbone(images)
            unit = F.normalize(h, dim=1)
            knn.append(float((label[(unit @ unit.T).fill_diagonal_(-2).argmax(1)] == label).float().mean()))
            candidates = F.normalize(torch.cat([z0, z1]), dim=1)
            nearest = (candidates[:BATCH] @ candidates.T).fill_diagonal_(-2).argmax(1)
        found.append(
            Signs(
                step=step,
                total_steps=STEPS,
                warmup_steps=WARMUP,
                loss=loss.item(),
                contrast_accuracy=float((nearest == torch.arange(BATCH, 2 * BATCH)).float().mean()),
                alignment=alignment(z0, z1),
                uniformity=uniformity(torch.cat([z0, z1])),
                projection_rank=effective_rank(torch.cat([z0, z1])),
                projection_dimension=32,
                feature_rank=effective_rank(h),
                feature_dimension=64,
                feature_rows=IMAGES,
                feature_spread=feature_spread(h),
                knn=tuple(knn),
                knn_chance=1 / CLASSES,
                batch_size=BATCH,
                temperature=TEMPERATURE,
                learning_rate=0.05,
            )
        )
    return found


def test_a_healthy_run_raises_no_alarm() -> None:
    signs = tiny_run()
    assert [diagnose(sign) for sign in signs] == [[]] * len(signs)
    assert signs[-1].knn[-1] > 0.5  # it was a run worth the name
    assert signs[-1].loss < 0.8 * expected_nt_xent(BATCH, TEMPERATURE, dimension=32).collapsed


def test_unrelated_views_are_stuck_at_chance() -> None:
    *early, last = tiny_run(unrelated=True)
    assert not any("stuck" in line for sign in early if sign.step < WARMUP + 50 for line in diagnose(sign))
    assert any(line.startswith("The loss is stuck at") for line in diagnose(last))


def test_the_same_view_twice_is_seen() -> None:
    signs = tiny_run(same_views=True)
    assert "alignment 0.0e+00" in diagnose(signs[0])[0]  # that needs no warm-up: the images differ
    assert diagnose(signs[-1])[0].startswith("The two views of an image are the same")


def test_pulling_without_pushing_collapses() -> None:
    *early, last = tiny_run(pull_only=True)
    assert all(diagnose(sign) == [] for sign in early if sign.step < WARMUP + 50)
    assert diagnose(last)[0].startswith("Collapse: projections of effective rank 1.")
    assert f"where {2 * math.log(127):.2f} is that of one point" in diagnose(last)[0]


# ---- diagnosis: constructed signs

# A real run: ResNet-18 of width 1/4, Imagenette at 48 pixels, batch 64, temperature 0.2, 1,480 steps, the first 147 of
# them warm-up: step, loss and contrast accuracy.
RECORDED = [
    (10, 9.66, 0.086), (130, 8.74, 0.125), (250, 8.05, 0.117), (370, 7.91, 0.141), (490, 7.68, 0.188),
    (610, 7.45, 0.195), (730, 7.26, 0.211), (850, 6.90, 0.328), (970, 6.59, 0.305), (1090, 6.69, 0.234),
    (1210, 5.87, 0.398), (1330, 6.40, 0.352), (1450, 6.54, 0.266), (1480, 6.36, 0.320),
]  # fmt: skip

HEALTHY = Signs(
    step=800,
    total_steps=1480,
    warmup_steps=147,
    loss=7.26,
    contrast_accuracy=0.21,
    alignment=0.99,
    uniformity=-3.36,
    projection_rank=50.7,
    projection_dimension=128,
    feature_rank=18.3,
    feature_dimension=128,
    feature_rows=256,
    feature_spread=0.267,
    knn=(0.30, 0.36, 0.41, 0.40, 0.42),
    knn_chance=0.1,
    learning_rate=0.6,
    gradient_norm=0.4,
    weight_norm=60.0,
    loss_scale=1024.0,
    batch_size=64,
    temperature=0.2,
)


def changed(**values: Any) -> list[str]:
    return diagnose(dataclasses.replace(HEALTHY, **values))


def test_a_recorded_run_raises_no_alarm() -> None:
    for step, loss, accuracy in RECORDED:
        assert changed(step=step, loss=loss, contrast_accuracy=accuracy) == []


def test_an_untrained_network_raises_no_alarm() -> None:
    """Every image looks the same to it (measured: ResNet-18, evaluation mode), and it guesses."""
    fresh = {"uniformity": -0.003, "projection_rank": 1.2, "feature_rank": 20.0, "alignment": 6e-5, "loss": 11.1}
    fresh |= {"contrast_accuracy": 0.02, "knn": (0.1,)}
    for step in (0, 10, 147, 280):
        assert changed(step=step, **fresh) == []
    assert [line.split(":")[0] for line in changed(step=281, **fresh)] == [
        "Collapse",
        "The kNN score is 10.0%, where guessing gives 10.0%",
    ]


@pytest.mark.parametrize(
    "signs",
    [
        Signs(),
        Signs(stage="finetune", step=700, total_steps=751, loss=0.4, learning_rate=0.01, batch_size=1024),
        Signs(stage="distill", step=700, total_steps=900, loss=9.0, temperature=1.0, batch_size=64),
        Signs(step=9000, total_steps=10_000, loss=0.5, temperature=0.005, batch_size=64),  # beyond the known range
        Signs(step=9000, total_steps=10_000, loss=7.5, temperature=0.1, batch_size=512, memory=65536),
        Signs(step=9, total_steps=90, contrast_accuracy=1.0, batch_size=8),  # 15 candidates
        Signs(projection_rank=1.3, uniformity=-0.05, projection_dimension=128, batch_size=1),  # two rows
        Signs(loss=0.02, batch_size=8, temperature=0.5),  # a small batch's best is no bound
        Signs(knn=(0.5, 0.49, 0.488, 0.486, 0.485), knn_chance=0.1),  # falls within the noise
        Signs(knn=(0.200, 0.195, 0.190, 0.185), knn_chance=0.1),
        Signs(knn=(0.90, 0.89, 0.88, 0.87), knn_chance=0.1),
        Signs(knn=(0.9, 0.5, 0.3, 0.6), knn_chance=0.1),  # on its way up again
        Signs(knn=(0.02,), knn_chance=0.001),
        Signs(knn=(0.62,), knn_chance=0.5),
    ],
)
def test_no_false_alarm(signs: Signs) -> None:
    assert diagnose(signs) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projection_rank": 1.02}, r"^Collapse: projections of effective rank 1\.02\. "),
        ({"uniformity": -0.01, "loss": 9.69}, r"^Collapse: uniformity -0\.010; loss 9\.69, where 9\.69 is that of one"),
        ({"feature_rank": 1.1, "feature_spread": 0.01}, r"^Collapse: features .* 1\.10; feature spread 0\.010\. "),
        ({"projection_rank": 4.0}, r"^Dimensional collapse: the projections have effective rank 4\.0 of 128 possible"),
        ({"feature_rank": 2.0}, r"^Dimensional collapse: the features have effective rank 2\.0 of 128 possible"),
        (
            {"loss": 9.69},
            r"stuck at 9\.69: with N=64, T=0\.2, 9\.69 to 9\.88 is what guessing gives, 1\.32 .*now 0\.6\)",
        ),
        ({"loss": 4.9, "temperature": 1.0}, r"^The loss is 4\.900, below the best there is with N=64, T=1, 7\.723\. "),
        ({"alignment": 1e-9}, r"^The two views of an image are the same to the network: alignment 1\.0e-09"),
        ({"contrast_accuracy": 1.0, "step": 60}, r"^Contrast accuracy is 100\.0% after 60 of 1480 steps"),
        ({"knn": (0.3, 0.5, 0.48, 0.45, 0.41)}, r"^The kNN score has fallen 3 times in a row, from 50\.0% to 41\.0%"),
        ({"knn": (0.11,)}, r"^The kNN score is 11\.0%, where guessing gives 10\.0%"),
        ({"knn": (0.52,), "knn_chance": 0.5}, r"^The kNN score is 52\.0%, where guessing gives 50\.0%"),
        ({"loss": math.nan, "gradient_norm": math.inf}, r"^Not a number: loss nan, gradient_norm inf\..*now 0\.6"),
        ({"knn": (0.3, math.nan)}, r"^Not a number: knn nan"),
        ({"gradient_norm": 0.0}, r"^The gradient is exactly 0"),
        ({"weight_norm": 0.0}, r"^All weights are 0"),
        ({"loss_scale": 0.5}, r"^Gradients overflow in fp16: .* by 0\.5, "),
    ],
)
def test_an_alarm_for_each_sickness(values: dict[str, Any], message: str) -> None:
    (line,) = changed(**values)
    assert re.search(message, line), line
    assert "\n" not in line


def test_marks_that_are_given_are_used() -> None:
    marks = NtXentRange(best=1.0, chance=5.0, collapsed=4.0)
    (line,) = diagnose(Signs(loss=4.2, expected=marks, stage="finetune"))
    assert line.startswith("The loss is stuck at 4.20: here, 4.00 to 5.00 is what guessing gives, 1.00 the best.")


# ---- before it trains

IMAGENET, CIFAR = 1_281_167, 50_000
MEANT_FOR = {
    "imagenet_pretrain": [IMAGENET],
    "imagenet_linear": [IMAGENET],
    "imagenet_finetune_1pct": [12_811],
    "imagenet_finetune_10pct": [128_116],
    "imagenet_finetune_100pct": [IMAGENET],
    "imagenet_self_distill": [IMAGENET],
    "imagenet_distill": [IMAGENET],
    "cifar10_pretrain": [CIFAR],
    "cifar10_linear": [CIFAR],
    "standard_pretrain": [2_000, 10_000, 100_000],
    "standard_finetune": [500, 5_000],
    "standard_distill": [2_000, 10_000, 100_000],
    "standard_linear": [500, 5_000],
    "quick_pretrain": [2_000],
    "quick_finetune": [200],
    "quick_distill": [2_000],
    "imagenette_pretrain": [9_469],
    "imagenette_finetune_1pct": [94],
    "imagenette_finetune": [947],
    "imagenette_finetune_100pct": [9_469],
    "imagenette_distill": [9_469],
    "imagenette_supervised_1pct": [94],
    "imagenette_supervised": [947],
    "imagenette_supervised_100pct": [9_469],
    "imagenet_supervised_1pct": [12_811],
    "standard_supervised": [500, 5_000],
    "quick_supervised": [200],
}


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_raise_no_warning(name: str) -> None:
    for images in MEANT_FOR[name]:
        assert check_recipe(RECIPES[name], images=images) == []


PLAIN: dict[str, Any] = {
    "optimizer": "lars",
    "learning_rate": 0.1,
    "scaling": "sqrt",
    "batch_size": 256,
    "images": 10_000,
    "epochs": 100,
    "warmup_epochs": 5,
    "stage": "pretrain",
}
NESTEROV = {"optimizer": "nesterov", "scaling": "linear", "stage": "supervised"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"learning_rate": 1.0},
            r"peak learning rate is 16; the paper's 0\.1 \* sqrt\(batch\) is 1\.6 for a batch of 256",
        ),
        ({"scaling": "none"}, r"peak learning rate is 0\.1; .* a rate for SGD: LARS scales every step by 0\.001"),
        ({"stage": "finetune"}, r"peak learning rate is 1\.6; .* 0\.08 for .* destroys what pretraining found"),
        ({"learning_rate": 0}, "learning rate is 0: nothing"),
        ({**NESTEROV, "scaling": "sqrt"}, r"rate is 1\.6; .* 0\.1 for a batch of 256\. That is a rate for LARS"),
        ({**NESTEROV, "scaling": "sqrt", "batch_size": 4096}, r"peak learning rate is 6\.4; .* rate for LARS"),
        ({**NESTEROV, "learning_rate": 1e-3}, r"peak learning rate is 0\.001; .* So low a rate"),
        (
            {"scaling": "linear", "learning_rate": 1.0, "batch_size": 4096, "images": IMAGENET},
            r"Linear scaling gives 16 for a batch of 4096; the paper's 0\.1 \* sqrt\(batch\) gives 6\.4",
        ),
        ({"epochs": 1, "warmup_epochs": 0.3}, r"only 40 steps"),
        ({"warmup_epochs": 40}, r"warm-up takes 1562 of 3907 steps\. A twentieth"),
        ({"warmup_epochs": 0}, r"warm-up takes 0 of 3907 steps, up to a rate of 1\.6"),
        ({**NESTEROV, "warmup_epochs": 0, "learning_rate": 0.7}, r"warm-up takes 0 of 3907 steps.* rate of 0\.7"),
        ({"images": 200}, r"batch of 256 is larger than the 200 images.* at most 100"),
        ({"images": 500}, r"epoch is a single batch \(256 of 500 images\).* at most 125"),
        ({"temperature": 0.02}, r"temperature is 0\.02; the loss then looks at the nearest negatives only"),
        ({"temperature": 5.0}, r"temperature is 5; the loss then barely"),
    ],
)
def test_a_warning_for_each_unusual_schedule(values: dict[str, Any], message: str) -> None:
    (line,) = learning_rate_sanity(**PLAIN | values)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"scaling": "linear", "learning_rate": 0.3, "batch_size": 4096, "images": IMAGENET},  # 4.8, as SimCLR v1's
        {"stage": "finetune", "learning_rate": 0.002},
        {**NESTEROV, "warmup_epochs": 0},
        {**NESTEROV, "stage": "linear", "batch_size": 4096, "images": IMAGENET, "warmup_epochs": 0},
        {"stage": "distill", "temperature": 4.0},
    ],
)
def test_usual_schedules_raise_no_warning(values: dict[str, Any]) -> None:
    assert learning_rate_sanity(**PLAIN | values) == []


def test_what_check_recipe_passes_on() -> None:
    assert len(check_recipe(PretrainRecipe(batch_size=256, temperature=2.0), images=10_000)) == 1
    head = FinetuneRecipe(learning_rate=0.1)
    assert "destroys" in check_recipe(head, images=100_000)[0]
    assert check_recipe(dataclasses.replace(head, freeze_backbone=True), images=100_000) == []
    with pytest.raises(ValueError, match="Unknown stage 'tune'"):
        learning_rate_sanity(**PLAIN | {"stage": "tune"})


def test_a_memory_whose_average_lags_too_far_is_told_and_what_to_give() -> None:
    recipe = PretrainRecipe(batch_size=64, epochs=30, warmup_epochs=2, memory=4_096)
    (line,) = check_recipe(recipe, images=9_469)
    assert "lags 1000 steps behind, in a run of 4439" in line
    assert line.endswith("a memory_decay of about 0.991.")
    assert check_recipe(dataclasses.replace(recipe, memory=0), images=9_469) == []
    assert check_recipe(dataclasses.replace(recipe, memory_decay=0.991), images=9_469) == []
    assert check_recipe(dataclasses.replace(recipe, epochs=300, warmup_epochs=15), images=9_469) == []


# ---- the page


def test_the_pages_table_is_what_the_function_gives() -> None:
    row = r"^\| *(\d[\d,]*) *\| *([\d.]+) *((?:\| *[\d.]+ / [\d.]+ *){4})\|$"
    rows = re.findall(row, PAGE.read_text("utf-8"), re.MULTILINE)
    assert [int(row[0].replace(",", "")) for row in rows] == [32, 64, 128, 256, 512, 1024, 4096]
    for number, collapsed, cells in rows:
        shown = [cell.strip() for cell in cells.strip("| ").split("|")]
        for temperature, cell in zip((0.1, 0.2, 0.5, 1.0), shown, strict=True):
            marks = expected_nt_xent(int(number.replace(",", "")), temperature)
            assert cell == f"{marks.best:.2f} / {marks.chance:.2f}"
            assert collapsed == f"{marks.collapsed:.2f}"
