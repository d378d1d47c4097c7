"""What training on ImageNet and embedding a billion images cost, on paper: arithmetic from a few stated constants.

    python benchmarks/paper_estimate.py [--set views_per_core=700 memory_share=0.5 ...] [--write docs/scaling.md]

GIVEN are published facts, ASSUMED are guesses to be changed by --set, and MEASURED comes from benchmarks/scaling.py
(benchmarks/results/scaling.json), on a machine with two cores. --write puts the tables between the marks of a page.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.estimate import multiply_adds
from training.schedule import total_steps
from zoo import registry
from zoo.files import written_whole
from zoo.registry import Spec
from zoo.resnet import BatchNorm
from zoo.simclr import SimCLR

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
IMAGES, EPOCHS, BATCH, SIZE, MEMORY, WIDTH = 1_281_167, 800, 4096, 224, 65_536, 128
BILLION = 10**9

# NVIDIA's data sheets of the H100 SXM and H200 SXM (dense bf16; both the same chip) and of the DGX H100 (an adapter of
# 400 Gb/s a GPU; NVLink 900 GB/s in both directions together; 2 x 56 cores)
GIVEN = {
    "peak": 989e12,  # multiplications and additions a second, bf16 on tensor cores, without sparsity
    "peak_fp32": 67e12,
    "h100_bandwidth": 3.35e12,  # bytes a second
    "h200_bandwidth": 4.8e12,
    "h100_memory": 80e9,
    "h200_memory": 141e9,
    "nvlink": 450e9,  # bytes a second one way
    "network": 50e9,
    "node": 8.0,  # GPUs
    "node_cores": 112.0,
}
ASSUMED = {
    "compute_share": 0.4,  # of the peak that large convolutions reach
    "memory_share": 0.4,  # of the bandwidth that the rest reaches
    "link_share": 0.7,  # of NVLink and the network
    "passes": 16.0,  # times that each convolution's output is read or written in a training step
    "passes_embed": 3.0,  # the same, forward alone, batch norm folded in
    "latency": 40e-6,  # seconds of one small collective operation
    "kept": 2.0,  # tensors of an output's size that are kept for the backward pass, bf16
    "fp32_share": 0.3,  # of peak_fp32, for the similarities
    "core_ratio": 1.0,  # a server's core to one of the machine that measured
}
MEASURED_DEFAULTS = {
    "views_per_core": 700.0,  # views/s of a core from JPEG at 224 pixels: the goal of this project
    "decode_per_core": 300.0,  # images/s of a core: an average ImageNet JPEG (500 x 375) read, cropped and resized
    "embed_r18_224": 60.0,  # images/s of a core, onnxruntime, 224 pixels
    "embed_r50_224": 20.0,
    "index_bytes": 8000.0,  # bytes of a picture in the index beside its vector (names, thumbnail)
    "search_bandwidth": 20e9,  # bytes a second of the matrix in an exact search, one thread
}
Constants = Mapping[str, float]


class Network(NamedTuple):
    """What a network costs for one image of 224 pixels, forward."""

    multiply_adds: int
    activations: int  # elements that its convolutions write
    parameters: int  # with the projection head
    norms: int  # batch norms, with the projection head's
    features: int


class Step(NamedTuple):
    """Seconds of one step of a GPU among ``gpus``, by part, and what it needs."""

    gpus: int
    network: float  # forward and backward, and the average's forward pass where there is a memory
    reduce: float  # all-reduce of the gradient: beside the backward pass
    norm: float  # the statistics of batch norm: waited for
    loss: float
    optimizer: float
    gpu_bytes: float
    cores: float  # that decode and augment for one GPU at this pace

    @property
    def seconds(self) -> float:
        """The all-reduce is beside the backward pass, two thirds of the network's time; what is longer is waited."""
        return self.network + max(0.0, self.reduce - self.network * 2 / 3) + self.norm + self.loss + self.optimizer


