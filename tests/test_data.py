"""Image sets, subsets and batches, on tiny images made here."""

import os
import pickle
import platform
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import data
from training.augment import Augmentation
from training.data import ImageSet, TrainingBatches
from zoo.transforms import preprocess

PRETRAINING, CROPS = Augmentation(16), Augmentation(16, color=False, blur=False)


def _save(path: Path, seed: int, height: int = 40, width: int = 44) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    for i in range(11):
        _save(tmp_path / "set" / f"class_{i % 3}" / f"{i:02}.png", i)
    return data.from_class_folders(tmp_path / "set")


def _batches(images, *, start=0, total=8, batch_size=3, workers=0, augmentation=PRETRAINING, views=2, **rest):
    made = TrainingBatches(
        images, batch_size=batch_size, augmentation=augmentation, views=views, seed=5, workers=workers, **rest
    )
    return list(made.stream(start_step=start, total_steps=total))


def _same(ours, theirs):
    assert [list(batch) for batch in ours] == [list(batch) for batch in theirs]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a)


# ---- sets ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_to_the_bottom(tmp_path):
    kept = [_save(tmp_path / name, 0) for name in ("b.png", "a/c.JPG", "a/d/e.webp", "z.TIFF")]
    _save(tmp_path / ".hidden.png", 0)
    _save(tmp_path / ".cache" / "f.png", 0)
    (tmp_path / "notes.txt").write_text("no image")
    found = data.from_folder(tmp_path)
    assert found.paths == tuple(sorted(kept))
    assert not found.labelled


def test_links_to_folders_are_followed_once(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    _save(photos / "own" / "a.png", 0)
    _save(elsewhere / "b.png", 1)
    _save(elsewhere / ".hidden" / "c.png", 2)
    for name, target in {"far": elsewhere, "again": elsewhere, "up": tmp_path, "aaa": photos / "own"}.items():
        (photos / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(photos, target_is_directory=True)
    (photos / "gone").symlink_to(tmp_path / "gone", target_is_directory=True)
    assert data.from_folder(photos).paths == (photos / "again" / "b.png", photos / "own" / "a.png")
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "cat").symlink_to(elsewhere, target_is_directory=True)
    assert data.from_folder(tmp_path / "classes").paths == data.from_class_folders(tmp_path / "classes").paths


def test_labels_in_the_order_of_other_classes():
    images = ImageSet(tuple(Path(name) for name in "pqrs"), np.array([2, 0, -1, 2]), ("10", "2", "9"))
    found = data.in_classes(images, ["2", "9", "10"])
    assert found.labels.tolist() == [1, 2, -1, 1]
    assert (found.paths, found.classes) == (images.paths, ("2", "9", "10"))
    assert data.in_classes(images, ("9", "10")).labels.tolist() == [0, 1, -1, 0]  # no image is of class 2
    with pytest.raises(ValueError, match=r"Labels that are none of the 2 classes: '9'\. Those are '2', '10'"):
        data.in_classes(images, ("2", "10"))


def test_class_folders_whose_names_are_no_text(image_folder):
    (image_folder / "circle").rename(image_folder / "caf\udce9")
    with pytest.raises(ValueError, match=r"the class folder 'caf\ufffd' has a name that is not UTF-8; rename it"):
        data.from_class_folders(image_folder)
    assert len(data.from_folder(image_folder)) == 36  # without classes it is only a folder


def test_folders_that_cannot_be_listed_are_told(image_folder, monkeypatch, caplog):
    real, locked = os.scandir, str(image_folder / "circle")

    def scandir(path):
        if os.fspath(path) == locked:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(data.from_folder(image_folder)) == 24
    assert caplog.messages == [f"{locked}: cannot be listed (Permission denied); its images are left out."]


def test_class_folders_are_the_classes(images):
    assert images.classes == ("class_0", "class_1", "class_2")
    assert images.labels.dtype == np.int64
    assert [images.classes[label] for label in images.labels] == [path.parent.name for path in images.paths]
    few = images.subset([9, 0])
    assert few.paths == (images.paths[9], images.paths[0])
    assert few.labels.tolist() == [images.labels[9], images.labels[0]]
    assert few.classes == images.classes
    assert (len(few), few.labelled) == (2, True)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        data.from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no images in it \(looked for \.apng, .*\.jpg, .*\.webp"):
        data.from_folder(tmp_path)
    with pytest.raises(ValueError, match="one folder of images for each class"):
        data.from_class_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"cat: no images in it"):
        data.from_class_folders(tmp_path)


@pytest.mark.parametrize(("labels", "length"), [([0, 3], 2), ([0, -2], 2), ([0], 2)])
def test_labels_must_fit(labels, length):
    with pytest.raises(ValueError, match="Labels"):
        ImageSet((Path("a"),) * length, np.array(labels), ("x", "y"))


def test_csv(tmp_path):
    for i in range(3):
        _save(tmp_path / "pictures" / f"{i}.png", i)
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffpath,label,who\n2.png,10,me\n0.png,9,me\n1.png,10,you\n2.png,10,you\n", encoding="utf-8")
    read = data.from_csv(table, root=tmp_path / "pictures")
    assert [path.name for path in read.paths] == ["2.png", "0.png", "1.png"]
    assert read.classes == ("9", "10")  # as numbers
    assert read.labels.tolist() == [1, 0, 1]
    assert data.from_csv(table, root=tmp_path / "pictures", classes=["10", "8", "9"]).labels.tolist() == [0, 2, 0]
    table.write_text(f"path,label\npictures/1.png,b\n{tmp_path / 'pictures' / '0.png'},a\n")
    assert data.from_csv(table).paths == (tmp_path / "pictures" / "1.png", tmp_path / "pictures" / "0.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no column 'path', 'label'; its first line reads \(nothing\)"),
        ("file,label\na.png,x\n", r"no column 'path'; its first line reads file, label"),
        ("path,label\n", "no rows"),
        ("path,label\n,x\n", "no path in 'row 1'"),
        ("path,label\na.png,\n", "no label for 'a.png'"),
        ("path,label\na.png,x\nb.png,x\na.png,y\n", r"two labels for 'a.png \(x or y\?\)'. Keep one"),
        ("path,label\n" + "".join(f"{i}.png,x\n" for i in range(7)), r"'0.png', .*, '4.png', ... \(7 in all\).*root="),
        ("path,label\na.png,z\n", r"labels that are no class: 'z'. The classes are 'x', 'y'"),
    ],
)
def test_csv_mistakes_are_named(tmp_path, text, message):
    _save(tmp_path / "a.png", 0)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.from_csv(tmp_path / "labels.csv", classes=["x", "y"])


