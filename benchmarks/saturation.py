"""What an int8 ONNX file answers on a CPU without VNNI, where pairs of products saturate at 16 bits: emulated.

    python benchmarks/saturation.py student.int8.onnx [MORE.onnx ...] --float student.onnx --images imagenette/val
    python benchmarks/saturation.py --images imagenette/val --calibrate imagenette/train

AVX2's vpmaddubsw multiplies unsigned activations by signed weights and adds PAIRS of products into saturating int16:
255 * 127 twice is 64,770, above 32,767. CPUs with VNNI add into int32. Each integer convolution (and dense layer) of a
QDQ file is computed here in integers by either rule, in the order in which onnxruntime packs an NHWC image (kernel row,
kernel column, input channel; neighbours are a pair); all else by onnxruntime. The exact rule is compared with what
onnxruntime answers on this machine, which must be one with VNNI for that to mean anything. IMAGES holds class folders,
named as the labels or as the fact ``synsets`` has them.

Without files, the float file (the bundled student without --float) is quantized by onnxruntime's own quantizer on 256
images of the folder --calibrate, with weights of the full range and of the reduced one. The sums are done by a few
lines of C compiled at run time (cc, AVX2), checked against numpy on random data first; without cc by numpy, slowly.

--emulator "qemu-x86_64 -cpu Haswell-noTSX" (Debian's qemu-user) runs onnxruntime itself on such a CPU, on 64 of the
images: slow, and the proof that the emulation is right.
"""

import argparse
import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from inference import quantized
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

import export
import zoo
from training import data

LANES = 32  # bytes of a vector: K is padded with zeros to a multiple
CHUNK = 64  # images at a time
CALIBRATION = 256
EMULATED = 64  # images under an emulated CPU

# Rows of unsigned bytes times rows of signed ones, both padded to a multiple of 32: int32 sums, and how many pairs
# saturated (the result equals a limit, and the exact pair does not).
SOURCE = r"""
#include <immintrin.h>
#include <stdint.h>

static int32_t total(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

static int64_t beyond(const uint8_t *a, const int8_t *b) {
    int64_t count = 0;
    for (int k = 0; k < 32; k += 2) {
        int pair = a[k] * b[k] + a[k + 1] * b[k + 1];
        count += pair > 32767 || pair < -32768;
    }
    return count;
}

int64_t saturating(const uint8_t *a, const int8_t *b, int32_t *out, int64_t rows, int64_t columns, int64_t k) {
    const __m256i ones = _mm256_set1_epi16(1), most = _mm256_set1_epi16(32767), least = _mm256_set1_epi16(-32768);
    int64_t count = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += 4) {
            __m256i sums[4] = {{0}, {0}, {0}, {0}};
            for (int64_t n = 0; n < k; n += 32) {
                __m256i x = _mm256_loadu_si256((const __m256i *)(a + i * k + n)), edge = _mm256_setzero_si256();
                for (int c = 0; c < 4; c++) {
                    __m256i w = _mm256_loadu_si256((const __m256i *)(b + (j + c) * k + n));
                    __m256i pairs = _mm256_maddubs_epi16(x, w);
                    edge = _mm256_or_si256(edge, _mm256_cmpeq_epi16(pairs, most));
                    edge = _mm256_or_si256(edge, _mm256_cmpeq_epi16(pairs, least));
                    sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs, ones));
                }
                if (!_mm256_testz_si256(edge, edge))
                    for (int c = 0; c < 4; c++) count += beyond(a + i * k + n, b + (j + c) * k + n);
            }
            for (int c = 0; c < 4; c++) out[i * columns + j + c] = total(sums[c]);
        }
    return count;
}

int64_t exact(const uint8_t *a, const int8_t *b, int32_t *out, int64_t rows, int64_t columns, int64_t k) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += 4) {
            __m256i sums[4] = {{0}, {0}, {0}, {0}};
            for (int64_t n = 0; n < k; n += 16) {
                __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a + i * k + n)));
                for (int c = 0; c < 4; c++) {
                    __m128i w = _mm_loadu_si128((const __m128i *)(b + (j + c) * k + n));
                    sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(w)));
                }
            }
            for (int c = 0; c < 4; c++) out[i * columns + j + c] = total(sums[c]);
        }
    return 0;
}
"""

