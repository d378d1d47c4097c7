"""The commands `simclr index`, `search`, `duplicates`, `outliers`: what they print, refuse, and how they end."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx_files
import pytest
from PIL import Image

from app import cli, cli_index, sheet
from app.index import FileState, Record, open_index
from export.runtime import OnnxModel


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return onnx_files.student(tmp_path / "student.onnx", size=40)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures in two folders and one beside them; the working directory is their folder's parent."""
    draw = np.random.default_rng(0)
    for number in range(7):
        place = tmp_path / "photos" / ("" if number == 6 else "red" if number % 2 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, 3) + draw.integers(0, 60, (50, 60, 3)) - 30
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return command


@pytest.fixture
def indexed(photos: Path, student: Path, run) -> Path:
    assert run("index", photos, "--index", "i.sqlite", "--model", student)[0] == 0
    return photos


def stored(path: str, student: Path) -> dict[str, str]:
    """Label by file name."""
    model = OnnxModel(student)
    index = open_index(path, model=model.fingerprint, dimension=model.feature_width, create=False)
    found = {Path(item.path).name: item.label for item in index.items()}
    index.close()
    return found


# simclr index


def test_index_summaries(photos: Path, student: Path, run) -> None:
    def again(*more: str) -> tuple[int, str, str]:
        return run("index", "photos", "--index", "i.sqlite", "--model", student, "--threads", 1, *more)

    assert again() == (0, "", "7 pictures in i.sqlite: 7 embedded now, 0 unchanged\n")
    blue = stored("i.sqlite", student)
    assert blue == {f"{n}.png": ("red" if n % 2 else "blue") if n < 6 else "" for n in range(7)}
    shutil.copy(photos / "red" / "1.png", photos / "red" / "copy.png")
    (photos / "broken.jpg").write_text("no picture")
    (photos / "blue" / "0.png").unlink()
    gone, broken = photos / "blue" / "0.png", photos / "broken.jpg"
    code, out, err = again("--keep")
    assert (code, out) == (1, "")
    told = (
        "7 pictures in i.sqlite: 0 embedded now, 6 unchanged, 1 copy of others or moved, 1 vanished, their pictures "
        f"kept (such as {gone}), 1 unreadable (such as {broken}: not an image in a known format ("
    )
    assert err.startswith(told)
    assert err.count("\n") == 1
    broken.unlink()
    shown = f"2 vanished (such as {gone})"
    assert again() == (0, "", f"6 pictures in i.sqlite: 0 embedded now, 7 unchanged, {shown}\n")


def test_index_with_the_bundled_student(photos: Path, run) -> None:
    code, _, err = run("index", photos / "red", "--index", "bundled.sqlite", "--vectors", "fp32")
    assert (code, err) == (0, "3 pictures in bundled.sqlite: 3 embedded now, 0 unchanged\n")
    code, out, _ = run("search", photos / "red" / "3.png", "--index", "bundled.sqlite", "--top", 1, "--json")
    assert json.loads(out)["path"] == str(photos / "red" / "3.png")
    assert json.loads(out)["score"] == pytest.approx(1, abs=1e-6)


