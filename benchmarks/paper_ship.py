"""The bundled student's files, made of the best student of benchmarks/paper.py and measured as they are shipped."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_estimate import put_between_marks
from paper_runs import Run, table
from paper_tables import score_of
from paper_work import Found, Place

import export
import zoo
from app.engine import BUNDLED, NONE_LIKELY
from training import data, evaluate
from training.recipes import DistillRecipe
from zoo import registry
from zoo.files import written_whole
from zoo.model_file import sha256_of
from zoo.registry import spec as find_spec
from zoo.sources import BUNDLED_FOLDER

ROOT = Path(__file__).parents[1]
CARD = ROOT / "docs" / "imagenette_distilled.md"
MOST_BYTES = 25_000_000
KEY = ("r18_1x", "imagenette_distilled")
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


def best(place: Place) -> Run:
    """The student of the zoo's r18_1x from 10 % of the labels that is right most often on the training images of which
    neither it nor its teacher was given labels; the validation images have no say.

    Raises ValueError if none is finished.
    """
    model = find_spec(place.grid.main if _quick(place) else KEY[0])
    fit = [
        run
        for run in table(place.grid)
        if isinstance(run.recipe, DistillRecipe)
        and run.share == place.grid.some
        and find_spec(run.recipe.model) == model
    ]
    there = [run for run in fit if (place.results / f"{run.name}.json").exists()]
    if not there:
        raise ValueError(f"No student is finished yet; these may be shipped: {', '.join(run.name for run in fit)}.")
    return max(there, key=lambda run: place.result(run.name)["scores"]["unlabeled"]["top1"])


def baseline(student: Run, place: Place) -> Found:
    """What the same labels alone give at the student's resolution. Raises ValueError if that is not finished."""
    wanted = student.share, student.seed, student.recipe.image_size  # type: ignore[union-attr]
    name = next(
        run.name
        for run in table(place.grid)
        if run.kind == "supervised" and (run.share, run.seed, run.recipe.image_size) == wanted  # type: ignore[union-attr]
    )
    if not (place.results / f"{name}.json").exists():
        raise ValueError(f"{student.name} is the best student; the card needs {name} beside it, which is not finished.")
    return place.result(name)


def _quick(place: Place) -> bool:
    return find_spec(place.grid.main).facts is None


def answers_of(path: Path, images: data.ImageSet) -> np.ndarray:
    """Probabilities (N, classes) by the file as it is shipped: on onnxruntime, images read as its users do."""
    model = export.OnnxModel(path)
    return np.concatenate([model.classify(images.paths[i : i + 64]) for i in range(0, len(images), 64)])


def how_sure(answers: np.ndarray, labels: np.ndarray) -> str:
    """The card's words on what the largest probability is worth: on all images, and where the app names none as likely.

    ``answers`` are probabilities (N, classes), ``labels`` (N,).
    """
    says, right = answers.max(1), answers.argmax(1) == labels
    unsure = says < NONE_LIKELY
    last = f"it never says less than {NONE_LIKELY:.0%}."
    if unsure.any():
        where = f"where it says less than {NONE_LIKELY:.0%} ({unsure.mean():.0%} of the images)"
        last = f"{where} it is right in {right[unsure].mean():.0%}."
    lines = [
        f"- **How sure it is.** On the {len(labels):,} validation images",
        f"  it says {says.mean():.0%} on average and is right in {right.mean():.0%};",
        f"  {last}",
    ]
    return "\n".join(lines).replace("%", " %")


def told(recipe: dict[str, Any]) -> str:
    """A recipe in a line: what is not zero, off, or the same in all of them."""
    left_out = ("note", "model", "workers", "precision", "momentum", "image_size", "data")
    kept = {name: value for name, value in recipe.items() if name not in left_out and (value or name == "seed")}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in kept.items())


