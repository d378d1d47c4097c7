"""The fast augmentation against the exact one where it counts: linear and kNN accuracy after one short pretraining.

    python benchmarks/augment_accuracy.py --images IMAGENETTE --out DIR [--epochs 8] [--seeds 0 1] [--forms fast exact]

IMAGENETTE holds train/ and val/, class folders. The dice are the same, so all see the same crops and colours. The form
"noise" is the exact one with up to half a level of 255 added to every value, evenly drawn: as little as rounding to
bytes, so what it changes is what chance changes. Linear: logistic regression on standardised features of all training
images. Every run can be interrupted; run again with the same --out to go on. Needs scikit-learn.
"""

import argparse
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import data, evaluate, runs
from training.augment import Augmentation
from training.recipes import PretrainRecipe
from zoo.registry import Spec


class Noisy(Augmentation):
    """The exact form and noise that depends on (seed, epoch, images) alone."""

    def views(self, images: Any, *, indices: Any, epoch: int, views: Any, seed: int) -> torch.Tensor:
        made = super().views(images, indices=indices, epoch=epoch, views=views, seed=seed)
        generator = torch.Generator().manual_seed(hash((seed, epoch, tuple(indices))) % 2**63)
        return made.add_((torch.rand(made.shape, generator=generator) - 0.5) / 255).clamp_(0, 1)


FORMS = {"fast": Augmentation, "exact": partial(Augmentation, exact=True), "noise": partial(Noisy, exact=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
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
        for form in options.forms:
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
            runs.Augmentation = FORMS[form]  # type: ignore[assignment,misc]  # in its place
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
