"""Memory mode off and on, with several decays, at a small batch: kNN accuracy after the same short pretraining.

    python benchmarks/memory_mode.py --images IMAGENETTE --out DIR [--batch 64] [--epochs 10] [--seeds 0]

IMAGENETTE holds train/ and val/, class folders. Every run can be interrupted; run again with the same --out to go on.
"""

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path

import torch

from training import data, evaluate, runs
from training.recipes import PretrainRecipe
from zoo.registry import Spec

SETTINGS = ((0, 0.999), (4096, 0.999), (4096, 0.99), (4096, 0.9), (65536, 0.99))  # projections, decay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    base = PretrainRecipe(
        model=Spec(depth=18, width=options.width),
        image_size=options.size,
        batch_size=options.batch,
        epochs=options.epochs,
        warmup_epochs=1,
        temperature=0.2,
        color_strength=0.5,
    )
    train, val = (data.from_class_folders(options.images / part) for part in ("train", "val"))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; r18 of width ", end="")
    print(
        f"{options.width} at {options.size} px, batch {options.batch}, {options.epochs:g} epochs of {len(train)} images"
    )
    for seed in options.seeds:
        for memory, decay in SETTINGS:
            out = options.out / f"memory_{memory}_decay_{decay}_seed_{seed}"
            recipe = dataclasses.replace(base, memory=memory, memory_decay=decay, seed=seed)
            model = runs.pretrain(recipe, train, out=out, resume=True)
            result = out / "knn.json"
            if not result.exists():
                result.write_text(json.dumps({"top1": evaluate.knn_score(model, train, val).top1}))
            lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            speed = sorted(line["images_per_second"] for line in lines)[len(lines) // 2]
            top1 = json.loads(result.read_text())["top1"]
            told = f"seed {seed}  memory {memory:6}  decay {decay:5}  kNN top-1 {top1:.2%}  median {speed:.0f} images/s"
            print(told, flush=True)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
