"""A recipe, images and a folder in; a trained model and its run directory out. One function a stage.

A run directory holds config.json, survey.json, views.png, log.jsonl, scores.jsonl, curve.png, checkpoints/ and, at the
end, model.safetensors; best.safetensors is the model that scored best on the way. Under torchrun every process calls
the same function, and the first one writes.
"""

import dataclasses
import hashlib
import json
import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from training import distributed, evaluate, health, resident, schedule, small_planes
from training.answers import image_list_sha256
from training.augment import Augmentation
from training.batch_norm import recompute_activations
from training.confidence import match_confidence
from training.data import (
    Crops,
    ImageSet,
    TrainingBatches,
    give_back_freed_memory,
    keep_freed_memory,
    labels_per_class,
    require_labels,
    spaced,
)
from training.lars import LARS
from training.loop import Entry, Plan, memory_format, pick_device, pick_precision, train, write_config
from training.recipes import SAME_RESULT, AnyRecipe, DistillRecipe, FinetuneRecipe, PretrainRecipe
from training.stages import Distill, Finetune, Pretrain, Stage
from training.step import Step
from training.survey import kept_survey
from training.teachers import CachedTeacher, ModelTeacher, Teacher, check_classes
from training.views import draw_views, recipe_augmentation
from zoo.files import json_object
from zoo.model_file import MODEL_FILE, load_file, save_file
from zoo.resnet import SMALL_IMAGE
from zoo.simclr import PROJECTION_WIDTH, SimCLR
from zoo.weights import create

BEST_FILE, ENCODER_FILE = "best.safetensors", "encoder.safetensors"
SURVEY_FILE, VIEWS_FILE = "survey.json", "views.png"
_LOGS = ("config.json", "log.jsonl", "scores.jsonl", "curve.png")
_FILES = (*_LOGS, SURVEY_FILE, VIEWS_FILE, MODEL_FILE, BEST_FILE, ENCODER_FILE)
_SCORED = 2000  # labelled images of a kNN score, and 512 of an agreement: enough to see where a run goes
_ANSWERED = 512
_RECENT = 5  # log entries over which the loss is judged
_SIGNS = (
    "step",
    "contrast_accuracy",
    "alignment",
    "uniformity",
    "projection_rank",
    "feature_rank",
    "feature_rows",
    "feature_spread",
    "learning_rate",
    "loss_scale",
)
_log = logging.getLogger("simclrv2")


def pretrain(
    recipe: PretrainRecipe,
    images: ImageSet,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    validation: ImageSet | None = None,
) -> SimCLR:
    """Stage 1. Labels in ``images`` are ignored.

    Labelled ``validation`` images, which may be among ``images``, give a leave-one-out kNN score on the way. With a
    memory, its encoder is kept as encoder.safetensors.
    """
    images = dataclasses.replace(images, labels=None)
    model = create(recipe.model, num_classes=None, image_size=recipe.image_size, seed=recipe.seed)
    augmentation = Augmentation(recipe.image_size, strength=recipe.color_strength, blur=recipe.blur)
    stage = Pretrain(model, temperature=recipe.temperature, memory=recipe.memory, decay=recipe.memory_decay)
    few = None if validation is None else _all_labelled(validation).subset(spaced(len(validation), _SCORED))
    score = partial(evaluate.feature_scores, images=few, fallback=images)
    run = _Run(recipe, stage, images, augmentation, out=out, score=score, best=few is not None, views=2)
    if few is not None:
        run.chance = max(labels_per_class(few).values()) / len(few)
    return run.go(device, resume)


