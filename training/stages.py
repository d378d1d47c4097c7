"""The three stages as modules: images to outputs, outputs to ``{"loss": ..., metrics}``. They know nothing of the loop.

A stage has ``model`` (what is trained), ``path`` (the network from images to what the loss reads; ``network`` is the
form of it that runs), ``parameter_groups()`` (what the optimizer gets), ``outputs(batch)`` and ``loss(outputs, batch,
counts)``; ``before_step(parts)`` comes before the loss, ``after_step()`` after the optimizer's step. With several
processes each computes its share of the loss and metrics: the sums over them are the values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import distributed, health
from training.lars import parameter_groups
from training.losses import contrast, distillation_loss
from training.memory import MemoryBuffer, MovingAverage
from zoo.simclr import SimCLR

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class Counts(NamedTuple):
    """What means are taken over: images of the whole batch, and those of them with a label."""

    images: int
    labelled: int


class Stage(nn.Module):
    """What the stages share. ``separable``: the loss is a sum over images, so parts of a batch can come one by one."""

    separable = True
    model: SimCLR
    network: Callable[[Tensor], Tensor]

    def __init__(self, model: SimCLR, path: nn.Module) -> None:
        super().__init__()
        self.model, self.path = model, path
        self.average: MovingAverage | None = None
        self.set_network(path)

    def set_network(self, network: Callable[[Tensor], Tensor]) -> None:
        """Another form of ``path``, such as one that averages gradients over processes."""
        object.__setattr__(self, "network", network)  # not a submodule: its parameters are the model's

    def keep_average(self, decay: float) -> None:
        """Keep a moving average of the weights and statistics from here on."""
        self.average = MovingAverage(self.model, decay=decay, average_statistics=True, warm_up=True)

    def kept(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by name."""
        return {"model": self.model} | ({} if self.average is None else {"average": self.average})

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model)

    def counts(self, batch: Batch) -> Counts:
        """Images and labels of the whole batch, over all processes."""
        labels = batch.get("label")
        labelled = 0 if labels is None else (labels >= 0).sum().item()
        images, labelled = distributed.total(torch.tensor([len(batch["view0"]), labelled])).tolist()
        return Counts(int(images), int(labelled))

    def outputs(self, batch: Batch) -> Tensor:
        """What the loss reads, (B, ...)."""
        return _full(self.network(batch["view0"]))

    def loss(self, outputs: Tensor, batch: Batch, counts: Counts) -> Metrics:
        raise NotImplementedError  # each stage has its own

    def forward(self, batch: Batch) -> Metrics:
        """Loss and metrics of a batch in one piece."""
        self.before_step([batch])
        return self.loss(self.outputs(batch), batch, self.counts(batch))

    def before_step(self, parts: list[Batch]) -> None:
        """What the loss needs to know of the whole batch beside the outputs; ``parts`` make it up."""

    def after_step(self) -> None:
        """What is due once the optimizer has changed the weights."""
        if self.average is not None:
            self.average.update(self.model)

    def signs(self) -> dict[str, float]:
        """Facts about the last batch of this process by which its health can be told (training/health.py)."""
        return {}


