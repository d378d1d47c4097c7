"""A large batch in parts beside the same batch in one piece: gradient, peak memory, seconds of one pretraining step.

    python benchmarks/micro_batch.py --images DIR [--batch 1024] [--micro 32] [--model r18_1x] [--size 64]

Each row is a process of its own, on the same images and the same weights (a few steps from the initial ones, so that
batch norm's running statistics mean something). The difference of gradients is of norms, the cosine of directions.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from training import data
from training.augment import Augmentation
from training.batch_norm import recompute_activations
from training.lars import LARS
from training.stages import Pretrain
from training.step import Step

ROWS = {  # name -> micro-batch as a share of the one asked for (0: none), statistics, evaluation mode, recompute
    "one piece": (False, "micro", False, False),
    "one piece, activations recomputed": (False, "micro", False, True),
    "parts, batch norm by part": (True, "micro", False, False),
    "parts, pooled statistics": (True, "global", False, False),
    "one piece, batch norm in evaluation": (False, "micro", True, False),
    "parts, batch norm in evaluation": (True, "micro", True, False),
}


def resident(kind: str) -> float:
    """MB of this process, now (VmRSS) or at its greatest (VmHWM)."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1024


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """The batch, and a model that has seen a few."""
    images = data.from_folder(options.images)
    batches = data.TrainingBatches(
        images, batch_size=options.batch, augmentation=Augmentation(options.size), views=2, seed=0, workers=0
    )
    batch = next(iter(batches.stream(total_steps=1)))
    save_file(batch, folder / "batch.safetensors")
    stage = Pretrain(zoo.create(options.model, num_classes=None, image_size=options.size, seed=0)).train()
    step = Step(stage, LARS(stage.parameter_groups(), lr=0.3, weight_decay=1e-4), device=torch.device("cpu"))
    for part in range(options.warmup):
        begin = 64 * part % len(batch["index"])
        step({name: value[begin : begin + 64] for name, value in batch.items()})
    zoo.save_file(stage.model, folder / "model.safetensors")


def measure(options: argparse.Namespace, folder: Path) -> None:
    parts, statistic, evaluation, recompute = ROWS[options.row]
    model = zoo.load_file(folder / "model.safetensors")
    stage = Pretrain(model).train()
    if recompute:
        recompute_activations(model)
    if evaluation:
        model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    micro = options.micro if parts else 0
    step = Step(stage, optimizer, device=torch.device("cpu"), micro_batch=micro, statistics=statistic)  # type: ignore[arg-type]
    batch = load_file(folder / "batch.safetensors")
    before, seconds = resident("VmRSS"), []
    for _ in range(options.repeat):
        began = time.perf_counter()
        loss = step(batch)["loss"].item()
        seconds.append(time.perf_counter() - began)
    save_file({"gradient": torch.cat([p.grad.flatten() for p in model.parameters()])}, folder / f"{options.row}.out")
    print(statistics.median(seconds), resident("VmHWM") - before, loss)


def gradient(folder: Path, row: str) -> Tensor:
    return load_file(folder / f"{row}.out")["gradient"].double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--model", default="r18_1x")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=20, help="steps of 64 images before")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(options, options.folder)
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"{options.model} at {options.size} px, --batch {options.batch} --micro {options.micro}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        print(f"{'':36} {'seconds':>8} {'peak MB':>8} {'loss':>8}  difference  cosine")
        for row, (_, _, evaluation, _) in ROWS.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{row:36} {done.stderr.strip().splitlines()[-1] if done.stderr else 'was killed: no memory'}")
                continue
            seconds, memory, loss = map(float, done.stdout.split()[-3:])
            reference = gradient(folder, "one piece, batch norm in evaluation" if evaluation else "one piece")
            ours = gradient(folder, row)
            difference = float((ours - reference).norm() / reference.norm())
            cosine = float(torch.cosine_similarity(ours, reference, dim=0))
            print(f"{row:36} {seconds:8.1f} {memory:8.0f} {loss:8.4f} {difference:11.2e} {cosine:7.4f}", flush=True)


if __name__ == "__main__":
    main()
