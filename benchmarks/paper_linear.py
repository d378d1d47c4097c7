"""Linear evaluation on features that are there: logistic regression, its strength chosen on held-out labels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS, ENOUGH = 5, 400  # from so many labels on, one fold of the five is held out


def fold_count(labels: int) -> int:
    """How many times something is trained to choose on so many labels."""
    return 1 if labels >= ENOUGH else FOLDS


def folds(labels: np.ndarray, *, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (to train on, held out), a fifth of every class each time and no image twice; with few examples of a class
    fewer folds, so that every class is on both sides.

    Raises ValueError for a class with a single image.
    """
    least = int(np.bincount(labels)[np.unique(labels)].min())
    if least < 2:
        raise ValueError("A class has a single image: none can be held out to choose by. Take a larger share.")
    count = min(FOLDS, least)
    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[np.random.default_rng([seed, int(label)]).permutation(members)] = np.arange(len(members)) % count
    for number in range(min(count, fold_count(len(labels)))):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


class Linear(NamedTuple):
    """Logits are ``(features - mean) / deviation @ weight.T + bias``."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)

    def __call__(self, features: Tensor) -> Tensor:
        return F.linear((features.double() - self.mean) / self.deviation, self.weight, self.bias)


def fit(features: Tensor, labels: np.ndarray, *, classes: int, penalty: float) -> Linear:
    """The least mean cross-entropy + penalty / 2 * |weight|^2, features (N, D) standardised; float64, by L-BFGS."""
    x, y = features.double(), torch.as_tensor(labels)
    deviation, mean = torch.std_mean(x, dim=0, correction=0)
    deviation = deviation.clamp_min(1e-6)
    x = (x - mean) / deviation
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return Linear(mean, deviation, weight.detach(), bias.detach())


def choose_penalty(
    features: Tensor, labels: np.ndarray, *, classes: int, penalties: Sequence[float] = PENALTIES
) -> float:
    """The one with the least cross-entropy on held-out training labels."""
    losses = np.zeros(len(penalties))
    for kept, held in folds(labels):
        for place, penalty in enumerate(penalties):
            logits = fit(features[kept], labels[kept], classes=classes, penalty=penalty)(features[held])
            losses[place] += F.cross_entropy(logits, torch.as_tensor(labels[held]), reduction="sum").item()
    return penalties[int(losses.argmin())]
