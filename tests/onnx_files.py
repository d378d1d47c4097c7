"""Small ONNX files as an exporter writes them, made without one: a convolution, its mean, a classifier, a projector."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

LABELS = ["tench", "church", "golf ball"]


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3, 3, 3), "bias": (4,), "dense": (4, 3), "shift": (3,), "projector": (4, 5)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def answers(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """What such a file must give for float images (N, 3, S, S): sums over windows, in float64."""
    own = {name: value.astype(np.float64) for name, value in parameters(seed).items()}
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    count, _, height, width = images.shape
    features = np.zeros((count, 4))
    for n in range(count):
        for k in range(4):
            for y in range(height):
                for x in range(width):
                    features[n, k] += max(
                        0, (padded[n, :, y : y + 3, x : x + 3] * own["kernel"][k]).sum() + own["bias"][k]
                    )
    features /= height * width
    return {
        "features": features,
        "logits": features @ own["dense"] + own["shift"],
        "projections": features @ own["projector"],
    }


def graph(size: int, *, image_input: str, classifier: bool, projector: bool, seed: int = 0) -> onnx.ModelProto:
    nodes = []
    if image_input == "uint8":
        shape, kind, source = ["N", size, size, 3], TensorProto.UINT8, "scaled"
        nodes += [
            helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2]),
            helper.make_node("DequantizeLinear", ["turned", "step"], ["scaled"]),
        ]
    else:
        shape, kind, source = ["N", 3, size, size], TensorProto.FLOAT, "images"
    nodes += [
        helper.make_node("Conv", [source, "kernel", "bias"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
    ]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 4])]
    if classifier:
        nodes.append(helper.make_node("Gemm", ["features", "dense", "shift"], ["logits"]))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]))
    if projector:
        nodes.append(helper.make_node("Gemm", ["features", "projector"], ["projections"]))
        outputs.append(helper.make_tensor_value_info("projections", TensorProto.FLOAT, ["N", 5]))
    used = {name for node in nodes for name in node.input}
    values = parameters(seed) | {"step": np.array(1 / 255, np.float32)}
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items() if name in used]
    images = helper.make_tensor_value_info("images", kind, shape)
    made = helper.make_graph(nodes, "tiny", [images], outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def waves(count: int, size: int) -> np.ndarray:
    """The pixels of the self-test, one by one."""
    images = np.zeros((count, size, size, 3), np.uint8)
    for n in range(count):
        for y in range(size):
            for x in range(size):
                for c in range(3):
                    wave = []
                    for k, (a, b, d) in enumerate([(1, 2, 0), (5, -3, 100), (-11, 17, 300)]):
                        phase = (x * a + y * b) * 512 // size + d + 170 * c * (k + 1) + 97 * n * (k + 1)
                        wave.append(abs(phase % 512 - 256))
                    images[n, y, x, c] = min(255, (wave[0] * 2 + wave[1] + wave[2]) // 4)
    return images


def self_test(proto: onnx.ModelProto, size: int, image_input: str) -> str:
    images = waves(2, size)
    if image_input == "float":
        images = np.ascontiguousarray((images.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    stored = {name: base64.b64encode(value.astype("<f4").tobytes()).decode() for name, value in found.items()}
    return json.dumps({"pattern": "simclrv2-waves-1", "images": 2, "outputs": stored})


def metadata(size: int, image_input: str, labels: list[str]) -> dict[str, str]:
    small = size <= 32
    preprocess = {"crop": None if small else 0.875, "resize": None if small else "tf1-bicubic"}
    return {
        "format": "simclrv2-2",
        "architecture": "r18_0.0625x",
        "spec": "{}",
        "image_size": str(size),
        "classify_from": "0",
        "labels": json.dumps(labels),
        "facts": json.dumps({"accuracy": {"top1": 0.5}}),
        "licence": "Apache-2.0",
        "weights": "fp32",
        "weights_sha256": "0" * 64,
        "preprocessing": "a sentence",
        "preprocess": json.dumps(preprocess | {"channels": "RGB", "range": [0, 1]}),
        "image_input": image_input,
        "accuracy": json.dumps({"source": {"top1": 0.5}, "measured": {"top1": 0.4}}),
        "external_data": "{}",
    }


def write(path: Path, proto: onnx.ModelProto, told: dict[str, str | None]) -> Path:
    """A file with its metadata; those that are None are left out."""
    del proto.metadata_props[:]
    for key, value in told.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def student(
    path: Path,
    *,
    size: int = 8,
    takes: str = "float",
    classifier: bool = True,
    projector: bool = False,
    labels: list[str] | None = None,
    external: str = "",
    **told: str | None,
) -> Path:
    """A file of the format simclrv2-2.

    ``takes``: "float" or "uint8". ``external``: the name of the file beside it that gets its tensors. ``told``: what
    is different in the metadata, None for what is left out.
    """
    proto = graph(size, image_input=takes, classifier=classifier, projector=projector)
    named = LABELS if classifier and labels is None else labels or []
    meta: dict[str, str | None] = dict(metadata(size, takes, named))
    meta["self_test"] = self_test(proto, size, takes)
    if external:
        meta["external_data"] = json.dumps(move_out(proto, path.parent / external))
    return write(path, proto, meta | told)


def move_out(proto: onnx.ModelProto, data: Path) -> dict[str, object]:
    """All tensors of two or more axes into a file; what the metadata record of it."""
    content = b""
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor).tobytes()
            content += bytes(-len(content) % 64)
            onnx.external_data_helper.set_external_data(tensor, data.name, offset=len(content), length=len(values))
            tensor.ClearField("raw_data")
            content += values
    data.write_bytes(content)
    return {"file": data.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
