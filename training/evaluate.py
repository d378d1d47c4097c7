"""How good is it: accuracy of a classifier, and a kNN score of the features."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training import health
from training.data import ImageSet, evaluation_batches, in_classes, spaced
from zoo.simclr import SimCLR


@dataclass(frozen=True)
class Score:
    """Top-1 and top-5 accuracy in [0, 1] on ``images`` images, with the 95 % interval of top-1 (Wilson)."""

    top1: float
    top5: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.959964, self.images, self.top1
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return middle - half, middle + half

    def __str__(self) -> str:
        low, high = self.interval
        top1 = f"top-1 {self.top1:.2%} (95 % interval {low:.2%} to {high:.2%})"
        return f"{top1}, top-5 {self.top5:.2%}, {self.images} images"


@torch.inference_mode()
def embed(
    model: SimCLR,
    images: ImageSet,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    title: str = "embedding",
) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """Features (N, D), logits (N, classes) or None, and the indices (N,) of the images that could be read."""
    model = model.to(device).eval()
    features, logits, indices = [], [], []
    progress = tqdm(total=len(images), desc=title, unit="image", disable=None, leave=False)
    with progress:
        for batch, _, index in evaluation_batches(images, size=model.image_size, batch_size=batch_size):
            output = model(batch.to(device))
            features.append(output.features.cpu())
            if output.logits is not None:
                logits.append(output.logits.cpu())
            indices.append(np.asarray(index))
            progress.update(len(batch))
    if not features:
        raise ValueError("None of the images could be read.")
    return torch.cat(features), torch.cat(logits) if logits else None, np.concatenate(indices)


def score(logits: Tensor, labels: np.ndarray | Tensor) -> Score:
    """Accuracy of logits (N, classes), or any scores, against labels (N,)."""
    target = torch.as_tensor(labels)
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = top == target[:, None]
    return Score(hits[:, 0].double().mean().item(), hits.any(1).double().mean().item(), len(target))


def in_classes_of(images: ImageSet, classes: tuple[str, ...], outputs: int) -> ImageSet:
    """Labelled images, their labels as the outputs of a model that names its ``classes``, or does not.

    Raises ValueError for labels of other classes; without names, for another number of them.
    """
    if classes and images.classes:
        return in_classes(images, classes)
    if images.classes and len(images.classes) != outputs:
        raise ValueError(
            f"The model tells {outputs} classes apart and does not name them; the labels have {len(images.classes)}. "
            "Give images of all its classes, whose names are in its order when sorted."
        )
    return images


def accuracy(model: SimCLR, images: ImageSet, *, device: str | torch.device = "cpu") -> Score:
    """The classifier's accuracy on labelled images, with the evaluation transform.

    Raises ValueError without labels, without a classifier, or for labels of classes that the model does not know.
    """
    if images.labels is None:
        raise ValueError("Evaluation needs labels: give class folders, or a CSV with the columns path,label.")
    if model.num_classes is None:
        raise ValueError("This model has no classifier; use --knn, or fine-tune it.")
    images = in_classes_of(images, model.classes, model.num_classes)
    _, logits, indices = embed(model, images, device=device, title="evaluating")
    assert logits is not None
    assert images.labels is not None
    return score(logits, images.labels[indices])


def knn(
    train_features: Tensor,
    train_labels: np.ndarray | Tensor,
    test_features: Tensor,
    *,
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
    own: np.ndarray | Tensor | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Scores (M, classes): the k nearest by cosine vote with weight exp(similarity / temperature) (Wu et al. 2018).

    ``own`` (M,): where each test image is among the training images itself, -1 for nowhere; there it has no vote.
    """
    bank = F.normalize(train_features, dim=1)
    votes = F.one_hot(torch.as_tensor(train_labels), classes).to(bank.dtype)
    places = torch.full((len(test_features),), -1) if own is None else torch.as_tensor(own)
    k = min(k, len(bank) - int((places >= 0).any()))
    scores = []
    for queries, mine in zip(F.normalize(test_features, dim=1).split(chunk), places.split(chunk), strict=True):
        cosines = queries @ bank.T  # (chunk, N)
        rows = (mine >= 0).nonzero()[:, 0]
        cosines[rows, mine[rows]] = -torch.inf
        similarity, nearest = cosines.topk(k, dim=1)  # (chunk, k)
        weights = ((similarity - 1) / temperature).exp()
        scores.append((weights[:, :, None] * votes[nearest]).sum(1))
    return torch.cat(scores)


def knn_score(
    model: SimCLR, train: ImageSet, test: ImageSet, *, k: int = 200, device: str | torch.device = "cpu"
) -> Score:
    """kNN accuracy of the features: labelled ``train`` images vote on ``test`` images, none on itself.

    Raises ValueError without labels on both sides, or for test images of a class that has no vote.
    """
    if train.labels is None or test.labels is None:
        raise ValueError("A kNN score needs labels on both sides.")
    test = in_classes(test, train.classes)
    assert test.labels is not None
    bank, _, kept = embed(model, train, device=device, title="kNN bank")
    queries, _, asked = embed(model, test, device=device, title="kNN queries")
    places = {train.paths[image].resolve(): place for place, image in enumerate(kept.tolist())}
    own = np.array([places.get(test.paths[image].resolve(), -1) for image in asked.tolist()])
    return score(knn(bank, train.labels[kept], queries, classes=len(train.classes), k=k, own=own), test.labels[asked])


_LOOKED_AT = 500  # unlabeled images, where there are no labels to score with


def feature_scores(
    model: SimCLR, device: torch.device, *, images: ImageSet | None, fallback: ImageSet
) -> dict[str, float]:
    """What the features are worth on the way: leave-one-out kNN accuracy, effective rank, spread (training/health.py).

    ``images`` are labelled; without them there is no kNN score, and the rest is told of up to 500 of ``fallback``.
    """
    looked_at = images if images is not None else fallback.subset(spaced(len(fallback), _LOOKED_AT))
    features, _, kept = embed(model, looked_at, device=device, title="looking at features")
    found = {}
    if images is not None:
        assert images.labels is not None
        labels = images.labels[kept]
        votes = knn(features, labels, features, classes=len(images.classes), k=20, own=np.arange(len(labels)))
        found["knn"] = score(votes, labels).top1
    return found | {
        "feature_rank": health.effective_rank(features),
        "feature_spread": health.feature_spread(features),
        "feature_rows": len(features),
    }
