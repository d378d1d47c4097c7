"""Teachers: a model, an ONNX file, or answers that were scored beforehand; from a batch to its logits."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from training import answers
from training.data import Crops, ImageSet, evaluation_batches, spaced
from zoo.model_file import MODEL_FILE, SHARD_INDEX, sha256_of, weights_sha256
from zoo.resnet import SMALL_IMAGE
from zoo.simclr import SimCLR
from zoo.weights import load, load_given

Batch = dict[str, Tensor]


class Teacher(Protocol):
    """What distillation asks for its answers.

    ``num_classes``, ``classes`` (names, may be empty), ``image_size`` (side in pixels of its evaluation images),
    ``fingerprint`` (SHA-256 of what decides its answers), ``crops`` (None: it answers for any augmented image; else for
    these alone, and the students must be shown them).
    """

    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    crops: Crops | None

    @property
    def fingerprint(self) -> str: ...

    def to(self, device: str | torch.device) -> Self:
        """Answer on this device from now on; the teacher itself."""

    def __call__(self, batch: Batch) -> Tensor:
        """Float32 logits (B, classes) on the device of ``batch["view0"]`` (B, 3, S, S) in [0, 1], without gradient."""

    def evaluation_logits(self, images: ImageSet, limit: int) -> tuple[ImageSet, Tensor]:
        """Up to ``limit`` images, evenly spaced, without unreadable ones, and their logits (N, classes) float32 through
        the evaluation transform."""


def check_classes(teacher: Teacher, images: ImageSet) -> None:
    """Raise ValueError if labelled images have other classes than the teacher, or the same in another order."""
    if images.labels is None:
        return
    ours, theirs = images.classes, teacher.classes or images.classes
    if len(ours) != teacher.num_classes or ours != theirs:
        named = f", {_few(teacher.classes)}" if teacher.classes else ""
        raise ValueError(
            f"The teacher knows {teacher.num_classes} classes{named}; the labels have {len(ours)}, {_few(ours)}. "
            "They must be the same, in the same order."
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


# ---- live ------------------------------------------------------------------------------------------------------------


class ModelTeacher:
    """A model as teacher: frozen, in evaluation mode. It is used as it is, not copied.

    Views of another size than the model's ``image_size`` are taken as they are (the network is fully convolutional),
    as long as both are beyond 32 pixels: at and below, the stem is another. Raises ValueError for other sizes, and for
    a model without a classifier.
    """

    def __init__(self, model: SimCLR) -> None:
        if model.num_classes is None:
            raise ValueError(f"The teacher ({model.spec.name}) has no classifier; fine-tune it first.")
        self.model = model.eval().requires_grad_(False)
        self.num_classes, self.classes, self.image_size = model.num_classes, model.classes, model.image_size
        self.crops: Crops | None = None
        self.device = torch.device("cpu")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' SHA-256 and of what a state dict does not tell."""
        told = f"{weights_sha256(self.model)} {self.model.classify_from} {self.model.image_size}"
        return hashlib.sha256(told.encode()).hexdigest()

    def to(self, device: str | torch.device) -> Self:
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        size = batch["view0"].shape[-1]
        if size != self.image_size and min(size, self.image_size) <= SMALL_IMAGE:
            raise ValueError(
                f"The teacher is for {self.image_size} pixels, the images have {size}; models for up to {SMALL_IMAGE} "
                "pixels have another stem. Take a student and a teacher of the same size."
            )
        logits: Tensor = self.model(batch["view0"]).logits
        return logits.float()

    def evaluation_logits(self, images: ImageSet, limit: int) -> tuple[ImageSet, Tensor]:
        return _logits(self, images, limit, self.device)


class OnnxTeacher:
    """A file that ``simclr export`` wrote, as teacher: on the CPU, wherever the student is.

    Raises ValueError for a file that is not one, that has no classifier, or whose image size is not the views'.
    """

    def __init__(self, path: str | Path) -> None:
        from export.runtime import OnnxModel

        self.path, self._model = Path(path), OnnxModel(path)
        if not self._model.num_classes:
            raise ValueError(f"{path} has no classifier; export a fine-tuned or distilled model.")
        self.num_classes, self.classes = self._model.num_classes, self._model.labels
        self.image_size, self.fingerprint = self._model.image_size, self._model.fingerprint
        self.crops: Crops | None = None

    def to(self, device: str | torch.device) -> Self:
        return self

    def __call__(self, batch: Batch) -> Tensor:
        from export.runtime import CHUNK

        views = batch["view0"]
        if views.shape[-1] != self.image_size:
            raise ValueError(
                f"{self.path} takes images of {self.image_size} pixels, the student's have {views.shape[-1]}. Train it "
                f"at --image-size {self.image_size}, or export the teacher again."
            )
        pixels = views.detach().float().cpu().contiguous().numpy()
        parts = [self._model(pixels[start : start + CHUNK]).logits for start in range(0, len(pixels), CHUNK)]
        found = np.concatenate(parts) if parts else np.empty((0, self.num_classes), np.float32)  # type: ignore[arg-type]
        return torch.from_numpy(found).to(views.device)

    def evaluation_logits(self, images: ImageSet, limit: int) -> tuple[ImageSet, Tensor]:
        return _logits(self, images, limit, torch.device("cpu"))


def _logits(teacher: Teacher, images: ImageSet, limit: int, device: torch.device) -> tuple[ImageSet, Tensor]:
    asked = images.subset(spaced(len(images), limit))
    places, found = [], []
    for batch, _, index in evaluation_batches(asked, size=teacher.image_size):
        places.append(index)
        found.append(teacher({"view0": batch.to(device)}).cpu())
    return asked.subset(torch.cat(places).numpy()), torch.cat(found)


