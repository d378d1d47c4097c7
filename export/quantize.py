"""A graph in 8-bit integers: ranges from unlabeled images, weights of 7 bits by channel, float where integers hurt.

Static, in QuantizeLinear/DequantizeLinear form: activations unsigned, weights signed. Weights stay within -64 to 64, so
that 255 * 64 * 2 fits the 16 bits in which CPUs without VNNI add pairs of products; with the full range those saturate.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import helper

from export.graph import PIXELS, STEP, Graph
from export.session import open_graph

MOST = 64  # the largest absolute weight
_MOST_BIAS = 2**28  # of the 32 bits in which products are added up
BINS = 2048
PASSING = ("MaxPool", "AveragePool", "GlobalAveragePool", "Mul")  # of 8 bits they make 8 bits
_SHARES = np.linspace(0.2, 1.0, 81)  # of the whole range, tried for the one with the least error

Ranges = dict[str, tuple[float, float]]  # tensor -> least and largest value that its 8 bits tell apart


# ---- what is quantised -----------------------------------------------------------------------------------------------


def consumers(graph: Graph) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read a tensor."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def outlet(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> str:
    """The tensor that a convolution makes once the ReLU after it, if there is one, is part of it."""
    after = readers.get(node.output[0], [])
    return str(after[0].output[0] if len(after) == 1 and after[0].op_type == "Relu" else node.output[0])


def tensors_between(graph: Graph, layers: Collection[str]) -> list[str]:
    """The activations that are 8 bits if these convolutions are: what they read and what they make."""
    readers = consumers(graph)
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.op_type == "Conv" and node.name in layers:
            found[node.input[0]] = None
            found[outlet(node, readers)] = None
        elif node.op_type in PASSING and node.input[0] in found:
            found |= dict.fromkeys([*node.input, node.output[0]])
    return list(found)


# ---- ranges ----------------------------------------------------------------------------------------------------------


def calibrate(graph: Graph, batches: Iterable[np.ndarray], *, opset: int) -> Ranges:
    """The range of every activation that could be quantised, over batches of the graph's input.

    From histograms, the range whose 8 bits are nearest the values by mean square: what lies beyond is clipped.
    """
    names = [name for name in tensors_between(graph, graph.convolutions) if name not in ("images", PIXELS)]
    probe = dataclasses.replace(graph, outputs=dict.fromkeys(names))
    session = open_graph(probe, opset=opset)
    histograms: dict[str, _Histogram] = {name: _Histogram() for name in names}
    for batch in batches:
        for name, values in zip(names, session.run(names, {"images": batch}), strict=True):
            histograms[name].add(values)
    ranges = {name: histogram.best() for name, histogram in histograms.items()}
    ranges |= dict.fromkeys(("images", PIXELS), (0.0, float(STEP) * 255))
    for node in graph.nodes:
        if node.op_type == "MaxPool":  # the same values, so the same steps: then it needs no arithmetic
            ranges[node.output[0]] = ranges[node.input[0]]
    return ranges


class _Histogram:
    """Counts of values in bins that start at multiples of one width; when a value lies beyond, bins are joined."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)  # bin BINS begins at 0
        self.width = 0.0

    def add(self, values: np.ndarray) -> None:
        values = values.ravel()
        largest = max(float(values.max()), -float(values.min()), 1e-12)
        if not np.isfinite(largest):
            raise ValueError("The network answers with infinite values; it cannot be quantised.")
        if not self.width:
            self.width = largest / (BINS - 1)
        while largest >= self.width * (BINS - 1):
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 2 : BINS + BINS // 2] = joined
            self.width *= 2
        bins = np.floor(values * np.float32(1 / self.width)).astype(np.int32) + BINS
        self.counts += np.bincount(bins, minlength=2 * BINS)

    def best(self) -> tuple[float, float]:
        filled = np.flatnonzero(self.counts)
        centres = (filled - BINS + 0.5) * self.width
        counts = self.counts[filled].astype(np.float64)
        low, high = min(0.0, (filled[0] - BINS) * self.width), max(0.0, (filled[-1] + 1 - BINS) * self.width)
        errors = []
        for share in _SHARES:
            scale, zero = steps(low * share, high * share)
            kept = (np.clip(np.rint(centres / scale) + zero, 0, 255) - zero) * scale
            errors.append(float((counts * (kept - centres) ** 2).sum()))
        share = float(_SHARES[int(np.argmin(errors))])
        return low * share, high * share


