"""NT-Xent, at once for few rows, tile by tile for many: the matrix of all similarities is never there."""

import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training import distributed

_TIE = 16  # units of rounding in a cosine: so much above all others counts as nearest, less is a tie, and is not
KEPT = 32 * 2**20  # bytes of tiles that the forward pass leaves for the backward pass
EPSILON = 1e-12  # no row is taken to be shorter than this


def default_tile(device: torch.device) -> int:
    """Rows and columns of the tile that exists at a time: on a CPU what the cores' caches hold."""
    return 512 if device.type == "cpu" else 2048


def in_range(temperature: float, dtype: torch.dtype) -> bool:
    """Whether exp(1 / temperature), its reciprocal, and sums of many of them are numbers of the type."""
    return 1 / temperature <= math.log(torch.finfo(dtype).max) / 2


@functools.cache
def _settle_exp(dtype: torch.dtype) -> None:
    """MKL before 2025 picks its exp in its first call; threads racing there get one good to 1e-4 (pytorch 188792)."""
    torch.zeros(1, dtype=dtype, device="cpu").exp()


class NtXentAtOnce(torch.autograd.Function):
    """``NtXent`` of few rows: the matrix is one tile, and kept. One process, no memory or keys, a temperature
    ``in_range``."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, temperature: float, nearest: bool) -> tuple[Tensor, Tensor]:
        _settle_exp(views.dtype)
        batch = len(views)
        rows, lengths = _unit(views.flatten(0, 1))  # (2B, D), (2B, 1)
        with _exactly(rows.device):
            exps = (rows / temperature) @ rows.T  # (2B, 2B), scores as yet
        same = exps.view(batch, 2, batch, 2).diagonal(dim1=0, dim2=2)  # (2, 2, B)
        positive = same[0, 1, :, None].clone()  # (B, 1)
        same.fill_(-torch.inf)
        accuracy = rows.new_zeros(())
        if nearest:
            accuracy = (positive > exps.amax(1).view(batch, 2)).sum().to(rows.dtype) / (2 * batch)
        odds = exps.exp_().sum(1).log_().view(batch, 2).sub_(positive)
        losses = torch.logaddexp(odds, odds.new_zeros(()))
        ctx.save_for_backward(rows, lengths, exps, odds, losses, positive)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(accuracy)
        return losses.sum() / batch, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, lengths, exps, odds, losses, positive = ctx.saved_tensors
        batch = len(odds)
        shares = (losses + positive).neg_().exp_().flatten()  # (2B,), 1 / L
        weights = (shares[:, None] + shares).mul_(exps)
        same = weights.view(batch, 2, batch, 2).diagonal(dim1=0, dim2=2)
        doubt = odds.sigmoid().sum(1).neg_()
        same[0, 1], same[1, 0] = doubt, doubt
        with _exactly(rows.device):
            out = weights @ rows
        out = _through_unit(out, rows, lengths, gradient / (batch * ctx.temperature))
        return out.view(batch, 2, -1), None, None


class NtXent(torch.autograd.Function):
    """Loss and accuracy (scalars) of views (B, 2, D).

    With z the rows over their lengths, s_ij = z_i . z_j / T over the views of all processes and the memory (K, D). With
    p the other view of i, loss = sum_i log(1 + n_i / exp s_ip) / B, where n_i = sum_j exp s_ij over all j but i and p.
    As s is symmetric, a tile serves its rows and its columns, and a row's gradient needs the logarithms of all rows,
    but no other process's gradient. With L_i = n_i + exp s_ip:

    B T d loss / d z_i = sum_j exp s_ij (1 / L_i + 1 / L_j) z_j - (n_i / L_i + n_p / L_p) z_p.

    Unless the temperature is tiny, exp s is within the range of its type and no maximum has to be subtracted. The
    accuracy, one more pass over each tile, is computed if ``nearest``, else 0. Nothing here waits for a GPU.

    With ``keys`` (B, 2, D), unit rows without a gradient, key p is the positive of i in place of z_p:

    B T d loss / d z_i = sum_j exp s_ij (1 / L_i + 1 / L_j) z_j - n_i / L_i key_p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        views: Tensor,
        temperature: float,
        keys: Tensor | None,
        memory: Tensor,
        ids: Tensor | None,
        memory_ids: Tensor | None,
        tile: int,
        nearest: bool,
    ) -> tuple[Tensor, Tensor]:
        _settle_exp(views.dtype)
        tile += tile % 2  # both views of an image in one tile
        rows, lengths = _unit(views.flatten(0, 1))  # (2B, D), (2B, 1)
        batch = sum(distributed.counts(len(rows), rows.device)) // 2
        others = _of_others(rows)
        if keys is None:
            positive = (rows[::2] * rows[1::2]).sum(1, keepdim=True).div_(temperature)  # (B, 1)
        else:
            positive = (rows.view_as(views) * keys.flip(1)).sum(2).div_(temperature)  # (B, 2)
        steady = in_range(temperature, rows.dtype)
        negatives = (_Sums if steady else _Running)(rows, tile, nearest=nearest)
        space, kept = _Space(rows, tile), []
        room = KEPT // rows.element_size() if steady and ctx.needs_input_grad[0] else 0
        with _exactly(rows.device):
            for i, j, mine, theirs in _pairs(rows, tile):
                room -= len(mine) * len(theirs)
                out = space(mine, theirs) if room < 0 else mine.new_empty(len(mine), len(theirs))
                scores = negatives.add(_own_scores(mine, theirs, temperature, out, same=i == j), i, j)
                if room >= 0:
                    kept.append(scores)
            for columns, names in ((others, None), (memory, memory_ids)):
                for i, _, mine, theirs, same in _rectangles(rows, columns, tile, ids, names):
                    negatives.add(_scores(mine, theirs, temperature, space(mine, theirs), same), i, i)
        odds = negatives.log().view(-1, 2) - positive  # (B, 2), the logarithm of n_i / exp s_ip
        losses = torch.logaddexp(odds, odds.new_zeros(()))
        doubt, logs = odds.sigmoid(), (losses + positive).flatten()  # (B, 2), n / L, and (2B,)
        ctx.save_for_backward(rows, lengths, others, keys, memory, ids, memory_ids, doubt, logs, *kept)
        ctx.temperature, ctx.tile, ctx.batch, ctx.steady = temperature, tile, batch, steady
        accuracy = rows.new_zeros(())
        if negatives.top is not None:
            tie = _TIE * torch.finfo(rows.dtype).eps / temperature
            accuracy = (positive - negatives.top.view(-1, 2) > tie).sum().to(rows.dtype) / (2 * batch)
        ctx.mark_non_differentiable(accuracy)
        return losses.sum() / batch, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, lengths, others, keys, memory, ids, memory_ids, doubt, logs, *kept = ctx.saved_tensors
        temperature, tile, steady = ctx.temperature, ctx.tile, ctx.steady
        logs_of_others = _of_others(logs)
        space, more_space = _Space(rows, tile), _Space(rows, tile)

        def weights(scores: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
            """Of exp s (steady) or s: exp(s - the logarithm of its row) + exp(s - the logarithm of its column)."""
            if steady:  # mine and theirs are 1 / L
                return torch.add(mine[:, None], theirs, out=more_space(mine, theirs)).mul_(scores)
            return (scores - mine[:, None]).exp_().add_((scores - theirs).exp_())

        def levels(logs: Tensor) -> tuple[Tensor, ...]:
            return ((-logs).exp_() if steady else logs).split(tile)

        if keys is None:  # each of two views is the other's positive
            keys, doubt = rows.view(-1, 2, rows.shape[1]), doubt.sum(1, keepdim=True)
        out = (keys.flip(1) * -doubt[:, :, None]).view_as(rows)
        pulls, own = out.split(tile), levels(logs)
        with _exactly(rows.device):
            for (i, j, mine, theirs), scores in itertools.zip_longest(_pairs(rows, tile), kept):
                if scores is None:
                    scores = _own_scores(mine, theirs, temperature, space(mine, theirs), same=i == j)
                    scores = scores.exp_() if steady else scores
                pull = weights(scores, own[i], own[j])
                pulls[i].addmm_(pull, theirs)
                if i != j:
                    pulls[j].addmm_(pull.T, mine)
            forever = logs.new_full((len(memory),), torch.inf)  # the memory's rows have no loss
            for columns, names, other in ((others, None, logs_of_others), (memory, memory_ids, forever)):
                their_levels = levels(other)
                for i, k, mine, theirs, same in _rectangles(rows, columns, tile, ids, names):
                    scores = _scores(mine, theirs, temperature, space(mine, theirs), same)
                    pulls[i].addmm_(weights(scores.exp_() if steady else scores, own[i], their_levels[k]), theirs)
        out = _through_unit(out, rows, lengths, gradient / (ctx.batch * temperature))
        return out.view(-1, 2, rows.shape[1]), None, None, None, None, None, None, None


class _Sums:
    """The sum of exp s of each row, and its greatest s if wanted, from tiles; a tile of (i, j) also counts for j."""

    def __init__(self, rows: Tensor, tile: int, *, nearest: bool) -> None:
        self.sum = rows.new_zeros(len(rows))
        self.sums = self.sum.split(tile)
        self.top = rows.new_full((len(rows),), -torch.inf) if nearest else None
        self.tops = () if self.top is None else self.top.split(tile)

    def add(self, scores: Tensor, i: int, j: int) -> Tensor:
        """The tile of row part i and, of the own rows, column part j becomes exp s."""
        for part, axis in ((i, 1), (j, 0))[: 1 + (i != j)]:
            if self.tops:
                torch.maximum(self.tops[part], scores.amax(axis), out=self.tops[part])
        scores.exp_()
        for part, axis in ((i, 1), (j, 0))[: 1 + (i != j)]:
            self.sums[part].add_(scores.sum(axis))
        return scores

    def log(self) -> Tensor:
        return self.sum.log()


class _Running(_Sums):
    """The same for scores whose exp overflows: sums of exp(s - the greatest s so far)."""

    def __init__(self, rows: Tensor, tile: int, *, nearest: bool) -> None:
        super().__init__(rows, tile, nearest=True)

    def add(self, scores: Tensor, i: int, j: int) -> Tensor:
        self._update(scores, i)
        if i != j:
            self._update(scores.T, j)
        return scores

    def _update(self, scores: Tensor, part: int) -> None:
        top = torch.maximum(self.tops[part], scores.amax(1))
        steady = top.masked_fill(top == -torch.inf, 0)  # -inf - -inf would be no number
        self.sums[part].mul_((self.tops[part] - steady).exp()).add_((scores - steady[:, None]).exp_().sum(1))
        self.tops[part].copy_(top)

    def log(self) -> Tensor:
        assert self.top is not None
        return self.top.masked_fill(self.top == -torch.inf, 0) + self.sum.log()


class _Space:
    """One place in memory for tile after tile."""

    def __init__(self, rows: Tensor, tile: int) -> None:
        self.rows, self.size = rows, min(tile, len(rows)) * tile
        self.all: Tensor | None = None

    def __call__(self, mine: Tensor, theirs: Tensor) -> Tensor:
        if self.all is None:
            self.all = self.rows.new_empty(self.size)
        return self.all[: len(mine) * len(theirs)].view(len(mine), len(theirs))


def _scores(mine: Tensor, theirs: Tensor, temperature: float, out: Tensor, same: Tensor | None) -> Tensor:
    """mine @ theirs.T / temperature (r, c) into ``out``; -inf where ``same``."""
    out.addmm_(mine, theirs.T, beta=0, alpha=1 / temperature)
    return out if same is None else out.masked_fill_(same, -torch.inf)


def _own_scores(mine: Tensor, theirs: Tensor, temperature: float, out: Tensor, *, same: bool) -> Tensor:
    """The same of two parts of the own rows; -inf for the views of one image, which only meet in a part and itself."""
    out = _scores(mine, theirs, temperature, out, None)
    if same:
        out.view(len(mine) // 2, 2, len(mine) // 2, 2).diagonal(dim1=0, dim2=2).fill_(-torch.inf)
    return out


def _pairs(rows: Tensor, tile: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Each two parts of the own rows, once, with their places."""
    parts = rows.split(tile) if len(rows) else ()
    return ((i, j, parts[i], parts[j]) for i in range(len(parts)) for j in range(i, len(parts)))


def _rectangles(
    rows: Tensor, columns: Tensor, tile: int, ids: Tensor | None, names: Tensor | None
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor | None]]:
    """Each part of the own rows with each part of other columns, their places, and where both show one image."""
    if not len(rows) or not len(columns):
        return
    for i, mine in enumerate(rows.split(tile)):
        for k, theirs in enumerate(columns.split(tile)):
            same = None
            if ids is not None and names is not None:
                same = ids[i * tile : (i + 1) * tile, None] == names[k * tile : (k + 1) * tile]
            yield i, k, mine, theirs, same


def _exactly(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast. Entering torch's context costs as much as a small matrix: only where there is something to end."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D) over their lengths (n, 1), and those."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(EPSILON)
    return rows / lengths, lengths


def _through_unit(gradient: Tensor, unit: Tensor, lengths: Tensor, scale: Tensor) -> Tensor:
    """The gradient by rows from that by rows over their lengths (n, D), times ``scale``; overwrites it."""
    along = torch.linalg.vecdot(gradient, unit).neg_()[:, None]
    gradient.addcmul_(unit, along.mul_(lengths > EPSILON))
    return gradient.mul_(scale / lengths)


def _of_others(rows: Tensor) -> Tensor:
    """The rows of the other processes."""
    if distributed.size() == 1:
        return rows[:0].detach()
    lengths, place = distributed.counts(len(rows), rows.device), distributed.rank()
    before = sum(lengths[:place])
    everything = distributed.gather_rows(rows)
    return torch.cat([everything[:before], everything[before + lengths[place] :]])