def finetune(
    recipe: FinetuneRecipe,
    images: ImageSet,
    pretrained: SimCLR | None,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    validation: ImageSet | None = None,
) -> SimCLR:
    """Stage 2 on the labelled ``images``, from a pretrained model (its architecture counts, not the recipe's), or from
    random values if the recipe says so. A model without a projection head, as students are, starts from layer 0.

    Raises ValueError for images without labels, fewer than two classes, validation images that are also trained on, or
    a model that does not fit the recipe.
    """
    images = _all_labelled(images)
    if pretrained is not None:
        recipe = dataclasses.replace(recipe, model=pretrained.spec.name if pretrained.spec.facts else pretrained.spec)
    headless = recipe.from_scratch or (pretrained is not None and pretrained.projector is None)
    if headless and pretrained is not None and recipe.classify_from:
        raise ValueError(
            f"{pretrained.spec.name} has no projection head, so there is no layer {recipe.classify_from} of it to "
            "start from; give --classify-from 0."
        )
    model = create(
        recipe.model,
        num_classes=len(images.classes),
        image_size=recipe.image_size,
        classify_from=recipe.classify_from,
        projector=not headless,
        seed=recipe.seed,
    )
    model.classes = images.classes
    if not recipe.from_scratch:
        if pretrained is None:
            raise ValueError("This recipe starts from a pretrained model: give --from FILE.safetensors or a zoo name.")
        copy_part(pretrained, model, "backbone")
        if not headless:
            copy_part(pretrained, model, "projector")
        assert model.classifier is not None
        nn.init.zeros_(model.classifier.weight)
    augmentation, _ = recipe_augmentation(recipe)
    stage = Finetune(
        model,
        freeze_backbone=recipe.freeze_backbone,
        weight_decay=recipe.weight_decay,
        decay_bias=recipe.optimizer == "nesterov",
    )
    score = _accuracy_on(validation, images, model.classes, len(model.classes))
    return _Run(recipe, stage, images, augmentation, out=out, score=score).go(device, resume)


def _all_labelled(images: ImageSet, *, least_per_class: int = 1, least_classes: int = 2) -> ImageSet:
    require_labels(images, least_per_class=least_per_class, least_classes=least_classes)
    missing = 0 if images.labels is None else int((images.labels < 0).sum())
    if missing:
        raise ValueError(f"{missing} images have no label; give labelled ones only.")
    return images


def distill(
    recipe: DistillRecipe,
    images: ImageSet,
    teacher: SimCLR | Teacher,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    validation: ImageSet | None = None,
) -> SimCLR:
    """Stage 3 on all ``images``; a label of -1 means none. The student has no projection head.

    ``best.safetensors`` is the student that did best on the labelled ``validation`` images; without them the one that
    agreed most often with the teacher, on up to 512 of the images as they are in evaluation. At another temperature
    than 1 the logits of both are scaled at the end, so that they are as sure as the teacher is on those images
    (training/confidence.py).

    Raises ValueError for a teacher without a classifier, one that was scored on other images or another size, labels
    wanted (alpha < 1) and none given, or validation images that carry a label in ``images`` too.
    """
    taught = ModelTeacher(teacher) if isinstance(teacher, SimCLR) else teacher
    if recipe.alpha < 1 and images.labels is None:
        raise ValueError(f"alpha={recipe.alpha} wants labels for {1 - recipe.alpha:.0%} of the loss; there are none.")
    if taught.crops is not None and taught.crops.image_size != recipe.image_size:
        raise ValueError(
            f"The teacher was scored on crops of {taught.crops.image_size} pixels, the student's are of "
            f"{recipe.image_size}; give --image-size {taught.crops.image_size}, or score it again."
        )
    if isinstance(taught, CachedTeacher):
        taught.check(images)
    if recipe.alpha < 1:
        check_classes(taught, images)
    model = create(
        recipe.model,
        num_classes=taught.num_classes,
        image_size=recipe.image_size,
        projector=False,
        seed=recipe.seed,
    )
    model.classes = taught.classes
    if recipe.start_from_teacher:
        if not isinstance(taught, ModelTeacher):
            raise ValueError("start_from_teacher copies the teacher's weights; it needs a .safetensors teacher.")
        copy_part(taught.model, model, "backbone")
    augmentation = Augmentation(recipe.image_size, color=False, blur=False)
    stage = Distill(model, taught, temperature=recipe.temperature, alpha=recipe.alpha, scale_by_t2=recipe.scale_by_t2)
    asked = _Asked(taught, images)
    score = _accuracy_on(validation, images, model.classes, taught.num_classes) or asked.agreement
    finish = None if recipe.temperature == 1 else partial(asked.match_confidence, recipe.temperature)
    run = _Run(recipe, stage, images, augmentation, out=out, score=score, finish=finish, crops=taught.crops)
    return run.go(device, resume, teacher=taught)


