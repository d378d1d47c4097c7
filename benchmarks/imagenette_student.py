"""Makes the bundled student's files from finished Imagenette runs, and measures them as shipped.

    python -m training imagenette_pretrain --images imagenette/train --out RUNS/pretrain
    python -m training imagenette_finetune --from RUNS/pretrain/model.safetensors --images imagenette/train \
        --label-share 0.1 --label-seed 0 --out RUNS/finetune
    python -m training imagenette_distill --teacher RUNS/finetune/model.safetensors --images imagenette/train \
        --out RUNS/distill
    python -m training imagenette_supervised --images imagenette/train --label-share 0.1 --label-seed 0 \
        --out RUNS/supervised
    python benchmarks/imagenette_student.py RUNS imagenette

The validation images measure; nothing is chosen by them.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import export
import zoo
from app.engine import BUNDLED
from training import data, evaluate
from zoo.sources import BUNDLED_FOLDER

WORDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
STAGES = ("pretrain", "finetune", "distill", "supervised")


def onnx_score(path: Path, images: data.ImageSet) -> evaluate.Score:
    """The file as it is shipped, on onnxruntime, images read and preprocessed as its users do."""
    model = export.OnnxModel(path)
    answers = np.concatenate([model.classify(images.paths[i : i + 64]) for i in range(0, len(images), 64)])
    assert images.labels is not None
    return evaluate.score(torch.from_numpy(answers), images.labels)


def shown(score: evaluate.Score) -> dict[str, float | int | str]:
    low, high = score.interval
    return {
        "top1": round(score.top1, 4),
        "interval_95": f"{low:.1%} to {high:.1%}",
        "top5": round(score.top5, 4),
        "images": score.images,
    }


def told(recipe: dict[str, Any]) -> str:
    """A recipe in a line: what is not zero, off, or the same in all of them."""
    left_out = ("note", "model", "workers", "precision", "momentum", "image_size")
    kept = {name: value for name, value in recipe.items() if name not in left_out and (value or name == "seed")}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in kept.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("imagenette", type=Path)
    options = parser.parse_args()
    models = {stage: zoo.load_file(options.runs / stage / "model.safetensors") for stage in STAGES}
    train = data.from_class_folders(options.imagenette / "train")
    test = data.from_class_folders(options.imagenette / "val")
    few = train.subset(data.stratified_subset(np.asarray(train.labels), fraction=0.1, seed=0))
    student = models["distill"]
    assert tuple(WORDS) == student.classes == test.classes
    assert len(few) == models["finetune"].facts["training_images"] == models["supervised"].facts["training_images"]

    figures = {
        "teacher": evaluate.accuracy(models["finetune"], test),
        "supervised_only": evaluate.accuracy(models["supervised"], test),
        "knn_of_pretrained_features": evaluate.knn_score(models["pretrain"], few, test, k=20),
    }
    student.classes = tuple(WORDS.values())
    student.facts = {
        "weights": "imagenette_distilled",
        "data": f"Imagenette: {len(train)} images without labels, {len(few)} of them (10 %) with; from ImageNet",
        "licence": "Apache-2.0; the training images are ImageNet's, for non-commercial research: see NOTICE",
        "recipe": {stage: told(models[stage].facts["recipe"]) for stage in STAGES},
        "synsets": list(WORDS),
    } | {name: shown(score) for name, score in figures.items()}

    onnx_path = Path(export.__file__).parent / "bundled" / BUNDLED
    tensors_path = BUNDLED_FOLDER / f"{Path(BUNDLED).stem}.safetensors"
    zoo.save_file(student, tensors_path, dtype=torch.float16)
    export.to_onnx(zoo.load_file(tensors_path), onnx_path, weights="fp16")
    measured = onnx_score(onnx_path, test)
    student.facts["accuracy"] = shown(measured)  # known only now: the files are written again with it, and checked
    zoo.save_file(student, tensors_path, dtype=torch.float16)
    shipped = zoo.load_file(tensors_path)
    export.to_onnx(shipped, onnx_path, weights="fp16", images=list(test.paths), labels=test.labels)
    assert onnx_score(onnx_path, test) == measured

    figures |= {"student, ONNX as shipped": measured}
    figures |= {"student, safetensors as shipped": evaluate.accuracy(rename(zoo.load_file(tensors_path)), test)}
    for name, score in figures.items():
        print(f"{name:32} {score}")
    sizes = {path.name: path.stat().st_size for path in (onnx_path, tensors_path)}
    print(sizes)
    (options.runs / "figures.json").write_text(
        json.dumps({name: dataclasses.asdict(score) for name, score in figures.items()} | sizes, indent=2)
    )


def rename(model: zoo.SimCLR) -> zoo.SimCLR:
    """Back to the folder names, so that they can be compared with the images' classes."""
    model.classes = tuple(WORDS)
    return model


if __name__ == "__main__":
    main()
