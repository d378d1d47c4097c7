"""training/exact_augment.py, several times faster on a CPU: the same views to less than 1/255 on average.

Where the time is saved:

- The crop is resized by torch's kernel for uint8 images. It works with 16-bit weights and cuts overshoot off at 0 and
  255, which the exact form keeps until the first clip: nearly all of the difference.
- Views with the same order of colour operations go through them together, in place, as many as stay in the cache.
- Saturation and hue never leave RGB. Sort a pixel's channels, M >= mid >= m: scaling the saturation moves the channels
  away from M, and turning the hue by p sixths, |p| <= 1, takes R to clamp(2R - mid - p (M - m) sign(G - B), m, M), and
  G and B likewise with the channels turned. Two sixths more are a rotation of the channels.
- What cannot leave [0, 1] is not clipped; what the dice skip is not touched; weights of the blur beyond 99.8 % of the
  kernel's sum are left out; a grey image is blurred once, not three times.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from training.dice import ORDERS, Views
from training.exact_augment import blur_kernel_size, resize_crop

_CHUNK_PIXELS = 8 * 64 * 64  # of views worked on together
_KEPT = 0.998  # of the blur's kernel
_REDUCTION = 16  # beyond it most of what the uint8 kernel reads and computes is not used
_TINY = 1e-30  # less than any difference of two values here


def augment(images: Sequence[np.ndarray], views: Views, size: int) -> Tensor:
    """The views of uint8 (H, W, 3) images with these parameters: float32 (B, 3, size, size) in [0, 1]."""
    kernels, radius = _kernels(views.sigma, blur_kernel_size(size))
    order = np.lexsort((radius, views.grayscale, views.order))  # equal work side by side
    out = torch.empty(len(images), 3, size, size)
    for part in _runs(views.order[order], max(1, _CHUNK_PIXELS // size**2)):
        places = order[part]
        alone = len(places) == 1
        batch = out[places[0]].unsqueeze(0) if alone else torch.empty(len(places), 3, size, size)
        _resize(images, views, places, batch)
        if views.order[places[0]] >= 0:
            _jitter(batch, ORDERS[views.order[places[0]]].tolist(), views.factors[places])
        for run in _runs(2 * radius[places] + views.grayscale[places], len(places)):
            first = places[run.start]
            _gray_and_blur(batch[run], bool(views.grayscale[first]), kernels[places[run], : radius[first] + 1])
        if not alone:
            out[torch.from_numpy(places)] = batch
    return out


def _runs(keys: np.ndarray, most: int) -> list[slice]:
    """Stretches of equal keys, none longer than ``most``."""
    starts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    return [slice(k, min(k + most, end)) for start, end in pairwise(starts) for k in range(start, end, most)]


# ---- resize ----------------------------------------------------------------------------------------------------------


def _resize(images: Sequence[np.ndarray], views: Views, places: np.ndarray, out: Tensor) -> None:
    """The crops of these images, flipped where the dice say so, into float32 (n, 3, S, S) in [0, 1]."""
    size = out.shape[2]
    planes = np.empty(out.shape, dtype=np.uint8)
    for to, place, crop, flip in zip(
        planes, places.tolist(), views.crops[places].tolist(), views.flip[places].tolist(), strict=True
    ):
        resized = resize_uint8(images[place], crop, size)
        to[:] = (resized[:, ::-1] if flip else resized).transpose(2, 0, 1)
    out.copy_(torch.from_numpy(planes)).mul_(1 / 255)


def resize_uint8(image: np.ndarray, crop: tuple[int, int, int, int], size: int) -> np.ndarray:
    """A crop (top, left, height, width) of a uint8 (H, W, 3) image, resized to (size, size, 3), rounded and clipped.

    TensorFlow 1 samples target pixel i at i * height / size. With aligned corners torch samples it at
    i * (rows in - 1) / (rows out - 1): the same, for a crop and a target with one row and column more.
    """
    top, left, height, width = crop
    if max(height, width) > _REDUCTION * size:
        resized = resize_crop(image, (top, left, height, width), size)
        return (resized * 255).round_().clamp_(0, 255).byte().permute(1, 2, 0).numpy()
    padded = np.empty((height + 1, width + 1, 3), dtype=np.uint8)
    padded[:height, :width] = image[top : top + height, left : left + width]
    padded[height] = padded[height - 1]
    padded[:, width] = padded[:, width - 1]
    one = torch.from_numpy(padded)[None].permute(0, 3, 1, 2)  # in this order, or the kernel does not see channels-last
    larger = torch.nn.functional.interpolate(one, (size + 1, size + 1), mode="bicubic", align_corners=True)
    return larger[0].permute(1, 2, 0).numpy()[:size, :size]


# ---- colour ----------------------------------------------------------------------------------------------------------
# On float32 (n, 3, S, S) in [0, 1], in place; factors (n,) are float32. All results lie in [0, 1] again.


def _jitter(images: Tensor, order: Sequence[int], factors: np.ndarray) -> None:
    scratch = torch.empty(4, *images[:, 0].shape)
    for op in order:
        _COLOR_OPS[op](images, factors[:, op], scratch)
    images.clamp_(0, 1)  # the last bit


def _brightness(images: Tensor, factors: np.ndarray, scratch: Tensor) -> None:
    images.mul_(_column(factors))
    if factors.max() > 1:
        images.clamp_max_(1)


def _contrast(images: Tensor, factors: np.ndarray, scratch: Tensor) -> None:
    factor = _column(factors)
    mean = images.mean((2, 3), keepdim=True)
    images.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def _saturation(images: Tensor, factors: np.ndarray, scratch: Tensor) -> None:
    """c becomes M - s (M - c), with s at most M / (M - m): there the lowest channel is 0."""
    top, bottom, rest = scratch[:3]
    scale = _column(factors.clip(min=0))
    _highest(images, top)
    if factors.max() > 1:
        _lowest(images, bottom)
        torch.sub(top, bottom, out=bottom).clamp_min_(_TINY)
        scale = torch.minimum(torch.div(top, bottom, out=bottom), scale[:, 0], out=bottom).unsqueeze(1)
        torch.sub(1, scale[:, 0], out=rest).mul_(top)
    else:
        torch.mul(top, 1 - scale[:, 0], out=rest)
    images.mul_(scale).add_(rest.unsqueeze(1))


def _hue(images: Tensor, factors: np.ndarray, scratch: Tensor) -> None:
    """The hexagon of the hues, turned within RGB: see the top of this file."""
    sixths = 6 * factors
    turns = np.rint(sixths / 2).astype(np.int64)  # of the channels, two sixths each
    for turn in (1, 2):
        chosen = torch.from_numpy(np.flatnonzero(turns % 3 == turn))
        if len(chosen):
            images[chosen] = images[chosen].roll(turn, 1)
    low, middle, top, step = scratch[:4]
    red, green, blue = images.unbind(1)
    torch.minimum(red, green, out=low)
    torch.maximum(red, green, out=middle)
    torch.maximum(middle, blue, out=top)
    torch.minimum(middle, blue, out=middle)
    torch.maximum(low, middle, out=middle)
    torch.minimum(low, blue, out=low)
    torch.sub(top, low, out=step).mul_(_column(sixths - 2 * turns)[:, 0])
    moved = torch.empty_like(images)
    for channel, (after, before) in enumerate(((blue, green), (red, blue), (green, red))):
        torch.sub(after, before, out=moved[:, channel])
    moved.sign_().mul_(step.unsqueeze(1)).sub_(middle.unsqueeze(1)).add_(images, alpha=2)
    torch.clamp(moved, low.unsqueeze(1), top.unsqueeze(1), out=images)


_COLOR_OPS = (_brightness, _contrast, _saturation, _hue)


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1, 1, 1, 1)


def _highest(images: Tensor, out: Tensor) -> None:
    torch.maximum(images[:, 0], images[:, 1], out=out)
    torch.maximum(out, images[:, 2], out=out)


def _lowest(images: Tensor, out: Tensor) -> None:
    torch.minimum(images[:, 0], images[:, 1], out=out)
    torch.minimum(out, images[:, 2], out=out)


# ---- grey and blur ---------------------------------------------------------------------------------------------------


def _gray_and_blur(images: Tensor, grayscale: bool, kernels: np.ndarray) -> None:
    """In place; all with kernels (n, radius + 1) of one radius, 0 for no blur."""
    if not grayscale and kernels.shape[1] == 1:
        return
    changed = _luma(images) if grayscale else images
    images.copy_(changed if kernels.shape[1] == 1 else _blur(changed, kernels))


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).unsqueeze(1)


def _kernels(sigma: np.ndarray, kernel_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Halves of Gaussian kernels from the middle outwards (B, kernel_size // 2 + 1), and how far each is used (B,).

    The weights beyond that are 0, and the kernel sums to 1 without them.
    """
    distance = np.arange(kernel_size // 2 + 1)
    kernels = np.exp(-(distance**2) / (2.0 * np.maximum(sigma, 1e-12)[:, None] ** 2))
    sums = 2 * kernels.cumsum(1) - kernels[:, :1]
    radius = (sums < _KEPT * sums[:, -1:]).sum(1)
    kernels[distance > radius[:, None]] = 0
    return kernels / np.take_along_axis(sums, radius[:, None], 1), radius


def _blur(images: Tensor, kernels: np.ndarray) -> Tensor:
    """Separable blur with half kernels (n, radius + 1), padded with zeros; (n, C, S, S) to the same.

    With ``radius`` zeros behind every row and ``radius`` rows of zeros behind every channel, a shift of all images is a
    shift of memory: what leaves a row at its end meets zeros, and what enters it at its start was zeros.
    """
    size, radius = images.shape[3], kernels.shape[1] - 1
    padded = torch.zeros(*images.shape[:2], size + radius, size + radius)
    padded[..., :size, :size] = images
    for step in (1, size + radius):
        blurred = padded * _column(kernels[:, 0])
        scaled = torch.empty_like(padded)
        into, from_ = blurred.view(-1), scaled.view(-1)
        for k in range(1, radius + 1):
            shift = step * k
            torch.mul(padded, _column(kernels[:, k]), out=scaled)
            into[shift:].add_(from_[:-shift])
            into[:-shift].add_(from_[shift:])
        padded = blurred
    return padded[..., :size, :size]
