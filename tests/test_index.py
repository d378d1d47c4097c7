"""Indexes of pictures: one contract for every backend; the file survives kills, damage, full disks."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from milvus_servers import client, milvus_server

from app import sqlite_index
from app.index import DELETED, FileState, Filter, Hit, Index, Item, Record, index_model, open_index
from app.sqlite_index import SqliteIndex

D = 6
MODEL = "f" * 64
WRITER = Path(__file__).with_name("index_writer.py")

# What every backend must do

Open = Callable[..., Index]
BACKENDS = ["sqlite", *(pytest.param(kind, marks=pytest.mark.milvus) for kind in ("milvus-lite", "milvus"))]


@pytest.fixture(params=BACKENDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same index again and again, or another one by its name; all are closed at the end."""
    indexes: list[Index] = []
    collections: set[str] = set()
    place = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]

    def opened(name: str = "pictures", *, dimension: int = D, model: str = MODEL, create: bool = True) -> Index:
        uri = str(tmp_path / f"{name}.sqlite")
        if request.param != "sqlite":
            collections.update((f"{name}_{place}", f"{name}_{place}_files"))
            uri = f"{milvus_server(request.param)}/{name}_{place}"
        indexes.append(open_index(uri, model=model, dimension=dimension, create=create))
        assert index_model(uri) == (model, dimension)
        return indexes[-1]

    yield opened
    for index in indexes:
        index.close()
    if collections:
        with closing(client(request.param)) as asked:
            for name in collections:
                asked.drop_collection(name)


def record(n: int, vector: np.ndarray, *, path: str | None = None, label: str | None = None) -> Record:
    path = f"/pictures/{n % 3}/{n}.jpg" if path is None else path
    return Record(f"id{n}", path, str(n % 3) if label is None else label, b"\xff\xd8 jpeg %d" % n, vector)


def records(vectors: np.ndarray, start: int = 0) -> list[Record]:
    return [record(start + n, vector) for n, vector in enumerate(vectors)]


