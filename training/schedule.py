"""The learning rate: scaled with the batch, warmed up linearly, then a cosine to zero."""

import math
from typing import Literal

Scaling = Literal["sqrt", "linear", "none"]


def base_rate(rate: float, batch_size: int, scaling: Scaling = "sqrt") -> float:
    """The peak rate: ``rate`` * sqrt(batch), ``rate`` * batch / 256, or ``rate`` itself (code: model_util.py)."""
    if scaling == "sqrt":
        return rate * math.sqrt(batch_size)
    if scaling == "linear":
        return rate * batch_size / 256
    if scaling == "none":
        return rate
    raise ValueError(f"Unknown learning-rate scaling {scaling!r}. Choose from: sqrt, linear, none.")


def total_steps(images: int, epochs: float, batch_size: int) -> int:
    """floor(images * epochs / batch) + 1, as in the code."""
    return int(images * epochs // batch_size) + 1


def warmup_steps(images: int, warmup_epochs: float, batch_size: int) -> int:
    """floor(images * warm-up epochs / batch)."""
    return int(images * warmup_epochs // batch_size)


def learning_rate(step: int, *, peak: float, total: int, warmup: int) -> float:
    """The rate at ``step``: linear from 0 at step 0 to ``peak`` at ``warmup``, then a cosine to 0 at ``total``."""
    if step < warmup:
        return peak * step / warmup
    if total <= warmup:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))
