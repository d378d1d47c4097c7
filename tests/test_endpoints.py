"""What programs can call: each name with its answer, as gradio_client gets it from the served page."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_app import Served, handle, start, stop
from test_app import pytestmark as pytestmark

import export
from app.endpoints import EDITING, OPEN
from app.engine import bundled_student
from training import data


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Nine pictures of three kinds, two of them alike, and one in a folder of its own that is added later."""
    base = tmp_path_factory.mktemp("endpoints")
    rng = np.random.default_rng(0)
    for n in range(9):
        folder = base / "gallery" / f"kind {n % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((64, 64)).save(folder / f"{n}.png")
    Image.open(base / "gallery" / "kind 0" / "0.png").save(base / "gallery" / "kind 0" / "again.webp", lossless=True)
    (base / "more").mkdir()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(base / "more" / "new.png")
    running = start(base, base / "gallery", model=bundled_student())
    yield running
    assert stop(running) == 130
    assert not running.log.exists(), f"asked for: {running.log.read_text()}"


@pytest.fixture(scope="module")
def call(served: Served) -> Iterator[Any]:
    from gradio_client import Client

    connected = Client(served.url, verbose=False)
    yield lambda name, *given, **named: connected.predict(*given, api_name=f"/{name}", **named)
    connected.close()


def ids(call: Any) -> dict[str, str]:
    """file -> id of the gallery."""
    return {picture["file"]: picture["id"] for picture in call("gallery", limit=1000)["pictures"]}


