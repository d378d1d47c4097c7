"""Images a second of the three stages, whole runs of a few steps: reading, augmentation, network, optimizer, log.

    python benchmarks/stages.py --images DIR [--model r18_1x] [--student r18_1x] [--size 64] [--batch 128] [--steps 30]

DIR holds class folders. The median over the log's entries, the first left out; an image of two views counts once.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from training import data, runs
from training.loop import pick_device, pick_precision
from training.recipes import DistillRecipe, FinetuneRecipe, PretrainRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="r18_1x")
    parser.add_argument("--student", default="r18_1x")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    labelled = data.from_class_folders(options.images)
    labelled = labelled.subset(data.stratified_subset(labelled.labels, fraction=min(1, 4000 / len(labelled)), seed=0))
    common = {
        "model": options.model,
        "image_size": options.size,
        "batch_size": options.batch,
        "epochs": (options.steps - 0.5) * options.batch / len(labelled),
        "warmup_epochs": 0.0,
        "log_every": 5,
        "workers": options.workers,
    }
    device = pick_device()
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}, {precision}")
    print(f"{options.model}, student {options.student}, {options.size} px, batch {options.batch}")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        first = runs.pretrain(PretrainRecipe(**common), labelled, out=out / "pretrain")
        tuned = runs.finetune(FinetuneRecipe(**common), labelled, first, out=out / "finetune")
        runs.distill(DistillRecipe(**common | {"model": options.student}), labelled, tuned, out=out / "distill")
        runs.pretrain(PretrainRecipe(**common, memory=4096), labelled, out=out / "pretrain, with a memory")
        for stage in ("pretrain", "pretrain, with a memory", "finetune", "distill"):
            lines = [json.loads(line) for line in (out / stage / "log.jsonl").read_text().splitlines()]
            print(f"{stage:26} {statistics.median(line['images_per_second'] for line in lines[1:]):7.0f} images/s")


if __name__ == "__main__":
    main()
