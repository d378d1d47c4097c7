"""From torch to ONNX: batch norms folded, weights rounded if wanted, and the result checked against torch first."""

import contextlib
import copy
import dataclasses
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn, get_args

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from export.runtime import FORMAT
from zoo.files import written_whole
from zoo.model_file import weights_sha256
from zoo.resnet import BatchNorm, ConvNorm
from zoo.simclr import ProjectionLayer, SimCLR

Weights = Literal["fp32", "fp16"]

OPSET = 20
TOLERANCE = 1e-4  # of the largest absolute value of an output
BATCHES = (1, 2, 7)
MOST_BYTES = 2**31 - 2**20  # protobuf's limit for one file, less the graph itself
PREPROCESSING = (
    "simclrv2-eval-1: central crop of 87.5 % of the shorter side, TensorFlow 1 bicubic resize to image_size "
    "(none for sizes up to 32), values in [0, 1], RGB, no mean or deviation taken out (zoo.preprocess)."
)


class ParityError(ValueError):
    """onnxruntime and torch differ by more than the tolerance; nothing was written."""


def to_onnx(model: SimCLR, path: str | Path, *, weights: Weights = "fp32") -> Path:
    """Write a model as one ONNX file (opset 20): input ``images`` float32 (N, 3, S, S) in [0, 1], outputs ``features``
    and, with a classifier, ``logits``. N is free.

    ``weights="fp16"`` stores convolution and dense weights in half the bytes; the computation stays in float32. Labels,
    preprocessing, architecture and facts travel in the file's metadata. The file is checked on batches of 1, 2 and 7
    generated images before it appears.

    Raises ValueError for a model that does not fit a single file or float16, and ParityError (a ValueError) when
    onnxruntime's outputs differ from torch's, with the same rounded weights, by more than 1e-4 of the largest.
    """
    path = Path(path)
    if weights not in get_args(Weights):
        raise ValueError(f"Unknown weights {weights!r}. Choose from: {', '.join(get_args(Weights))}.")
    if model.classes and len(model.classes) != model.num_classes:
        raise ValueError(f"The model has {len(model.classes)} class names for {model.num_classes} classes.")
    stored = sum(tensor.numel() for tensor in _parameters_used(model)) * (2 if weights == "fp16" else 4)
    if stored > MOST_BYTES:
        raise ValueError(f"{model.spec.name} needs {stored / 1e9:.1f} GB; a single ONNX file holds at most 2.1 GB.")
    inference = fold_batch_norms(model)
    if weights == "fp16":
        round_to_half(inference)
    proto = _export(inference)
    if weights == "fp16":
        _store_half(proto)
    for key, value in metadata(model, weights).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    with written_whole(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        check_parity(inference, temporary)
    return path


def _parameters_used(model: SimCLR) -> Iterator[Tensor]:
    yield from model.backbone.parameters()
    if model.classifier is not None:
        yield from model.classifier.parameters()
        for layer in list(model.projector.layers)[: model.classify_from] if model.projector is not None else ():
            yield from layer.parameters()


def fold_batch_norms(model: SimCLR) -> SimCLR:
    """A copy for inference on the CPU in float32: batch norms folded into what they follow (computed in float64), and
    without projection layers that no output needs."""
    inference = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    used = inference.classify_from if inference.classifier is not None else 0
    if inference.projector is not None:
        inference.projector.layers = inference.projector.layers[:used]
    if not used:
        inference.projector = None
    for module in list(inference.modules()):
        if isinstance(module, ConvNorm):
            _fold(module.conv, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, ProjectionLayer):
            _fold(module.dense, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
    left = [name for name, module in inference.named_modules() if isinstance(module, BatchNorm)]
    assert not left, f"batch norms not folded: {left}"
    return inference


def _fold(layer: nn.Conv2d | nn.Linear, norm: BatchNorm) -> None:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)  # (out,)
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift += norm.bias.double()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(shift.float(), requires_grad=False)


def round_to_half(model: nn.Module) -> None:
    """Round the weights (not the biases) of convolutions and dense layers to what float16 can hold, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rounded = module.weight.half().float()
            if not torch.isfinite(rounded).all():
                raise ValueError(
                    f"{name} has weights up to {module.weight.abs().max():.3g}, beyond float16; use weights='fp32'."
                )
            module.weight = nn.Parameter(rounded, requires_grad=False)


class _Named(nn.Module):
    """The model with a plain tuple of outputs, in the order of ``_output_names``."""

    def __init__(self, model: SimCLR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.model(images)
        return (features,) if logits is None else (logits, features)


def _output_names(model: SimCLR) -> list[str]:
    return ["features"] if model.classifier is None else ["logits", "features"]


def _export(model: SimCLR) -> onnx.ModelProto:
    example = torch.zeros(2, 3, model.image_size, model.image_size)
    with _quiet():
        program = torch.onnx.export(
            _Named(model),
            (example,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=_output_names(model),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    found = {entry.domain: entry.version for entry in proto.opset_import}
    if found != {"": OPSET}:  # torch writes another opset than asked for when a conversion fails
        raise ValueError(f"torch {torch.__version__} wrote opsets {found}, not {OPSET}; try another torch.")
    proto.producer_name = "simclrv2"
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # torch notes stack traces there: bulk, and paths of this machine
        part.doc_string = ""
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No chatter from torch's exporter: it warns, logs and prints about its own insides."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _store_half(proto: onnx.ModelProto) -> None:
    """Weights (initializers with two or more axes) as float16, each behind a Cast to float32; no value changes."""
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        assert np.array_equal(half.astype(np.float32), values), f"{tensor.name} was not rounded"
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.fp16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = casts + list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    stale = {f"{cast.output[0]}.fp16" for cast in casts} | {cast.output[0] for cast in casts}
    kept = [value for value in proto.graph.value_info if value.name not in stale]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)


def metadata(model: SimCLR, weights: Weights) -> dict[str, str]:
    """What the file says of itself, all strings."""
    return {
        "format": FORMAT,
        "architecture": model.spec.name,
        "spec": json.dumps(dataclasses.asdict(model.spec)),
        "image_size": str(model.image_size),
        "preprocessing": PREPROCESSING,
        "labels": json.dumps(list(model.classes), ensure_ascii=False),
        "classify_from": str(model.classify_from),
        "weights": weights,
        "weights_sha256": weights_sha256(model),
        "facts": json.dumps(model.facts, ensure_ascii=False, sort_keys=True),
        "licence": str(model.facts.get("licence", "unknown")),
    }


def textures(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Generated images, float32 (count, 3, size, size) in [0, 1]: waves of every scale in colours, with some noise."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(0, 1, size, dtype=np.float32)
    y, x = grid[:, None], grid[None, :]
    images = np.empty((count, 3, size, size), np.float32)
    for image in images:
        image[:] = 0.5 + 0.05 * generator.standard_normal((3, size, size))
        for _ in range(6):
            across, down = generator.normal(0, 2.0 ** generator.integers(1, 6), 2)
            wave = np.sin(2 * np.pi * (across * x + down * y) + generator.uniform(0, 7))
            image += generator.uniform(-0.2, 0.2, (3, 1, 1)) * wave
    return images.clip(0, 1)


def check_parity(model: SimCLR, path: Path) -> None:
    """Raise ParityError, with the figures, if onnxruntime and torch differ on batches of 1, 2 and 7."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    for count in BATCHES:
        images = textures(count, model.image_size, seed=count)
        with torch.inference_mode():
            wanted = _Named(model)(torch.from_numpy(images))
        found = session.run(_output_names(model), {"images": images})
        for name, expected, actual in zip(_output_names(model), wanted, found, strict=True):
            reference = expected.numpy()
            if actual.shape != reference.shape:
                raise ParityError(f"{name} has shape {actual.shape}, torch's {reference.shape}, at batch {count}.")
            difference = float(np.abs(actual.astype(np.float64) - reference).max())
            largest = float(np.abs(reference).max())
            if not difference <= TOLERANCE * largest:  # NaN fails too
                _refuse(name, count, difference, largest)


def _refuse(name: str, count: int, difference: float, largest: float) -> NoReturn:
    raise ParityError(
        f"onnxruntime's {name} differ from torch's by {difference:.3g} at batch {count} (largest {largest:.3g}, "
        f"allowed {TOLERANCE:g} of it). Nothing was written."
    )
