"""An image set decoded once and kept as bytes on the device, and the batches made from it there.

Images whose shorter side is more than twice the side of the views are kept at twice that side. This changes the views
of large photographs: they are smoother, as the reduction averages pixels where TensorFlow's resize picks some, and the
smallest crops, of 8 % of the area, are enlarged where more pixels were to be had. Smaller images are kept as they are.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from training import distributed
from training.augment import Augmentation
from training.data import Crops, ImageSet, OnSkip, TrainingBatches, loaded
from training.device_augment import DeviceAugmentation, Pixels, parameters
from training.recipes import Data
from zoo.transforms import read_image

Kept = Literal["stream", "resident"]

_KEPT_SIDE = 2  # times the side of the views: what the shorter side is reduced to
_SHARE = 4  # `auto` takes a quarter of the free memory at most
_ASKED = 512  # images whose sides `auto` looks at
_CHUNK = 64  # images decoded together


# ---- how much it takes -----------------------------------------------------------------------------------------------


def kept_shapes(shapes: np.ndarray, image_size: int) -> np.ndarray:
    """Heights and widths (N, 2) int64 at which images of these are kept; (0, 0) stays."""
    shorter = np.maximum(shapes.min(1, keepdims=True), 1)
    return np.rint(shapes * np.minimum(1, _KEPT_SIDE * image_size / shorter)).astype(np.int64)


def kept_bytes(images: ImageSet, image_size: int, *, workers: int = 4) -> int:
    """What the set takes on a device, from the files' headers alone; those that cannot be read count as nothing."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        shapes = np.array(list(pool.map(_shape, images.paths))).reshape(-1, 2)
    return 3 * int(kept_shapes(shapes, image_size).prod(1).sum())


def _shape(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except Exception:  # decoders raise many things; what is wrong is told when the image is decoded
        return 0, 0


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device, infinite where there is no telling."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return float("inf")
    facts = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    return 1024 * int(facts["MemAvailable"].split()[0])


def choose(data: Data, images: ImageSet, *, image_size: int, device: torch.device, crops: Crops | None = None) -> Kept:
    """What ``data`` comes to: ``auto`` is resident on CUDA if the set takes a quarter of the free memory at most, by
    the sides of 512 of its images; with several processes, in each of them.

    Raises ValueError for resident images with ``crops``, whose answers were given for views that the host made.
    """
    if data == "resident" and crops is not None:
        raise ValueError("Answers that were scored are for streamed images: give --data stream, or a model as teacher.")
    if data != "auto":
        return data
    if device.type != "cuda" or crops is not None:
        return "stream"
    asked = images.subset(np.unique(np.linspace(0, len(images) - 1, _ASKED).astype(np.int64)))
    estimate = kept_bytes(asked, image_size) / len(asked) * len(images)
    (too_large,) = distributed.any_of(estimate > free_memory(device) / _SHARE)
    return "stream" if too_large else "resident"


# ---- the images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """A set on a device: its pixels there; its shapes (N, 2) int64, (0, 0) for what cannot be read, and why, here."""

    pixels: Pixels
    shapes: np.ndarray
    skipped: list[tuple[int, str]]  # place in the set, reason


def load(images: ImageSet, *, image_size: int, device: torch.device, workers: int = 1) -> ResidentImages:
    """Decodes all images, in ``workers`` processes, onto the device, for views of ``image_size`` pixels.

    Raises ValueError if they take more memory than is free there; nothing is decoded then.
    """
    nbytes, free = kept_bytes(images, image_size), free_memory(device)
    if nbytes > free:
        raise ValueError(
            f"The {len(images)} images take {nbytes / 1e9:,.1f} GB as bytes, and {free / 1e9:,.1f} GB are free on "
            f"{device}. Give --data stream, or a smaller --image-size."
        )
    planes = torch.empty(3, nbytes // 3, dtype=torch.uint8, device=device)
    shapes = np.zeros((len(images), 2), dtype=np.int64)
    skipped: list[tuple[int, str]] = []
    filled = 0
    bounds = [*range(0, len(images), _CHUNK), len(images)]
    with tqdm(total=len(images), desc=f"Images onto {device}", unit=" images", disable=None, leave=False) as bar:
        chunks = loaded(_Chunks(images, image_size), list(pairwise(bounds)), workers)
        for (first, last), (chunk, found, reasons) in zip(pairwise(bounds), chunks, strict=True):
            if filled + chunk.shape[1] > planes.shape[1]:
                raise ValueError(f"{images.paths[first]} or one of the {_CHUNK} files after it changed its size.")
            planes[:, filled : filled + chunk.shape[1]] = chunk.to(device)
            shapes[first:last] = found
            skipped += [(first + place, reason) for place, reason in reasons]
            filled += chunk.shape[1]
            bar.update(last - first)
    areas = shapes.prod(1)
    starts, widths = (torch.from_numpy(v.copy()).to(device) for v in (areas.cumsum() - areas, shapes[:, 1]))
    return ResidentImages(Pixels(planes, starts, widths), shapes, skipped)


class _Chunks(Dataset[tuple[Tensor, np.ndarray, list[tuple[int, str]]]]):
    """Neighbours in the set -> their pixels (3, total), shapes and what cannot be read. Runs in the workers."""

    def __init__(self, images: ImageSet, image_size: int) -> None:
        self.images, self.image_size = images, image_size

    def __getitem__(self, bounds: tuple[int, int]) -> tuple[Tensor, np.ndarray, list[tuple[int, str]]]:
        paths = self.images.paths[slice(*bounds)]
        shapes = np.zeros((len(paths), 2), dtype=np.int64)
        pixels, skipped = [np.empty((0, 3), dtype=np.uint8)], []
        for place, path in enumerate(paths):
            try:
                image = reduced(read_image(path), self.image_size)
            except ValueError as error:
                skipped.append((place, str(error).removeprefix(f"{path}: ")))
                continue
            shapes[place] = image.shape[:2]
            pixels.append(image.reshape(-1, 3))
        return torch.from_numpy(np.concatenate(pixels).T.copy()), shapes, skipped


def reduced(image: np.ndarray, image_size: int) -> np.ndarray:
    """A uint8 (H, W, 3) image as it is kept: itself, or averaged down to twice ``image_size`` on its shorter side."""
    height, width = kept_shapes(np.array([image.shape[:2]]), image_size)[0].tolist()
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))  # with antialias


