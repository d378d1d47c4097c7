"""The losses of the three stages."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training import distributed
from training.nt_xent import NtXent, NtXentAtOnce, default_tile, in_range


class Contrast(NamedTuple):
    """NT-Xent, and the share of views that are nearer to their positive than to any negative; scalars.

    Of several processes each gets its share: the sums over them are the values.
    """

    loss: Tensor
    accuracy: Tensor


def nt_xent_loss(z0: Tensor, z1: Tensor, temperature: float = 0.1, *, tile: int | None = None) -> Tensor:
    """NT-Xent (SimCLR eq. 1; code: objective.py): projections of two views, (B, D) each, to a scalar.

    Row i of ``z0`` and row i of ``z1`` show the same image; the other 2B - 2 rows are negatives. The two directions are
    **added**, each a mean over the batch: twice the usual mean over 2B. See ``contrast`` for the rest.
    """
    return _contrast(z0, z1, temperature, None, None, None, None, tile, nearest=False)[0]


def contrast(
    z0: Tensor,
    z1: Tensor,
    temperature: float = 0.1,
    *,
    keys: Tensor | None = None,
    ids: Tensor | None = None,
    memory: Tensor | None = None,
    memory_ids: Tensor | None = None,
    tile: int | None = None,
) -> Contrast:
    """NT-Xent with the negatives of all processes and, if given, of a memory (paper: section 2, MoCo's buffer).

    ``z0`` and ``z1`` are this process's projections (B, D), normalised here (epsilon 1e-12). ``keys`` (B, 2, D) are
    those of a moving average of the network: then the positive of a view is the key of the other view (MoCo's), and
    not that view's own projection. ``memory`` is (K, D), of unit length, more negatives for every row. No gradient
    flows into either. With ``ids`` (B,) and ``memory_ids`` (K,), the numbers of the images, other projections of a
    row's own image are no negatives.

    The (2B, 2B + K) similarities are computed ``tile`` x ``tile`` at a time (None: as suits the device), in the forward
    and, but for the first 32 MB, again in the backward pass: memory grows with B * D. It is computed in float32, or
    float64 if the projections are. Raises ValueError for unequal shapes, or a temperature or tile that is not positive.
    """
    loss, accuracy = _contrast(z0, z1, temperature, keys, ids, memory, memory_ids, tile, nearest=True)
    return Contrast(loss, accuracy)


def _contrast(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    keys: Tensor | None,
    ids: Tensor | None,
    memory: Tensor | None,
    memory_ids: Tensor | None,
    tile: int | None,
    *,
    nearest: bool,
) -> tuple[Tensor, Tensor]:
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"z0 and z1 must be (B, D) of one shape, not {tuple(z0.shape)} and {tuple(z1.shape)}.")
    if keys is not None and keys.shape != (len(z0), 2, z0.shape[1]):
        raise ValueError(f"keys must be {(len(z0), 2, z0.shape[1])}, one for each view, not {tuple(keys.shape)}.")
    _check_temperature(temperature)
    tile = default_tile(z0.device) if tile is None else tile
    if tile < 1:
        raise ValueError(f"tile={tile!r} is not a positive number of rows.")
    views = torch.stack([z0, z1], 1)  # (B, 2, D)
    views = views.to(torch.promote_types(views.dtype, torch.float32))
    if memory is None and keys is None:
        few = 0 < 2 * len(views) <= tile and in_range(temperature, views.dtype) and distributed.size() == 1
        if few:
            return NtXentAtOnce.apply(views, temperature, nearest)
    if memory is None:
        memory, ids, memory_ids = views.detach()[:0, 0], None, None
    keys = None if keys is None else F.normalize(keys.detach().to(views.dtype), dim=2)
    ids = None if ids is None else ids.repeat_interleave(2)
    return NtXent.apply(views, temperature, keys, memory.detach().to(views.dtype), ids, memory_ids, tile, nearest)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, scale_by_t2: bool = True
) -> Tensor:
    """Cross-entropy of the student with the teacher's softened answer (paper: eq. 2), (B, classes) each, to a scalar.

    Both are softmaxes of logits / temperature. ``scale_by_t2`` multiplies by temperature squared, as the authors'
    notebook does, so that the gradient's size does not depend on the temperature. The teacher gets no gradient.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(
            "Student and teacher logits must be (B, classes) of one shape, "
            f"not {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    _check_temperature(temperature)
    target = F.softmax(teacher_logits.detach() / temperature, dim=1)
    loss = F.cross_entropy(student_logits / temperature, target)
    return loss * temperature**2 if scale_by_t2 else loss


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} is not positive; the paper uses 0.1 to 1.")
