"""Search: a picture, or pictures of the gallery, in; those most like it, best first."""

import html
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from app import parts
from app.access import Access
from app.batching import Busy
from app.engine import Engine
from app.index import Filter, Hit
from app.tabs.common import BUSY, KEPT, QUICK, look, picture_input, told
from app.uploads import Refused

MOST_HITS = 60
ANY = ""  # the folder that means all; it is shown as "any", which a folder may be called too
NONE = "(no label)"
_EMPTY = "Choose a picture, or click one of the gallery, to find its like."


class Query(NamedTuple):
    """What is searched for: a visitor's picture, or pictures of the gallery; neither shows the gallery itself."""

    thumbnail: bytes = b""  # of the visitor's picture
    features: np.ndarray | None = None  # its vector; the picture itself is not kept
    ids: tuple[str, ...] = ()
    trouble: str = ""  # why the picture given cannot be used


class SearchTab(NamedTuple):
    """What to set (``opened``) and the event to run so that another tab can open a search."""

    asked: list[Any]
    run: Any
    inputs: list[Any]
    outputs: list[Any]
    filters: list[Any]  # the controls of labels and folder


def opened(id_: str) -> tuple[Any, ...]:
    """The values of ``SearchTab.asked`` for a search by one picture of the gallery: nothing is left of another one."""
    return Query(ids=(id_,)), [], "", None


def where(engine: Engine, labels: list[str] | None, folder: str | None) -> Filter:
    """The filter that the controls stand for."""
    given = tuple("" if label == NONE else label for label in labels or ())
    return Filter(given, engine.places().names.get(folder or "", ""))


def choices(engine: Engine) -> tuple[list[str], list[tuple[str, str]]]:
    """Labels and folders to filter by, those as they are shown and as they are."""
    if engine.index is None:
        return [], [("any", ANY)]
    labels = [label or NONE for label in sorted(engine.index.labels())]
    return labels, [("any", ANY), *((name, name) for name in engine.places().names)]


def refresh_labels(engine: Engine, labels: list[str] | None) -> Any:
    """The control of labels as the gallery is now; what is gone from it is no longer chosen."""
    there, _ = choices(engine)
    return gr.Dropdown(there, value=[label for label in labels or () if label in there], multiselect=True)


def refresh(engine: Engine, labels: list[str] | None, folder: str | None) -> tuple[Any, Any]:
    """The controls of labels and folder in the same way; strangers have the first only."""
    _, folders = choices(engine)
    kept = folder if folder in dict(folders).values() else ANY
    return refresh_labels(engine, labels), gr.Dropdown(folders, value=kept)