# ---- batches ---------------------------------------------------------------------------------------------------------


class ResidentBatches(TrainingBatches):
    """The batches of ``TrainingBatches``, of the same images and dice, with views made on ``device`` and left there.

    Views are the exact form's (``Augmentation.exact``) of the images as they are kept. ``compiled`` makes a few kernels
    of the augmentation; ``layout`` is the views' memory format. All images that cannot be read are known, and reported,
    at the beginning.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        device: torch.device,
        batch_size: int,
        augmentation: Augmentation,
        views: int,
        seed: int,
        workers: int = 1,
        process: tuple[int, int] = (0, 1),
        layout: torch.memory_format = torch.contiguous_format,
        compiled: bool = False,
        on_skip: OnSkip | None = None,
    ) -> None:
        super().__init__(
            images,
            batch_size=batch_size,
            augmentation=augmentation,
            views=views,
            seed=seed,
            process=process,
            on_skip=on_skip,
        )
        self.device = device
        self.held = load(images, image_size=augmentation.size, device=device, workers=workers)
        self._skips.note(self.held.skipped)
        augment = DeviceAugmentation(
            augmentation.size,
            int(self.held.shapes.max()),
            device,
            color=augmentation.color,
            blur=augmentation.blur,
            layout=layout,
        )
        self._augment = torch.compile(augment.__call__, fullgraph=True) if compiled else augment

    def stream(self, *, start_step: int = 0, total_steps: int) -> Iterator[dict[str, Tensor]]:
        """As ``TrainingBatches.stream``; ``index`` and ``label`` are on the host, the views on the device."""
        reasons = dict(self.held.skipped)
        for step in range(start_step, total_steps):
            epoch, indices = self._steps.indices(step)
            mine = indices[distributed.share(len(indices), *self._steps.process)]
            kept = mine[self.held.shapes[mine, 0] > 0]
            if not len(kept):
                self._refuse_empty([(index, reasons[index]) for index in mine.tolist()])
            yield self._batch(kept, epoch)

    def _batch(self, indices: np.ndarray, epoch: int) -> dict[str, Tensor]:
        batch = {"index": self._pinned(torch.from_numpy(indices))}
        if self.images.labels is not None:
            batch["label"] = self._pinned(torch.from_numpy(self.images.labels[indices]))
        dice = self._pinned(self._drawn(indices, epoch)).to(self.device, non_blocking=True)
        return batch | {f"view{view}": self._augment(self.held.pixels, drawn) for view, drawn in enumerate(dice)}

    def _drawn(self, indices: np.ndarray, epoch: int) -> Tensor:
        """The parameters of all views, (views, B, 16)."""
        draw, shapes = self._steps.augmentation.draw, self.held.shapes[indices]
        key: dict[str, Any] = {"indices": indices, "epoch": epoch, "seed": self._steps.seed}
        return torch.stack([parameters(draw(shapes, **key, view=view), indices) for view in range(self._steps.views)])

    def _pinned(self, values: Tensor) -> Tensor:
        """In memory from which the device copies by itself, while the host goes on."""
        return values.pin_memory() if self.device.type == "cuda" else values
