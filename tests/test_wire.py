"""Strangers' ONNX files: what is refused before onnxruntime sees a byte, and that nothing else than a refusal comes."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_files
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import export
from export import runtime, wire

DATA = "student.onnx.data"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return onnx_files.student(tmp_path / "student.onnx", projector=True)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A file with its weights beside it, in a folder of their own."""
    (tmp_path / "split").mkdir()
    return onnx_files.student(tmp_path / "split" / "student.onnx", external=DATA)


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime is not to see a byte."""

    def opened(*_: object) -> None:
        raise AssertionError("onnxruntime saw it")

    monkeypatch.setattr(runtime, "_session", opened)


def refused(path: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        export.OnnxModel(path, threads=1)
    assert len(str(caught.value).splitlines()) == 1


# ---- external data ---------------------------------------------------------------------------------------------------


def test_weights_beside_the_file(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used, wherever one stands, and onnxruntime gets their bytes, not their path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).write_bytes(b"another file of that name, where one stands")
    real = runtime._session

    def once_they_are_gone(*arguments: object) -> onnxruntime.InferenceSession:
        (split.parent / DATA).unlink()
        (tmp_path / DATA).unlink()
        return real(*arguments)

    size = split.stat().st_size + (split.parent / DATA).stat().st_size
    monkeypatch.setattr(runtime, "_session", once_they_are_gone)
    model = export.OnnxModel(split, threads=1)
    assert model.file_bytes == size
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    np.testing.assert_allclose(model(images).logits, onnx_files.answers(images)["logits"], rtol=1e-4, atol=1e-5)


def test_changed_weights(split: Path, unopened: None) -> None:
    data = split.parent / DATA
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(split, r"not the file that student\.onnx was written with \(its SHA-256 differs\)")
    data.write_bytes(content[:-1])
    refused(split, f"{len(content) - 1} bytes instead of {len(content)}")
    data.unlink()
    refused(split, "no such file, and the model's weights lie in it")
    data.mkdir()
    refused(split, f"{DATA}: ")
    data.rmdir()
    os.mkfifo(data)  # must not wait for a writer
    refused(split, "not a regular file")


def test_links_are_not_followed(split: Path, tmp_path: Path, unopened: None) -> None:
    shutil.move(split.parent / DATA, tmp_path / "elsewhere")
    (split.parent / DATA).symlink_to(tmp_path / "elsewhere")
    refused(split, "refused, a link")


def move_to(path: Path, location: str, told: object, **entries: str) -> None:
    """Rename where a file's external tensors lie, and what the metadata say of it."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entries.get(entry.key, entry.value)
    meta = {entry.key: entry.value for entry in proto.metadata_props}
    onnx_files.write(path, proto, meta | {"external_data": json.dumps(told)})


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/b", "a\\b", "C:secret", "..", ".", "", ".hidden", "a\nb", "a\0b", "\ud800",
     "*/_ORT_MEM_ADDR_/*"],
)  # fmt: skip
def test_names_that_reach_elsewhere(split: Path, tmp_path: Path, unopened: None, name: str) -> None:
    content = (split.parent / DATA).read_bytes()
    (tmp_path / "secret").write_bytes(content)
    told = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    move_to(split, name.encode("utf-8", "replace").decode(), told)
    refused(split, "is not the name of a file beside it|its weights lie in ")


