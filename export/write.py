"""A model of the zoo as an ONNX file: built, perhaps quantised, checked against torch, and only then there."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import mmap
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch

from export import checks, samples, selftest
from export.choose import Chosen, answers, choose, judge
from export.fold import fold_batch_norms, round_to_half
from export.graph import Graph, ImageInput, build, halve, to_proto, weights_outside
from export.report import Form, Report, timed
from export.runtime import FORMAT, OnnxModel
from export.samples import Source
from export.session import open_graph, run
from zoo.files import check_room, json_text, written_whole
from zoo.model_file import weights_sha256
from zoo.resnet import SMALL_IMAGE
from zoo.simclr import SimCLR
from zoo.transforms import CROP_FRACTION

Weights = Literal["fp32", "fp16", "int8"]

OPSET, OLDEST_OPSET = 20, 13
RESIZED = (
    "simclrv2-eval-1: central crop of 87.5 % of the shorter side, TensorFlow 1 bicubic resize to image_size, values in "
    "[0, 1], RGB, no mean or deviation taken out (zoo.preprocess)."
)
AS_IS = "simclrv2-eval-1: images of image_size as they are, values in [0, 1], RGB, no mean or deviation taken out."
MOST_BYTES = 2**31 - 2**24  # of weights in one file: protobuf's limit, less room for the rest
CALIBRATED, JUDGED = 512, 1024  # pictures taken at most: to calibrate; to judge where there are no labels


def to_onnx(
    model: SimCLR,
    path: str | Path,
    *,
    weights: Weights = "fp32",
    calibration: "Source | None" = None,
    images: "Source | None" = None,
    labels: Sequence[int] | np.ndarray | None = None,
    image_input: ImageInput = "float",
    opset: int = OPSET,
) -> Path:
    """Write a model as an ONNX file that needs nothing else: labels, preprocessing, facts and a self-test are in it.

    Input ``images``: float32 (N, 3, S, S) in [0, 1], or with ``image_input="uint8"`` uint8 (N, S, S, 3). Outputs
    ``features`` (N, D), ``logits`` (N, classes) with a classifier and ``projections`` (N, 128) with a projector. N is
    free. Above 2 GB the weights lie in a second file beside it, named and hashed in the first.

    ``weights``: "fp16" stores half the bytes and computes in float32. "int8" computes convolutions in 8-bit integers,
    calibrated on ``calibration``, pictures without labels; as many layers stay in float as it takes for 97.5 % of the
    answers to be the same and, with ``labels``, for top-1 to be at most 0.5 points lower.

    ``images``: pictures to check and measure on; generated ones, or for "int8" every other one of ``calibration``,
    unless given. ``labels``: their classes (N,), numbers; the accuracy of the written file is then measured and told in
    its metadata. Both sources: a folder, a list of paths, PIL images or uint8 arrays, or float32 (N, 3, S, S).

    Outputs are compared with torch's at batch 1, 2, 7 and 32 (1e-4 of the largest; "fp16": with those of the rounded
    weights, and to 1e-2 with those of the weights before; "int8": the network in float, before it is made of integers),
    and an image's with itself at other places (1e-5). A warning tells if integers are slower than float here.

    Raises ValueError, in one line, for options that do not fit, and ParityError (a ValueError) where answers differ;
    then nothing is written.
    """
    return export_model(
        model, path, weights=weights, calibration=calibration, images=images, labels=labels,
        image_input=image_input, opset=opset,
    ).path  # fmt: skip


def export_model(
    model: SimCLR,
    path: str | Path,
    *,
    weights: Weights = "fp32",
    calibration: "Source | None" = None,
    images: "Source | None" = None,
    labels: Sequence[int] | np.ndarray | None = None,
    image_input: ImageInput = "float",
    opset: int = OPSET,
) -> Report:
    """``to_onnx``, and what was measured on the way."""
    path = Path(path)
    _check(model, path, weights, calibration, image_input, opset)
    judged = None if images is None else samples.Samples(images, model.image_size, what="images")
    truth = _truth(model, judged, labels)
    pictures = judged.first(32) if judged else samples.textures(32, model.image_size)
    graph, session = _checked_graph(model, pictures, weights, image_input, opset)
    written, chosen = graph, None
    if weights == "int8":
        assert calibration is not None
        chosen = _quantised(model, graph, calibration, judged, truth, image_input, opset)
        written, session = chosen.graph, open_graph(chosen.graph, opset=opset)
        checks.check_places(session, pictures, image_input)
    measured = _measured(chosen, session, judged, truth, image_input)
    told = metadata(model, weights, image_input) | {
        "accuracy": json.dumps({"source": model.facts.get("accuracy", {}), "measured": measured}),
        "self_test": selftest.self_test(run(session, _self_test_input(model, image_input))),
    }
    if chosen:
        told["quantisation"] = json.dumps({"layers": [layer._asdict() for layer in chosen.layers]})
    size = _write(written, path, opset=opset, metadata=told)
    report = _report(path, size, weights, graph, chosen, measured, samples.as_input(pictures[:8], image_input), opset)
    slower = report.slower()
    if slower:
        warnings.warn(slower, stacklevel=3)
    return report


def _check(
    model: SimCLR,
    path: Path,
    weights: str,
    calibration: "Source | None",
    image_input: str,
    opset: int,
) -> None:
    if not isinstance(model, SimCLR):
        raise ValueError(
            f"A {type(model).__name__} is not a model of zoo; make one with zoo.create, load or load_file."
        )
    if weights not in get_args(Weights):
        raise ValueError(f"Unknown weights {weights!r}. Choose from: {', '.join(get_args(Weights))}.")
    if image_input not in get_args(ImageInput):
        raise ValueError(f"Unknown image_input {image_input!r}. Choose from: {', '.join(get_args(ImageInput))}.")
    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset={opset!r}: choose from {OLDEST_OPSET} to {newest}; {OPSET} is the default.")
    if weights == "int8" and calibration is None:
        raise ValueError("weights='int8' needs calibration, a folder of a few hundred of your pictures (no labels).")
    if weights != "int8" and calibration is not None:
        raise ValueError(f"calibration is for weights='int8', not {weights!r}; to check and measure, give images.")
    if model.classes and len(model.classes) != model.num_classes:
        raise ValueError(f"The model has {len(model.classes)} class names for {model.num_classes} classes.")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise ValueError(f"{path}: {'a folder' if path.is_dir() else 'not in a folder'}; name a file to write.")
    if path.name.startswith(".") or ":" in path.name:
        raise ValueError(f"{path}: choose a file name without a leading dot or a colon.")


def _truth(
    model: SimCLR, judged: samples.Samples | None, labels: Sequence[int] | np.ndarray | None
) -> np.ndarray | None:
    """The labels as numbers (N,), once they fit the images and the model."""
    if labels is None:
        return None
    truth = np.asarray(labels)
    if judged is None or truth.shape != (len(judged),):
        count = len(truth) if truth.ndim == 1 else f"An array {truth.shape} of"
        raise ValueError(f"{count} labels for {len(judged) if judged else 0} images; give one for each.")
    if model.num_classes is None:
        raise ValueError("labels need a model with a classifier; this one embeds only.")
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= model.num_classes:
        shown = sorted(set(truth.tolist()))
        raise ValueError(
            f"labels are class numbers from 0 to {model.num_classes - 1}, not {shown[0]!r} to {shown[-1]!r}."
        )
    return truth


def _checked_graph(
    model: SimCLR, pictures: np.ndarray, weights: Weights, image_input: ImageInput, opset: int
) -> tuple[Graph, Any]:
    """The network in float, the same as torch's, and at work on onnxruntime. int8 begins here too."""
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval()
    wanted = checks.torch_outputs(reference, pictures, image_input)
    del reference
    folded = fold_batch_norms(model)
    if weights == "fp16":
        round_to_half(folded)
    graph = build(folded, image_input=image_input)
    if weights == "fp16":
        graph = halve(graph)
    session = open_graph(graph, opset=opset)
    if weights == "fp16":
        checks.check_parity(wanted, session, pictures, image_input, tolerance=checks.HALF_TOLERANCE)
        wanted = checks.torch_outputs(folded, pictures, image_input)
    checks.check_parity(wanted, session, pictures, image_input)
    checks.check_places(session, pictures, image_input)
    return graph, session


