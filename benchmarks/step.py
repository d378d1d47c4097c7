"""A SimCLR step on this machine: views a second beside lightly's and solo-learn's, and where ours spends its time.

    python benchmarks/step.py [--model r18_1x] [--size 32] [--batch 128] [--repeat 5] [--images DIR]

Ours is the step of training/runs.py: one pass for both views, NT-Xent, LARS, in the precision, layout and memory that
it chooses on this processor. lightly's is the loop of its documentation (torchvision's ResNet, a pass for each view,
SGD) as given, channels-last, and so with bf16 autocast where the processor has bf16; solo-learn's, from its own loss
and LARS, likewise. Both get the projection head of their defaults. Each has a process of its own; steps are taken in
turns; medians. With --images, the share of time of the data is measured too: a batch made by one loader process, alone.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from training import distributed, small_planes
from training.augment import Augmentation
from training.data import TrainingBatches, from_folder, keep_freed_memory
from training.lars import LARS
from training.loop import memory_format, pick_precision
from training.stages import Pretrain
from training.step import Step

CPU = torch.device("cpu")
DEPTHS = {"r18_1x": "resnet18", "r50_1x": "resnet50"}
"""Names of ours and torchvision's."""
PARTS = ("forward", "loss", "backward", "optimizer")
PRODUCT, SIDE = "product", 2048
DEFAULT, CHANNELS_LAST, BF16 = "default", "channels-last", "channels-last, bf16"
HAS_BF16 = pick_precision("auto", CPU) is torch.bfloat16
FOR_GOOD = ExitStack()  # what is entered here is never left


# ---- the competitors -------------------------------------------------------------------------------------------------


def our_step(model: str, size: int, precision: str = "auto") -> Step:
    """As training/runs.py makes it on a processor, also as one of torchrun's processes. Memory is the caller's."""
    stage = Pretrain(zoo.create(model, num_classes=None, image_size=size, seed=0)).train()
    layout = memory_format(stage.model)
    stage.to(memory_format=layout)  # type: ignore[call-overload]
    distributed.make_global(stage.model)
    stage.set_network(distributed.data_parallel(stage.path))
    chosen = pick_precision(precision, CPU)
    FOR_GOOD.enter_context(small_planes.matrix_products(stage, chosen))
    optimizer = LARS(stage.parameter_groups(), lr=0.1, weight_decay=1e-4)
    return Step(stage, optimizer, device=CPU, precision=chosen, layout=layout)


def ours(model: str, size: int, batch: int, precision: str) -> Callable[[], list[float]]:
    """A step that tells the seconds of its PARTS: what ``Step`` does, with a look at the clock between."""
    step = our_step(model, size, precision)
    stage, views = step.stage, torch.rand(2, batch, 3, size, size)

    def take() -> list[float]:
        marks = [time.perf_counter()]
        data = {f"view{k}": step._moved(views[k]) for k in range(2)}
        with step._autocast():
            outputs = stage.outputs(data)
            marks.append(time.perf_counter())
            loss = stage.loss(outputs, data, stage.counts(data))["loss"]
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        step.optimizer.step()
        step.optimizer.zero_grad()
        marks.append(time.perf_counter())
        return [later - earlier for earlier, later in itertools.pairwise(marks)]

    return take


def backbone(model: str, size: int) -> tuple[nn.Module, int]:
    """torchvision's network as both peers use it, and its features' width; for 32 pixels with their small stem."""
    network = getattr(torchvision.models, DEPTHS[model])()
    if size <= 32:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    width = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


def peer_step(
    network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizer: Any, size: int, batch: int, form: str
) -> Callable[[], object]:
    """A pass for each view, as both peers do, in one of the forms above."""
    layout = torch.contiguous_format if form == DEFAULT else torch.channels_last
    network.train().to(memory_format=layout)  # type: ignore[call-overload]
    views = [torch.rand(batch, 3, size, size).contiguous(memory_format=layout) for _ in range(2)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=form == BF16):
            z0, z1 = network(views[0]), network(views[1])
            value = loss(z0, z1)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightlys(model: str, size: int, batch: int, form: str) -> Callable[[], object]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    trunk, width = backbone(model, size)
    network = nn.Sequential(trunk, SimCLRProjectionHead(width, width, 128))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
    return peer_step(network, NTXentLoss(), optimizer, size, batch, form)


def solo_learns(model: str, size: int, batch: int, form: str) -> Callable[[], object]:
    loss, lars = (_part_of("solo", file) for file in ("losses/simclr.py", "utils/lars.py"))
    trunk, width = backbone(model, size)
    network = nn.Sequential(trunk, nn.Linear(width, 2048), nn.ReLU(), nn.Linear(2048, 128))
    sgd = torch.optim.SGD(network.parameters(), lr=0.3, weight_decay=1e-4, momentum=0.9)
    optimizer = lars.LARSWrapper(sgd, eta=0.02, clip=True, exclude_bias_n_norm=True)
    return peer_step(network, loss.simclr_loss_func, optimizer, size, batch, form)


