"""Convolutions as matrix products against float64: no further from it than the library's own in bf16."""

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

import zoo
from training import small_planes
from zoo.resnet import ConvNorm, conv


def _results(convolve, layer: nn.Conv2d, images: Tensor, pull: Tensor, *, bf16: bool) -> list[Tensor]:
    """Output, gradient of the images, gradient of the weights."""
    images = images.clone().requires_grad_()
    layer.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = convolve(layer, images)
    out.backward(pull.to(out.dtype))
    return [value.detach().double() for value in (out, images.grad, layer.weight.grad)]


def _off(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(4, 4, 1), (3, 5, 1), (1, 1, 1), (8, 8, 1), (8, 8, 2), (7, 9, 2)]
)
def test_forward_and_gradients_are_those_of_a_convolution(height, width, stride):
    torch.manual_seed(0)
    layer = conv(24, 40, 3, stride).to(memory_format=torch.channels_last)
    images = torch.randn(6, 24, height, width).contiguous(memory_format=torch.channels_last)
    pull = torch.randn(6, 40, -(-height // stride), -(-width // stride))
    found = _results(small_planes.convolve, layer, images, pull, bf16=True)
    plain = _results(lambda layer, x: layer(x), layer, images, pull, bf16=True)
    exact = _results(lambda layer, x: layer(x), layer.double(), images.double(), pull.double(), bf16=False)
    for ours, theirs, expected in zip(found, plain, exact, strict=True):
        assert ours.shape == expected.shape
        assert _off(ours, expected) < 0.005  # bf16 has 8 bits
        assert _off(ours, expected) < 1.2 * _off(theirs, expected)


@pytest.mark.parametrize(("size", "bf16"), [(4, False), (20, True)])
def test_large_planes_and_float32_take_the_usual_way(size, bf16):
    layer, images = conv(8, 8, 3), torch.randn(2, 8, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(small_planes.convolve(layer, images), layer(images))
        assert "SmallPlanes" not in str(small_planes.convolve(layer, images).grad_fn)
        small = small_planes.convolve(layer, images[..., :4, :4])
    assert ("SmallPlanes" in str(small.grad_fn)) == bf16


def test_only_3x3_convolutions_are_changed():
    model = zoo.create(TINY, num_classes=None, image_size=48)
    small_planes.use_matrix_products(model)
    changed = {
        module.conv.kernel_size: module.convolve is small_planes.convolve
        for module in model.modules()
        if isinstance(module, ConvNorm)
    }
    assert changed == {(1, 1): False, (3, 3): True, (7, 7): False}
