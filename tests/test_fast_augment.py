"""The fast augmentation against the exact one: each operation to the last digits, whole views to a part of a level."""

import numpy as np
import pytest
import torch

from training import exact_augment, fast_augment
from training.augment import Augmentation
from training.dice import ORDERS, Views


def _photographs(count):
    """Smooth pictures with edges and plain areas, as photographs are: noise has more overshoot than anything real."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        small = torch.from_numpy(rng.random((1, 3, 9, 12), dtype=np.float32))
        large = torch.nn.functional.interpolate(small, (140 + number, 180), mode="bilinear")[0]
        large[:, 30:60, 40:90] = torch.from_numpy(rng.random((3, 1, 1), dtype=np.float32))
        pictures.append((large * 255).byte().permute(1, 2, 0).contiguous().numpy())
    return pictures


def _images(count=5, size=20):
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0], images[0, :, 0, 1], images[0, :, 0, 2] = 0.0, 1.0, 0.4  # black, white, grey
    images[0, :, 1, 0], images[0, :, 1, 1] = torch.tensor([0.7, 0.7, 0.1]), torch.tensor([0.2, 0.9, 0.9])
    return images


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", [0.2, 0.9, 1.0, 1.3, 1.8]),
        ("contrast", [0.2, 0.9, 1.0, 1.3, 1.8]),
        ("saturation", [0.0, 0.9, 1.0, 1.3, 1.8]),
        ("saturation", [0.0, 0.2, 0.5, 0.7, 1.0]),
        ("hue", [-0.3, -0.2, 0.0, 0.11, 0.2]),
        ("hue", [0.3, 0.17, 1 / 6, -1 / 6, 1 / 3]),
    ],
)
def test_each_colour_operation_equals_the_exact_one(name, factors):
    images, factors = _images(), np.array(factors, dtype=np.float32)
    ours = images.clone()
    getattr(fast_augment, f"_{name}")(ours, factors, torch.empty(4, *images[:, 0].shape))
    exact = getattr(exact_augment, f"adjust_{name}")(images, torch.from_numpy(factors)).clamp(0, 1)
    torch.testing.assert_close(ours, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigmas", [[0.8], [0.5, 1.1, 2.0]])
def test_the_blur_equals_the_exact_one_but_for_what_it_leaves_out(sigmas):
    images = _images(len(sigmas), 31)
    sigma = np.array(sigmas, dtype=np.float32)
    kernels, radius = fast_augment._kernels(sigma, 11)
    ours = fast_augment._blur(images, kernels[:, : radius.max() + 1])
    exact = exact_augment.gaussian_blur(images, torch.from_numpy(sigma), 11)
    assert radius.max() < 6
    assert (ours - exact).abs().max() < 2 * (1 - fast_augment._KEPT)


@pytest.mark.parametrize("size", [24, 64, 200])
@pytest.mark.parametrize("crop", [(0, 0, 140, 180), (10, 20, 37, 50), (139, 0, 1, 1)])
def test_the_resize_equals_the_exact_one_but_for_rounding(size, crop):
    (picture,) = _photographs(1)
    ours = fast_augment.resize_uint8(picture, crop, size).astype(np.float32)
    exact = (exact_augment.resize_crop(picture, crop, size) * 255).clamp(0, 255).permute(1, 2, 0).numpy()
    assert ours.shape == (size, size, 3)
    assert np.abs(ours - exact).mean() < 0.5
    assert np.abs(ours - exact).max() < 16  # rows are cut off at 0 and 255 before columns are resized


def test_a_great_reduction_takes_another_way():
    picture = np.repeat(np.repeat(_photographs(1)[0], 3, 0), 3, 1)
    crop = (5, 7, 400, 500)
    ours = fast_augment.resize_uint8(picture, crop, 8).astype(np.float32)
    exact = (exact_augment.resize_crop(picture, crop, 8) * 255).clamp(0, 255).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, exact, rtol=0, atol=0.51)


@pytest.mark.parametrize("size", [32, 72])
def test_views_differ_from_the_exact_ones_by_less_than_a_level(size):
    pictures = _photographs(40)
    key = {"indices": range(40), "epoch": 1, "view": 0, "seed": 3}
    fast, exact = Augmentation(size)(pictures, **key), Augmentation(size, exact=True)(pictures, **key)
    levels = (fast - exact).abs().mean((1, 2, 3)) * 255
    assert levels.mean() < 0.5
    assert levels.max() < 1
    assert fast.std() > 0.1


def test_every_order_grey_and_blur_at_once():
    pictures, count = _photographs(4), len(ORDERS)
    rng = np.random.default_rng(0)
    views = Views(
        crops=np.tile([[3, 5, 100, 120]], (count, 1)),
        flip=rng.random(count) < 0.5,
        order=np.arange(count),
        factors=np.tile(np.array([1.5, 1.4, 1.6, -0.2], dtype=np.float32), (count, 1)),
        grayscale=rng.random(count) < 0.5,
        sigma=np.where(rng.random(count) < 0.5, 1.2, 0).astype(np.float32),
    )
    images = [pictures[k % 4] for k in range(count)]
    fast = fast_augment.augment(images, views, 40)
    exact = exact_augment.augment(images, views, 40)
    assert (fast - exact).abs().mean((1, 2, 3)).max() * 255 < 1
