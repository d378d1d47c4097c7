"""NT-Xent in tiles beside two dense forms and lightly's: seconds, and memory beyond the inputs, forward and backward.

    python benchmarks/nt_xent.py [--views 64 512 2048 8192 65536] [--dimension 128] [--repeat 5]

Seconds are medians of forms that take turns in one process; memory is the greatest resident size of a process of its
own less that before the loss. Above 16,384 views only the tiles run. The gradients of all forms are compared first.
"""

import argparse
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("tiles", "contrast", "dense", "quarters", "lightly")
MATRIX = 16384  # the most views for forms that build the matrix


def dense(z0: Tensor, z1: Tensor) -> Tensor:
    """One matrix and one cross-entropy: the fastest dense form that we found."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    scores = (z @ z.T / 0.1).fill_diagonal_(-1e9)
    return 2 * F.cross_entropy(scores, torch.arange(len(z)).roll(len(z0)))


def quarters(z0: Tensor, z1: Tensor) -> Tensor:
    """The authors' form: four quarters of the whole matrix."""
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    itself = torch.eye(len(z0), dtype=torch.bool)
    ab, target = z0 @ z1.T / 0.1, torch.arange(len(z0))
    aa, bb = ((z @ z.T / 0.1).masked_fill(itself, -1e9) for z in (z0, z1))
    return F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ab.T, bb], 1), target)


def loss(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    from training.losses import contrast, nt_xent_loss

    if form == "lightly":
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(temperature=0.1)
        return lambda z0, z1: 2 * theirs(z0, z1)  # its mean is over both directions
    return {
        "tiles": nt_xent_loss,
        "contrast": lambda z0, z1: contrast(z0, z1).loss,
        "dense": dense,
        "quarters": quarters,
    }[form]


def inputs(views: int, dimension: int) -> tuple[Tensor, Tensor]:
    z0, z1 = torch.randn(2, views // 2, dimension, generator=torch.Generator().manual_seed(0)).unbind()
    return z0.requires_grad_(), z1.requires_grad_()


def resident(kind: str) -> float:
    """MB of this process, now (VmRSS) or at its greatest (VmHWM)."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1024


def memory(form: str, views: int, dimension: int) -> float:
    """MB beyond the inputs and their gradients, in a process that has computed nothing large yet."""
    compute = loss(form)
    z0, z1 = inputs(views, dimension)
    z0.grad, z1.grad = torch.zeros_like(z0), torch.zeros_like(z1)
    compute(z0[:8], z1[:8]).backward()
    before = resident("VmRSS")
    for _ in range(2):
        compute(z0, z1).backward()
    return resident("VmHWM") - before


def in_turns(forms: list[str], views: int, dimension: int, repeat: int) -> dict[str, float]:
    z0, z1 = inputs(views, dimension)
    computes = {form: loss(form) for form in forms}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(repeat + 1):
        for form in [*forms[turn % len(forms) :], *forms[: turn % len(forms)]]:  # no form always follows the same one
            compute = computes[form]
            began = time.perf_counter()
            compute(z0, z1).backward()
            if turn:
                seconds[form].append(time.perf_counter() - began)
    return {form: statistics.median(values) for form, values in seconds.items()}


def check(forms: list[str], dimension: int) -> None:
    """The greatest relative difference of loss and gradient from the dense form in float64."""
    z0, z1 = inputs(1280, dimension)
    doubles = [z.detach().double().requires_grad_() for z in (z0, z1)]
    value = dense(*doubles)
    expected = torch.cat(torch.autograd.grad(value, doubles))
    for form in forms:
        ours = loss(form)(z0, z1)
        gradient = torch.cat(torch.autograd.grad(ours, (z0, z1)))
        away = abs(ours.item() / value.item() - 1), ((gradient - expected).norm() / expected.norm()).item()
        print(f"{form:>9}: 1,280 views, from dense in float64: loss {away[0]:.1e}, gradient {away[1]:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[64, 512, 2048, 8192, 65536])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory(options.memory_of, options.views[0], options.dimension))
        return
    installed = [form for form in FORMS if form != "lightly" or importlib.util.find_spec("lightly")]
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, d = {options.dimension}"
    )
    check(installed, options.dimension)
    print(f"{'2N':>7} {'form':>9} {'ms':>10} {'MB':>8}   times tiles: seconds, MB", flush=True)
    for views in options.views:
        forms = [form for form in installed if views <= MATRIX or form in ("tiles", "contrast")]
        few = 10 if views <= 2048 else 1
        seconds = in_turns(forms, views, options.dimension, options.repeat * few)
        used = {}
        for form in forms:
            command = [sys.executable, __file__, "--memory-of", form, "--views", str(views)]
            done = subprocess.run([*command, "--dimension", str(options.dimension)], capture_output=True, text=True)
            used[form] = float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")
        for form in forms:
            ratios = f"{seconds[form] / seconds['tiles']:6.2f} {used[form] / max(used['tiles'], 0.1):6.2f}"
            print(f"{views:7} {form:>9} {seconds[form] * 1e3:10.2f} {used[form]:8.1f}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
