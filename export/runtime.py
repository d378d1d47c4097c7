"""An exported model at work: numpy in, numpy out, on onnxruntime; no torch."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime
from PIL import Image

from export.wire import refuse_unsafe
from zoo.transforms import ImageLike, preprocess

FORMAT = "simclrv2-1"  # metadata `format` of the files that export.to_onnx writes
CHUNK = 32  # images a run: bounds the memory of long lists

Images: TypeAlias = "ImageLike | Sequence[ImageLike] | np.ndarray"


class Output(NamedTuple):
    """What a model returns: features (N, D), and logits (N, classes) or None without a classifier; float32."""

    features: np.ndarray
    logits: np.ndarray | None


class OnnxModel:
    """A file that ``export.to_onnx`` wrote, ready to classify and embed.

    ``threads``: of onnxruntime, None for its own choice. ``providers``: onnxruntime's execution providers, the CPU
    unless named. Attributes: ``path``, ``architecture``, ``image_size``, ``preprocessing``, ``labels`` (may be empty),
    ``feature_width``, ``num_classes`` (0 without a classifier), ``facts``, ``fingerprint`` (SHA-256 of the file),
    ``file_bytes``.

    Raises ValueError, in one line, for a file that is missing, damaged, not ours, or that reaches outside itself.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file.") from None
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
        refuse_unsafe(content, self.path)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.file_bytes = len(content)
        self._session = _session(content, self.path, threads, providers)
        meta = self._session.get_modelmeta().custom_metadata_map
        if meta.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a model of this project (metadata 'format' is {meta.get('format')!r}, not {FORMAT!r}); "
                "write one with `simclr export`."
            )
        try:
            self.architecture: str = meta["architecture"]
            self.image_size = int(meta["image_size"])
            self.preprocessing: str = meta["preprocessing"]
            self.labels: tuple[str, ...] = tuple(map(str, json.loads(meta["labels"])))
            self.facts: dict[str, Any] = dict(json.loads(meta["facts"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its metadata is damaged ({type(error).__name__}: {error}).") from None
        self.feature_width, self.num_classes = self._check_shapes()

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r}: {self.architecture}, {self.image_size} px, {self.num_classes} classes)"

    def __call__(self, batch: np.ndarray) -> Output:
        """Preprocessed images, float32 (N, 3, S, S) in [0, 1], to features and logits."""
        size = self.image_size
        if batch.dtype != np.float32 or batch.shape[1:] != (3, size, size):
            raise ValueError(
                f"A batch for this model is float32 of shape (N, 3, {size}, {size}), "
                f"not {batch.dtype} of shape {batch.shape}; zoo.preprocess(image, {size}) makes one image."
            )
        classes = self.num_classes
        if len(batch) == 0:
            logits = np.empty((0, classes), np.float32) if classes else None
            return Output(np.empty((0, self.feature_width), np.float32), logits)
        names = ["features", "logits"] if classes else ["features"]
        outputs = self._session.run(names, {"images": np.ascontiguousarray(batch)})
        return Output(outputs[0], outputs[1] if classes else None)

    def embed(self, images: Images) -> np.ndarray:
        """Features (N, D) in float32, not normalised. ``images`` as for ``classify``."""
        parts = [self(batch).features for batch in self._batches(images)]
        return np.concatenate(parts) if parts else np.empty((0, self.feature_width), np.float32)

    def classify(self, images: Images) -> np.ndarray:
        """Probabilities (N, classes) in float32, in the order of ``labels``.

        ``images``: one image or a sequence of them (path, PIL image or uint8 array), or a preprocessed float32 batch
        (N, 3, S, S). Raises ValueError for an unreadable image, or when the model has no classifier.
        """
        if not self.num_classes:
            raise ValueError(f"{self.path} has no classifier; it embeds only. Export a fine-tuned or distilled model.")
        parts = [softmax(logits) for batch in self._batches(images) if (logits := self(batch).logits) is not None]
        return np.concatenate(parts) if parts else np.empty((0, self.num_classes), np.float32)

    def _batches(self, images: Images) -> Iterator[np.ndarray]:
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            if images.ndim != 4:
                raise ValueError(f"A preprocessed batch has shape (N, 3, S, S), not {images.shape}.")
            for start in range(0, len(images), CHUNK):
                yield images[start : start + CHUNK]
            return
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        for start in range(0, len(images), CHUNK):
            yield np.stack([preprocess(image, self.image_size) for image in images[start : start + CHUNK]])

    def _check_shapes(self) -> tuple[int, int]:
        """(feature width, number of classes), once the graph is what the metadata say."""
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        size = self.image_size
        shape = inputs.get("images")
        if set(inputs) != {"images"} or len(shape or ()) != 4 or list(shape or ())[1:] != [3, size, size]:
            raise ValueError(f"{self.path}: its input is {inputs}, not images (N, 3, {size}, {size}).")
        widths = {
            name: dims[1] for name, dims in outputs.items() if len(dims) == 2 and isinstance(dims[1], int) and dims[1]
        }
        if set(widths) != set(outputs) or set(widths) not in ({"features"}, {"features", "logits"}):
            raise ValueError(f"{self.path}: its outputs are {outputs}, not features (N, D) and logits (N, classes).")
        classes = widths.get("logits", 0)
        if self.labels and len(self.labels) != classes:
            raise ValueError(f"{self.path}: {len(self.labels)} labels for {classes} classes.")
        return widths["features"], classes


def _session(
    content: bytes, path: Path, threads: int | None, providers: Sequence[str] | None
) -> "onnxruntime.InferenceSession":
    known = onnxruntime.get_available_providers()
    unknown = [name for name in providers or () if name not in known]
    if unknown:
        raise ValueError(f"Unknown onnxruntime provider {unknown[0]!r}. Choose from: {', '.join(known)}.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores free
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(content, options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: onnxruntime cannot load it ({reason}).") from None


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