Product = Callable[[np.ndarray, np.ndarray, bool], tuple[np.ndarray, int]]


# ---- sums of pairs ---------------------------------------------------------------------------------------------------


def pair_product(a: np.ndarray, b: np.ndarray, saturate: bool) -> tuple[np.ndarray, int]:
    """uint8 (R, K) times int8 (C, K): int32 sums (R, C), and how many pairs of neighbours along K saturated at int16.

    With ``saturate`` each pair is cut to int16 before it is added. An odd K gets a zero.
    """
    if a.shape[1] % 2:
        a, b = (np.pad(array, ((0, 0), (0, 1))) for array in (a, b))
    sums, count = np.empty((len(a), len(b)), np.int32), 0
    weights = b.astype(np.int32)
    rows = max(1, 2**22 // max(1, b.size))  # bounds the memory of what lies between
    for start in range(0, len(a), rows):
        products = a[start : start + rows, None, :].astype(np.int32) * weights  # (rows, C, K)
        pairs = products[..., 0::2] + products[..., 1::2]
        if saturate:
            cut = pairs.clip(-(2**15), 2**15 - 1)
            count += int((cut != pairs).sum())
            pairs = cut
        sums[start : start + rows] = pairs.sum(-1)
    return sums, count


def compiled_product(folder: Path, threads: int) -> Product | None:
    """``pair_product`` in C with the instruction itself; None without a compiler or AVX2."""
    flags = Path("/proc/cpuinfo")
    if shutil.which("cc") is None or not flags.exists() or " avx2 " not in flags.read_text():
        return None
    source, library = folder / "pairs.c", folder / "pairs.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-O3", "-mavx2", "-shared", "-fPIC", "-o", library, source], check=True)
    functions = ctypes.CDLL(os.fspath(library))
    for function in (functions.saturating, functions.exact):
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    pool = ThreadPoolExecutor(threads)

    def product(a: np.ndarray, b: np.ndarray, saturate: bool) -> tuple[np.ndarray, int]:
        columns, wide = len(b), -a.shape[1] % LANES
        if wide:
            a = np.pad(a, ((0, 0), (0, wide)))
        b = np.pad(b, ((0, -columns % 4), (0, wide)))
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        sums = np.empty((len(a), len(b)), np.int32)
        function = functions.saturating if saturate else functions.exact

        def some(rows: slice) -> int:
            left, out = a[rows], sums[rows]
            found: int = function(left.ctypes.data, b.ctypes.data, out.ctypes.data, len(left), len(b), a.shape[1])
            return found

        edges = np.linspace(0, len(a), 4 * threads + 1).astype(int)
        count = sum(pool.map(some, map(slice, edges[:-1], edges[1:])))
        return sums[:, :columns], count

    return product


def check_product(product: Product) -> None:
    """The compiled sums equal numpy's on random bytes, odd K and the extremes included."""
    random = np.random.default_rng(0)
    for rows, columns, k in ((1, 1, 1), (5, 3, 27), (33, 10, 64), (70, 9, 147)):
        a = random.integers(0, 256, (rows, k), dtype=np.uint8)
        b = random.integers(-128, 128, (columns, k), dtype=np.int8)
        a[0], b[0] = 255, 127
        for saturate in (False, True):
            found, wanted = product(a, b, saturate), pair_product(a, b, saturate)
            assert np.array_equal(found[0], wanted[0]), f"sums differ at {rows} x {columns}, K {k}, {saturate=}"
            assert found[1] == wanted[1], f"{found[1]} saturated pairs, not {wanted[1]}, {saturate=}"


