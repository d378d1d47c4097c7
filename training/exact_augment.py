"""The authors' training augmentation, operation by operation as they define it: what fast forms are held against."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.dice import View
from zoo.transforms import bicubic_taps

# ---- colour ----------------------------------------------------------------------------------------------------------
# Images are float32 (B, 3, H, W), nominally in [0, 1]; factors are (B,), one per image. Nothing is clipped unless said.


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Every value times ``factor`` (multiplicative, as in v2; v1 added)."""
    return images * factor.view(-1, 1, 1, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Distance from each channel's mean over the image times ``factor`` (tf.image.adjust_contrast)."""
    mean = images.mean((2, 3), keepdim=True)
    return torch.lerp(mean, images, factor.view(-1, 1, 1, 1))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Saturation of HSV times ``factor``, then clipped to [0, 1] (tf.image.adjust_saturation).

    At constant hue and value a channel lies below the greatest one by a distance proportional to the saturation, so
    the conversion to HSV and back is one scaling of that distance.
    """
    top = images.amax(1, keepdim=True)  # value
    span = (top - images.amin(1, keepdim=True)).clamp_(min=1e-12)  # saturation = span / top
    scale = torch.minimum((top / span).clamp_(min=0), factor.clamp(min=0).view(-1, 1, 1, 1))
    return top - (top - images).mul_(scale)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue of HSV plus ``shift`` in turns (1.0 is once round the circle), wrapping (tf.image.adjust_hue)."""
    red, green, blue = images.unbind(1)
    top, bottom = images.amax(1), images.amin(1)
    span = top - bottom
    divisor = span.clamp(min=1e-12)  # greys have no hue; any will do
    sixths = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths + 6 * shift.view(-1, 1, 1)
    # Red peaks at hue 0, green at 2 sixths, blue at 4: offsets 0, 4, 2, made where the images are.
    offsets = (torch.arange(3, dtype=images.dtype, device=images.device) * 4 % 6).view(3, 1, 1)
    position = sixths.unsqueeze(1) + offsets  # (B, 3, H, W)
    position -= torch.floor(position / 6).mul_(6)  # wrap into [0, 6)
    ramp = position.sub_(3).abs_().sub_(1).clamp_(0, 1)  # 1 within a sixth of the peak, 0 beyond two
    return ramp.mul_(span.unsqueeze(1)).add_(bottom.unsqueeze(1))


def to_grayscale(images: Tensor) -> Tensor:
    """Luma (0.2989, 0.587, 0.114), repeated in the three channels (tf.image.rgb_to_grayscale)."""
    red, green, blue = images.unbind(1)
    luma = red * 0.2989 + green * 0.587 + blue * 0.114
    return luma.unsqueeze(1).expand(-1, 3, -1, -1)


# ---- blur ------------------------------------------------------------------------------------------------------------


def blur_kernel_size(height: int) -> int:
    """Taps of the blur for images of this height: a tenth of it, made odd (code: data_util.random_blur)."""
    return 2 * ((height // 10) // 2) + 1


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Separable Gaussian blur, one ``sigma`` in pixels per image (B,), padded with zeros: the edges darken.

    ``kernel_size`` is odd; the kernel is cut off there and sums to 1 (code: data_util.gaussian_blur). Written as sums
    of shifted images, which the CPU does two to four times faster than a depthwise convolution.
    """
    radius = kernel_size // 2
    kernel = torch.exp(-(torch.arange(radius + 1, dtype=torch.float32) ** 2) / (2 * sigma.view(-1, 1) ** 2))
    kernel = kernel / (2 * kernel.sum(1, keepdim=True) - kernel[:, :1])  # (B, radius + 1), from the middle outwards
    for axis in (2, 3):
        length = images.shape[axis]
        blurred = images * kernel[:, 0].view(-1, 1, 1, 1)
        for shift in range(1, min(radius, length - 1) + 1):
            weight, kept = kernel[:, shift].view(-1, 1, 1, 1), length - shift
            blurred.narrow(axis, 0, kept).addcmul_(images.narrow(axis, shift, kept), weight)
            blurred.narrow(axis, shift, kept).addcmul_(images.narrow(axis, 0, kept), weight)
        images = blurred
    return images


# ---- crop ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def _taps(source: int, target: int) -> tuple[Tensor, Tensor]:
    rows, weights = bicubic_taps(source, target)
    return torch.from_numpy(rows).T.contiguous(), torch.from_numpy(weights).T.contiguous()  # (target, 4) each


def resize_crop(
    image: np.ndarray, crop: tuple[int, int, int, int], size: int, *, flip: bool = False, out: Tensor | None = None
) -> Tensor:
    """A crop (top, left, height, width) of a uint8 (H, W, 3) image, resized to float32 (3, size, size) in about [0, 1].

    TensorFlow 1's bicubic (``zoo.transforms.resize_bicubic``) as two matrix products; overshoot is not clipped.
    ``flip`` mirrors it left to right.
    """
    top, left, height, width = crop
    rows, row_weights = _taps(height, size)
    columns, column_weights = _taps(width, size)
    pixels = image[top : top + height, left : left + width]
    if height > 4 * size:  # a photograph: most rows carry no weight
        used, inverse = torch.unique(rows, return_inverse=True)
        pixels, rows, height = pixels[used.numpy()], inverse, len(used)
    if width > 4 * size:
        used, inverse = torch.unique(columns, return_inverse=True)
        pixels, columns, width = pixels[:, used.numpy()], inverse, len(used)
    down = torch.zeros(size, height).scatter_add_(1, rows, row_weights / 255)
    across = torch.zeros(size, width).scatter_add_(1, columns, column_weights)
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    wide = (planes.view(3 * height, width) @ (across.flip(0) if flip else across).T).view(3, height, size)
    return torch.matmul(down, wide, out=out) if out is not None else down @ wide


# ---- the whole -------------------------------------------------------------------------------------------------------

_COLOR_OPS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)
_CHUNK_PIXELS = 8 * 64 * 64  # images worked on together: as many as stay in the processor's cache


def augment(images: Sequence[np.ndarray], views: Iterable[View], size: int) -> Tensor:
    """The views of uint8 (H, W, 3) images with these parameters: float32 (B, 3, size, size) in [0, 1]."""
    views = list(views)
    batch = torch.empty(len(images), 3, size, size)
    for out, image, v in zip(batch, images, views, strict=True):
        resize_crop(image, v.crop, size, flip=v.flip, out=out)
    for place in range(4):
        for op, adjust in enumerate(_COLOR_OPS):
            chosen = [i for i, v in enumerate(views) if v.order and v.order[place] == op]
            for part in _chunks(chosen, size):
                factor = torch.tensor([views[i].factors[op] for i in part])
                batch[part] = adjust(batch[part], factor).clamp_(0, 1)
    for part in _chunks([i for i, v in enumerate(views) if v.grayscale], size):
        batch[part] = to_grayscale(batch[part])
    batch.clamp_(0, 1)
    for part in _chunks([i for i, v in enumerate(views) if v.sigma], size):
        sigma = torch.tensor([views[i].sigma for i in part])
        batch[part] = gaussian_blur(batch[part], sigma, blur_kernel_size(size)).clamp_(0, 1)
    return batch


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    step = max(1, _CHUNK_PIXELS // size**2)
    return [indices[i : i + step] for i in range(0, len(indices), step)]