Score = Callable[[SimCLR, torch.device], dict[str, float]]


def _accuracy_on(
    validation: ImageSet | None, training: ImageSet, classes: tuple[str, ...], outputs: int
) -> Score | None:
    """Top-1 on validation images. Raises ValueError if they are trained on with their labels, or of other classes."""
    if validation is None:
        return None
    validation = _all_labelled(validation, least_per_class=0, least_classes=1)
    validation = evaluate.in_classes_of(validation, classes, outputs)
    if training.labels is not None:
        known = {path.resolve() for path, label in zip(training.paths, training.labels, strict=True) if label >= 0}
        both = [path for path in validation.paths if path.resolve() in known]
        if both:
            raise ValueError(f"{len(both)} validation images are also trained on, such as {both[0]}; take them out.")

    def score(model: SimCLR, device: torch.device) -> dict[str, float]:
        return {"top1": evaluate.accuracy(model, validation, device=device).top1}

    return score


class _Asked:
    """A few images, and what the teacher says to them in evaluation."""

    def __init__(self, teacher: Teacher, images: ImageSet) -> None:
        self.teacher, self.images = teacher, images

    @cached_property
    def logits(self) -> tuple[ImageSet, Tensor]:
        return self.teacher.evaluation_logits(self.images, _ANSWERED)

    def agreement(self, model: SimCLR, device: torch.device) -> dict[str, float]:
        """How often the student's answer is the teacher's."""
        images, theirs = self.logits
        _, ours, kept = evaluate.embed(model, images, device=device, title="agreement")
        assert ours is not None
        return {"agreement": (ours.argmax(1) == theirs[kept].argmax(1)).double().mean().item()}

    def match_confidence(self, temperature: float, model: SimCLR, device: torch.device) -> None:
        factor = match_confidence(model, *self.logits, temperature, device=device)
        _log.info("logits times %.3g: as sure as the teacher", factor)


def copy_part(source: SimCLR, target: SimCLR, part: str) -> None:
    """Copy ``backbone`` or ``projector``, strictly. Raises ValueError when the shapes differ."""
    values, place = getattr(source, part), getattr(target, part)
    if values is None:
        raise ValueError(f"{source.spec.name} has no {part} to start from.")
    try:
        place.load_state_dict(values.state_dict(), strict=True)
    except RuntimeError:
        raise ValueError(
            f"The {part} of {source.spec.name} at {source.image_size} pixels does not fit "
            f"{target.spec.name} at {target.image_size} pixels."
        ) from None


