"""The emulated sums of benchmarks/saturation.py against nested loops, and its exact rule against onnxruntime."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def saturation() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import saturation
    finally:
        sys.path.remove(str(BENCHMARKS))
    return saturation


def cut(pair: int) -> int:
    return max(-32768, min(32767, pair))


def test_a_pair_saturates_by_hand(saturation: ModuleType) -> None:
    a = np.array([[255, 255, 1, 2], [255, 255, 255, 0]], np.uint8)
    b = np.array([[127, 127, 3, 4], [-128, -128, 127, 127]], np.int8)
    exact, none = saturation.pair_product(a, b, False)
    assert exact.tolist() == [[64770 + 11, -65280 + 381], [64770 + 765, -65280 + 32385]]
    assert none == 0
    sums, count = saturation.pair_product(a, b, True)
    assert sums.tolist() == [[32767 + 11, -32768 + 381], [32767 + 765, -32768 + 32385]]
    assert count == 4


def test_compiled_sums_are_numpys(saturation: ModuleType, tmp_path: Path) -> None:
    product = saturation.compiled_product(tmp_path, 2)
    if product is None:
        pytest.skip("no cc, or no AVX2")
    saturation.check_product(product)
    limits = np.array([[255, 191], [255, 1]], np.uint8), np.array([[127, 2], [-128, -128]], np.int8)
    sums, count = product(*limits, True)
    assert (sums[0, 0], sums[1, 1]) == (32767, -32768)  # at the limits, exactly: not cut
    assert count == 1  # 255 * -128 + 191 * -128


def test_a_layer_against_nested_loops(saturation: ModuleType) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (2, 3, 5, 6), dtype=np.uint8)
    weight = random.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8)  # (O, KH, KW, I): 27 products, an odd number
    bias = random.integers(-5000, 5000, 4, dtype=np.int32)
    scale, zero, sink_zero = np.array([1e-3, 2e-3, 5e-4, 1e-3], np.float32), 7, 90
    layer = saturation.Layer(
        "layer", "x", "y", weight, bias, (2, 2), (1, 1, 1, 1), zero, scale, sink_zero, relu=False, dense=False
    )
    for saturate in (False, True):
        layer.saturated = 0
        found = layer(x, saturation.pair_product, saturate=saturate)
        assert found.shape == (2, 4, 3, 3)
        saturated = 0
        for n, o, row, column in np.ndindex(found.shape):
            products = []
            for ky, kx, i in np.ndindex(3, 3, 3):
                y, z = 2 * row + ky - 1, 2 * column + kx - 1
                value = int(x[n, i, y, z]) if 0 <= y < 5 and 0 <= z < 6 else zero
                products.append(value * int(weight[o, ky, kx, i]))
            pairs = [products[k] + (products[k + 1] if k + 1 < 27 else 0) for k in range(0, 27, 2)]
            saturated += sum(cut(pair) != pair for pair in pairs)
            total = sum(map(cut, pairs) if saturate else pairs)
            total += int(bias[o]) - zero * int(weight[o].astype(int).sum())
            wanted = round(float(np.float32(total) * scale[o])) + sink_zero  # both round half to even
            assert found[n, o, row, column] == max(0, min(255, wanted))
        assert saturated > 0
        assert layer.saturated == (saturated if saturate else 0)


def qdq_file(path: Path, *, most: int) -> Path:
    """Two convolutions with a residual sum between, and a dense layer; weights up to ``most``."""
    random = np.random.default_rng(1)
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def quantized(name: str, scale: float, zero: int) -> str:
        ends = [constant(f"{name}.scale", np.float32(scale)), constant(f"{name}.zero", np.uint8(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *ends], [f"{name}.dq"]))
        return f"{name}.dq"

    def layer(operator: str, source: str, name: str, shape: tuple[int, ...], scale: float, **attributes: object) -> str:
        scales = random.uniform(0.001, 0.01, shape[0]).astype(np.float32)
        weight = constant(f"{name}.w.q", random.integers(-most, most + 1, shape).astype(np.int8))
        bias = constant(f"{name}.b.q", random.integers(-900, 900, shape[0]).astype(np.int32))
        ends = [constant(f"{name}.w.scale", scales), constant(f"{name}.w.zero", np.zeros(shape[0], np.int8))]
        nodes.append(helper.make_node("DequantizeLinear", [weight, *ends], [f"{name}.w"], axis=0))
        ends = [
            constant(f"{name}.b.scale", scales * np.float32(scale)),
            constant(f"{name}.b.zero", np.zeros(shape[0], np.int32)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", [bias, *ends], [f"{name}.b"], axis=0))
        nodes.append(helper.make_node(operator, [source, f"{name}.w", f"{name}.b"], [name], name=name, **attributes))
        return name

    x = quantized("images", 1 / 255, 0)
    layer("Conv", x, "first", (8, 3, 3, 3), 1 / 255, pads=[1, 1, 1, 1], strides=[2, 2])
    nodes.append(helper.make_node("Relu", ["first"], ["first.relu"]))
    skip = quantized("first.relu", 0.01, 0)
    layer("Conv", skip, "second", (8, 8, 3, 3), 0.01, pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Add", [quantized("second", 0.1, 117), skip], ["sum"]))
    nodes.append(
        helper.make_node(
            "ReduceMean", [quantized("sum", 0.1, 100), constant("axes", np.array([2, 3]))], ["mean"], keepdims=0
        )
    )
    layer("Gemm", quantized("mean", 0.05, 110), "dense", (5, 8), 0.05, transB=1)
    nodes.append(helper.make_node("Identity", [quantized("dense", most / 6400, 128)], ["logits"]))
    source = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])
    sink = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])
    body = helper.make_graph(nodes, "net", [source], [sink], constants)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_the_exact_rule_is_onnxruntimes(saturation: ModuleType, tmp_path: Path) -> None:
    path = qdq_file(tmp_path / "net.onnx", most=64)  # cannot saturate, so that any CPU answers the same
    images = np.random.default_rng(2).random((6, 3, 8, 8), dtype=np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"images": images})[0]
    graph = saturation.Graph(path)
    assert [layer.name for layer in graph.layers] == ["first", "second", "dense"]
    assert np.unique(wanted).size > 20
    for saturate in (False, True):
        assert np.array_equal(graph(images, saturation.pair_product, saturate=saturate), wanted)
    assert sum(layer.pairs for layer in graph.layers) > 0
    assert not any(layer.saturated for layer in graph.layers)


def test_weights_of_the_full_range_saturate(saturation: ModuleType, tmp_path: Path) -> None:
    graph = saturation.Graph(qdq_file(tmp_path / "net.onnx", most=127))
    images = np.random.default_rng(2).uniform(0.8, 1, (6, 3, 8, 8)).astype(np.float32)
    exact = graph(images, saturation.pair_product, saturate=False)
    saturating = graph(images, saturation.pair_product, saturate=True)
    assert graph.layers[0].saturated > 0
    assert not np.array_equal(exact, saturating)