# ---- from disk -------------------------------------------------------------------------------------------------------


class CachedTeacher:
    """The answers in a folder that ``scoring.score_teacher`` wrote, for its crops of its images alone; memory-mapped.

    The logits are relative to their greatest, which is 0. ``batch["index"]`` (B,) int64 are places in the image set
    that was scored, ``batch["crop"]`` (B,) int64 which of its crops ``view0`` shows.

    Raises ValueError, in one line, for a folder without a manifest, or a shard that is missing or damaged: every
    shard's SHA-256 is compared once, when the folder is opened.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.scoring, hashes = answers.read_manifest(self.folder)
        answers.verify_shards(self.folder, hashes)
        self.fingerprint = sha256_of(self.folder / answers.MANIFEST)
        self._shards = [
            answers.map_shard(self.folder / name, self.scoring, number)
            for number, name in enumerate(self.scoring.shards)
        ]
        self.num_classes, self.classes = self.scoring.num_classes, self.scoring.classes
        self.image_size = self.scoring.evaluation_size
        self.crops: Crops | None = Crops(self.scoring.crops, self.scoring.crop_seed, self.scoring.image_size)

    def to(self, device: str | torch.device) -> Self:
        return self

    def check(self, images: ImageSet) -> None:
        """Raise ValueError, in one line, if these are not the scored images, if one can be read that could not be when
        the teacher was asked, or if they have labels of other classes."""
        if len(images) != self.scoring.images:
            raise ValueError(
                f"{self.folder} has answers for {self.scoring.images} images; there are {len(images)}. "
                "Give the images that were scored, or score these with `simclr score`."
            )
        if answers.image_list_sha256(images) != self.scoring.image_list:
            raise ValueError(
                f"{self.folder} has answers for other images (names, order or file sizes differ). "
                "Give the images that were scored, or score these with `simclr score`."
            )
        place = answers.first_readable(images, np.flatnonzero(~self._readable))
        if place is not None:
            raise ValueError(self._unanswered(images.paths[place]))
        check_classes(self, images)

    @property
    def _readable(self) -> np.ndarray:
        """Which images could be read, bool (N,)."""
        return np.concatenate([shard["readable"] for shard in self._shards]) != 0

    def _unanswered(self, image: object) -> str:
        return (
            f"{self.folder}: {image} could not be read when the teacher was asked, but can be now; let it answer again "
            "with `simclr score`, as before."
        )

    def __call__(self, batch: Batch) -> Tensor:
        index, crop = batch["index"].cpu().numpy(), batch["crop"].cpu().numpy()
        wrong = (crop < 0) | (crop >= self.scoring.crops)
        if wrong.any():
            raise ValueError(
                f"{self.folder} has crops 0 to {self.scoring.crops - 1} of each image, no {crop[wrong][0]}."
            )
        return self._logits(index, crop, batch["view0"].device)

    def evaluation_logits(self, images: ImageSet, limit: int) -> tuple[ImageSet, Tensor]:
        self.check(images)
        places = spaced(len(images), limit)
        places = places[self._readable[places]]
        parts = np.array_split(places, max(1, len(places) // 1024))
        row = self.scoring.crops
        found = [self._logits(part, np.full(len(part), row), torch.device("cpu")) for part in parts]
        return images.subset(places), torch.cat(found)

    def _logits(self, index: np.ndarray, row: np.ndarray, device: torch.device) -> Tensor:
        outside = (index < 0) | (index >= self.scoring.images)
        if outside.any():
            raise ValueError(
                f"{self.folder} has answers for images 0 to {self.scoring.images - 1}, none for {index[outside][0]}."
            )
        shard, place = np.divmod(index, self.scoring.shard_images)
        parts = {
            name: np.empty((len(index), *a.shape[2:]), a.dtype) for name, a in self._shards[0].items() if a.ndim > 1
        }
        for number in np.unique(shard):
            chosen, arrays = np.flatnonzero(shard == number), self._shards[number]
            unread = arrays["readable"][place[chosen]] == 0
            if unread.any():
                raise ValueError(self._unanswered(f"image {index[chosen][unread][0]}"))
            for name, part in parts.items():
                part[chosen] = arrays[name][place[chosen], row[chosen]]
        moved = {
            name: torch.from_numpy(part.astype(np.int64) if name == "classes" else part).to(device)
            for name, part in parts.items()
        }
        if "classes" not in moved:
            return moved["logits"].float()
        return answers.rebuild(moved["logits"], moved["classes"], moved["rest"], self.num_classes)


def open_teacher(name: str | Path) -> Teacher:
    """A teacher by name: of the zoo (``r18_1x:imagenette_distilled``), a ``.safetensors`` or ``.onnx`` file, a folder
    with a model, or one of answers that ``scoring.score_teacher`` wrote.

    Raises ValueError, in one line, for anything else, or for a model without a classifier.
    """
    path, name = Path(name), str(name)
    if path.is_dir():
        is_model = (path / MODEL_FILE).exists() or (path / SHARD_INDEX).exists()
        return ModelTeacher(load_given(path)) if is_model else CachedTeacher(path)
    if path.suffix == ".onnx":
        return OnnxTeacher(path)
    if path.suffix == ".safetensors":
        return ModelTeacher(load_given(path))
    model, _, weights = name.partition(":")
    if path.exists() or "/" in model or os.sep in model:
        raise ValueError(
            f"{name}: {'not a teacher' if path.exists() else 'no such file or folder'}. Give a .safetensors or .onnx "
            "file, a folder that `simclr score` wrote, or a zoo name such as r18_1x:imagenette_distilled."
        )
    return ModelTeacher(load(model, weights=weights or "pretrained"))
