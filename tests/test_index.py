"""The gallery: exact search, durable and idempotent additions, and folders of which only what changed is embedded."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from app import gallery
from app.index import GalleryIndex, Record, open_index
from zoo.transforms import preprocess

D = 6


def records(vectors: np.ndarray, start: int = 0) -> list[Record]:
    numbers = range(start, start + len(vectors))
    return [Record(f"id{n}", f"{n % 3}/{n}.jpg", str(n % 3), b"jpeg%d" % n, v) for n, v in zip(numbers, vectors)]  # noqa: B905


@pytest.fixture
def index(tmp_path: Path) -> Iterator[GalleryIndex]:
    opened = open_index(tmp_path / "g.sqlite", fingerprint="f" * 64, dimension=D)
    yield opened
    opened.close()


def test_search_equals_sorting(index: GalleryIndex) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, D)).astype(np.float32) * rng.uniform(0.1, 50, (300, 1)).astype(np.float32)
    index.add(records(vectors[:100]))
    assert len(index.search(vectors[0], 500)) == 100
    index.add(records(vectors[100:], start=100))  # after a search: the matrix must notice
    for query in rng.normal(size=(5, D)):
        cosines = {f"id{n}": v @ query / np.linalg.norm(v) / np.linalg.norm(query) for n, v in enumerate(vectors)}
        hits = index.search(query, 17)
        assert [hit.id for hit in hits] == sorted(cosines, key=lambda id_: -cosines[id_])[:17]
        np.testing.assert_allclose([hit.score for hit in hits], [cosines[hit.id] for hit in hits], atol=1e-6)
    hit = index.search(vectors[7], 1)[0]
    assert (hit.id, hit.path, hit.label, hit.thumbnail) == ("id7", "1/7.jpg", "1", b"jpeg7")
    assert index.search(vectors[7], 0) == []


def test_adding_again_and_deleting(index: GalleryIndex) -> None:
    vectors = np.eye(D, dtype=np.float32)
    assert index.add(records(vectors)) == D
    assert index.add(records(vectors)) == 0
    assert index.count() == D
    assert index.delete(["id0", "id3", "nobody"]) == 2
    assert {hit.id for hit in index.search(vectors[0], 10)} == {"id1", "id2", "id4", "id5"}
    assert index.labels() == {"1": 2, "2": 2}
    assert index.facts()["pictures"] == 4


def test_empty(index: GalleryIndex) -> None:
    assert index.search(np.ones(D), 5) == []
    assert index.count() == 0


def test_reopened_it_is_the_same(index: GalleryIndex) -> None:
    index.add(records(np.eye(D, dtype=np.float32)))
    again = open_index(index.path, fingerprint="f" * 64, dimension=D)  # while the first is open
    assert again.search(np.eye(D)[2], 1)[0].id == "id2"
    index.delete(["id2"])
    assert again.search(np.eye(D)[2], 1)[0].id != "id2"  # another connection's change is seen
    again.close()


def test_refusals(index: GalleryIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made with another model \(ffffffffffff, 6-d\) .* delete it"):
        open_index(index.path, fingerprint="e" * 64, dimension=D)
    with pytest.raises(ValueError, match="made with another model"):
        open_index(index.path, fingerprint="f" * 64, dimension=D + 1)
    with pytest.raises(ValueError, match="only files are supported"):
        open_index("http://127.0.0.1:19530", fingerprint="f", dimension=D)
    (tmp_path / "text.sqlite").write_text("hello " * 500)
    with pytest.raises(ValueError, match="not a gallery, or damaged"):
        open_index(tmp_path / "text.sqlite", fingerprint="f", dimension=D)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE things (a)")
    other.commit()
    other.close()
    with pytest.raises(ValueError, match="not a gallery of this version"):
        open_index(tmp_path / "other.sqlite", fingerprint="f", dimension=D)
    with pytest.raises(ValueError, match=r"shape \(7,\); this gallery holds vectors of \(6,\)"):
        index.search(np.ones(7))
    good = records(np.eye(D, dtype=np.float32))
    for vector in (np.ones(D + 1), np.zeros(D), np.full(D, np.nan)):
        with pytest.raises(ValueError, match="vector"):
            index.add([*good, Record("bad", "bad.jpg", "", b"", vector)])
    assert index.count() == 0  # all or nothing


def test_acknowledged_is_kept_when_the_process_dies(tmp_path: Path) -> None:
    code = """
