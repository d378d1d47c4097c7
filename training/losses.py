"""The losses of the three stages."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training import distributed

TILE = 1024  # rows and columns of the similarity matrix that exist at a time


class Contrast(NamedTuple):
    """NT-Xent, and the share of views whose nearest is the other view of their image; scalars.

    Of several processes each gets its share: the sums over them are the values.
    """

    loss: Tensor
    accuracy: Tensor


def nt_xent_loss(z0: Tensor, z1: Tensor, temperature: float = 0.1, *, tile: int = TILE) -> Tensor:
    """NT-Xent (SimCLR eq. 1; code: objective.py): projections of two views, (B, D) each, to a scalar.

    Row i of ``z0`` and row i of ``z1`` show the same image; the other 2B - 2 rows are negatives. The two directions are
    **added**, each a mean over the batch: twice the usual mean over 2B. See ``contrast`` for the rest.
    """
    return contrast(z0, z1, temperature, tile=tile).loss


def contrast(
    z0: Tensor,
    z1: Tensor,
    temperature: float = 0.1,
    *,
    ids: Tensor | None = None,
    memory: Tensor | None = None,
    memory_ids: Tensor | None = None,
    tile: int = TILE,
) -> Contrast:
    """NT-Xent with the negatives of all processes and, if given, of a memory (paper: section 2, MoCo's buffer).

    ``z0`` and ``z1`` are this process's projections (B, D), normalised here (epsilon 1e-12). ``memory`` is (K, D), of
    unit length, more negatives for every row; no gradient flows into it. With ``ids`` (B,) and ``memory_ids`` (K,), the
    numbers of the images, other projections of a row's own image are no negatives.

    The (2B, 2B + K) similarities are computed ``tile`` x ``tile`` at a time, in the forward and again in the backward
    pass: memory grows with B * D. Raises ValueError for unequal shapes, or a temperature or tile that is not positive.
    """
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"z0 and z1 must be (B, D) of one shape, not {tuple(z0.shape)} and {tuple(z1.shape)}.")
    _check_temperature(temperature)
    if tile < 1:
        raise ValueError(f"tile={tile!r} is not a positive number of rows.")
    if memory is None:
        memory, ids, memory_ids = z0.new_zeros(0, z0.shape[1]), None, None
    z0, z1 = (F.normalize(z, dim=1, eps=1e-12) for z in (z0, z1))
    return Contrast(*_Contrast.apply(z0, z1, temperature, memory.to(z0.dtype), ids, memory_ids, tile))


class _Contrast(torch.autograd.Function):
    """``contrast`` of unit rows.

    s_ij = z_i . z_j / T over all 2B views and the memory; loss = sum_i (log sum_j exp s_ij - s_ip) / B, where j is not
    i and p is the other view. As s is symmetric, the gradient by a row needs the logarithms of all rows, but no other
    process's gradient: d loss / d z_i = sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j / (B T) - 2 z_p / (B T).
    """

    @staticmethod
    def forward(
        ctx: Any,
        z0: Tensor,
        z1: Tensor,
        temperature: float,
        memory: Tensor,
        ids: Tensor | None,
        memory_ids: Tensor | None,
        tile: int,
    ) -> tuple[Tensor, Tensor]:
        all0, all1 = distributed.gather_rows(z0), distributed.gather_rows(z1)
        batch, here = len(all0), len(z0)
        before = sum(distributed.counts(here, z0.device)[: distributed.rank()])
        places = torch.arange(before, before + here, device=z0.device)
        rows, columns = torch.cat([z0, z1]), torch.cat([all0, all1])
        itself, other = torch.cat([places, places + batch]), torch.cat([places + batch, places])
        ids = None if ids is None else torch.cat([ids, ids])
        logs, loss, hits = torch.empty_like(rows[:, 0]), rows.new_zeros(()), rows.new_zeros(())
        with torch.autocast(rows.device.type, enabled=False):
            for part in _tiles(len(rows), tile):
                positive = (rows[part] * columns[other[part]]).sum(1) / temperature  # (tile,)
                negatives = _Running(positive)
                for part_of_all in _tiles(len(columns), tile):
                    scores = rows[part] @ columns[part_of_all].T / temperature  # (tile, tile)
                    for mine in (itself, other):
                        _at(scores, mine[part], part_of_all, -torch.inf)
                    negatives.add(scores)
                for part_of_all in _tiles(len(memory), tile):
                    negatives.add(_memory_scores(rows, memory, ids, memory_ids, part, part_of_all, temperature))
                logs[part] = torch.logaddexp(positive, negatives.log_sum())
                hits += (positive > negatives.top).sum()
                loss += (logs[part] - positive).sum()
        ctx.save_for_backward(rows, columns, itself, other, logs, memory, ids, memory_ids)
        ctx.temperature, ctx.tile, ctx.batch, ctx.here = temperature, tile, batch, here
        accuracy = hits / (2 * batch)
        ctx.mark_non_differentiable(accuracy)
        return loss / batch, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, itself, other, logs, memory, ids, memory_ids = ctx.saved_tensors
        all_logs = torch.cat([distributed.gather_rows(half) for half in (logs[: ctx.here], logs[ctx.here :])])
        out = torch.empty_like(rows)
        with torch.autocast(rows.device.type, enabled=False):
            for part in _tiles(len(rows), ctx.tile):
                pull = columns[other[part]] * -2
                for part_of_all in _tiles(len(columns), ctx.tile):
                    scores = rows[part] @ columns[part_of_all].T / ctx.temperature
                    _at(scores, itself[part], part_of_all, -torch.inf)
                    weights = (scores - logs[part, None]).exp_().add_((scores - all_logs[part_of_all]).exp_())
                    pull.addmm_(weights, columns[part_of_all])
                for part_of_all in _tiles(len(memory), ctx.tile):
                    scores = _memory_scores(rows, memory, ids, memory_ids, part, part_of_all, ctx.temperature)
                    pull.addmm_((scores - logs[part, None]).exp_(), memory[part_of_all])
                out[part] = pull
        out.mul_(gradient / (ctx.batch * ctx.temperature))
        return out[: ctx.here], out[ctx.here :], None, None, None, None, None


class _Running:
    """Greatest value and log-sum-exp of rows that come tile by tile."""

    def __init__(self, like: Tensor) -> None:
        self.top = torch.full_like(like, -torch.inf)
        self.sum = torch.zeros_like(like)

    def add(self, scores: Tensor) -> None:
        top = torch.maximum(self.top, scores.amax(1))
        steady = top.masked_fill(top == -torch.inf, 0)  # -inf - -inf would be no number
        self.sum = self.sum * (self.top - steady).exp() + (scores - steady[:, None]).exp_().sum(1)
        self.top = top

    def log_sum(self) -> Tensor:
        return self.top.masked_fill(self.top == -torch.inf, 0) + self.sum.log()


def _tiles(length: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, length)) for start in range(0, length, tile))


def _at(scores: Tensor, columns: Tensor, part: slice, value: float) -> None:
    """Set the one entry of each row whose column, counted over all tiles, is in ``columns``, if it is in this tile."""
    inside = (columns >= part.start) & (columns < part.stop)
    scores[inside.nonzero()[:, 0], columns[inside] - part.start] = value


def _memory_scores(
    rows: Tensor,
    memory: Tensor,
    ids: Tensor | None,
    memory_ids: Tensor | None,
    part: slice,
    part_of_memory: slice,
    temperature: float,
) -> Tensor:
    scores = rows[part] @ memory[part_of_memory].T / temperature
    if ids is not None and memory_ids is not None:
        scores.masked_fill_(ids[part, None] == memory_ids[None, part_of_memory], -torch.inf)
    return scores


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