def _full(outputs: Tensor) -> Tensor:
    """In float32, or finer if it is finer."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


class _Projections(nn.Module):
    def __init__(self, model: SimCLR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        assert self.model.projector is not None
        projections: Tensor = self.model.projector(self.model.backbone(images))
        return projections


class Pretrain(Stage):
    """Stage 1: contrast two views of each image (paper: section 2; code: run.py, train_mode=pretrain).

    With ``memory`` > 0, that many projections of a moving average of the network (``decay``; paper: 65,536 and 0.999)
    are more negatives for every view; those of the same image do not count. The authors never released this half: what
    the paper leaves open is decided here. The average sees both views of every batch, in training mode, with batch
    statistics of its own. What it makes of one view is the other view's positive, as in MoCo: were it not, nothing
    would tie the network to its average, and running away from the memory would be all it learns (docs/training.md).

    Batch: ``view0`` and ``view1``, (B, 3, S, S) each, and with a memory ``index`` (B,), the images' numbers. Raises
    ValueError for a model without a projection head.
    """

    separable = False

    def __init__(self, model: SimCLR, *, temperature: float = 0.1, memory: int = 0, decay: float = 0.999) -> None:
        if model.projector is None:
            raise ValueError("Pretraining needs a projection head; create the model with projector=True.")
        super().__init__(model, _Projections(model))
        self.temperature = temperature
        if model.classifier is not None:
            model.classifier.requires_grad_(False)
        self.buffer, self.encoder = None, None
        if memory:
            self.buffer = MemoryBuffer(memory)
            self.encoder = MovingAverage(model, decay=decay, average_statistics=False)
        self._keys: tuple[Tensor, Tensor] | None = None  # the average's (B, 2, 128) of this batch; images' numbers (B,)
        self._last: Tensor | None = None

    def kept(self) -> dict[str, nn.Module]:
        more = {"memory": self.buffer, "encoder": self.encoder}
        return super().kept() | {name: module for name, module in more.items() if module is not None}

    def outputs(self, batch: Batch) -> Tensor:
        """Projections (B, 2, 128) of both views, from one pass."""
        return _views(self.network, batch)

    def loss(self, outputs: Tensor, batch: Batch, counts: Counts) -> Metrics:
        self._last = outputs.detach()
        assert (self.encoder is None) == (self._keys is None), "before_step comes before the loss"
        keys, ids = (None, None) if self._keys is None else self._keys
        vectors, their_ids = (None, None) if self.buffer is None else self.buffer.negatives()
        z0, z1 = outputs.unbind(1)
        found = contrast(z0, z1, self.temperature, keys=keys, ids=ids, memory=vectors, memory_ids=their_ids)
        return {"loss": found.loss, "contrast_accuracy": found.accuracy}

    @torch.no_grad()
    def before_step(self, parts: list[Batch]) -> None:
        if self.encoder is not None:
            network = _Projections(self.encoder.model)
            keys, ids = zip(*((_views(network, part), part["index"]) for part in parts), strict=True)
            self._keys = torch.cat(keys), torch.cat(ids)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if self.encoder is None or self.buffer is None:
            return
        assert self._keys is not None, "before_step comes before after_step"
        self.encoder.update(self.model)
        (keys, ids), self._keys = self._keys, None
        ids = distributed.gather_rows(ids)
        for view in keys.unbind(1):
            self.buffer.add(distributed.gather_rows(view), ids)

    def signs(self) -> dict[str, float]:
        if self._last is None or len(self._last) < 2:
            return {}
        z0, z1 = self._last.unbind(1)
        return {
            "alignment": health.alignment(z0, z1),
            "uniformity": health.uniformity(torch.cat([z0, z1])),
            "projection_rank": health.effective_rank(torch.cat([z0, z1])),
        }


def _views(network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    projections = network(torch.cat([batch["view0"], batch["view1"]]))  # (2B, 128)
    return _full(projections).unflatten(0, (2, len(batch["view0"]))).transpose(0, 1)


class _TunedLogits(nn.Module):
    """Logits, while the projection layers beyond the classifier run for their moving statistics only."""

    def __init__(self, model: SimCLR, *, freeze_backbone: bool) -> None:
        super().__init__()
        self.model, self.freeze_backbone = model, freeze_backbone

    def forward(self, images: Tensor) -> Tensor:
        assert self.model.classifier is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            hidden = self._hidden(self.model.backbone(images))
        logits: Tensor = self.model.classifier(hidden)
        return logits

    def _hidden(self, features: Tensor) -> Tensor:
        chosen = features
        for k, layer in enumerate(self.model.projector.layers if self.model.projector is not None else (), start=1):
            if k <= self.model.classify_from:
                chosen = features = layer(features)
            elif layer.training:
                with torch.no_grad():
                    features = layer(features)
        return chosen


class Finetune(Stage):
    """Stage 2: cross-entropy on few labels, from ``model.classify_from`` (paper: section 2).

    With ``freeze_backbone`` only the classifier is trained, all else in evaluation mode: linear evaluation. Otherwise
    the whole path to the classifier is trained, and the rest of the projection head only keeps its statistics moving,
    as in the code. ``weight_decay`` is the code's wd/2 |w|^2 in the loss (model_util.py, add_weight_decay), on the
    classifier's kernel, and with ``decay_bias`` on its bias too: what the code does when the optimizer is not LARS.

    Batch: ``view0`` (B, 3, S, S) and ``label`` (B,).
    """

    def __init__(
        self, model: SimCLR, *, freeze_backbone: bool = False, weight_decay: float = 0.0, decay_bias: bool = False
    ) -> None:
        if model.classifier is None:
            raise ValueError("Fine-tuning needs a classifier; create the model with num_classes.")
        super().__init__(model, _TunedLogits(model, freeze_backbone=freeze_backbone))
        self.freeze_backbone, self.weight_decay, self.decay_bias = freeze_backbone, weight_decay, decay_bias
        model.backbone.requires_grad_(not freeze_backbone)
        for k, layer in enumerate(model.projector.layers if model.projector is not None else ()):
            layer.requires_grad_(k < model.classify_from and not freeze_backbone)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_backbone:
            self.model.eval()
        return self

    def loss(self, outputs: Tensor, batch: Batch, counts: Counts) -> Metrics:
        error = F.cross_entropy(outputs, batch["label"], reduction="sum") / counts.images
        share = len(outputs) / counts.images
        return {
            "loss": error + share * self.regularisation(),
            "cross_entropy": error.detach(),
            "accuracy": (outputs.argmax(1) == batch["label"]).sum() / counts.images,
        }

    def regularisation(self) -> Tensor:
        """wd/2 times the squared norm of the classifier's kernel (and bias, with ``decay_bias``)."""
        assert self.model.classifier is not None
        squares = self.model.classifier.weight.square().sum()
        if self.decay_bias:
            squares = squares + self.model.classifier.bias.square().sum()
        return self.weight_decay / 2 * squares