def directions(count: int, *, seed: int = 0, dimension: int = D) -> np.ndarray:
    """Vectors of very different lengths."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dimension)) * rng.uniform(0.1, 50, (count, 1))
    return vectors.astype(np.float32)


def ranked(query: np.ndarray, kept: list[Record]) -> list[tuple[float, Record]]:
    """The answer, in loops and double precision."""
    found = []
    for item in kept:
        product = sum(float(a) * float(b) for a, b in zip(query, item.vector, strict=True))
        lengths = sum(float(a) ** 2 for a in query) ** 0.5 * sum(float(b) ** 2 for b in item.vector) ** 0.5
        found.append((product / lengths, item))
    return sorted(found, key=lambda pair: -pair[0])


def check(hits: list[Hit], expected: list[tuple[float, Record]], k: int) -> None:
    """The same pictures in the same order; where cosines are within rounding of each other, either may come first."""
    expected = expected[:k]
    assert len(hits) == len(expected)
    cosines = {item.id: cosine for cosine, item in expected}
    np.testing.assert_allclose([hit.score for hit in hits], [cosine for cosine, _ in expected], atol=1e-3)
    assert {hit.id for hit in hits} == set(cosines)
    np.testing.assert_allclose([cosines[hit.id] for hit in hits], [cosine for cosine, _ in expected], atol=1e-3)
    kept = {item.id: item for _, item in expected}
    for hit in hits:
        item = kept[hit.id]
        assert (hit.path, hit.label, hit.thumbnail) == (item.path, item.label, item.thumbnail)


def test_search_equals_sorting(opened: Open) -> None:
    index = opened()
    kept = records(directions(200))
    assert index.add(kept[:100]) == 100
    assert len(index.search(kept[0].vector, 500)) == 100
    assert index.add(kept[100:]) == 100  # after a search
    for seed in range(4):
        query = directions(1, seed=100 + seed)[0]
        check(index.search(query, 17), ranked(query, kept), 17)
        check(index.search(query * 1e-30, 17), ranked(query, kept), 17)
    assert index.search(query, 0) == []
    hit = index.search(kept[7].vector, 1, thumbnails=False)[0]
    assert hit[:3] == ("id7", "/pictures/1/7.jpg", "1")
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert hit.thumbnail == b""


def test_search_with_filters_is_exact_and_never_short(opened: Open) -> None:
    index = opened()
    vectors = directions(400)
    rare = np.argsort(-(vectors @ vectors[0]) / np.linalg.norm(vectors, axis=1))[-12:]  # the farthest from the query
    kept = [record(n, vector, label="rare" if n in rare else str(n % 3)) for n, vector in enumerate(vectors)]
    index.add(kept)
    for where in (
        Filter(labels=("rare",)),
        Filter(labels=("1",)),
        Filter(labels=("1", "rare", "nobody")),
        Filter(folder="/pictures/2"),
        Filter(folder="/pictures/2/"),
        Filter(folder="/pictures"),
        Filter(folder="/"),
        Filter(labels=("0", "rare"), folder="/pictures/0"),
        Filter(labels=("nobody",)),
        Filter(folder="/pict"),
        Filter(folder="pictures"),
    ):
        meant = [
            item
            for item in kept
            if (not where.labels or item.label in where.labels)
            and (not where.folder or item.path.startswith(where.folder.rstrip("/") + "/"))
        ]
        assert index.count(where) == len(meant)
        assert index.items(limit=1000, where=where) == [Item(*item[:3]) for item in meant]
        for k in (1, 10, 300):
            check(index.search(vectors[0], k, where=where), ranked(vectors[0], meant), k)


HOSTILE = [
    "it's", 'a "quoted" one', "back\\slash", "100%", "under_score", "line\nbreak", "tab\there", "' or '1' == '1",
    '" or 1 == 1 or label == "', "{braces} {label}", "%", "_", "\\", "'", '"', "żółć 猫 🐈", " spaces ", "\\n", "a\\",
    "label in ['x']", "$1", ":x", "--", "/*", "; DROP TABLE images", "\u2028", "\x7f\x01",
]  # fmt: skip


def test_names_never_change_the_meaning_of_a_filter(opened: Open) -> None:
    index = opened()
    kept = []
    for n, text in enumerate(HOSTILE):
        folder = "/" + text.replace("/", "-")
        kept.append(
            Record(f"{text}#{n}", f"{folder}/{text.replace('/', '-')}.jpg", text, b"jpeg", directions(1, seed=n)[0])
        )
    assert index.add(kept) == len(kept)
    query = np.ones(D)
    for item in kept:
        label, folder = Filter(labels=(item.label,)), Filter(folder=item.path.rpartition("/")[0])
        for where in (label, folder, Filter(labels=label.labels, folder=folder.folder)):
            assert index.count(where) == 1
            assert [hit.id for hit in index.search(query, 50, where=where)] == [item.id]
            assert [found.id for found in index.items(where=where)] == [item.id]
        assert index.get([item.id]) == [Item(*item[:3])]
        assert index.thumbnail(item.id) == b"jpeg"
    assert index.labels() == dict.fromkeys(sorted(HOSTILE), 1)
    for item in kept:
        assert index.set_label([item.id], item.label + "!") == 1
        assert index.count(Filter(labels=(item.label,))) == 0
    states = {item.path: FileState(1, 2, item.id, item.label, "") for item in kept}
    index.note_files(states)
    assert index.files() == states
    for left, item in reversed(list(enumerate(kept))):
        if left % 2:
            assert index.delete([item.id]) == 1
        else:
            index.forget_files([item.path])
        assert index.count() == left


def test_adding_again_and_deleting(opened: Open) -> None:
    index = opened()
    kept = records(np.eye(D, dtype=np.float32))
    assert index.add(kept) == D
    assert index.add([kept[0]._replace(label="another")]) == 0
    assert index.add([record(9, np.ones(D)), record(9, np.ones(D)), kept[1]]) == 1  # the same picture twice at once
    assert index.count() == D + 1
    assert index.get(["id0"])[0].label == "0"
    assert index.delete(["id0", "id3", "nobody", "id9", "id0"]) == 3
    assert index.count() == 4
    assert {hit.id for hit in index.search(np.eye(D)[0], 10)} == {"id1", "id2", "id4", "id5"}
    assert index.labels() == {"1": 2, "2": 2}
    assert index.facts()["pictures"] == 4
    assert index.add([kept[0]]) == 1
    check(index.search(np.eye(D)[0], 1), [(1.0, kept[0])], 1)
    assert index.delete([]) == index.add([]) == 0


def test_pages_labels_and_folders(opened: Open) -> None:
    index = opened()
    kept = [*records(directions(10)), record(20, np.ones(D), path="upload/cat.jpg", label="")]
    index.add(kept[:4])
    index.add(kept[4:])
    assert index.items(limit=100) == [Item(*item[:3]) for item in kept]
    assert index.items(offset=3, limit=4) == [Item(*item[:3]) for item in kept[3:7]]
    assert index.items(offset=11) == index.items(limit=0) == []
    assert index.get(["id20", "nobody", "id2", "id20"]) == [Item(*kept[n][:3]) for n in (10, 2, 10)]
    assert index.thumbnail("id4") == kept[4].thumbnail
    assert index.thumbnail("nobody") is None
    assert index.labels() == {"": 1, "0": 4, "1": 3, "2": 3}
    assert index.folders() == {"/pictures/0": 4, "/pictures/1": 3, "/pictures/2": 3, "upload": 1}
    assert index.set_label(["id20", "id0", "nobody"], "cat") == 2
    assert index.set_label(["id1"], "") == 1
    assert index.labels() == {"": 1, "0": 3, "1": 2, "2": 3, "cat": 2}
    assert {hit.id for hit in index.search(np.ones(D), 9, where=Filter(labels=("cat",)))} == {"id0", "id20"}
    assert [item.id for item in index.items()] == [item.id for item in kept]  # a label moves nothing
    facts = index.facts()
    assert (facts["pictures"], facts["labels"], facts["dimension"], facts["model"]) == (11, 4, D, MODEL)
    assert all(isinstance(value, str | int | float) for value in facts.values())


def test_vectors_are_of_unit_length_and_in_order(opened: Open) -> None:
    index = opened()
    vectors = directions(50)
    index.add(records(vectors))
    index.delete(["id7", "id30"])
    ids, unit = index.vectors()
    left = [n for n in range(50) if n not in (7, 30)]
    assert ids == [f"id{n}" for n in left]
    assert unit.dtype == np.float32
    wanted = vectors[left].astype(np.float64)
    np.testing.assert_allclose(unit, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        unit[0] = 0
    index.add(records(vectors[:1], start=90))
    index.delete(["id1"])
    assert unit.shape == (48, D)  # what was handed out stays as it is
    np.testing.assert_allclose(unit[1], wanted[1] / np.linalg.norm(wanted[1]), atol=1e-3)
    assert index.vectors()[0] == ["id0", *(f"id{n}" for n in left[2:]), "id90"]
    some = index.vectors_of(["id9", "id7", "id2", "id9"])
    assert some.dtype == np.float32
    np.testing.assert_allclose(some, unit[[left.index(n) for n in (9, 2, 9)]], atol=1e-6)
    assert index.vectors_of(["id7"]).shape == index.vectors_of([]).shape == (0, D)


def test_two_at_once_see_each_other(opened: Open) -> None:
    one, other = opened(), opened()
    kept = records(np.eye(D, dtype=np.float32))
    versions = [one.version()]
    one.add(kept[:4])
    assert other.version() != versions[-1]
    versions.append(other.version())
    check(other.search(np.eye(D)[2], 1), [(1.0, kept[2])], 1)
    other.delete(["id2"])
    versions.append(one.version())
    assert "id2" not in {hit.id for hit in one.search(np.eye(D)[2], 9)}
    other.add(kept[4:])
    versions.append(one.version())
    assert one.count() == 5
    one.set_label(["id4"], "cat")
    versions.append(other.version())
    assert [hit.id for hit in other.search(np.ones(D), 9, where=Filter(labels=("cat",)))] == ["id4"]
    assert len(set(versions)) == 5
    assert one.version() == other.version() == other.version()
    again = opened()
    assert again.vectors()[0] == one.vectors()[0] == ["id0", "id1", "id3", "id4", "id5"]


def test_nothing_yet(opened: Open) -> None:
    index = opened()
    assert index.search(np.ones(D), 5) == []
    assert index.search(np.ones(D), 5, where=Filter(labels=("x",), folder="/x")) == []
    assert (index.count(), index.labels(), index.folders(), index.items(), index.files()) == (0, {}, {}, [], {})
    ids, unit = index.vectors()
    assert ids == []
    assert unit.shape == (0, D)


def test_vectors_without_direction_are_refused(opened: Open) -> None:
    index = opened()
    good = records(np.eye(D, dtype=np.float32))
    for vector in (
        np.ones(D + 1),
        np.zeros(D),
        np.full(D, np.nan),
        np.array([np.inf] + [1] * (D - 1)),
        np.ones((1, D)),
    ):
        with pytest.raises(ValueError, match=r"bad\.jpg: .*vector"):
            index.add([*good, Record("bad", "bad.jpg", "", b"", vector)])
        with pytest.raises(ValueError, match="The query"):
            index.search(vector)
    for text in ("\udcff", "a\0b"):
        for bad in (good[0]._replace(id=text), good[0]._replace(path=text), good[0]._replace(label=text)):
            with pytest.raises(ValueError, match="cannot be kept"):
                index.add([good[1], bad])
    assert index.count() == 0  # all or nothing
    tiny, huge = np.full(D, 1e-40, np.float32), np.full(D, 3e38, np.float32)
    assert index.add([record(0, tiny), record(1, huge), record(2, -huge)]) == 3
    assert [round(hit.score, 3) for hit in index.search(np.ones(D))] == [1, 1, -1]


def test_another_model_is_refused_with_the_way_out(opened: Open) -> None:
    opened()
    with pytest.raises(ValueError, match=r"another model \(ffffffffffff, 6-d\) than this one \(eeeeeeeeeeee, 6-d\)"):
        opened(model="e" * 64)
    with pytest.raises(ValueError, match=r"another model .*7-d\); use the model .* or delete it") as told:
        opened(dimension=D + 1)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="no such index"):
        opened("absent", create=False)
    assert opened(create=False).count() == 0


def state(id_: str | None, label: str = "", problem: str = "") -> FileState:
    return FileState(1000, 1_700_000_000_123_456_789, id_, label, problem)


def test_pictures_follow_their_files(opened: Open) -> None:
    index = opened()
    index.add(
        [
            record(0, np.ones(D), path="/a/0.jpg", label="a"),
            record(1, np.ones(D), path="/a/1.jpg", label="a"),
            record(2, np.ones(D), path="upload/2.jpg", label=""),
            record(3, np.ones(D), path="/never/noted.jpg", label=""),
        ]
    )
    noted = {"/a/0.jpg": state("id0", "a"), "/a/1.jpg": state("id1", "a"), "/a/x.jpg": state(None, "a", "damaged")}
    copies = {"/c/0.jpg": state("id0", "c"), "/b/0.jpg": state("id0", "b"), "/b/2.jpg": state("id2", "b", DELETED)}
    index.note_files(noted)
    index.note_files(copies)
    assert index.files() == noted | copies
    assert index.facts()["unreadable_files"] == 1
    assert index.count() == 4
    assert sorted(index.unnoted()) == ["/never/noted.jpg", "upload/2.jpg"]
    index.forget_files(["/a/0.jpg", "/b/2.jpg", "/nobody.jpg"])
    assert index.get(["id0", "id2"]) == [Item("id0", "/b/0.jpg", "b"), Item("id2", "upload/2.jpg", "")]
    index.set_label(["id0"], "mine")
    index.note_files({"/b/0.jpg": state("id9", "b")})  # other bytes: the picture is in /c/0.jpg now, its label stays
    assert index.get(["id0"]) == [Item("id0", "/c/0.jpg", "mine")]
    assert index.count(Filter(folder="/c")) == 1
    index.forget_files(["/c/0.jpg", "/a/1.jpg"])
    assert [item.id for item in index.items()] == ["id2", "id3"]
    assert set(index.files()) == {"/a/x.jpg", "/b/0.jpg"}


def test_a_picture_from_the_page_takes_the_name_of_a_file_that_holds_it(opened: Open) -> None:
    index = opened()
    index.add([record(0, np.ones(D), path="upload/0.jpg", label=""), record(1, np.ones(D), path="upload/1.jpg")])
    index.note_files({f"/{folder}/{n}.jpg": state(f"id{n}", "cats") for folder in "ba" for n in range(2)})
    assert index.items() == [Item("id0", "/a/0.jpg", "cats"), Item("id1", "/a/1.jpg", "1")]
    assert index.count(Filter(folder="/a")) == 2
    index.forget_files(["/a/0.jpg"])
    assert index.get(["id0"]) == [Item("id0", "/b/0.jpg", "cats")]


def test_a_deleted_picture_does_not_come_back_from_its_file(opened: Open) -> None:
    index = opened()
    index.add([record(0, np.ones(D), path="/a/0.jpg"), record(1, np.ones(D), path="/a/1.jpg")])
    index.note_files({"/a/0.jpg": state("id0"), "/copy.jpg": state("id0"), "/a/1.jpg": state("id1")})
    assert index.delete(["id0"]) == 1
    assert index.files() == {
        "/a/0.jpg": state("id0", problem=DELETED),
        "/copy.jpg": state("id0", problem=DELETED),
        "/a/1.jpg": state("id1"),
    }
    assert index.facts()["unreadable_files"] == 0
    index.forget_files(["/a/0.jpg"])  # the copy was deleted too: it does not take over
    assert [item.id for item in index.items()] == ["id1"]


# The embedded one


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SqliteIndex]:
    with_file = SqliteIndex(tmp_path / "g.sqlite", model=MODEL, dimension=D)
    yield with_file
    with_file.close()


def writer(path: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(path), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("work", ["add", "delete"])
def test_acknowledged_is_kept_when_the_process_is_killed(tmp_path: Path, work: str) -> None:
    path, rng = tmp_path / "g.sqlite", np.random.default_rng(5)
    acknowledged: set[int] = set()
    if work == "delete":
        with_all = SqliteIndex(path, model="m", dimension=4)
        with_all.add([Record(f"id{n}", f"/{n}.jpg", "", b"", np.ones(4)) for n in range(20_000)])
        with_all.close()
    for attempt in range(4):
        child = writer(path, work, attempt * 5000)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(int(rng.integers(1, 40)))]
        time.sleep(rng.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        rest, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors
        for line in "".join([*lines, rest]).splitlines(keepends=True):
            if line.endswith("\n"):
                acknowledged |= set(map(int, line.split()))
        index = open_index(path, model="m", dimension=4)
        there = {int(item.id[2:]) for item in index.items(limit=100_000)}
        assert len(index.search(np.ones(4), 100_000, thumbnails=False)) == index.count() == len(there)
        index.close()
        if work == "add":
            assert acknowledged <= there
            assert len(there - acknowledged) <= 7 * (attempt + 1)  # at most the batch under way
        else:
            assert not acknowledged & there
            assert 20_000 - len(there) - len(acknowledged) <= 7 * (attempt + 1)
    assert len(acknowledged) > 50


def test_many_read_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "g.sqlite"
    SqliteIndex(path, model="m", dimension=4).close()
    readers = [writer(path, "read") for _ in range(3)]
    first = [child.stdout.readline() for child in readers if child.stdout is not None]
    assert first == ["0\n"] * 3  # they read before there was anything
    writing = writer(path, "add", 0, 60)
    for child in (writing, *readers):
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        if child is not writing:
            counts = list(map(int, out.split()))
            assert counts == sorted(counts)
            assert counts[-1] == 60 * 7


def test_several_make_and_fill_one_file(tmp_path: Path) -> None:
    children = [writer(tmp_path / "new" / "g.sqlite", "add", start, 20) for start in (0, 70, 140)]
    for child in children:
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        assert len(out.splitlines()) == 20
    index = open_index(tmp_path / "new" / "g.sqlite", model="m", dimension=4)
    assert index.count() == 3 * 20 * 7 - 2 * 70  # the second and third began within the first's and second's numbers
    index.close()


def test_threads_share_it(index: SqliteIndex) -> None:
    vectors, errors = directions(600), []

    def adding(start: int) -> None:
        for n in range(start, start + 200, 5):
            index.add(records(vectors[n : n + 5], start=n))

    def searching() -> None:
        seen = 0
        while seen < 600:
            hits = index.search(vectors[0], 1000)
            if len(hits) < seen or len({hit.id for hit in hits}) < len(hits):
                errors.append(len(hits))
            seen = len(hits)

    threads = [threading.Thread(target=adding, args=(start,)) for start in (0, 200, 400)]
    threads += [threading.Thread(target=searching) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    check(index.search(vectors[5], 20), ranked(vectors[5], records(vectors)), 20)


def test_additions_are_taken_in_without_reading_the_rest_again(
    index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = []
    made = sqlite_index._room
    monkeypatch.setattr(sqlite_index, "_room", lambda rows, room, width: rooms.append(room) or made(rows, room, width))
    other = SqliteIndex(index.path, model=MODEL, dimension=D)
    vectors = directions(8000)
    for start in range(0, 8000, 32):
        index.add(records(vectors[start : start + 32], start=start))
        assert index.search(vectors[start], 1)[0].id == f"id{start}"
        if start % 256 == 0:
            assert other.search(vectors[start], 1)[0].id == f"id{start}"
            other.delete([f"id{start}"])
    assert len(rooms) <= 2 * 8  # it grew by half each time: 250 additions, few copies
    left = [item for n, item in enumerate(records(vectors)) if n % 256]
    for each in (index, other):
        check(each.search(vectors[0], 10), ranked(vectors[0], left), 10)
    other.close()


def test_who_missed_many_changes_reads_anew(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_index, "_CHANGES", 3)
    other = SqliteIndex(index.path, model=MODEL, dimension=D)
    kept = records(directions(40))
    index.add(kept)
    other.search(np.ones(D))
    for n in range(10):
        index.delete([f"id{n}"])
        index.set_label([f"id{n + 10}"], "late")
    kept = [item._replace(label="late" if n < 20 else item.label) for n, item in enumerate(kept) if n >= 10]
    check(other.search(np.ones(D), 40), ranked(np.ones(D), kept), 40)
    where = Filter(labels=("late",), folder="/pictures/1")
    check(other.search(np.ones(D), 40, where=where), ranked(np.ones(D), kept[:10][0::3]), 40)
    other.close()


def test_the_dead_are_cleared_away(index: SqliteIndex) -> None:
    kept = records(directions(4000))
    index.add(kept)
    index.search(np.ones(D))
    for start in range(0, 3000, 100):
        index.delete([f"id{n}" for n in range(start, start + 100)])
        check(index.search(np.ones(D), 5), ranked(np.ones(D), kept[start + 100 :]), 5)
    assert index._rows is not None
    assert index._rows.used < 2600
    index.add(records(directions(10, seed=3), start=5000))
    assert len(index.search(np.ones(D), 9999)) == index.count() == 1010


@pytest.mark.parametrize(("kept_as", "tolerance"), [("fp16", 1e-3), ("fp32", 1e-6)])
def test_half_precision_finds_the_same(tmp_path: Path, kept_as: str, tolerance: float) -> None:
    vectors = directions(2000, dimension=256) * 1e5  # far beyond what fp16 can hold, had they not unit length
    index = open_index(tmp_path / "g.sqlite", model=MODEL, dimension=256, vectors=kept_as)
    index.add(records(vectors))
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found, worst = 0, 0.0
    for query in directions(50, seed=9, dimension=256):
        cosines = exact @ (query / np.linalg.norm(query))
        best = np.argsort(-cosines)[:10]
        hits = index.search(query, 10)
        found += len({hit.id for hit in hits} & {f"id{n}" for n in best})
        worst = max(worst, *(abs(hit.score - cosines[int(hit.id[2:])]) for hit in hits))
    assert worst < tolerance
    assert found >= 0.99 * 500
    assert index.facts()["kept_as"] == f"SQLite, vectors in {kept_as}"
    index.close()
    again = open_index(tmp_path / "g.sqlite", model=MODEL, dimension=256)  # keeps its own way
    assert again.facts()["kept_as"] == f"SQLite, vectors in {kept_as}"
    again.close()


def test_what_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("hello " * 500)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE things (a)")
    other.close()
    with sqlite3.connect(tmp_path / "older.sqlite") as older:
        older.execute("CREATE TABLE meta (key, value)")
        older.execute("INSERT INTO meta VALUES ('format', 'simclrv2-gallery-1')")
    older.close()
    (tmp_path / "file").write_text("")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, reason in (
        ("text.sqlite", "not an index of pictures"),
        ("other.sqlite", "not an index of pictures"),
        ("older.sqlite", r"older version \(simclrv2-gallery-1\); delete it"),
        (".", "a folder, not an index"),
        ("file/g.sqlite", "cannot be made"),
    ):
        for use in (lambda path: open_index(path, model=MODEL, dimension=D), index_model):
            if use is index_model and name.startswith("file/"):
                continue
            with pytest.raises(ValueError, match=reason) as told:
                use(tmp_path / name)
            assert "\n" not in str(told.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before  # not even their way of keeping a log
    with pytest.raises(ValueError, match="no such index"):
        index_model(tmp_path / "absent.sqlite")
    (tmp_path / "empty.sqlite").write_bytes(b"")
    with pytest.raises(ValueError, match="not an index of pictures"):
        open_index(tmp_path / "empty.sqlite", model=MODEL, dimension=D, create=False)
    with pytest.raises(ValueError, match="fp16 or fp32, not 'int8'"):
        open_index(tmp_path / "new.sqlite", model=MODEL, dimension=D, vectors="int8")
    with pytest.raises(ValueError, match="ftp://x/y: "):
        open_index("ftp://x/y", model=MODEL, dimension=D)
    assert not (tmp_path / "new.sqlite").exists()


def test_damage_is_told_in_one_line(index: SqliteIndex) -> None:
    index.add(records(directions(3000)))
    index.close()
    whole, rng = index.path.read_bytes(), np.random.default_rng(1)
    told: list[str] = []
    for trial in range(30):
        spoilt = bytearray(whole)
        if trial % 2:
            del spoilt[int(rng.integers(1, len(whole))) :]
        else:
            start = int(rng.integers(0, len(whole)))
            spoilt[start : start + 20_000] = rng.bytes(len(spoilt[start : start + 20_000]))
        index.path.write_bytes(spoilt)
        try:
            with closing(open_index(index.path, model=MODEL, dimension=D)) as again:
                assert len(again.search(np.ones(D), 10)) == 10
        except ValueError as error:
            told.append(str(error))
    assert all(line.startswith(f"{index.path}: ") and "\n" not in line for line in told)
    assert len(told) > 15


def test_spoilt_vectors_are_noticed(index: SqliteIndex) -> None:
    index.add(records(directions(10)))
    for blob, reason in (
        (b"\0" * 2 * D, "vectors are spoilt"),
        (b"\xff" * 2 * D, "vectors are spoilt"),
        (b"", "missing or cut"),
    ):
        index._database.execute("UPDATE vectors SET vector = ? WHERE number = 4", (blob,))
        with pytest.raises(ValueError, match=reason):
            index.search(np.ones(D))


def test_a_full_disk_loses_nothing(index: SqliteIndex) -> None:
    kept = records(directions(20))
    index.add(kept)
    pages = index._database.execute("PRAGMA page_count").fetchone()[0]
    index._database.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(ValueError, match=r"g\.sqlite: the disk is full; nothing of this was kept"):
        index.add([Record("big", "/big.jpg", "", os.urandom(100_000), np.ones(D))])
    assert index.count() == 20
    check(index.search(np.ones(D), 30), ranked(np.ones(D), kept), 30)
    index._database.execute("PRAGMA max_page_count = 1000000")
    assert index.add([Record("big", "/big.jpg", "", os.urandom(100_000), np.ones(D))]) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user to become")
@pytest.mark.parametrize("while_open", [False, True])
def test_who_may_only_read_reads(while_open: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place) / "g.sqlite"
        index = SqliteIndex(path, model="m", dimension=4)
        index.add([Record(f"id{n}", f"/{n}.jpg", "", b"", np.ones(4)) for n in range(420)])
        if not while_open:
            index.close()
        out, errors = writer(path, "read only").communicate(timeout=60)
        assert out.splitlines() == ["420", f"{path}: may only be read here; nothing was changed."], errors
        index.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user to become")
def test_who_may_only_read_sees_what_a_writer_did_that_has_closed() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place) / "g.sqlite"
        with closing(SqliteIndex(path, model="m", dimension=4)) as index:
            index.add([Record(f"id{n}", f"/{n}.jpg", "", b"x", np.ones(4)) for n in range(200)])
        reader = writer(path, "read when asked")
        assert reader.stdin is not None
        assert reader.stdout is not None

        def asked() -> str:
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline()

        assert asked() == "200 200 2\n"
        with closing(SqliteIndex(path, model="m", dimension=4)) as index:
            index.delete([f"id{n}" for n in range(150)])
            index.add([Record(f"new{n}", f"/new/{n}.jpg", "", b"x" * 2000, np.ones(4)) for n in range(600)])
        assert asked() == "650 650 1\n"
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        SqliteIndex(path, model="another", dimension=4).close()
        reader.stdin.write("\n")
        _, errors = reader.communicate(timeout=60)
        assert "made with another model" in errors.splitlines()[-1]


def test_closed_is_closed(index: SqliteIndex) -> None:
    index.close()
    index.close()
    for use in (index.count, index.files, lambda: index.search(np.ones(D)), lambda: index.delete(["x"])):
        with pytest.raises(ValueError, match=r"g\.sqlite: is closed\."):
            use()


def test_wide_vectors_leave_no_page_half_empty(tmp_path: Path) -> None:
    vectors = directions(200, dimension=2048)
    with closing(SqliteIndex(tmp_path / "wide.sqlite", model=MODEL, dimension=2048)) as index:
        index.add(records(vectors))
    assert (tmp_path / "wide.sqlite").stat().st_size < 1.7 * vectors.size * 2  # it was 2.1 with pages of 8,192 bytes