def test_the_names_are_these(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/config", timeout=60) as answer:
        config = json.load(answer)
    public = [each["api_name"] for each in config["dependencies"] if each["api_visibility"] == "public"]
    assert public == [*OPEN, *EDITING]


def test_classify(call: Any, served: Served) -> None:
    picture = served.gallery / "kind 0" / "0.png"
    found = call("classify", handle(picture), k=2)
    model = export.OnnxModel(served.model)
    probabilities = model.classify(picture)[0]
    order = np.argsort(-probabilities)[:2]
    assert [each["label"] for each in found["predictions"]] == [model.labels[row] for row in order]
    assert [each["probability"] for each in found["predictions"]] == pytest.approx(probabilities[order], abs=1e-5)
    assert found["none_likely"] == bool(probabilities.max() < 0.5)
    assert found["model"] == served.model.stem
    with pytest.raises(Exception, match="No model is called 'other'"):
        call("classify", handle(picture), model="other")
    with pytest.raises(Exception, match="No picture was given"):
        call("classify", None)


def test_search_with_filters(call: Any, served: Served) -> None:
    picture = served.gallery / "kind 2" / "5.png"
    paths = sorted(path for path in served.gallery.glob("*/*.*"))
    vectors = export.OnnxModel(served.model).embed(paths).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = dict(zip(paths, vectors @ vectors[paths.index(picture)], strict=True))
    wanted = sorted(cosines, key=lambda path: -cosines[path])
    found = call("search", handle(picture), k=4)
    assert [served.gallery / hit["file"] for hit in found] == wanted[:4]
    assert [hit["score"] for hit in found] == pytest.approx([cosines[path] for path in wanted[:4]], abs=1e-3)
    few = call("search", handle(picture), k=4, label="kind 1")
    assert [served.gallery / hit["file"] for hit in few] == [path for path in wanted if path.parent.name == "kind 1"]
    assert call("search", handle(picture), k=4, folder="kind 1") == few
    with pytest.raises(Exception, match="No folder 'kind 9'"):
        call("search", handle(picture), folder="kind 9")
    assert call("gallery")["count"] == 10  # what is asked is not kept


def test_similar_leaves_out_what_was_given(call: Any) -> None:
    known = ids(call)
    found = call("similar", [known["kind 0/0.png"]], k=3)
    assert found[0]["file"] == "kind 0/again.webp"
    assert len(call("similar", list(known.values())[:4], k=60)) == 6
    for bad in (["f" * 64], "text", [1]):
        with pytest.raises(Exception, match=r"no longer in the gallery|list of texts"):
            call("similar", bad)


def test_embed(call: Any, served: Served) -> None:
    picture = served.gallery / "kind 1" / "1.png"
    wanted = export.OnnxModel(served.model).embed(picture)[0]
    np.testing.assert_allclose(call("embed", handle(picture)), wanted, rtol=1e-4, atol=1e-5)


def test_teach(call: Any, served: Served) -> None:
    known = ids(call)
    examples = {name: [known[f"kind {n}/{file}.png"] for file in (n, n + 3)] for n, name in enumerate("abc")}
    found = call("teach", examples, handle(served.gallery / "kind 0" / "0.png"))
    assert found["classes"] == ["a", "b", "c"]
    assert found["predictions"][0]["label"] == "a"
    assert sum(each["probability"] for each in found["predictions"]) == pytest.approx(1, abs=1e-4)
    assert 0 <= found["leave_one_out_accuracy"] <= 1
    assert "predictions" not in call("teach", examples, None)
    for bad in ({"a": ["f" * 64], "b": ["e" * 64]}, {"a": [known["kind 0/0.png"]]}, [1]):
        with pytest.raises(Exception, match=r"not in the gallery|Teach 2 to 50 classes|as \{"):
            call("teach", bad, None)


def test_map_duplicates_outliers(call: Any) -> None:
    points = call("map", "pca")
    assert {point["file"] for point in points} == set(ids(call))
    assert all(-1 <= point[axis] <= 1 for point in points for axis in "xy")
    assert [{item["file"] for item in group} for group in call("duplicates")] == [{"kind 0/0.png", "kind 0/again.webp"}]
    odd = call("outliers", 3)
    assert [each["score"] for each in odd] == sorted((each["score"] for each in odd), reverse=True)
    assert "kind 0/0.png" not in [each["file"] for each in odd[:1]]


def test_about(call: Any, served: Served) -> None:
    (facts,) = call("about").values()
    assert facts["model"]["sha256"] == export.OnnxModel(served.model).fingerprint
    assert facts["gallery"]["pictures"] == 10
    assert str(served.gallery) not in json.dumps(facts)


def test_the_gallery_takes_and_gives(call: Any, served: Served) -> None:
    new = served.gallery.parent / "more" / "new.png"
    added = call("gallery_add", handle(new), "fresh")
    assert added["added"] == 1
    assert call("gallery_add", handle(new), "fresh")["added"] == 0
    assert call("gallery", label="fresh")["pictures"] == [{"file": "new.png", "label": "fresh", "id": added["id"]}]
    assert call("gallery_delete", [added["id"], "f" * 64]) == {"deleted": 1}
    assert call("gallery_add_folder", str(new.parent))["embedded"] == 1
    assert call("gallery")["count"] == 11
    assert call("gallery_delete", [added["id"]]) == {"deleted": 1}
    for folder, told in (("/nowhere", "no such folder on the machine"), ("", "Name a folder of this machine")):
        with pytest.raises(Exception, match=told):
            call("gallery_add_folder", folder)


def test_labels_are_written_for_training(call: Any, served: Served) -> None:
    table = served.gallery.parent / "labels.csv"
    first = call("label_next", 3)
    assert len({each["id"] for each in first}) == 3
    assert call("label", first[0]["id"], "cat") == {"labels": 1}
    assert call("label", first[1]["id"], "dog") == {"labels": 2}
    assert [each["id"] for each in call("gallery", label="dog")["pictures"]] == [first[1]["id"]]
    assert not {first[0]["id"], first[1]["id"]} & {each["id"] for each in call("label_next", 3)}
    read = data.from_csv(table)
    assert [path.relative_to(served.gallery).as_posix() for path in read.paths] == [each["file"] for each in first[:2]]
    assert [read.classes[number] for number in read.labels] == ["cat", "dog"]
    with pytest.raises(Exception, match="no name of a class"):
        call("label", first[2]["id"], " ")