def steps(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Step and zero point of unsigned 8 bits from ``low`` <= 0 to ``high`` >= 0; zero is met exactly."""
    scale = np.float32(max(high - low, 1e-12) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def quantise_weights(weights: np.ndarray, *, least: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights from -64 to 64 of the shape given, and a step for each output channel (C,): of those tried the one
    with the least squared error, and not below ``least`` (C,)."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    largest = np.maximum(np.abs(rows).max(1), 1e-12)
    best, smallest = largest / MOST, np.full(len(rows), np.inf)
    for share in np.linspace(0.6, 1.0, 41):
        scale = largest * share / MOST
        error = ((np.clip(np.rint(rows / scale[:, None]), -MOST, MOST) * scale[:, None] - rows) ** 2).sum(1)
        best, smallest = np.where(error < smallest, scale, best), np.minimum(error, smallest)
    scales = np.maximum(best, least).astype(np.float32)
    kept = np.clip(np.rint(rows / scales[:, None].astype(np.float64)), -MOST, MOST).astype(np.int8)
    return kept.reshape(weights.shape), scales


# ---- the graph -------------------------------------------------------------------------------------------------------


def quantise(graph: Graph, ranges: Ranges, layers: Collection[str]) -> Graph:
    """The graph with these convolutions in 8-bit integers, and with what they read and make in 8 bits."""
    done = dataclasses.replace(graph, nodes=[], weights=dict(graph.weights))
    eight_bit = set(tensors_between(graph, layers))
    renamed: dict[str, str] = {}  # tensor -> the one to read in its place

    def rounded(name: str) -> None:
        scale, zero = steps(*ranges[name])
        renamed[name] = _round(done, name, done.weight(f"{name}.step", scale), done.weight(f"{name}.zero", zero))

    if "images" in eight_bit:
        rounded("images")
    for original in graph.nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.input[:] = [renamed.get(name, name) for name in original.input]
        read, made = original.input[0], original.output[0]
        if node.op_type == "Conv" and node.name in layers:
            _integer_weights(done, node, float(steps(*ranges[read])[0]))
        elif node.op_type == "AveragePool" and read in eight_bit:
            node = _average(done, node, read, graph.channels[read])
        done.nodes.append(node)
        if made in eight_bit and made != PIXELS:  # pixels are 8 bits already
            rounded(made)
    return done


def _average(graph: Graph, pool: onnx.NodeProto, read: str, channels: int) -> onnx.NodeProto:
    """A 2x2 average as a convolution of each channel with ones: onnxruntime's own of 8 bits takes ten times as long."""
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in pool.attribute}
    x, pads = pool.input[0], told["pads"]
    if any(pads) and not told["count_include_pad"]:  # a repeated last row and column leave the average of the rest
        graph.weight(f"{pool.name}.pads", np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
        x, pads = graph.add("Pad", [x, f"{pool.name}.pads"], f"{pool.name}.padded", mode="edge"), [0] * 4
        x = _round(graph, x, f"{read}.step", f"{read}.zero")
    graph.weight(f"{pool.name}.ones", np.ones((channels, 1, 2, 2), np.int8))
    graph.weight(f"{pool.name}.quarters", np.full(channels, 0.25, np.float32))
    graph.weight(f"{pool.name}.zeros", np.zeros(channels, np.int8))
    parts = [f"{pool.name}.{part}" for part in ("ones", "quarters", "zeros")]
    weights = graph.add("DequantizeLinear", parts, f"{pool.name}.weight", axis=0)
    attributes = {"group": channels, "kernel_shape": [2, 2], "strides": told["strides"], "pads": pads}
    return helper.make_node("Conv", [x, weights], pool.output, name=pool.name, **attributes)


def _round(graph: Graph, name: str, step: str, zero: str) -> str:
    """What a tensor is once it has been 8 bits."""
    kept = graph.add("QuantizeLinear", [name, step, zero], f"{name}.8bit")
    return graph.add("DequantizeLinear", [kept, step, zero], f"{name}.rounded")


def _integer_weights(graph: Graph, node: onnx.NodeProto, input_step: float) -> None:
    """A convolution's weights and bias as integers. The bias counts in products of the two steps: a channel whose
    weights are next to nothing gets a larger step, or its bias would not fit 32 bits."""
    name = node.name
    bias = graph.weights.pop(f"{name}.bias").astype(np.float64) if len(node.input) > 2 else None
    least = 0.0 if bias is None else np.abs(bias) / (_MOST_BIAS * input_step)
    kept, scales = quantise_weights(graph.weights.pop(f"{name}.weight"), least=least)
    graph.weight(f"{name}.weight.int8", kept)
    graph.weight(f"{name}.weight.step", scales)
    graph.weight(f"{name}.weight.zero", np.zeros(len(scales), np.int8))
    parts = [f"{name}.weight.{part}" for part in ("int8", "step", "zero")]
    node.input[1] = graph.add("DequantizeLinear", parts, f"{name}.weight", axis=0)
    if bias is not None:
        by = scales * np.float32(input_step)
        graph.weight(f"{name}.bias.int32", np.rint(bias / by).astype(np.int32))
        graph.weight(f"{name}.bias.step", by)
        graph.weight(f"{name}.bias.zero", np.zeros(len(by), np.int32))
        parts = [f"{name}.bias.{part}" for part in ("int32", "step", "zero")]
        node.input[2] = graph.add("DequantizeLinear", parts, f"{name}.bias", axis=0)
