"""A network as an ONNX graph, written layer by layer: the same arithmetic, in the operators that runtimes do fastest.

Tensors carry the name of the node that makes them, and nodes that of the layer they come from. Differences from what
tracing the modules gives, none of which changes a value by more than rounding: the two streams of a selective kernel
are two convolutions, so that nothing is split; paddings are those of the operators; the means are global pools.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from zoo.resnet import Bottleneck, ConvNorm, ResNetDPool, SelectiveKernel
from zoo.simclr import PROJECTION_WIDTH, SimCLR

ImageInput = Literal["float", "uint8"]

PIXELS = "pixels"  # the tensor of images (N, 3, S, S) in [0, 1] inside the graph
STEP = np.float32(1 / 255)  # of 8-bit pixels


@dataclasses.dataclass
class Graph:
    """Nodes in the order in which they run, the weights they name, and what goes in and comes out.

    ``outputs``: name -> shape, or None where it is not known.
    """

    input: onnx.ValueInfoProto
    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    outputs: dict[str, list[str | int] | None] = dataclasses.field(default_factory=dict)
    channels: dict[str, int] = dataclasses.field(default_factory=dict)  # of the tensors that average pools read
    convolutions: list[str] = dataclasses.field(default_factory=list)  # those of feature maps, not of their means

    def add(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node and the one tensor it makes, both called ``name``."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: np.ndarray | np.generic) -> str:
        self.weights[name] = np.asarray(values, order="C")
        return name

    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.weights.values())


def build(model: SimCLR, *, image_input: ImageInput = "float") -> Graph:
    """The graph of a model whose batch norms are folded (``export.fold``).

    Input ``images``: float32 (N, 3, S, S) in [0, 1], or with ``image_input="uint8"`` uint8 (N, S, S, 3). Outputs
    ``features`` (N, D), ``logits`` (N, classes) if there is a classifier and ``projections`` (N, 128) if there is a
    projector; float32.
    """
    size = model.image_size
    if image_input == "uint8":
        graph = Graph(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3]))
        x = graph.add("Transpose", ["images"], "images.nchw", perm=[0, 3, 1, 2])
        graph.weight("images.step", STEP)
        graph.weight("images.zero", np.uint8(0))
        x = graph.add("DequantizeLinear", [x, "images.step", "images.zero"], PIXELS)
    else:
        graph = Graph(helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size]))
        x = "images"
    x, size = _stem(graph, model, x, size)
    for number, group in enumerate(model.backbone.groups):
        for place, block in enumerate(group.children()):
            x, size = _block(graph, block, x, size, f"groups.{number}.{place}")
    x = graph.add("GlobalAveragePool", [x], "mean")
    after = [graph.add("Flatten", [x], "features", axis=1)]
    if model.projector is not None:
        after = _project(graph, model.projector, after[0])
    if model.classifier is not None:
        _dense(graph, model.classifier, after[model.classify_from], "logits")
        graph.outputs["logits"] = ["N", model.classifier.out_features]
    graph.outputs["features"] = ["N", model.spec.feature_width]
    if model.projector is not None:
        graph.outputs["projections"] = ["N", PROJECTION_WIDTH]
    return graph


def _stem(graph: Graph, model: SimCLR, x: str, size: int) -> tuple[str, int]:
    stem: Any = model.backbone.stem
    for place, layer in enumerate(stem.layers):
        x, size = _convolve(graph, layer, x, size, f"stem.{place}")
        x = graph.add("Relu", [x], f"stem.{place}.relu")
    if stem.pool:  # TensorFlow's SAME: an even size is padded at the bottom and right only
        pads = [size % 2, size % 2, 1, 1]
        x = graph.add("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=pads)
        size = -(-size // 2)
    return x, size


def _block(graph: Graph, block: Any, x: str, size: int, name: str) -> tuple[str, int]:
    """A residual block or a bottleneck; the size of what comes out goes with it."""
    skip = x
    if isinstance(block.shortcut, ConvNorm):
        skip, _ = _convolve(graph, block.shortcut, x, size, f"{name}.shortcut")
    elif block.shortcut is not None:
        pool, layer = block.shortcut
        skip, pooled = _resnet_d_pool(graph, pool, x, size, layer.conv.in_channels, f"{name}.shortcut.pool")
        skip, _ = _convolve(graph, layer, skip, pooled, f"{name}.shortcut")
    x, size = _convolve(graph, block.conv1, x, size, f"{name}.conv1")
    x = graph.add("Relu", [x], f"{name}.conv1.relu")
    if isinstance(block.conv2, SelectiveKernel):
        x, size = _selective_kernel(graph, block.conv2, x, size, f"{name}.sk")
    else:
        x, size = _convolve(graph, block.conv2, x, size, f"{name}.conv2")
        if isinstance(block, Bottleneck):
            x = graph.add("Relu", [x], f"{name}.conv2.relu")
    if isinstance(block, Bottleneck):
        x, size = _convolve(graph, block.conv3, x, size, f"{name}.conv3")
    x = graph.add("Add", [x, skip], f"{name}.add")
    return graph.add("Relu", [x], name), size


def _resnet_d_pool(graph: Graph, pool: ResNetDPool, x: str, size: int, channels: int, name: str) -> tuple[str, int]:
    if pool.stride == 1:  # SAME, the padding not counted
        pads, counted = [0, 0, 1, 1], 0
    else:  # zeros at the bottom and right of odd sizes, counted
        pads, counted = [0, 0, size % 2, size % 2], 1
    stride = [pool.stride, pool.stride]
    graph.channels[x] = channels
    x = graph.add("AveragePool", [x], name, kernel_shape=[2, 2], strides=stride, pads=pads, count_include_pad=counted)
    return x, -(-size // pool.stride)


def _selective_kernel(graph: Graph, kernel: SelectiveKernel, x: str, size: int, name: str) -> tuple[str, int]:
    """Two streams, mixed by shares that a softmax over the two gives."""
    layer, channels = kernel.streams.conv, kernel.streams.conv.out_channels // 2
    streams, after = [], size
    for number in (0, 1):
        half = slice(number * channels, (number + 1) * channels)
        stream, after = _convolution(
            graph, layer, layer.weight[half], _given(layer.bias)[half], x, size, f"{name}.stream{number}"
        )
        streams.append(graph.add("Relu", [stream], f"{name}.stream{number}.relu"))
    means = [graph.add("GlobalAveragePool", [stream], f"{name}.mean{k}") for k, stream in enumerate(streams)]
    x = graph.add("Add", means, f"{name}.mean")
    x, _ = _convolve(graph, kernel.squeeze, x, 1, f"{name}.squeeze")
    x = graph.add("Relu", [x], f"{name}.squeeze.relu")
    scores = [
        _convolution(graph, kernel.choose, half, None, x, 1, f"{name}.choose{k}")[0]
        for k, half in enumerate(kernel.choose.weight.chunk(2))
    ]
    parts = []
    for k, stream in enumerate(streams):  # a softmax over two is a sigmoid of the difference
        score = graph.add("Sub", [scores[k], scores[1 - k]], f"{name}.score{k}")
        share = graph.add("Sigmoid", [score], f"{name}.share{k}")
        parts.append(graph.add("Mul", [stream, share], f"{name}.part{k}"))
    return graph.add("Add", parts, f"{name}.mix"), after


def _project(graph: Graph, head: Any, features: str) -> list[str]:
    """The features and, after them, the output of each projection layer; the last is called ``projections``."""
    after = [features]
    for number, layer in enumerate(head.layers):
        name = f"projector.{number}"
        if layer.last:
            after.append(_dense(graph, layer.dense, after[-1], "projections"))
        else:
            after.append(graph.add("Relu", [_dense(graph, layer.dense, after[-1], name)], f"{name}.relu"))
    return after


def _convolve(graph: Graph, layer: ConvNorm, x: str, size: int, name: str) -> tuple[str, int]:
    return _convolution(graph, layer.conv, layer.conv.weight, layer.conv.bias, x, size, name)


def _convolution(
    graph: Graph, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: str, size: int, name: str
) -> tuple[str, int]:
    inputs = [x, graph.weight(f"{name}.weight", weight.numpy())]
    if bias is not None:
        inputs.append(graph.weight(f"{name}.bias", bias.numpy()))
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    pads = [kernel // 2] * 4
    if size > 1:
        graph.convolutions.append(name)
    graph.add("Conv", inputs, name, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)
    return name, -(-size // stride)


def _dense(graph: Graph, layer: nn.Linear, x: str, name: str) -> str:
    inputs = [x, graph.weight(f"{name}.weight", layer.weight.numpy())]
    inputs.append(graph.weight(f"{name}.bias", _given(layer.bias).numpy()))
    return graph.add("Gemm", inputs, name, transB=1)


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "fold the batch norms first"
    return tensor


def halve(graph: Graph) -> Graph:
    """The graph with float weights of two or more axes stored as float16, each behind a Cast to float32, but for those
    that float16 cannot hold."""
    halved = dataclasses.replace(graph, nodes=[], weights={})
    for name, values in graph.weights.items():
        if values.dtype == np.float32 and values.ndim > 1 and np.abs(values).max() <= np.finfo(np.float16).max:
            halved.add("Cast", [halved.weight(f"{name}.fp16", values.astype(np.float16))], name, to=TensorProto.FLOAT)
        else:
            halved.weight(name, values)
    halved.nodes += graph.nodes
    return halved


# ---- into a file -----------------------------------------------------------------------------------------------------


def to_proto(
    graph: Graph, *, opset: int, metadata: Mapping[str, str], outside: str | None = None
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The graph as ONNX, and which weights are outside of it, and where there.

    With ``outside``, the name of a file, weights of a kilobyte and more are named there as ``weights_outside`` lays
    them out, and are not in the model; else none is outside.
    """
    places = _places(graph) if outside else {}
    tensors = [
        _named(name, values, outside or "", places[name]) if name in places else numpy_helper.from_array(values, name)
        for name, values in graph.weights.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in graph.outputs.items()]
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "simclrv2", [graph.input], outputs, tensors),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="simclrv2",
    )
    helper.set_model_props(proto, dict(metadata))
    return proto, places


def _named(name: str, values: np.ndarray, outside: str, at: int) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = TensorProto(name=name, dims=values.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", outside), ("offset", at), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


_SMALL = 1024  # bytes of a weight that stays in the model
_ALIGNED = 4096  # weights outside begin at multiples of this, as runtimes that map the file like it


def _places(graph: Graph) -> dict[str, int]:
    """Where in the file outside each weight begins."""
    places, at = {}, 0
    for name, values in graph.weights.items():
        if values.nbytes >= _SMALL:
            places[name] = at
            at += -(-values.nbytes // _ALIGNED) * _ALIGNED
    return places


def weights_outside(graph: Graph) -> Iterator[bytes]:
    """The file of the weights outside a model, as ``to_proto`` names them, in parts."""
    end = 0
    for name, at in _places(graph).items():
        yield bytes(at - end)
        yield graph.weights[name].tobytes()
        end = at + graph.weights[name].nbytes
