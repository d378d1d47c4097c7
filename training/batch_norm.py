"""Batch norm when a batch comes in parts: statistics that stand still, and those of the whole batch."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.distributed import moments, pooled
from zoo.resnet import BatchNorm, run_block
from zoo.simclr import SimCLR


def _norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Within, passes in training mode do not move the running statistics."""
    norms = _norms(model)
    before = [norm.moves for norm in norms]
    for norm in norms:
        norm.moves = False
    try:
        yield
    finally:
        for norm, moved in zip(norms, before, strict=True):
            norm.moves = moved


class _Pool:
    """The statistics of one batch norm over the parts of a batch, in the place of ``BatchNorm.normalise``."""

    def __init__(self, norm: BatchNorm) -> None:
        self.norm, self.part_by_part = norm, norm.normalise
        self.told: list[Tensor] = []
        self.whole: tuple[Tensor, Tensor] | None = None  # mean and biased variance, (C,) each

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count, own_mean, own_variance = moments(x)
        if self.whole is None:
            self.told.append(torch.cat([count, own_mean, own_variance]))
            return self.part_by_part(x, weight, bias, eps)
        mean, variance = self.whole
        scale = ((own_variance + eps) / (variance + eps)).sqrt()
        shift = (own_mean - mean) / (variance + eps).sqrt()
        offset = weight * shift if bias is None else weight * shift + bias
        out, _, _ = self.part_by_part(x, weight * scale, offset, eps)
        return out, mean, variance

    def close(self) -> None:
        _, mean, variance = pooled(torch.stack(self.told))
        self.whole = mean, variance

    def move(self) -> None:
        assert self.whole is not None
        mean, variance = self.whole
        self.norm.running_mean.lerp_(mean.to(self.norm.running_mean.dtype), self.norm.momentum)
        self.norm.running_var.lerp_(variance.to(self.norm.running_var.dtype), self.norm.momentum)


class WholeBatchStatistics:
    """Batch norm over a whole batch that comes in parts, in two passes.

    In ``collecting()``, a pass over all parts without a graph, each part is normalised by its own statistics, and they
    are pooled, layer by layer. In ``using()`` every part is normalised by the pooled ones; the gradient takes a part's
    own mean and deviation for the whole's, as in batch renormalisation (Ioffe 2017, with r and d unbounded). At its end
    the running statistics move once. With one part both are ordinary batch norm.

    Not what one piece would compute to the last digit: the statistics of a layer are pooled below layers that were
    normalised part by part, and the gradient through the statistics is an estimate.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model  # or several in one
        self._pools = [_Pool(norm) for norm in _norms(model) if norm.training]

    @contextmanager
    def _installed(self) -> Iterator[None]:
        for pool in self._pools:
            pool.norm.normalise = pool
        try:
            with still(self._model):
                yield
        finally:
            for pool in self._pools:
                pool.norm.normalise = pool.part_by_part

    @contextmanager
    def collecting(self) -> Iterator[None]:
        with self._installed(), torch.no_grad():
            yield
        self._pools = [pool for pool in self._pools if pool.told]  # off the path: never asked
        for pool in self._pools:
            pool.close()

    @contextmanager
    def using(self) -> Iterator[None]:
        with self._installed():
            yield
        with torch.no_grad():
            for pool in self._pools:
                pool.move()


def recompute_activations(model: SimCLR) -> None:
    """Keep only what goes into each block, and compute the rest again in the backward pass: less memory, more time."""
    model.backbone.run_block = _recomputed


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return run_block(block, x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), still(block)

    out: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out
