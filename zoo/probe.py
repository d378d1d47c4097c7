"""Outputs on generated images: kept when a model is converted, computed again when its file is verified."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from zoo.simclr import SimCLR

TOLERANCE = 1e-5  # relative, in norm; kernels of other processors differ by about 1e-6
_IMAGES = 2
_SIDE = 64  # small is enough: the network is convolutional, and every weight takes part
_KEPT = 64  # values of each output, evenly spaced


def images(side: int) -> np.ndarray:
    """float32 (2, 3, side, side) in [0, 1]: stripes and gradients, exact on every machine (integers over 255)."""
    n, c, y, x = np.ogrid[:_IMAGES, :3, :side, :side]
    return ((3 * x * (n + 1) + 5 * y + (x * y) // 7 + 80 * c + 40 * n) % 256).astype(np.float32) / np.float32(255)


@torch.no_grad()
def outputs(model: SimCLR) -> dict[str, Any]:
    """Evenly spaced values of features, projections and logits of a model in evaluation mode, as plain JSON values.

    Raises ValueError if they are not finite.
    """
    assert not model.training
    side = min(_SIDE, model.image_size)
    device = next(model.parameters()).device
    features, logits = model(torch.from_numpy(images(side)).to(device))
    found = {"features": features, "logits": logits}
    if model.projector is not None:
        found["projections"] = model.projector(features)
    kept = {name: _kept(value) for name, value in found.items() if value is not None}
    if not all(np.isfinite(values).all() for values in kept.values()):
        raise ValueError("The model's outputs are not finite numbers; its source is damaged, or not trained.")
    return {"side": side} | {name: [float(value) for value in values] for name, values in kept.items()}


def _kept(value: torch.Tensor) -> np.ndarray:
    flat = value.double().cpu().numpy().reshape(_IMAGES, -1)
    columns = np.linspace(0, flat.shape[1] - 1, min(_KEPT, flat.shape[1])).round().astype(int)
    return flat[:, columns].reshape(-1)


def compare(ours: Mapping[str, Any], kept: object) -> dict[str, float]:
    """The relative error, in norm, of each output. Raises ValueError if they are not of the same kind."""
    if not isinstance(kept, dict) or set(kept) != set(ours) or kept["side"] != ours["side"]:
        raise ValueError("The kept outputs are not of this kind of model; was the config edited?")
    errors = {}
    for name in sorted(set(ours) - {"side"}):
        try:
            a, b = np.asarray(ours[name], np.float64), np.asarray(kept[name], np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"The kept outputs {name!r} are not numbers.") from None
        if a.shape != b.shape or not np.isfinite(b).all():
            raise ValueError(f"The kept outputs {name!r} are not {a.size} finite numbers.")
        errors[name] = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float32).tiny))
    return errors
