"""Pretraining on a GPU: views a second with the images resident, beside lightly's own loop and the measured bf16 peak.

    python benchmarks/gpu.py [--device auto] [--only r18] [--eager] [--batch N] [--images DIR] [--repeat 20] [--quick]

For the r18 with the 32-pixel stem and for r50_1x at 224 pixels: eager, compiled, and compiled with CUDA graphs; what
the augmentation takes of a step; the step's floating-point operations a second as a share of what a large bf16 product
reaches on the same card. lightly's loop (SimCLRTransform, NTXentLoss, float32, eight workers, as in its documentation)
runs beside it where lightly is installed, on a torchvision network of the same shape. Ours are interleaved, five steps
at a time so that host and device overlap; lightly's comes after them, as its workers would read ahead meanwhile. The
figures are medians. Without --images there are smooth blots to train on.

--quick goes through the same code with narrow networks and small batches, and traces without generating code: for a
machine without a GPU. Its figures mean nothing.
"""

import argparse
import dataclasses
import importlib.util
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from training import data
from training.augment import Augmentation
from training.lars import LARS
from training.loop import memory_format, pick_device, pick_precision
from training.resident import ResidentBatches
from training.stages import Pretrain
from training.step import Step

_FOREVER = 2**31
_PEER_WORKERS = 8


@dataclass(frozen=True)
class Case:
    """What is trained: ``batch`` images a step, two views of each; ``goal`` in views a second."""

    title: str
    model: zoo.Spec | str
    peer: str  # torchvision's network of the same depth
    size: int
    batch: int
    sides: tuple[int, int]  # of the images, where none are given
    goal: int


CASES = (
    Case("r18, 32-pixel stem", "r18_1x", "resnet18", 32, 512, (32, 32), 35_000),
    Case("r50_1x, 224 pixels", "r50_1x", "resnet50", 224, 256, (256, 340), 2_500),
)
QUICK = (
    Case("r18 of width 1/16, 32-pixel stem", zoo.Spec(depth=18, width=1 / 16), "resnet18", 32, 8, (32, 32), 35_000),
    Case("r50 of width 1/16, 224 pixels", zoo.Spec(depth=50, width=1 / 16), "resnet50", 224, 2, (256, 340), 2_500),
)


