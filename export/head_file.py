"""A taught head into a copy of a student's ONNX file: the same features, another classifier; no torch.

The package onnx edits the file; it is imported where it is used, as serving alone does without it.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export import selftest
from export.heads import Head, Taught, check_classes, logits
from export.runtime import FORMAT, OnnxModel
from zoo.files import check_room, written_whole

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 2**31 - 2**24  # of one file: protobuf's limit, less room for the rest
_OF_THE_FEATURES = ("weights", "data", "recipe", "stage", "training_images")  # facts that hold whatever the classifier
_SAME = 1e-5  # of the sum of what is added up, whatever its sign: what two orders of float32 may differ by


def taught_facts(taught: Taught) -> dict[str, Any]:
    """What a taught file should tell of its head, plain values."""
    return {
        "examples": taught.examples,
        "leave_one_out": taught.accuracy,
        "leave_one_out_per_class": taught.per_class,
        "measured": taught.measured,
        "chance": taught.chance,
        "shrinkage": taught.shrinkage,
        "note": taught.note,
    }


def save_head(
    student: Path, head: Head, out: Path, *, facts: Mapping[str, Any] | None = None, fingerprint: str | None = None
) -> Path:
    """Write a copy of a student whose classifier is ``head``, on its features, and return ``out``.

    ``student``: a file of ``simclr export``, in fp32, fp16 or int8, with a classifier, on whatever layer, or without.
    Its other outputs stay the same to the last bit, and what only the old classifier needed goes. The head is kept in
    float32 and made for features as they are, not of length one (``export.heads.for_length``). ``facts``: how it was
    taught (``taught_facts``); the date and the student's name and SHA-256 are added, and the student's accuracy and
    whatever else was told of its classifier is gone. The self-test is made anew, and the file opened as its users will
    before it appears. ``fingerprint``: of the student that the head was taught on (``OnnxModel.fingerprint``), where it
    was opened earlier.

    Raises ValueError, in one line, for a file that ``OnnxModel`` refuses, one of another fingerprint, one with its
    weights in a second file, a head of another width, class names that ``check_classes`` refuses, or an ``out`` that
    cannot be.
    """
    student, out = Path(student), Path(out)
    _check_out(student, out)
    model = OnnxModel(student)
    if fingerprint not in (None, model.fingerprint):
        raise ValueError(
            f"{student}: replaced since the head was taught on it; open it again (restart the app), and teach it again."
        )
    _check_head(model, head)
    try:
        import onnx
    except ImportError:
        raise ValueError("Saving a taught student needs the package onnx: pip install onnx.") from None
    content = student.read_bytes()
    if hashlib.sha256(content).hexdigest() != model.fingerprint:
        raise ValueError(f"{student}: changed while it was read; try again.")
    proto = onnx.load_model_from_string(content)
    del content
    _refuse_external(proto, student)
    _exchange(proto, head, student)
    told = _metadata(proto, model, head, facts or {})
    if told["format"] == FORMAT:
        told["self_test"] = selftest.self_test(_answers(proto, model))
    onnx.helper.set_model_props(proto, told)
    if proto.ByteSize() > MOST_BYTES:
        raise ValueError(
            f"{student}: with {len(head.classes)} classes it is more than one ONNX file can have; use fp16."
        )
    check_room(out.parent, proto.ByteSize(), out.name)
    with written_whole(out) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(str(temporary))
        _compare(OnnxModel(temporary), model, head)
    return out


# ---- what is refused -------------------------------------------------------------------------------------------------


def _check_out(student: Path, out: Path) -> None:
    if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
        raise ValueError(f"{out}: {'a folder' if out.is_dir() else 'not in a folder'}; name a file to write.")
    if out.name.startswith(".") or ":" in out.name:
        raise ValueError(f"{out}: choose a file name without a leading dot or a colon.")
    if out.exists() and student.exists() and out.samefile(student):
        raise ValueError(f"{out}: the student itself, which stays as it is; give another name.")


def _check_head(model: OnnxModel, head: Head) -> None:
    check_classes(head.classes)
    weight, bias = np.asarray(head.weight), np.asarray(head.bias)
    count = len(head.classes)
    if count < 1 or weight.ndim != 2 or len(weight) != count or bias.shape != (count,):
        raise ValueError(f"A head of weights {weight.shape} and bias {bias.shape} for {count} classes does not fit.")
    if weight.shape[1] != model.feature_width:
        raise ValueError(
            f"The head reads {weight.shape[1]} features and {model.path} makes {model.feature_width}; "
            "teach it on this student's features."
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("The head has values that are no finite numbers; teach it again.")


def _refuse_external(proto: "onnx.ModelProto", student: Path) -> None:
    if any(tensor.external_data for tensor in proto.graph.initializer):
        raise ValueError(
            f"{student}: its weights lie in a second file, into which no head is saved; export it with weights='fp16'."
        )


# ---- the graph -------------------------------------------------------------------------------------------------------


def _exchange(proto: "onnx.ModelProto", head: Head, student: Path) -> None:
    """Another classifier in the graph; what leads to no output any more is taken out."""
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    others = [value for value in graph.output if value.name != "logits"]
    del graph.output[:]
    graph.output.extend(others)
    _drop_unused(graph)
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {"images"}
    if "logits" in taken:
        raise ValueError(f"{student}: what it makes of its logits is an output too; export it again.")
    names = [_free(f"logits.{part}", taken) for part in ("weight", "bias")]
    for name, values in zip(names, (head.weight, head.bias), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    graph.node.append(helper.make_node("Gemm", ["features", *names], ["logits"], name="logits", transB=1))
    shape = ["N", len(head.classes)]
    place = next(number for number, value in enumerate(others) if value.name == "features") + 1
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    del graph.output[:]
    graph.output.extend([*others[:place], made, *others[place:]])


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += ".taught"
    return name


def _drop_unused(graph: "onnx.GraphProto") -> None:
    """Take out the nodes and weights that lead to no output."""
    needed = {value.name for value in graph.output}
    for place in reversed(range(len(graph.node))):  # they are in the order in which they run
        if needed.intersection(graph.node[place].output):
            needed.update(graph.node[place].input)
        else:
            del graph.node[place]
    for field in (graph.initializer, graph.value_info):
        for place in reversed(range(len(field))):
            if field[place].name not in needed:
                del field[place]


# ---- what the file says of itself ------------------------------------------------------------------------------------


def _metadata(proto: "onnx.ModelProto", model: OnnxModel, head: Head, facts: Mapping[str, Any]) -> dict[str, str]:
    """The student's metadata with what the new classifier changes; without a self-test."""
    told = {entry.key: entry.value for entry in proto.metadata_props}
    before = {key: model.facts[key] for key in _OF_THE_FEATURES if key in model.facts}
    source = {"file": model.path.name, "sha256": model.fingerprint, "facts": before}
    if "weights_sha256" in told:
        source["weights_sha256"] = told.pop("weights_sha256")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    new: dict[str, Any] = {"weights": "taught", "taught": {"date": day, **facts}, "student": source}
    if "licence" in model.facts:
        new["licence"] = model.facts["licence"]
    told.pop("self_test", None)
    try:
        told["facts"] = json.dumps(new, ensure_ascii=False, sort_keys=True, allow_nan=False)
        told["facts"].encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The facts of the head cannot be kept as JSON ({' '.join(str(error).split())[:120]})."
        ) from None
    return told | {
        "labels": json.dumps(list(head.classes), ensure_ascii=False),
        "classify_from": "0",
        "accuracy": json.dumps({"source": {}, "measured": {}}),
        "external_data": "{}",
    }


def _answers(proto: "onnx.ModelProto", model: OnnxModel) -> dict[str, np.ndarray]:
    """What the graph makes of the images of the self-test."""
    import onnxruntime

    images = selftest.self_test_images(selftest.IMAGES, model.image_size)
    if model.image_input == "float":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def _compare(made: OnnxModel, model: OnnxModel, head: Head) -> None:
    """Raise ValueError unless the copy answers as the student does, and classifies as the head does."""
    images = selftest.self_test_images(selftest.IMAGES, model.image_size)
    before, after = model(images), made(images)
    assert after.logits is not None
    off = np.abs(after.logits - logits(head, before.features))
    added = np.abs(before.features) @ np.abs(head.weight).T + np.abs(head.bias)  # what rounding is a share of
    if not np.array_equal(before.features, after.features) or not (off <= _SAME * added).all():
        raise ValueError(
            f"{model.path}: its copy answers differently on this machine (logits differ by {off.max():.3g}); "
            "nothing was written."
        )
