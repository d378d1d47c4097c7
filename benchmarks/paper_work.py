"""How each kind of run of benchmarks/paper.py is done: a run in, its scores out. Everything goes on after a kill."""

import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_linear import choose_penalty, fit, folds
from paper_runs import TRAINED, Grid, Run, apply, read_result
from PIL import Image
from torch import Tensor

import zoo
from training import evaluate, runs
from training.data import ImageSet, stratified_subset, with_labels
from training.loop import pick_device
from training.recipes import DistillRecipe, FinetuneRecipe, PretrainRecipe
from zoo.files import json_object, written_whole
from zoo.model_file import MODEL_FILE, weights_sha256
from zoo.registry import spec as find_spec
from zoo.transforms import read_image

K = 20  # neighbours that vote: as many as few labels allow, and never tuned
_POINTS = 50  # of a curve that is kept
_PAUSE = 300.0  # seconds more than usual between two lines of a log: the process or the machine was stopped
_TIMED = 50  # calls of each network
_THUMBNAIL, _QUERIES, _NEIGHBOURS = 64, 6, 5
Found = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a grid is at work: its images, the folder of models and checkpoints, that of results. ``test`` measures
    and chooses nothing."""

    grid: Grid
    train: ImageSet
    test: ImageSet
    work: Path
    results: Path
    device: str = "auto"

    def labelled(self, share: float, seed: int) -> ImageSet:
        """That share of every class of the training images."""
        return self.train.subset(stratified_subset(np.asarray(self.train.labels), fraction=share, seed=seed))

    @property
    def unlabeled(self) -> ImageSet:
        return dataclasses.replace(self.train, labels=None)

    def result(self, name: str) -> Found:
        return read_result(self.results / f"{name}.json")

    def lasting(self, name: str) -> Path:
        """Where the model of a run that lasts lies."""
        return self.results / f"{name}.safetensors"

    def model(self, name: str) -> zoo.SimCLR:
        """What a finished run left. One that lasts is read from there, so that all see the same rounded weights."""
        file = self.lasting(name)
        return zoo.load_file(file if file.exists() else self.work / name / MODEL_FILE)

    def has_model(self, name: str) -> bool:
        return self.lasting(name).exists() or (self.work / name / MODEL_FILE).exists()


def do(run: Run, place: Place) -> Found:
    """Scores and what else is kept of a run. Raises InterruptedRunError (a KeyboardInterrupt) when asked to stop; the
    next call goes on from there."""
    began = time.monotonic()
    found = _KINDS[run.kind](run, place)
    return found if "seconds" in found else found | {"seconds": round(time.monotonic() - began, 1)}


def tidy(run: Run, place: Place, all_runs: list[Run]) -> None:
    """Take away what nobody needs any more: checkpoints, and models that neither a run needs nor a user."""
    folder = place.work / run.name
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for name in (runs.BEST_FILE, runs.ENCODER_FILE):
        (folder / name).unlink(missing_ok=True)
    if run.kind in TRAINED and run.kind != "distill" and not any(run.name in other.needs for other in all_runs):
        (folder / MODEL_FILE).unlink(missing_ok=True)


# ---- what the kinds share --------------------------------------------------------------------------------------------


def shown(score: evaluate.Score) -> Found:
    low, high = score.interval
    return {
        "top1": round(score.top1, 4),
        "interval": [round(low, 4), round(high, 4)],
        "top5": round(score.top5, 4),
        "images": score.images,
    }


def _of_kind(run: Run, place: Place, start: str) -> str:
    """The name of the run that this one needs and whose name begins so."""
    return next(name for name in run.needs if name.startswith(start))


def chosen(run: Run, place: Place) -> FinetuneRecipe:
    """The run's recipe, as the choice on held-out training labels has it."""
    assert isinstance(run.recipe, FinetuneRecipe)
    return apply(run.recipe, place.result(_of_kind(run, place, "choose"))["chosen"])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _thin(points: list[list[float]]) -> list[list[float]]:
    if not points:
        return []
    places = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    return [[round(value, 4) for value in points[i]] for i in places]


def trained(folder: Path, batch: int) -> Found:
    """What a run directory tells: seconds of training over all its restarts, long pauses left out, and thin curves."""
    log, scores = _lines(folder / "log.jsonl"), _lines(folder / "scores.jsonl")
    seconds, before = 0.0, 0
    usual = statistics.median(entry["images_per_second"] for entry in log) if log else 0.0
    for entry in log:
        views = (entry["step"] - before) * batch
        taken = views / entry["images_per_second"]
        seconds += taken if taken < views / usual + _PAUSE else views / usual
        before = entry["step"]
    curves = {"loss": _thin([[entry["epoch"], entry["loss"]] for entry in log])}
    for name in ("knn", "agreement"):
        points = [[entry["epoch"], entry[name]] for entry in scores if name in entry]
        curves |= {name: _thin(points)} if points else {}
    return {"seconds": round(seconds, 1), "curves": curves}