def test_a_file_is_one_however_its_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "cat" / "1.png", 0)
    table, again = Path("labels.csv"), f"{tmp_path}/cat/1.png,tabby\n./cat/1.png,tabby\ncat/../cat/1.png,tabby\n"
    table.write_text(f"path,label\ncat/1.png,tabby\n{again}")
    assert data.from_csv(table).paths == (Path("cat/1.png"),)
    table.write_text(f"path,label\ncat/1.png,tabby\n{tmp_path}/cat/1.png,lynx\n")
    with pytest.raises(ValueError, match=r"two labels for 'cat/1.png \(tabby or lynx\?\)'. Keep one row for each file"):
        data.from_csv(table)


def test_csv_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        data.from_csv(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes("path,label\nä.png,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        data.from_csv(tmp_path / "labels.csv")


def _parquet(file: Path, /, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)
    return file


def test_parquet_is_read_as_csv_is(tmp_path):
    for i in range(3):
        _save(tmp_path / "pictures" / f"{i}.png", i)
    table = _parquet(
        tmp_path / "labels.parquet", who=[1, 2, 3, 4], label=[10, 9, 10, 10], path=["2.png", "0.png", "1.png", "2.png"]
    )
    (tmp_path / "labels.csv").write_text("path,label\n2.png,10\n0.png,9\n1.png,10\n2.png,10\n")
    ours = data.from_table(table, root=tmp_path / "pictures")
    theirs = data.from_table(tmp_path / "labels.csv", root=tmp_path / "pictures")
    assert (ours.paths, ours.classes) == (theirs.paths, theirs.classes)
    assert ours.classes == ("9", "10")
    assert ours.labels.tolist() == theirs.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a.png"], "label": ["x"]}, "no column 'path', or more than one; its columns are 'file', 'label'"),
        ({"path": ["a.png"], "label": [0.5]}, "the column 'label' is double; make it text or whole numbers"),
        ({"path": [1], "label": ["x"]}, "the column 'path' is int64; make it text"),
        ({"path": [], "label": []}, "no rows"),
        ({"path": ["a.png"], "label": [None]}, "no label for 'a.png'"),
        ({"path": [None], "label": ["x"]}, "no path in 'row 1'"),
        ({"path": ["a.png", "a.png"], "label": ["x", "y"]}, r"two labels for 'a.png \(x or y\?\)'"),
        ({"path": ["b.png"], "label": ["x"]}, "no such file below"),
    ],
)
def test_parquet_mistakes_are_named(tmp_path, columns, message):
    _save(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match=message) as error:
        data.from_table(_parquet(tmp_path / "labels.parquet", **columns))
    assert "\n" not in str(error.value)


