"""Pictures into an index: only what changed is read, copies and moves, what is gone, what a person decided, kill -9."""

import hashlib
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_files
import pytest
from PIL import Image

from app import gallery, serve
from app.index import Index, Record, open_index
from export.runtime import OnnxModel
from zoo import folders
from zoo.transforms import preprocess

D = 9


class Colours:
    """A stand-in model, without onnxruntime: the mean colour of each third of the picture."""

    image_size, feature_width, fingerprint = 48, D, "c" * 64

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
def folder(tmp_path: Path) -> Path:
    for n in range(7):
        picture(tmp_path / "pictures" / ("red" if n % 2 else "blue") / f"{n}.png", n)
    return tmp_path / "pictures"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    opened = open_index(tmp_path / "g.sqlite", model=Colours.fingerprint, dimension=D)
    yield opened
    opened.close()


def embed(paths: Path | list[Path], index: Index, **options: object) -> gallery.Report:
    paths = paths if isinstance(paths, list) else [paths]
    return gallery.embed_paths(paths, Colours(), index, progress=False, **options)


def labels_by_name(index: Index) -> dict[str, str]:
    return {Path(item.path).name: item.label for item in index.items(limit=1000)}


# What is read, and what is not


def test_only_what_changed_is_read(folder: Path, index: Index) -> None:
    model = Colours()

    def again() -> gallery.Report:
        return gallery.embed_paths([folder], model, index, progress=False)

    assert again()[:4] == (7, 0, 0, {})
    assert index.labels() == {"blue": 4, "red": 3}
    assert again()[:3] == (0, 7, 0)
    assert model.seen == 7
    before = index.get([hashlib.sha256((folder / "blue" / "0.png").read_bytes()).hexdigest()])
    picture(folder / "blue" / "0.png", 100)  # changed
    os.utime(folder / "blue" / "0.png", ns=(1, 1))
    picture(folder / "top.png", 101)  # new, directly in the folder
    (folder / "red" / "1.png").unlink()  # gone
    shutil.copy(folder / "red" / "3.png", folder / "a copy.png")  # the same bytes: one picture
    report = again()
    assert (report.embedded, report.unchanged, report.gone, report.copies) == (2, 5, 1, 1)
    assert report.vanished == ((folder / "red" / "1.png").as_posix(),)
    assert len(before) == 1
    assert index.get([before[0].id]) == []  # no file holds the old picture
    assert index.labels() == {"": 1, "blue": 4, "red": 2}
    (folder / "red" / "3.png").unlink()  # its copy takes over
    assert again().gone == 1
    assert index.labels() == {"": 2, "blue": 4, "red": 1}
    assert model.seen == 9  # the copy was never looked at by the model


def test_what_is_kept_is_the_picture_itself(folder: Path, index: Index) -> None:
    embed(folder, index)
    model = Colours()
    files = list(folders.image_files(folder))
    assert len(files) == index.count() == 7
    for path in files:
        hit = index.search(model.embed(preprocess(path, 48)[None])[0], 1)[0]
        assert (hit.path, hit.label) == (path.as_posix(), path.parent.name)
        assert hit.id == hashlib.sha256(path.read_bytes()).hexdigest()
        assert hit.score == pytest.approx(1, abs=1e-3)
        with Image.open(io.BytesIO(hit.thumbnail)) as small, Image.open(path) as whole:
            assert (small.format, small.size) == ("JPEG", (160, 128))
            wanted = np.asarray(whole.resize((160, 128)), np.float32)
            assert np.abs(np.asarray(small, np.float32) - wanted).mean() < 8