# ---- layers ----------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One integer convolution or dense layer of a QDQ file: from the quantized tensor ``source`` to ``sink``."""

    name: str
    source: str
    sink: str
    weight: np.ndarray  # int8 (O, KH, KW, I)
    bias: np.ndarray  # int32 (O,)
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    source_zero: int
    scale: np.ndarray  # float32 (O,): of an accumulated unit, in units of the sink; for a float sink of one
    sink_zero: int | None  # None: the sink is float
    relu: bool
    dense: bool
    pairs: int = field(default=0, compare=False)
    saturated: int = field(default=0, compare=False)

    def __call__(self, x: np.ndarray, product: Product, *, saturate: bool) -> np.ndarray:
        """uint8 (N, I, H, W) to uint8 (N, O, H', W'); (N, I) to (N, O) for a dense layer."""
        if self.dense:
            x = x[:, :, None, None]
        rows, shape = patches(x, self.weight.shape[1:3], self.strides, self.pads, self.source_zero)
        weight = self.weight.reshape(len(self.weight), -1)
        sums, saturated = product(rows, weight, saturate)
        self.pairs += len(rows) * len(weight) * -(-weight.shape[1] // 2)
        self.saturated += saturated
        out = self.requantized(sums)  # (N * H' * W', O)
        out = out.reshape(*shape, -1).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(out[:, :, 0, 0] if self.dense else out)

    def requantized(self, sums: np.ndarray) -> np.ndarray:
        """Sums (R, O) with zero point and bias taken care of in int32, then scaled in float32, rounded half to even."""
        columns = self.weight.reshape(len(self.weight), -1).sum(1, dtype=np.int32)
        scaled = (sums + (self.bias - self.source_zero * columns)).astype(np.float32) * self.scale
        if self.sink_zero is None:
            return scaled.clip(0) if self.relu else scaled
        out = np.rint(scaled) + self.sink_zero
        return out.clip(self.sink_zero if self.relu else 0, 255).astype(np.uint8)


def patches(
    x: np.ndarray, kernel: tuple[int, ...], strides: tuple[int, int], pads: tuple[int, int, int, int], zero: int
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The pixels (N, I, H, W) under each place of a kernel: rows (N * H' * W', KH * KW * I), and (N, H', W')."""
    top, left, bottom, right = pads
    x = x.transpose(0, 2, 3, 1)  # (N, H, W, I)
    if any(pads):
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)
    x = np.ascontiguousarray(x)
    windows = sliding_window_view(x, kernel, axis=(1, 2))[:, :: strides[0], :: strides[1]]  # (N, H', W', I, KH, KW)
    shape = windows.shape[:3]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(shape[0] * shape[1] * shape[2], -1), shape


class Graph:
    """A QDQ file taken apart: its integer layers in order, and what onnxruntime computes before, between and after."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(path)
        graph = self.proto.graph
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.made = {name: node for node in graph.node for name in node.output}
        self.used: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.used.setdefault(name, []).append(node)
        outputs = {value.name for value in graph.output}
        self.layers = [layer for node in graph.node if (layer := self._layer(node, outputs)) is not None]
        known = {value.name for value in graph.input}
        self.types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        for layer in self.layers:
            self.types[layer.source] = TensorProto.UINT8
            self.types.setdefault(layer.sink, TensorProto.FLOAT if layer.sink_zero is None else TensorProto.UINT8)
        self.sessions = []
        for layer in self.layers:
            self.sessions.append(self._session([layer.source], known))
            known |= {layer.source, layer.sink}
        self.names = [name for name in ("logits", "features") if name in outputs] or sorted(outputs)
        self.sessions.append(self._session(self.names[:1], known))

    def _constant(self, name: str) -> np.ndarray | None:
        if name in self.values:
            return self.values[name]
        node = self.made.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return numpy_helper.to_array(node.attribute[0].t)

    def _dequantized(self, name: str) -> tuple[str, np.ndarray, np.ndarray] | None:
        """(quantized tensor, scale, zero point) of what a DequantizeLinear makes."""
        node = self.made.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        scale = self._constant(node.input[1])
        zero = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.uint8(0)
        assert scale is not None
        assert zero is not None
        return node.input[0], scale, np.asarray(zero)

    def _layer(self, node: onnx.NodeProto, outputs: set[str]) -> Layer | None:
        """The integer layer that onnxruntime makes of a node, or None: both inputs dequantized, and, for a convolution,
        nothing but a QuantizeLinear (after a Relu perhaps) reading the result."""
        dense = node.op_type == "Gemm"
        if node.op_type not in ("Conv", "Gemm"):
            return None
        inputs = [self._dequantized(name) for name in node.input]
        if any(found is None for found in inputs):
            return None
        (source, source_scale, source_zero), (weight_name, weight_scale, weight_zero) = inputs[:2]
        weight = self._constant(weight_name)
        if weight is None or weight.dtype != np.int8 or source_zero.dtype != np.uint8:
            return None
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if attributes.get("group", 1) != 1:  # an average of each channel alone: 4 * 255 is far from 16 bits
            return None
        assert not weight_zero.any(), f"{node.name}: weights with a zero point"
        sides = attributes.get("dilations", [1, 1]), attributes.get("auto_pad", b"NOTSET")
        assert sides == ([1, 1], b"NOTSET"), f"{node.name}: {sides}"
        assert attributes.get("alpha", 1) == attributes.get("beta", 1) == 1, f"{node.name}: alpha or beta"
        assert not attributes.get("transA"), f"{node.name}: transA"
        if dense:
            weight = (weight if attributes.get("transB") else weight.T)[:, :, None, None]
        bias = self._constant(inputs[2][0]) if len(inputs) > 2 else None
        sink, relu = node.output[0], False
        readers = self.used.get(sink, [])
        if len(readers) == 1 and readers[0].op_type == "Relu" and sink not in outputs:
            sink, relu = readers[0].output[0], True
            readers = self.used.get(sink, [])
        scale = np.float32(source_scale) * weight_scale.astype(np.float32)
        sink_zero = None
        if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" and sink not in outputs:
            sink = readers[0].output[0]
            sink_scale = self._constant(readers[0].input[1])
            zero = self._constant(readers[0].input[2]) if len(readers[0].input) > 2 else np.uint8(0)
            assert sink_scale is not None
            assert zero is not None
            if np.asarray(zero).dtype != np.uint8:
                return None
            scale, sink_zero = scale / sink_scale.astype(np.float32), int(zero)
        elif not dense:
            return None
        return Layer(
            name=node.name or node.output[0],
            source=source,
            sink=sink,
            weight=np.ascontiguousarray(weight.transpose(0, 2, 3, 1)),
            bias=np.zeros(len(weight), np.int32) if bias is None else bias.astype(np.int32),
            strides=tuple(attributes.get("strides", [1, 1])),
            pads=tuple(attributes.get("pads", [0, 0, 0, 0])),
            source_zero=int(source_zero),
            scale=np.broadcast_to(scale, len(weight)).astype(np.float32),
            sink_zero=sink_zero,
            relu=relu,
            dense=dense,
        )

    def _session(self, wanted: list[str], known: set[str]) -> onnxruntime.InferenceSession | None:
        """What computes tensors from known ones; None if they are known."""
        if set(wanted) <= known:
            return None
        needed, inputs, constants, stack = set(), [], set(), list(wanted)
        while stack:
            name = stack.pop()
            if not name or name in self.values:
                constants.add(name)
            elif name in known:
                inputs.append(name)
            else:
                needed.add(name)
                stack += [one for one in self.made[name].input if one not in needed]
        nodes = [node for node in self.proto.graph.node if needed & set(node.output)]
        part = helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info(name, self.types[name], None) for name in dict.fromkeys(inputs)],
            [helper.make_tensor_value_info(name, self.types[name], None) for name in wanted],
            [tensor for tensor in self.proto.graph.initializer if tensor.name in constants],
        )
        proto = helper.make_model(part, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        return session(proto.SerializeToString())

    def __call__(self, images: np.ndarray, product: Product, *, saturate: bool) -> np.ndarray:
        """The first output (logits, or features where there are none) of images in the form that the file takes."""
        known = {self.proto.graph.input[0].name: images}
        for layer, before in zip([*self.layers, None], self.sessions, strict=True):
            if before is not None:
                names = [value.name for value in before.get_outputs()]
                known |= zip(names, before.run(names, feeds(before, known)), strict=True)
            if layer is not None:
                known[layer.sink] = layer(known[layer.source], product, saturate=saturate)
        return known[self.names[0]]


def feeds(of: onnxruntime.InferenceSession, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {value.name: known[value.name] for value in of.get_inputs()}


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


# ---- images and tables -----------------------------------------------------------------------------------------------


def in_form(images: np.ndarray, path: Path) -> np.ndarray:
    """Preprocessed images float32 (N, 3, S, S) as the file's input wants them: so, or as uint8 (N, S, S, 3)."""
    kind = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.elem_type
    return np.rint(255 * images).astype(np.uint8).transpose(0, 2, 3, 1) if kind == TensorProto.UINT8 else images


def answers(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, what: str) -> np.ndarray:
    """The outputs for all images, a chunk at a time."""
    starts = tqdm(range(0, len(images), CHUNK), desc=what, disable=None)
    return np.concatenate([run(np.ascontiguousarray(images[start : start + CHUNK])) for start in starts])


def preprocessed(paths: list[Path], size: int, threads: int) -> np.ndarray:
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda path: zoo.preprocess(path, size), paths)
        return np.stack(list(tqdm(found, total=len(paths), desc="images", disable=None)))


def class_indices(images: data.ImageSet, model: export.OnnxModel) -> np.ndarray:
    """The place of each image's folder among the model's labels."""
    names = list(map(str, model.facts.get("synsets", ())))
    order = names if set(images.classes) <= set(names) else list(model.labels)
    missing = sorted(set(images.classes) - set(order))
    if missing:
        raise ValueError(f"Folder {missing[0]!r} is none of the model's labels: {', '.join(map(repr, order))}.")
    assert images.labels is not None
    return np.array([order.index(name) for name in images.classes])[np.asarray(images.labels)]


def elsewhere(path: Path, output: str, images: np.ndarray, emulator: str, folder: Path) -> np.ndarray:
    """What onnxruntime answers under an emulator of another CPU; ``images`` as the file takes them."""
    code = (
        "import sys, numpy as np, onnxruntime as o; p, i, r, n = sys.argv[1:]; "
        "s = o.InferenceSession(p, providers=['CPUExecutionProvider']); "
        "np.save(r, s.run([n], {s.get_inputs()[0].name: np.load(i)})[0])"
    )
    given, result = folder / "given.npy", folder / "result.npy"
    np.save(given, images)
    command = [*shlex.split(emulator), sys.executable, "-c", code, path, given, result, output]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{emulator}: onnxruntime does not run there ({' '.join(done.stderr.split())[-200:]}).")
    return np.load(result)


def rows_of(
    path: Path, images: np.ndarray, labels: np.ndarray, wanted: np.ndarray, product: Product, emulator: str | None
) -> Iterator[list[str]]:
    """The table's rows of one file; ``wanted`` are the float file's outputs."""
    given = in_form(images, path)
    graph = Graph(path)
    whole = session(path)
    source = whole.get_inputs()[0].name
    convolutions = sum(node.op_type in ("Conv", "Gemm") for node in graph.proto.graph.node)
    if not graph.layers:
        raise ValueError(f"{path}: no convolution in integers (DequantizeLinear, Conv, QuantizeLinear) in it.")
    largest = max(int(np.abs(layer.weight.astype(int)).max()) for layer in graph.layers)
    first = [path.name, f"[-{largest}, {largest}]", f"{len(graph.layers)} of {convolutions}"]
    native = answers(lambda some: whole.run(graph.names[:1], {source: some})[0], given, f"{path.name}, onnxruntime")
    yield [*first, "onnxruntime here", *scored(native, labels, wanted), "", "", ""]
    for rule in ("exact", "saturating"):
        saturate = rule == "saturating"
        for layer in graph.layers:
            layer.pairs = layer.saturated = 0

        def emulated(some: np.ndarray, saturate: bool = saturate) -> np.ndarray:
            return graph(some, product, saturate=saturate)

        found = answers(emulated, given, f"{path.name}, {rule}")
        pairs = sum(layer.pairs for layer in graph.layers)
        saturated = sum(layer.saturated for layer in graph.layers)
        worst = max(graph.layers, key=lambda layer: layer.saturated / max(1, layer.pairs))
        shown = f"{saturated:,} ({saturated / pairs:.2g} of all)" if saturate else ""
        most = f"{worst.saturated / worst.pairs:.2%} in {worst.name}" if saturate and saturated else ""
        yield [*first, rule, *scored(found, labels, wanted), agreement(found, native), shown, most]
    if emulator:
        few = np.linspace(0, len(images) - 1, min(EMULATED, len(images))).astype(int)
        with tempfile.TemporaryDirectory() as folder:
            theirs = elsewhere(path, graph.names[0], np.ascontiguousarray(given[few]), emulator, Path(folder))
        what = f"{agreement(theirs, native[few])}; as the row above: {agreement(theirs, found[few])}"
        shown = f"onnxruntime, {emulator}, {len(few)} images"
        yield [*first, shown, *scored(theirs, labels[few], wanted[few]), what, "", ""]


def agreement(outputs: np.ndarray, others: np.ndarray) -> str:
    """How many arg-maxes are the same, and the greatest difference as a share of the greatest value."""
    same = (outputs.argmax(1) == others.argmax(1)).mean()
    return f"{same:.2%}, {np.abs(outputs - others).max() / np.abs(others).max():.1e}"


def scored(outputs: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> list[str]:
    same = (outputs.argmax(1) == wanted.argmax(1)).mean()
    return [f"{(outputs.argmax(1) == labels).mean():.2%}", f"{same:.2%}"]


def table(rows: list[list[str]]) -> str:
    titles = ["file", "weights", "integer layers", "sums", "top-1", "same answer as float"]
    titles += ["same answer as onnxruntime here, most apart", "saturated pairs", "most in a layer"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *rows])


def make_files(floats: Path, calibrate: Path, size: int, folder: Path, threads: int) -> list[Path]:
    """The float file in int8 by onnxruntime's quantizer: full range, reduced range."""
    found = data.from_folder(calibrate).paths
    chosen = np.random.default_rng(0).choice(len(found), min(CALIBRATION, len(found)), replace=False)
    images = preprocessed([Path(found[index]) for index in sorted(chosen)], size, threads)
    files = {"full-range.onnx": False, "reduced-range.onnx": True}
    return [quantized(floats, folder / name, images, reduce_range=reduced) for name, reduced in files.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="int8 ONNX files (QDQ)")
    parser.add_argument("--float", dest="floats", type=Path, metavar="FILE", help="what they were made of")
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--calibrate", type=Path, help="without files: images to calibrate them on")
    parser.add_argument("--limit", type=int, help="so many images, evenly taken")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="keep the files that are made in this folder")
    parser.add_argument("--emulator", metavar="COMMAND", help="runs onnxruntime too, on a few images")
    options = parser.parse_args()
    if not options.files and not options.calibrate:
        parser.error("give int8 files, or --calibrate to make them")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = options.keep or scratch
        floats = options.floats
        if floats is None:
            student = zoo.load("r18_1x", weights="imagenette_distilled")
            floats = export.to_onnx(student, folder / "student.onnx")
        model = export.OnnxModel(floats)
        labelled = data.from_class_folders(options.images)
        if options.limit and options.limit < len(labelled):
            labelled = labelled.subset(np.linspace(0, len(labelled) - 1, options.limit).astype(int))
        labels = class_indices(labelled, model)
        files = options.files or make_files(floats, options.calibrate, model.image_size, folder, options.threads)
        product = compiled_product(scratch, options.threads)
        if product is None:
            tqdm.write("No cc or no AVX2 here: numpy adds the pairs, slowly.")
            product = pair_product
        else:
            check_product(product)
        images = preprocessed(list(map(Path, labelled.paths)), model.image_size, options.threads)
        plain = session(floats)
        source, sink = plain.get_inputs()[0].name, "logits" if model.num_classes else "features"

        def float_answers(some: np.ndarray) -> Any:
            return plain.run([sink], {source: some})[0]

        wanted = answers(float_answers, in_form(images, floats), floats.name)
        rows = [[floats.name, "float", "0", "onnxruntime here", *scored(wanted, labels, wanted), "", "", ""]]
        for path in files:
            rows += rows_of(path, images, labels, wanted, product, options.emulator)
    vnni = [flag for flag in ("avx512_vnni", "avx_vnni") if f" {flag} " in Path("/proc/cpuinfo").read_text()]
    print(f"{platform.machine()}, {', '.join(vnni) or 'no VNNI'}, onnxruntime {onnxruntime.__version__}, ", end="")
    print(f"{len(images)} images of {model.image_size} px, {(time.perf_counter() - began) / 60:.1f} minutes\n")
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