def test_parquet_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="no such file"):
        data.from_table(tmp_path / "labels.parquet")
    (tmp_path / "labels.parquet").write_text("path,label\n")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        data.from_table(tmp_path / "labels.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"labels\.PARQUET: reading Parquet needs pyarrow: pip install pyarrow$"):
        data.from_table(tmp_path / "labels.PARQUET")


def test_other_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels\.xlsx: a table of labels ends in \.csv or \.parquet, not '\.xlsx'"):
        data.from_table(tmp_path / "labels.xlsx")


def test_stratified_subset():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [150, 45, 2]))
    tenth = data.stratified_subset(labels, fraction=0.1, seed=3)
    assert Counter(labels[tenth].tolist()) == {0: 15, 1: 5, 2: 1}  # 4.5 rounds up, 0.2 to the one at least
    assert (np.diff(tenth) > 0).all()
    assert tenth.tolist() == data.stratified_subset(labels, fraction=0.1, seed=3).tolist()
    assert tenth.tolist() != data.stratified_subset(labels, fraction=0.1, seed=4).tolist()
    assert set(data.stratified_subset(labels, fraction=0.02, seed=3)) < set(tenth)
    assert data.stratified_subset(labels, fraction=1.0, seed=0).tolist() == list(range(197))
    assert Counter(labels[data.stratified_subset(labels, per_class=2, seed=0)].tolist()) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "either"),
        ({"fraction": 0.1, "per_class": 1}, "either"),
        ({"fraction": 10}, r"\(0, 1\]"),
        ({"per_class": 0}, "at least 1"),
        ({"per_class": 3}, "Class 1 has 2 images"),
    ],
)
def test_stratified_subset_refuses(choice, message):
    with pytest.raises(ValueError, match=message):
        data.stratified_subset(np.array([0, 0, 0, 1, 1]), seed=0, **choice)


# ---- training --------------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_new_permutation(images):
    batches = _batches(images, total=6, augmentation=CROPS)
    assert list(batches[0]) == ["index", "label", "view0", "view1"]
    assert {tuple(batch["view1"].shape) for batch in batches} == {(3, 3, 16, 16)}
    epochs = [torch.cat([batch["index"] for batch in batches[first : first + 3]]).tolist() for first in (0, 3)]
    assert [len(set(epoch)) for epoch in epochs] == [9, 9]  # of 11: the last two are dropped
    assert epochs[0] != epochs[1]
    for batch in batches:
        assert batch["label"].tolist() == images.labels[batch["index"]].tolist()
        assert not torch.equal(batch["view0"], batch["view1"])


def test_views_are_the_augmentations(images):
    batch = _batches(images, total=5)[4]  # epoch 1: 3 steps each
    pixels = [np.asarray(Image.open(images.paths[i])) for i in batch["index"]]
    for view in (0, 1):
        expected = PRETRAINING(pixels, indices=batch["index"].tolist(), epoch=1, view=view, seed=5)
        assert torch.equal(batch[f"view{view}"], expected)


def test_a_restart_goes_on_as_if_nothing_had_happened(images):
    _same(_batches(images, start=4), _batches(images)[4:])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12 and later
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(images, workers):
    before = torch.get_rng_state()
    _same(_batches(images, workers=workers), _batches(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_goes_to_the_workers_can_be_spawned(images):
    made = TrainingBatches(images, batch_size=3, augmentation=PRETRAINING, views=1, seed=5)
    # Our own objects, never a file: this is how multiprocessing sends them to a spawned worker.
    steps, *_ = pickle.loads(pickle.dumps((made._steps, data._start_worker, data._as_is)))
    assert torch.equal(steps[2][0]["view0"], made._steps[2][0]["view0"])


def test_a_small_set_is_one_batch_an_epoch(images):
    made = TrainingBatches(images, batch_size=64, augmentation=CROPS, views=1, seed=5, workers=0)
    assert (made.batch_size, made.steps_per_epoch) == (11, 1)
    unlabelled = ImageSet(images.paths)
    for batch in _batches(unlabelled, batch_size=64, total=2, augmentation=CROPS, views=1):
        assert list(batch) == ["index", "view0"]
        assert sorted(batch["index"].tolist()) == list(range(11))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_reported_once(images, workers):
    images.paths[4].write_bytes(images.paths[4].read_bytes()[:600])
    images.paths[7].write_text("no image")
    seen: list[tuple[Path, str]] = []
    made = TrainingBatches(
        images,
        batch_size=11,
        augmentation=CROPS,
        views=2,
        seed=5,
        workers=workers,
        on_skip=lambda *skip: seen.append(skip),
    )
    for batch in made.stream(total_steps=3):
        assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 5, 6, 8, 9, 10]
        assert len(batch["view0"]) == len(batch["view1"]) == len(batch["label"]) == 9
    assert sorted(path for path, _ in seen) == [images.paths[4], images.paths[7]]
    assert made.skipped == dict(seen)
    assert "not an image in a known format" in made.skipped[images.paths[7]]
    assert str(images.paths[7]) not in made.skipped[images.paths[7]]


def test_skipped_images_are_logged(images, caplog):
    images.paths[7].write_text("no image")
    _batches(images, batch_size=11, total=2)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [f"Skipped {images.paths[7]}"]


def test_a_batch_without_one_readable_image_ends_the_run(images):
    for path in images.paths:
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"None of the 3 images of a batch can be read: .*Repair or remove them"):
        _batches(images)
    with pytest.raises(ValueError, match="None of the 11 images can be read"):
        list(data.evaluation_batches(images, size=64))


