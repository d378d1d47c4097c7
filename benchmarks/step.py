"""Training on this machine: views a second of the augmentation and of one SimCLR step, beside peers in the same run.

    python benchmarks/step.py [--size 64] [--batch 64] [--repeat 7]

Peers: torchvision's ResNet-18 (contiguous, as its users get it, and channels-last) under the same loss and optimizer;
torchvision's v2 transforms for the augmentation (other semantics: its own crop sampler and colour rules). Interleaved,
medians; the ratio to the peer is what carries over to other machines.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

import zoo
from training.augment import Augmentation
from training.lars import LARS
from training.losses import nt_xent_loss
from training.stages import Pretrain


def interleaved(tasks: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds of each task, in turns, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeat + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ours(size: int, batch: int) -> Callable[[], object]:
    stage = Pretrain(zoo.create("r18_1x", num_classes=None, image_size=size, seed=0)).train()
    stage.to(memory_format=torch.channels_last)
    optimizer = LARS(stage.parameter_groups(), lr=0.1, weight_decay=1e-4)
    views = torch.rand(2, batch, 3, size, size)
    data = {f"view{k}": views[k].contiguous(memory_format=torch.channels_last) for k in range(2)}

    def step() -> None:
        optimizer.zero_grad()
        stage(data)["loss"].backward()
        optimizer.step()

    return step


def peer(size: int, batch: int, layout: torch.memory_format) -> Callable[[], object]:
    network = torchvision.models.resnet18()
    network.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    network.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.rand(2 * batch, 3, size, size).contiguous(memory_format=layout)

    def step() -> None:
        optimizer.zero_grad()
        nt_xent_loss(*network(images).chunk(2)).backward()
        optimizer.step()

    return step


def augmentations(size: int, images: list[np.ndarray]) -> dict[str, Callable[[], object]]:
    mine = Augmentation(size)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=False),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(max(3, size // 10 | 1), (0.1, 2.0))], p=0.5),
        ]
    )
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    indices = range(len(images))
    return {
        "ours": lambda: mine(images, indices=indices, epoch=0, view=0, seed=0),
        "torchvision v2": lambda: torch.stack([theirs(tensor) for tensor in tensors]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, ", end=""
    )
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {options.size} px, batch {options.batch}")

    steps = {
        "ours, channels-last": ours(options.size, options.batch),
        "torchvision resnet18": peer(options.size, options.batch, torch.contiguous_format),
        "torchvision resnet18, channels-last": peer(options.size, options.batch, torch.channels_last),
    }
    report("SimCLR step, views/s", interleaved(steps, options.repeat), 2 * options.batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (224, 300, 3), dtype=np.uint8) for _ in range(64)]
    report("augmentation, views/s on one core", interleaved(augmentations(options.size, images), options.repeat), 64)
    torch.set_num_threads(threads)


def report(title: str, seconds: dict[str, float], views: int) -> None:
    """A line a competitor; the ratio is ours over it."""
    first = next(iter(seconds.values()))
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:40} {views / value:8.0f}   ours is {value / first:5.2f} times as fast")


if __name__ == "__main__":
    main()