def test_index_labels(indexed: Path, student: Path, tmp_path: Path, run) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(indexed / "6.png", other / "six.png")
    rows = ["path,label", "blue/0.png,sky", "red/1.png,", "6.png, field ", f"{other}/six.png,field", "absent.png,x"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    code, _, err = run("index", "photos", "--index", "i.sqlite", "--model", student, "--labels", "labels.csv")
    assert code == 0
    assert err.startswith("labels.csv: 1 of its files are not there, such as 'absent.png'.\n")
    assert err.endswith("7 unchanged, 2 labelled anew\n")
    assert stored("i.sqlite", student) | {"0.png": "", "6.png": ""} == {
        f"{n}.png": "" if n in (0, 6) else "red" if n % 2 else "blue" for n in range(7)
    }
    assert stored("i.sqlite", student)["0.png"] == "sky"
    assert stored("i.sqlite", student)["6.png"] == "field"
    (other / "own.csv").write_text("label,path\nown,six.png\n")  # from the table's folder
    run("index", indexed, other, "--index", "j.sqlite", "--model", student, "--labels", other / "own.csv",
        "--label-from", "none")  # fmt: skip
    assert stored("j.sqlite", student) == {f"{n}.png": "own" if n == 6 else "" for n in range(7)}  # six.png is a copy


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("name,label\na,b\n", "its first line does not name the columns 'path' and 'label'"),
        ("path,label\nblue/0.png,a\n./blue/0.png,b\n", "two labels for './blue/0.png', 'a' and 'b'; keep one row"),
        ("path,label\nx/0.png,a\n", "none of its 1 labelled files is there, such as 'x/0.png'"),
        ("path,label\n\xff,a\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_index_refuses_tables(photos: Path, student: Path, run, table: str, told: str) -> None:
    Path("t.csv").write_bytes(table.encode("latin-1"))
    code, _, err = run("index", photos, "--index", "i.sqlite", "--model", student, "--labels", "t.csv")
    assert code == 2
    assert err.startswith("error: t.csv: ")
    assert told in err
    assert err.count("\n") == 1
    assert not Path("i.sqlite").exists()


def test_index_refusals_are_one_line(indexed: Path, student: Path, tmp_path: Path, run) -> None:
    other = onnx_files.student(tmp_path / "other.onnx", size=48)
    shutil.move(indexed, tmp_path / "away")
    indexed.mkdir()
    for arguments, told in [
        (("photos", "--model", student), "7 of its files are in the index. Is its disk mounted?"),
        (("absent", "--model", student), "absent: no such file or folder."),
        ((tmp_path / "away", "--model", other), "model"),
        ((tmp_path / "away", "--model", "absent.onnx"), "absent.onnx: no such file."),
    ]:
        code, out, err = run("index", *arguments, "--index", "i.sqlite")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
    code, _, err = run("index", "photos", "--index", "i.sqlite", "--model", student, "--emptied")
    assert (code, err.split(" (")[0]) == (0, "0 pictures in i.sqlite: 0 embedded now, 0 unchanged, 7 vanished")


def test_index_stopped(photos: Path, student: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxModel, "embed", stopped)
    code, _, err = run("index", photos, "--index", "i.sqlite", "--model", student)
    assert (code, err) == (130, "\nStopped. i.sqlite keeps what is in it; the same command goes on from there.\n")


# simclr search


def cosines(student: Path, query: Path, files: list[Path]) -> dict[str, float]:
    vectors = OnnxModel(student).embed([query, *files]).astype(np.float64)
    found = {}
    for path, vector in zip(files, vectors[1:], strict=True):
        found[str(path)] = float(vectors[0] @ vector / np.sqrt(vectors[0] @ vectors[0]) / np.sqrt(vector @ vector))
    return found


def test_search_equals_sorting(indexed: Path, student: Path, run, tmp_path: Path) -> None:
    query = tmp_path / "query.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 200, (44, 70, 3), dtype=np.uint8)).save(query)
    for more, chosen in [((), "**/*.png"), (("--label", "red"), "red/*"), (("--folder", "photos/blue"), "blue/*")]:
        wanted = cosines(student, query, sorted(indexed.glob(chosen)))
        code, out, err = run("search", query, "--index", "i.sqlite", "--model", student, "--json", "--top", 5, *more)
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, err) == (0, "")
        assert len(found) == min(5, len(wanted))
        scores = [answer["score"] for answer in found]
        np.testing.assert_allclose(scores, sorted(wanted.values(), reverse=True)[:5], atol=1e-3)
        np.testing.assert_allclose(scores, [wanted[answer["path"]] for answer in found], atol=1e-3)
    code, out, _ = run("search", query, "--index", "i.sqlite", "--model", student, "--label", "red", "--label", "blue")
    lines = out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"[01]\.\d{3}  (red|blue) +  /.*/photos/\1/\d\.png", line) for line in lines)
    assert stored("i.sqlite", student).keys() == {f"{n}.png" for n in range(7)}  # the query is not among them