import os, sys, numpy as np
from app.index import Record, open_index
index = open_index(sys.argv[1], fingerprint="f", dimension=4)
for n in range(1000):
    index.add([Record(f"id{n}", f"{n}.jpg", "", b"x" * 2000, np.ones(4) * (n + 1))])
    print(n, flush=True)
    if n == 57:
        with index._transaction() as database:
            database.execute("DELETE FROM images")
            os._exit(9)
"""
    path = tmp_path / "g.sqlite"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    index = open_index(path, fingerprint="f", dimension=4)
    assert index.count() == int(done.stdout.split()[-1]) + 1 == 58
    index.close()


# Folders. The stand-in model gives the mean colour of each third of the picture: no onnxruntime needed.


class Colours:
    image_size, feature_width, fingerprint = 48, 9, "c" * 64

    def __init__(self) -> None:
        self.seen = 0

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return preprocess(pixels, self.image_size)

    def embed(self, batch: np.ndarray) -> np.ndarray:
        self.seen += len(batch)
        return batch.reshape(len(batch), 3, 3, 16, 48).mean((3, 4)).reshape(len(batch), 9) + 0.01


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((200, 160), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "cache"))
    for n in range(7):
        picture(tmp_path / "pictures" / ("red" if n % 2 else "blue") / f"{n}.png", n)
    return tmp_path / "pictures"


def update(folder: Path, model: Colours) -> tuple[gallery.Report, SimpleNamespace]:
    index, report = gallery.open_gallery(folder, model, progress=False)
    told = SimpleNamespace(count=index.count(), labels=index.labels(), files=index.files())
    index.close()
    return report, told


def test_only_what_changed_is_embedded(folder: Path) -> None:
    model = Colours()
    report, told = update(folder, model)
    assert (report.embedded, report.unchanged, report.gone, report.unreadable) == (7, 0, 0, {})
    assert told.labels == {"blue": 4, "red": 3}
    assert update(folder, model)[0][:3] == (0, 7, 0)
    assert model.seen == 7
    picture(folder / "blue" / "0.png", 100)  # changed
    os.utime(folder / "blue" / "0.png", ns=(1, 1))
    picture(folder / "top.png", 101)  # new, without a class folder
    (folder / "red" / "1.png").unlink()  # gone
    shutil.copy(folder / "red" / "3.png", folder / "a copy.png")  # the same bytes: one picture
    report, told = update(folder, model)
    assert report[:3] == (2, 5, 1)
    assert told.count == 7
    assert told.labels == {"": 1, "blue": 4, "red": 2}
    (folder / "red" / "3.png").unlink()  # its copy takes over
    assert update(folder, model)[1].labels == {"": 2, "blue": 4, "red": 1}
    assert model.seen == 10


def test_what_is_found_is_the_picture_itself(folder: Path) -> None:
    model = Colours()
    index, _ = gallery.open_gallery(folder, model, progress=False)
    for path in gallery.image_files(folder):
        hit = index.search(model.embed(preprocess(path, 48)[None])[0], 1)[0]
        assert (hit.path, hit.label) == (path.relative_to(folder).as_posix(), path.parent.name)
        assert hit.id == hashlib.sha256(path.read_bytes()).hexdigest()
        assert hit.score == pytest.approx(1, abs=1e-5)
        assert hit.thumbnail[:2] == b"\xff\xd8"
    index.close()


def test_unreadable_files_are_named_and_not_tried_again(folder: Path) -> None:
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "red" / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"")
    report, told = update(folder, Colours())
    assert set(report.unreadable) == {"text.jpg", "empty.png", "cut.png"}
    assert all("\n" not in reason and str(folder) not in reason for reason in report.unreadable.values())
    assert (report.embedded, told.count) == (7, 7)
    report, _ = update(folder, Colours())
    assert report[:3] == (0, 10, 0)
    assert len(report.unreadable) == 3


def test_an_interruption_keeps_what_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", 3)

    class Interrupted(Colours):
        def embed(self, batch: np.ndarray) -> np.ndarray:
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().embed(batch)

    with pytest.raises(KeyboardInterrupt):
        gallery.open_gallery(folder, Interrupted(), progress=False)
    assert update(folder, Colours())[0][:3] == (4, 3, 0)


def test_folders_that_cannot_be_galleries(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        gallery.open_gallery(tmp_path / "absent", Colours())
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="void: no pictures in it; looked for"):
        gallery.open_gallery(tmp_path / "void", Colours())
    (tmp_path / "void" / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"no pictures in it \(1 unreadable, such as a\.jpg: "):
        gallery.open_gallery(tmp_path / "void", Colours(), progress=False)


def test_progress_bar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, _ = gallery.open_gallery(folder, Colours())
    index.close()
    assert "7/7" in capsys.readouterr().err
