"""The memory of SimCLRv2: a moving average of a model's weights, and a buffer of its projections (paper: section 2)."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.simclr import PROJECTION_WIDTH, SimCLR


class MovingAverage(nn.Module):
    """A copy of a model whose weights follow the model's: average = decay * average + (1 - decay) * weights.

    ``average_statistics`` says whether the running statistics of batch norm follow likewise; if not, they are moved by
    the copy's own passes (the memory's encoder, which sees every batch). With ``warm_up`` update n, from 0, has the
    decay (1 + n) / (10 + n) while that is less (as TensorFlow's ExponentialMovingAverage with num_updates): else the
    result of a short run is for the most part where it began.
    """

    updates: Tensor | None

    def __init__(self, model: SimCLR, *, decay: float, average_statistics: bool, warm_up: bool = False) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"A moving average's decay lies in [0, 1), not {decay!r}; the paper uses 0.999.")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.average_statistics = decay, average_statistics
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64) if warm_up else None)

    @torch.no_grad()
    def update(self, model: SimCLR) -> None:
        """Follow the model by one step."""
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        if self.average_statistics:
            pairs += zip(self.model.buffers(), model.buffers(), strict=True)  # type: ignore[arg-type]
        decay = self.decay
        if self.updates is not None:
            decay = min(decay, float((1 + self.updates) / (10 + self.updates)))
            self.updates += 1
        for average, value in pairs:
            average.lerp_(value, 1 - decay)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MovingAverage":
        """What ``to`` goes through: the count stays on the host. Apple's GPUs know no float64, others would wait."""
        updates, self.updates = self.updates, None
        try:
            return super()._apply(fn, recurse)
        finally:
            self.updates = updates


class MemoryBuffer(nn.Module):
    """The last ``capacity`` projections, of unit length, and the numbers of their images: first in, first out.

    The same in every process, as every process adds what all have projected.
    """

    vectors: Tensor
    ids: Tensor
    added: Tensor

    def __init__(self, capacity: int, *, width: int = PROJECTION_WIDTH) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"A memory of {capacity!r} projections holds nothing; the paper uses 65536.")
        self.register_buffer("vectors", torch.zeros(capacity, width))
        self.register_buffer("ids", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))  # since the beginning

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MemoryBuffer":
        """What ``to`` goes through: the count stays on the host, which else waits for the device at every look."""
        added = self.added
        super()._apply(fn, recurse)
        self.added = added
        return self

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Vectors (K, D) and image numbers (K,) of what is filled, in no particular order."""
        filled = min(int(self.added), len(self.ids))
        return self.vectors[:filled], self.ids[:filled]

    @torch.no_grad()
    def add(self, projections: Tensor, ids: Tensor) -> None:
        """Put projections (n, D), normalised here, and their image numbers (n,) in the place of the oldest."""
        capacity = len(self.ids)
        first = int(self.added) + max(0, len(ids) - capacity)
        kept = slice(max(0, len(ids) - capacity), None)
        places = (torch.arange(first, int(self.added) + len(ids), device=self.ids.device)) % capacity
        self.vectors[places] = F.normalize(projections[kept], dim=1).to(self.vectors.dtype)
        self.ids[places] = ids[kept]
        self.added += len(ids)
