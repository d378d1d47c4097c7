"""The survey of an image set against a set whose every fault was made here."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import main as simclr
from training import data, survey
from training.data import ImageSet
from training.survey import Sides, kept_survey, only_readable


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Eight files: PNG and JPEG, one grey, one nearly, a copy under another label, one truncated, one no image."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "mixed"

    def save(name: str, height: int, width: int, mode: str = "RGB") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    first = save("a/1.png", 40, 50)
    save("a/2.jpg", 30, 90)
    save("a/3.png", 64, 64, "L")
    (folder / "b").mkdir()
    (folder / "b" / "copy.png").write_bytes(first.read_bytes())
    nearly = np.full((70, 48, 3), 90, np.uint8)
    nearly[33, 17, 2] = 91  # one pixel of colour
    Image.fromarray(nearly).save(folder / "b" / "nearly.png")
    cut = save("b/cut.jpg", 80, 80)
    cut.write_bytes(cut.read_bytes()[:-900])
    (folder / "b" / "none.png").write_text("no image")
    save("c/turned.jpg", 20, 60)
    turned = Image.open(folder / "c" / "turned.jpg")
    turned.getexif()[0x0112] = 6  # a quarter turn
    turned.save(folder / "c" / "turned.jpg", exif=turned.getexif())
    return folder


@pytest.mark.parametrize("workers", [1, 3])
def test_survey(mixed: Path, workers: int) -> None:
    images = data.from_class_folders(mixed)
    found = survey.survey(images, workers=workers, smallest=48)
    assert (found.count, found.readable) == (8, 6)
    cut, none = str(mixed / "b" / "cut.jpg"), str(mixed / "b" / "none.png")
    assert list(found.unreadable) == [cut, none]
    assert "truncated" in found.unreadable[cut]
    assert found.unreadable[none].startswith("not an image in a known format")
    assert found.formats == {"PNG": 4, "JPEG": 2}
    good = [path for path in images.paths if str(path) not in (cut, none)]
    assert found.nbytes == sum(path.stat().st_size for path in good)
    # shorter sides 40 30 64 40 48 20, longer 50 90 64 50 70 60
    assert found.shorter_side == Sides(20, 40, 64)
    assert found.longer_side == Sides(50, 60, 90)
    assert found.smaller == 4
    assert found.grey == 1
    assert found.duplicates == [[str(mixed / "a" / "1.png"), str(mixed / "b" / "copy.png")]]
    assert (found.contradictions, found.copies) == (found.duplicates, 1)
    assert found.classes == {"a": 3, "b": 4, "c": 1}
    assert (found.classes_with_one_label, found.unlabelled) == (["c"], 0)


def test_lines_say_it_in_words(mixed: Path) -> None:
    lines = survey.survey(data.from_class_folders(mixed), smallest=48).lines()
    assert lines[0] == "8 files, 6 readable images: 4 PNG, 2 JPEG"
    assert "shorter side 20 to 64 pixels, median 40; longer side 50 to 90, median 60" in lines
    assert "1 grey (16.7%)" in lines
    assert "4 with a side below the 48 pixels of training" in lines
    assert "8 labels of 3 classes, 1 to 4 each" in lines
    assert lines[lines.index("cannot be read (2):") + 1].startswith(f"  {mixed / 'b' / 'cut.jpg'}: ")
    assert lines[lines.index("same bytes, but not the same label (1):") + 1].endswith("copy.png")
    assert lines[lines.index("classes with one label (1):") + 1] == "  c"
    many = dataclasses.replace(
        survey.survey(ImageSet((mixed / "a" / "1.png",))), unreadable={f"{k}.png": "gone" for k in range(25)}
    )
    assert many.lines()[-1] == "  ... and 15 more"
    assert "1 readable image: 1 PNG" in many.lines()[0]
    assert not any("label" in line for line in many.lines())


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_names_that_are_no_text(mixed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of old zip archives: bytes that are no UTF-8, a line's end. Such files are named all the same."""
    odd = Path(os.fsdecode(os.fsencode(mixed) + b"/caf\xe9\n.png"))
    odd.write_bytes(b"broken")
    images = data.from_folder(mixed)
    found = kept_survey(images, tmp_path / "survey.json")
    assert str(odd) in found.unreadable
    kept = kept_survey(images, tmp_path / "survey.json")
    assert kept == found
    assert odd not in only_readable(images, kept).paths
    with pytest.raises(SystemExit, match="1"):
        simclr(["check", "--images", str(mixed)])
    assert "caf\ufffd\ufffd.png: " in capfd.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        simclr(["check", "--images", str(mixed), "--json"])
    assert str(odd) in json.loads(capfd.readouterr().out)["unreadable"]


