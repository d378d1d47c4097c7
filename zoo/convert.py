"""Names elsewhere (TensorFlow's, a PyTorch port's, torchvision's) to our names: the only file that knows them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zoo.registry import BLOCKS, Spec, SpecLike
from zoo.registry import spec as find_spec
from zoo.resnet import BatchNorm, Bottleneck, ConvNorm, Residual, SelectiveKernel
from zoo.simclr import ProjectionLayer, SimCLR

Shape = tuple[int, ...]
Names = Iterator[tuple[str, str]]  # (ours, theirs)

# TensorFlow

_CLASSIFIER = "head_supervised/linear_layer/dense"
_EMA = "ema_model/"
_LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _is_training_state(name: str) -> bool:
    """Optimizer slots, the memory buffer and the step: in published files, of no use to a model."""
    return name.endswith("/Momentum") or "memory" in name or name == "global_step"


def tensorflow_names(model: SimCLR) -> Names:
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


def _norm_names(ours: str, theirs: str, norm: BatchNorm) -> Names:
    for leaf in norm.state_dict():
        yield f"{ours}.{leaf}", f"{theirs}/{_LEAVES[leaf]}"


def from_tensorflow_layout(array: np.ndarray) -> np.ndarray:
    """HWIO kernels to OIHW, (in, out) to (out, in); vectors stay. A view."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_tensorflow_layout(array: np.ndarray) -> np.ndarray:
    """The inverse of ``from_tensorflow_layout``. A view."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


# The PyTorch port behind lightly-ai/simclrv2-imagenet1k-* and VISSL's converted file: {"resnet": ..., "head": ...}.
# Its names, as published files have them; here the head's carry "head." in front.


def port_names(model: SimCLR) -> Names:
    """(our name, the port's name) of every tensor."""
    for index, layer in enumerate(model.backbone.stem.layers):
        assert isinstance(layer, ConvNorm)
        yield from _pair(f"stem.layers.{index}", layer, f"net.0.{2 * index}", f"net.0.{2 * index + 1}.0")
    for ours, theirs, block in _blocks(model, "net.{group}.blocks.{index}"):
        if block.shortcut is not None:
            pooled = isinstance(block.shortcut, nn.Sequential)
            path = f"{ours}.shortcut" + (".1" if pooled else "")
            layer = block.get_submodule("shortcut.1" if pooled else "shortcut")
            kernel = f"{theirs}.projection.shortcut" + (".2" if pooled else "")
            yield from _pair(path, layer, kernel, f"{theirs}.projection.bn.0")
        position = 0
        for name, part in block.named_children():
            if isinstance(part, SelectiveKernel):
                net = f"{theirs}.net.{position}"
                yield from _pair(f"{ours}.{name}.streams", part.streams, f"{net}.main_conv.0", f"{net}.main_conv.1.0")
                mixing = f"{net}.mixing_conv"
                yield from _pair(f"{ours}.{name}.squeeze", part.squeeze, f"{mixing}.0", f"{mixing}.1.0")
                yield f"backbone.{ours}.{name}.choose.weight", f"{mixing}.2.weight"
                position += 1
            elif name != "shortcut":
                net = f"{theirs}.net"
                yield from _pair(f"{ours}.{name}", part, f"{net}.{position}", f"{net}.{position + 1}.0")
                position += 2
    for k, layer in enumerate(model.projector.layers if model.projector is not None else ()):
        assert isinstance(layer, ProjectionLayer)
        yield f"projector.layers.{k}.dense.weight", f"head.layers.{3 * k}.weight"
        for leaf in layer.norm.state_dict():
            yield f"projector.layers.{k}.norm.{leaf}", f"head.layers.{3 * k + 1}.{leaf}"
    yield from _classifier_names(model)


def torchvision_names(model: SimCLR) -> Names:
    """(our name, torchvision's) of a ResNet of width 1 without selective kernels.

    Raises ValueError for any other model: torchvision has no network for it.
    """
    spec = model.spec
    if spec.sk or spec.width != 1 or spec.depth not in (50, 101, 152) or not model.backbone.stem.pool:
        raise ValueError(
            f"torchvision has no network for {spec.name} (image_size={model.image_size}); it has r50_1x, r101_1x and "
            f"r152_1x, with the stem for images over 32 pixels."
        )
    if model.classifier is not None and model.classify_from:
        raise ValueError(
            f"This classifier reads projection layer {model.classify_from}, which torchvision's network has not; "
            f"leave it out with num_classes=0 (--num-classes 0)."
        )
    yield from _pair("stem.layers.0", model.backbone.stem.layers[0], "conv1", "bn1")
    for ours, theirs, block in _blocks(model, "layer{group}.{index}"):
        if block.shortcut is not None:
            yield from _pair(f"{ours}.shortcut", block.shortcut, f"{theirs}.downsample.0", f"{theirs}.downsample.1")
        for k in (1, 2, 3):
            yield from _pair(f"{ours}.conv{k}", getattr(block, f"conv{k}"), f"{theirs}.conv{k}", f"{theirs}.bn{k}")
    yield from _classifier_names(model)


def _blocks(model: SimCLR, template: str) -> Iterator[tuple[str, str, Bottleneck | Residual]]:
    for group, blocks in enumerate(model.backbone.groups):
        assert isinstance(blocks, nn.Sequential)
        for index, block in enumerate(blocks):
            assert isinstance(block, Bottleneck | Residual)
            theirs = template.format(group=group + 1, index=index)
            yield f"groups.{group}.{index}", theirs, block


def _pair(ours: str, layer: nn.Module, kernel: str, norm: str) -> Names:
    """A convolution and its BN."""
    assert isinstance(layer, ConvNorm)
    yield f"backbone.{ours}.conv.weight", f"{kernel}.weight"
    for leaf in layer.norm.state_dict():
        yield f"backbone.{ours}.norm.{leaf}", f"{norm}.{leaf}"


def _classifier_names(model: SimCLR) -> Names:
    if model.classifier is not None:
        yield "classifier.weight", "fc.weight"
        yield "classifier.bias", "fc.bias"


# What to read for a model


@dataclass(frozen=True)
class Layout:
    """How a foreign source names and lays out tensors."""

    name: str
    names: Callable[[SimCLR], Names]
    arrange: Callable[[np.ndarray], np.ndarray]  # theirs to our axis order, a view
    restore: Callable[[np.ndarray], np.ndarray]  # and back
    backbone: tuple[str, str]  # a backbone kernel's name starts and ends so
    stem: str  # the first kernel
    classifier: str  # its kernel
    head: str  # the projection head's names start so
    ignored: Callable[[str], bool]

    def our_shape(self, theirs: Shape) -> Shape:
        """The shape with our axis order."""
        return self.arrange(np.broadcast_to(np.float32(0), theirs)).shape

    def their_shape(self, ours: Shape) -> Shape:
        """The shape with their axis order."""
        return self.restore(np.broadcast_to(np.float32(0), ours)).shape


TENSORFLOW = Layout(
    name="TensorFlow checkpoint",
    names=tensorflow_names,
    arrange=from_tensorflow_layout,
    restore=to_tensorflow_layout,
    backbone=("base_model/conv2d", "/kernel"),
    stem="base_model/conv2d/kernel",
    classifier=f"{_CLASSIFIER}/kernel",
    head="head_contrastive/",
    ignored=lambda name: name.startswith(_EMA) or _is_training_state(name),
)
LAST_BETA = "head.layers.7.bias"  # the port gives the last BN of the head a beta, which it leaves at zero
PORT = Layout(
    name="PyTorch port",
    names=port_names,
    arrange=lambda array: array,
    restore=lambda array: array,
    backbone=("net.", ".weight"),
    stem="net.0.0.weight",
    classifier="fc.weight",
    head="head.",
    ignored=lambda name: name.endswith("num_batches_tracked") or name == LAST_BETA,
)


@dataclass(frozen=True)
class Plan:
    """What to read from a source for a model: our names, in our order, with theirs."""

    model: SimCLR  # on the meta device
    sources: dict[str, str]
    layout: Layout


def plan(
    shapes: Mapping[str, Shape],
    spec: SpecLike | None,
    *,
    layout: Layout = TENSORFLOW,
    image_size: int | None = None,
    classify_from: int = 0,
    ema: bool = False,
    classifier: bool = True,
) -> Plan:
    """The plan for a source whose variables have these ``shapes``; without ``spec`` the model is recognised from them.

    Optimizer slots, ``ema_model/`` (unless ``ema``), memory and ``global_step`` are skipped. Without a projection head
    or a classifier (or with ``classifier=False``) the model has none. ``image_size``: 224, or 32 where the stem is for
    small images, unless given.

    Raises ValueError, listing them, for any other unknown name, a missing name, or a shape that does not fit; it says
    which model would.
    """
    fitting, small = recognise(shapes, layout)
    wanted = find_spec(spec) if spec is not None else fitting
    if wanted is None:
        raise ValueError(f"No ResNet of SimCLRv2 has these variables (a {layout.name}); is it another network?")
    try:
        return _plan(
            shapes,
            wanted,
            layout=layout,
            image_size=image_size or (32 if small else 224),
            classify_from=classify_from,
            ema=ema,
            classifier=classifier,
        )
    except _MisfitError as error:
        fits = fitting is not None and fitting != wanted
        way_out = f" They are those of {fitting.name}; use that, or leave the model out." if fits and fitting else ""
        raise ValueError(f"{error}{way_out}") from None


class _MisfitError(ValueError):
    """Variables that are not a model's."""


def _plan(
    shapes: Mapping[str, Shape],
    spec: Spec,
    *,
    layout: Layout,
    image_size: int,
    classify_from: int,
    ema: bool,
    classifier: bool,
) -> Plan:
    plain = {name for name in shapes if not layout.ignored(name)}
    if ema and not any(name.startswith(_EMA) for name in shapes):
        raise ValueError("There are no moving averages in this checkpoint; take the weights themselves.")
    kernel = shapes[layout.classifier] if layout.classifier in plain else None
    if kernel is not None and len(kernel) != 2:
        raise _MisfitError(f"{layout.classifier} has the shape {kernel}, which is no dense kernel's.")
    with torch.device("meta"):
        model = SimCLR(
            spec,
            num_classes=layout.our_shape(kernel)[0] if kernel else None,
            image_size=image_size,
            classify_from=classify_from,
            projector=any(name.startswith(layout.head) for name in plain),
        )
    wanted = {name: layout.their_shape(tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    sources = {
        ours: _EMA + theirs if ema and not theirs.startswith("head_supervised/") else theirs
        for ours, theirs in layout.names(model)
    }
    missing = sorted(theirs for theirs in sources.values() if theirs not in shapes)
    unknown = sorted(plain - {theirs.removeprefix(_EMA) for theirs in sources.values()})
    misfits = [
        f"{theirs} is {shapes[theirs]}, not {wanted[ours]}"
        for ours, theirs in sources.items()
        if theirs in shapes and shapes[theirs] != wanted[ours]
    ]
    if missing or unknown or misfits:
        raise _MisfitError(
            f"These variables are not those of {spec.name} (image_size={image_size}): "
            f"missing {_listed(missing)}; unknown {_listed(unknown)}; of another shape {_listed(misfits)}."
        )
    if not classifier:
        model.classifier, model.classify_from = None, 0
        sources = {ours: theirs for ours, theirs in sources.items() if not ours.startswith("classifier.")}
    return Plan(model, sources, layout)


def recognise(shapes: Mapping[str, Shape], layout: Layout) -> tuple[Spec | None, bool]:
    """(architecture, whether its stem is for images up to 32 pixels), told from the backbone's kernels.

    Their number tells depth and SK (no two architectures have the same), the first one the width.
    """
    start, end = layout.backbone
    kernels = [name for name in shapes if name.startswith(start) and name.endswith(end) and len(shapes[name]) == 4]
    stem = shapes.get(layout.stem, ())
    if len(stem) != 4:
        return None, False
    channels, _, size, _ = layout.our_shape(stem)
    for depth, blocks in BLOCKS.items():
        bottleneck = depth >= 50
        for sk in (False, True) if bottleneck else (False,):
            body = sum(blocks) * (5 if sk else 3 if bottleneck else 2) + len(blocks)  # and a shortcut a group
            for small in (False, True):
                if len(kernels) != body + (3 if sk and not small else 1) or (size == 7) != (not small and not sk):
                    continue
                width = channels / (32 if sk and not small else 64)
                return Spec(depth, int(width) if width.is_integer() else width, sk), small
    return None, False


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
    shapes = shapes_of(variables)
    found = plan(shapes, spec, image_size=image_size, classify_from=classify_from, ema=ema)
    arrays = ((ours, from_tensorflow_layout(np.asarray(variables[theirs]))) for ours, theirs in found.sources.items())
    return {ours: torch.from_numpy(np.array(array, dtype=np.float32, order="C")) for ours, array in arrays}


def shapes_of(variables: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Shapes by name; a mapping that has a method ``shape`` is not made to read its arrays for that."""
    shape = getattr(variables, "shape", None)
    return {name: tuple(shape(name) if shape else variables[name].shape) for name in variables}


def _listed(items: list[str], most: int = 3) -> str:
    if not items:
        return "none"
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
