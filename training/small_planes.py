"""3x3 convolutions on small planes as matrix products, where they are faster than oneDNN's convolutions.

On few pixels and many channels those are slow, most of all in the gradient of the weights: in float32 on a processor
with AVX2 and no AVX-512, 256 images of 512 channels and 2 x 2 pixels take 210 ms forward and backward, and 61 as
products. In bf16 it is so where a processor has tiles (AMX). Measured by benchmarks/small_planes.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.resnet import ConvNorm

_LEAST_CHANNELS = 128  # in and out; with fewer the products are slower, or not measured


@dataclass(frozen=True)
class Products:
    """A way to convolve small planes by matrix products; it takes the place of ``ConvNorm.convolve``.

    ``planes`` is the convolution at stride 1: (B, in, H, W) and the weight, (out, in, 3, 3), to (B, out, H, W).
    ``gradient`` is that of the weight: from the output's gradient, the input and the stride.
    """

    precision: torch.dtype  # in which it is the faster way
    planes: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, int], Tensor]
    most_for_weights: int  # pixels of an output plane up to which the weights' gradient is faster so
    most: int  # and up to which all of a convolution at stride 1 is

    def __call__(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution, padded by one: (B, in, H, W) to (B, out, H / stride, W / stride), rounded up."""
        stride = conv.stride[0]
        pixels = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        cast = torch.is_autocast_enabled("cpu")
        precision = torch.get_autocast_dtype("cpu") if cast else x.dtype
        narrow = min(conv.in_channels, conv.out_channels) < _LEAST_CHANNELS
        if narrow or pixels > self.most_for_weights or precision is not self.precision:
            out: Tensor = conv(x)
            return out
        return _SmallPlanes.apply(x, conv.weight, stride, self)


def faster(precision: torch.dtype) -> Products | None:
    """The way for networks that compute in ``precision`` on this processor; None if convolutions are faster."""
    if precision is torch.bfloat16 and _multiplies_tiles():
        return NEIGHBOURS
    if precision is torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return TAPS
    return None


def _multiplies_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # private: it may go
    return bool(supported())


@contextmanager
def matrix_products(model: nn.Module, precision: torch.dtype) -> Iterator[None]:
    """Inside, the 3x3 convolutions of a ResNet that computes in ``precision`` are products wherever that is faster."""
    products = faster(precision)
    if products is None:
        yield
        return
    changed = [m for m in model.modules() if isinstance(m, ConvNorm) and m.conv.kernel_size == (3, 3)]
    before = [module.convolve for module in changed]
    try:
        for module in changed:
            module.convolve = products
        yield
    finally:
        for module, form in zip(changed, before, strict=True):
            module.convolve = form


class _SmallPlanes(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # within autocast only
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, products: Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.products = stride, products
        ctx.whole = stride == 1 and x.shape[2] * x.shape[3] <= products.most
        if ctx.whole:
            return products.planes(x, weight)
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_weight = by_x = None
        if ctx.needs_input_grad[1]:
            by_weight = ctx.products.gradient(gradient, x, ctx.stride)
        if ctx.needs_input_grad[0] and ctx.whole:
            by_x = ctx.products.planes(gradient, weight.flip(2, 3).transpose(0, 1))
        elif ctx.needs_input_grad[0]:
            two = [1, 1]
            by_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [ctx.stride] * 2, two, two, False, [0, 0], 1, [True, False, False]
            )
        return by_x, by_weight, None, None


# ---- neighbours: one product with the nine pixels around each pixel side by side -------------------------------------


def _planes_of_neighbours(x: Tensor, weight: Tensor) -> Tensor:
    rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (out, 9 in); no copy of a channels-last one
    return _channels_first((_neighbours(x, 1) @ rows.T).view(len(x), *x.shape[2:], len(weight)))


def _gradient_of_neighbours(gradient: Tensor, x: Tensor, stride: int) -> Tensor:
    rows = _channels_last(gradient).reshape(-1, gradient.shape[1])  # (pixels, out)
    return (rows.T @ _neighbours(x, stride)).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)


def _neighbours(x: Tensor, stride: int) -> Tensor:
    """The 3x3 pixels around every one that the stride meets, zeros beyond the edge: (B, C, H, W) to (pixels, 9 C)."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = _channels_last(x)
    image, row, pixel, _ = padded.stride()
    shape = batch, -(-height // stride), -(-width // stride), 3, 3, channels
    return padded.as_strided(shape, (image, stride * row, stride * pixel, row, pixel, 1)).reshape(-1, 9 * channels)


# ---- taps: nine products, each of the pixels that this place of the kernel meets inside the plane --------------------


def _planes_of_taps(x: Tensor, weight: Tensor) -> Tensor:
    pixels, places = _channels_last(x), weight.permute(2, 3, 1, 0)  # (3, 3, in, out)
    out = x.new_zeros(*pixels.shape[:3], len(weight))
    for row, column, to, of in _taps(x, 1):
        met = pixels[of]
        out[to] += (met.reshape(-1, x.shape[1]) @ places[row, column]).view(*met.shape[:3], len(weight))
    return _channels_first(out)


def _gradient_of_taps(gradient: Tensor, x: Tensor, stride: int) -> Tensor:
    pulls, pixels = _channels_last(gradient), _channels_last(x)
    found = x.new_empty(3, 3, gradient.shape[1], x.shape[1])
    for row, column, to, of in _taps(x, stride):
        pull = pulls[to].reshape(-1, gradient.shape[1])
        torch.mm(pull.T, pixels[of].reshape(-1, x.shape[1]), out=found[row, column])
    return found.permute(2, 3, 0, 1)


_Pixels = tuple[slice, slice, slice]  # of (B, H, W, C)


def _taps(x: Tensor, stride: int) -> Iterator[tuple[int, int, _Pixels, _Pixels]]:
    """Row and column of each of the nine weights, the output pixels it reaches, and the input pixels it takes there."""
    every = slice(None)
    for row in range(3):
        for column in range(3):
            (to_rows, rows), (to_columns, columns) = (
                _inside(place - 1, side, stride) for place, side in zip((row, column), x.shape[2:], strict=True)
            )
            yield row, column, (every, to_rows, to_columns), (every, rows, columns)


def _inside(offset: int, side: int, stride: int) -> tuple[slice, slice]:
    """Outputs whose input, ``offset`` beside their own, is within 0 to ``side``; and those inputs."""
    first = 1 if offset < 0 else 0
    end = min((side - 1 - offset) // stride, (side - 1) // stride) + 1
    return slice(first, end), slice(stride * first + offset, max(0, stride * (end - 1) + offset + 1), stride)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


NEIGHBOURS = Products(torch.bfloat16, _planes_of_neighbours, _gradient_of_neighbours, most_for_weights=64, most=16)
TAPS = Products(torch.float32, _planes_of_taps, _gradient_of_taps, most_for_weights=49, most=9)