def _part_of(package: str, file: str) -> ModuleType:
    """One file of an installed package, without the package's own import, which wants more than is needed here."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(package)
    path = Path(next(iter(spec.submodule_search_locations))) / file
    found = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


Maker = Callable[[str, int, int], Callable[[], object]]


def competitors() -> dict[str, Maker]:
    """Name -> what makes its step from model, size and batch; peers that are not installed are left out."""
    found: dict[str, Maker] = {"ours": partial(ours, precision="auto")}
    forms = [DEFAULT, CHANNELS_LAST]
    if HAS_BF16:  # without, a step in bf16 takes eleven times as long
        found["ours, fp32"] = partial(ours, precision="fp32")
        forms += [BF16]
    for package, name, maker in (("lightly", "lightly", lightlys), ("solo", "solo-learn", solo_learns)):
        if importlib.util.find_spec(package):
            found |= {f"{name}, {form}": partial(maker, form=form) for form in forms}
    return found


def serve(name: str, model: str, size: int, batch: int) -> None:
    """In a process of its own: a step for every line that comes in, its seconds out."""
    if name.startswith("ours"):
        keep_freed_memory()  # as training/runs.py does; the peers' loops leave memory as they find it
    take = product() if name == PRODUCT else competitors()[name](model, size, batch)
    for _ in sys.stdin:
        began = time.perf_counter()
        parts = take()
        print(json.dumps(parts if isinstance(parts, list) else [time.perf_counter() - began]), flush=True)


def in_turns(model: str, size: int, batch: int, repeat: int) -> dict[str, list[list[float]]]:
    """Seconds of each competitor's steps, by part where it tells them, in turns, after one warm-up."""
    command = [sys.executable, __file__, "--model", model, "--size", str(size), "--batch", str(batch), "--serve"]
    processes = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in (*competitors(), PRODUCT)
    }
    found: dict[str, list[list[float]]] = {name: [] for name in processes}
    for _ in range(repeat + 1):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return {name: rows[1:] for name, rows in found.items()}


# ---- the hardware, and the data --------------------------------------------------------------------------------------


def arithmetic(model: str, size: int, batch: int) -> float:
    """Operations of one step of ours; a multiplication and an addition are two."""
    take = ours(model, size, batch, "auto")
    with FlopCounterMode(display=False) as counter:
        take()
    return float(counter.get_total_flops())


def product() -> Callable[[], object]:
    """A product of two matrices in the precision of our step: what the processor can do."""
    a, b = torch.randn(2, SIDE, SIDE).to(pick_precision("auto", CPU)).unbind()
    return lambda: [a @ b for _ in range(20)] and None


def data_seconds(folder: Path, size: int, batch: int, steps: int) -> float:
    """Median seconds in which one loader process, alone, makes a batch of two views each."""
    batches = TrainingBatches(
        from_folder(folder), batch_size=batch, augmentation=Augmentation(size), views=2, seed=0, workers=1
    )
    times, began = [], time.perf_counter()
    for _ in batches.stream(total_steps=steps + 3):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return statistics.median(times[3:])  # the first ones were made ahead, or wait for the process to start


# ---- the report ------------------------------------------------------------------------------------------------------


def report(options: argparse.Namespace) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
    versions += [
        f"{name} {importlib.metadata.version(name)}"
        for name, package in (("lightly", "lightly"), ("solo-learn", "solo"))
        if importlib.util.find_spec(package)
    ]
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"{', '.join(versions)}; {options.model}, {options.size} pixels, batch {options.batch}, "
        f"median of {options.repeat}",
        "",
        "| step | views/s | ours is, times |",
        "|---|---:|---:|",
    ]
    found = in_turns(options.model, options.size, options.batch, options.repeat)
    seconds = {name: statistics.median(map(sum, rows)) for name, rows in found.items()}
    rate = 20 * 2 * SIDE**3 / seconds.pop(PRODUCT)
    for name, value in seconds.items():
        lines.append(f"| {name} | {2 * options.batch / value:,.3g} | {value / seconds['ours']:.2f} |")
    lines += ["", "| part of our step | s | share |", "|---|---:|---:|"]
    for name, values in zip(PARTS, zip(*found["ours"], strict=True), strict=True):
        lines.append(f"| {name} | {statistics.median(values):.3f} | {sum(values) / sum(map(sum, found['ours'])):.1%} |")
    if options.images:
        data = data_seconds(options.images, options.size, options.batch, options.repeat)
        lines += [f"| (data, by one process, measured after) | {data:.3f} | {data / seconds['ours']:.1%} of a step |"]
    speed = arithmetic(options.model, options.size, options.batch) / seconds["ours"]
    lines += [
        "",
        f"{speed / 1e12:.2f} of the {rate / 1e12:.2f} TFLOP/s of a matrix product in the same precision, in turns: "
        f"{speed / rate:.0%}",
    ]
    lines += [f"Load at the end {os.getloadavg()[0]:.1f}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r18_1x", choices=list(DEPTHS))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--images", type=Path, help="a folder of images: measure the data, too")
    parser.add_argument("--serve", choices=[*competitors(), PRODUCT], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.model, options.size, options.batch)
        return
    keep_freed_memory()
    sys.stdout.write(report(options) + "\n")


if __name__ == "__main__":
    main()
