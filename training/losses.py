"""The losses of the three stages."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SELF = -1e9  # logit of an image with itself (code: objective.py, LARGE_NUM)


def nt_xent_loss(z0: Tensor, z1: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent (SimCLR eq. 1; code: objective.py): projections of two views, (B, D) each, to a scalar.

    Row i of ``z0`` and row i of ``z1`` show the same image; the other 2B - 2 rows are negatives. The two directions are
    **added**, each a mean over the batch: twice the usual mean over 2B. Raises ValueError for unequal shapes or a
    temperature that is not positive.
    """
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"z0 and z1 must be (B, D) of one shape, not {tuple(z0.shape)} and {tuple(z1.shape)}.")
    _check_temperature(temperature)
    z0, z1 = F.normalize(z0, dim=1, eps=1e-12), F.normalize(z1, dim=1, eps=1e-12)
    batch = len(z0)
    itself = torch.eye(batch, dtype=torch.bool, device=z0.device)
    ab = z0 @ z1.T / temperature  # (B, B)
    aa = (z0 @ z0.T / temperature).masked_fill(itself, _SELF)
    bb = (z1 @ z1.T / temperature).masked_fill(itself, _SELF)
    target = torch.arange(batch, device=z0.device)
    return F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ab.T, bb], 1), target)


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