def test_every_tensor_lies_in_the_recorded_file(split: Path, unopened: None) -> None:
    content = (split.parent / DATA).read_bytes()
    told = {"file": DATA, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    shutil.copy(split.parent / DATA, split.parent / "other")
    move_to(split, "other", told)
    refused(split, f"its weights lie in other, and the file recorded is {DATA}")
    move_to(split, DATA, {})
    refused(split, "its weights lie in other files, and none is recorded with its SHA-256")
    move_to(split, DATA, told, offset=str(len(content)))
    refused(split, f"ends beyond the {len(content)} bytes of {DATA}")
    for wrong in ({"offset": "-4"}, {"length": "8"}, {"offset": "1e3"}, {"offset": "9" * 30}):
        move_to(split, DATA, told, **({"offset": "0"} | wrong))
        refused(split, "not a readable ONNX file")


@pytest.mark.parametrize(
    "record", ["[]", "null", "7", "{", '{"file": "a"}', '{"file": 3, "sha256": "00", "bytes": 1}', "[" * 100_000]
)
def test_damaged_records(tmp_path: Path, unopened: None, record: str) -> None:
    refused(onnx_files.student(tmp_path / "a.onnx", external_data=record), r"damaged \(external_data\)")


def test_a_file_recorded_for_nothing(tmp_path: Path, unopened: None) -> None:
    told = json.dumps({"file": "b", "sha256": "0" * 64, "bytes": 3})
    refused(onnx_files.student(tmp_path / "a.onnx", external_data=told), "no tensor lies in it")


def test_an_older_onnxruntime(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        def add_session_config_entry(self, *_: str) -> None: ...

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    refused(split, f"its weights lie in {DATA}, which onnxruntime .* cannot take; update it")


# ---- what a file may hold --------------------------------------------------------------------------------------------


def spoil(proto: onnx.ModelProto, how: str) -> None:
    """One thing wrong with a good file."""
    graph = proto.graph
    node, tensor = graph.node[0], graph.initializer[0]
    inner = helper.make_graph([], "inner", [], [])
    big = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "big")
    if how in ("Loop", "Scan", "If", "RandomNormal", "ConstantOfShape", "Tile", "Concat", "Expand", "Evil\nline"):
        node.op_type = how
    elif how == "domain":
        node.domain = "evil.ops"
    elif how == "opset":
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    elif how == "function":
        proto.functions.append(helper.make_function("", "f", ["a"], ["b"], [], proto.opset_import))
    elif how == "training":
        proto.training_info.add()
    elif how == "subgraph":
        node.attribute.append(helper.make_attribute("body", inner))
    elif how == "nested type":
        value = graph.value_info.add(name="v")
        kind = value.type
        for _ in range(30):
            kind = kind.sequence_type.elem_type
        kind.denotation = "deep"
    elif how == "sparse":
        graph.sparse_initializer.add()
    elif how == "metadata twice":
        proto.metadata_props.add(key="format", value="simclrv2-2")
    elif how == "shape beyond data":
        tensor.dims[0] = 2**30
    elif how == "shape beyond integers":
        tensor.dims[:] = [2**39] * 4
    elif how == "negative shape":
        tensor.dims[0] = -4
    elif how == "data beyond shape":
        tensor.raw_data += b"\0\0\0\0"
    elif how == "data twice":
        tensor.float_data.append(1.0)
    elif how == "type":
        tensor.data_type = TensorProto.STRING
    elif how == "tensor twice":
        graph.initializer.append(tensor)
    elif how == "padding":
        node.attribute[0].ints[0] = 10**9
    elif how == "negative padding":
        node.attribute[0].ints[0] = -(10**9)
    elif how == "expanded":
        graph.initializer.append(big)
    elif how == "constant elsewhere":
        one = numpy_helper.from_array(np.ones(3, np.float32), "one")
        onnx.external_data_helper.set_external_data(one, "secret")
        one.ClearField("raw_data")
        graph.node.insert(0, helper.make_node("Constant", [], ["one"], value=one))
    elif how == "integers of floats":
        graph.node.insert(0, helper.make_node("Cast", ["kernel"], ["sizes"], to=onnx.TensorProto.INT64))
    elif how == "outer product":
        graph.node.insert(0, helper.make_node("Add", ["kernel", "kernel"], ["huge"]))
    elif how == "order":
        graph.node.insert(0, graph.node.pop())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("Loop", "uses the operator 'Loop'"),
        ("Scan", "uses the operator 'Scan'"),
        ("If", "uses the operator 'If'"),
        ("RandomNormal", "uses the operator 'RandomNormal'"),
        ("ConstantOfShape", "uses the operator 'ConstantOfShape'"),
        ("Tile", "uses the operator 'Tile'"),
        ("Evil\nline", "uses the operator 'Evil.line'"),
        ("domain", r"operators outside the ONNX standard \(evil\.ops\)"),
        ("opset", r"operators outside the ONNX standard \(com\.microsoft\)"),
        ("function", "defines functions of its own"),
        ("training", "a training of its own"),
        ("subgraph", "graphs within graphs"),
        ("nested type", "values that are not tensors"),
        ("sparse", "sparse tensors"),
        ("metadata twice", "its metadata have 'format' twice"),
        ("shape beyond data", "'kernel' has other data than its shape says"),
        ("shape beyond integers", "'kernel' has other data than its shape says"),
        ("negative shape", "the shape or the type of 'kernel'"),
        ("data beyond shape", "'kernel' has other data than its shape says"),
        ("data twice", "'kernel' has other data than its shape says"),
        ("type", "the shape or the type of 'kernel'"),
        ("tensor twice", "a tensor is there twice"),
        ("padding", "its pads are beyond 0 to 256"),
        ("negative padding", "its pads are beyond 0 to 256"),
        ("expanded", "'big' asks for 1099511627776 values"),
        ("constant elsewhere", "uses the operator 'Constant'"),
        ("integers of floats", "casts to something else than float32"),
        ("Concat", "uses the operator 'Concat'"),
        ("Expand", "uses the operator 'Expand'"),
        ("outer product", "computes 'Add' from constants alone"),
        ("order", "a node comes before what it needs"),
    ],
)
def test_refused(student: Path, unopened: None, how: str, said: str) -> None:
    proto = onnx.load(student)
    spoil(proto, how)
    student.write_bytes(proto.SerializeToString())
    refused(student, said)


