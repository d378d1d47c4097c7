"""The fast augmentation against the exact one where it counts: linear and kNN accuracy after one short pretraining.

    python benchmarks/augment_accuracy.py --images IMAGENETTE --out DIR [--epochs 8] [--seeds 0 1]

IMAGENETTE holds train/ and val/, class folders. The dice are the same, so both see the same crops and colours. Linear:
logistic regression on standardised features of all training images. Every run can be interrupted; run again with the
same --out to go on. Needs scikit-learn.
"""

import argparse
import platform
from functools import partial
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import data, evaluate, runs
from training.augment import Augmentation
from training.recipes import PretrainRecipe
from zoo.registry import Spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    train, val = (data.from_class_folders(options.images / part) for part in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    print(
        f"{platform.machine()}, torch {torch.__version__}; r18 of width {options.width}, {options.size} pixels, ",
        end="",
    )
    print(f"{options.epochs:g} epochs of {len(train)} images, batch 256; top-1 on {len(val)} images\n")
    print("| seed | augmentation | linear | kNN |\n|---|---|---:|---:|")
    for seed in options.seeds:
        for exact in (False, True):
            recipe = PretrainRecipe(
                model=Spec(depth=18, width=options.width),
                image_size=options.size,
                batch_size=256,
                epochs=options.epochs,
                warmup_epochs=1,
                temperature=0.2,
                color_strength=0.5,
                seed=seed,
            )
            runs.Augmentation = partial(Augmentation, exact=exact)  # type: ignore[assignment,misc]  # in its place
            form = "exact" if exact else "fast"
            model = runs.pretrain(recipe, train, out=options.out / f"{form}_{seed}", resume=True)
            bank, _, kept = evaluate.embed(model, train)
            asked, _, places = evaluate.embed(model, val)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            linear = probe.fit(bank.numpy(), train.labels[kept]).score(asked.numpy(), val.labels[places])
            votes = evaluate.knn(bank, train.labels[kept], asked, classes=len(train.classes))
            knn = evaluate.score(votes, val.labels[places]).top1
            print(f"| {seed} | {form} | {linear:.2%} | {knn:.2%} |", flush=True)


if __name__ == "__main__":
    main()
