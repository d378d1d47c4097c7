"""Which convolutions of a network may be 8-bit integers: all, or as many as leave its answers as they were."""

from typing import NamedTuple

import numpy as np
import onnxruntime
from tqdm import tqdm

from export.graph import Graph, ImageInput, halve
from export.quantize import Ranges, calibrate, quantise
from export.samples import Samples, as_input
from export.session import open_graph, run

AGREEMENT = 0.975  # the least share of images that must get the same answer as in float
LOST = 0.005  # the most top-1 accuracy that may be lost, where there are labels
ALIKE = 0.98  # without a classifier two answers are the same if the cosine of their features is as high
_BATCH = 8
_PROBED = 32  # pictures on which the error of one layer is measured


class Layer(NamedTuple):
    """A convolution, the error of the outputs if it alone is integers (root mean square, relative), and what it is."""

    name: str
    error: float
    integer: bool


class Judgement(NamedTuple):
    """Integers against float on the judged images: how many there were, the share with the same answer, top-1 of both
    where there were labels."""

    images: int
    agreement: float
    float_top1: float | None
    top1: float | None

    @property
    def good(self) -> bool:
        kept = self.top1 is None or self.float_top1 is None or self.top1 >= self.float_top1 - LOST
        return self.agreement >= AGREEMENT and kept


class Chosen(NamedTuple):
    """The graph as it will be written, and with every convolution in integers; how each is judged; the layers."""

    graph: Graph
    everywhere: Graph
    judgement: Judgement
    judgement_everywhere: Judgement
    layers: list[Layer]


def choose(
    graph: Graph,
    calibration: Samples,
    judged: Samples,
    labels: np.ndarray | None,
    *,
    image_input: ImageInput,
    opset: int,
) -> Chosen:
    """A graph in integers that answers as ``graph`` does: 97.5 % of the ``judged`` pictures get the same class, and
    with ``labels`` (N,) the top-1 accuracy is at most 0.5 points lower. Of the layers that hurt most, alone, as many
    stay in float as it takes; what is float is stored as float16.
    """
    with tqdm(total=len(calibration), desc="calibrate", unit="image", disable=None) as bar:
        ranges = calibrate(graph, _watched(calibration, image_input, bar), opset=opset)
    wanted = answers(open_graph(graph, opset=opset), judged, image_input, desc="float answers")
    errors = _layer_errors(graph, ranges, judged, image_input, opset)
    worst_first = sorted(errors, key=lambda name: -errors[name])
    tried: dict[int, tuple[Graph, Judgement]] = {}

    def good(floats: int) -> bool:
        if floats not in tried:
            candidate = halve(quantise(graph, ranges, set(worst_first[floats:])))
            found = answers(open_graph(candidate, opset=opset), judged, image_input, desc=f"{floats} layers in float")
            tried[floats] = candidate, judge(wanted, found, labels)
        return tried[floats][1].good

    floats = _fewest(good, len(worst_first))
    candidate, judgement = tried[floats]
    layers = [Layer(name, errors[name], name in worst_first[floats:]) for name in graph.convolutions]
    return Chosen(candidate, tried[0][0], judgement, tried[0][1], layers)


def _watched(samples: Samples, image_input: ImageInput, bar: tqdm):  # type: ignore[no-untyped-def]
    for _, pictures in samples.batches(_BATCH):
        yield as_input(pictures, image_input)
        bar.update(len(pictures))


def _fewest(good, most: int) -> int:  # type: ignore[no-untyped-def]
    """The smallest number that is good, if all above it are: 0, 1, 2, 4, ... and then by halves."""
    bad, number = -1, 0
    while not good(number) and number < most:
        bad, number = number, min(max(1, 2 * number), most)
    while number - bad > 1:
        middle = (number + bad) // 2
        bad, number = (bad, middle) if good(middle) else (middle, number)
    return number


class Answers(NamedTuple):
    """Places (n,) of the pictures, and their logits, or features of a model without a classifier."""

    places: np.ndarray
    values: np.ndarray
    classes: bool


def answers(session: onnxruntime.InferenceSession, samples: Samples, image_input: ImageInput, *, desc: str) -> Answers:
    """What a session answers to all pictures, with a progress bar."""
    places, values = [], []
    classes = "logits" in {output.name for output in session.get_outputs()}
    with tqdm(total=len(samples), desc=desc, unit="image", disable=None) as bar:
        for place, pictures in samples.batches(_BATCH):
            places.append(place)
            values.append(run(session, as_input(pictures, image_input))["logits" if classes else "features"])
            bar.update(len(place))
    return Answers(np.concatenate(places), np.concatenate(values), classes)


def judge(wanted: Answers, found: Answers, labels: np.ndarray | None) -> Judgement:
    """One set of answers against another, to the same pictures; ``labels`` (N,) of all pictures, by place."""
    if not wanted.classes:
        lengths = np.linalg.norm(wanted.values, axis=1) * np.linalg.norm(found.values, axis=1)
        cosines = (wanted.values * found.values).sum(1) / np.maximum(lengths, 1e-12)
        return Judgement(len(wanted.places), float((cosines >= ALIKE).mean()), None, None)
    first, second = wanted.values.argmax(1), found.values.argmax(1)
    agreement = float((first == second).mean())
    if labels is None:
        return Judgement(len(wanted.places), agreement, None, None)
    truth = labels[wanted.places]
    return Judgement(len(truth), agreement, float((first == truth).mean()), float((second == truth).mean()))


def _layer_errors(
    graph: Graph, ranges: Ranges, judged: Samples, image_input: ImageInput, opset: int
) -> dict[str, float]:
    probe = judged.part(0, max(1, len(judged) // _PROBED))
    wanted = answers(open_graph(graph, opset=opset), probe, image_input, desc="float answers")
    size = float(np.sqrt((wanted.values.astype(np.float64) ** 2).mean()))
    errors = {}
    for name in tqdm(graph.convolutions, desc="layer by layer", unit="layer", disable=None):
        alone = open_graph(quantise(graph, ranges, {name}), opset=opset)
        found = [run(alone, as_input(pictures, image_input)) for _, pictures in probe.batches(_BATCH)]
        values = np.concatenate([outputs["logits" if wanted.classes else "features"] for outputs in found])
        errors[name] = float(np.sqrt(((values - wanted.values).astype(np.float64) ** 2).mean())) / max(size, 1e-12)
    return errors
