"""NT-Xent in tiles beside the dense form and lightly's: seconds, and memory beyond the inputs, forward and backward.

    python benchmarks/nt_xent.py [--views 2048 8192 16384] [--dimension 128] [--repeat 5]

Every figure comes from a process of its own; memory is its greatest resident size less that before the loss.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("tiles", "dense", "lightly")


def dense(z0: Tensor, z1: Tensor) -> Tensor:
    """The authors' form: four quarters of the whole matrix."""
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    itself = torch.eye(len(z0), dtype=torch.bool)
    ab, target = z0 @ z1.T / 0.1, torch.arange(len(z0))
    aa, bb = ((z @ z.T / 0.1).masked_fill(itself, -1e9) for z in (z0, z1))
    return F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ab.T, bb], 1), target)


def loss(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    if form == "tiles":
        from training.losses import nt_xent_loss

        return nt_xent_loss
    if form == "lightly":
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature=0.1)
    return dense


def resident(kind: str) -> float:
    """MB of this process, now (VmRSS) or at its greatest (VmHWM)."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1024


def measure(form: str, views: int, dimension: int, repeat: int) -> None:
    compute = loss(form)
    z0, z1 = torch.randn(2, views // 2, dimension, generator=torch.Generator().manual_seed(0)).unbind()
    z0.requires_grad_(), z1.requires_grad_()
    z0.grad, z1.grad = torch.zeros_like(z0), torch.zeros_like(z1)
    compute(z0[:8], z1[:8]).backward()
    before, seconds = resident("VmRSS"), []
    for _ in range(repeat):
        began = time.perf_counter()
        value = compute(z0, z1)
        value.backward()
        seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds), resident("VmHWM") - before, value.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.views[0], options.dimension, options.repeat)
        return
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, d = {options.dimension}"
    )
    print(f"{'2N':>7} {'form':>8} {'seconds':>9} {'MB':>8}   times ours: seconds, MB")
    for views in options.views:
        ours = None
        for form in FORMS:
            command = [sys.executable, __file__, "--one", form, "--views", str(views)]
            command += ["--dimension", str(options.dimension), "--repeat", str(options.repeat)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{views:7} {form:>8}   {done.stderr.strip().splitlines()[-1] if done.stderr else 'was killed'}")
                continue
            seconds, memory, _ = map(float, done.stdout.split()[-3:])
            ours = ours or (seconds, memory)
            ratios = f"{seconds / ours[0]:6.2f} {memory / ours[1]:6.2f}"
            print(f"{views:7} {form:>8} {seconds:9.3f} {memory:8.1f}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
