"""Gallery: what is in it; add a folder or uploads, find duplicates, delete."""

import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import parts
from app.engine import Engine
from app.gallery import embed_paths, folder_named
from app.index import Record
from app.labelling import optional_label
from app.tabs.common import KEPT, LONG, PICTURE_ENDINGS, QUICK, told
from app.tabs.search import ANY, choices, refresh, where
from app.uploads import Refused, uploads_only
from export.embeddings import near_duplicates

PAGE = 48
MOST_GROUPS = 50  # shown at a time, and only what is shown is chosen
ALIKE = 0.99  # cosine: of the bundled student, re-encoded copies and those of half the size (docs/search.md)


class Stopped(Exception):  # noqa: N818
    """Somebody pressed Stop."""


def duplicate_groups(engine: Engine, *, threshold: float = ALIKE) -> list[list[str]]:
    """Ids of near-duplicates, in groups of two and more; the first added comes first."""
    assert engine.index is not None
    ids, vectors = engine.index.vectors()
    groups: dict[int, list[str]] = {}
    for row, stands in enumerate(near_duplicates(vectors, threshold=threshold).tolist()):
        groups.setdefault(stands, []).append(ids[row])
    return [group for group in groups.values() if len(group) > 1]


class State(NamedTuple):
    """What a visitor looks at: a page of the gallery, what is chosen, groups of near-duplicates; and whether the next
    click on Delete is meant."""

    page: int = 0
    chosen: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    sure: bool = False


