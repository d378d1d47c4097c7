"""Convolutions as matrix products against float64; in bf16 no further from it than the library's own."""

import dataclasses

import pytest
import torch
from conftest import TINY
from test_runs import PRETRAIN
from torch import Tensor, nn

import zoo
from training import data, runs, small_planes
from training.small_planes import NEIGHBOURS, TAPS
from zoo.resnet import ConvNorm, conv, convolve


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


SHAPES = [
    *((1, 1, 1), (2, 2, 1), (3, 3, 1), (1, 5, 1), (2, 4, 1), (4, 2, 1)),  # products throughout
    *((4, 4, 1), (3, 5, 1), (7, 7, 1), (1, 3, 2), (4, 4, 2), (7, 9, 2), (8, 8, 2)),  # for the weights at least
]


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    """Tests multiply fewer channels than pay."""
    monkeypatch.setattr(small_planes, "_LEAST_CHANNELS", 1)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("height", "width", "stride"), SHAPES)
@pytest.mark.parametrize(("products", "most"), [(NEIGHBOURS, 0.005), (TAPS, 1e-6)])  # bf16 has 8 bits, float32 24
def test_forward_and_gradients_are_those_of_a_convolution(products, most, height, width, stride, layout):
    torch.manual_seed(0)
    bf16 = products.precision is torch.bfloat16
    layer = conv(24, 40, 3, stride).to(memory_format=layout)
    images = torch.randn(6, 24, height, width).contiguous(memory_format=layout)
    pull = torch.randn(6, 40, -(-height // stride), -(-width // stride))
    found = _results(products, layer, images, pull, bf16=bf16)
    plain = _results(lambda layer, x: layer(x), layer, images, pull, bf16=bf16)
    exact = _results(lambda layer, x: layer(x), layer.double(), images.double(), pull.double(), bf16=False)
    for ours, theirs, expected in zip(found, plain, exact, strict=True):
        assert ours.shape == expected.shape
        assert _off(ours, expected) < most
        if bf16:
            assert _off(ours, expected) < 1.2 * _off(theirs, expected)


@pytest.mark.parametrize("products", [NEIGHBOURS, TAPS])
@pytest.mark.parametrize("bf16", [False, True])
def test_large_planes_and_another_precision_take_the_usual_way(products, bf16):
    layer, images = conv(8, 8, 3), torch.randn(2, 8, 20, 20)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(products(layer, images), layer(images))
        assert "SmallPlanes" not in str(products(layer, images).grad_fn)
        small = products(layer, images[..., :4, :4])
    assert ("SmallPlanes" in str(small.grad_fn)) == (bf16 == (products is NEIGHBOURS))


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("products", [NEIGHBOURS, TAPS])
def test_a_part_without_images(products, side):
    layer = conv(8, 12, 3).to(memory_format=torch.channels_last)
    none, pull = torch.empty(0, 8, side, side), torch.empty(0, 12, side, side)
    out, by_images, by_weights = _results(products, layer, none, pull, bf16=products is NEIGHBOURS)
    assert (out.shape, by_images.shape) == ((0, 12, side, side), (0, 8, side, side))
    assert torch.equal(by_weights, torch.zeros(12, 8, 3, 3, dtype=torch.float64))


def test_few_channels_take_the_usual_way(monkeypatch):
    monkeypatch.undo()
    for channels_in, channels_out, used in ((128, 128, True), (127, 128, False), (128, 127, False)):
        layer, images = conv(channels_in, channels_out, 3), torch.randn(2, channels_in, 2, 2)
        assert ("SmallPlanes" in str(TAPS(layer, images).grad_fn)) == used


def _changed(model):
    layers = [module for module in model.modules() if isinstance(module, ConvNorm)]
    return {layer.conv.kernel_size: layer.convolve is TAPS for layer in layers}


def test_only_3x3_convolutions_are_changed_and_only_inside(monkeypatch):
    monkeypatch.setattr(small_planes, "faster", {torch.float32: TAPS}.get)
    model = zoo.create(TINY, num_classes=None, image_size=48)
    with small_planes.matrix_products(model, torch.bfloat16):
        assert _changed(model) == {(1, 1): False, (3, 3): False, (7, 7): False}
    with small_planes.matrix_products(model, torch.float32):
        assert _changed(model) == {(1, 1): False, (3, 3): True, (7, 7): False}
    assert _changed(model) == {(1, 1): False, (3, 3): False, (7, 7): False}


@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT"])
@pytest.mark.parametrize("tiles", [False, True])
def test_the_way_is_chosen_by_processor_and_precision(monkeypatch, tiles, capability):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert small_planes.faster(torch.bfloat16) is (NEIGHBOURS if tiles else None)
    assert small_planes.faster(torch.float32) is (TAPS if capability == "AVX2" else None)
    assert small_planes.faster(torch.float16) is None


@pytest.mark.parametrize(("products", "precision"), [(NEIGHBOURS, "bf16"), (TAPS, "fp32"), (None, "fp32")])
def test_runs_use_the_way_that_is_chosen(image_folder, tmp_path, monkeypatch, products, precision):
    asked, seen, kept, entered = [], [], [], small_planes.matrix_products

    def chosen(wanted):
        asked.append(wanted)
        return products and dataclasses.replace(products, gradient=watched)

    def watched(gradient, x, stride):
        seen.append(tuple(x.shape[2:]))
        return products.gradient(gradient, x, stride)

    monkeypatch.setattr(small_planes, "faster", chosen)
    monkeypatch.setattr(runs, "keep_freed_memory", lambda: kept.append("kept"))
    monkeypatch.setattr(runs, "give_back_freed_memory", lambda: kept.append("given back"))
    recipe = dataclasses.replace(
        PRETRAIN, precision=precision, epochs=1, warmup_epochs=0, micro_batch=5, recompute=True
    )
    stages = []
    monkeypatch.setattr(small_planes, "matrix_products", lambda stage, way: stages.append(stage) or entered(stage, way))
    runs.pretrain(recipe, data.from_folder(image_folder), out=tmp_path / "run", device="cpu")
    assert asked == [torch.bfloat16 if precision == "bf16" else torch.float32]
    assert bool(seen) == (products is not None)
    assert kept == ["kept", "given back"]
    assert len(stages) == 1
    left = [module.convolve for stage in stages for module in stage.modules() if isinstance(module, ConvNorm)]
    assert all(form is convolve for form in left)
