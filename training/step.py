"""One training step: the gradient of a whole batch, with the memory of a part of it if asked, then the optimizer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from training import distributed
from training.batch_norm import WholeBatchStatistics, still
from training.recipes import Statistics
from training.stages import Batch, Counts, Metrics, Stage


class Step:
    """A batch in, gradients, and the optimizer's step; the metrics (detached shares of this process) out.

    ``micro_batch``: images of a process that are in the network at a time, 0 for all. The gradient is that of the whole
    batch's loss nevertheless. Where the loss is a sum over images (fine-tuning, distillation), parts are added up. The
    contrastive loss looks at all images together: they are embedded without a graph, the loss gives the gradient with
    respect to the embeddings, and a second pass takes it into the weights, part by part (Gao et al. 2021, GradCache).

    What remains of the parts is batch norm. ``statistics`` "micro" normalises each part by itself, in both passes alike
    (then the gradient is exact for that network); its running statistics move once for each part. "global" pools the
    statistics of all parts first (``WholeBatchStatistics``), for one more pass without a graph.

    ``clip_norm`` bounds the norm of the whole gradient; 0 leaves it alone.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
        micro_batch: int = 0,
        statistics: Statistics = "micro",
        clip_norm: float = 0.0,
    ) -> None:
        self.stage, self.optimizer, self.device = stage, optimizer, device
        self.precision, self.layout = precision, layout
        self.micro_batch, self.statistics, self.clip_norm = micro_batch, statistics, clip_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)

    def __call__(self, batch: Batch) -> Metrics:
        counts = self.stage.counts(batch)  # while the labels are on the host: elsewhere it would wait for the device
        batch = {name: self._moved(value) for name, value in batch.items()}
        parts = self.parts(batch)
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.gradients(batch, parts, counts)
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stage.after_step()
        return {name: value.detach() for name, value in metrics.items()}

    def _moved(self, value: Tensor) -> Tensor:
        if value.ndim == 4:
            return value.to(self.device, non_blocking=True, memory_format=self.layout)
        return value.to(self.device, non_blocking=True)

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in as many near-equal parts as keep to ``micro_batch`` in every process."""
        if not self.micro_batch:
            return [batch]
        most = max(distributed.counts(len(batch["view0"]), torch.device("cpu")))
        number = max(1, -(-most // self.micro_batch))
        cut = {name: value.tensor_split(number) for name, value in batch.items()}
        return [{name: pieces[k] for name, pieces in cut.items()} for k in range(number)]

    def gradients(self, batch: Batch, parts: list[Batch], counts: Counts) -> Metrics:
        """Leaves the gradient of the whole batch's loss in the parameters; the metrics of this process's share."""
        if not counts.images:
            raise ValueError("None of the images of a batch can be read by any process; repair or remove them.")
        with self._autocast():
            whole: AbstractContextManager[None] = nullcontext()
            if self.statistics == "global" and len(parts) > 1:
                pool = WholeBatchStatistics(self.stage)
                with pool.collecting():
                    self.stage.before_step(parts)
                    for part in parts:
                        self.stage.outputs(part)
                whole = pool.using()
        with whole:
            with self._autocast():
                self.stage.before_step(parts)
            if len(parts) == 1 or self.stage.separable:
                return self._summed(parts, counts)
            return self._in_two_passes(batch, parts, counts)

    def _summed(self, parts: list[Batch], counts: Counts) -> Metrics:
        metrics: Metrics = {}
        for part, together in _last_together(self.stage.network, parts):
            with together:
                with self._autocast():
                    found = self.stage.loss(self.stage.outputs(part), part, counts)
                self._scaled(found["loss"]).backward()
            for name, value in found.items():
                metrics[name] = metrics[name] + value.detach() if name in metrics else value.detach()
        return metrics

    def _in_two_passes(self, batch: Batch, parts: list[Batch], counts: Counts) -> Metrics:
        with torch.no_grad(), still(self.stage.model), self._autocast():
            outputs = torch.cat([self.stage.outputs(part) for part in parts])
        outputs.requires_grad_()
        with self._autocast():
            metrics = self.stage.loss(outputs, batch, counts)
        (gradient,) = torch.autograd.grad(self._scaled(metrics["loss"]), outputs)
        pieces = gradient.split([len(part["view0"]) for part in parts])
        for (part, together), piece in zip(_last_together(self.stage.network, parts), pieces, strict=True):
            with together:
                with self._autocast():
                    embedded = self.stage.outputs(part)
                embedded.backward(piece)
        return metrics

    def _scaled(self, loss: Tensor) -> Tensor:
        """The processes' gradients are averaged, while the loss is the sum of their shares."""
        return self.scaler.scale(loss) * distributed.size()

    def _autocast(self) -> AbstractContextManager[object]:
        """A new one for each pass: autocast keeps cast weights, and those of a pass without a graph have none."""
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


def _last_together(network: object, parts: list[Batch]) -> Iterator[tuple[Batch, AbstractContextManager[None]]]:
    """The parts, each with the context of its pass: only in the last one the processes average what has added up."""
    alone = getattr(network, "no_sync", nullcontext)
    for part in parts[:-1]:
        yield part, alone()
    yield parts[-1], nullcontext()
