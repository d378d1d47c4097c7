"""The three stages as modules: a batch in, ``{"loss": ..., metrics}`` out. They know nothing of the loop.

A stage has ``model`` (what is trained and saved) and ``parameter_groups()`` (what the optimizer gets).
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.lars import parameter_groups
from training.losses import distillation_loss, nt_xent_loss
from zoo.simclr import SimCLR

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class Pretrain(nn.Module):
    """Stage 1: contrast two views of each image (paper: section 2; code: run.py, train_mode=pretrain).

    Batch: ``view0`` and ``view1``, (B, 3, S, S) each. Raises ValueError for a model without a projection head.
    """

    def __init__(self, model: SimCLR, *, temperature: float = 0.1) -> None:
        super().__init__()
        if model.projector is None:
            raise ValueError("Pretraining needs a projection head; create the model with projector=True.")
        self.model, self.temperature = model, temperature
        if model.classifier is not None:
            model.classifier.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model)

    def forward(self, batch: Batch) -> Metrics:
        images = torch.cat([batch["view0"], batch["view1"]])  # (2B, 3, S, S)
        assert self.model.projector is not None
        z0, z1 = self.model.projector(self.model.backbone(images)).float().chunk(2)
        return {
            "loss": nt_xent_loss(z0, z1, temperature=self.temperature),
            "contrast_accuracy": contrast_accuracy(z0.detach(), z1.detach()),
        }


@torch.no_grad()
def contrast_accuracy(z0: Tensor, z1: Tensor) -> Tensor:
    """Share of the B images whose nearest among the 2B - 1 other projections is their own second view."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    similarity = z[: len(z0)] @ z.T  # (B, 2B)
    similarity.fill_diagonal_(-2.0)
    return (similarity.argmax(1) == torch.arange(len(z0), 2 * len(z0), device=z.device)).float().mean()


class Finetune(nn.Module):
    """Stage 2: cross-entropy on few labels, from ``model.classify_from`` (paper: section 2).

    With ``freeze_backbone`` only the classifier is trained, all else in evaluation mode: linear evaluation. Otherwise
    the whole path to the classifier is trained, and the rest of the projection head only keeps its statistics moving,
    as in the code. ``weight_decay`` is the code's wd/2 |w|^2 in the loss, on the classifier's kernel, and on its bias
    too when the backbone is frozen.

    Batch: ``view0`` (B, 3, S, S) and ``label`` (B,).
    """

    def __init__(self, model: SimCLR, *, freeze_backbone: bool = False, weight_decay: float = 0.0) -> None:
        super().__init__()
        if model.classifier is None:
            raise ValueError("Fine-tuning needs a classifier; create the model with num_classes.")
        self.model, self.freeze_backbone, self.weight_decay = model, freeze_backbone, weight_decay
        model.backbone.requires_grad_(not freeze_backbone)
        for k, layer in enumerate(model.projector.layers if model.projector is not None else ()):
            layer.requires_grad_(k < model.classify_from and not freeze_backbone)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_backbone:
            self.model.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model)

    def forward(self, batch: Batch) -> Metrics:
        assert self.model.classifier is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            hidden = self._hidden(self.model.backbone(batch["view0"]))
        logits = self.model.classifier(hidden).float()
        error = F.cross_entropy(logits, batch["label"])
        return {
            "loss": error + self.regularisation(),
            "cross_entropy": error.detach(),
            "accuracy": (logits.argmax(1) == batch["label"]).float().mean(),
        }

    def regularisation(self) -> Tensor:
        """wd/2 times the squared norm of the classifier's kernel (and bias, in linear evaluation)."""
        assert self.model.classifier is not None
        squares = self.model.classifier.weight.square().sum()
        if self.freeze_backbone:
            squares = squares + self.model.classifier.bias.square().sum()
        return self.weight_decay / 2 * squares

    def _hidden(self, features: Tensor) -> Tensor:
        """What the classifier reads; the layers beyond it run for their moving statistics only."""
        chosen = features
        for k, layer in enumerate(self.model.projector.layers if self.model.projector is not None else (), start=1):
            if k <= self.model.classify_from:
                chosen = features = layer(features)
            elif layer.training:
                with torch.no_grad():
                    features = layer(features)
        return chosen


class Distill(nn.Module):
    """Stage 3: the student learns the teacher's answers on unlabeled images (paper: eq. 2 and 3).

    Loss: alpha * distillation + (1 - alpha) * cross-entropy on the images of the batch that have a label (>= 0). The
    teacher sees the same augmented image, is frozen and in evaluation mode. Batch: ``view0`` (B, 3, S, S), and
    ``label`` (B,), -1 = none, if alpha < 1.

    ``teacher`` maps images (B, 3, S, S) to an output with ``logits`` (B, classes).
    """

    def __init__(
        self,
        model: SimCLR,
        teacher: nn.Module,
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        scale_by_t2: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r} is not between 0 (labels only) and 1 (teacher only).")
        if model.classifier is None:
            raise ValueError("A student needs a classifier; create it with num_classes.")
        self.model, self.teacher = model, teacher.requires_grad_(False)
        self.temperature, self.alpha, self.scale_by_t2 = temperature, alpha, scale_by_t2
        if model.projector is not None:
            for layer in list(model.projector.layers)[model.classify_from :]:
                layer.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, adapt_classifier=True)

    def forward(self, batch: Batch) -> Metrics:
        with torch.no_grad():
            answers = self.teacher(batch["view0"]).logits.float()
        logits = self.model(batch["view0"]).logits.float()
        loss = self.alpha * distillation_loss(logits, answers, self.temperature, self.scale_by_t2)
        if self.alpha < 1:
            labelled = batch["label"] >= 0
            if labelled.any():
                loss = loss + (1 - self.alpha) * F.cross_entropy(logits[labelled], batch["label"][labelled])
        return {"loss": loss, "agreement": (logits.argmax(1) == answers.argmax(1)).float().mean()}