def ship(place: Place, out: Path | None = None) -> None:
    """Write both files, to ``out`` or into the package, where the registry and the model card then know them.

    Raises ValueError if there is no student or no baseline for it, it is of other images, or a file is larger than
    25 MB.
    """
    run = best(place)
    result = place.result(run.name)
    teacher = place.result(run.needs[0])
    supervised = baseline(run, place)
    pretrained = place.result("pretrain_main")
    student = place.model(run.name)
    if tuple(WORDS) != student.classes:
        raise ValueError(f"The bundled student is Imagenette's; this one knows {', '.join(student.classes or ())}.")
    student.classes = tuple(WORDS.values())
    share = f"{result['labels']} of them ({run.share:.0%}) with"
    student.facts = {
        "weights": KEY[1],
        "data": f"Imagenette: {len(place.train)} images without labels, {share}; from ImageNet",
        "licence": "Apache-2.0; the training images are ImageNet's, for non-commercial research: see NOTICE",
        "recipe": {
            stage: told(found["recipe"])
            for stage, found in (("pretrain", pretrained), ("finetune", teacher), ("distill", result))
        },
        "synsets": list(WORDS),
        "teacher": _fact(score_of(teacher["scores"]["test"])),
        "supervised_only": _fact(score_of(supervised["scores"]["test"])),
    }
    onnx = (out or Path(export.__file__).parent / "bundled") / BUNDLED
    tensors = (out or BUNDLED_FOLDER) / f"{Path(BUNDLED).stem}.safetensors"
    onnx.parent.mkdir(parents=True, exist_ok=True)
    answers = _written(student, tensors, onnx, place.test)
    if max(onnx.stat().st_size, tensors.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{onnx} or {tensors} is larger than {MOST_BYTES:,} bytes.")
    shipped = zoo.load_file(tensors)
    shipped.classes = tuple(WORDS)  # as the folders are called
    rows = {
        "**student, ONNX as shipped**": _score(answers, place.test),
        "student, safetensors as shipped": evaluate.accuracy(shipped, place.test),
        f"teacher (fine-tuned on the same {result['labels']} labels)": score_of(teacher["scores"]["test"]),
        f"supervised only, on the same {result['labels']} labels": score_of(supervised["scores"]["test"]),
    }
    lines = ["| | top-1 | 95 % interval | top-5 |", "|---|---|---|---|", *(_row(*pair) for pair in rows.items())]
    print(f"{run.name}:", *lines, f"{onnx.stat().st_size:,} and {tensors.stat().st_size:,} bytes", sep="\n")
    if out is None:
        register(sha256_of(tensors))
        put_between_marks(CARD, "shipped", "\n".join(lines))
        put_between_marks(CARD, "sure", how_sure(answers, np.asarray(place.test.labels)))


def _score(answers: np.ndarray, images: data.ImageSet) -> evaluate.Score:
    return evaluate.score(torch.from_numpy(answers), np.asarray(images.labels))


def _written(student: zoo.SimCLR, tensors: Path, onnx: Path, test: data.ImageSet) -> np.ndarray:
    """Both files, float16; the accuracy is in them, so they are written, measured and written again.

    Returns the ONNX file's answers (N, classes).
    """
    zoo.save_file(student, tensors, dtype=torch.float16)
    export.to_onnx(zoo.load_file(tensors), onnx, weights="fp16")
    answers = answers_of(onnx, test)
    student.facts["accuracy"] = _fact(_score(answers, test))
    zoo.save_file(student, tensors, dtype=torch.float16)
    export.to_onnx(zoo.load_file(tensors), onnx, weights="fp16", images=list(test.paths), labels=test.labels)
    assert np.array_equal(answers_of(onnx, test), answers)
    return answers


def _fact(score: evaluate.Score) -> dict[str, Any]:
    """For the file's header, which people read: the interval in words."""
    low, high = score.interval
    interval = f"{low:.1%} to {high:.1%}"
    return {"top1": round(score.top1, 4), "interval_95": interval, "top5": round(score.top5, 4), "images": score.images}


def _row(name: str, score: evaluate.Score) -> str:
    low, high = score.interval
    return f"| {name} | {score.top1:.1%} | {low:.1%} to {high:.1%} | {score.top5:.1%} |".replace("%", " %")


def register(digest: str, path: Path = Path(registry.__file__)) -> None:
    """Put the bundled file's SHA-256 into the registry's table."""
    text, before = path.read_text(encoding="utf-8"), registry.BUNDLED[KEY]
    assert text.count(before) == 1
    with written_whole(path) as temporary:
        temporary.write_text(text.replace(before, digest), encoding="utf-8")
