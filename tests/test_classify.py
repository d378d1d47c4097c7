"""The command `simclr classify`: a table or JSON lines, what it skips, what it refuses, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_files
import pytest
from PIL import Image

import export
from app import classify, cli
from app.engine import Classification, Engine, Prediction


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return onnx_files.student(tmp_path / "student.onnx", size=40)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(draw.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_text("no picture")
    return folder


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_json_lines(
    student: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "CHUNK", 2)
    code, out, err = run(student, photos, "--json", "--top", 2, "--threads", 1, capsys=capsys)
    assert code == 1
    assert "broken.jpg: not an image in a known format" in err
    assert err.endswith("1 of 6 files skipped.\n")
    answers = [json.loads(line) for line in out.splitlines()]
    files = sorted(photos.glob("*.png"))
    assert [answer["path"] for answer in answers] == [str(file) for file in files]
    wanted = export.OnnxModel(student).classify(files)
    for answer, row in zip(answers, wanted, strict=True):
        order = np.argsort(-row)[:2]
        assert [found["label"] for found in answer["predictions"]] == [onnx_files.LABELS[place] for place in order]
        np.testing.assert_allclose([p["probability"] for p in answer["predictions"]], row[order], atol=1e-5)
        assert answer["none_likely"] == (row.max() < 0.5)


def test_a_table(
    student: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # of a terminal: the table would be made to fit
    code, out, _ = run(student, photos / "0.png", photos / "1.png", capsys=capsys)
    row = export.OnnxModel(student).classify(photos / "0.png")[0]
    cells = [str(photos / "0.png")]
    for place in np.argsort(-row):
        cells.append(f"{onnx_files.LABELS[place]:9} {row[place]:6.1%}")
    assert code == 0
    assert out.splitlines()[0] == "  ".join(cells + ["none likely"] * bool(row.max() < 0.5))


FOUND = Classification([Prediction("tench", 0.4), Prediction("golf ball", 0.3), Prediction("church", 0.3)], True)
LONG = Path("photos/a very long folder/of a holiday in Norway/0001.jpg")


def test_what_does_not_fit_the_terminal() -> None:
    def line(width: int | None) -> str:
        return classify.Table([LONG, Path("b.jpg")], onnx_files.LABELS, top=5, width=width).line(LONG, FOUND)

    assert line(None) == f"{LONG}  tench      40.0%  golf ball  30.0%  church     30.0%  none likely"
    assert line(200) == line(None)
    assert line(80) == "photos/a v…y in Norway/0001.jpg  tench      40.0%  golf ball  30.0%  none likely"
    assert line(60) == "photos/a … in Norway/0001.jpg  tench      40.0%  none likely"
    assert [len(line(width)) for width in (80, 60, 47)] == [80, 60, 47]
    assert line(20) == line(47)  # no shorter than this


@pytest.mark.parametrize(
    ("text", "width", "wanted"),
    [
        ("abc", 3, "abc"), ("abcdef", 5, "a…def"), ("abcdefghij", 7, "ab…ghij"), ("写真フォルダ.jpg", 9, "写…ダ.jpg"),
        ("abcdef", 1, "…"),
    ],
)  # fmt: skip
def test_shortened(text: str, width: int, wanted: str) -> None:
    assert classify.shortened(text, width) == wanted
    assert classify.columns(wanted) <= width


def test_no_labels_and_nothing_a_terminal_obeys(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unnamed = onnx_files.student(tmp_path / "a.onnx", size=40, labels=[])
    code, out, _ = run(unnamed, photos / "0.png", "--json", capsys=capsys)
    assert code == 0
    assert {found["label"] for found in json.loads(out)["predictions"]} == {"class 0", "class 1", "class 2"}
    evil = onnx_files.student(tmp_path / "b.onnx", size=40, labels=["\x1b[2Jgone", "two\nlines", "plain"])
    (photos / "0.png").rename(photos / "bell\a.png")
    code, out, _ = run(evil, photos / "bell\a.png", capsys=capsys)
    assert code == 0
    assert out.count("\n") == 1
    assert all(letter.isprintable() for letter in out.removesuffix("\n"))


def test_one_line_and_status_2(student: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt.onnx").write_bytes(student.read_bytes()[:-100])
    embeds = onnx_files.student(tmp_path / "embeds.onnx", classifier=False, projector=True)
    for model, path, said in (
        (embeds, photos, "has no classifier"),
        (student, tmp_path / "empty", "empty: no pictures in it."),
        (student, tmp_path / "absent", "absent: no such file or folder"),
        (tmp_path / "corrupt.onnx", photos, r"corrupt.onnx: not a readable ONNX file"),
        (tmp_path / "none.onnx", photos, "none.onnx: no such file"),
    ):
        code, out, err = run(model, path, capsys=capsys)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
        assert err.count("\n") == 1
    assert run(student, photos, "--threads", 0, capsys=capsys)[0] == 2
    code, out, err = run(student, tmp_path / "empty", photos / "0.png", capsys=capsys)
    assert (code, out.count("\n")) == (1, 1)
    assert "empty: no pictures in it" in err


def test_folders_that_cannot_be_listed_are_named(
    student: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "broken.jpg").rename(photos / "bro\x1bken.jpg")
    locked = photos / "locked"
    locked.mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, out, err = run(student, photos, capsys=capsys)
    assert (code, out.count("\n")) == (1, 5)
    assert err.startswith(f"skipped: {locked}: cannot be listed (Permission denied).\nskipped: ")
    assert all(letter.isprintable() for line in err.splitlines() for letter in line)
    code, out, err = run(student, locked, capsys=capsys)
    assert (code, out, err) == (2, "", f"error: {locked}: cannot be listed (Permission denied).\n")


@pytest.mark.parametrize("moment", ["reading", "looking"])
def test_an_interrupt_at_the_last_picture_is_not_lost(
    moment: str, student: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, files = Engine(export.OnnxModel(student)), sorted(photos.glob("*.png"))
    name = {"reading": "_read", "looking": "_answer"}[moment]
    real = getattr(classify, name)

    def interrupted(*arguments: object, **options: object) -> object:
        if arguments[1] in (files[-1], files):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(classify, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(classify.answers(engine, files, readers=1, top=1))


ALONE = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "onnx", "safetensors", "gradio", "matplotlib"], None))
from app import classify
read = classify._read
def slow(engine, file):
    import time
    time.sleep(0.02)
    return read(engine, file)
if "slow" in sys.argv[1]:
    classify._read = slow
from app.cli import main
main(["classify", *sys.argv[2:]])
"""


def alone(how: str, *arguments: object) -> "subprocess.Popen[str]":
    """The command in a process of its own, without torch."""
    command = [sys.executable, "-c", ALONE, how, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_leaves_and_an_interruption(student: Path, photos: Path) -> None:
    (photos / "broken.jpg").unlink()
    many = [photos] * 60
    with alone("slow", student, *many, "--json", "--threads", 1) as process:
        assert process.stdout is not None
        assert "predictions" in process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        assert process.wait(30) in (1, 141)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    with alone("slow", student, *many, "--json", "--threads", 1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert err.strip() == "Stopped."
    assert all(json.loads(line)["predictions"] for line in out.splitlines())  # whole lines only
    assert out.count("\n") < 299