def test_search_refusals(indexed: Path, student: Path, run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    file = indexed / "6.png"
    for arguments, told in [
        ((file, "--index", "absent.sqlite", "--model", student), "absent.sqlite: no such index"),
        ((file, "--index", student, "--model", student), "not an index"),
        ((file, "--index", "i.sqlite"), "model"),  # the bundled student is another one
        ((tmp_path / "text.png", "--index", "i.sqlite", "--model", student), "not an image in a known format"),
        ((file, "--index", "i.sqlite", "--model", student, "--label", "rde"), "labelled 'rde'. Did you mean"),
        (
            (file, "--index", "i.sqlite", "--model", student, "--folder", tmp_path / "x"),
            "no pictures below that folder",
        ),
        ((file, "--index", "i.sqlite", "--model", student, "--sheet", "a.pdf"), "a.pdf: a sheet ends in .html"),
    ]:
        code, out, err = run("search", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert told in err, err


# simclr duplicates, outliers


def made(path: str, vectors: np.ndarray, copies: dict[int, int]) -> list[str]:
    """An index of vectors; some pictures have several files. The paths, one a picture."""
    index = open_index(path, model="m" * 64, dimension=vectors.shape[1], vectors="fp32")
    jpeg = sheet._jpeg([], "nothing")
    records = [Record(f"{n:064x}", f"/p/{n}.png", f"c{n % 2}", jpeg, vector) for n, vector in enumerate(vectors)]
    index.add(records)
    states = {record.path: FileState(1, 1, record.id, "", "") for record in records}
    for number, count in copies.items():
        states |= {f"/p/copy {k} of {number}.png": FileState(1, 1, f"{number:064x}", "", "") for k in range(count)}
    index.note_files(states)
    index.close()
    return [record.path for record in records]


def rows(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(40, 16))
    for row, leader in ((7, 3), (21, 3), (30, 12), (39, 0)):
        vectors[row] = vectors[leader] + draw.normal(size=16) * 0.05
    return vectors.astype(np.float32)


def test_duplicates_equal_loops(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = rows(1)
    paths = made("i.sqlite", vectors, {12: 2, 25: 1})
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    groups: list[list[int]] = []
    for row in range(40):
        near = [group for group in groups if unit[group[0]] @ unit[row] >= 0.95]
        if near:
            max(near, key=lambda group: unit[group[0]] @ unit[row]).append(row)
        else:
            groups.append([row])
    wanted = [group for group in groups if len(group) > 1 or group == [25]]
    wanted.sort(key=lambda group: -(len(group) + {12: 2, 25: 1}.get(group[0], 0)))
    assert [group[0] for group in wanted] == [12, 3, 0, 25]
    code, out, err = run("duplicates", "i.sqlite", "--threshold", 0.95, "--json")
    found = [json.loads(line)["pictures"] for line in out.splitlines()]
    assert code == 0
    assert err == "4 groups among 40 pictures: 4 near-duplicates (cosine 0.95 or more), 3 exact copies.\n"
    assert [[picture["path"] for picture in group] for group in found] == [[paths[row] for row in g] for g in wanted]
    for group, members in zip(found, wanted, strict=True):
        for picture, row in zip(group, members, strict=True):
            assert picture["similarity"] == pytest.approx(unit[members[0]] @ unit[row], abs=1e-5)
            copies = {12: 2, 25: 1}.get(row, 0)
            assert picture["copies"] == [f"/p/copy {k} of {row}.png" for k in range(copies)]
    code, out, _ = run("duplicates", "i.sqlite", "--threshold", 0.95, "--sheet", "d.html")
    assert out.splitlines()[:3] == [
        "2 pictures nearly the same", f"  1.000  {'c0':16}  /p/12.png", f"   copy  {'c0':16}  /p/copy 0 of 12.png"
    ]  # fmt: skip
    assert out.splitlines()[-3] == "the same file several times"
    assert "<h2>2 pictures and 2 exact copies</h2>" in Path("d.html").read_text()


def test_duplicates_of_folders(photos: Path, student: Path, run) -> None:
    shutil.copy(photos / "6.png", photos / "again.png")
    (photos / "broken.png").write_text("no picture")
    for _ in range(2):  # the second time from the cache
        code, out, err = run("duplicates", "photos", "--model", student, "--threshold", 1.0, "--json")
        assert code == 0
        assert "skipped: " in err
        assert "broken.png: not an image" in err
        assert [json.loads(line)["pictures"][0]["copies"] for line in out.splitlines()] == [[str(photos / "again.png")]]
    assert run("duplicates", "photos", "i.sqlite")[2].startswith("error: 2 places, of which one is an index")
    assert run("duplicates", "absent")[0] == 2


def test_outliers_equal_loops(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = rows(2)
    paths = made("i.sqlite", vectors, {})
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    odd = {}
    for row in range(40):
        others = sorted((float(unit[row] @ unit[other]) for other in range(40) if other != row), reverse=True)
        odd[paths[row]] = 1 - sum(others[:10]) / 10
    code, out, _ = run("outliers", "--index", "i.sqlite", "--top", 6, "--json", "--sheet", "o.png")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["path"] for answer in found] == sorted(odd, key=lambda path: -odd[path])[:6]
    np.testing.assert_allclose([answer["score"] for answer in found], sorted(odd.values(), reverse=True)[:6], atol=1e-5)
    with Image.open("o.png") as picture:
        assert picture.format == "PNG"
    made("two.sqlite", vectors[:2], {})
    code, _, err = run("outliers", "--index", "two.sqlite")
    assert (code, err) == (2, "error: two.sqlite: 2 pictures; what is odd shows among more.\n")


# The sheets


def small(colour: tuple[int, int, int]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (160, 90), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_sheet_as_an_image(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    shown = [sheet.Shown(small(colour), "0.9\nred", f"/a/\x1b{k}.png") for k, colour in enumerate(colours)]
    for ending in ("jpg", "png"):
        path = tmp_path / f"s.{ending}"
        assert sheet.write_sheet(path, [("one", shown[:1]), ("two", shown[1:])], title="A title") == 3
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        for colour in colours:
            there = (np.abs(pixels - colour).max(2) < 30).sum()
            assert abs(there - 160 * 90) < 500
        sheet.write_sheet(path, [("", shown)], title="Again")  # ours: written over


def test_sheet_as_a_page(tmp_path: Path) -> None:
    jpeg = small((9, 9, 9))
    path = tmp_path / "s.html"
    shown = [sheet.Shown(jpeg, "0.9 <b>", '/a/"><script>.png'), sheet.Shown(b"", "", "upload/x.png")]
    sheet.write_sheet(path, [("<h>", shown)], title="T & T")
    text = path.read_text()
    assert re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text) == [base64.b64encode(jpeg).decode()]
    assert "<script>" not in text
    assert "<b>" not in text
    assert 'href="file:///a/%22%3E%3Cscript%3E.png"' in text
    assert "T &amp; T" in text
    assert re.findall(r"https?://", text) == []
    sheet.write_sheet(path, [("", [sheet.Shown(jpeg, "", "/a/\udcff.png")])], title="no text")  # a name in bytes
    assert 'href="file:///a/%FF.png"' in path.read_text()


def test_sheets_never_overwrite_other_files(tmp_path: Path) -> None:
    for name in ("mine.html", "mine.jpg", "mine.png"):
        (tmp_path / name).write_bytes(small((1, 2, 3)))
        with pytest.raises(ValueError, match=f"{name} is there and is no contact sheet"):
            sheet.write_sheet(tmp_path / name, [], title="")
        assert (tmp_path / name).read_bytes() == small((1, 2, 3))


def test_a_sheet_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST", 5)
    one = sheet.Shown(small((9, 9, 9)), "", "/a.png")
    assert sheet.write_sheet(tmp_path / "s.html", [("a", [one] * 3), ("b", [one] * 4), ("c", [one])], title="") == 5
    text = (tmp_path / "s.html").read_text()
    assert (text.count("<li>"), text.count("<h2>")) == (5, 2)
    monkeypatch.setattr(
        sheet, "_MOST_PIXELS", 2 * sheet._HIGH + 3 * sheet._HEADING
    )  # the title, two groups with theirs
    groups = [("a", [one] * 2), ("b", [one]), ("c", [one])]
    assert sheet.write_sheet(tmp_path / "s.png", groups, title="") == 3
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.height == sheet._MOST_PIXELS + sheet._GAP
    assert sheet.write_sheet(tmp_path / "s.html", groups, title="") == 4


def test_a_sheet_that_leaves_something_out_says_so(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sheet, "_MOST_PIXELS", 2 * sheet._HIGH + 3 * sheet._HEADING)
    made("pairs.sqlite", np.repeat(np.eye(3, dtype=np.float32), 2, axis=0), {})
    assert "To look at: t.png, the first 4 of 6\n" in run("duplicates", "pairs.sqlite", "--sheet", "t.png")[2]
    assert "To look at: t.html\n" in run("duplicates", "pairs.sqlite", "--sheet", "t.html")[2]


def test_paths_are_made_absolute_but_links_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert cli_index._folder(Path("link/../link")) == f"{tmp_path}{os.sep}link"