def build(engine: Engine) -> tuple[Any, list[Any]]:
    """Returns the event that fills the tab (function, inputs, outputs) and its controls of labels and folder."""
    adding: dict[str | None, threading.Event] = {}  # session -> what stops its folder

    def show(state: State, labels: list[str] | None, folder: str | None) -> tuple[Any, ...]:
        assert engine.index is not None
        filter_ = where(engine, labels, folder)
        total = engine.index.count(filter_)
        last = max((total - 1) // PAGE, 0)
        page = min(max(state.page, 0), last)
        items = engine.index.items(offset=page * PAGE, limit=PAGE, where=filter_)
        cards = parts.grid(parts.item_cards(items, chosen=state.chosen), action="pick", does="Choose")
        if not items:
            empty = "The gallery is empty: upload pictures, or add a folder of this machine."
            cards = parts.hint("Nothing passes the filter." if engine.index.count() else empty)
        line = (
            f'<div class="pages"><button type="button" data-action="back" {"" if page else "disabled"}>← Back</button>'
            f"<span>{total:,} pictures, page {page + 1} of {last + 1}</span>"
            f'<button type="button" data-action="on" {"disabled" if page == last else ""}>On →</button></div>'
        )
        return state._replace(page=page), cards, line, bar_of(state), alike(state)

    def bar_of(state: State) -> str:
        if not state.chosen:
            return ""
        count = len(state.chosen)
        delete = '<button type="button" data-action="delete">Delete</button>'
        if state.sure:
            delete = f'<button type="button" class="danger" data-action="really">Really delete {count}?</button>'
        return (
            f'<div class="picked" role="status"><span>{count} chosen</span>{delete}'
            '<button type="button" data-action="drop">Choose none</button></div>'
        )

    def alike(state: State) -> str:
        """Groups of near-duplicates, as far as they are still there."""
        assert engine.index is not None
        shown = []
        for group in state.groups[:MOST_GROUPS]:
            items = engine.index.get(group)
            if len(items) > 1:
                cards = parts.item_cards(items, chosen=state.chosen)
                shown.append(f'<div class="group">{parts.grid(cards, action="pick", does="Choose", small=True)}</div>')
        if not shown:
            return ""
        more = f" The first {MOST_GROUPS} are shown." if len(state.groups) > MOST_GROUPS else ""
        head = parts.hint(
            f"{len(state.groups)} groups of near-duplicates; all but the first of each were chosen.{more}"
        )
        close = '<div class="choices"><button type="button" data-action="close">Close the groups</button></div>'
        return f'<section class="groups">{head}{"".join(shown)}{close}</section>'

    def click(state: State, event: gr.EventData) -> tuple[State, str]:
        action, id_ = parts.clicked(event)
        page, chosen, groups, sure = state
        if action == "really" and sure:
            assert engine.index is not None
            count = engine.index.delete(chosen)
            return State(page, (), groups), parts.done(f"{count} pictures deleted from the gallery; their files stay.")
        if action == "pick":
            chosen = tuple(one for one in chosen if one != id_) if id_ in chosen else (*chosen, id_)
        elif action in ("back", "on"):
            page += 1 if action == "on" else -1
        elif action == "drop":
            chosen = ()
        elif action == "close":
            groups = ()
        return State(page, chosen, groups, action == "delete"), ""

    def upload(files: list[str] | None, label: str) -> tuple[Any, str]:
        assert engine.index is not None
        records, troubles = [], []
        for file in files or []:
            try:
                picture = engine.look(file)
                name = f"upload/{Path(file).name}"
                records.append(
                    Record(picture.id, name, optional_label(label), picture.thumbnail, engine.embed(picture))
                )
            except Refused as error:
                troubles.append(str(error))
        added = engine.index.add(records)
        known = f", {len(records) - added} were there already" if added < len(records) else ""
        return None, parts.done(f"{added} pictures added{known}.") + "".join(map(parts.problem, troubles[:5]))

    def add_folder(
        folder: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it there)
    ) -> str:
        assert engine.index is not None
        path = folder_named(folder)
        stop = adding[request.session_hash] = threading.Event()

        def count(done: int, total: int) -> None:
            progress((done, total), desc="Embedding", unit="pictures")
            if stop.is_set():
                raise Stopped

        try:
            report = embed_paths([path], engine.model, engine.index, progress=count)
        except Stopped:
            return parts.done("Stopped; what was embedded is kept. The same folder, added again, goes on from there.")
        finally:
            adding.pop(request.session_hash, None)
        said = f"{report.embedded} pictures added, {report.unchanged} were there already"
        if report.unreadable:
            name, reason = next(iter(report.unreadable.items()))
            said += f"; {len(report.unreadable)} cannot be read, such as {Path(name).name}: {reason}"
        return parts.done(f"{said.rstrip('.')}.")

    def stop_adding(request: gr.Request) -> None:
        if (stop := adding.get(request.session_hash)) is not None:
            stop.set()

    def find_duplicates(state: State, threshold: float) -> tuple[State, str]:
        groups = tuple(map(tuple, duplicate_groups(engine, threshold=threshold)))
        chosen = tuple(id_ for group in groups[:MOST_GROUPS] for id_ in group[1:])
        none = parts.done(f"No near-duplicates (cosine {threshold} or more).")
        return State(state.page, chosen, groups), "" if groups else none

    labels, folders = choices(engine)
    state = gr.State(State(), time_to_live=KEPT)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=260, elem_classes="side"):
            label = gr.Dropdown(labels, multiselect=True, label="Labels (any, if empty)", elem_id="gallery-label")
            folder = gr.Dropdown(folders, value=ANY, label="Folder", elem_id="gallery-folder")
            with gr.Accordion("Find duplicates", open=False, elem_id="duplicates"):
                threshold = gr.Slider(0.95, 1, ALIKE, step=0.005, label="Cosine at least", elem_id="threshold")
                find = gr.Button("Find duplicates", elem_id="find-duplicates")
            with gr.Accordion("Add pictures", open=False, elem_id="add-pictures"):
                given = gr.Textbox(label="Label of uploads", placeholder="none", max_lines=1, elem_id="upload-label")
                files = gr.UploadButton(
                    "Upload pictures", file_count="multiple", file_types=PICTURE_ENDINGS, elem_id="gallery-upload"
                )
                uploads_only(files)
                path = gr.Textbox(
                    label="A folder of this machine", placeholder="/home/me/photos", max_lines=1, elem_id="add-path"
                )
                with gr.Row(elem_classes="inline"):
                    add = gr.Button("Add the folder", elem_id="add-folder", min_width=120)
                    halt = gr.Button("Stop", elem_id="stop-folder", min_width=70)
        with gr.Column(scale=9, min_width=320):
            note = gr.HTML(elem_id="gallery-note")
            groups = parts.panel(name="groups")
            pages = parts.panel(name="pages")
            cards = parts.panel(name="gallery")
            bar = parts.panel(name="gallery-picked", elem_classes="floating")
    inputs, outputs = [state, label, folder], [state, cards, pages, bar, groups]

    def kept(text: str) -> tuple[Any, str]:
        return gr.skip(), text

    done = [
        *(panel.select(told(click, kept), state, [state, note], **QUICK) for panel in (cards, pages, bar, groups)),
        files.upload(told(upload, lambda text: (None, text)), [files, given], [files, note], **LONG),
        add.click(told(add_folder, lambda text: text), path, note, **LONG),
        find.click(told(find_duplicates, kept), [state, threshold], [state, note], **LONG),
    ]
    for event in done:
        event.then(show, inputs, outputs, **QUICK)
    for event in done[-3:-1]:  # those that bring labels and folders
        event.then(partial(refresh, engine), [label, folder], [label, folder], **QUICK)
    for control in (label, folder):
        control.change(show, inputs, outputs, **QUICK)
    halt.click(stop_adding, None, None, **QUICK)
    return (show, inputs, outputs), [label, folder]