def _of_model(model: zoo.SimCLR) -> Found:
    return {"model": model.spec.name, "parameters": sum(p.numel() for p in model.backbone.parameters())}


def _told(recipe: Any) -> Found:
    return {"recipe": dataclasses.asdict(recipe)}


def _with_survey(place: Place, folder: Path) -> None:
    """The survey of the unlabeled images, taken once: a run verifies that it is about its very files."""
    kept = place.work / runs.SURVEY_FILE
    if not (folder / runs.SURVEY_FILE).exists() and kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, folder / runs.SURVEY_FILE)


# ---- the kinds -------------------------------------------------------------------------------------------------------


def _choose(run: Run, place: Place) -> Found:
    """Each candidate trained on parts of the labels and measured on the rest of them; the best by images right."""
    assert isinstance(run.recipe, FinetuneRecipe)
    few = place.labelled(run.share or 1, run.seed)
    pretrained = place.model(_of_kind(run, place, "pretrain")) if run.of == "finetune" else None
    start = None if pretrained is None else weights_sha256(pretrained)
    seconds, right = 0.0, []
    for number, change in enumerate(run.candidates):
        recipe, hits, asked = apply(run.recipe, change), 0.0, 0
        for fold, (kept, held) in enumerate(folds(np.asarray(few.labels))):
            folder = place.work / run.name / f"{number}_{fold}"
            known, facts = folder / "measured.json", _measured(folder / "measured.json")
            settings = json.loads(json.dumps({"recipe": dataclasses.asdict(recipe), "start": start}))
            if facts.get("settings") != settings:
                model = runs.finetune(
                    recipe, few.subset(kept), pretrained, out=folder, device=place.device, resume=True
                )
                score = evaluate.accuracy(model, few.subset(held), device=pick_device(place.device))
                facts = {"settings": settings, "top1": score.top1, "images": score.images}
                facts |= {"seconds": trained(folder, min(recipe.batch_size, len(kept)))["seconds"]}
                with written_whole(known) as temporary:
                    temporary.write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            for left in folder.glob("*.safetensors"):
                left.unlink()
            hits, asked = hits + facts["top1"] * facts["images"], asked + facts["images"]
            seconds += facts["seconds"]
        right.append({"change": dict(change), "held_out_top1": round(hits / asked, 4), "held_out_images": asked})
    best = max(right, key=lambda candidate: candidate["held_out_top1"])
    return {"chosen": best["change"], "candidates": right, "seconds": round(seconds, 1)}