class _Run:
    """One stage's run, from its configuration to the finished model."""

    def __init__(
        self,
        recipe: AnyRecipe,
        stage: Stage,
        images: ImageSet,
        augmentation: Augmentation,
        *,
        out: Path,
        score: Score | None,
        finish: Callable[[SimCLR, torch.device], None] | None = None,
        best: bool = True,
        views: Literal[1, 2] = 1,
        crops: Crops | None = None,
    ) -> None:
        self.recipe, self.stage, self.images, self.augmentation = recipe, stage, images, augmentation
        self.out, self.score, self.finish, self.best = out, score, finish, best
        self.views, self.crops = views, crops
        self.facts: dict[str, Any] = {}
        self.chance: float | None = None  # the kNN score of one who always says the commonest class

    def go(self, device: str, resume: bool, *, teacher: Teacher | None = None) -> SimCLR:
        chosen = pick_device(device)
        before = _begun_with(self.out) if resume else {}
        precision = pick_precision(_again(self.recipe.precision, before.get("precision")), chosen)
        with distributed.processes(chosen) as place, _only_run_in(self.out):
            wanted = _again(self.recipe.data, before.get("data"))
            kept = resident.choose(
                cast(Any, wanted), self.images, image_size=self.recipe.image_size, device=place, crops=self.crops
            )
            config = _config(self.recipe, self.stage, self.images, precision, kept, teacher)
            self.facts = {"stage": config["stage"], "recipe": config["recipe"], "training_images": config["images"]}
            distributed.first_does(lambda: _prepare(self.out, config, resume))
            (finished,) = distributed.any_of(resume and distributed.is_first() and (self.out / MODEL_FILE).exists())
            if finished:
                return load_file(self.out / MODEL_FILE)
            distributed.first_does(self._look_first)
            if teacher is not None:
                teacher.to(place)
            batches = self._batches(place, kept)
            self._train(batches, config, place, precision, resume)
            return self._finish(batches, place)

    def _look_first(self) -> None:
        """One pass over the images, reported, and a sheet of augmented views. Raises ValueError if none can be read."""
        recipe, sheet = self.recipe, self.out / VIEWS_FILE
        found = kept_survey(
            self.images, self.out / SURVEY_FILE, workers=max(1, recipe.workers), smallest=recipe.image_size
        )
        if not found.readable:
            path, reason = next(iter(found.unreadable.items()))
            raise ValueError(f"None of the {found.count} images can be read; the first: {path}: {reason}")
        if found.readable < self.views:
            raise ValueError(f"Of {found.count} images one can be read; pretraining tells images apart: add more.")
        sides = {found.shorter_side.least, found.longer_side.most}
        if self.score is not None and recipe.image_size <= SMALL_IMAGE and sides != {recipe.image_size}:
            raise ValueError(
                f"Models for up to {SMALL_IMAGE} pixels are evaluated on images of exactly that size; these have sides "
                f"of {min(sides)} to {max(sides)}. Give an --image-size above {SMALL_IMAGE}, or images of "
                f"{recipe.image_size} pixels."
            )
        for line in found.lines():
            _log.info("%s", line)
        for line in health.check_recipe(recipe, images=len(self.images)):
            _log.warning("%s", line)
        if not sheet.exists():
            seed = recipe.seed if self.crops is None else self.crops.seed
            draw_views(self.images, self.augmentation, sheet, views=self.views, seed=seed)
            _log.info("what training will see: %s", sheet)

    def _batches(self, place: torch.device, kept: resident.Kept) -> TrainingBatches:
        recipe = self.recipe
        common: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "augmentation": self.augmentation,
            "views": self.views,
            "seed": recipe.seed,
            "workers": recipe.workers,
            "process": (distributed.rank(), distributed.size()),
            "on_skip": lambda path, reason: _log.warning(
                "skipped %s", reason if str(path) in reason else f"{path}: {reason}"
            ),
        }
        if kept == "stream":
            return TrainingBatches(self.images, **common, crops=self.crops)
        layout = memory_format(self.stage.model)
        return resident.ResidentBatches(self.images, **common, device=place, layout=layout, compiled=recipe.compile)

    def _train(
        self,
        batches: TrainingBatches,
        config: dict[str, Any],
        place: torch.device,
        precision: torch.dtype,
        resume: bool,
    ) -> None:
        recipe, stage = self.recipe, self.stage
        if recipe.ema_decay:
            stage.keep_average(recipe.ema_decay)
        layout = memory_format(stage.model)
        stage.to(place)
        for module in stage.kept().values():
            module.to(memory_format=layout)
        stage.train()
        for module in stage.kept().values():
            distributed.make_global(module)
        if recipe.recompute:
            recompute_activations(stage.model)
        optimizer = _optimizer(recipe, stage)
        network = distributed.data_parallel(stage.path)
        stage.set_network(torch.compile(network) if recipe.compile else network)
        step = Step(
            stage,
            optimizer,
            device=place,
            precision=precision,
            layout=layout,
            micro_batch=recipe.micro_batch,
            statistics=recipe.batch_norm,
            clip_norm=recipe.clip_norm,
        )

        def stream(start: int, total: int) -> Iterator[dict[str, Tensor]]:
            return batches.stream(start_step=start, total_steps=total)

        with ExitStack() as meanwhile:
            if place.type == "cpu":
                keep_freed_memory()
                meanwhile.callback(give_back_freed_memory)
                if not recipe.compile:
                    meanwhile.enter_context(small_planes.matrix_products(stage, precision))
            train(step, stream, self._plan(batches, config, place), resume=resume)

    def _plan(self, batches: TrainingBatches, config: dict[str, Any], place: torch.device) -> Plan:
        recipe, batch_size = self.recipe, batches.batch_size
        total = schedule.total_steps(len(self.images), recipe.epochs, batch_size)
        warmup = schedule.warmup_steps(len(self.images), recipe.warmup_epochs, batch_size)
        steps_per_epoch = len(self.images) / batch_size
        peak = schedule.base_rate(recipe.learning_rate, batch_size, recipe.scaling)

        def score() -> dict[str, float]:
            assert self.score is not None
            try:
                return self.score(self._result(), place)
            finally:
                self.stage.train()

        return Plan(
            out=self.out,
            total_steps=total,
            steps_per_epoch=steps_per_epoch,
            rate=lambda step: schedule.learning_rate(step, peak=peak, total=total, warmup=warmup),
            identity=_identity(config),
            title=config["stage"],
            log_every=recipe.log_every,
            save_every=recipe.save_every,
            score_every=max(1, round(recipe.score_every * steps_per_epoch)),
            score=score if self.score is not None else None,
            keep_best=(lambda: save_file(self._result(), self.out / BEST_FILE)) if self.best else (lambda: None),
            watch=self._watch(total, warmup, batches),
            warn=lambda line: _log.warning("%s", line),
            tensorboard=recipe.tensorboard,
        )

    def _watch(
        self, total: int, warmup: int, batches: TrainingBatches
    ) -> Callable[[list[Entry], list[Entry]], list[str]]:
        """Warnings in words about what the log and the scores show."""
        recipe = self.recipe
        known: dict[str, Any] = {"stage": health.stage_name(recipe), "total_steps": total, "warmup_steps": warmup}
        if isinstance(recipe, PretrainRecipe) and recipe.temperature >= health.LEAST_TEMPERATURE:
            known |= {"batch_size": batches.batch_size, "temperature": recipe.temperature, "memory": recipe.memory}
            known["expected"] = health.expected_nt_xent(
                batches.batch_size, recipe.temperature, memory=min(recipe.memory, batches.batch_size * 2 * total)
            )
        share = batches.batch_size // distributed.size()
        known |= {"projection_dimension": PROJECTION_WIDTH, "projection_rows": 2 * share}
        known |= {"feature_dimension": self.stage.model.spec.feature_width, "knn_chance": self.chance}

        def watch(entries: list[Entry], scores: list[Entry]) -> list[str]:
            if not entries:
                return []
            now = entries[-1] | (scores[-1] if scores else {}) | {"step": entries[-1]["step"]}
            seen = {name: now[name] for name in _SIGNS if name in now}
            loss = statistics.fmean(entry["loss"] for entry in entries[-_RECENT:])
            votes = tuple(entry["knn"] for entry in scores if "knn" in entry)
            return health.diagnose(health.Signs(**known, **seen, loss=loss, knn=votes))

        return watch

    def _result(self) -> SimCLR:
        """What the run is for: the moving average of the model if there is one."""
        model = self.stage.model if self.stage.average is None else self.stage.average.model
        model.classes, model.facts = self.stage.model.classes, self.facts
        return model

    def _finish(self, batches: TrainingBatches, place: torch.device) -> SimCLR:
        model = self._result().eval()
        if self.finish is not None and distributed.is_first():
            self.finish(model, place)
            if (self.out / BEST_FILE).exists():
                best = load_file(self.out / BEST_FILE)
                self.finish(best, place)
                save_file(best.to("cpu"), self.out / BEST_FILE)
        model.to("cpu")
        if distributed.is_first():
            encoder = getattr(self.stage, "encoder", None)
            if encoder is not None:
                encoder.model.facts = model.facts | {"moving_average": self.recipe.memory_decay}  # type: ignore[union-attr]
                save_file(encoder.model.to("cpu"), self.out / ENCODER_FILE)
            save_file(model, self.out / MODEL_FILE)
        distributed.wait_for_all()
        if batches.skipped:
            _log.warning("%d unreadable images were skipped: %s", len(batches.skipped), _some(list(batches.skipped)))
        return load_file(self.out / MODEL_FILE)


