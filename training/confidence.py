"""How sure a student says it is, after distillation at another temperature than 1.

The loss compares softmaxes of logits / temperature (paper: eq. 2), so a student of temperature 0.1 has learnt logits
that are right when divided by 0.1; as they are, their probabilities are nearly uniform. One factor on them puts that
right. The answers keep their order, and no label is needed: the teacher's probabilities at temperature 1 say how sure
to be.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import evaluate
from training.data import ImageSet
from zoo.simclr import SimCLR

_HALVINGS = 50


def logit_scale(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> float:
    """The factor on the student's logits (N, classes) with the least cross-entropy to the teacher's probabilities.

    It lies between 1 and 1 / ``temperature``, at which the student says what it was trained to say. The cross-entropy
    is convex in the factor, so halving the range by its slope's sign finds it.
    """
    student, target = student_logits.double(), F.softmax(teacher_logits.double(), dim=1)
    low, high = sorted((1.0, 1 / temperature))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slope = ((F.softmax(middle * student, dim=1) - target) * student).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return (low + high) / 2


@torch.no_grad()
def match_confidence(
    student: SimCLR, images: ImageSet, teacher_logits: Tensor, temperature: float, *, device: str | torch.device = "cpu"
) -> float:
    """Scale the student's classifier, in place, by ``logit_scale`` on these images in evaluation; returns the factor.

    ``teacher_logits`` (N, classes) are the teacher's on the same images.
    """
    _, logits, kept = evaluate.embed(student, images, device=device, title="matching the teacher's confidence")
    assert logits is not None
    assert isinstance(student.classifier, nn.Linear)
    factor = logit_scale(logits, teacher_logits[kept], temperature)
    student.classifier.weight.mul_(factor)
    student.classifier.bias.mul_(factor)
    return factor