def _measured(path: Path) -> Found:
    """What was measured before, and with which settings; {} if nothing was."""
    try:
        return json_object(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _tuned(run: Run, place: Place) -> Found:
    """Supervised only, and fine-tuning."""
    recipe, folder = chosen(run, place), place.work / run.name
    few = place.labelled(run.share or 1, run.seed)
    pretrained = None if recipe.from_scratch else place.model(_of_kind(run, place, "pretrain"))
    model = runs.finetune(recipe, few, pretrained, out=folder, device=place.device, resume=True)
    score = evaluate.accuracy(model, place.test, device=pick_device(place.device))
    found = _told(recipe) | _of_model(model) | trained(folder, min(recipe.batch_size, len(few)))
    return found | {"labels": len(few), "scores": {"test": shown(score)}}


def _pretrain(run: Run, place: Place) -> Found:
    """Without labels. Those of a part of the training images give a leave-one-out kNN curve on the way, which stops or
    chooses nothing."""
    assert isinstance(run.recipe, PretrainRecipe)
    folder = place.work / run.name
    _with_survey(place, folder)
    few = place.labelled(place.grid.some, place.grid.seeds[0])
    model = runs.pretrain(run.recipe, place.unlabeled, out=folder, device=place.device, resume=True, validation=few)
    if not (place.work / runs.SURVEY_FILE).exists():
        shutil.copyfile(folder / runs.SURVEY_FILE, place.work / runs.SURVEY_FILE)
    if run.lasting:
        zoo.save_file(model, place.lasting(run.name), dtype=torch.float16)
    return _told(run.recipe) | _of_model(model) | trained(folder, min(run.recipe.batch_size, len(place.train)))


def _distill(run: Run, place: Place) -> Found:
    """``unlabeled``: accuracy on the training images whose labels neither teacher nor student saw."""
    assert isinstance(run.recipe, DistillRecipe)
    folder, device = place.work / run.name, pick_device(place.device)
    few = place.labelled(run.share or 1, run.seed)
    images = with_labels(place.train, few) if run.recipe.alpha < 1 else place.unlabeled
    if run.recipe.alpha == 1:
        _with_survey(place, folder)
    teacher = place.model(run.needs[0])
    model = runs.distill(run.recipe, images, teacher, out=folder, device=place.device, resume=True)
    known = set(few.paths)
    unseen = place.train.subset([i for i, path in enumerate(place.train.paths) if path not in known])
    scores = {
        "test": shown(evaluate.accuracy(model, place.test, device=device)),
        "unlabeled": shown(evaluate.accuracy(model, unseen, device=device)),
    }
    found = _told(run.recipe) | _of_model(model) | trained(folder, min(run.recipe.batch_size, len(images)))
    return found | {"labels": len(few), "teacher": run.needs[0], "scores": scores}


def _lightly(run: Run, place: Place) -> Found:
    import paper_lightly

    return paper_lightly.pretrain(run.recipe, place, place.work / run.name)


def features(name: str, images: ImageSet, place: Place) -> Tensor:
    """Features (N, D) of all the images by a pretrained network, ours or lightly's."""
    if name == "lightly":
        import paper_lightly

        return paper_lightly.features(place.work / name, images, place)
    found, _, kept = evaluate.embed(place.model(name), images, device=pick_device(place.device))
    assert len(kept) == len(images), "there are unreadable images"
    return found


def _linear(run: Run, place: Place) -> Found:
    """Linear evaluation and kNN of the same features, with every draw of labels."""
    classes, scores = len(place.train.classes), []
    bank, queries = (features(run.needs[0], images, place) for images in (place.train, place.test))
    truth, labels = np.asarray(place.test.labels), np.asarray(place.train.labels)
    for share, seed in run.draws:
        at = stratified_subset(labels, fraction=share, seed=seed)
        penalty = choose_penalty(bank[at], labels[at], classes=classes)
        logits = fit(bank[at], labels[at], classes=classes, penalty=penalty)(queries)
        votes = evaluate.knn(bank[at], labels[at], queries, classes=classes, k=K)
        measured = {"linear": shown(evaluate.score(logits, truth)), "knn": shown(evaluate.score(votes, truth))}
        scores.append({"share": share, "seed": seed, "labels": len(at), "penalty": penalty} | measured)
    return {"draws": scores}


def _neighbours(run: Run, place: Place) -> Found:
    """The nearest training images of the first test image of some classes, before and after pretraining, as a picture;
    and how often they are of its class."""
    labels = np.asarray(place.test.labels)
    asked = np.array([np.flatnonzero(labels == label)[0] for label in np.unique(labels)[:_QUERIES]])
    after = place.model(run.needs[0])
    before = zoo.create(after.spec, num_classes=None, image_size=after.image_size, seed=0)
    rows: list[list[Path]] = [[place.test.paths[i]] for i in asked]
    same = {}
    for name, model in (("before", before), ("after", after)):
        device = pick_device(place.device)
        bank, queries = (
            torch.nn.functional.normalize(evaluate.embed(model, images, device=device)[0])
            for images in (place.train, place.test)
        )
        nearest = (queries @ bank.T).topk(_NEIGHBOURS).indices.numpy()
        same[name] = round(float((np.asarray(place.train.labels)[nearest] == labels[:, None]).mean()), 4)
        for row, places in zip(rows, nearest[asked], strict=True):
            row += [place.train.paths[i] for i in places]
    with written_whole(place.results / "neighbours.jpg") as temporary:
        _sheet(rows).save(temporary, format="JPEG", quality=85)
    return {"same_class": same}


def _speed(run: Run, place: Place) -> Found:
    """Milliseconds an image of the grid's networks as ONNX files on one thread, a picture at a time, in turns. Weights
    are drawn: they do not matter here."""
    from export import to_onnx
    from export.runtime import OnnxModel

    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for spec in {find_spec(network) for network in (place.grid.main, place.grid.small)}:
            model = zoo.create(spec, num_classes=len(place.train.classes), image_size=place.grid.size, seed=0)
            file = Path(folder) / f"{spec.name}.onnx"
            to_onnx(model.eval(), file)
            models[spec.name] = OnnxModel(file, threads=1)
        for _ in range(_TIMED + 1):
            for name, student in models.items():
                image = student.prepare(read_image(place.test.paths[0]))[None]
                began = time.perf_counter()
                student(image)
                taken.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
    return {"milliseconds": {name: round(statistics.median(values[1:]), 3) for name, values in taken.items()}}


def _sheet(rows: list[list[Path]]) -> Image.Image:
    """The asked image, a gap, those before, a gap, those after."""
    side, gap = _THUMBNAIL, _THUMBNAIL // 4
    sheet = Image.new("RGB", (side * len(rows[0]) + 2 * gap, side * len(rows)), "white")
    for top, row in enumerate(rows):
        for column, path in enumerate(row):
            picture = Image.fromarray(read_image(path)).resize((side, side))
            sheet.paste(picture, (column * side + gap * (-(-column // _NEIGHBOURS)), top * side))
    return sheet


_KINDS: dict[str, Callable[[Run, Place], Found]] = {
    "choose": _choose,
    "supervised": _tuned,
    "finetune": _tuned,
    "pretrain": _pretrain,
    "linear": _linear,
    "distill": _distill,
    "lightly": _lightly,
    "neighbours": _neighbours,
    "speed": _speed,
}
