"""Teach: name a class, show a few examples, and a head on the features knows it at once. Kept for the session only."""

import hashlib
import html
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app import lesson as lessons
from app import parts
from app.access import Access
from app.engine import Engine
from app.index import Item
from app.lesson import Example, Lesson
from app.tabs.common import HIDDEN, MODEL_WORK, PICTURE_ENDINGS, look, picture_input, told, uploaded
from app.uploads import Refused
from export.heads import Taught

SHOWN = 48  # gallery pictures to choose from
_BEGIN = "Name two classes or more and give each a few examples: click pictures of the gallery, or upload your own."
_ORDERS = ("as they were added", "most like the class", "least certain")


def build(engine: Engine, access: Access) -> Any:
    """Returns the event that fills the tab when the page loads: function, inputs, outputs."""
    State = tuple[Lesson, Taught | None]  # noqa: N806

    def board(state: State) -> str:
        """The classes with their examples."""
        lesson = state[0]
        if not lesson.classes:
            return parts.hint(_BEGIN)
        sections = []
        for name, examples in lesson.classes.items():
            said, active = html.escape(name, quote=True), name == lesson.active
            cards = parts.grid(
                [parts.Card(one.id, one.source, one.name) for one in examples],
                action="remove-example",
                does="Take away",
                small=True,
            )
            count = f"{len(examples)} example{'' if len(examples) == 1 else 's'}"
            sections.append(
                f'<section class="lesson{" active" if active else ""}"><header>'
                f'<button type="button" class="class" data-action="activate" data-id="{said}" '
                f'aria-pressed="{"true" if active else "false"}">{html.escape(name)}</button><span>{count}</span>'
                f'<button type="button" data-action="remove-class" data-id="{said}" aria-label="Remove the class '
                f'{said}">×</button></header>{cards if examples else parts.hint("No examples yet.")}</section>'
            )
        return "".join(sections)

    def score(state: State) -> str:
        """How good the head is, honestly."""
        lesson, taught = state
        if taught is None:
            return parts.hint("With examples of two classes there will be an answer here.")
        total = sum(taught.examples.values())
        if taught.accuracy is None:
            head = "<div><strong>–</strong><span>leave-one-out accuracy: it takes two examples of a class</span></div>"
        else:
            head = (
                f"<div><strong>{taught.accuracy:.0%}</strong><span>leave-one-out accuracy on {total} examples; "
                f"guessing has {taught.chance:.0%}</span></div>"
            )
        rows = parts.bars(list(taught.per_class.items())) if taught.per_class else ""
        note = f"<p>{html.escape(taught.note)}</p>" if taught.note else ""
        return f'<section class="score"><div class="figures">{head}</div>{rows}{note}</section>'

    def offer(state: State, order: str) -> str:
        """Gallery pictures to choose examples from, each with what the head takes it for."""
        lesson, taught = state
        if engine.index is None or not engine.index.count():
            return parts.hint("There is no gallery to choose from; upload examples instead.")
        used = {example.id for _, example in lesson.examples()}
        items = [item for item in candidates(state, order) if item.id not in used][:SHOWN]
        notes = dict.fromkeys((item.id for item in items), ("", ""))
        if taught is not None and items:
            sure = lessons.answers(taught, engine.vectors_of([item.id for item in items]))
            for item, row in zip(items, sure, strict=True):
                best = int(row.argmax())
                notes[item.id] = (taught.head.classes[best], f"{row[best]:.0%}")
        cards = [
            parts.Card(item.id, parts.thumb(item.id), notes[item.id][0] or parts.called(item), notes[item.id][1])
            for item in items
        ]
        does = f"An example of {lesson.active}" if lesson.active else "Name a class first, then this is an example"
        return parts.grid(cards, action="example", does=does)

    def candidates(state: State, order: str) -> list[Item]:
        lesson, taught = state
        assert engine.index is not None
        mine = [example.vector for example in lesson.classes.get(lesson.active, ())]
        many = SHOWN + len(lesson.examples())
        if order == _ORDERS[1] and mine:
            hits = engine.index.search(np.mean(mine, axis=0), many, thumbnails=False)
            return [Item(hit.id, hit.path, hit.label) for hit in hits]
        if order == _ORDERS[2] and taught is not None:
            ids, vectors = engine.index.vectors()
            best = np.sort(lessons.answers(taught, vectors), axis=1)
            return engine.index.get([ids[row] for row in np.argsort(best[:, -1] - best[:, -2])[:many]])
        ids, _ = engine.index.vectors()
        spread = np.linspace(0, len(ids) - 1, min(many, len(ids))).astype(int)  # of every folder some
        return engine.index.get([ids[row] for row in spread])

    def all_of(state: State, order: str, note: str = "") -> tuple[Any, ...]:
        names = list(state[0].classes)
        into = f"into {state[0].active}" if state[0].active else "once there is a class"
        return (
            state, board(state), score(state), offer(state, order), note,
            gr.UploadButton(f"Upload examples {into}", interactive=bool(names)),
            gr.Button(interactive=state[1] is not None),
        )  # fmt: skip

    def after(state: State, order: str, lesson: Lesson, note: str = "") -> tuple[Any, ...]:
        return all_of((lesson, lessons.fit(lesson)), order, note)

    def name_class(state: State, order: str, name: str) -> tuple[Any, ...]:
        return (*after(state, order, lessons.add_class(state[0], name)), "")

    def click_board(state: State, order: str, event: gr.EventData) -> tuple[Any, ...]:
        action, id_ = parts.clicked(event)
        lesson = state[0]
        if action == "activate" and id_ in lesson.classes:
            lesson = lesson._replace(active=id_)
        elif action == "remove-class":
            lesson = lessons.remove_class(lesson, id_)
        elif action == "remove-example":
            lesson = lessons.remove_example(lesson, id_)
        return after(state, order, lesson)

    def click_offer(state: State, order: str, event: gr.EventData) -> tuple[Any, ...]:
        _, id_ = parts.clicked(event)
        items = engine.index.get([id_]) if engine.index is not None else []
        examples = [Example(item.id, parts.called(item), parts.thumb(item.id), engine.vectors_of([item.id])[0])
                    for item in items]  # fmt: skip
        return after(state, order, lessons.add_examples(state[0], examples))

    def upload(state: State, order: str, files: list[Any] | None) -> tuple[Any, ...]:
        examples, troubles = [], []
        for file in files or []:
            try:
                picture = engine.look(file)
                examples.append(
                    Example(picture.id, Path(file).name, parts.data_uri(picture.thumbnail), engine.embed(picture))
                )
            except Refused as error:
                troubles.append(str(error))
        note = "".join(parts.problem(text) for text in troubles[:3])
        return after(state, order, lessons.add_examples(state[0], examples), note)

    def attempt(path: str | None, state: State) -> str:
        picture = look(engine, path)
        if picture is None:
            return ""
        if state[1] is None:
            return parts.hint("Teach two classes first.")
        sure = lessons.answers(state[1], engine.embed(picture)[None])[0]
        ranked = sorted(zip(state[1].head.classes, sure.tolist(), strict=True), key=lambda pair: -pair[1])
        return parts.bars(ranked[:5])

    def save(state: State) -> tuple[Any, str]:
        if state[1] is None:
            raise ValueError("Teach two classes first.")
        folder = Path(tempfile.mkdtemp(prefix="taught-", dir=tempfile.gettempdir()))
        file = lessons.save(state[1], engine.model, folder, examples=sum(state[1].examples.values()))
        return gr.DownloadButton(value=str(file), visible=True), parts.done(
            f"{file.name}: {len(state[1].head.classes)} classes, {file.stat().st_size / 1e6:.1f} MB, checked. It works "
            "wherever the student does."
        )

    state = gr.State((Lesson(), None), time_to_live=3600)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            with gr.Row(elem_classes="inline"):
                name = gr.Textbox(
                    label="New class", placeholder="such as: my dog", max_lines=1, max_length=lessons.LONGEST_NAME,
                    elem_id="class-name", scale=3,
                )  # fmt: skip
                add = gr.Button("Add class", elem_id="add-class", scale=1, min_width=110)
            note = gr.HTML(elem_id="teach-note")
            shown = parts.panel(parts.hint(_BEGIN), name="lesson")
            files = gr.UploadButton(
                "Upload examples once there is a class", file_count="multiple", file_types=PICTURE_ENDINGS,
                interactive=False, elem_id="teach-upload",
            )  # fmt: skip
            files.preprocess = lambda payload: payload and [uploaded(one) for one in payload.root]  # type: ignore[attr-defined]
            figures = gr.HTML(elem_id="score")
            with gr.Accordion("Try it on a picture", open=False, elem_id="try"):
                tried = picture_input("try-picture", says="Drop a picture here", height=180)
                verdict = gr.HTML(elem_id="try-verdict")
            keep = gr.Button(
                "Save into a copy of the student", interactive=False, visible=access.edits, elem_id="save-head"
            )
            kept = gr.DownloadButton("Download the taught student", visible=False, elem_id="download-head")
            if not access.edits:
                gr.HTML(parts.hint("What you teach here stays in this page and is gone when you close it."))
        with gr.Column(scale=7, min_width=320):
            order = gr.Radio(list(_ORDERS), value=_ORDERS[0], label="Gallery pictures", elem_id="order")
            offered = parts.panel(name="offer")
    outputs = [state, shown, figures, offered, note, files, keep]

    def failed(text: str, *, more: int = 0) -> tuple[Any, ...]:
        return tuple(text if output is note else gr.skip() for output in outputs) + (gr.skip(),) * more

    event: dict[str, Any] = {**HIDDEN, **MODEL_WORK}
    gr.on([add.click, name.submit], told(name_class, lambda text: failed(text, more=1)), [state, order, name],
          [*outputs, name], **event)  # fmt: skip
    shown.select(told(click_board, failed), [state, order], outputs, **event)
    offered.select(told(click_offer, failed), [state, order], outputs, **event)
    files.upload(told(upload, failed), [state, order, files], outputs, **event)
    order.change(told(offer, lambda text: text), [state, order], offered, **event)
    gr.on([tried.upload, tried.clear], told(attempt, lambda text: text), [tried, state], verdict, **event)
    if access.edits:
        keep.click(told(save, lambda text: (gr.skip(), text)), state, [kept, note], **HIDDEN)
    return offer, [state, order], offered
