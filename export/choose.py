"""Which convolutions of a network may be 8-bit integers: all, or as many as leave its answers as they were."""

from typing import NamedTuple

import numpy as np
import onnxruntime
from tqdm import tqdm

from export.checks import ParityError
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
    where there were labels, and the mean cosine of the features."""

    images: int
    agreement: float
    float_top1: float | None
    top1: float | None
    cosine: float

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
    stay in float as it takes; what is float is stored as float16. Raises ParityError if that is not to be had.
    """
    with tqdm(total=len(calibration), desc="calibrate", unit="image", disable=None) as bar:
        ranges = calibrate(graph, _watched(calibration, image_input, bar), opset=opset)
    wanted = answers(open_graph(graph, opset=opset), judged, image_input, desc="float answers")
    errors = _layer_errors(graph, ranges, judged, image_input, opset)
    worst_first = sorted(errors, key=lambda name: -errors[name])
    tried: dict[int, tuple[Graph | None, Judgement]] = {}

    def good(floats: int) -> bool:
        if floats not in tried:
            candidate = halve(quantise(graph, ranges, set(worst_first[floats:])))
            session = open_graph(candidate, opset=opset)
            found = answers(session, judged, image_input, desc=f"{floats} layers in float")
            judgement = judge(wanted, found, labels)
            tried[floats] = candidate if judgement.good or not floats else None, judgement
        return tried[floats][1].good

    floats = _fewest(good, len(worst_first))
    candidate, judgement = tried[floats]
    if not judgement.good or candidate is None or floats == len(worst_first):
        said = _refusal({floats: each for floats, (_, each) in tried.items()}, len(worst_first))
        raise ParityError(
            f"No form in integers answers as this network does: {said}. Nothing was written; use fp32 or fp16."
        )
    layers = [Layer(name, errors[name], name in worst_first[floats:]) for name in graph.convolutions]
    everywhere = tried[0][0]
    assert everywhere is not None
    return Chosen(candidate, everywhere, judgement, tried[0][1], layers)


def _refusal(judged: dict[int, Judgement], most: int) -> str:
    """What the best form answered that has integers at all, beside what was asked for; by number of layers in float."""
    floats, best = max(
        ((floats, each) for floats, each in judged.items() if floats < most or not most),
        key=lambda form: (form[1].good, form[1].agreement, form[1].top1 or 0),
    )
    said = f"with {most - floats} of {most} convolutions in integers {best.agreement:.1%} of {best.images} answers are "
    said += f"the same (asked for: {AGREEMENT:.1%})"
    if best.top1 is not None and best.float_top1 is not None:
        said += f" and top-1 is {best.top1:.1%} instead of {best.float_top1:.1%} (asked for: at most {LOST:.1%} less)"
    return said


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
    """Places (n,) of the pictures, their features (n, D), and their logits, None without a classifier."""

    places: np.ndarray
    features: np.ndarray
    logits: np.ndarray | None

    @property
    def values(self) -> np.ndarray:
        """The logits, or the features where there are none."""
        return self.features if self.logits is None else self.logits


def answers(
    session: onnxruntime.InferenceSession, samples: Samples, image_input: ImageInput, *, desc: str | None = None
) -> Answers:
    """What a session answers to all pictures; with a progress bar, if it has a name."""
    places, found = [], []
    with tqdm(total=len(samples), desc=desc, unit="image", disable=None if desc else True) as bar:
        for place, pictures in samples.batches(_BATCH):
            places.append(place)
            found.append(run(session, as_input(pictures, image_input)))
            bar.update(len(place))
    features, logits = (
        np.concatenate([outputs[name] for outputs in found]) if name in found[0] else None
        for name in ("features", "logits")
    )
    assert features is not None
    return Answers(np.concatenate(places), features, logits)


def judge(wanted: Answers, found: Answers, labels: np.ndarray | None) -> Judgement:
    """One set of answers against another, to the same pictures; ``labels`` (N,) of all pictures, by place.

    Answers are the same if the class is; without a classifier, or with one class only, if the cosine of the features
    is 0.98 or more.
    """
    lengths = np.linalg.norm(wanted.features, axis=1) * np.linalg.norm(found.features, axis=1)
    cosines = (wanted.features * found.features).sum(1) / np.maximum(lengths, 1e-12)
    cosine, images = float(cosines.mean()), len(wanted.places)
    if wanted.logits is None or found.logits is None:
        return Judgement(images, float((cosines >= ALIKE).mean()), None, None, cosine)
    first, second = wanted.logits.argmax(1), found.logits.argmax(1)
    same = first == second if wanted.logits.shape[1] > 1 else cosines >= ALIKE
    if labels is None:
        return Judgement(images, float(same.mean()), None, None, cosine)
    truth = labels[wanted.places]
    return Judgement(
        images, float(same.mean()), float((first == truth).mean()), float((second == truth).mean()), cosine
    )


def _layer_errors(
    graph: Graph, ranges: Ranges, judged: Samples, image_input: ImageInput, opset: int
) -> dict[str, float]:
    probe = judged.part(0, max(1, len(judged) // _PROBED))
    wanted = answers(open_graph(graph, opset=opset), probe, image_input, desc="float answers")
    size = float(np.sqrt((wanted.values.astype(np.float64) ** 2).mean()))
    errors = {}
    for name in tqdm(graph.convolutions, desc="layer by layer", unit="layer", disable=None):
        alone = open_graph(quantise(graph, ranges, {name}), opset=opset)
        values = answers(alone, probe, image_input).values
        errors[name] = float(np.sqrt(((values - wanted.values).astype(np.float64) ** 2).mean())) / max(size, 1e-12)
    return errors