@cache
def network(name: str, size: int = SIZE) -> Network:
    """Counted on the network itself; nothing is computed or allocated."""
    spec: Spec = registry.spec(name)
    outputs = 0

    def add(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal outputs
        outputs += output[0].numel()

    with torch.device("meta"):
        model = SimCLR(spec, num_classes=None, image_size=size).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        features = model(torch.empty(1, 3, size, size)).features.shape[1]
    norms = sum(isinstance(module, BatchNorm) for module in model.modules())
    return Network(multiply_adds(spec, size), outputs, sum(p.numel() for p in model.parameters()), norms, features)


def view_seconds(net: Network, constants: Constants, *, card: str, training: bool = True) -> float:
    """Seconds of a GPU for one image: its multiplications, or its reading and writing, whichever takes longer.

    Forward is 2 operations for each multiply-add, backward twice as much again.
    """
    operations = (6 if training else 2) * net.multiply_adds
    passes = constants["passes" if training else "passes_embed"]
    computing = operations / (constants["peak"] * constants["compute_share"])
    moving = 2 * passes * net.activations / (constants[f"{card}_bandwidth"] * constants["memory_share"])
    return max(computing, moving)


def link_speed(gpus: int, constants: Constants) -> float:
    """Bytes a second that pass a GPU in a collective: of NVLink, or of all network adapters of a machine together, as
    the library (NCCL) sends a part of the bytes through each of them."""
    across = constants["node"] * constants["network"]
    fastest = constants["nvlink"] if gpus <= constants["node"] else min(constants["nvlink"], across)
    return fastest * constants["link_share"]


def ring_seconds(size: float, gpus: int, constants: Constants) -> float:
    """All-reduce of ``size`` bytes in rings: 2 (n - 1) / n of them pass each GPU."""
    return 2 * (gpus - 1) / gpus * size / link_speed(gpus, constants)


def step(net: Network, gpus: int, constants: Constants, *, card: str, memory: bool = False, batch: int = BATCH) -> Step:
    """One step of pretraining with two views of each of ``batch`` images. ``memory``: a moving average of the network
    sees every view, too, and 65,536 of its projections are more negatives."""
    views = 2 * batch / gpus
    one = view_seconds(net, constants, card=card)
    if memory:
        one += view_seconds(net, constants, card=card, training=False)
    columns = 2 * batch + (MEMORY if memory else 0)
    products = 2 * views * columns * WIDTH * 3  # forward; again in the backward pass, and one with the columns
    gathered = (gpus - 1) / gpus * 2 * batch * WIDTH * 4
    small = 0.0 if gpus == 1 else constants["latency"]
    state = 4 * net.parameters * (4 if memory else 3)  # weights, gradient, momentum, the average
    return Step(
        gpus,
        views * one,
        ring_seconds(4 * net.parameters, gpus, constants),
        2 * net.norms * small * (1.5 if memory else 1.0),  # gathered forward, summed backward; the average's forward
        products / (constants["peak_fp32"] * constants["fp32_share"])
        + gathered / link_speed(gpus, constants)
        + 3 * small,
        (24 if memory else 20) * net.parameters / (constants[f"{card}_bandwidth"] * constants["memory_share"]),
        state + 2 * constants["kept"] * net.activations * views,
        1 / one / (constants["views_per_core"] * constants["core_ratio"]),
    )


def least_gpus(net: Network, constants: Constants, *, card: str, memory: bool = False) -> int:
    """The smallest power of two whose memory (nine tenths of it) holds a step without --micro."""
    gpus = 1
    while step(net, gpus, constants, card=card, memory=memory).gpu_bytes > 0.9 * constants[f"{card}_memory"]:
        gpus *= 2
    return gpus


def limit(found: Step, constants: Constants) -> str:
    """What holds the step up most beside the network itself, if it is more than a tenth."""
    spare = constants["node_cores"] / constants["node"]
    parts = {
        "gradient all-reduce": found.reduce - found.network * 2 / 3,
        "batch norm's statistics": found.norm,
        "NT-Xent": found.loss,
        "LARS": found.optimizer,
        "decode and augmentation": found.seconds * (found.cores / spare - 1),
    }
    name = max(parts, key=lambda part: parts[part])
    return name if parts[name] > 0.1 * found.network else "the network"


def training_table(constants: Constants) -> list[str]:
    """800 epochs of ImageNet at batch 4096."""
    steps = total_steps(IMAGES, EPOCHS, BATCH)
    lines = [
        f"{steps:,} steps of 2 x {BATCH:,} views; ms of a step by part, and hours of all steps if decoding keeps up.",
        "",
        "| network | card | GPUs | network, ms | all-reduce | batch norm | NT-Xent | LARS | step, ms | GB a GPU | "
        "hours | GPU-hours | cores a GPU | first limit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, memory in (("r50_1x", False), ("r152_3x_sk", False), ("r152_3x_sk", True)):
        net = network(name)
        for card in ("h100", "h200"):
            least = least_gpus(net, constants, card=card, memory=memory)
            for gpus in sorted({least, 32, 128, 512} | ({8} if least <= 8 else set())):
                if gpus < least:
                    continue
                one = step(net, gpus, constants, card=card, memory=memory)
                hours = steps * one.seconds / 3600
                parts = " | ".join(
                    f"{part * 1e3:,.1f}" for part in (one.network, one.reduce, one.norm, one.loss, one.optimizer)
                )
                lines.append(
                    f"| {name}{', memory' if memory else ''} | {card.upper()} | {gpus} | {parts} | "
                    f"{one.seconds * 1e3:,.1f} | {one.gpu_bytes / 1e9:.0f} | {hours:,.1f} | {hours * gpus:,.0f} | "
                    f"{one.cores:.1f} | {limit(one, constants)} |"
                )
    return lines


def embedding_table(constants: Constants) -> list[str]:
    """A billion images to vectors, and the vectors kept."""
    decode = BILLION / (constants["decode_per_core"] * constants["core_ratio"]) / 3600
    lines = [
        f"Decoding (500 x 375 JPEG, cropped and resized): {decode:,.0f} core-hours, "
        f"{decode / constants['node_cores'] / 24:.1f} days of one machine with {constants['node_cores']:.0f} cores.",
        "",
        "| network | on | images/s | hours | cores to decode beside it |",
        "|---|---|---:|---:|---:|",
    ]
    for name, short in (("r50_1x", "r50"), ("r18_1x", "r18")):
        for card in ("h100", "h200"):
            speed = 1 / view_seconds(network(name), constants, card=card, training=False)
            beside = speed / (constants["decode_per_core"] * constants["core_ratio"])
            lines.append(
                f"| {name} | one {card.upper()} | {speed:,.0f} | {BILLION / speed / 3600:,.1f} | {beside:,.0f} |"
            )
        speed = constants[f"embed_{short}_224"] * constants["core_ratio"]
        lines.append(
            f"| {name} | one core | {speed:,.0f} | {BILLION / speed / 3600:,.0f} | "
            f"{speed / (constants['decode_per_core'] * constants['core_ratio']):.2f} |"
        )
    lines += [
        "",
        "| vectors | fp32, TB | fp16, TB | with names and thumbnails, fp16, TB | one exact query, fp32, one core, s | "
        "as codes of 64 bytes, GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for width in (2048, 512):
        lines.append(
            f"| {width}-d | {4 * width / 1e3:.1f} | {2 * width / 1e3:.1f} | "
            f"{(2 * width + constants['index_bytes']) / 1e3:.1f} | "
            f"{4 * width * BILLION / constants['search_bandwidth']:,.0f} | {64:.0f} |"
        )
    return lines


def constants_table(constants: Constants) -> list[str]:
    """Every constant and where it comes from."""
    lines = ["| constant | value | from |", "|---|---:|---|"]
    for source, table in (("given", GIVEN), ("assumed", ASSUMED), ("measured", MEASURED_DEFAULTS)):
        lines += [f"| `{name}` | {constants[name]:.4g} | {source} |" for name in table]
    return lines


def constants_from(results: Path = RESULTS, changes: Mapping[str, float] | None = None) -> dict[str, float]:
    """All constants: what was measured here where it is in the file, and ``changes``.

    Raises ValueError for a constant that there is not, or that is not positive.
    """
    found = GIVEN | ASSUMED | MEASURED_DEFAULTS
    if results.is_file():
        measured = json.loads(results.read_text(encoding="utf-8")).get("constants", {})
        found |= {name: float(measured[name]) for name in MEASURED_DEFAULTS if name in measured}
    for name, value in (changes or {}).items():
        if name not in found:
            raise ValueError(f"No constant is called {name!r}.{registry.suggest(name, list(found))}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} is not positive.")
        found[name] = value
    return found


def text(constants: Constants) -> str:
    """All tables, as Markdown."""
    parts = {
        "ImageNet, 800 epochs": training_table(constants),
        "A billion images": embedding_table(constants),
        "The constants": constants_table(constants),
    }
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())


def put_between_marks(page: Path, mark: str, content: str) -> None:
    """Replace what a page has between ``<!-- mark -->`` and ``<!-- /mark -->``. Raises ValueError without the marks."""
    before, found, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, closed, after = rest.partition(f"<!-- /{mark} -->")
    if not found or not closed:
        raise ValueError(f"{page} has no <!-- {mark} --> and <!-- /{mark} -->.")
    with written_whole(page) as temporary:
        temporary.write_text(f"{before}{found}{content}\n{closed}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--write", type=Path, help="a page with the marks of this text")
    options = parser.parse_args()
    try:
        changes = {name: float(value) for name, _, value in (one.partition("=") for one in options.set)}
        constants = constants_from(changes=changes)
        found = text(constants)
        if options.write:
            put_between_marks(options.write, "estimate", found)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main()
