"""The augmentation on a device: the exact form's views, a batch at once."""

import numpy as np
import pytest
import torch

from training import exact_augment
from training.augment import Augmentation
from training.device_augment import DeviceAugmentation, Pixels, parameters, pixels_of
from training.dice import ORDERS, Views

CPU = torch.device("cpu")


def _pictures(count):
    """Of all shapes; some areas are grey, black or white, where hue and saturation have their corners."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (34 + 5 * k, 90 - 4 * k, 3), dtype=np.uint8) for k in range(count)]
    for k, picture in enumerate(pictures):
        picture[:9], picture[9:12], picture[12:15] = 37 * k % 256, 0, 255
    return pictures


def _drawn(pictures, size, *, epoch=0, **augmentation):
    shapes = np.array([picture.shape[:2] for picture in pictures])
    key = {"indices": range(len(pictures)), "epoch": epoch, "view": 1, "seed": 5}
    return Augmentation(size, **augmentation).draw(shapes, **key)


@pytest.mark.parametrize(("size", "color", "blur"), [(24, True, True), (32, True, False), (57, False, False)])
def test_views_are_the_exact_ones(size, color, blur):
    pictures = _pictures(12)
    augment = DeviceAugmentation(size, 90, CPU, color=color, blur=blur)
    for epoch in range(3):
        views = _drawn(pictures, size, epoch=epoch, color=color, blur=blur)
        ours = augment(pixels_of(pictures), parameters(views, np.arange(12)))
        exact = exact_augment.augment(pictures, views, size)
        torch.testing.assert_close(ours, exact, rtol=0, atol=5e-6)
        assert exact.std() > 0.1


def test_every_order_grey_and_blur_at_once():
    pictures, count = _pictures(4), len(ORDERS)
    rng = np.random.default_rng(0)
    views = Views(
        crops=np.tile([[3, 5, 30, 52]], (count, 1)),
        flip=rng.random(count) < 0.5,
        order=np.arange(count),
        factors=np.tile(np.array([1.5, 1.4, 1.6, -0.2], dtype=np.float32), (count, 1)),
        grayscale=rng.random(count) < 0.5,
        sigma=np.where(rng.random(count) < 0.5, 1.2, 0).astype(np.float32),
    )
    places = np.arange(count) % 4
    ours = DeviceAugmentation(30, 90, CPU)(pixels_of(pictures), parameters(views, places))
    exact = exact_augment.augment([pictures[k] for k in places], views, 30)
    torch.testing.assert_close(ours, exact, rtol=0, atol=5e-6)


def test_the_whole_image_at_its_size_comes_back_untouched():
    picture = _pictures(1)[0][:, :34]
    views = Views(
        crops=np.array([[0, 0, 34, 34]] * 2),
        flip=np.array([False, True]),
        order=np.array([-1, -1]),
        factors=np.zeros((2, 4), dtype=np.float32),
        grayscale=np.array([False, False]),
        sigma=np.zeros(2, dtype=np.float32),
    )
    ours = DeviceAugmentation(34, 34, CPU)(pixels_of([picture]), parameters(views, np.zeros(2, dtype=np.int64)))
    levels = (ours * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(levels[0], picture)
    assert np.array_equal(levels[1], picture[:, ::-1])


def test_a_view_does_not_depend_on_its_batch():
    pictures = _pictures(9)
    augment, pixels = DeviceAugmentation(32, 90, CPU), pixels_of(pictures)
    drawn = parameters(_drawn(pictures, 32), np.arange(9))
    together = augment(pixels, drawn)
    alone = torch.cat([augment(pixels, drawn[k : k + 1]) for k in (7, 2)])
    torch.testing.assert_close(alone, together[[7, 2]], rtol=0, atol=1e-6)  # the last bits are the mean's, in contrast
    plain = DeviceAugmentation(32, 90, CPU, color=False)
    assert torch.equal(plain(pixels, drawn[2:3]), plain(pixels, drawn)[2:3])


def test_channels_last_is_the_same():
    pictures = _pictures(3)
    drawn = parameters(_drawn(pictures, 32), np.arange(3))
    ours = DeviceAugmentation(32, 90, CPU, layout=torch.channels_last)(pixels_of(pictures), drawn)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours, DeviceAugmentation(32, 90, CPU)(pixels_of(pictures), drawn))


def _nowhere(values):
    """On a device that keeps shapes alone: what a host would have to wait for, or brings along itself, raises there."""
    return torch.empty(values.shape, dtype=values.dtype, device="meta")


def test_the_host_is_never_asked_and_holds_nothing():
    pixels, drawn = pixels_of(_pictures(3)), parameters(_drawn(_pictures(3), 32), np.arange(3))
    moved = Pixels(*map(_nowhere, (pixels.planes, pixels.starts, pixels.widths)))
    views = DeviceAugmentation(32, 90, torch.device("meta"))(moved, _nowhere(drawn))
    assert (views.shape, views.dtype) == ((3, 3, 32, 32), torch.float32)
    with pytest.raises(RuntimeError, match="item"):
        views.max().item()


@pytest.mark.slow
def test_compiled_in_one_piece_it_is_the_same():
    pictures = _pictures(5)
    augment, pixels = DeviceAugmentation(32, 90, CPU, layout=torch.channels_last), pixels_of(pictures)
    drawn = parameters(_drawn(pictures, 32), np.arange(5))
    compiled = torch.compile(augment.__call__, fullgraph=True)
    for part in (drawn, drawn[1:]):  # unreadable images leave smaller batches
        torch.testing.assert_close(compiled(pixels, part), augment(pixels, part), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_and_waits_for_nothing():
    pictures, cuda = _pictures(5), torch.device("cuda")
    drawn = parameters(_drawn(pictures, 32), np.arange(5))
    augment, pixels, there = DeviceAugmentation(32, 90, cuda), pixels_of(pictures, cuda), drawn.to(cuda)
    augment(pixels, there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment(pixels, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    exact = DeviceAugmentation(32, 90, CPU)(pixels_of(pictures), drawn)
    torch.testing.assert_close(views.cpu(), exact, rtol=0, atol=2e-5)