class _Logits(nn.Module):
    def __init__(self, model: SimCLR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


class Distill(Stage):
    """Stage 3: the student learns the teacher's answers on unlabeled images (paper: eq. 2 and 3).

    Loss: alpha * distillation + (1 - alpha) * cross-entropy on the images of the batch that have a label (>= 0). The
    teacher sees the same augmented image. Batch: ``view0`` (B, 3, S, S), what the teacher needs beside it, and
    ``label`` (B,), -1 = none, if alpha < 1.

    ``teacher`` maps the batch to logits (B, classes), without a gradient (training/teachers.py).
    """

    def __init__(
        self,
        model: SimCLR,
        teacher: Callable[[Batch], Tensor],
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        scale_by_t2: bool = True,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r} is not between 0 (labels only) and 1 (teacher only).")
        if model.classifier is None:
            raise ValueError("A student needs a classifier; create it with num_classes.")
        super().__init__(model, _Logits(model))
        self.teacher = teacher
        self.temperature, self.alpha, self.scale_by_t2 = temperature, alpha, scale_by_t2
        if model.projector is not None:
            for layer in list(model.projector.layers)[model.classify_from :]:
                layer.requires_grad_(False)
        self.train()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, adapt_classifier=True)

    def loss(self, outputs: Tensor, batch: Batch, counts: Counts) -> Metrics:
        answers = self.teacher(batch).to(outputs.dtype)
        share = len(outputs) / counts.images
        loss = outputs.sum() * 0  # so that a process without images takes part
        if len(outputs):
            loss = loss + share * self.alpha * distillation_loss(outputs, answers, self.temperature, self.scale_by_t2)
        if self.alpha < 1 and counts.labelled:
            labelled = batch["label"] >= 0
            error = F.cross_entropy(outputs[labelled], batch["label"][labelled], reduction="sum")
            loss = loss + (1 - self.alpha) * error / counts.labelled
        return {"loss": loss, "agreement": (outputs.argmax(1) == answers.argmax(1)).sum() / counts.images}
