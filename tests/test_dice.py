"""The dice of the augmentation against numpy's own generator, a crop sampler in plain loops, and their statistics."""

import numpy as np
import pytest

from training.augment import Augmentation
from training.dice import crop_of, sample_crops, uniforms

_BIG = 2**63 + 5


def _views(augmentation, count, *, side=64):
    return augmentation.draw(np.full((count, 2), side), indices=range(count), epoch=0, view=0, seed=1)


def test_numbers_are_those_of_numpys_philox():
    indices, blocks = np.array([0, 5, 2**40], dtype=np.uint64), [0, 1, 7]
    ours = uniforms(blocks, seed=_BIG, epoch=9, indices=indices, view=1)
    for i, index in enumerate(indices.tolist()):
        for j, block in enumerate(blocks):
            words = (np.array(w, dtype=np.uint64) for w in ([_BIG, 0], [block, 1, index, 9]))
            key, counter = words
            theirs = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(4)
            assert ours[i, j].tolist() == theirs.tolist()


def _crop_in_words(numbers, height, width):
    """One try at a crop, an image at a time, as TensorFlow's kernel goes about it; None: to be drawn again."""
    aspect = 3 / 4 + (4 / 3 - 3 / 4) * numbers[0]
    least, most = 0.08 * height * width, 1.0 * height * width
    shortest, tallest = round((least / aspect) ** 0.5), round((most / aspect) ** 0.5)
    if round(tallest * aspect) > width:
        tallest = int((width + 0.5 - 1e-7) / aspect)
        if round(tallest * aspect) > width:
            tallest -= 1
    tallest = min(tallest, height)
    shortest = min(shortest, tallest)
    h = shortest + int(numbers[1] * (tallest + 1 - shortest))
    if h * round(h * aspect) < least:
        h += 1
    if h * round(h * aspect) > most:
        h -= 1
    w = round(h * aspect)
    if not (least <= h * w <= most and 0 < h <= height and 0 < w <= width and h * w >= 0.1 * height * width):
        return None
    return [int(numbers[2] * max(1, height - h)), int(numbers[3] * max(1, width - w)), h, w]


def test_crops_equal_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 400, (3000, 2))
    numbers = rng.random((3000, 4))
    crops, counts = crop_of(numbers, shapes)
    expected = [_crop_in_words(n, *shape) for n, shape in zip(numbers, shapes.tolist(), strict=True)]
    assert counts.tolist() == [crop is not None for crop in expected]
    assert 0.5 < counts.mean() < 1
    assert crops[counts].tolist() == [crop for crop in expected if crop is not None]


def test_crops_have_tensorflows_distribution():
    count = 4000
    key = {"seed": 0, "epoch": 0, "view": 0, "indices": np.arange(count, dtype=np.uint64)}
    top, left, height, width = sample_crops(np.full((count, 2), 256), **key).T
    area = height * width / 256**2
    error = area.std() / count**0.5  # and 1.25 times that for the median; the recipe's figures have two digits
    assert area.mean() == pytest.approx(0.42, abs=0.005 + 4 * error)
    assert np.median(area) == pytest.approx(0.38, abs=0.005 + 4 * 1.25 * error)
    assert area.min() >= 0.1
    assert (top.min(), left.min()) == (0, 0)
    assert max((top + height).max(), (left + width).max()) <= 256
    assert ((width + 0.5) / height >= 3 / 4).all()
    assert ((width - 0.5) / height <= 4 / 3).all()


def test_crops_of_any_image_lie_inside():
    shapes = np.repeat([[1, 1], [2, 3], [300, 7], [5, 200], [224, 300]], 20, axis=0)
    indices = np.arange(len(shapes), dtype=np.uint64)
    top, left, height, width = sample_crops(shapes, seed=0, epoch=0, indices=indices, view=0).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) > 0
    assert (top + height <= shapes[:, 0]).all()
    assert (left + width <= shapes[:, 1]).all()


def test_dice_fall_as_often_and_as_far_as_the_recipe_says():
    count = 4000
    views = _views(Augmentation(32, strength=0.5), count)
    shares = {"flip": (views.flip, 0.5), "order": (views.order >= 0, 0.8)}
    shares |= {"grayscale": (views.grayscale, 0.2), "sigma": (views.sigma > 0, 0.5)}
    for name, (seen, share) in shares.items():
        assert seen.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5), name
    np.testing.assert_allclose(views.factors.min(0), [0.6, 0.6, 0.6, -0.1], atol=0.002)
    np.testing.assert_allclose(views.factors.max(0), [1.4, 1.4, 1.4, 0.1], atol=0.002)
    assert len({view.order for view in views}) == 25  # every order of the four, and none
    sigmas = views.sigma[views.sigma > 0]
    assert (sigmas.min(), sigmas.max()) == pytest.approx((0.1, 2.0), abs=0.01)
    assert _views(Augmentation(32, strength=1.5), 99).factors[:, 0].min() >= 0  # brightness stops at black


def test_crop_and_flip_only():
    views = list(_views(Augmentation(32, color=False, blur=False), 50))
    assert {(v.order, v.grayscale, v.sigma) for v in views} == {((), False, 0.0)}
    assert {v.flip for v in views} == {False, True}
