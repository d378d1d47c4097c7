"""3x3 convolutions on small planes as matrix products: up to three times as fast where a processor has tiles (AMX).

There oneDNN's convolutions in bf16 are slow where planes are small: 512 channels on 4 x 4 pixels take it 75 (forward),
88 (gradient of the data) and 230 ms (of the weights) for 256 images; matrix products take 40, 41 and 46 ms. Without
such tiles its convolutions are the faster ones (benchmarks/small_planes.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.resnet import ConvNorm

_WEIGHTS, _WHOLE = 64, 16  # pixels of an output plane up to which the weights' gradient, or all three, are faster so


def multiplies_tiles() -> bool:
    """Whether this processor has AMX."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # private: it may go
    return bool(supported())


@contextmanager
def matrix_products(model: nn.Module) -> Iterator[None]:
    """Inside, the 3x3 convolutions of a ResNet take the faster form wherever autocast has them in bf16."""
    changed = [m for m in model.modules() if isinstance(m, ConvNorm) and m.conv.kernel_size == (3, 3)]
    before = [module.convolve for module in changed]
    try:
        for module in changed:
            module.convolve = convolve
        yield
    finally:
        for module, form in zip(changed, before, strict=True):
            module.convolve = form


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution, padded by one: (B, in, H, W) to (B, out, H / stride, W / stride), rounded up."""
    stride = conv.stride[0]
    pixels = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    if pixels > _WEIGHTS or not bf16:
        out: Tensor = conv(x)
        return out
    return _SmallPlanes.apply(x, conv.weight, stride)


class _SmallPlanes(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        if x.shape[2] * x.shape[3] <= _WHOLE and stride == 1:
            return _planes(_neighbours(x, 1) @ _rows(weight).T, x)
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_weight = by_x = None
        if ctx.needs_input_grad[1]:
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))  # (pixels, out)
            by_weight = rows.T @ _neighbours(x, ctx.stride)  # (out, 9 in)
            by_weight = by_weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0] and x.shape[2] * x.shape[3] <= _WHOLE and ctx.stride == 1:
            turned = weight.flip(2, 3).transpose(0, 1)
            by_x = _planes(_neighbours(gradient, 1) @ _rows(turned).T, gradient)
        elif ctx.needs_input_grad[0]:
            two = [1, 1]
            by_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [ctx.stride] * 2, two, two, False, [0, 0], 1, [True, False, False]
            )
        return by_x, by_weight, None


def _neighbours(x: Tensor, stride: int) -> Tensor:
    """The 3x3 pixels around every one that the stride meets, zeros beyond the edge: (B, C, H, W) to (pixels, 9 C)."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    image, row, pixel, _ = padded.stride()
    shape = batch, -(-height // stride), -(-width // stride), 3, 3, channels
    return padded.as_strided(shape, (image, stride * row, stride * pixel, row, pixel, 1)).reshape(-1, 9 * channels)


def _rows(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) to (out, 9 in), in the order of the neighbours; no copy of a channels-last one."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _planes(rows: Tensor, like: Tensor) -> Tensor:
    """(pixels, C) to (B, C, H, W), channels-last."""
    return rows.view(len(like), *like.shape[2:], rows.shape[1]).permute(0, 3, 1, 2)