@pytest.mark.parametrize(
    ("wrong", "message"), [({"batch_size": 0}, "batch_size"), ({"views": 3}, "views"), ({"seed": -1}, "seed")]
)
def test_training_batches_refuse(images, wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainingBatches(images, **{"batch_size": 2, "augmentation": CROPS, "views": 1, "seed": 0, **wrong})
    with pytest.raises(ValueError, match="empty"):
        TrainingBatches(images.subset([]), batch_size=2, augmentation=CROPS, views=1, seed=0)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_is_preprocess_in_order(images, workers):
    images.paths[2].write_text("no image")
    skipped: list[Path] = []
    batches = list(
        data.evaluation_batches(
            images, size=48, batch_size=4, workers=workers, on_skip=lambda path, _: skipped.append(path)
        )
    )
    assert [len(batch[0]) for batch in batches] == [3, 4, 3]
    places = torch.cat([batch[2] for batch in batches]).tolist()
    assert places == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert skipped == [images.paths[2]]
    assert torch.cat([batch[1] for batch in batches]).tolist() == images.labels[places].tolist()
    for ours, place in zip(torch.cat([batch[0] for batch in batches]), places, strict=True):
        np.testing.assert_array_equal(ours.numpy(), preprocess(images.paths[place], 48))
    assert next(data.evaluation_batches(ImageSet(images.paths), size=48))[1] is None


def test_small_models_name_the_image_of_another_size(images):
    with pytest.raises(ValueError, match=r"00\.png: .*exactly that size"):
        next(data.evaluation_batches(images, size=32))


def test_labels_of_some_images_among_all(tmp_path):
    paths = tuple(tmp_path / f"{k}.png" for k in range(4))
    few = data.ImageSet(tuple(tmp_path / "x" / ".." / f"{k}.png" for k in (2, 0)), np.array([1, 0]), ("a", "b"))
    merged = data.with_labels(data.ImageSet(paths), few)
    assert merged.labels.tolist() == [0, -1, 1, -1]
    assert merged.classes == ("a", "b")


def test_labels_of_unknown_images_are_named(tmp_path):
    paths = tuple(tmp_path / f"{k}.png" for k in range(4))
    few = data.ImageSet((*paths[:1], tmp_path / "7.png", tmp_path / "8.png"), np.array([0, 0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match=r"not among the 4 images: '.*7\.png', '.*8\.png'\. Give the folder") as error:
        data.with_labels(data.ImageSet(paths), few)
    assert "\n" not in str(error.value)


def test_what_training_requires_of_a_set():
    def labelled(*labels, classes=("a", "b", "c")):
        return ImageSet(tuple(Path(f"{k}.png") for k in range(len(labels))), np.array(labels, np.int64), classes)

    good = labelled(0, 1, 2, -1, 2, 1, 0)
    assert data.require_labels(good) is good
    assert data.require_images(good) is good
    assert data.labels_per_class(good) == {"a": 2, "b": 2, "c": 2}
    assert data.labels_per_class(ImageSet(good.paths)) == {}
    with pytest.raises(ValueError, match=r"Classes with fewer than 2 labels: 'a \(1\)', 'c \(0\)'"):
        data.require_labels(labelled(0, 1, 1))
    with pytest.raises(ValueError, match=r"'a \(2\)', 'b \(2\)', 'c \(2\)'"):
        data.require_labels(good, least_per_class=3)
    with pytest.raises(ValueError, match=r"All labels are of 'a', but .* at least 2"):
        data.require_labels(labelled(0, 0, classes=("a",)))
    for none in (labelled(-1, -1), ImageSet(good.paths)):
        with pytest.raises(ValueError, match=r"None of the . images has a label"):
            data.require_labels(none)
    with pytest.raises(ValueError, match="No images are left after dropping copies: there is nothing to train on"):
        data.require_images(good.subset([]), after="dropping copies")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept_and_given_back() -> None:
    def resident() -> float:
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(facts["VmRSS"].split()[0]) / 1024

    data.give_back_freed_memory()  # else what other tests have left serves the 64 MB
    before = resident()
    data.keep_freed_memory()
    np.ones(2**26, dtype=np.uint8)  # 64 MB, freed at once
    kept = resident() - before
    data.give_back_freed_memory()
    assert kept > 60
    assert resident() - before < 10
