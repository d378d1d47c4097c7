"""An exported model at work: numpy in, numpy out, on onnxruntime; no torch. Pillow only for pictures that are files."""

import hashlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime

from export import selftest
from export.selftest import self_test_images as self_test_images
from export.wire import Contents, read_external, refuse_unsafe, shown
from zoo.transforms import CROP_FRACTION, ImageLike, preprocess

FORMAT = "simclrv2-2"  # metadata `format` of what is written
FIRST_FORMAT = "simclrv2-1"  # of the files of version 0.2 and before: float input, no self-test
CHUNK = 32  # images a run: bounds the memory of long lists
LARGEST_IMAGE = 4096  # pixels; beyond that a file is a mistake or an attack
_MOST_BYTES = 2**31  # of one protobuf file
_OUTPUTS = ("features", "logits", "projections")

Images: TypeAlias = "ImageLike | Sequence[ImageLike] | np.ndarray"


class Output(NamedTuple):
    """What a model returns, float32: features (N, D), logits (N, classes) or None without a classifier, projections
    (N, 128) or None without a projector."""

    features: np.ndarray
    logits: np.ndarray | None
    projections: np.ndarray | None


class OnnxModel:
    """A file that ``export.to_onnx`` wrote, ready to classify and embed.

    ``threads``: of onnxruntime, None for its own choice. ``providers``: onnxruntime's execution providers, the CPU
    unless named. Attributes: ``path``, ``architecture``, ``image_size``, ``preprocessing``, ``labels`` (may be empty),
    ``feature_width``, ``num_classes`` and ``projection_width`` (0 without), ``image_input`` ("float" or "uint8": what
    the graph takes), ``weights`` ("fp32", "fp16" or "int8"), ``facts``, ``accuracy`` ("source" and "measured"),
    ``fingerprint`` (SHA-256 of the file, which holds that of its external data) and ``file_bytes`` (with it).

    The file's self-test is run before the model is handed out. Raises ValueError, in one line, for a file that is
    missing, damaged, not ours, that reaches outside itself, or that answers differently on this machine.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        content = _read(self.path)
        contents = refuse_unsafe(content, self.path)
        external = read_external(self.path, contents)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.file_bytes = len(content) + (len(external[1]) if external else 0)
        self._read_metadata(contents)
        self._session = _session(content, external, self.path, threads, providers)
        del content, external
        self._widths = self._check_shapes()
        self.feature_width = self._widths["features"]
        self.num_classes, self.projection_width = self._widths.get("logits", 0), self._widths.get("projections", 0)
        if self.labels and len(self.labels) != self.num_classes:
            raise ValueError(f"{self.path}: {len(self.labels)} labels for {self.num_classes} classes.")
        self._replay(contents.metadata)

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r}: {self.architecture}, {self.image_size} px, {self.num_classes} classes)"

    def __call__(self, batch: np.ndarray) -> Output:
        """Preprocessed images, float32 (N, 3, S, S) in [0, 1] or uint8 (N, S, S, 3), to features, logits, projections.

        Either kind goes with every file: for one that takes uint8, float values are multiplied by 255 and rounded
        (half to even). Raises ValueError for another shape or type.
        """
        size = self.image_size
        kind, shape = str(getattr(batch, "dtype", type(batch).__name__)), getattr(batch, "shape", ())
        if len(shape) != 4 or (kind, *shape[1:]) not in (("float32", 3, size, size), ("uint8", size, size, 3)):
            raise ValueError(
                f"A batch for this model is float32 of shape (N, 3, {size}, {size}) or uint8 of shape "
                f"(N, {size}, {size}, 3), not {kind} of shape {shape}; zoo.preprocess(image, {size}) makes one image."
            )
        if len(batch) == 0:
            empty = {name: np.empty((0, width), np.float32) for name, width in self._widths.items()}
            return Output(*[empty.get(name) for name in _OUTPUTS])  # type: ignore[arg-type]
        found = self._run(self._as_input(batch))
        return Output(*[found.get(name) for name in _OUTPUTS])  # type: ignore[arg-type]

    def embed(self, images: Images) -> np.ndarray:
        """Features (N, D) in float32, not normalised. ``images`` as for ``classify``."""
        parts = [self(batch).features for batch in self._batches(images)]
        return np.concatenate(parts) if parts else np.empty((0, self.feature_width), np.float32)

    def classify(self, images: Images) -> np.ndarray:
        """Probabilities (N, classes) in float32, in the order of ``labels``.

        ``images``: one image or a sequence of them (path, PIL image or uint8 array (H, W, 3)), or a preprocessed
        float32 batch (N, 3, S, S). Raises ValueError for an unreadable image, or when the model has no classifier.
        """
        if not self.num_classes:
            raise ValueError(f"{self.path} has no classifier; it embeds only. Export a fine-tuned or distilled model.")
        parts = [softmax(logits) for batch in self._batches(images) if (logits := self(batch).logits) is not None]
        return np.concatenate(parts) if parts else np.empty((0, self.num_classes), np.float32)

    def prepare(self, image: ImageLike) -> np.ndarray:
        """One image, float32 (3, S, S) in [0, 1], as this file's metadata say. Raises ValueError if it is unreadable,
        or of another size where the model has no resize."""
        return preprocess(image, self.image_size, crop=self._crop)

    def _batches(self, images: Images) -> Iterator[np.ndarray]:
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            if images.ndim != 4:
                raise ValueError(f"A preprocessed batch has shape (N, 3, S, S), not {images.shape}.")
            for start in range(0, len(images), CHUNK):
                yield images[start : start + CHUNK]
            return
        several = _several(images)
        for start in range(0, len(several), CHUNK):
            yield np.stack([self.prepare(image) for image in several[start : start + CHUNK]])

    def _as_input(self, batch: np.ndarray) -> np.ndarray:
        """Either kind of batch as what the graph takes. Raises ValueError for float values beyond 0 to 1, or none."""
        if batch.dtype == np.float32 and not (batch.min() >= -0.01 and batch.max() <= 1.01):  # NaN too
            raise ValueError(f"A float batch has values from 0 to 1, not {batch.min():.4g} to {batch.max():.4g}.")
        if (self.image_input == "uint8") == (batch.dtype == np.uint8):
            return np.ascontiguousarray(batch)
        if batch.dtype == np.uint8:
            return np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
        levels = np.rint(batch * np.float32(255)).clip(0, 255)
        return np.ascontiguousarray(levels.transpose(0, 2, 3, 1), dtype=np.uint8)

    def _run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        try:
            found = self._session.run(list(self._widths), {"images": batch})
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ValueError(f"{self.path}: onnxruntime cannot run it ({_reason(error)}).") from None
        return dict(zip(self._widths, found, strict=True))

    def _read_metadata(self, contents: Contents) -> None:
        meta = contents.metadata
        told = meta.get("format")
        if told not in (FIRST_FORMAT, FORMAT):
            raise ValueError(
                f"{self.path}: not a model of this project (metadata 'format' is "
                f"{told if told is None else repr(shown(told))}, not {FIRST_FORMAT!r} or {FORMAT!r}); write one with "
                "`simclr export`, or update simclrv2 if it is a newer one's."
            )
        try:
            self.architecture: str = meta["architecture"]
            self.image_size = _image_size(meta["image_size"])
            self.preprocessing: str = meta["preprocessing"]
            self.labels: tuple[str, ...] = _labels(meta["labels"])
            self.facts: dict[str, Any] = _object(meta["facts"])
            self.weights = _one_of(
                meta["weights"] if told == FORMAT else meta.get("weights", "fp32"), tuple(selftest.TOLERANCE)
            )
            self.image_input = _one_of(meta["image_input"] if told == FORMAT else "float", ("float", "uint8"))
            self.accuracy: dict[str, Any] = {"source": self.facts.get("accuracy") or {}, "measured": {}}
            self._crop: float | None = CROP_FRACTION
            if told == FORMAT:
                self.accuracy |= _object(meta["accuracy"])
                self._crop = _crop(meta["preprocess"], self.image_size)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{self.path}: its metadata is damaged ({shown(reason, most=200)}).") from None

    def _check_shapes(self) -> dict[str, int]:
        """The outputs and their widths, once the graph is what the metadata say."""
        inputs = {value.name: (value.type, value.shape) for value in self._session.get_inputs()}
        outputs = {value.name: (value.type, value.shape) for value in self._session.get_outputs()}
        size = self.image_size
        kind, wanted = (
            ("tensor(uint8)", [size, size, 3]) if self.image_input == "uint8" else ("tensor(float)", [3, size, size])
        )
        found, shape = inputs.get("images", ("", []))
        if len(inputs) != 1 or found != kind or len(shape) != 4 or shape[1:] != wanted or isinstance(shape[0], int):
            asked = ", ".join(map(str, wanted))
            raise ValueError(f"{self.path}: its input is {shown(str(inputs))}, not images (N, {asked}), {kind}.")
        widths = {
            name: shape[1]
            for name, (kind, shape) in outputs.items()
            if kind == "tensor(float)" and len(shape) == 2 and isinstance(shape[1], int) and 0 < shape[1] < 2**20
        }
        if set(widths) != set(outputs) or "features" not in widths or not set(widths) <= set(_OUTPUTS):
            raise ValueError(
                f"{self.path}: its outputs are {shown(str(outputs), most=200)}, not features (N, D) and logits "
                "(N, classes) or projections (N, P)."
            )
        return widths

    def _replay(self, meta: dict[str, str]) -> None:
        """Refuse a machine that answers differently from the one that wrote the file."""
        if meta["format"] == FIRST_FORMAT:  # has none
            return
        try:
            expected = selftest.expected_outputs(meta.get("self_test", ""), self._widths)
        except ValueError as error:
            raise ValueError(f"{self.path}: its self-test is damaged ({error}); export it again.") from None
        share = selftest.TOLERANCE[self.weights]
        differs = selftest.difference(
            expected, lambda images: self._run(self._as_input(images)), self.image_size, share
        )
        if differs:
            raise ValueError(
                f"{self.path}: refused, it answers differently on this machine than where it was written: {differs}; "
                f"onnxruntime {onnxruntime.__version__} with {', '.join(self._session.get_providers())}. Try "
                "providers=['CPUExecutionProvider'], another onnxruntime, or export it with weights='fp32'."
            )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# ---- the file --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ValueError(f"{path}: {'a folder' if path.is_dir() else 'not a regular file'}; name an .onnx file.")
        if state.st_size > _MOST_BYTES:
            raise ValueError(
                f"{path}: {state.st_size / 1e9:.1f} GB is more than an ONNX file can have; not one of `simclr export`."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None


def _session(
    content: bytes,
    external: tuple[str, bytes] | None,
    path: Path,
    threads: int | None,
    providers: Sequence[str] | None,
) -> "onnxruntime.InferenceSession":
    if isinstance(providers, str):
        raise ValueError(f"providers={providers!r}: give a list of names, such as [{providers!r}].")
    known = onnxruntime.get_available_providers()
    unknown = [name for name in providers or () if name not in known]
    if unknown:
        raise ValueError(f"Unknown onnxruntime provider {unknown[0]!r}. Choose from: {', '.join(known)}.")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads is {threads!r}; it must be 1 or more, or None for onnxruntime's own choice.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, and told once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores free
    if threads is not None:
        options.intra_op_num_threads = threads
    if external is not None:  # by its bytes: what was hashed is what is used, and nothing else is opened
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise ValueError(
                f"{path}: its weights lie in {external[0]}, which onnxruntime {onnxruntime.__version__} cannot take; "
                "update it: pip install --upgrade onnxruntime."
            )
        options.add_external_initializers_from_files_in_memory([external[0]], [external[1]], [len(external[1])])
    try:
        return onnxruntime.InferenceSession(content, options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ValueError(f"{path}: onnxruntime cannot load it ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__, most=200)


# ---- the metadata, which may hold anything ---------------------------------------------------------------------------


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{shown(text)} is not an object")
    return found


def _labels(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ValueError(f"labels are {shown(text)}, not a list of texts")
    return tuple(found)


def _image_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= LARGEST_IMAGE:
        raise ValueError(f"image_size is {shown(text)}, not 1 to {LARGEST_IMAGE}")
    return int(text)


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(f"{shown(text)!r} is none of {', '.join(choices)}")
    return text


def _crop(text: str, size: int) -> float | None:
    """The share of the shorter side that the crop keeps, None for images that must have the size already."""
    told = _object(text)
    crop, resize = told.get("crop"), told.get("resize")
    if told != {"crop": crop, "resize": resize, "channels": "RGB", "range": [0, 1]}:
        raise ValueError(f"preprocess is {shown(text, most=120)}; update simclrv2 if it is a newer one's")
    if crop is None and resize is None:
        return None
    if resize != "tf1-bicubic" or size <= 32 or not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise ValueError(f"preprocess is {shown(text, most=120)}; update simclrv2 if it is a newer one's")
    return float(crop)


def _several(images: Any) -> Sequence[ImageLike]:
    """One image, or a sequence of them, as a sequence."""
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        return [images]
    if hasattr(images, "getbands"):  # a PIL image; asked this way, Pillow need not be there
        return [images]
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__") or isinstance(images, dict | bytes):
        raise ValueError(
            f"Images are paths, PIL images, uint8 arrays (H, W, 3), or a list of them, not {type(images).__name__}."
        )
    return images