def test_moved_files_are_not_embedded_again_and_keep_a_persons_label(folder: Path, index: Index) -> None:
    embed(folder, index)
    moved = hashlib.sha256((folder / "red" / "1.png").read_bytes()).hexdigest()
    index.set_label([moved], "mine")
    (folder / "red").rename(folder / "rouge")
    model = Colours()
    report = gallery.embed_paths([folder], model, index, progress=False)
    assert (report.embedded, report.copies, report.gone, model.seen) == (0, 3, 3, 0)
    assert labels_by_name(index)["1.png"] == "mine"
    assert {item.path for item in index.get([moved])} == {(folder / "rouge" / "1.png").as_posix()}
    assert index.labels() == {"blue": 4, "mine": 1, "rouge": 2}


def renumbered(folder: Path, index: Index) -> Callable[[], None]:
    """100 pictures, some labelled by hand, and after that a new one before them, the others renamed up by one. Returns
    what checks that all are there, each with its label."""
    files = [picture(folder / f"{n:03d}.png", 1000 + n) for n in range(100)]
    embed(folder, index)
    by_hand = {id_of(files[n]): f"mine {n}" for n in range(0, 100, 9)}
    for id_, label in by_hand.items():
        index.set_label([id_], label)
    for n in reversed(range(100)):
        files[n].rename(folder / f"{n + 1:03d}.png")
        os.utime(folder / f"{n + 1:03d}.png", ns=(n, n))
    picture(files[0], 2000)
    wanted = {id_of(path): (path.as_posix(), by_hand.get(id_of(path), "")) for path in folder.iterdir()}

    def check() -> None:
        assert {item.id: (item.path, item.label) for item in index.items(limit=1000)} == wanted
        assert {path: state.id for path, state in index.files().items()} == {wanted[id_][0]: id_ for id_ in wanted}
        assert embed(folder, index)[:4] == (0, 101, 0, {})

    return check


def id_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_renumbered_files_keep_their_pictures_and_labels(tmp_path: Path, index: Index) -> None:
    check = renumbered(tmp_path / "many", index)
    report = embed(tmp_path / "many", index)
    assert (report.embedded, report.copies, report.gone, report.unreadable) == (1, 100, 0, {})
    check()


def test_renumbered_files_survive_a_stop_and_another_writer(tmp_path: Path, index: Index) -> None:
    check = renumbered(tmp_path / "many", index)
    before = {item.id: item.label for item in index.items(limit=1000)}

    def stopped(done: int, total: int) -> None:
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.embed_paths([tmp_path / "many"], Colours(), index, progress=stopped)
    assert before.items() <= {item.id: item.label for item in index.items(limit=1000)}.items()
    other = open_index(tmp_path / "g.sqlite", model=Colours.fingerprint, dimension=D)

    def beside(done: int, total: int) -> None:
        if done == 64:
            assert embed(tmp_path / "many", other).embedded == 0  # the new one was embedded before the stop

    assert gallery.embed_paths([tmp_path / "many"], Colours(), index, progress=beside).embedded == 0
    other.close()
    check()


def test_an_original_beside_its_edited_copy_keeps_its_picture(tmp_path: Path, index: Index) -> None:
    edited = picture(tmp_path / "many" / "a.png", 1)
    embed(tmp_path / "many", index)
    index.set_label([id_of(edited)], "mine")
    shutil.copy(edited, tmp_path / "many" / "z.png")
    picture(edited, 2)
    os.utime(edited, ns=(1, 1))
    for n in range(40):  # so that the two are in different batches
        picture(tmp_path / "many" / f"m{n}.png", 100 + n)
    assert embed(tmp_path / "many", index).embedded == 41
    assert index.count() == 42
    assert labels_by_name(index)["z.png"] == "mine"


def test_single_files_and_overlapping_folders(folder: Path, index: Index, tmp_path: Path) -> None:
    odd = tmp_path / "no ending"
    shutil.copy(folder / "red" / "1.png", odd)
    picture(tmp_path / "other" / "x.png", 50)
    report = embed([folder / "red", folder, odd, tmp_path / "other" / "x.png"], index)
    assert (report.embedded, report.copies) == (8, 1)
    assert labels_by_name(index)["3.png"] == "red"  # in a folder of the outer one
    assert labels_by_name(index)["x.png"] == "other"  # named itself
    assert embed(tmp_path, index).gone == 0  # a file without ending is there, though no folder lists it
    assert index.files()[odd.as_posix()].id == index.files()[(folder / "red" / "1.png").as_posix()].id


