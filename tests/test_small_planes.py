"""Convolutions as matrix products against float64: no further from it than the library's own in bf16."""

import dataclasses

import pytest
import torch
from conftest import TINY
from test_runs import PRETRAIN
from torch import Tensor, nn

import zoo
from training import data, runs, small_planes
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


@pytest.mark.parametrize("side", [4, 8])
def test_a_part_without_images(side):
    layer = conv(8, 12, 3).to(memory_format=torch.channels_last)
    out, by_images, by_weights = _results(
        small_planes.convolve, layer, torch.empty(0, 8, side, side), torch.empty(0, 12, side, side), bf16=True
    )
    assert (out.shape, by_images.shape) == ((0, 12, side, side), (0, 8, side, side))
    assert torch.equal(by_weights, torch.zeros(12, 8, 3, 3, dtype=torch.float64))


def _changed(model):
    layers = [module for module in model.modules() if isinstance(module, ConvNorm)]
    return {layer.conv.kernel_size: layer.convolve is small_planes.convolve for layer in layers}


def test_only_3x3_convolutions_are_changed_and_only_inside():
    model = zoo.create(TINY, num_classes=None, image_size=48)
    with small_planes.matrix_products(model):
        assert _changed(model) == {(1, 1): False, (3, 3): True, (7, 7): False}
    assert _changed(model) == {(1, 1): False, (3, 3): False, (7, 7): False}


@pytest.mark.parametrize(
    ("tiles", "precision", "used"), [(True, "bf16", True), (True, "fp32", False), (False, "bf16", False)]
)
def test_runs_use_them_where_there_are_tiles(image_folder, tmp_path, monkeypatch, tiles, precision, used):
    seen = []

    def watched(layer, x):
        seen.append(tuple(x.shape[2:]))
        return small_planes_convolve(layer, x)

    small_planes_convolve = small_planes.convolve
    kept = []
    monkeypatch.setattr(small_planes, "convolve", watched)
    monkeypatch.setattr(small_planes, "multiplies_tiles", lambda: tiles)
    monkeypatch.setattr(runs, "keep_freed_memory", lambda: kept.append("kept"))
    monkeypatch.setattr(runs, "give_back_freed_memory", lambda: kept.append("given back"))
    recipe = dataclasses.replace(
        PRETRAIN, precision=precision, epochs=1, warmup_epochs=0, micro_batch=5, recompute=True
    )
    model = runs.pretrain(recipe, data.from_folder(image_folder), out=tmp_path / "run", device="cpu")
    assert bool(seen) == used
    assert kept == ["kept", "given back"]
    assert not any(module.convolve is watched for module in model.modules() if isinstance(module, ConvNorm))