def _quantised(
    model: SimCLR,
    graph: Graph,
    calibration: "Source",
    judged: samples.Samples | None,
    truth: np.ndarray | None,
    image_input: ImageInput,
    opset: int,
) -> Chosen:
    """The network in integers, judged on ``judged``, or on every other picture of the calibration: on none that it was
    calibrated on."""
    if judged is None:
        both = samples.Samples(calibration, model.image_size, what="calibration", most=2 * CALIBRATED)
        if len(both) < 2:
            raise ValueError("calibration: one picture is not enough; give some hundred, as varied as those to come.")
        shown, judged = both.part(0, 2), both.part(1, 2)
    else:
        shown = samples.Samples(calibration, model.image_size, what="calibration").without(judged).at_most(CALIBRATED)
        if truth is None:
            judged = judged.at_most(JUDGED)
    return choose(graph, shown, judged, truth, image_input=image_input, opset=opset)


def _measured(
    chosen: Chosen | None,
    session: Any,
    judged: samples.Samples | None,
    truth: np.ndarray | None,
    image_input: ImageInput,
) -> dict[str, float | int]:
    """What is known of the very graph that is written: ``images``, ``top1`` and, for integers, how it agrees
    with float."""
    if chosen:
        judgement = chosen.judgement
    elif truth is not None and judged is not None:
        found = answers(session, judged, image_input, desc="measure")
        judgement = judge(found, found, truth)
    else:
        return {}
    told: dict[str, float | int] = {"images": judgement.images}
    if judgement.top1 is not None:
        told["top1"] = round(judgement.top1, 6)
    if chosen:
        told |= {"agreement": round(judgement.agreement, 6), "features_cosine": round(judgement.cosine, 6)}
    return told


