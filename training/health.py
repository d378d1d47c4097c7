"""Is my training healthy? Facts about embeddings by which it can be told."""

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(z0: Tensor, z1: Tensor) -> float:
    """Mean squared distance of the normalised views (B, D) of one image, 0 to 4 (Wang and Isola 2020)."""
    return float((F.normalize(z0.double(), dim=1) - F.normalize(z1.double(), dim=1)).square().sum(1).mean())


def uniformity(z: Tensor, t: float = 2.0, *, chunk: int = 1024) -> float:
    """log of the mean exp(-t |x - y|^2) over pairs of normalised rows (B, D), -2t to 0 (Wang and Isola 2020)."""
    rows = F.normalize(z.double(), dim=1)
    total = sum(((part @ rows.T - 1) * (2 * t)).exp().sum() for part in rows.split(chunk)) - len(rows)
    return float(torch.as_tensor(total / (len(rows) * (len(rows) - 1))).log())


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of the centred rows (B, D), 1 to D (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(z.double() - z.double().mean(0))
    shares = values / values.sum().clamp(min=1e-300)
    return float((-(shares * shares.clamp(min=1e-300).log()).sum()).exp()) if float(values.sum()) else 1.0


def feature_spread(h: Tensor) -> float:
    """Mean deviation of the normalised features (B, D) in a dimension, times sqrt(D): 1 spread out, 0 collapsed."""
    rows = F.normalize(h.double(), dim=1)
    return float(rows.std(0).mean() * rows.shape[1] ** 0.5)
