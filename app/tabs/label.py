"""Label: the pictures most worth a label, one after the other, by keyboard; the CSV file that training reads."""

import html
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import labelling, parts
from app.engine import Engine
from app.tabs.common import KEPT, QUICK, told
from export.heads import LONGEST_NAME

ROUND = 50  # pictures chosen at a time
KEYS = "123456789"
MOST_NAMES = 100  # shown at a time
_WAITING = '<div class="worklist waiting"></div>'  # as high as what will be there


class Work(NamedTuple):
    """Pictures to look at in this round, which is on, and what was done, to undo it."""

    queue: tuple[str, ...] = ()
    at: int = 0
    done: tuple[labelling.Before, ...] = ()
    names: tuple[str, ...] = ()  # the labels to choose from; only a new one, put first, changes the keys
    given: tuple[tuple[str, str], ...] = ()  # id and label of the gallery's pictures that have one


def build(engine: Engine, table: Path) -> Any:
    """Returns the event that fills the tab: function, inputs, outputs."""

    def names(work: Work) -> tuple[str, ...]:
        """Those of before, then those of the table; the model's own if there are no others, or these are among them.
        Of more than are shown, the most used come first."""
        given = Counter(labelling.read_labels(table).values())
        own = engine.model.labels if set(given) <= set(engine.model.labels) else ()
        found = list(dict.fromkeys([*own, *given]))
        if len(found) > MOST_NAMES:
            found.sort(key=lambda name: -given[name])
        return tuple(dict.fromkeys([*work.names, *found]))

    def begin(work: Work) -> tuple[Any, ...]:
        if engine.index is None or not engine.index.count():
            return work, parts.hint("The gallery is empty: add pictures first."), progress(work), ""
        given = labelling.labelled_ids(engine, table)
        queue = labelling.worklist(engine, given, ROUND)
        return look_at(Work(tuple(queue), names=names(work), given=tuple(given.items())))

    def resume(work: Work) -> tuple[Any, ...]:
        return look_at(work) if work.at < len(work.queue) else begin(work)

    def look_at(work: Work, note: str = "") -> tuple[Any, ...]:
        if work.at >= len(work.queue):
            end = "That was this round." if work.queue else "Every file has a label, or nearly its copy has."
            more = '<button type="button" class="strong" data-action="more">The next round</button>'
            shown = f'<div class="worklist">{parts.hint(end)}{more if work.queue else ""}</div>'
            return work, shown, progress(work), note
        assert engine.index is not None
        id_ = work.queue[work.at]
        found = engine.index.get([id_])
        if not found:
            return look_at(work._replace(at=work.at + 1), note)
        picture = labelling.picture_to_look_at(found[0].path, engine.index.thumbnail(id_))
        return work, sheet(work, found[0].path, picture), progress(work), note

    def sheet(work: Work, path: str, picture: bytes) -> str:
        assert engine.index is not None
        guess = labelling.nearest_labels(engine, work.queue[work.at], dict(work.given))[:1]
        shown = tuple(dict.fromkeys([*work.names[:MOST_NAMES], *guess]))
        left = len(work.names) - len(shown)
        more = parts.hint(f"{left} more labels are not shown; write one below.") if left else ""
        buttons = "".join(
            f'<button type="button" data-action="label" data-id="{html.escape(name, quote=True)}"'
            f'{f" data-key={KEYS[row]}" if row < len(KEYS) else ""} class="{"guess" if name in guess else ""}">'
            f"{f'<kbd>{KEYS[row]}</kbd>' if row < len(KEYS) else ''}{html.escape(name)}</button>"
            for row, name in enumerate(shown)
        )
        return (
            f'<div class="worklist"><img src="{parts.data_uri(picture)}" alt="The picture to label">'
            f'<p class="hint">{html.escape(engine.places().shown(path))}'
            f"{f' · like those labelled {html.escape(guess[0])}' if guess else ''}</p>"
            f'<div class="choices">{buttons}</div>{more}'
            '<div class="choices"><button type="button" data-action="skip" data-key="s"><kbd>s</kbd>Skip</button>'
            '<button type="button" data-action="undo" data-key="u"><kbd>u</kbd>Undo</button></div></div>'
        )

    def progress(work: Work) -> str:
        count = len(labelling.read_labels(table))
        left = max(len(work.queue) - work.at, 0)
        return parts.hint(f"{count} labels in {table.name}; {left} pictures left in this round.")

    def put(work: Work, label: str) -> tuple[Any, ...]:
        assert engine.index is not None
        found = engine.index.get([work.queue[work.at]]) if work.at < len(work.queue) else []
        if not found:
            return look_at(work._replace(at=work.at + 1))
        on = work._replace(at=work.at + 1)
        try:
            before = labelling.give_label(engine, table, found[0], label, over=(None, ""))
        except labelling.Labelled as error:
            return look_at(on, parts.problem(str(error)))
        return look_at(on._replace(done=(*work.done, before), given=(*work.given, (before.id, before.label))))

    def undo(work: Work) -> tuple[Any, ...]:
        if not work.at:
            return look_at(work)
        id_, note = work.queue[work.at - 1], ""
        for before in work.done:
            if before.id == id_:
                note = taken(before)
        done = tuple(before for before in work.done if before.id != id_)
        given = tuple(pair for pair in work.given if pair[0] != id_)
        return look_at(work._replace(at=work.at - 1, done=done, given=given), note)

    def taken(before: labelling.Before) -> str:
        """Undo a label; what there is to say of that."""
        try:
            labelling.take_label(engine, table, before)
        except labelling.Labelled as error:
            return parts.problem(str(error))
        return ""

    def click(work: Work, event: gr.EventData) -> tuple[Any, ...]:
        action, id_ = parts.clicked(event)
        if not work.queue:  # the server has forgotten this page's round
            return begin(work)
        if action == "label":
            return put(work, id_)
        if action == "skip":
            return look_at(work._replace(at=work.at + 1))
        if action == "undo":
            return undo(work)
        return begin(work)

    def name_class(work: Work, name: str) -> tuple[Any, ...]:
        added = labelling.clean_label(name, known=(*engine.model.labels, *work.names))
        work = work._replace(names=tuple(dict.fromkeys([added, *work.names])))
        return (*(look_at(work) if work.queue else begin(work)), "")

    work = gr.State(Work(), time_to_live=KEPT)
    with gr.Column(elem_classes="narrow"):
        state = gr.HTML(elem_id="label-progress")
        note = gr.HTML(elem_id="label-note")
        shown = parts.panel(_WAITING, name="worklist", script_name="keys")
        with gr.Row(elem_classes="inline"):
            name = gr.Textbox(
                label="New label", placeholder="a class that is not shown", max_lines=1,
                max_length=LONGEST_NAME, elem_id="new-label", scale=3,
            )  # fmt: skip
            add = gr.Button("Add", elem_id="add-label", scale=1, min_width=90)
        gr.HTML(
            f'<p class="credit">Written to <code>{html.escape(str(table))}</code> after every answer: '
            "<code>simclr run --images … --labels …</code> reads it.</p>"
        )
    outputs = [work, shown, state, note]

    def failed(text: str, *, more: int = 0) -> tuple[Any, ...]:
        return (gr.skip(), gr.skip(), gr.skip(), text) + (gr.skip(),) * more

    shown.select(told(click, failed), [work], outputs, **QUICK)
    gr.on([add.click, name.submit], told(name_class, lambda text: failed(text, more=1)), [work, name],
          [*outputs, name], **QUICK)  # fmt: skip
    return told(resume, failed), [work], outputs
