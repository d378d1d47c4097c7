"""A teacher is asked once about crops of every image, and its answers are kept for students to learn from."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from training import answers
from training.answers import Scoring
from training.augment import Augmentation
from training.data import ImageSet, loaded
from training.teachers import Teacher
from zoo.files import check_room
from zoo.model_file import sha256_of
from zoo.transforms import preprocess, read_image

_log = logging.getLogger(__name__)


def plan_scoring(
    teacher: Teacher,
    images: ImageSet,
    *,
    crops: int = 5,
    seed: int = 0,
    image_size: int | None = None,
    top_k: int | None = None,
    shard_images: int = answers.SHARD_IMAGES,
) -> Scoring:
    """What ``score_teacher`` with these options would write. Raises ValueError for impossible ones."""
    if teacher.crops is not None:
        raise ValueError("This teacher is a folder of answers already; score the model that gave them.")
    for option, value, least in (("crops", crops, 1), ("crop_seed", seed, 0), ("image_size", image_size or 8, 8)):
        if value < least:
            raise ValueError(f"{option}={value} is below {least}.")
    if not len(images):
        raise ValueError("The image set is empty: there is nothing to score.")
    return Scoring(
        teacher=teacher.fingerprint,
        classes=teacher.classes,
        num_classes=teacher.num_classes,
        crops=crops,
        crop_seed=seed,
        image_size=image_size or teacher.image_size,
        evaluation_size=teacher.image_size,
        top_k=answers.kept_classes(teacher.num_classes, top_k),
        images=len(images),
        image_list=answers.image_list_sha256(images),
        shard_images=shard_images,
    )


def score_teacher(
    teacher: Teacher,
    images: ImageSet,
    folder: str | Path,
    *,
    crops: int = 5,
    seed: int = 0,
    image_size: int | None = None,
    top_k: int | None = None,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    workers: int = 0,
    shard_images: int = answers.SHARD_IMAGES,
) -> dict[str, Any] | None:
    """Ask the teacher once about every image: about ``crops`` random crops of it, and about its evaluation view.

    The crops (crop and flip only) are a function of (``seed``, number of the crop, place of the image), so that
    students can be shown the same; see ``Crops``. ``image_size`` is their side, by default the teacher's; evaluation
    views have the teacher's. ``top_k``: how many logits are kept, see ``answers.kept_classes``. ``batch_size`` is in
    crops. Unreadable images are marked and left out.

    Shards are written whole; a rerun goes on after the finished ones, and makes those again that are damaged or lack an
    image that can be read by now. Under torchrun (RANK, WORLD_SIZE) every process scores its share of the shards, and
    the last to finish writes the manifest.

    Returns the manifest's content (see ``answers.write_manifest``), None while other processes are not done. Raises
    ValueError, in one line, for impossible options, a folder with answers of another scoring, sizes that the teacher
    does not take, logits that are not finite, or no readable image at all.
    """
    folder, place = Path(folder), torch.device(device)
    scoring = plan_scoring(
        teacher, images, crops=crops, seed=seed, image_size=image_size, top_k=top_k, shard_images=shard_images
    )
    teacher.to(place)
    for side in (scoring.image_size, scoring.evaluation_size):
        found = teacher(
            {"view0": torch.zeros(1, 3, side, side, device=place)}
        )  # it may refuse the size: now, not later
        assert found.shape == (1, scoring.num_classes)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = range(rank, len(scoring.shards), world)
    pending = _pending(folder, scoring, mine, images)
    left = sum(len(scoring.span(number)) for number in pending)
    check_room(folder, left * scoring.bytes_per_image, "the teacher's answers")
    total = sum(len(scoring.span(number)) for number in mine)
    with tqdm(total=total, initial=total - left, desc="scoring", unit="image", disable=None) as bar:
        for number, arrays in _scored(teacher, images, scoring, pending, batch_size, place, workers, bar.update):
            answers.write_shard(folder / scoring.shards[number], scoring, arrays)
    if not all((folder / name).is_file() for name in scoring.shards):
        return None
    return answers.write_manifest(folder, scoring)


def _pending(folder: Path, scoring: Scoring, numbers: range, images: ImageSet) -> list[int]:
    """The shards yet to be made; those to be made again are removed. Raises ValueError for another scoring's."""
    hashes: dict[str, str] | None = None
    if (folder / answers.MANIFEST).exists():
        before, hashes = answers.read_manifest(folder)
        _same_scoring(folder, scoring, before)
    pending = []
    for number in numbers:
        path = folder / scoring.shards[number]
        if not path.exists() or not _whole(path, scoring, hashes) or _lacks_one(path, scoring, number, images):
            pending.append(number)
            path.unlink(missing_ok=True)  # no other process must take it for a whole one
    return pending


