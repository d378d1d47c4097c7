"""3x3 convolutions in bf16, channels-last: milliseconds of oneDNN's and of the form for small planes, same work.

    python benchmarks/small_planes.py [--batch 256] [--repeat 7]

Forward and backward of one layer of each group of ResNet-18 at 32 pixels, under autocast, in turns; medians.
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 shows a processor without tiles.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training import small_planes
from training.data import keep_freed_memory
from zoo.resnet import conv, convolve

LAYERS = ((512, 512, 4, 1), (256, 512, 8, 2), (256, 256, 8, 1), (128, 256, 16, 2), (512, 512, 3, 1), (512, 512, 7, 1))
"""Channels in and out, side of what comes in, stride."""


def seconds(form: Callable[[nn.Conv2d, Tensor], Tensor], layer: nn.Conv2d, x: Tensor) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        out = form(layer, x)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"tiles: {small_planes.multiplies_tiles()}, batch {options.batch}\n")
    print("| in, out, side, stride | oneDNN, ms | small planes, ms | times |\n|---|---:|---:|---:|")
    for channels_in, channels_out, side, stride in LAYERS:
        layer = conv(channels_in, channels_out, 3, stride).to(memory_format=torch.channels_last)
        x = torch.randn(options.batch, channels_in, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        found: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(options.repeat + 1):
            for name, form in (("plain", convolve), ("ours", small_planes.convolve)):
                found[name].append(1e3 * seconds(form, layer, x))
        plain, ours = (statistics.median(values[1:]) for values in found.values())
        print(f"| {channels_in}, {channels_out}, {side}, {stride} | {plain:.0f} | {ours:.0f} | {plain / ours:.2f} |")


if __name__ == "__main__":
    main()
