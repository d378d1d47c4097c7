"""What the app does with one picture, and with files that are no pictures; the drawn pictures."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import LABELS, tiny_student

import export
from app import engine, pictures
from app.engine import Engine, classification, read_upload
from app.index import Record, open_index


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> export.OnnxModel:
    return export.OnnxModel(tiny_student(tmp_path_factory.getbasetemp()), threads=1)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_classes_are_ranked(model: export.OnnxModel, photo: np.ndarray) -> None:
    ranked, none_likely = Engine(model).classify(photo)
    probabilities = model.classify(photo)[0]
    assert dict(ranked) == {label: float(probabilities[n]) for n, label in enumerate(LABELS)}
    assert [p for _, p in ranked] == sorted(probabilities.tolist(), reverse=True)
    assert none_likely == (probabilities.max() < 0.5)
    assert len(Engine(model).classify(photo, k=2).ranked) == 2


def test_none_is_likely_below_even_odds() -> None:
    labels = ("a", "b", "c")
    assert classification(np.array([0.2, 0.5, 0.3]), labels, engine.NONE_LIKELY).none_likely is False
    found = classification(np.array([0.3, 0.3, 0.4]), labels, engine.NONE_LIKELY, k=3)
    assert found.none_likely is True
    assert [label for label, _ in found.ranked] == ["c", "a", "b"]  # ties keep their order


def test_search_and_facts(model: export.OnnxModel, photo: np.ndarray, tmp_path: Path) -> None:
    index = open_index(tmp_path / "g.sqlite", model=model.fingerprint, dimension=model.feature_width)
    served = Engine(model, index)
    other = 255 - photo
    index.add([Record(name, name, "", b"", served.embed(array)) for name, array in (("a", photo), ("b", other))])
    assert [hit.id for hit in served.search(photo, k=2)] == ["a", "b"]
    assert [hit.id for hit in served.search(other, k=1)] == ["b"]
    facts = served.facts()
    assert facts["facts"]["accuracy"]["top1"] == 0.875
    assert facts["gallery"]["pictures"] == 2
    assert facts["model"]["sha256"] == model.fingerprint
    index.close()
    with pytest.raises(ValueError, match="start the app with --gallery"):
        Engine(model).search(photo)


def huge_png() -> bytes:
    """A PNG whose header says 60,000 x 60,000; almost no bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(mode: str, kind: str, **options: object) -> bytes:
    """A 64 x 48 picture: a grey ramp in any mode."""
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB")
        image = image.quantize(256) if mode == "P" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        ("RGB", "PNG", 0), ("L", "PNG", 0), ("P", "PNG", 4), ("I;16", "PNG", 1), ("RGBA", "PNG", 0), ("LA", "PNG", 0),
        ("1", "PNG", 255), ("CMYK", "JPEG", 6), ("L", "JPEG", 6), ("P", "GIF", 4), ("RGB", "WEBP", 12),
        ("RGB", "BMP", 0), ("CMYK", "TIFF", 2),
    ],
)  # fmt: skip
def test_every_kind_of_picture_is_read(tmp_path: Path, mode: str, kind: str, tolerance: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(mode, kind))
    pixels = read_upload(path)
    assert pixels.shape == (48, 64, 3)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8).astype(int)
    assert abs(pixels.astype(int) - ramp[None, :, None]).max() <= tolerance


def test_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_upload(tmp_path / "a.jpg").shape == (40, 20, 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
BAD = {
    "zero.jpg": (b"", "not an image in a known format"),
    "text.jpg": (b"hello, I am text", "not an image in a known format"),
    "script.jpg": (EPS, "not an image in a known format"),  # its reader would start Ghostscript
    "cut.png": (encoded("RGB", "PNG")[:90], "cannot be read"),
    "cut.jpg": (encoded("RGB", "JPEG", quality=95)[:400], "cannot be read"),
    "cut.gif": (encoded("P", "GIF")[:30], "cannot be read|known format"),
    "header.png": (encoded("RGB", "PNG")[:20], "cannot be read|known format"),
    "huge.png": (huge_png(), "pixels"),
    "<b>.jpg": (b"x", "known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_upload(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")
    assert str(tmp_path) not in str(caught.value)


def test_large_pictures_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("RGB", "PNG"))
    assert read_upload(path, max_pixels=64 * 48).shape == (48, 64, 3)
    with pytest.raises(ValueError, match=r"^a\.png: 64 x 48 pixels is more than the 3,071 allowed"):
        read_upload(path, max_pixels=64 * 48 - 1)
    with pytest.raises(ValueError, match=r"^absent\.png: "):
        read_upload(tmp_path / "absent.png")


def test_drawn_pictures(tmp_path: Path) -> None:
    assert list(pictures.DRAWN)[:2] == ["tench", "English springer"]
    for name in pictures.DRAWN:
        first = np.asarray(pictures.draw(name, 0))
        assert first.shape == (192, 192, 3)
        assert first.std() > 20
    np.testing.assert_array_equal(first, np.asarray(pictures.draw(name, 0)))
    assert np.abs(first.astype(int) - np.asarray(pictures.draw(name, 1))).mean() > 5


def test_drawn_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "VARIATIONS", 1)
    folder = pictures.drawn_folder(tmp_path / "cache")
    assert sorted(path.parent.name for path in folder.glob("*/1.jpg")) == sorted(pictures.DRAWN)
    monkeypatch.setattr(pictures, "draw", None)
    assert pictures.drawn_folder(tmp_path / "cache") == folder
    assert list((tmp_path / "cache").iterdir()) == [folder]
