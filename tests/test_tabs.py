"""Tabs without a browser: names that Label offers, people who label at the same time, whom Stop stops, searches."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_labelling import engine_of

from app import labelling
from app.access import access_for
from app.places import places

pytest.importorskip("gradio")

import gradio as gr

from app.tabs import gallery as gallery_tab
from app.tabs import label as label_tab
from app.tabs import search as search_tab

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Gradio makes event loops for a page and closes none
]


def made_by(build: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a tab's ``build`` returns, and the functions of its events by name."""
    with gr.Blocks(analytics_enabled=False) as page:
        begin = build()
    return begin, {getattr(each.fn, "__name__", ""): each.fn for each in page.fns.values()}


class Page:
    """A visitor's tab Label."""

    def __init__(self, engine: Any, table: Path) -> None:
        (begin, _, _), self._made = made_by(lambda: label_tab.build(engine, table))
        self.work, self.shown, _, self.note = begin(label_tab.Work())

    def click(self, action: str, name: str = "") -> None:
        event = SimpleNamespace(_data={"action": action, "id": name})
        self.work, self.shown, _, self.note = self._made["click"](self.work, event)

    def add(self, name: str) -> None:
        self.work, self.shown, _, self.note, _ = self._made["name_class"](self.work, name)

    def buttons(self) -> list[str]:
        parts = self.shown.split('data-action="label" data-id="')[1:]
        return [part.partition('"')[0] for part in parts]


def gallery(labels: tuple[str, ...] = ()) -> Any:
    engine = engine_of(np.eye(3, dtype=np.float32), [f"/p/{row}.jpg" for row in range(3)])
    engine.said = {}
    engine.model.labels = labels
    engine.index.set_label = lambda ids, label: engine.said.update(dict.fromkeys(ids, label))
    engine.index.thumbnail = lambda id_: b""
    return engine


def test_of_many_names_the_most_used_are_shown_and_all_can_be_given(tmp_path: Path) -> None:
    names, table = tuple(f"kind {row}" for row in range(1000)), tmp_path / "labels.csv"
    table.write_text("path,label\n/q/a.jpg,kind 990\n/q/b.jpg,kind 991\n/q/c.jpg,kind 991\n")
    page = Page(gallery(names), table)
    assert page.buttons() == ["kind 991", "kind 990", *names[:98]]
    assert "900 more labels are not shown; write one below." in page.shown
    page.add("kind 500")
    assert page.buttons()[:2] == ["kind 500", "kind 991"]
    page.add("new")
    assert page.buttons()[:2] == ["new", "kind 500"]
    page.click("label", "kind 500")
    assert page.buttons()[:2] == ["new", "kind 500"]  # every key keeps its meaning
    assert list(labelling.read_labels(table).values())[-1] == "kind 500"