def test_parts_that_protobuf_would_merge(student: Path, unopened: None) -> None:
    """A second graph, or a tensor whose second half says that it lies elsewhere."""
    content = student.read_bytes()
    proto = onnx.load(student)
    only = onnx.ModelProto()
    only.graph.CopyFrom(proto.graph)
    student.write_bytes(content + only.SerializeToString())
    refused(student, "not a readable ONNX file")
    attribute = helper.make_attribute("value", numpy_helper.from_array(np.ones(2, np.float32), "a"))
    again = onnx.AttributeProto(t=onnx.TensorProto(data_location=TensorProto.EXTERNAL))
    with pytest.raises(wire._DamagedError, match="a part is there twice"):
        wire._attribute(memoryview(attribute.SerializeToString() + again.SerializeToString()))


def test_the_sizes_of_every_way_to_store_a_tensor() -> None:
    for values in (
        np.ones((2, 3), np.float32), np.ones((2, 3), np.float16), np.ones(4, np.int8), np.ones(4, np.uint8),
        np.full(3, -7), np.array(300, np.int32), np.ones(5, bool), np.ones((2, 2)), np.ones((0, 4), np.float32),
    ):  # fmt: skip
        raw = numpy_helper.from_array(values, "t")
        typed = helper.make_tensor("t", raw.data_type, values.shape, values.ravel().tolist())
        for tensor in (raw, typed):
            assert wire._tensor(memoryview(tensor.SerializeToString())) == ("t", None)


def test_what_a_network_needs_passes() -> None:
    """The student that comes with this package, as the oldest file there is."""
    path = Path(export.__file__).parent / "bundled" / "r18_1x.imagenette_distilled.onnx"
    contents = wire.refuse_unsafe(path.read_bytes(), path)
    assert contents.metadata["architecture"] == "r18_1x"
    assert contents.spans == []


# ---- noise -----------------------------------------------------------------------------------------------------------


def mutants(content: bytes, count: int) -> list[bytes]:
    """Cut short, with bytes changed, with pieces gone, doubled or exchanged; the same ones every time."""
    draw, made = np.random.default_rng(5), []
    for number in range(count):
        data = bytearray(content)
        at, until = sorted(int(place) for place in draw.integers(0, len(data), 2))
        kind = number % 5
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            for place in draw.integers(0, len(data), int(draw.integers(1, 4))):
                data[place] ^= 1 << int(draw.integers(0, 8))
        elif kind == 2:
            data[at] = int(draw.integers(0, 256))
        elif kind == 3:
            del data[at : at + int(draw.integers(1, 9))]
        else:
            data[at:at] = data[at : min(until, at + 40)]
        made.append(bytes(data))
    return made


@pytest.mark.parametrize("old", [False, True])
def test_noise_is_refused_or_works(student: Path, tmp_path: Path, old: bool) -> None:
    if old:  # without a self-test, and few metadata, so that the noise is in the graph
        proto = onnx.load(student)
        told = {"format": "simclrv2-1", "architecture": "a", "image_size": "8", "preprocessing": "p", "labels": "[]"}
        onnx_files.write(student, proto, told | {"facts": "{}"})
    path, loaded, told_lines = tmp_path / "mutant.onnx", 0, set()
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    for data in mutants(student.read_bytes(), 400):
        path.write_bytes(data)
        try:
            export.OnnxModel(path, threads=1)(images)
            loaded += 1
        except ValueError as error:
            told_lines.add(str(error))
    assert 0 < loaded < 390
    assert len(told_lines) > 10
    assert all(len(line.splitlines()) == 1 for line in told_lines)