def test_pictures_that_are_not_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.HEIC", "more/b.heic", "c.nef", "notes.txt", ".hidden.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    told = "passed over, as such formats are not read: 2 .heic, 1 .nef; convert them to JPEG or PNG"
    with pytest.raises(SystemExit, match="2"):
        simclr(["check", "--images", str(tmp_path)])
    assert capsys.readouterr().err.endswith(f".webp; {told}).\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    with pytest.raises(SystemExit, match="0"):
        simclr(["check", "--images", str(tmp_path)])
    assert capsys.readouterr().out.endswith(f"{told}\n")


def test_labels_of_some(mixed: Path) -> None:
    everything = data.from_folder(mixed)
    few = ImageSet((mixed / "a" / "1.png", mixed / "c" / "turned.jpg"), np.array([1, 0]), ("x", "y"))
    found = survey.survey(data.with_labels(everything, few))
    assert (found.classes, found.unlabelled) == ({"x": 1, "y": 1}, 6)
    assert found.contradictions == []  # the copy has no label: nothing contradicts


def test_nothing_readable_and_nothing_at_all(mixed: Path) -> None:
    bad = ImageSet((mixed / "b" / "none.png", mixed / "gone.png"))
    found = survey.survey(bad)
    assert (found.readable, found.shorter_side, found.grey) == (0, Sides(0, 0, 0), 0)
    assert found.unreadable[str(mixed / "gone.png")] == "no such file."
    assert found.lines()[0] == "2 files, 0 readable images"
    with pytest.raises(ValueError, match="No images are left after leaving out files that cannot be read"):
        only_readable(bad, found)
    with pytest.raises(ValueError, match="No images"):
        survey.survey(bad.subset([]))


def test_only_readable(mixed: Path) -> None:
    images = data.from_class_folders(mixed)
    kept = only_readable(images, survey.survey(images))
    assert [path.name for path in kept.paths] == ["1.png", "2.jpg", "3.png", "copy.png", "nearly.png", "turned.jpg"]
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_a_kept_survey_is_of_these_files(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, path = data.from_class_folders(mixed), tmp_path / "run" / "survey.json"
    first = kept_survey(images, path, smallest=48)
    assert json.loads(path.read_text()) == json.loads(json.dumps(dataclasses.asdict(first)))
    looked: list[Path] = []
    look = survey._look
    monkeypatch.setattr(survey, "_look", lambda file: looked.append(file) or look(file))
    assert kept_survey(images, path, smallest=48) == first
    assert looked == []
    os.utime(mixed / "a" / "1.png", ns=(1, 1))
    assert kept_survey(images, path, smallest=48).fingerprint != first.fingerprint
    assert len(looked) == 8
    kept_survey(images, path, smallest=49)
    kept_survey(ImageSet(images.paths), path, smallest=49)
    assert len(looked) == 24
    for damaged in ("{", '{"count": 3}', "[]"):
        path.write_text(damaged)
        assert kept_survey(images, path, smallest=48).count == 8


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        simclr(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_check(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check", "--images", str(mixed), "--class-folders", "--image-size", "48")
    assert status == 1
    assert out.splitlines() == survey.survey(data.from_class_folders(mixed), smallest=48).lines()
    status, out, _ = run(capsys, "check", "--images", str(mixed / "a"), "--json")
    assert status == 0
    assert json.loads(out) == dataclasses.asdict(survey.survey(data.from_folder(mixed / "a")))


def test_check_with_labels(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n1.png,x\n3.png,x\n")
    status, out, _ = run(capsys, "check", "--images", str(mixed / "a"), "--labels", str(table), "--json")
    assert status == 0
    assert (json.loads(out)["classes"], json.loads(out)["unlabelled"]) == ({"x": 2}, 1)
    table.write_text("path,label\n../b/copy.png,x\n")
    status, _, err = run(capsys, "check", "--images", str(mixed / "a"), "--labels", str(table))
    assert status == 2
    assert "not among the 3 images" in err
    status, _, err = run(capsys, "check", "--images", str(mixed / "a"), "--labels", str(table), "--class-folders")
    assert (status, err) == (2, "error: Give either --labels or --class-folders.\n")
