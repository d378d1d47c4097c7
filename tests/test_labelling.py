"""Labels by a person: the table is what training reads, and the work list leaves out what is done."""

import errno
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import labelling
from app.index import ANY, Item, folder_of
from app.places import places
from training import data


def engine_of(vectors: np.ndarray, paths: list[str]) -> Any:
    """As much of an engine as labelling asks for."""
    ids = [f"id{row}" for row in range(len(paths))]
    items = [Item(id_, path, "") for id_, path in zip(ids, paths, strict=True)]
    index = SimpleNamespace(
        vectors=lambda: (ids, vectors), count=lambda: len(ids),
        items=lambda *, limit, where=ANY: [item for item in items if item.path.startswith(where.folder)][:limit],
        get=lambda some: [item for one in some for item in items if item.id == one],
    )  # fmt: skip
    return SimpleNamespace(
        index=index, model=SimpleNamespace(labels=()),
        vectors_of=lambda some: vectors[[ids.index(one) for one in some]],
        places=lambda: places({folder_of(path) for path in paths}),
    )  # fmt: skip


def test_training_reads_what_is_written(image_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "some where" / "labels.csv"
    paths = [path.as_posix() for path in sorted(image_folder.rglob("*.png"))[:3]]
    assert labelling.read_labels(table) == {}
    labels = dict(zip(paths, ["a, b", 'say "c"', "a, b"], strict=True))
    for path, label in labels.items():
        assert labelling.put_label(table, path, label) is None
    assert labelling.read_labels(table) == labels
    read = data.from_csv(table, root=image_folder)
    assert [path.as_posix() for path in read.paths] == paths
    assert [read.classes[number] for number in read.labels] == list(labels.values())


def test_another_file_is_not_taken_for_a_table(tmp_path: Path) -> None:
    for content in ("name,age\na,1\n", "\x00\xff", ""):
        (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"t\.csv: ") as caught:
            labelling.read_labels(tmp_path / "t.csv")
        assert "\n" not in str(caught.value)


def test_labels_are_cleaned_or_refused() -> None:
    assert labelling.clean_label("  garbage   truck ") == "garbage truck"
    for text in ("می‌خواهم", "👩‍🔬 lab", "x" * 200):
        assert labelling.clean_label(text) == text
    for text, said in ((" ", "no name of a class"), ("x" * 201, "201 letters"), ("a\x07b", "control characters")):
        with pytest.raises(ValueError, match=said):
            labelling.clean_label(text, known=("", " "))


def test_names_that_are_known_stay_as_they_are(tmp_path: Path) -> None:
    engine, table = engine_of(np.eye(2, dtype=np.float32), ["/p/a.jpg", "/p/b.jpg"]), tmp_path / "labels.csv"
    engine.index.set_label = lambda ids, label: None
    long = "y" * 201
    engine.model.labels = ("two  spaces", long)
    assert labelling.give_label(engine, table, Item("id0", "/p/a.jpg", ""), "two  spaces").label == "two  spaces"
    labelling.give_label(engine, table, Item("id1", "/p/b.jpg", ""), long)
    assert labelling.read_labels(table) == {"/p/a.jpg": "two  spaces", "/p/b.jpg": long}


def test_the_table_names_pictures_by_full_or_relative_path(tmp_path: Path) -> None:
    engine = engine_of(np.eye(3, dtype=np.float32), ["/p/a.jpg", f"{tmp_path.as_posix()}/b.jpg", "/p/c.jpg"])
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n/p/a.jpg,x\nb.jpg,y\nelsewhere.jpg,z\n/p/c.jpg,\n")
    assert labelling.labelled_ids(engine, table) == {"id0": "x", "id1": "y"}


@pytest.mark.parametrize("start", ["/data/photos", "/data", "/data/photos/cats/.."])
def test_the_table_that_training_was_given_counts_and_gets_no_second_row(tmp_path: Path, start: str) -> None:
    paths = ["/data/photos/cats/1.jpg", "/data/photos/dogs/2.jpg", "/data/photos/dogs/3.jpg"]
    engine = engine_of(np.eye(3, dtype=np.float32), paths)
    table = tmp_path / "labels.csv"
    names = [os.path.relpath(path, start) for path in paths]
    table.write_text(f"path,label\n{names[0]},cat\n{names[1]},\n")
    assert labelling.labelled_ids(engine, table) == {"id0": "cat"}
    root = engine.places().root
    assert labelling.put_label(table, paths[1], "dog", root=root) == ""
    assert labelling.put_label(table, paths[2], "dog", root=root) is None
    assert table.read_text() == f"path,label\n{names[0]},cat\n{names[1]},dog\n{paths[2]},dog\n"
    assert labelling.put_label(table, paths[2], None, root=root) == "dog"  # as Undo does
    assert labelling.put_label(table, paths[1], "", root=root) == "dog"
    assert table.read_text() == f"path,label\n{names[0]},cat\n{names[1]},\n"


def pictures(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [(folder / name).as_posix() for name in names]


@pytest.mark.parametrize("place", [".", "elsewhere"])
def test_the_row_of_another_file_stays(tmp_path: Path, place: str) -> None:
    """A table that was written for --images train, and a gallery of val."""
    mine, _, _ = pictures(tmp_path, "val/cat/1.jpg", "val/dog/2.jpg", "train/cat/1.jpg")
    engine, table = engine_of(np.eye(1, dtype=np.float32), [mine]), tmp_path / place / "labels.csv"
    root = (tmp_path / "val").as_posix()
    engine.places = lambda: places({root, folder_of(mine)})
    table.parent.mkdir(exist_ok=True)
    table.write_text("path,label\ncat/1.jpg,tabby\n")
    assert labelling.labelled_ids(engine, table) == {}
    assert labelling.put_label(table, mine, "lynx", root=root) is None
    assert table.read_text() == f"path,label\ncat/1.jpg,tabby\n{mine},lynx\n"
    assert labelling.labelled_ids(engine, table) == {"id0": "lynx"}


def test_a_row_is_found_again_when_a_folder_from_elsewhere_has_joined(tmp_path: Path) -> None:
    mine, other = pictures(tmp_path, "work/train/cat/1.jpg", "elsewhere/3.jpg")
    engine, table = engine_of(np.eye(2, dtype=np.float32), [mine, other]), tmp_path / "work" / "labels.csv"
    table.write_text("path,label\ncat/1.jpg,tabby\n")
    assert labelling.labelled_ids(engine, table) == {"id0": "tabby"}
    assert labelling.put_label(table, mine, "lynx", root=engine.places().root) == "tabby"
    assert table.read_text() == "path,label\ncat/1.jpg,lynx\n"


def test_a_link_to_a_picture_is_no_other_file(tmp_path: Path) -> None:
    mine = pictures(tmp_path, "train/cat/1.jpg")[0]
    (tmp_path / "link").symlink_to(tmp_path / "train", target_is_directory=True)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ncat/1.jpg,\n")
    assert labelling.put_label(table, mine, "lynx", root=(tmp_path / "train").as_posix()) == ""


def test_what_else_is_in_a_table_stays(tmp_path: Path) -> None:
    table, link = tmp_path / "table.csv", tmp_path / "labels.csv"
    table.write_bytes('\ufeffwho, path ,label\r\n"me, I",/a.jpg,old\r\nme,/b.jpg\r\n'.encode())
    link.symlink_to(table)
    assert labelling.read_labels(link) == {"/a.jpg": "old"}
    labelling.put_label(link, "/b.jpg", "new")
    labelling.put_label(link, "/c.jpg", "ü")
    expected = '\ufeffwho, path ,label\r\n"me, I",/a.jpg,old\r\nme,/b.jpg,new\r\n,/c.jpg,ü\r\n'
    assert table.read_bytes() == expected.encode()
    assert link.is_symlink()


def test_labels_written_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: labelling.put_label(table, f"/{number}.jpg", "x"), range(64)))
    assert labelling.read_labels(table) == {f"/{number}.jpg": "x" for number in range(64)}


