"""The filters of Search and Gallery: what they offer, and what is meant by it."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.index import Filter
from app.places import places

pytest.importorskip("gradio")

from app.tabs import search

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def engine_of(folders: dict[str, int], labels: dict[str, int]) -> Any:
    return SimpleNamespace(index=SimpleNamespace(labels=lambda: labels), places=lambda: places(folders))


def test_a_folder_called_any_is_not_every_folder() -> None:
    engine = engine_of({"/p/any": 1, "/p/b": 1}, {"": 1, "x": 1})
    labels, folders = search.choices(engine)
    assert labels == [search.NONE, "x"]
    assert folders == [("any", search.ANY), ("any", "any"), ("b", "b")]
    assert search.where(engine, [], search.ANY) == Filter()
    assert search.where(engine, [search.NONE], "any") == Filter(("",), "/p/any")


def test_the_filters_follow_the_gallery() -> None:
    before, after = engine_of({"/p/a": 1, "/p/b": 1}, {"x": 1, "y": 1}), engine_of({"/p/b": 1, "/p/c": 1}, {"y": 1})
    label, folder = search.refresh(before, ["x", "y"], "a")
    assert (label.value, folder.value) == (["x", "y"], "a")
    label, folder = search.refresh(after, ["x", "y"], "a")
    assert label.value == ["y"]
    assert folder.value == search.ANY
    assert [value for _, value in folder.choices] == [search.ANY, "b", "c"]
    label = search.refresh_labels(after, ["x", "y"])
    assert label.value == ["y"]
    assert [value for _, value in label.choices] == ["y"]