@contextmanager
def _only_run_in(out: Path) -> Iterator[None]:
    """Raises ValueError if another run is at work in the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")

    def claim() -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; give a folder as --out.")
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"Another process trains in {out}; wait for it, or choose another --out.") from None
        for name in _FILES:  # what a killed run was writing
            for left in out.glob(f".{name}.*"):
                left.unlink(missing_ok=True)

    distributed.first_does(claim)
    try:
        yield
    finally:
        lock.release()


def _some(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _config(
    recipe: AnyRecipe,
    stage: Stage,
    images: ImageSet,
    precision: torch.dtype,
    kept: resident.Kept,
    teacher: Teacher | None,
) -> dict[str, Any]:
    settings = dataclasses.asdict(recipe)
    labels = b"" if images.labels is None else images.labels.tobytes()
    initial = hashlib.sha256()
    for tensor in stage.model.state_dict().values():
        initial.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    same = {key: value for key, value in settings.items() if key not in SAME_RESULT}
    same |= {
        "stage": type(stage).__name__,
        "precision": str(precision).removeprefix("torch."),
        "data": kept,
        "image_list": image_list_sha256(images),
        "labels": hashlib.sha256(labels).hexdigest(),
        "initial": initial.hexdigest(),
    }
    if recipe.micro_batch:  # a part is what all processes have in the network at a time
        same["processes"] = distributed.size()
    if teacher is not None:
        same["teacher"] = teacher.fingerprint
    return {
        "stage": type(stage).__name__.lower(),
        "recipe": settings,
        "images": len(images),
        "classes": list(images.classes),
        "torch": torch.__version__,
        "same_result": same,
    }


def _identity(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config["same_result"], sort_keys=True).encode()).hexdigest()


def _prepare(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Write the configuration, or see that a run to be resumed has the same one.

    A folder in which nothing has been kept yet is begun anew.
    """
    path, begun = out / "config.json", _is_begun(out)
    if begun and not resume:
        raise ValueError(f"{out} already holds a run. Go on with --resume, or choose another --out.")
    if not begun:
        for name in (VIEWS_FILE, BEST_FILE, ENCODER_FILE) if path.exists() else ():  # of a start that came to nothing
            (out / name).unlink(missing_ok=True)
        write_config(path, config)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["same_result"]
    except (json.JSONDecodeError, KeyError):
        raise ValueError(f"{path} is damaged; choose another --out.") from None
    now = json.loads(json.dumps(config["same_result"]))
    changed = sorted(k for k in before | now if before.get(k) != now.get(k))
    if changed:
        raise ValueError(f"{out} was begun with other settings ({', '.join(changed)}); resume with the same ones.")


def _is_begun(out: Path) -> bool:
    """Whether a run in the folder has left something to go on from."""
    kept = (out / MODEL_FILE).exists() or any((out / "checkpoints").glob("step_*"))
    return kept and (out / "config.json").exists()


def _begun_with(out: Path) -> dict[str, Any]:
    """What decides the result of a run that was begun in the folder; {} if none was."""
    try:
        return dict(json_object((out / "config.json").read_bytes())["same_result"]) if _is_begun(out) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _again(asked: str, before: str | None) -> str:
    """What ``auto`` came out as when the run was begun, whatever memory and hardware there are now."""
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return names.get(before, before) if asked == "auto" and before is not None else asked


def _optimizer(recipe: AnyRecipe, stage: Stage) -> torch.optim.Optimizer:
    groups = stage.parameter_groups()
    if recipe.optimizer == "lars":
        return LARS(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    plain = [{"params": group["params"], "weight_decay": recipe.weight_decay * group["adapt"]} for group in groups]
    return torch.optim.SGD(plain, lr=0.0, momentum=recipe.momentum, nesterov=True)
