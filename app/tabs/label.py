"""Label: the pictures most worth a label, one after the other, by keyboard; the CSV file that training reads."""

import html
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import labelling, parts
from app.engine import Engine
from app.tabs.common import HIDDEN, told

ROUND = 50  # pictures chosen at a time
KEYS = "123456789"


class Work(NamedTuple):
    """Pictures to look at in this round, which is on, and what was done, to undo it."""

    queue: tuple[str, ...] = ()
    at: int = 0
    done: tuple[str, ...] = ()  # paths, in the order they were labelled


def build(engine: Engine, table: Path) -> Any:
    """Returns the event that fills the tab: function, inputs, outputs."""

    def classes() -> list[str]:
        given = set(labelling.read_labels(table).values())
        return [*engine.labels_of()] if not given else [*sorted(given), *(name for name in engine.labels_of() if name not in given)]

    def begin(extra: list[str]) -> tuple[Any, ...]:
        if engine.index is None or not engine.index.count():
            return Work(), parts.hint("The gallery is empty: add pictures first."), progress(Work()), ""
        queue = labelling.worklist(engine, table, ROUND)
        return look_at(Work(tuple(queue)), extra)

    def look_at(work: Work, extra: list[str], note: str = "") -> tuple[Any, ...]:
        if work.at >= len(work.queue):
            end = (
                "That was this round." if work.queue else "Every picture has a label, or is a near copy of one that has."
            )
            more = '<button type="button" class="strong" data-action="more">The next round</button>'
            return work, f'<div class="worklist">{parts.hint(end)}{more if work.queue else ""}</div>', progress(work), note
        assert engine.index is not None
        id_ = work.queue[work.at]
        found = engine.index.get([id_])
        if not found:
            return look_at(work._replace(at=work.at + 1), extra, note)
        picture = labelling.picture_to_look_at(found[0].path, engine.index.thumbnail(id_))
        return work, sheet(id_, found[0].path, picture, extra), progress(work), note

    def sheet(id_: str, path: str, picture: bytes, extra: list[str]) -> str:
        assert engine.index is not None
        names = [*dict.fromkeys([*extra, *classes()])][:60]
        guess = labelling.nearest_labels(engine, id_, labelling.labelled_ids(engine, table))
        buttons = "".join(
            f'<button type="button" data-action="label" data-id="{html.escape(name, quote=True)}"'
            f'{f" data-key={KEYS[row]}" if row < len(KEYS) else ""} class="{"guess" if name in guess[:1] else ""}">'
            f"{f'<kbd>{KEYS[row]}</kbd>' if row < len(KEYS) else ''}{html.escape(name)}</button>"
            for row, name in enumerate(names)
        )
        root = parts.folders(engine.index).root
        return (
            f'<div class="worklist"><img src="{parts.data_uri(picture)}" alt="The picture to label">'
            f'<p class="hint">{html.escape(parts.shown_path(path, root))}'
            f"{f' · like those labelled {html.escape(guess[0])}' if guess else ''}</p>"
            f'<div class="choices">{buttons}</div><div class="choices"><button type="button" data-action="skip" '
            'data-key="s"><kbd>s</kbd>Skip</button><button type="button" data-action="undo" data-key="u"><kbd>u</kbd>'
            "Undo</button></div></div>"
        )

    def progress(work: Work) -> str:
        count = len(labelling.read_labels(table))
        left = max(len(work.queue) - work.at, 0)
        return parts.hint(f"{count} labels in {table.name}; {left} pictures left in this round.")

    def put(work: Work, label: str, extra: list[str]) -> tuple[Any, ...]:
        assert engine.index is not None
        found = engine.index.get([work.queue[work.at]]) if work.at < len(work.queue) else []
        if not found:
            return look_at(work._replace(at=work.at + 1), extra)
        labels = labelling.read_labels(table)
        labelling.write_labels(table, {**labels, found[0].path: labelling.clean_label(label)})
        return look_at(work._replace(at=work.at + 1, done=(*work.done, found[0].path)), extra)

    def undo(work: Work, extra: list[str]) -> tuple[Any, ...]:
        if not work.at:
            return look_at(work, extra)
        labels = labelling.read_labels(table)
        assert engine.index is not None
        path = next((item.path for item in engine.index.get([work.queue[work.at - 1]])), "")
        if path in work.done:
            labels.pop(path, None)
            labelling.write_labels(table, labels)
        return look_at(work._replace(at=work.at - 1, done=tuple(one for one in work.done if one != path)), extra)

    def click(work: Work, extra: list[str], event: gr.EventData) -> tuple[Any, ...]:
        action, id_ = parts.clicked(event)
        if action == "label":
            return put(work, id_, extra)
        if action == "skip":
            return look_at(work._replace(at=work.at + 1), extra)
        if action == "undo":
            return undo(work, extra)
        return begin(extra)

    def name_class(work: Work, extra: list[str], name: str) -> tuple[Any, ...]:
        extra = [*dict.fromkeys([labelling.clean_label(name), *extra])]
        return (*look_at(work, extra), extra, "")

    work, extra = gr.State(Work(), time_to_live=12 * 3600), gr.State([], time_to_live=12 * 3600)
    with gr.Column(elem_classes="narrow"):
        state = gr.HTML(elem_id="label-progress")
        note = gr.HTML(elem_id="label-note")
        shown = parts.panel(name="worklist", script_name="keys")
        with gr.Row(elem_classes="inline"):
            name = gr.Textbox(
                label="New label", placeholder="a class that is not there yet", max_lines=1,
                max_length=labelling.LONGEST_LABEL, elem_id="new-label", scale=3,
            )  # fmt: skip
            add = gr.Button("Add", elem_id="add-label", scale=1, min_width=90)
        gr.HTML(
            f'<p class="credit">Written to <code>{html.escape(str(table))}</code> after every answer: '
            "<code>simclr run --images … --labels …</code> reads it.</p>"
        )
    outputs = [work, shown, state, note]

    def failed(text: str, *, more: int = 0) -> tuple[Any, ...]:
        return (gr.skip(), gr.skip(), gr.skip(), text) + (gr.skip(),) * more

    shown.select(told(click, failed), [work, extra], outputs, **HIDDEN)
    gr.on([add.click, name.submit], told(name_class, lambda text: failed(text, more=2)), [work, extra, name],
          [*outputs, extra, name], **HIDDEN)  # fmt: skip
    return told(begin, failed), [extra], outputs
