"""Views a second of one core: the augmentation beside lightly's and torchvision's, from decoded images and from files.

    python benchmarks/augment.py --images imagenette/train [--size 224 32] [--count 128] [--repeat 5]

Interleaved, medians; the ratio to a peer is what carries over to other machines. Peers have other semantics: their own
crop sampler and colour rules, lightly on Pillow images, torchvision on tensors. ``difference`` is that of the fast form
from the exact one, mean over all values, in grey levels (1/255).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from training import exact_augment
from training.augment import Augmentation
from training.data import from_folder, keep_freed_memory
from zoo.transforms import read_image


def tasks(size: int, paths: list[Path]) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> the work and its views."""
    pixels = [read_image(path) for path in paths]
    shapes = np.array([image.shape[:2] for image in pixels])
    augmentation = Augmentation(size)

    def ours(images: list[np.ndarray]) -> Tensor:
        return augmentation.views(images, indices=range(len(images)), epoch=0, views=(0, 1), seed=0)

    def from_files() -> None:
        ours([read_image(path) for path in paths])

    def exact() -> None:
        few = slice(len(paths) // 4)
        views = augmentation.draw(shapes[few], indices=range(len(paths) // 4), epoch=0, view=0, seed=0)
        exact_augment.augment(pixels[few], views, size)

    found: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: ours(pixels), 2 * len(paths)),
        "ours, from JPEG (two views each)": (from_files, 2 * len(paths)),
        "ours, exact form": (exact, len(paths) // 4),
        "torchvision v2, float tensors": (torchvisions(size, pixels, early=True), len(paths)),
        "torchvision v2, byte tensors": (torchvisions(size, pixels, early=False), len(paths)),
    }
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return found
    transform, pictures = SimCLRTransform(input_size=size), [Image.fromarray(image) for image in pixels]
    return found | {"lightly SimCLRTransform": (lambda: [transform(picture) for picture in pictures], 2 * len(paths))}


def torchvisions(size: int, pixels: list[np.ndarray], *, early: bool) -> Callable[[], object]:
    """``early``: float32 right after the crop; else bytes to the end."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=False),
            v2.RandomHorizontalFlip(),
            *([to_float] if early else []),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(max(3, size // 10 | 1), (0.1, 2.0))], p=0.5),
            *([] if early else [to_float]),
        ]
    )
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in pixels]
    return lambda: torch.stack([theirs(tensor) for tensor in tensors])


def difference(size: int, paths: list[Path]) -> float:
    pixels = [read_image(path) for path in paths]
    key = {"indices": range(len(pixels)), "epoch": 0, "view": 0, "seed": 0}
    fast, exact = (Augmentation(size, exact=form)(pixels, **key) for form in (False, True))
    return (fast - exact).abs().mean().item() * 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs="+", default=[224, 32])
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    every = from_folder(options.images).paths
    paths = list(every[:: max(1, len(every) // options.count)][: options.count])
    print(f"{platform.machine()}, one core, {torch.backends.cpu.get_cpu_capability()}, ", end="")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {len(paths)} images")
    for size in options.size:
        work = tasks(size, paths)
        rates: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(options.repeat + 1):
            for name, (task, views) in work.items():
                began = time.perf_counter()
                task()
                if turn:
                    rates[name].append(views / (time.perf_counter() - began))
        first = statistics.median(rates["ours"])
        print(f"\n{size} pixels, views/s; difference of ours from the exact form {difference(size, paths):.2f} levels")
        for name, values in rates.items():
            value = statistics.median(values)
            print(f"  {name:36} {value:8.0f}   ours is {first / value:6.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
