"""A recipe, images and a folder in; a trained model and its run directory out. One function a stage.

A run directory holds config.json, log.jsonl, curve.png, checkpoints/ and, at the end, model.safetensors.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import schedule
from training.augment import Augmentation
from training.data import ImageSet, TrainingBatches
from training.lars import LARS
from training.loop import Plan, pick_device, pick_precision, train, write_config
from training.recipes import AnyRecipe, DistillRecipe, FinetuneRecipe, PretrainRecipe
from training.stages import Distill, Finetune, Pretrain
from zoo.model_file import MODEL_FILE, load_file, save_file
from zoo.simclr import SimCLR
from zoo.weights import create

_SAME_RESULT = ("workers", "note")  # fields that do not change what is computed
_log = logging.getLogger("simclrv2")


def pretrain(
    recipe: PretrainRecipe, images: ImageSet, *, out: Path, device: str = "auto", resume: bool = False
) -> SimCLR:
    """Stage 1. Labels in ``images`` are ignored."""
    images = dataclasses.replace(images, labels=None)
    model = create(recipe.model, num_classes=None, image_size=recipe.image_size, seed=recipe.seed)
    augmentation = Augmentation(recipe.image_size, strength=recipe.color_strength, blur=recipe.blur)
    stage = Pretrain(model, temperature=recipe.temperature)
    return _run(recipe, stage, images, augmentation, views=2, out=out, device=device, resume=resume, decay=True)


def finetune(
    recipe: FinetuneRecipe,
    images: ImageSet,
    pretrained: SimCLR | None,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
) -> SimCLR:
    """Stage 2 on the labelled ``images``, from a pretrained model (its architecture counts, not the recipe's), or from
    random values if the recipe says so.

    Raises ValueError for images without labels, fewer than two classes, or a model that does not fit the recipe.
    """
    if images.labels is None:
        raise ValueError("Fine-tuning needs labels: give class folders, or a CSV with the columns path,label.")
    if (images.labels < 0).any():
        raise ValueError(
            f"{int((images.labels < 0).sum())} images have no label; fine-tuning takes labelled ones only."
        )
    if len(images.classes) < 2:
        raise ValueError(
            f"Fine-tuning needs at least two classes; there is only {', '.join(images.classes) or 'none'}."
        )
    if pretrained is not None:
        recipe = dataclasses.replace(recipe, model=pretrained.spec.name if pretrained.spec.facts else pretrained.spec)
    model = create(
        recipe.model,
        num_classes=len(images.classes),
        image_size=recipe.image_size,
        classify_from=recipe.classify_from,
        projector=not recipe.from_scratch,
        seed=recipe.seed,
    )
    model.classes = images.classes
    if not recipe.from_scratch:
        if pretrained is None:
            raise ValueError("This recipe starts from a pretrained model: give --from FILE.safetensors or a zoo name.")
        copy_part(pretrained, model, "backbone")
        copy_part(pretrained, model, "projector")
        assert model.classifier is not None
        nn.init.zeros_(model.classifier.weight)
    augmentation = Augmentation(recipe.image_size, color=False, blur=False)
    stage = Finetune(model, freeze_backbone=recipe.freeze_backbone, weight_decay=_in_loss(recipe))
    decay = not recipe.freeze_backbone
    return _run(recipe, stage, images, augmentation, views=1, out=out, device=device, resume=resume, decay=decay)


def _in_loss(recipe: FinetuneRecipe) -> float:
    """The classifier's decay is in the loss, except under plain momentum on the whole network, which decays it all."""
    return recipe.weight_decay if recipe.freeze_backbone or recipe.optimizer == "lars" else 0.0


def distill(
    recipe: DistillRecipe,
    images: ImageSet,
    teacher: SimCLR,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
) -> SimCLR:
    """Stage 3 on all ``images``; a label of -1 means none. The student has no projection head.

    Raises ValueError for a teacher without a classifier, or labels wanted (alpha < 1) and none given.
    """
    if teacher.num_classes is None:
        raise ValueError("The teacher has no classifier; fine-tune it first.")
    if recipe.alpha < 1 and images.labels is None:
        raise ValueError(f"alpha={recipe.alpha} wants labels for {1 - recipe.alpha:.0%} of the loss; there are none.")
    model = create(
        recipe.model,
        num_classes=teacher.num_classes,
        image_size=recipe.image_size,
        projector=False,
        seed=recipe.seed,
    )
    model.classes = teacher.classes
    if recipe.start_from_teacher:
        copy_part(teacher, model, "backbone")
    augmentation = Augmentation(recipe.image_size, color=False, blur=False)
    stage = Distill(model, teacher, temperature=recipe.temperature, alpha=recipe.alpha, scale_by_t2=recipe.scale_by_t2)
    return _run(recipe, stage, images, augmentation, views=1, out=out, device=device, resume=resume, decay=True)


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


def _run(
    recipe: AnyRecipe,
    stage: Pretrain | Finetune | Distill,
    images: ImageSet,
    augmentation: Augmentation,
    *,
    views: int,
    out: Path,
    device: str,
    resume: bool,
    decay: bool,
) -> SimCLR:
    config = _config(recipe, stage, images)
    identity = hashlib.sha256(json.dumps(config["same_result"], sort_keys=True).encode()).hexdigest()
    chosen = pick_device(device)
    precision = pick_precision(recipe.precision, chosen)
    if finished := _prepare(out, config, resume):
        return finished
    stage.to(chosen)
    stage.train()
    batches = TrainingBatches(
        images,
        batch_size=recipe.batch_size,
        augmentation=augmentation,
        views=views,
        seed=recipe.seed,
        workers=recipe.workers,
        on_skip=lambda path, reason: _log.warning("skipped %s", reason if str(path) in reason else f"{path}: {reason}"),
    )
    batch_size = batches.batch_size
    total = schedule.total_steps(len(images), recipe.epochs, batch_size)
    warmup = schedule.warmup_steps(len(images), recipe.warmup_epochs, batch_size)
    peak = schedule.base_rate(recipe.learning_rate, batch_size, recipe.scaling)
    plan = Plan(
        out=out,
        total_steps=total,
        steps_per_epoch=batches.steps_per_epoch,
        rate=lambda step: schedule.learning_rate(step, peak=peak, total=total, warmup=warmup),
        identity=identity,
        title=config["stage"],
        precision=precision,
    )
    optimizer = _optimizer(recipe, stage, decay=decay)

    def stream(start: int, total: int) -> Iterator[dict[str, Tensor]]:
        return batches.stream(start_step=start, total_steps=total)

    train(stage, optimizer, stream, plan, device=chosen, resume=resume)
    model = stage.model.to("cpu").eval()
    model.facts = {"stage": config["stage"], "recipe": config["recipe"], "training_images": config["images"]}
    save_file(model, out / MODEL_FILE)
    if batches.skipped:
        _log.warning("%d unreadable images were skipped: %s", len(batches.skipped), _some(list(batches.skipped)))
    return model


def _some(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _config(recipe: AnyRecipe, stage: nn.Module, images: ImageSet) -> dict[str, Any]:
    settings = dataclasses.asdict(recipe)
    listing = hashlib.sha256("\n".join(path.name for path in images.paths).encode())
    if images.labels is not None:
        listing.update(images.labels.tobytes())
    initial = hashlib.sha256()
    for tensor in stage.state_dict().values():  # with the teacher, if there is one
        initial.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    same = {key: value for key, value in settings.items() if key not in _SAME_RESULT}
    same |= {"stage": type(stage).__name__, "image_list": listing.hexdigest(), "initial": initial.hexdigest()}
    return {
        "stage": type(stage).__name__.lower(),
        "recipe": settings,
        "images": len(images),
        "classes": list(images.classes),
        "torch": torch.__version__,
        "same_result": same,
    }


def _prepare(out: Path, config: dict[str, Any], resume: bool) -> SimCLR | None:
    """Make the run directory; the finished model if a resumed run has nothing left to do."""
    path = out / "config.json"
    if path.exists() and not resume:
        raise ValueError(f"{out} already holds a run. Go on with --resume, or choose another --out.")
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["same_result"]
        except (json.JSONDecodeError, KeyError):
            raise ValueError(f"{path} is damaged; choose another --out.") from None
        changed = sorted(k for k in before | config["same_result"] if before.get(k) != config["same_result"].get(k))
        if changed:
            raise ValueError(f"{out} was begun with other settings ({', '.join(changed)}); resume with the same ones.")
        if (out / MODEL_FILE).exists():
            return load_file(out / MODEL_FILE)
    write_config(path, config)
    return None


def _optimizer(recipe: AnyRecipe, stage: Pretrain | Finetune | Distill, *, decay: bool) -> torch.optim.Optimizer:
    groups = stage.parameter_groups()
    weight_decay = recipe.weight_decay if decay else 0.0
    if recipe.optimizer == "lars":
        return LARS(groups, lr=0.0, momentum=recipe.momentum, weight_decay=weight_decay)
    plain = [{"params": group["params"], "weight_decay": weight_decay if group["adapt"] else 0.0} for group in groups]
    return torch.optim.SGD(plain, lr=0.0, momentum=recipe.momentum, nesterov=True)
