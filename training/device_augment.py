"""The exact form's views (training/exact_augment.py), a batch at once, on the device where the images already are.

Everything that differs from view to view is a value in a tensor, nothing a branch: the host never waits for the device,
every batch runs the same kernels, and ``torch.compile`` makes a few of them out of all this. So a view goes through all
four colour operations in each place of its order and keeps the result of one; a view without blur gets a kernel of one
tap.

What is drawn is training/dice.py's, on the host; it travels as one small tensor a batch (``parameters``).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.dice import ORDERS, Views
from training.exact_augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur_kernel_size,
    to_grayscale,
)
from zoo.transforms import bicubic_taps

_MOST_IMAGES = 2**24  # whole numbers up to here are exact in float32
_SHARPEST = 1e-3  # a kernel of this sigma in pixels is 1 in the middle and 0 beside it


# ---- what goes to the device -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """Images of any sizes, one after the other without padding, on one device.

    ``planes`` (3, total) uint8 are red, green and blue, row by row; an image's pixels begin at ``starts`` (N,) int64
    and its rows are ``widths`` (N,) int64 apart.
    """

    planes: Tensor
    starts: Tensor
    widths: Tensor


def pixels_of(images: list[np.ndarray] | np.ndarray, device: str | torch.device = "cpu") -> Pixels:
    """uint8 (H, W, 3) images of any sizes as ``Pixels``."""
    planes = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]).T.copy())
    heights, widths = torch.tensor([image.shape[:2] for image in images]).unbind(1)
    areas = heights * widths
    return Pixels(planes.to(device), (areas.cumsum(0) - areas).to(device), widths.to(device))


def parameters(views: Views, images: np.ndarray) -> Tensor:
    """The dice of a batch of views as one float32 tensor (B, 16), on the host; ``images`` (B,) are places in Pixels.

    Columns: image, top, left, height, width, flip, four operations in their order (-1: none), four factors, grey,
    sigma.
    """
    assert len(images) == 0 or images.max() < _MOST_IMAGES
    order = np.where(views.order[:, None] < 0, -1, ORDERS[views.order])  # (B, 4)
    columns = images, views.crops.T, views.flip, order.T, views.factors.T, views.grayscale, views.sigma
    return torch.from_numpy(np.vstack(columns).T.astype(np.float32))


# ---- the views -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceAugmentation:
    """Views of ``size`` pixels of images whose sides are at most ``longest``, on ``device``.

    ``color`` and ``blur`` leave those parts out for all views, as ``Augmentation`` does. ``layout`` is the memory
    format of what comes out.

    A call takes ``Pixels`` and ``parameters`` (B, 16), both on the device, and gives float32 (B, 3, size, size) in
    [0, 1]: the exact form's values up to float32's rounding. A view does not depend on those beside it, except that
    the order in which contrast's mean is summed is the device's to choose: the last bits.
    """

    size: int
    longest: int
    device: torch.device
    color: bool = True
    blur: bool = True
    layout: torch.memory_format = torch.contiguous_format
    places: Tensor = field(init=False, repr=False)
    weights: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The taps of every length of a crop: TensorFlow's float32 positions, rounded to 1/1024, are the host's to work
        # out, as a compiler that fuses a product and a difference moves some of them by a tap's 1/1024.
        taps = [bicubic_taps(length, self.size) for length in range(1, self.longest + 1)]
        none = np.zeros((4, self.size))
        places, weights = (np.stack([none, *(tap[k] for tap in taps)]) for k in (0, 1))
        object.__setattr__(self, "places", torch.from_numpy(places.astype(np.int32)).to(self.device))
        object.__setattr__(self, "weights", torch.from_numpy(weights.astype(np.float32)).to(self.device))

    def __call__(self, pixels: Pixels, parameters: Tensor) -> Tensor:
        views = self.resized(pixels, parameters)
        if self.color:
            views = jittered(views, parameters[:, 6:10], parameters[:, 10:14])
            views = torch.where(_each(parameters[:, 14]) > 0, to_grayscale(views), views)
        views = views.clamp(0, 1)
        if self.blur:
            views = blurred(views, parameters[:, 15], blur_kernel_size(self.size)).clamp(0, 1)
        return views.contiguous(memory_format=self.layout)

    def resized(self, pixels: Pixels, parameters: Tensor) -> Tensor:
        """The crops, resized and flipped: (B, 3, size, size) in about [0, 1]; overshoot is not clipped."""
        image, top, left, height, width = parameters[:, :5].long().unbind(1)  # (B,) each
        rows = self.places[height] + top.view(-1, 1, 1)  # (B, 4, size)
        columns = self.places[width] + left.view(-1, 1, 1)
        down, across = self.weights[height] / 255, self.weights[width]
        flip = parameters[:, 5].view(-1, 1, 1) > 0
        columns, across = (torch.where(flip, taps.flip(2), taps) for taps in (columns, across))
        lines = pixels.starts[image].view(-1, 1, 1) + rows * pixels.widths[image].view(-1, 1, 1)
        views = torch.zeros((), device=parameters.device)
        for i in range(4):
            wide = torch.zeros((), device=parameters.device)
            for k in range(4):
                taps = pixels.planes[:, lines[:, i, :, None] + columns[:, k, None, :]]  # (3, B, size, size)
                wide = wide + taps * across[:, k, None, :]
            views = views + wide * down[:, i, :, None]
        return views.transpose(0, 1)


def jittered(views: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness 0, contrast 1, saturation 2 and hue 3, in each view's ``order`` (B, 4), clipped after each; -1: none.

    ``factors`` (B, 4) are those of the four operations, in this sequence.
    """
    brightness, contrast, saturation, hue = factors.unbind(1)
    for chosen in order.unbind(1):
        op = _each(chosen)
        changed = torch.where(op == 0, adjust_brightness(views, brightness), adjust_contrast(views, contrast))
        changed = torch.where(op == 2, adjust_saturation(views, saturation), changed)
        changed = torch.where(op == 3, adjust_hue(views, hue), changed)
        views = torch.where(op < 0, views, changed.clamp(0, 1))
    return views


def blurred(views: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """``exact_augment.gaussian_blur`` with sums of slices in the place of sums in place; sigma 0 changes nothing."""
    radius, size = kernel_size // 2, views.shape[2]
    distance = torch.arange(-radius, radius + 1, dtype=views.dtype, device=views.device)
    kernel = torch.exp(-(distance**2) / (2 * sigma.clamp(min=_SHARPEST).view(-1, 1) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, kernel_size)
    for axis in (2, 3):
        padded = F.pad(views, (0, 0, radius, radius) if axis == 2 else (radius, radius))
        views = torch.zeros((), device=views.device)
        for k in range(kernel_size):
            views = views + padded.narrow(axis, k, size) * _each(kernel[:, k])
    return views


def _each(values: Tensor) -> Tensor:
    """One value for each view."""
    return values.view(-1, 1, 1, 1)
