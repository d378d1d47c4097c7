"""3x3 convolutions on small planes, channels-last: milliseconds of oneDNN's and of matrix products, same work.

    python benchmarks/small_planes.py [--precision fp32|bf16] [--batch 256] [--repeat 7]

Forward and backward of layers of ResNet-18 at 32, 64, 96 and 224 pixels, in turns; medians. The precision is that of
training on this processor, if none is named; ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 shows bf16 without tiles.
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
from training.loop import pick_precision
from zoo.resnet import conv, convolve

LAYERS = (
    (128, 128, 8, 1),
    (128, 128, 7, 1),
    (128, 128, 6, 1),
    (128, 128, 4, 1),
    (128, 128, 2, 1),
    (128, 256, 16, 2),
    (128, 256, 8, 2),
    (256, 256, 8, 1),
    (256, 256, 4, 1),
    (256, 512, 14, 2),
    (256, 512, 8, 2),
    (256, 512, 4, 2),
    (512, 512, 7, 1),
    (512, 512, 4, 1),
    (512, 512, 3, 1),
    (512, 512, 2, 1),
)
"""Channels in and out, side of what comes in, stride."""


def seconds(form: Callable[[nn.Conv2d, Tensor], Tensor], layer: nn.Conv2d, x: Tensor) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype is torch.bfloat16):
        out = form(layer, x)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    precision = pick_precision(options.precision, torch.device("cpu"))
    ways = (small_planes.TAPS, small_planes.NEIGHBOURS)
    products = next(way for way in ways if way.precision is precision)
    chosen = "chosen" if small_planes.faster(precision) is products else "not chosen"
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    print(f"{platform.machine()}, {capability}, {threads} threads, torch {torch.__version__}, {precision}, ", end="")
    print(f"batch {options.batch}; products are {chosen} in training here\n")
    print("| in, out, side, stride | oneDNN, ms | products, ms | times |\n|---|---:|---:|---:|")
    for channels_in, channels_out, side, stride in LAYERS:
        layer = conv(channels_in, channels_out, 3, stride).to(memory_format=torch.channels_last)
        x = torch.randn(options.batch, channels_in, side, side).to(precision)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        found: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(options.repeat + 1):
            for name, form in (("plain", convolve), ("ours", products)):
                found[name].append(1e3 * seconds(form, layer, x))
        plain, ours = (statistics.median(values[1:]) for values in found.values())
        print(f"| {channels_in}, {channels_out}, {side}, {stride} | {plain:.0f} | {ours:.0f} | {plain / ours:.2f} |")


if __name__ == "__main__":
    main()
