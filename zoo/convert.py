"""Names elsewhere to our names: the only file that knows them."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from zoo.registry import SpecLike
from zoo.registry import spec as find_spec
from zoo.resnet import BatchNorm
from zoo.simclr import ProjectionLayer, SimCLR

_CLASSIFIER = "head_supervised/linear_layer/dense"
_EMA = "ema_model/"
_LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _is_training_state(name: str) -> bool:
    """Optimizer slots, the memory buffer and the step: in published files, of no use to a model."""
    return name.endswith("/Momentum") or "memory" in name or name == "global_step"


def tensorflow_names(model: SimCLR) -> Iterator[tuple[str, str]]:
    """(our name, TensorFlow's name) of every tensor. Convolutions and BNs are counted each for themselves."""
    convolutions = norms = 0
    for path, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            suffix = f"_{convolutions}" if convolutions else ""
            yield f"backbone.{path}.weight", f"base_model/conv2d{suffix}/kernel"
            convolutions += 1
        elif isinstance(module, BatchNorm):
            suffix = f"_{norms}" if norms else ""
            yield from _norm_names(f"backbone.{path}", f"base_model/batch_normalization{suffix}", module)
            norms += 1
    for k, layer in enumerate(model.projector.layers if model.projector is not None else ()):
        assert isinstance(layer, ProjectionLayer)
        yield f"projector.layers.{k}.dense.weight", f"head_contrastive/nl_{k}/dense/kernel"
        yield from _norm_names(f"projector.layers.{k}.norm", f"head_contrastive/nl_{k}/batch_normalization", layer.norm)
    if model.classifier is not None:
        yield "classifier.weight", f"{_CLASSIFIER}/kernel"
        yield "classifier.bias", f"{_CLASSIFIER}/bias"


def _norm_names(ours: str, theirs: str, norm: BatchNorm) -> Iterator[tuple[str, str]]:
    for leaf in norm.state_dict():
        yield f"{ours}.{leaf}", f"{theirs}/{_LEAVES[leaf]}"


def from_tensorflow_layout(array: np.ndarray) -> np.ndarray:
    """HWIO kernels to OIHW, (in, out) to (out, in); vectors stay."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_tensorflow_layout(array: np.ndarray) -> np.ndarray:
    """The inverse of ``from_tensorflow_layout``."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def tensorflow_state_dict(
    variables: Mapping[str, np.ndarray],
    spec: SpecLike,
    *,
    image_size: int = 224,
    classify_from: int = 0,
    ema: bool = False,
) -> dict[str, Tensor]:
    """Our state dict from TensorFlow variables, any mapping of names to arrays; each is read once, one at a time.

    Optimizer slots, ``ema_model/`` (unless ``ema``), memory and ``global_step`` are skipped. Without
    ``head_contrastive`` or ``head_supervised`` the state dict is that of a model without it.

    Raises ValueError, listing them, for any other unknown name, a missing name, or a shape that does not fit.
    """
    wanted_spec = find_spec(spec)
    names = set(variables)
    plain = {name for name in names if not name.startswith(_EMA) and not _is_training_state(name)}
    kernel = f"{_CLASSIFIER}/kernel"
    with torch.device("meta"):
        model = SimCLR(
            wanted_spec,
            num_classes=int(variables[kernel].shape[1]) if kernel in names else None,
            image_size=image_size,
            classify_from=classify_from,
            projector=any(name.startswith("head_contrastive/") for name in plain),
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    table = dict(tensorflow_names(model))

    def source(theirs: str) -> str:
        return _EMA + theirs if ema and not theirs.startswith("head_supervised/") else theirs

    missing = sorted(source(theirs) for theirs in table.values() if source(theirs) not in names)
    unknown = sorted(plain - set(table.values()))
    if missing or unknown:
        raise ValueError(
            f"These variables are not those of {wanted_spec.name} (image_size={image_size}): "
            f"missing {_listed(missing)}; unknown {_listed(unknown)}."
        )
    state: dict[str, Tensor] = {}
    misfits = []
    for ours, theirs in table.items():
        array = from_tensorflow_layout(np.asarray(variables[source(theirs)]))
        if array.shape != shapes[ours]:
            misfits.append(f"{source(theirs)} {to_tensorflow_layout(array).shape}")
        elif not misfits:
            state[ours] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if misfits:
        raise ValueError(f"Shapes that do not fit {wanted_spec.name}: {_listed(misfits)}. Is it another width?")
    return state


def _listed(items: list[str], most: int = 8) -> str:
    if not items:
        return "none"
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