def build(engine: Engine, access: Access) -> SearchTab:
    def show(
        query: Query, k: float, labels: list[str] | None, folder: str | None, picks: list[str]
    ) -> tuple[str, str, str]:
        """The results as cards, a line about them, and what was asked."""
        filter_, most = where(engine, labels, folder), min(max(int(k), 1), MOST_HITS)
        if engine.index is None:
            return "", parts.hint("There is no gallery; start the app with --gallery DIR."), ""
        if query.trouble:
            return "", parts.problem(query.trouble), ""
        if query.features is None and not query.ids:
            items = engine.index.items(limit=most, where=filter_)
            text = _EMPTY if engine.index.count() else "The gallery is empty."
            cards = parts.item_cards(items, chosen=picks)
            return parts.grid(cards, action="like", does="Search like this", pick="Choose"), parts.hint(text), ""
        if query.ids and not engine.index.get(query.ids):
            return "", parts.problem("What was searched for is no longer in the gallery."), asked(query)
        if query.features is not None:
            hits = engine.index.search(query.features, most, where=filter_, thumbnails=False)
        else:
            hits = engine.similar(query.ids, k=most, where=filter_)
        grid = parts.grid(parts.hit_cards(hits, chosen=picks), action="like", does="Search like this", pick="Choose")
        return grid, line(hits, filtered=filter_ != Filter()), asked(query)

    def line(hits: list[Hit], *, filtered: bool) -> str:
        if not hits:
            return parts.hint("Nothing passes the filter; widen it." if filtered else "There is no other picture.")
        return parts.hint(f"{len(hits)} pictures, cosine {hits[0].score:.3f} to {hits[-1].score:.3f}.")

    def asked(query: Query) -> str:
        if query.features is not None:
            shown = f'<img src="{parts.data_uri(query.thumbnail)}" alt="">'
            text = "Like your picture"
        else:
            assert engine.index is not None
            items = engine.index.get(query.ids)
            shown = "".join(f'<img src="{parts.thumb(item.id)}" alt="">' for item in items[:4])
            text = f"Like {parts.called(items[0])}" if len(items) == 1 else f"Like these {len(items) or ''}".strip()
        return (
            f'<div class="asked">{shown}<span>{html.escape(text)}</span>'
            '<button type="button" data-action="clear" aria-label="Clear the search">×</button></div>'
        )

    def picked(picks: list[str]) -> str:
        if not picks:
            return ""
        return (
            f'<div class="picked" role="status"><span>{len(picks)} chosen</span>'
            '<button type="button" class="strong" data-action="like-these">More like these</button>'
            '<button type="button" data-action="drop">Clear</button></div>'
        )

    def upload(path: str | None) -> tuple[Query, Any]:
        try:
            picture = look(engine, path)
            if picture is None:
                return Query(), gr.skip()
            return Query(picture.thumbnail, engine.embed(picture)), gr.skip()
        except Refused as error:
            return Query(trouble=str(error)), None
        except Busy:
            return Query(trouble=BUSY), None

    def click(query: Query, picks: list[str], event: gr.EventData) -> tuple[Query, list[str], str, Any]:
        action, id_ = parts.clicked(event)
        if action == "like":
            query, picks = Query(ids=(id_,)), []
        elif action == "pick":
            picks = [one for one in picks if one != id_] if id_ in picks else [*picks, id_][:MOST_HITS]
        elif action == "like-these" and picks:
            query, picks = Query(ids=tuple(picks)), []
        elif action == "drop":
            picks = []
        elif action == "clear":
            query = Query()
        return query, picks, picked(picks), gr.skip() if query.features is not None or query.trouble else None

    labels, folders = choices(engine)
    query, picks = gr.State(Query(), time_to_live=KEPT), gr.State([], time_to_live=KEPT)
    with gr.Row(elem_classes=["columns", "asking"]):
        with gr.Column(scale=3, min_width=260, elem_classes="side"):
            picture = picture_input("query", says="Drop a picture here\n— or —\nclick to choose one", height=220)
            label = gr.Dropdown(labels, multiselect=True, label="Labels (any, if empty)", elem_id="filter-label")
            folder = gr.Dropdown(
                folders if access.edits else folders[:1],  # strangers are told no folders
                value=ANY, label="Folder", elem_id="filter-folder", visible=access.edits,
            )  # fmt: skip
            count = gr.Slider(4, MOST_HITS, 16, step=4, label="How many", elem_id="count")
        with gr.Column(scale=9, min_width=320):
            chip = parts.panel(name="asked")
            note = gr.HTML(parts.hint(_EMPTY), elem_id="note")
            results = parts.panel(name="results")
            bar = parts.panel(name="picked", elem_classes="floating")
    inputs, outputs = [query, count, label, folder, picks], [results, note, chip]
    run = told(show, lambda text: ("", text, ""))
    gr.on([picture.upload, picture.clear], upload, picture, [query, picture], **QUICK).then(
        run, inputs, outputs, **QUICK
    )
    for control in (count.change, label.change, folder.change):  # a slider moved by keys is never released
        control(run, inputs, outputs, **QUICK)
    for panel in (results, chip, bar):
        panel.select(click, [query, picks], [query, picks, bar, picture], **QUICK).then(run, inputs, outputs, **QUICK)
    return SearchTab([query, picks, bar, picture], run, inputs, outputs, [label, folder])