def test_another_process_that_writes_is_waited_for(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    table = tmp_path / "labels.csv"
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(labelling.put_label, table, "/b.jpg", "y")
        time.sleep(0.1)
        assert not waiting.done()
        table.write_text("path,label\n/a.jpg,x\n")
        os.close(other)
        waiting.result(10)
    assert labelling.read_labels(table) == {"/a.jpg": "x", "/b.jpg": "y"}


def test_a_table_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n/a.jpg,x\n")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device\); the label was not kept"):
        labelling.put_label(table, "/b.jpg", "y")
    assert table.read_text() == "path,label\n/a.jpg,x\n"
    assert list(tmp_path.iterdir()) == [table]


def test_pictures_without_a_file_are_not_asked_about() -> None:
    engine = engine_of(np.eye(3, dtype=np.float32), ["/p/a.jpg", "upload/b.jpg", "/p/c.jpg"])
    assert sorted(labelling.worklist(engine, {}, 3)) == ["id0", "id2"]


def test_the_work_list_covers_what_has_no_label_yet() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4, 16, dtype=np.float32)
    vectors = np.concatenate([centre + rng.normal(0, 0.05, (10, 16)) for centre in centres]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    engine = engine_of(vectors, [f"/p/{row}.jpg" for row in range(40)])
    first = labelling.worklist(engine, {}, 4)
    assert sorted(int(id_[2:]) // 10 for id_ in first) == [0, 1, 2, 3]  # one of each heap
    then = labelling.worklist(engine, {first[0]: "a", first[1]: "b"}, 2)
    assert {int(id_[2:]) // 10 for id_ in then} == {int(id_[2:]) // 10 for id_ in first[2:]}


def test_the_nearest_labels_come_with_five_labels_of_two_kinds() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0.95, 0], [0, 1], [0.1, 0.9], [0.8, 0.2]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    engine = engine_of(vectors, list("abcdef"))
    given = {"id0": "x", "id1": "x", "id2": "x", "id3": "y", "id4": "y"}
    assert labelling.nearest_labels(engine, "id5", given) == ["x"]
    assert labelling.nearest_labels(engine, "id5", given, k=4) == ["x", "y"]
    assert labelling.nearest_labels(engine, "id5", dict.fromkeys(given, "x")) == []
    assert labelling.nearest_labels(engine, "id5", {"id0": "x", "id3": "y"}) == []


def test_the_picture_is_the_file_or_its_thumbnail(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 500), (200, 30, 30)).save(tmp_path / "a.png")
    shown = Image.open(io.BytesIO(labelling.picture_to_look_at(f"{tmp_path}/a.png", b"t")))
    assert shown.size == (640, 320)
    assert labelling.picture_to_look_at(f"{tmp_path}/gone.png", b"thumb") == b"thumb"
    assert labelling.picture_to_look_at("upload/a.png", None) == b""


def test_a_label_is_in_the_gallery_too_and_is_taken_back_from_both(tmp_path: Path) -> None:
    engine, said = engine_of(np.eye(2, dtype=np.float32), ["/p/a.jpg", "upload/b.jpg"]), []
    engine.index.set_label = lambda ids, label: said.append((ids, label))
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n/p/a.jpg,\n")
    before = labelling.give_label(engine, table, Item("id0", "/p/a.jpg", "folder"), " x  y ")
    assert table.read_text() == "path,label\n/p/a.jpg,x y\n"
    labelling.put_label(table, "/p/a.jpg", "somebody else's")
    with pytest.raises(labelling.Labelled, match=r"a\.jpg: labels\.csv says \"somebody else's\" of it by now"):
        labelling.take_label(engine, table, before)
    assert labelling.read_labels(table) == {"/p/a.jpg": "somebody else's"}
    labelling.put_label(table, "/p/a.jpg", "x y")
    labelling.take_label(engine, table, before)
    assert table.read_text() == "path,label\n/p/a.jpg,\n"
    with pytest.raises(labelling.Labelled, match=r"labels\.csv gives it no label by now"):
        labelling.take_label(engine, table, before)
    assert said == [(["id0"], "x y"), (["id0"], "folder")]
    with pytest.raises(ValueError, match="no file holds it"):
        labelling.give_label(engine, table, Item("id1", "upload/b.jpg", ""), "x")


def test_a_label_is_given_and_taken_in_both_places_or_in_none(tmp_path: Path) -> None:
    engine, table, works = engine_of(np.eye(2, dtype=np.float32), ["/p/a.jpg", "/p/b.jpg"]), tmp_path / "labels.csv", []

    def set_label(ids: list[str], label: str) -> None:
        if not works:
            raise ValueError("g.sqlite: may only be read here; nothing was changed.")

    engine.index.set_label = set_label
    for content in ("path,label\n/p/b.jpg,dog\n", "path,label\n/p/a.jpg,\n", "path,label\n/p/a.jpg,dog\n"):
        table.write_text(content)
        for _ in range(2):  # the second time as the first
            with pytest.raises(ValueError, match="may only be read here"):
                labelling.give_label(engine, table, Item("id0", "/p/a.jpg", ""), "cat")
            assert table.read_text() == content
        works.append(True)
        before = labelling.give_label(engine, table, Item("id0", "/p/a.jpg", ""), "cat")
        works.clear()
        given = labelling.read_labels(table)
        assert given["/p/a.jpg"] == "cat"
        with pytest.raises(ValueError, match="may only be read here"):
            labelling.take_label(engine, table, before)
        assert labelling.read_labels(table) == given