def _report(
    path: Path,
    size: int,
    weights: Weights,
    graph: Graph,
    chosen: Chosen | None,
    measured: dict[str, Any],
    batch: np.ndarray,
    opset: int,
) -> Report:
    if chosen is None:
        form = Form(weights, graph.nbytes(), {}, measured.get("top1"), None, None)
        return Report(path, size, measured.get("images", 0), [form], [])
    graphs = {"fp32": graph, "int8 everywhere": chosen.everywhere, "int8": chosen.graph}
    if chosen.everywhere is chosen.graph:
        del graphs["int8 everywhere"]
    times = timed({name: open_graph(each, opset=opset) for name, each in graphs.items()}, batch)
    everywhere, judgement = chosen.judgement_everywhere, chosen.judgement
    answered = {
        "fp32": (judgement.float_top1, None, None),
        "int8 everywhere": (everywhere.top1, everywhere.agreement, everywhere.cosine),
        "int8": (judgement.top1, judgement.agreement, judgement.cosine),
    }
    forms = [Form(name, each.nbytes(), times[name], *answered[name]) for name, each in graphs.items()]
    return Report(path, size, judgement.images, forms, chosen.layers)


# ---- the file --------------------------------------------------------------------------------------------------------


def _write(graph: Graph, path: Path, *, opset: int, metadata: dict[str, str]) -> int:
    """The file, or both, whole or not at all; read back as its users will before it appears. The bytes written."""
    with _weights_beside(graph, path) as record:
        told = metadata | {"external_data": json.dumps(record)}
        proto, _ = to_proto(graph, opset=opset, metadata=told, outside=record.get("file"))
        with written_whole(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            onnx.checker.check_model(str(temporary))
            size = OnnxModel(temporary).file_bytes
    for old in _data_files(path):
        if old.name != record.get("file") and not _is_named_by_another(old, path):
            old.unlink()
    return size


@contextlib.contextmanager
def _weights_beside(graph: Graph, path: Path) -> Iterator[dict[str, Any]]:
    """The second file of a large model while the first is made, and its record; none ({}) for a smaller one.

    It is called by its content, so that an older model beside it keeps its own until the new one is there.
    """
    if graph.nbytes() <= MOST_BYTES:
        yield {}
        return
    digest, size = hashlib.sha256(), 0
    for part in weights_outside(graph):
        digest.update(part)
        size += len(part)
    beside = path.with_name(f"{path.name}.{digest.hexdigest()[:12]}.data")
    known = beside.exists()
    check_room(path.parent, size, f"{path.name} with its weights")
    try:
        with written_whole(beside) as temporary, temporary.open("wb") as file:
            file.writelines(weights_outside(graph))
        yield {"file": beside.name, "sha256": digest.hexdigest(), "bytes": size}
    except BaseException:
        if not known:
            beside.unlink(missing_ok=True)
        raise


def _is_named_by_another(data: Path, path: Path) -> bool:
    """Whether another model of the folder takes its weights from this file, an earlier one that was renamed, or that
    cannot be told."""
    for other in path.parent.glob("[!.]*.onnx"):
        try:
            if other.name != path.name and other.is_file() and other.stat().st_size:
                with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    if content.find(data.name.encode()) >= 0:
                        return True
        except OSError:
            return True
    return False


def _data_files(path: Path) -> list[Path]:
    """The files of weights that were written for a model of this name."""
    ours = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    return [file for file in path.parent.iterdir() if ours.fullmatch(file.name)]


def metadata(model: SimCLR, weights: Weights, image_input: ImageInput) -> dict[str, str]:
    """What the file says of the model, all strings."""
    resized = model.image_size > SMALL_IMAGE
    return {
        "format": FORMAT,
        "architecture": model.spec.name,
        "spec": json.dumps(dataclasses.asdict(model.spec)),
        "image_size": str(model.image_size),
        "image_input": image_input,
        "preprocessing": RESIZED if resized else AS_IS,
        "preprocess": json.dumps(
            {
                "crop": CROP_FRACTION if resized else None,
                "resize": "tf1-bicubic" if resized else None,
                "channels": "RGB",
                "range": [0, 1],
            }
        ),
        "labels": json_text(list(model.classes)),
        "classify_from": str(model.classify_from),
        "weights": weights,
        "weights_sha256": weights_sha256(model),
        "facts": json_text(model.facts, sort_keys=True),
        "licence": str(model.facts.get("licence", "unknown")),
    }


def _self_test_input(model: SimCLR, image_input: ImageInput) -> np.ndarray:
    images = selftest.self_test_images(selftest.IMAGES, model.image_size)
    return images if image_input == "uint8" else images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