def test_few_names_stay_in_the_order_of_the_model(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n/q/a.jpg,b\n")
    page = Page(gallery(("a", "b", "c")), table)
    assert page.buttons() == ["a", "b", "c"]
    assert "not shown" not in page.shown


def test_a_click_on_a_page_that_was_forgotten_begins_anew(tmp_path: Path) -> None:
    """After a night the server knows no round of this page: nothing is labelled, and the page says nothing untrue."""
    table = tmp_path / "labels.csv"
    page = Page(gallery(labels=("cat", "dog")), table)
    before = page.shown
    page.work = label_tab.Work()
    page.click("label", "cat")
    assert page.shown == before
    assert not table.exists()
    page.work = label_tab.Work()
    page.add("lion")
    assert page.buttons() == ["lion", "cat", "dog"]
    page.click("label", "cat")
    assert list(labelling.read_labels(table).values()) == ["cat"]


def test_deleting_takes_another_button_than_asking() -> None:
    engine = gallery()
    engine.index.labels, deleted = dict, []
    engine.index.delete = lambda ids: deleted.extend(ids) or len(ids)
    _, made = made_by(lambda: gallery_tab.build(engine))

    def click(state: gallery_tab.State, action: str) -> gallery_tab.State:
        return made["click"](state, SimpleNamespace(_data={"action": action, "id": ""}))[0]

    state = click(click(gallery_tab.State(chosen=("id0", "id2")), "delete"), "delete")  # a double click
    assert (deleted, state.sure) == ([], True)
    assert click(gallery_tab.State(chosen=("id0",)), "really").chosen == ("id0",)  # nobody was asked
    assert deleted == []
    assert click(state, "really").chosen == ()
    assert deleted == ["id0", "id2"]


def test_numbers_of_classes_are_no_names(tmp_path: Path) -> None:
    engine = gallery()
    engine.labels_of = lambda model=0: ("class 0", "class 1")
    page = Page(engine, tmp_path / "labels.csv")
    assert page.buttons() == []
    page.add("cat")
    assert page.buttons() == ["cat"]


def test_two_people_leave_each_others_labels(tmp_path: Path) -> None:
    engine, table = gallery(("cat", "dog")), tmp_path / "labels.csv"
    one, two = Page(engine, table), Page(engine, table)
    queue = one.work.queue
    assert queue == two.work.queue
    one.click("label", "cat")
    two.click("label", "dog")
    assert f"says {'cat'!r} of it by now" in two.note.replace("&#x27;", "'")
    assert (two.work.at, two.work.done) == (1, ())
    two.click("undo")
    assert list(labelling.read_labels(table).values()) == ["cat"]
    assert engine.said == {queue[0]: "cat"}
    path = next(iter(labelling.read_labels(table)))
    labelling.put_label(table, path, "dog")
    one.click("undo")
    assert f"says {'dog'!r} of it by now" in one.note.replace("&#x27;", "'")
    assert (one.work.at, one.work.done) == (0, ())
    assert labelling.read_labels(table) == {path: "dog"}


def test_stop_stops_ones_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = SimpleNamespace(index=SimpleNamespace(labels=lambda: {}), model=None, places=lambda: places(()))
    _, made = made_by(lambda: gallery_tab.build(engine))
    one, two = (SimpleNamespace(session_hash=name) for name in ("one", "two"))

    def add(visitor: Any, *, meanwhile: Callable[[], None]) -> str:
        def embed(paths: Any, model: Any, index: Any, *, progress: Any) -> Any:
            progress(1, 3)
            meanwhile()
            progress(2, 3)
            return SimpleNamespace(embedded=3, unchanged=0, unreadable={})

        monkeypatch.setattr(gallery_tab, "embed_paths", embed)
        return str(made["add_folder"](str(tmp_path), visitor, lambda *done, **said: None))

    def another_begins() -> None:
        made["stop_adding"](one)
        assert "3 pictures added" in add(two, meanwhile=lambda: None)

    assert "3 pictures added" in add(one, meanwhile=lambda: made["stop_adding"](two))
    assert "Stopped" in add(one, meanwhile=another_begins)
    assert "3 pictures added" in add(one, meanwhile=lambda: None)


def test_another_tab_leaves_nothing_of_an_earlier_search() -> None:
    engine = gallery()
    engine.index.labels = dict
    tab, _ = made_by(lambda: search_tab.build(engine, access_for("127.0.0.1")))
    values = search_tab.opened("id1")
    assert len(values) == len(tab.asked)
    assert values[0] == search_tab.Query(ids=("id1",))
    assert [type(each) for each in tab.asked] == [gr.State, gr.State, gr.HTML, gr.Image]
    assert values[1:] == ([], "", None)


def test_a_search_for_what_was_deleted_can_be_cleared() -> None:
    engine = gallery()
    engine.index.labels = dict
    engine.similar = lambda ids, *, k, where: []
    tab, _ = made_by(lambda: search_tab.build(engine, access_for("127.0.0.1")))
    _, note, chip = tab.run(search_tab.Query(ids=("id0",)), 16, [], "", [])
    assert "There is no other picture." in note
    assert "Like 0.jpg" in chip
    _, note, chip = tab.run(search_tab.Query(ids=("deleted",)), 16, [], "", [])
    assert "no longer in the gallery" in note
    assert 'data-action="clear"' in chip