def _whole(path: Path, scoring: Scoring, hashes: dict[str, str] | None) -> bool:
    try:
        found = answers.read_shard_header(path)
        if hashes is not None and sha256_of(path) != hashes[path.name]:
            raise ValueError(f"{path}: its SHA-256 is not the manifest's.")
    except ValueError as error:
        _log.warning("%s It is made again.", error)
        return False
    _same_scoring(path.parent, scoring, found)
    return True


def _lacks_one(path: Path, scoring: Scoring, number: int, images: ImageSet) -> bool:
    readable = answers.map_shard(path, scoring, number)["readable"]
    unread = np.flatnonzero(readable == 0) + scoring.span(number).start
    return answers.first_readable(images, unread) is not None


def _same_scoring(folder: Path, scoring: Scoring, found: Scoring) -> None:
    if changed := scoring.differences(found):
        raise ValueError(f"{folder} holds other answers ({', '.join(changed)} differ); choose another folder.")


_Skipped = list[tuple[int, str]]  # place in the set, reason


class _Views(Dataset[tuple[Tensor, Tensor, list[int], _Skipped]]):
    """A range of images -> their crops (n, K, 3, S, S), evaluation views (n, 3, E, E), places, and the unreadable."""

    def __init__(self, images: ImageSet, scoring: Scoring) -> None:
        self.images, self.scoring = images, scoring

    def __getitem__(self, places: range) -> tuple[Tensor, Tensor, list[int], _Skipped]:
        pixels, kept, skipped = [], [], []
        for place in places:
            path = self.images.paths[place]
            try:
                pixels.append(read_image(path))
                kept.append(place)
            except ValueError as error:
                skipped.append((place, str(error).removeprefix(f"{path}: ")))
        s = self.scoring
        crops = torch.empty(len(kept), s.crops, 3, s.image_size, s.image_size)
        evaluation = torch.empty(len(kept), 3, s.evaluation_size, s.evaluation_size)
        augmentation = Augmentation(s.image_size, color=False, blur=False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the students' crops are made: the last bits may depend on it
        try:
            for number in range(s.crops if kept else 0):
                crops[:, number] = augmentation(pixels, indices=kept, epoch=number, view=0, seed=s.crop_seed)
        finally:
            torch.set_num_threads(threads)
        for out, place, image in zip(evaluation, kept, pixels, strict=True):
            try:
                out.copy_(torch.from_numpy(preprocess(image, s.evaluation_size)))
            except ValueError as error:  # of the wrong size for a 32-pixel model
                raise ValueError(f"{self.images.paths[place]}: {error}") from None
        return crops, evaluation, kept, skipped


def _scored(
    teacher: Teacher,
    images: ImageSet,
    scoring: Scoring,
    numbers: list[int],
    batch_size: int,
    device: torch.device,
    workers: int,
    advance: Callable[[int], Any],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The shards of these numbers, one after another."""
    step = max(1, batch_size // scoring.crops)  # images whose crops make one batch
    parts = [
        (number, span[start : start + step])
        for number in numbers
        for span in (scoring.span(number),)
        for start in range(0, len(span), step)
    ]
    loader = loaded(_Views(images, scoring), [places for _, places in parts], workers)
    arrays: dict[str, np.ndarray] = {}
    for (number, places), (crops, evaluation, kept, skipped) in zip(parts, loader, strict=True):
        span = scoring.span(number)
        if places.start == span.start:
            arrays = scoring.empty_shard(number)
        for place, reason in skipped:
            _log.warning("Skipped %s: %s", images.paths[place], reason)
        if kept:
            logits = torch.cat(
                [
                    teacher({"view0": crops.flatten(0, 1).to(device)}).view(len(kept), scoring.crops, -1),
                    teacher({"view0": evaluation.to(device)}).view(len(kept), 1, -1),
                ],
                dim=1,
            )  # (n, K + 1, classes)
            broken = ~logits.isfinite().all(2).all(1)
            if broken.any():
                first = images.paths[kept[int(broken.nonzero()[0])]]
                raise ValueError(f"{first}: the teacher's logits are not finite. Check its weights.")
            rows = np.asarray(kept) - span.start
            arrays["readable"][rows] = 1
            for name, tensor in answers.compress(logits.flatten(0, 1), scoring.top_k).items():
                arrays[name][rows] = tensor.cpu().numpy().reshape(len(kept), scoring.crops + 1, *tensor.shape[1:])
        advance(len(places))
        if places.stop == span.stop:
            yield number, arrays
