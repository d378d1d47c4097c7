"""The augmentation against recorded TensorFlow values, colorsys and plain loops."""

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch

from training import exact_augment as augment
from training.augment import Augmentation
from training.dice import View
from zoo.transforms import resize_bicubic

REFERENCE = np.load(Path(__file__).parent / "reference" / "augment.npz")


def _recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(REFERENCE[name]).permute(2, 0, 1)[None]


def _pictures(count: int, height: int = 40, width: int = 52, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height + 3 * i, width - i, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize(
    ("name", "op", "factor"),
    [
        ("colour_brightness_x1.4", augment.adjust_brightness, 1.4),
        ("colour_contrast_1.7", augment.adjust_contrast, 1.7),
        ("colour_saturation_0.2", augment.adjust_saturation, 0.2),
        ("colour_hue_-0.2", augment.adjust_hue, -0.2),
    ],
)
def test_colour_equals_tensorflow(name, op, factor):
    ours = op(_recorded("colour_image"), torch.tensor([factor])).clamp(0, 1)
    torch.testing.assert_close(ours, _recorded(name), rtol=0, atol=1e-6)


def test_grayscale_equals_tensorflow():
    ours = augment.to_grayscale(_recorded("colour_image"))
    torch.testing.assert_close(ours, _recorded("colour_gray"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_blur_equals_tensorflow(sigma):
    ours = augment.gaussian_blur(_recorded("blur_image"), torch.tensor([sigma]), augment.blur_kernel_size(64))
    torch.testing.assert_close(ours, _recorded(f"blur_k6_sigma{sigma}"), rtol=0, atol=1e-6)


def test_hue_and_saturation_equal_colorsys_pixel_by_pixel():
    images = torch.from_numpy(np.random.default_rng(0).random((3, 3, 5, 6), dtype=np.float32))
    images[0, :, 0, 0], images[1, :, 0, 0], images[2, :2, 0, 0] = 0.0, 0.4, 0.7  # black, grey, two channels alike
    images[2, :, 0, 1] = torch.tensor([0.2, 0.9, 0.9])
    shifts, factors = torch.tensor([0.7, -0.35, 0.0]), torch.tensor([1.8, 0.3, 0.0])
    hue, saturation = augment.adjust_hue(images, shifts), augment.adjust_saturation(images, factors)
    for b, y, x in np.ndindex(3, 5, 6):
        h, s, v = colorsys.rgb_to_hsv(*images[b, :, y, x].tolist())
        turned = colorsys.hsv_to_rgb((h + shifts[b].item()) % 1, s, v)
        assert hue[b, :, y, x].tolist() == pytest.approx(turned, abs=2e-6)
        richer = colorsys.hsv_to_rgb(h, min(1.0, s * factors[b].item()), v)
        assert saturation[b, :, y, x].tolist() == pytest.approx(richer, abs=2e-6)


def test_blur_takes_one_sigma_per_image_and_pads_with_zeros():
    images, sigmas = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0)), [0.4, 1.9]
    blurred = augment.gaussian_blur(images, torch.tensor(sigmas), 5)
    for image, sigma, ours in zip(images.numpy(), sigmas, blurred.numpy(), strict=True):
        kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * sigma**2))
        kernel /= kernel.sum()
        for channel, plane in zip(image, ours, strict=True):
            rows = np.stack([np.convolve(row, kernel, "same") for row in channel])
            both = np.stack([np.convolve(column, kernel, "same") for column in rows.T]).T
            np.testing.assert_allclose(plane, both, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "taps"), [(32, 3), (64, 7), (96, 9), (224, 23), (8, 1)])
def test_blur_kernel_size(height, taps):
    assert augment.blur_kernel_size(height) == taps


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("crop", [(3, 5, 41, 70), (0, 0, 160, 290), (10, 20, 1, 1)])  # 290 > 4 * 64 takes a shortcut
@pytest.mark.parametrize("flip", [False, True])
def test_resize_equals_the_zoos(size, crop, flip):
    image = np.random.default_rng(0).integers(0, 256, (160, 300, 3), dtype=np.uint8)
    top, left, height, width = crop
    expected = resize_bicubic(image[top : top + height, left : left + width], size, size) / 255
    ours = augment.resize_crop(image, crop, size, flip=flip).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(ours, expected[:, ::-1] if flip else expected, rtol=0, atol=1e-6)


def test_a_view_is_its_operations_in_their_order_each_clipped():
    image = _pictures(1)[0]
    view = View((2, 3, 30, 33), True, (2, 0, 3, 1), (1.6, 0.5, 1.7, 0.1), grayscale=True, sigma=1.3)
    (ours,) = augment.augment([image], [view], 64)
    x = augment.resize_crop(image, view.crop, 64, flip=True)[None]
    x = augment.adjust_saturation(x, torch.tensor([1.7])).clamp(0, 1)
    x = augment.adjust_brightness(x, torch.tensor([1.6])).clamp(0, 1)
    x = augment.adjust_hue(x, torch.tensor([0.1])).clamp(0, 1)
    x = augment.adjust_contrast(x, torch.tensor([0.5])).clamp(0, 1)
    x = augment.gaussian_blur(augment.to_grayscale(x), torch.tensor([1.3]), 7).clamp(0, 1)
    torch.testing.assert_close(ours, x[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [23, 48])
def test_a_view_depends_on_seed_epoch_index_and_view_alone(exact, size):
    augmentation, images = Augmentation(size, exact=exact), _pictures(60, height=90, width=120)
    indices = np.random.default_rng(1).permutation(60)

    def views(places):
        key = {"indices": indices[places], "epoch": 3, "view": 1, "seed": 7}
        return augmentation([images[indices[place]] for place in places], **key)

    whole = views(np.arange(60))
    assert (whole.dtype, whole.shape, whole.is_contiguous()) == (torch.float32, (60, 3, size, size), True)
    assert 0 <= whole.min() <= whole.max() <= 1
    for parts in (1, 7, 30):
        for places in np.array_split(np.arange(60), 60 // parts):
            assert torch.equal(views(places), whole[torch.from_numpy(places)])
    both = augmentation.views([images[i] for i in indices], indices=indices, epoch=3, views=(1, 0), seed=7)
    assert torch.equal(both[0], whole)
    assert torch.equal(both[1], augmentation([images[i] for i in indices], indices=indices, epoch=3, view=0, seed=7))
    assert augmentation.views([], indices=[], epoch=0, views=(0, 1), seed=7).shape == (2, 0, 3, size, size)
    keys = [{"seed": 7, "epoch": 3, "view": 1}, {"seed": 8, "epoch": 3, "view": 1}, {"seed": 7, "epoch": 4, "view": 1}]
    keys += [{"seed": 7, "epoch": 3, "view": 0}, {"seed": 3, "epoch": 7, "view": 1}]
    others = [augmentation(images[:1], indices=[i], **key) for key in keys for i in (100, 101)]
    assert len({other.numpy().tobytes() for other in others}) == 10
