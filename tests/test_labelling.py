"""Labels by a person: the table is what training reads, and the work list leaves out what is done."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import labelling
from app.index import Item
from training import data


def engine_of(vectors: np.ndarray, paths: list[str]) -> Any:
    """As much of an engine as labelling asks for."""
    ids = [f"id{row}" for row in range(len(paths))]
    items = [Item(id_, path, "") for id_, path in zip(ids, paths, strict=True)]
    index = SimpleNamespace(
        vectors=lambda: (ids, vectors), count=lambda: len(ids), items=lambda *, limit: items[:limit],
        get=lambda some: [item for one in some for item in items if item.id == one],
    )  # fmt: skip
    return SimpleNamespace(index=index, vectors_of=lambda some: vectors[[ids.index(one) for one in some]])


def test_training_reads_what_is_written(image_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "some where" / "labels.csv"
    paths = [path.as_posix() for path in sorted(image_folder.rglob("*.png"))[:3]]
    assert labelling.read_labels(table) == {}
    labels = dict(zip(paths, ["a, b", 'say "c"', "a, b"], strict=True))
    labelling.write_labels(table, labels)
    assert labelling.read_labels(table) == labels
    read = data.from_csv(table, root=image_folder)
    assert [path.as_posix() for path in read.paths] == paths
    assert [read.classes[number] for number in read.labels] == list(labels.values())


def test_another_file_is_not_taken_for_a_table(tmp_path: Path) -> None:
    for content in ("name,age\na,1\n", "path,label,who\na.jpg,cat,me\n", "\x00\xff", ""):
        (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"t\.csv: ") as caught:
            labelling.read_labels(tmp_path / "t.csv")
        assert "\n" not in str(caught.value)


def test_labels_are_cleaned_or_refused() -> None:
    assert labelling.clean_label("  garbage   truck ") == "garbage truck"
    for text in ("", " ", "x" * 61, "a\x07b"):
        with pytest.raises(ValueError, match="1 to 60 letters"):
            labelling.clean_label(text)


def test_the_table_names_pictures_by_full_or_relative_path(tmp_path: Path) -> None:
    engine = engine_of(np.eye(3, dtype=np.float32), ["/p/a.jpg", f"{tmp_path.as_posix()}/b.jpg", "/p/c.jpg"])
    table = tmp_path / "labels.csv"
    labelling.write_labels(table, {"/p/a.jpg": "x", "b.jpg": "y", "elsewhere.jpg": "z"})
    assert labelling.labelled_ids(engine, table) == {"id0": "x", "id1": "y"}


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


def test_labels_given_at_once_are_all_kept(tmp_path: Path) -> None:
    engine = engine_of(np.eye(3, dtype=np.float32), ["/p/a.jpg"])
    engine.index.set_label = lambda ids, label: len(ids)
    table = tmp_path / "labels.csv"
    items = [Item(f"id{n}", f"/p/{n}.jpg", "") for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: labelling.give_label(engine, table, item, "x"), items))
    assert set(labelling.read_labels(table)) == {item.path for item in items}
    labelling.take_label(engine, table, items[0], "")
    assert len(labelling.read_labels(table)) == 39