def test_relative_paths_are_kept_absolute(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "red")
    embed([Path("../blue"), Path("1.png")], index)
    wanted = {(folder / "blue" / f"{n}.png").as_posix() for n in (0, 2, 4, 6)} | {(folder / "red/1.png").as_posix()}
    assert set(index.files()) == wanted
    assert labels_by_name(index)["1.png"] == "red"


# What cannot be read


def test_unreadable_files_are_named_and_not_tried_again(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "red" / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")  # to open it would wait for ever
    (folder / "nowhere.png").symlink_to(folder / "absent.png")
    report = embed(folder, index)
    bad = {(folder / name).as_posix() for name in ("text.jpg", "empty.png", "cut.png")}
    assert set(report.unreadable) == bad
    assert all("\n" not in reason and str(folder) not in reason for reason in report.unreadable.values())
    assert (report.embedded, index.count()) == (7, 7)
    read = []
    monkeypatch.setattr(gallery, "read_image", lambda path: read.append(path))
    assert embed(folder, index)[:4] == (0, 10, 0, report.unreadable)
    assert read == []
    monkeypatch.undo()
    picture(folder / "cut.png", 70)
    os.utime(folder / "cut.png", ns=(1, 1))
    report = embed(folder, index)
    assert (report.embedded, len(report.unreadable)) == (1, 2)


def test_a_file_that_becomes_unreadable_loses_its_picture(folder: Path, index: Index) -> None:
    embed(folder, index)
    (folder / "red" / "1.png").write_text("spoilt")
    report = embed(folder, index)
    assert list(report.unreadable) == [(folder / "red" / "1.png").as_posix()]
    assert "1.png" not in labels_by_name(index)


def test_what_time_may_mend_is_tried_again(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def refusing(path: object, *rest: object, **more: object) -> object:
        if str(path).endswith("1.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr("builtins.open", refusing)
    report = embed(folder, index)
    assert report.unreadable == {(folder / "red" / "1.png").as_posix(): "Permission denied"}
    monkeypatch.undo()
    assert embed(folder, index)[:4] == (1, 6, 0, {})


def test_what_a_server_must_not_read_is_left_to_others(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8), (9, 9, 200)).save(folder / "scan.tif")
    monkeypatch.setattr(gallery, "pillow_is_restricted", lambda: True)
    monkeypatch.setattr(gallery, "read_image", refuse_tiff(gallery.read_image))
    assert list(embed(folder, index).unreadable) == [(folder / "scan.tif").as_posix()]
    monkeypatch.undo()
    assert embed(folder, index)[:4] == (1, 7, 0, {})


def refuse_tiff(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    def reading(path: str) -> np.ndarray:
        if path.endswith(".tif"):
            raise ValueError(f"{path}: not an image in a known format.")
        return read(path)

    return reading


def test_pictures_without_direction(folder: Path, index: Index) -> None:
    class Blind(Colours):
        def embed(self, batch: np.ndarray) -> np.ndarray:
            found = super().embed(batch)
            found[0], found[1] = 0, np.nan
            return found

    report = gallery.embed_paths([folder], Blind(), index, progress=False)
    assert report.embedded == 5
    assert set(report.unreadable.values()) == {"the model gives it no direction"}


def test_names_that_are_no_text(folder: Path, index: Index) -> None:
    shutil.copy(folder / "red" / "1.png", os.fsencode(folder) + b"/\xff.png")
    picture(folder / "写真\n\u202e.png", 30)
    report = embed(folder, index)
    assert report.embedded == 8
    assert list(report.unreadable.values()) == ["its name is not UTF-8; rename it"]
    assert "写真\n\u202e.png" in labels_by_name(index)


# What is gone


def test_vanished_files_can_be_kept_and_others_are_left_alone(folder: Path, index: Index, tmp_path: Path) -> None:
    picture(tmp_path / "pictures too" / "x.png", 50)  # begins with the other folder's name
    embed([folder, tmp_path / "pictures too"], index)
    (folder / "red" / "1.png").unlink()
    (tmp_path / "pictures too" / "x.png").unlink()
    assert embed(folder, index, forget=False).vanished == ((folder / "red" / "1.png").as_posix(),)
    assert index.count() == 8
    assert embed(folder / "blue", index).gone == 0
    assert embed(folder, index).gone == 1
    assert index.count() == 7


def test_stopped_between_a_picture_and_its_file(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to the files before the next run, they were never noted: their pictures follow them all the same."""
    with monkeypatch.context() as patched:
        patched.setattr(index, "note_files", lambda states: (_ for _ in ()).throw(ValueError("the disk is full")))
        with pytest.raises(ValueError, match="disk is full"):
            embed(folder, index)
    assert (index.count(), index.files()) == (7, {})
    index.add(
        [Record("up", "upload/x.jpg", "", b"", np.ones(D)), Record("far", "/elsewhere/x.jpg", "", b"", np.ones(D))]
    )
    lost, renamed, *others = folders.image_files(folder)
    lost.unlink()
    renamed.rename(folder / "renamed.png")
    assert embed(folder, index, forget=False).gone == 2
    assert str(lost) in {item.path for item in index.items()}
    assert embed(folder, index, label_of=lambda path: None).vanished == (str(lost), str(renamed))
    assert {item.path for item in index.items()} == {
        *map(str, others), str(folder / "renamed.png"), "upload/x.jpg", "/elsewhere/x.jpg",
    }  # fmt: skip


def test_stopped_before_any_file_was_noted_and_then_emptied(folder: Path, index: Index, tmp_path: Path) -> None:
    records = [Record(path.name, path.as_posix(), "", b"", np.ones(D)) for path in folders.image_files(folder)]
    index.add(records)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"no pictures in it, but 7 of its files .* --emptied\.$"):
        embed([folder, picture(tmp_path / "b" / "b.png", 70).parent], index)
    assert embed(folder, index, emptied=True).gone == 7
    assert index.count() == 0


def test_an_empty_or_missing_folder_forgets_nothing(folder: Path, index: Index, tmp_path: Path) -> None:
    picture(tmp_path / "other" / "x.png", 50)
    embed([folder, tmp_path / "other"], index)
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"pictures: no such file or folder\.$"):
        embed([folder, tmp_path / "other"], index)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"pictures: no pictures in it, but 7 of its files .* --emptied\.$"):
        embed([folder, tmp_path / "other"], index)
    assert index.count() == 8
    assert embed([folder, tmp_path / "other"], index, emptied=True).gone == 7
    assert index.count() == 1
    shutil.rmtree(tmp_path / "other")
    assert embed(tmp_path / "other", index, emptied=True).gone == 1
    assert index.count() == 0


def test_folders_that_cannot_be_listed_forget_nothing(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(folder, index)
    real_list, real_stat = os.scandir, os.stat
    locked = (folder / "red").as_posix()

    def scandir(path: str) -> object:
        if path == locked:
            raise PermissionError(13, "Permission denied", path)
        return real_list(path)

    def ask(path: object, **options: object) -> os.stat_result:
        if str(path).startswith(locked + "/"):
            raise PermissionError(13, "Permission denied", path)
        return real_stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        patched.setattr(os, "stat", ask)
        report = embed(folder, index)
        assert (report.gone, report.unchanged) == (0, 4)
        assert report.unreadable == {locked: "cannot be listed (Permission denied)"}
        with pytest.raises(ValueError, match=r"red: cannot be listed \(Permission denied\)\.$"):
            embed(folder / "red", index)
    assert index.count() == 7


def test_paths_that_give_nothing(index: Index, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="absent: no such file or folder"):
        embed(tmp_path / "absent", index)
    with pytest.raises(ValueError, match=r"No pictures in .*void; looked for \.apng, \.avif.*\.webp\.$"):
        embed(tmp_path / "void", index)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="not a regular file"):
        embed(tmp_path / "pipe.png", index)
    report = embed([folder, tmp_path / "void"], index)
    assert (report.embedded, report.unreadable) == (7, {(tmp_path / "void").as_posix(): "no pictures in it"})


# What a person decided


def test_deleted_pictures_stay_away(folder: Path, index: Index) -> None:
    embed(folder, index)
    file = folder / "red" / "1.png"
    id_ = hashlib.sha256(file.read_bytes()).hexdigest()
    index.delete([id_])
    assert embed(folder, index)[:4] == (0, 7, 0, {})
    os.utime(file, ns=(5, 5))  # touched, moved or copied it is the same picture
    shutil.copy(file, folder / "copy.png")
    file.rename(folder / "moved.png")
    model = Colours()
    assert gallery.embed_paths([folder], model, index, progress=False).embedded == model.seen == 0
    assert embed(folder, index).gone == 0
    assert index.count() == 6
    assert embed(folder / "moved.png", index).embedded == 1  # asked for by name
    assert index.count() == 7
    assert embed(folder, index)[:3] == (0, 8, 0)
    index.delete([id_])
    picture(folder / "moved.png", 60)  # other pixels: another picture
    assert embed(folder, index).embedded == 1


def test_pictures_that_came_through_the_page_stay(folder: Path, index: Index) -> None:
    index.add([Record("f" * 64, "upload/me.png", "me", b"", np.ones(D, np.float32))])
    embed(folder, index)
    (folder / "red" / "1.png").unlink()
    embed(folder, index)
    assert labels_by_name(index)["me.png"] == "me"
    assert index.count() == 7


def test_pictures_that_came_through_the_page_take_their_files_names(folder: Path, index: Index) -> None:
    uploaded = folder / "red" / "1.png"
    index.add([Record(id_of(uploaded), "upload/1.png", "", b"", np.ones(D, np.float32))])
    embed(folder, index)
    assert index.get([id_of(uploaded)])[0][1:] == (uploaded.as_posix(), "red")
    assert index.labels() == {"blue": 4, "red": 3}


def test_labels_by_a_table(folder: Path, index: Index) -> None:
    table: dict[str, str] = {}

    def label_of(path: Path) -> str | None:
        return table.get(path.relative_to(folder).as_posix())

    embed(folder, index)
    by_hand = hashlib.sha256((folder / "blue" / "2.png").read_bytes()).hexdigest()
    index.set_label([by_hand], "by hand")
    table |= {"blue/0.png": "sky", "red/1.png": "red", "new.png": "new"}
    picture(folder / "new.png", 40)
    report = embed(folder, index, label_of=label_of)
    assert (report.embedded, report.unchanged, report.relabelled) == (1, 7, 1)
    assert labels_by_name(index) == {
        "0.png": "sky", "1.png": "red", "2.png": "by hand", "3.png": "red", "4.png": "blue", "5.png": "red",
        "6.png": "blue", "new.png": "new",
    }  # fmt: skip
    assert embed(folder, index, label_of=label_of).relabelled == 0
    assert embed(folder, index).relabelled == 0  # without a table labels stay
    assert labels_by_name(index)["0.png"] == "sky"
    embed(folder, index, label_of=lambda path: "")
    assert index.labels() == {"": 7, "by hand": 1}  # a person's label is not taken away,
    embed(folder, index, label_of=lambda path: "all")
    assert index.labels() == {"all": 8}  # but replaced


@pytest.mark.parametrize("chunk", [1, 32])
def test_a_table_may_name_any_of_equal_files(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(gallery, "CHUNK", chunk)  # in one batch or in several
    folder = tmp_path / "pictures"
    file = picture(folder / "a" / "x.png", 1)
    (folder / "b").mkdir()
    shutil.copy(file, folder / "b" / "x.png")
    table = {folder / "b" / "x.png": "dog"}

    def labelled(path: Path = folder) -> tuple[int, dict[str, int]]:
        return embed(path, index, label_of=table.get).relabelled, index.labels()

    assert labelled()[1] == {"dog": 1}
    assert labelled() == (0, {"dog": 1})
    table[folder / "b" / "x.png"] = "cat"
    assert labelled() == (1, {"cat": 1})
    index.set_label([id_of(file)], "mine")
    assert labelled() == (0, {"mine": 1})
    table[file] = "cow"  # the path that the picture bears counts first
    assert labelled() == (1, {"cow": 1})
    table[folder / "b" / "x.png"] = "bird"
    assert labelled() == (0, {"cow": 1})
    shutil.copy(file, folder / "a" / "new.png")
    table[folder / "a" / "new.png"] = "fish"
    assert labelled() == (0, {"cow": 1})
    index.set_label([id_of(file)], "mine")
    os.utime(file, ns=(9, 9))  # touched: the same picture
    assert labelled() == (0, {"mine": 1})
    os.utime(file, ns=(10, 10))
    table[file] = "elk"
    assert labelled() == (1, {"elk": 1})
    index.set_label([id_of(file)], "mine")
    (folder / "a").rename(folder / "c")
    table[folder / "c" / "x.png"] = table.pop(file)
    del table[folder / "b" / "x.png"]
    assert labelled() == (0, {"mine": 1})  # moved: the table says nothing new
    table[folder / "c" / "x.png"] = "ox"
    assert labelled() == (1, {"ox": 1})


# Many: in order, bounded, resumable


def test_reading_is_ahead_but_bounded(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", 2)
    for n in range(40):
        picture(folder / "many" / f"{n:02d}.png", 1000 + n)
    read: list[str] = []
    lead: list[int] = []
    names: set[str] = set()
    real = gallery.read_image

    def reading(path: str) -> np.ndarray:
        names.add(threading.current_thread().name)
        read.append(path)
        return real(path)

    class Slow(Colours):
        def embed(self, batch: np.ndarray) -> np.ndarray:
            time.sleep(0.01)
            lead.append(len(read) - self.seen)
            return super().embed(batch)

    monkeypatch.setattr(gallery, "read_image", reading)
    report = gallery.embed_paths([folder], Slow(), index, progress=False, readers=3)
    assert report.embedded == 47
    assert 2 < max(lead) <= (gallery.AHEAD + 1) * 2 + 1
    assert 2 <= len(names) <= 3
    assert [item.path for item in index.items(limit=100)] == [str(path) for path in folders.image_files(folder)]


def test_an_interruption_keeps_what_is_done(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", 3)

    class Interrupted(Colours):
        def embed(self, batch: np.ndarray) -> np.ndarray:
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().embed(batch)

    with pytest.raises(KeyboardInterrupt):
        gallery.embed_paths([folder], Interrupted(), index, progress=False)
    assert index.count() == 3
    assert embed(folder, index)[:3] == (4, 3, 0)


KILLED = """
import sys, time
from app import cli, gallery
from export.runtime import OnnxModel
gallery.CHUNK = 8
quick, calls = OnnxModel.embed, []
def slow(self, images):
    calls.append(images)
    time.sleep(0.05 if len(calls) < 12 else 600)
    return quick(self, images)
OnnxModel.embed = slow
cli.main(["index", sys.argv[1], "--index", sys.argv[2], "--model", sys.argv[3]])
"""


def everything(path: Path, model: OnnxModel) -> tuple[dict, dict, dict]:
    """All that an index holds, by id and by path."""
    index = open_index(path, model=model.fingerprint, dimension=model.feature_width, create=False)
    ids, vectors = index.vectors()
    pictures = {item.id: (item.path, item.label, index.thumbnail(item.id)) for item in index.get(ids)}
    files = index.files()
    index.close()
    return pictures, dict(zip(ids, vectors.tolist(), strict=True)), files


def test_killed_in_the_middle_the_next_run_does_the_rest(tmp_path: Path) -> None:
    student = onnx_files.student(tmp_path / "student.onnx", size=40)
    for n in range(120):
        picture(tmp_path / "many" / str(n % 3) / f"{n}.png", n)
    shutil.copy(tmp_path / "many" / "0" / "0.png", tmp_path / "many" / "2" / "copy.png")
    (tmp_path / "many" / "1" / "bad.png").write_text("no picture")
    cut, whole = tmp_path / "cut.sqlite", tmp_path / "whole.sqlite"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "many"), str(cut), str(student)])

    def noted() -> int:
        try:
            with sqlite3.connect(f"file:{cut}?mode=ro", uri=True) as database:
                found = int(database.execute("SELECT COUNT(*) FROM files").fetchone()[0])
            database.close()
        except sqlite3.Error:
            return 0
        return found

    until = time.monotonic() + 60
    while noted() < 40:
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = noted()
    assert 40 <= done < 122
    model = OnnxModel(student)
    index = open_index(cut, model=model.fingerprint, dimension=model.feature_width)
    report = gallery.embed_paths([tmp_path / "many"], model, index, progress=False)
    index.close()
    assert report.unchanged == done
    assert 120 - done - 8 <= report.embedded <= 121 - done
    index = open_index(whole, model=model.fingerprint, dimension=model.feature_width)
    assert gallery.embed_paths([tmp_path / "many"], model, index, progress=False).embedded == 120
    index.close()
    first, second = everything(cut, model), everything(whole, model)
    assert first[0] == second[0]
    assert first[2] == second[2]
    for id_, vector in second[1].items():
        np.testing.assert_allclose(first[1][id_], vector, atol=2e-3)  # batches of other sizes; float16


# What is told meanwhile


def test_progress_goes_to_a_function(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", 3)
    told: list[tuple[int, int]] = []
    gallery.embed_paths([folder], Colours(), index, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 7), (3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_progress_bar(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool) -> None:
    written = io.StringIO()
    written.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", written)
    gallery.embed_paths([folder], Colours(), index)
    assert ("7/7" in written.getvalue()) == shown


# The app's gallery


def test_open_gallery_folder(folder: Path) -> None:
    model = Colours()
    for wanted in ((7, 0), (0, 7)):
        index, report = gallery.open_gallery(folder, model, progress=False)
        assert (report.embedded, report.unchanged) == wanted
        assert index.count() == 7
        index.close()
    assert model.seen == 7
    assert not list(folder.rglob("*.sqlite*"))  # it lies in the cache


def test_what_people_do_in_the_app_does_not_change_what_a_folder_holds(folder: Path, tmp_path: Path) -> None:
    model = Colours()
    shown, _ = gallery.open_gallery(folder, model, progress=False)
    assert shown is not None
    gallery.embed_paths([picture(tmp_path / "other" / "x.png", 99).parent], model, shown, progress=False)
    shown.delete([shown.items(limit=1)[0].id])
    shown.close()
    held, report = gallery.open_pictures([folder], model, progress=False)
    assert [item.path for item in held.items()] == [str(path) for path in folders.image_files(folder)]
    assert report.embedded == 7
    held.close()


def test_folders_as_people_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gallery.folder_named(" ~ ") == gallery.folder_named(str(tmp_path)) == tmp_path
    for text, told in (
        (" ", "Name a folder of this machine"),
        ("~nobodyknows/x", "~nobodyknows/x: no such folder"),
        (f"{tmp_path}/absent", "absent: no such folder"),
        ("a\0b", "no such folder"),
    ):
        with pytest.raises(ValueError, match=told):
            gallery.folder_named(text)


def test_open_gallery_index(folder: Path, index: Index, tmp_path: Path) -> None:
    embed(folder, index)
    (folder / "red" / "1.png").unlink()
    plain = tmp_path / "without ending"
    shutil.copy(tmp_path / "g.sqlite", plain)
    for place in (tmp_path / "g.sqlite", str(tmp_path / "g.sqlite")):
        opened, report = gallery.open_gallery(place, Colours(), progress=False)
        assert report == gallery.Report(0, 0, 0, {})
        assert opened.count() == 7  # as it is
        opened.close()
    assert gallery.is_index(plain)
    assert gallery.is_index("http://127.0.0.1:19530/photos")
    assert not gallery.is_index(folder / "red" / "3.png")
    other = SimpleNamespace(fingerprint="d" * 64, feature_width=D)
    with pytest.raises(ValueError, match="another model"):
        gallery.open_gallery(tmp_path / "g.sqlite", other)


def test_open_gallery_that_comes_with_the_app(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(gallery, "PICTURES", folder)
    index, report = gallery.open_gallery(None, Colours(), progress=False)
    assert report.embedded == index.count() == 7
    index.close()


def test_a_model_that_can_read_none_of_the_apps_pictures_goes_without_a_gallery(tmp_path: Path) -> None:
    model = OnnxModel(onnx_files.student(tmp_path / "student.onnx", size=32))
    for _ in range(2):  # the second time from the cache
        index, report = gallery.open_gallery(None, model, progress=False)
        assert index is None
        assert len(report.unreadable) == 80
    line = serve._told(report, index)
    assert line.startswith("No gallery (name one with --gallery DIR): ")
    assert "80 files skipped" in line
    assert "\n" not in line
    with pytest.raises(ValueError, match=r"No pictures in .* \(80 unreadable"):  # asked for by name
        gallery.open_gallery(gallery.PICTURES, model, progress=False)


def test_a_folder_and_a_link_to_it_are_two_galleries(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    gallery.open_gallery(link, Colours(), progress=False)[0].close()
    gallery.open_gallery(folder, Colours(), progress=False)[0].close()
    (folder / "red" / "1.png").unlink()
    for place in (folder, link):
        index, report = gallery.open_gallery(place, Colours(), progress=False)
        assert (report.gone, index.count()) == (1, 6)
        assert all(Path(item.path).is_relative_to(place) and Path(item.path).exists() for item in index.items())
        index.close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.mkdir(), "No pictures in .*; looked for"),
        (lambda path: path.write_text("text"), "no folder and no index"),
        (lambda path: picture(path / "a.png", 0).write_text(""), r"No pictures in .* \(1 unreadable, such as .*a.png"),
    ],
)  # fmt: skip
def test_open_gallery_refuses(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    make(tmp_path / "place")
    with pytest.raises(ValueError, match=told):
        gallery.open_gallery(tmp_path / "place", Colours(), progress=False)


def test_the_walk_equals_os_walk(tmp_path: Path) -> None:
    for name in (
        "b/1.JPG",
        "b/c/2.jpeg",
        "a/3.webp",
        "4.tif",
        "5.txt",
        ".h/6.png",
        "b/.7.png",
        "z.png/8.gif",
        "9.jfif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "4.tif")
    wanted = []
    for place, inside, names in os.walk(tmp_path):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(
                (".jpg", ".jpeg", ".webp", ".tif", ".gif", ".jfif", ".png")
            ):
                wanted.append(Path(place, name))
    assert len(wanted) == 7
    assert list(folders.image_files(tmp_path)) == wanted
    assert folders.find_files([tmp_path]) == sorted(wanted)
