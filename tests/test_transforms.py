"""The evaluation transform against recorded TensorFlow outputs, and reading of odd pictures."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE
from PIL import Image
from reference.reference_weights import input_images

import zoo

RECORDED = np.load(REFERENCE / "preprocess.npz")


@pytest.mark.parametrize("name", ["eval_300x400_to_224", "eval_224x224_to_224", "eval_160x213_to_128"])
def test_equals_the_authors(name: str) -> None:
    ours = zoo.preprocess(RECORDED[f"{name}_image"], int(name.rsplit("_", 1)[1]))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.transpose(1, 2, 0), RECORDED[f"{name}_output"], atol=1e-5, rtol=0)


def test_equals_the_authors_on_a_large_image() -> None:
    image = (input_images(1, 1100)[0] * 255).astype(np.uint8)
    np.testing.assert_allclose(zoo.preprocess(image, 224).transpose(1, 2, 0), RECORDED["eval_large_output"], atol=1e-5)


def test_path_image_and_array_agree(tmp_path: Path) -> None:
    pixels = RECORDED["eval_160x213_to_128_image"]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = zoo.preprocess(pixels, 64)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        np.testing.assert_array_equal(zoo.preprocess(same, 64), expected)


def test_small_models_take_images_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(zoo.preprocess(pixels, 32), pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="exactly that size, not 40 x 32"):
        zoo.preprocess(np.zeros((32, 40, 3), np.uint8), 32)


def test_modes_and_orientation(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(zoo.read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    np.testing.assert_array_equal(zoo.read_image(tmp_path / "sixteen.png"), np.repeat(grey[..., None], 3, 2))
    clear = np.zeros((6, 8, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (zoo.read_image(tmp_path / "clear.png") == 255).all()
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = zoo.read_image(tmp_path / "cmyk.jpg")[0, 0]
    assert red[0] > 200
    assert red[1:].max() < 60
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(grey).convert("RGB").save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(zoo.read_image(tmp_path / "turned.png")[..., 0], np.rot90(grey, -1))


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I", np.int32)])
def test_pixels_of_unknown_range_are_not_guessed(mode: str, dtype: type, tmp_path: Path) -> None:
    """Floating point from 0 to 1, or 32 bits that hold 0 to 255, would be black pictures."""
    picture = Image.fromarray(np.ones((6, 8), dtype))
    assert picture.mode == mode
    picture.save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: pixels of unknown range .* save it with 8 or 16 bits each\.$"):
        zoo.read_image(tmp_path / "a.tif")
    Image.fromarray(np.full((6, 8), 257, np.uint16)).save(tmp_path / "a.pgm")
    assert (zoo.read_image(tmp_path / "a.pgm") == 1).all()


def test_the_limit_in_force_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses twice as many, before our own limit
    with pytest.raises(ValueError, match="more than the 1,000 pixels allowed here; make it smaller"):
        zoo.read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than the 900 pixels allowed"):
        zoo.read_image(tmp_path / "a.png", max_pixels=900)


def test_pil_images_are_refused_as_files_are(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(RECORDED["eval_300x400_to_224_image"]).save(path)
    with Image.open(path) as whole, pytest.raises(ValueError, match="400 x 300 pixels is more than the 1,000 allowed"):
        zoo.read_image(whole, max_pixels=1000)
    path.write_bytes(path.read_bytes()[:4000])
    with Image.open(path) as cut, pytest.raises(ValueError, match=r"^The PIL image: .*truncated"):
        zoo.read_image(cut)


def test_reading_in_threads_leaves_the_warning_filters_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the process's: two threads that change and restore them at once leave them changed."""
    before, real, inside, most = list(warnings.filters), Image.open, [], []

    def slow(*arguments: object, **options: object) -> object:
        inside.append(True)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return real(*arguments, **options)  # type: ignore[arg-type]

    for name in ("a.png", "a.webp", "a.avif"):
        Image.new("L", (40, 30)).save(tmp_path / name)
    monkeypatch.setattr(Image, "open", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(zoo.read_image, [tmp_path / name for name in ("a.png", "a.webp", "a.avif")] * 4))
    assert {pixels.shape for pixels in found} == {(30, 40, 3)}
    assert most == [1] * 12
    assert list(warnings.filters) == before


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(RECORDED["eval_300x400_to_224_image"]).save(good)
    data = good.read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.png": b"hello",
        "cut.jpg": data[: len(data) // 2],
        "header_only.jpg": data[:20],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            zoo.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        zoo.read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="400 x 300 pixels is more than the 1,000 allowed"):
        zoo.read_image(good, max_pixels=1000)
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 2, 3\)"):
        zoo.read_image(np.zeros((2, 2, 3)))
