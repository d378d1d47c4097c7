"""What the app does with one picture; the drawn pictures."""

from pathlib import Path

import numpy as np
import onnx_files
import pytest
from PIL import Image
from test_export import LABELS, tiny_student

import export
from app import drawings, engine, pictures
from app.engine import Engine, classification
from app.index import Record, open_index
from app.uploads import Refused
from zoo.transforms import read_image


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> export.OnnxModel:
    return export.OnnxModel(tiny_student(tmp_path_factory.getbasetemp()), threads=1)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_classes_are_ranked(model: export.OnnxModel, photo: np.ndarray) -> None:
    ranked, none_likely = Engine(model).classify(photo)
    probabilities = model.classify(photo)[0]
    assert dict(ranked) == {label: float(probabilities[n]) for n, label in enumerate(LABELS)}
    assert [p for _, p in ranked] == sorted(probabilities.tolist(), reverse=True)
    assert none_likely == (probabilities.max() < 0.5)
    assert len(Engine(model).classify(photo, k=2).ranked) == 2


def test_none_is_likely_below_even_odds() -> None:
    labels = ("a", "b", "c")
    assert classification(np.array([0.2, 0.5, 0.3]), labels, engine.NONE_LIKELY).none_likely is False
    found = classification(np.array([0.3, 0.3, 0.4]), labels, engine.NONE_LIKELY, k=3)
    assert found.none_likely is True
    assert [label for label, _ in found.ranked] == ["c", "a", "b"]  # ties keep their order


def test_search_and_facts(model: export.OnnxModel, photo: np.ndarray, tmp_path: Path) -> None:
    index = open_index(tmp_path / "g.sqlite", model=model.fingerprint, dimension=model.feature_width)
    served = Engine(model, index)
    other = 255 - photo
    index.add([Record(name, name, "", b"", served.embed(array)) for name, array in (("a", photo), ("b", other))])
    assert [hit.id for hit in served.search(photo, k=2)] == ["a", "b"]
    assert [hit.id for hit in served.search(other, k=1)] == ["b"]
    facts = served.facts()
    assert facts["facts"]["accuracy"]["top1"] == 0.875
    assert facts["gallery"]["pictures"] == 2
    assert facts["model"]["sha256"] == model.fingerprint
    index.close()
    with pytest.raises(ValueError, match="start the app with --gallery"):
        Engine(model).search(photo)


def test_a_picture_of_a_size_that_a_model_does_not_take_is_refused(model: export.OnnxModel, tmp_path: Path) -> None:
    small = export.OnnxModel(onnx_files.student(tmp_path / "small.onnx", size=32))
    for name, side in (("fits.png", 32), ("large.png", 48)):
        Image.new("RGB", (side, side), (200, 30, 30)).save(tmp_path / name)
    line = r"^large\.png: A model for 32 x 32 images .*, not 48 x 48; resize it first\.$"
    for served in (Engine(small), Engine(model, others=[small])):
        assert len(served.look(tmp_path / "fits.png").inputs) == len(served.models)
        with pytest.raises(Refused, match=line):
            served.look(tmp_path / "large.png")


def test_pictures_that_come_with_the_app() -> None:
    assert len(list(pictures.PICTURES.glob("*/*.jpg"))) == 80
    assert [path.parent.name for path in pictures.examples()] == sorted(drawings.DRAWN)
    for path in pictures.examples():
        drawn = np.asarray(drawings.draw(path.parent.name, 0)).astype(int)
        assert drawn.std() > 20
        assert np.abs(drawn - read_image(path)).mean() < 5  # what JPEG loses
        assert np.abs(drawn - read_image(path.with_name("2.jpg"))).mean() > 15


def test_pictures_are_drawn_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "VARIATIONS", 1)
    drawings.write(tmp_path)
    assert sorted(tmp_path.glob("*/*")) == sorted(tmp_path / name / "1.jpg" for name in drawings.DRAWN)
