"""What the app can do with a model and a gallery: classify, embed, search, tell facts. Knows no user interface."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.index import Hit, Index
from export.runtime import OnnxModel
from zoo.transforms import ImageLike

BUNDLED = "r18_1x.imagenette_distilled.onnx"
NONE_LIKELY = 0.5  # below even odds for its best class, the model is taken not to know; facts may say otherwise


class Prediction(NamedTuple):
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


class Classification(NamedTuple):
    """Classes, most probable first, and whether the best of them is below the threshold for being likely at all."""

    ranked: list[Prediction]
    none_likely: bool


def bundled_student() -> Path:
    """The student that comes with this package. Raises ValueError if this copy of the package has none."""
    import export

    path = Path(export.__file__).parent / "bundled" / BUNDLED
    if not path.is_file():
        raise ValueError(
            f"No student is bundled with this copy of simclrv2 ({path} is missing); give one with --model student.onnx."
        )
    return path


class Engine:
    """A model and, if there is one, a gallery. ``none_likely_below`` comes from the model's facts, else 0.5."""

    def __init__(self, model: OnnxModel, index: Index | None = None) -> None:
        self.model, self.index = model, index
        self.labels = model.labels or tuple(f"class {number}" for number in range(model.num_classes))
        threshold = model.facts.get("none_likely_below", NONE_LIKELY)
        self.none_likely_below = float(threshold) if isinstance(threshold, int | float) else NONE_LIKELY

    def classify(self, image: ImageLike, *, k: int = 5) -> Classification:
        """The ``k`` most probable classes. Raises ValueError for an unreadable image or a model without classifier."""
        return classification(self.model.classify(image)[0], self.labels, self.none_likely_below, k=k)

    def embed(self, image: ImageLike) -> np.ndarray:
        """Features (D,) in float32, not normalised. Raises ValueError for an unreadable image."""
        return self.model.embed(image)[0]

    def search(self, image: ImageLike, *, k: int = 12) -> list[Hit]:
        """The ``k`` most similar gallery pictures. Raises ValueError for an unreadable image, or without a gallery."""
        if self.index is None:
            raise ValueError("There is no gallery to search; start the app with --gallery DIR.")
        return self.index.search(self.embed(image), k)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is known of the model and the gallery, for people; plain values."""
        model = self.model
        about = {
            "architecture": model.architecture,
            "image_size": f"{model.image_size} x {model.image_size}",
            "classes": model.num_classes,
            "feature_width": model.feature_width,
            "file": model.path.name,
            "file_size": f"{model.file_bytes / 1e6:.1f} MB",
            "sha256": model.fingerprint,
            "preprocessing": model.preprocessing,
        }
        return {"model": about, "facts": model.facts, "gallery": self.index.facts() if self.index is not None else {}}


def classification(probabilities: np.ndarray, labels: tuple[str, ...], below: float, *, k: int = 5) -> Classification:
    """Probabilities (classes,) ranked; equal ones keep the order of the classes."""
    order = np.argsort(-probabilities, kind="stable")[: max(k, 1)]
    ranked = [Prediction(labels[row], float(probabilities[row])) for row in order]
    return Classification(ranked, ranked[0].probability < below)
