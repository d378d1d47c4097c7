"""What the app can do with models and a gallery: classify, embed, search, tell facts. Knows no user interface."""

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.batching import Batcher
from app.gallery import thumbnail
from app.index import Filter, Hit, Index
from app.places import Places, places
from app.uploads import Refused, read_upload, shown_name
from export.runtime import OnnxModel, softmax
from zoo.transforms import ImageLike, read_image

BUNDLED = "r18_1x.imagenette_distilled.onnx"
NONE_LIKELY = 0.5  # below even odds for its best class, the model is taken not to know; facts may say otherwise
NO_GALLERY = "There is no gallery to search; start the app with --gallery DIR."
MOST_EXAMPLES = 60  # gallery pictures that a search can start from
_READERS = 2  # pictures decoded at a time: one of 25 megapixels takes 75 MB for as long as that


class Prediction(NamedTuple):
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


class Classification(NamedTuple):
    """Classes, most probable first, and whether the best of them is below the threshold for being likely at all."""

    ranked: list[Prediction]
    none_likely: bool


class Picture(NamedTuple):
    """A picture read once: what each model takes, float32 or uint8, a small JPEG to show, and the SHA-256 of the file
    ("" if it came as an array)."""

    inputs: tuple[np.ndarray, ...]
    thumbnail: bytes
    id: str = ""


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
    """Models and, if there is one, a gallery; safe to use from many threads, whose pictures share the models' batches.

    The first model embeds, and it is the one that made the gallery; ``others`` classify beside it. When more than
    ``waiting`` pictures wait for a model, every method that needs it raises ``app.batching.Busy`` at once.
    """

    def __init__(
        self, model: OnnxModel, index: Index | None = None, *, others: Sequence[OnnxModel] = (), waiting: int = 64
    ) -> None:
        self.model, self.models, self.index = model, (model, *others), index
        self.names = _names(self.models)
        self.labels, self.none_likely_below = self.labels_of(), self.threshold_of()
        self._batchers = [Batcher(one, waiting=waiting) for one in self.models]
        self._places: tuple[int, Places] | None = None
        self._reading = threading.BoundedSemaphore(_READERS)

    def close(self) -> None:
        """Answer nobody any more; the index is closed too."""
        for batcher in self._batchers:
            batcher.close()
        if self.index is not None:
            self.index.close()

    # One picture

    def look(self, source: str | Path | bytes, *, name: str = "") -> Picture:
        """Read a stranger's file, once for all models. Raises app.uploads.Refused, in one line, for what is no picture,
        too large, or of another size than a model takes that does not resize."""
        content = Path(source).read_bytes() if isinstance(source, str | Path) else source
        name = name or (Path(source).name if isinstance(source, str | Path) else "")
        with self._reading:
            return self._seen(read_upload(content, name=name), hashlib.sha256(content).hexdigest(), name=name)

    def _seen(self, pixels: np.ndarray, digest: str = "", *, name: str = "") -> Picture:
        try:
            inputs = tuple(model.prepare(pixels) for model in self.models)
        except ValueError as error:  # of another size than a model takes that does not resize
            raise Refused("size", f"{shown_name(name)}: {error}") from None
        return Picture(inputs, thumbnail(pixels), digest)

    def _picture(self, image: "ImageLike | Picture") -> Picture:
        return image if isinstance(image, Picture) else self._seen(read_image(image))

    def classify(self, image: "ImageLike | Picture", *, k: int = 5, model: int = 0) -> Classification:
        """The ``k`` most probable classes, by the model of that number.

        Raises ValueError for an unreadable image or a model without classifier.
        """
        student = self.models[model]
        if not student.num_classes:
            raise ValueError(f"{student.path.name} has no classifier; it embeds only.")
        logits = self._batchers[model].submit(self._picture(image).inputs[model]).logits
        return classification(softmax(logits), self.labels_of(model), self.threshold_of(model), k=k)

    def embed(self, image: "ImageLike | Picture") -> np.ndarray:
        """Features (D,) in float32, not normalised. Raises ValueError for an unreadable image."""
        features: np.ndarray = self._batchers[0].submit(self._picture(image).inputs[0]).features
        return features

    # The gallery

    def search(self, image: "ImageLike | Picture", *, k: int = 12, where: Filter | None = None) -> list[Hit]:
        """The ``k`` most similar gallery pictures, without their thumbnails (``Index.thumbnail`` has them).

        Raises ValueError for an unreadable image, or without a gallery.
        """
        if self.index is None:
            raise ValueError(NO_GALLERY)
        return self.index.search(self.embed(image), k, where=where or Filter(), thumbnails=False)

    def similar(self, ids: Sequence[str], *, k: int = 12, where: Filter | None = None) -> list[Hit]:
        """The ``k`` gallery pictures most like these of the gallery, by the mean of their directions; without them.

        Raises ValueError without a gallery, or if none of them is in it.
        """
        if self.index is None:
            raise ValueError(NO_GALLERY)
        if len(ids) > MOST_EXAMPLES:
            raise ValueError(f"{len(ids)} pictures at a time are too many; give at most {MOST_EXAMPLES}.")
        found = self.vectors_of(ids)
        if not len(found):
            raise ValueError("These pictures are no longer in the gallery; choose others.")
        hits = self.index.search(found.mean(0), k + len(found), where=where or Filter(), thumbnails=False)
        return [hit for hit in hits if hit.id not in set(ids)][:k]

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, D) of those of these pictures that are in the gallery."""
        if self.index is None:
            return np.empty((0, self.model.feature_width), np.float32)
        return self.index.vectors_of(ids)

    def places(self) -> Places:
        """The gallery's folders, read anew when it has changed."""
        if self.index is None:
            return places(())
        version = self.index.version()
        if self._places is None or self._places[0] != version:
            self._places = version, places(self.index.folders())
        return self._places[1]

    # The models

    def labels_of(self, model: int = 0) -> tuple[str, ...]:
        """The names of a model's classes; numbers where it has none."""
        student = self.models[model]
        return student.labels or tuple(f"class {number}" for number in range(student.num_classes))

    def threshold_of(self, model: int = 0) -> float:
        """``none_likely_below`` of the model's facts, else 0.5."""
        threshold = self.models[model].facts.get("none_likely_below", NONE_LIKELY)
        return float(threshold) if isinstance(threshold, int | float) else NONE_LIKELY

    def speed(self, *, model: int = 0, seconds: float = 1.0) -> dict[str, float]:
        """Milliseconds of one picture and pictures a second in batches of 16, on this machine now."""
        student = self.models[model]
        size = student.image_size
        grey = student.prepare(np.full((size, size, 3), 128, np.uint8))
        return {
            "milliseconds": round(_seconds(student, grey[None], seconds / 2) * 1e3, 2),
            "images_per_second": round(16 / _seconds(student, np.stack([grey] * 16), seconds / 2), 1),
        }

    def facts(self, model: int = 0) -> dict[str, dict[str, Any]]:
        """What is known of a model and the gallery, for people; plain values."""
        student = self.models[model]
        about = {
            "architecture": student.architecture,
            "image_size": f"{student.image_size} x {student.image_size}",
            "classes": student.num_classes,
            "feature_width": student.feature_width,
            "weights": student.weights,
            "file": student.path.name,
            "file_size": f"{student.file_bytes / 1e6:.1f} MB",
            "sha256": student.fingerprint,
            "preprocessing": student.preprocessing,
        }
        return {"model": about, "facts": student.facts, "gallery": self.index.facts() if self.index is not None else {}}


def classification(probabilities: np.ndarray, labels: tuple[str, ...], below: float, *, k: int = 5) -> Classification:
    """Probabilities (classes,) ranked; equal ones keep the order of the classes."""
    order = np.argsort(-probabilities, kind="stable")[: max(k, 1)]
    ranked = [Prediction(labels[row], float(probabilities[row])) for row in order]
    return Classification(ranked, ranked[0].probability < below)


def _names(models: Sequence[OnnxModel]) -> tuple[str, ...]:
    """A short name for each model: its file's, with a number where two are called the same."""
    stems = [model.path.stem for model in models]
    return tuple(
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: row + 1].count(stem)})" for row, stem in enumerate(stems)
    )


def _seconds(model: OnnxModel, batch: np.ndarray, budget: float) -> float:
    """The median time of a run."""
    times: list[float] = []
    model(batch)
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
