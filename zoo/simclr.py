"""SimCLR: a backbone, its projection head, and a classifier on the features or on a projection layer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Spec
from zoo.resnet import BatchNorm, ResNet, initialise

PROJECTION_WIDTH = 128
PROJECTION_LAYERS = 3


class Output(NamedTuple):
    """What a model returns: pooled features (B, D), and logits (B, classes) or None without a classifier."""

    features: Tensor
    logits: Tensor | None


class ProjectionLayer(nn.Module):
    """Dense without bias, then batch norm; ReLU unless it is the last (then BN has no beta either)."""

    def __init__(self, width_in: int, width_out: int, *, last: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out, bias=False)
        self.norm = BatchNorm(width_out, shift=not last)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dense(x))
        return x if self.last else F.relu(x)


class ProjectionHead(nn.Module):
    """Features h (B, D) to projections z (B, 128) through three layers (paper: section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        final = PROJECTION_LAYERS - 1
        self.layers = nn.ModuleList(
            ProjectionLayer(width, PROJECTION_WIDTH if k == final else width, last=k == final)
            for k in range(PROJECTION_LAYERS)
        )

    def forward(self, features: Tensor, *, stop: int = PROJECTION_LAYERS) -> Tensor:
        """The output of projection layer ``stop`` (1, 2, 3); 0 gives the features back."""
        for layer in list(self.layers)[:stop]:
            features = layer(features)
        return features


class SimCLR(nn.Module):
    """A SimCLRv2 network. ``classify_from``: 0 = the classifier reads the features, k = projection layer k.

    ``spec``, ``image_size``, ``classes`` (names, may be empty) and ``facts`` (where the weights come from, what was
    measured) travel with the model into its file.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        num_classes: int | None = 1000,
        image_size: int = 224,
        classify_from: int = 0,
        projector: bool = True,
    ) -> None:
        super().__init__()
        if classify_from and not projector:
            raise ValueError(f"classify_from={classify_from} needs a projection head; this model has none.")
        if not 0 <= classify_from <= PROJECTION_LAYERS:
            raise ValueError(
                f"classify_from={classify_from!r} is not one of 0 (features), 1, 2, 3 (projection layers)."
            )
        if not 8 <= image_size <= 4096:
            raise ValueError(f"image_size={image_size!r} is not from 8 to 4096 pixels.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r} is not a positive number; None leaves the classifier out.")
        self.spec, self.image_size, self.classify_from = spec, image_size, classify_from
        self.classes: tuple[str, ...] = ()
        self.facts: dict[str, object] = {}
        self.backbone = ResNet(spec, image_size=image_size)
        self.projector = ProjectionHead(spec.feature_width) if projector else None
        width = PROJECTION_WIDTH if classify_from == PROJECTION_LAYERS else spec.feature_width
        self.classifier = nn.Linear(width, num_classes) if num_classes else None

    @property
    def num_classes(self) -> int | None:
        return None if self.classifier is None else self.classifier.out_features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of pooled features (B, D). Raises ValueError without a classifier."""
        if self.classifier is None:
            raise ValueError("This model has no classifier; fine-tune it, or create it with num_classes.")
        if self.projector is not None:
            features = self.projector(features, stop=self.classify_from)
        return self.classifier(features)

    def forward(self, images: Tensor) -> Output:
        """Images (B, 3, H, W) in [0, 1]."""
        features = self.backbone(images)
        return Output(features, None if self.classifier is None else self.classify(features))


@torch.no_grad()
def initialise_model(model: SimCLR) -> None:
    """The authors' initial values for every part: dense layers normal with std 0.01, biases 0."""
    initialise(model.backbone)
    for part in (model.projector, model.classifier):
        for module in part.modules() if part is not None else ():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BatchNorm):
                module.reset()
