"""Gallery: what is in it; add a folder or uploads, find duplicates, delete."""

import html
import threading
from pathlib import Path
from typing import Any

import gradio as gr

from app import parts
from app.engine import Engine
from app.gallery import embed_paths
from app.index import Record
from app.tabs.common import LONG, PICTURE_ENDINGS, QUICK, told
from app.tabs.search import ANY, choices, where
from app.uploads import Refused, uploads_only
from export.embeddings import NEAR_DUPLICATE, near_duplicates

PAGE = 48


class Stopped(Exception):  # noqa: N818
    """Somebody pressed Stop."""


def duplicate_groups(engine: Engine, *, threshold: float = NEAR_DUPLICATE) -> list[list[str]]:
    """Ids of near-duplicates, in groups of two and more; the first added comes first."""
    assert engine.index is not None
    ids, vectors = engine.index.vectors()
    groups: dict[int, list[str]] = {}
    for row, stands in enumerate(near_duplicates(vectors, threshold=threshold).tolist()):
        groups.setdefault(stands, []).append(ids[row])
    return [group for group in groups.values() if len(group) > 1]


def build(engine: Engine) -> Any:
    """Returns the event that fills the tab: function, inputs, outputs."""
    stop = threading.Event()

    def show(page: int, labels: list[str] | None, folder: str | None, chosen: list[str]) -> tuple[Any, ...]:
        assert engine.index is not None
        filter_ = where(engine, labels, folder)
        total = engine.index.count(filter_)
        page = min(max(page, 0), max((total - 1) // PAGE, 0))
        items = engine.index.items(offset=page * PAGE, limit=PAGE, where=filter_)
        cards = parts.grid(parts.item_cards(items, chosen=chosen), action="pick", does="Choose")
        if not items:
            cards = parts.hint("Nothing passes the filter." if engine.index.count() else
                               "The gallery is empty: upload pictures, or add a folder of this machine.")  # fmt: skip
        pages = max((total + PAGE - 1) // PAGE, 1)
        line = (
            f'<div class="pages"><button type="button" data-action="back" {"disabled" if not page else ""}>← Back'
            f"</button><span>{total:,} pictures, page {page + 1} of {pages}</span><button type='button' "
            f'data-action="on" {"disabled" if page + 1 >= pages else ""}>On →</button></div>'
        )
        return page, cards, line, picked(chosen)

    def picked(chosen: list[str], *, sure: bool = False) -> str:
        if not chosen:
            return ""
        word = f"Really delete {len(chosen)}?" if sure else "Delete"
        return (
            f'<div class="picked" role="status"><span>{len(chosen)} chosen</span><button type="button" '
            f'class="{"danger" if sure else ""}" data-action="{"delete" if sure else "ask"}">{word}</button>'
            '<button type="button" data-action="drop">Choose none</button></div>'
        )

    def click(page: int, chosen: list[str], event: gr.EventData) -> tuple[int, list[str], str, str]:
        action, id_ = parts.clicked(event)
        note, bar = "", None
        if action == "pick":
            chosen = [one for one in chosen if one != id_] if id_ in chosen else [*chosen, id_]
        elif action in ("back", "on"):
            page += 1 if action == "on" else -1
        elif action == "drop":
            chosen = []
        elif action == "ask":
            bar = picked(chosen, sure=True)
        elif action == "delete":
            assert engine.index is not None
            note = parts.done(f"{engine.index.delete(chosen)} pictures deleted from the gallery; their files stay.")
            chosen = []
        return page, chosen, note, bar or picked(chosen)

    def upload(files: list[str] | None, label: str) -> tuple[Any, str]:
        assert engine.index is not None
        records, troubles = [], []
        for file in files or []:
            try:
                picture = engine.look(file)
                name = f"upload/{Path(file).name}"
                records.append(Record(picture.id, name, label.strip()[:60], picture.thumbnail, engine.embed(picture)))
            except Refused as error:
                troubles.append(str(error))
        added = engine.index.add(records)
        known = f", {len(records) - added} were there already" if added < len(records) else ""
        return None, parts.done(f"{added} pictures added{known}.") + "".join(map(parts.problem, troubles[:5]))

    def add_folder(folder: str, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 (Gradio finds it there)
        assert engine.index is not None
        if not folder.strip():
            raise ValueError("Name a folder of this machine, such as /home/me/photos.")
        path = Path(folder.strip()).expanduser()
        if not path.is_dir():
            raise ValueError(f"{folder.strip()}: no such folder on the machine that serves this page.")
        stop.clear()

        def count(done: int, total: int) -> None:
            progress((done, total), desc="Embedding", unit="pictures")
            if stop.is_set():
                raise Stopped

        try:
            report = embed_paths([path], engine.model, engine.index, progress=count)
        except Stopped:
            return parts.done("Stopped; what was embedded is kept. The same folder, added again, goes on from there.")
        said = f"{report.embedded} pictures added, {report.unchanged} were there already"
        if report.unreadable:
            name, reason = next(iter(report.unreadable.items()))
            said += f"; {len(report.unreadable)} cannot be read, such as {Path(name).name}: {reason}"
        return parts.done(f"{said.rstrip('.')}.")

    def find_duplicates() -> tuple[str, list[str], str]:
        assert engine.index is not None
        groups = duplicate_groups(engine)
        if not groups:
            return parts.done("No near-duplicates (cosine 0.98 or more)."), [], ""
        extra = [id_ for group in groups for id_ in group[1:]]
        shown = []
        for group in groups[:50]:
            items = engine.index.get(group)
            cards = parts.grid(parts.item_cards(items, chosen=group[1:]), action="pick", does="Choose", small=True)
            shown.append(f'<div class="group">{cards}</div>')
        more = parts.hint(f"… and {len(groups) - 50} groups more.") if len(groups) > 50 else ""
        head = parts.hint(f"{len(groups)} groups of near-duplicates; all but the first of each are chosen.")
        return f'<section class="groups">{head}{"".join(shown)}{more}</section>', extra, picked(extra)

    labels, folders = choices(engine)
    page, chosen = gr.State(0), gr.State([], time_to_live=3600)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=260, elem_classes="side"):
            label = gr.Dropdown(labels, multiselect=True, label="Labels (any, if empty)", elem_id="gallery-label")
            folder = gr.Dropdown(folders, value=ANY, label="Folder", elem_id="gallery-folder")
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
    inputs, outputs = [page, label, folder, chosen], [page, cards, pages, bar]
    for control in (label.change, folder.change):
        control(show, inputs, outputs, **QUICK)
    for panel in (cards, pages):
        panel.select(click, [page, chosen], [page, chosen, note, bar], **QUICK).then(show, inputs, outputs, **QUICK)
    bar.select(click, [page, chosen], [page, chosen, note, bar], **QUICK)
    chosen.change(lambda: "", None, groups, **QUICK)
    groups.select(click, [page, chosen], [page, chosen, note, bar], **QUICK)
    files.upload(told(upload, lambda text: (None, text)), [files, given], [files, note], **LONG).then(
        show, inputs, outputs, **QUICK
    )
    add.click(told(add_folder, lambda text: text), path, note, **LONG).then(show, inputs, outputs, **QUICK)
    halt.click(stop.set, None, None, **QUICK)
    find.click(find_duplicates, None, [groups, chosen, bar], **LONG).then(show, inputs, outputs, **QUICK)
    return show, inputs, outputs


def counted(engine: Engine) -> str:
    """How many pictures there are, for the header."""
    return html.escape(f"{engine.index.count():,} pictures") if engine.index is not None else "no gallery"
