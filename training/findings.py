"""What the report of `simclr run` measures: the exported student's answers and neighbours, speed, the machine."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from training import estimate, report
from training.data import ImageSet, evaluation_batches
from training.holdout import Split
from zoo.simclr import SimCLR

_QUERIES, _NEIGHBOURS = 6, 6


def onnx_answers(model: Any, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), logits (N, classes) and places (N,) of the images that can be read."""
    parts: list[tuple[np.ndarray, ...]] = []
    for batch, _, index in evaluation_batches(images, size=model.image_size, batch_size=32):
        found = model(batch.numpy())
        parts.append((found.features, found.logits, index.numpy()))
    stacked = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return stacked[0], stacked[1], stacked[2]


def queries(model: Any, sets: Split, features: np.ndarray, logits: np.ndarray, kept: np.ndarray) -> list[report.Query]:
    """Some held-out images, of as many classes as there are, with the nearest of up to ``report.BANK`` training images
    (cosine)."""
    draw = np.random.default_rng(0)
    places = np.arange(len(sets.unlabeled))
    if len(places) > report.BANK:
        places = np.sort(draw.choice(places, report.BANK, replace=False))
    bank_set = sets.unlabeled.subset(places)
    bank, _, read = onnx_answers(model, bank_set)
    assert sets.few.labels is not None
    assert sets.held_out.labels is not None
    labels = {
        path.resolve(): sets.few.classes[label] for path, label in zip(sets.few.paths, sets.few.labels, strict=True)
    }
    truth = sets.held_out.labels[kept]
    order = draw.permutation(len(kept))
    turn = np.zeros(len(kept), int)  # the how-manieth of its class an image is, in that order
    for label in np.unique(truth):
        ours = order[truth[order] == label]
        turn[ours] = np.arange(len(ours))
    chosen = order[np.argsort(turn[order], kind="stable")][:_QUERIES]
    similarity = _unit(features[chosen]) @ _unit(bank).T  # (queries, bank)
    found = []
    for row, position in zip(similarity, chosen, strict=True):
        nearest = np.argsort(-row, kind="stable")[:_NEIGHBOURS]
        paths = [bank_set.paths[read[i]] for i in nearest]
        found.append(
            report.Query(
                sets.held_out.paths[kept[position]],
                sets.few.classes[sets.held_out.labels[kept[position]]],
                sets.few.classes[int(logits[position].argmax())],
                [
                    report.Neighbour(path, labels.get(path.resolve()), float(row[i]))
                    for path, i in zip(paths, nearest, strict=True)
                ],
            )
        )
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def network(model: SimCLR) -> report.Network:
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    if model.classifier is not None:
        count += sum(parameter.numel() for parameter in model.classifier.parameters())
    return report.Network(model.spec.name, count, model.image_size)


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)


@torch.inference_mode()
def torch_milliseconds(model: SimCLR) -> float:
    model = model.to("cpu").eval()
    image = torch.from_numpy(noise(model.image_size))
    return milliseconds(lambda: model(image))


def milliseconds(call: Callable[[], object], *, patience: float = 3.0) -> float:
    """The median of up to 30 calls after a first one, or of as many (one at least) as ``patience`` seconds allow."""
    call()
    times: list[float] = []
    while not times or (len(times) < 30 and sum(times) < patience):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def machine(where: torch.device) -> str:
    """Processor, cores, and the GPU if one was used."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f"{torch.cuda.get_device_name(where)}; " if where.type == "cuda" else "Apple GPU; " * (where.type == "mps")
    return f"{gpu}{processor}, {estimate.cores()} cores, {platform.system()}"


def versions() -> dict[str, str]:
    return {
        "simclrv2": zoo.__version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "numpy": np.__version__,
    }