def blots(folder: Path, number: int, sides: tuple[int, int]) -> Path:
    """A folder of pictures about as hard to decode as photographs."""
    rng = np.random.default_rng(0)
    (folder / "all").mkdir(parents=True)
    for k in range(number):
        small = Image.fromarray(rng.integers(0, 256, (sides[0] // 4, sides[1] // 4, 3), dtype=np.uint8))
        small.resize(sides[::-1], Image.Resampling.BICUBIC).save(folder / "all" / f"{k:05d}.jpg")
    return folder


class Ours:
    """Our step in one of its forms, from the dice to the optimizer; ``mode`` is torch.compile's, None is eager."""

    def __init__(self, case: Case, images: data.ImageSet, device: torch.device, mode: str | None, backend: str) -> None:
        model = zoo.create(case.model, num_classes=None, image_size=case.size, seed=0)
        self.layout, self.mode = memory_format(model), mode
        stage = Pretrain(model).train().to(device)
        stage.to(memory_format=self.layout)
        options: dict[str, Any] = {"backend": backend} | ({"mode": mode} if backend == "inductor" else {})
        if mode is not None:
            stage.set_network(torch.compile(stage.path, **options))
        self.batches = ResidentBatches(
            images,
            device=device,
            batch_size=case.batch,
            augmentation=Augmentation(case.size, blur=case.size > 32),
            views=2,
            seed=0,
            layout=self.layout,
            compiled=mode is not None and backend == "inductor",
        )
        self.step = Step(
            stage,
            LARS(stage.parameter_groups(), lr=0.1, weight_decay=1e-4),
            device=device,
            precision=pick_precision("auto", device),
            layout=self.layout,
        )
        self.stream = self.batches.stream(total_steps=_FOREVER)
        self.indices = np.arange(self.batches.batch_size)
        self.dice = self.drawn().to(device)

    def __call__(self) -> None:
        if self.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self.step(next(self.stream))

    def drawn(self) -> Tensor:
        """The host's part of the augmentation."""
        return self.batches._drawn(self.indices, 0)

    def augmented(self) -> list[Tensor]:
        """The device's part of it, of one batch."""
        return [self.batches._augment(self.batches.held.pixels, dice) for dice in self.dice]

    def operations(self) -> int:
        """Floating-point operations of the step's convolutions and products, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.step(next(self.stream))
        return counter.get_total_flops()


def lightly_step(case: Case, folder: Path, device: torch.device, workers: int) -> Callable[[], object]:
    """One step of the loop in lightly's documentation."""
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    backbone = getattr(torchvision.models, case.peer)()
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    if case.size <= 32:
        backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network = nn.Sequential(backbone, SimCLRProjectionHead(width, 512, 128)).to(device).train()
    transform = SimCLRTransform(input_size=case.size, gaussian_blur=0.5 * (case.size > 32))
    loader = torch.utils.data.DataLoader(
        LightlyDataset(str(folder), transform=transform),
        batch_size=case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    optimizer, loss_of = torch.optim.SGD(network.parameters(), lr=0.06), NTXentLoss()
    stream: Iterator[Any] = (batch for _ in count() for batch in loader)

    def step() -> None:
        x0, x1 = next(stream)[0]
        loss = loss_of(network(x0.to(device)), network(x1.to(device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def medians(tasks: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, float]:
    """Seconds of each task until the device is done, in turns, after warm-ups."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    warm, times = (3, 5) if device.type == "cuda" else (1, 1)
    for turn in range(warm + repeat):
        for name, task in tasks.items():
            finish(device)
            began = time.perf_counter()
            for _ in range(times):
                task()
            finish(device)
            if turn >= warm:
                seconds[name].append((time.perf_counter() - began) / times)
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, side: int) -> float:
    """Operations a second of a product of bf16 matrices of this side."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / medians({"product": lambda: a @ b}, 20, device)["product"]


def forms(device: torch.device, *, eager: bool) -> dict[str, str | None]:
    """The forms of our step by name, with torch.compile's mode."""
    found: dict[str, str | None] = {"eager": None}
    if not eager:
        found["compiled"] = "default"
    if not eager and device.type == "cuda":
        found["compiled, CUDA graphs"] = "reduce-overhead"
    return found


def measure(
    case: Case,
    folder: Path,
    device: torch.device,
    modes: dict[str, str | None],
    *,
    repeat: int,
    quick: bool,
    best: float,
) -> None:
    """A table of one case."""
    images, backend = data.from_folder(folder), "aot_eager" if quick else "inductor"
    ours = {name: Ours(case, images, device, mode, backend) for name, mode in modes.items()}
    operations = ours["eager"].operations()
    steps = medians(dict(ours), repeat, device)
    parts = {name: medians({"device": it.augmented, "host": it.drawn}, repeat, device) for name, it in ours.items()}
    if importlib.util.find_spec("lightly"):
        peer = lightly_step(case, folder, device, workers=_PEER_WORKERS if device.type == "cuda" else 0)
        steps |= medians({"lightly's loop": peer}, repeat, device)
    views = 2 * case.batch
    print(f"\n## {case.title}, batch {case.batch}\n")
    print(f"goal {case.goal:,} views/s; {operations / views / 1e9:.3g} GFLOP a view\n")
    print("| | views/s | augmentation, share of a step | dice on the host, us a view | share of the peak |")
    print("|---|---|---|---|---|")
    for name, seconds in steps.items():
        row = f"| {name} | {views / seconds:,.0f} |"
        if name in parts:
            row += f" {parts[name]['device'] / seconds:.1%} | {parts[name]['host'] / views * 1e6:.1f} |"
            row += f" {operations / seconds / best:.1%} |"
        print(row if name in parts else row + " | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=Path, help="a folder, at least a batch of images")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", choices=("r18", "r50"))
    parser.add_argument("--batch", type=int, help="images a step, in the place of 512 and 256")
    parser.add_argument("--eager", action="store_true", help="leave the compiled forms out")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, {device}, torch {torch.__version__}, {pick_precision('auto', device)}", end="")
    print(", quick: the code is run, nothing is measured" if options.quick else "")
    best = peak(device, 256 if options.quick else 8192)
    print(f"\nbf16 product: {best / 1e12:.3g} TFLOP/s")
    for case in QUICK if options.quick else CASES:
        if options.only and not case.title.startswith(options.only):
            continue
        case = dataclasses.replace(case, batch=options.batch or case.batch)
        with tempfile.TemporaryDirectory() as made:
            folder = options.images or blots(Path(made) / "images", case.batch + 1, case.sides)
            repeat = 1 if options.quick else options.repeat
            modes = forms(device, eager=options.eager)
            measure(case, folder, device, modes, repeat=repeat, quick=options.quick, best=best)


if __name__ == "__main__":
    main()
