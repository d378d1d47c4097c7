"""Teach: name a class, show a few examples, and a head on the features knows it at once. Kept for the session only."""

import html
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from app import lesson as lessons
from app import parts
from app.access import Access
from app.engine import Engine
from app.lesson import Example, Lesson
from app.tabs.common import KEPT, LONG, PICTURE_ENDINGS, QUICK, look, picture_input, told
from app.uploads import Refused, uploads_only
from export.embeddings import normalise
from export.heads import LONGEST_NAME, Taught

SHOWN = 48  # gallery pictures to choose from
_BEGIN = "Name two classes or more and give each a few examples: click pictures of the gallery, or upload your own."
ORDERS = ("as they were added", "most like the class", "least certain")


class State(NamedTuple):
    """A visitor's lesson, what came of it, and the gallery pictures on offer, which stay where they are."""

    lesson: Lesson = Lesson()
    taught: Taught | None = None
    offered: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """Of what is kept for a visitor (``app.sessions``): the examples."""
        return sum(map(len, self.lesson.classes.values()))


def build(engine: Engine, access: Access) -> Any:
    """Returns the event that fills the tab when the page loads: function, inputs, outputs."""

    def board(state: State) -> str:
        """The classes with their examples."""
        lesson = state.lesson
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
        taught = state.taught
        if taught is None:
            return parts.hint("With examples of two classes there will be an answer here.")
        total = sum(taught.examples.values())
        measured = f"{total} examples" if taught.measured == total else f"{taught.measured} of {total} examples"
        if taught.accuracy is None:
            head = "<div><strong>–</strong><span>leave-one-out accuracy: it takes two examples of a class</span></div>"
        else:
            head = (
                f"<div><strong>{taught.accuracy:.0%}</strong><span>leave-one-out accuracy on {measured}; "
                f"guessing has {taught.chance:.0%}</span></div>"
            )
        rows = parts.bars(list(taught.per_class.items())) if taught.per_class else ""
        note = f"<p>{html.escape(taught.note)}</p>" if taught.note else ""
        return f'<section class="score"><div class="figures">{head}</div>{rows}{note}</section>'

    def offer(state: State) -> str:
        """The gallery pictures on offer, each with what the head takes it for."""
        lesson, taught = state.lesson, state.taught
        if not state.offered or engine.index is None:
            return parts.hint("There is no gallery to choose from; upload examples instead.")
        items = engine.index.get(state.offered)
        mine = {example.id for example in lesson.classes.get(lesson.active, ())}
        names = [(parts.called(item), "") for item in items]
        if taught is not None and items:
            sure = lessons.answers(taught, engine.vectors_of([item.id for item in items]))
            names = [(taught.head.classes[int(row.argmax())], f"{row.max():.0%}") for row in sure]
        cards = [
            parts.Card(item.id, parts.thumb(item.id), *name, item.id in mine)
            for item, name in zip(items, names, strict=True)
        ]
        does = f"An example of {lesson.active}, or none any more" if lesson.active else "Name a class first"
        return parts.grid(cards, action="example", does=does)

    def ranked(state: State, order: str) -> State:
        """With other pictures on offer: those that the order wants first."""
        if engine.index is None:
            return state
        lesson, taught = state.lesson, state.taught
        ids, vectors = engine.index.vectors()
        mine = [example.vector for example in lesson.classes.get(lesson.active, ())]
        if order == ORDERS[1] and mine:
            rows = np.argsort(-(vectors @ np.mean(mine, axis=0)), kind="stable")
        elif order == ORDERS[2] and taught is not None:
            best = np.sort(lessons.answers(taught, vectors), axis=1)
            rows = np.argsort(best[:, -1] - best[:, -2], kind="stable")
        else:
            rows = np.linspace(0, len(ids) - 1, min(SHOWN, len(ids))).astype(int)  # of every folder some
        return state._replace(offered=tuple(ids[row] for row in rows[:SHOWN]))

    def everything(state: State, note: str = "", *, changed: bool = True) -> tuple[Any, ...]:
        lesson = state.lesson
        into = f"into {lesson.active}" if lesson.active else "once there is a class"
        return (
            state, board(state), score(state), offer(state), note,
            gr.UploadButton(f"Upload examples {into}", interactive=bool(lesson.classes)),
            gr.Button(interactive=state.taught is not None),
            gr.DownloadButton(visible=False) if changed else gr.skip(),  # what was saved is of the lesson before
        )  # fmt: skip

    def after(state: State, lesson: Lesson, note: str = "") -> tuple[Any, ...]:
        state = state if is_there(state) else ranked(state, ORDERS[0])
        changed = lesson.classes is not state.lesson.classes
        return everything(state._replace(lesson=lesson, taught=lessons.fit(lesson)), note, changed=changed)

    def is_there(state: State) -> bool:
        """Whether any of what is on offer is still in the gallery."""
        return engine.index is not None and bool(engine.index.get(state.offered))

    def begin(state: State, order: str) -> str:
        return offer(state if is_there(state) else ranked(state, order))  # the state is left to those who are quicker

    def rank(state: State, order: str) -> tuple[Any, ...]:
        return everything(ranked(state, order), changed=False)

    def name_class(state: State, name: str) -> tuple[Any, ...]:
        return (*after(state, lessons.add_class(state.lesson, name)), "")

    def click_board(state: State, event: gr.EventData) -> tuple[Any, ...]:
        action, id_ = parts.clicked(event)
        lesson = state.lesson
        if action == "activate" and id_ in lesson.classes:
            lesson = lesson._replace(active=id_)
        elif action == "remove-class":
            lesson = lessons.remove_class(lesson, id_)
        elif action == "remove-example":
            lesson = lessons.remove_example(lesson, id_)
        return after(state, lesson)

    def click_offer(state: State, event: gr.EventData) -> tuple[Any, ...]:
        _, id_ = parts.clicked(event)
        lesson = state.lesson
        if any(example.id == id_ for example in lesson.classes.get(lesson.active, ())):
            return after(state, lessons.remove_example(lesson, id_))
        return after(state, lessons.add_examples(lesson, [of_gallery(id_)]))

    def of_gallery(id_: str) -> Example:
        item = next(iter(engine.index.get([id_]) if engine.index is not None else []), None)
        small = engine.index.thumbnail(id_) if item is not None and engine.index is not None else None
        if item is None or small is None:
            raise ValueError("That picture is no longer in the gallery.")
        length = float(np.linalg.norm(engine.embed(Image.open(io.BytesIO(small)))))
        return Example(item.id, parts.called(item), parts.thumb(item.id), engine.vectors_of([item.id])[0], length)

    def upload(state: State, files: list[str] | None) -> tuple[Any, ...]:
        examples, troubles = [], []
        given = dict.fromkeys(files or [])
        lessons.check_room(state.lesson, len(given))
        for file in given:
            try:
                picture = engine.look(file)
                vector = engine.embed(picture)
            except Refused as error:
                troubles.append(str(error))
                continue
            source, length = parts.data_uri(picture.thumbnail), float(np.linalg.norm(vector))
            examples.append(Example(picture.id, Path(file).name, source, normalise(vector), length))
        note = "".join(parts.problem(text) for text in troubles[:3])
        return after(state, lessons.add_examples(state.lesson, examples), note)

    def try_on(path: str | None, state: State) -> tuple[np.ndarray | None, str]:
        """The features of a picture, which outlive its upload, and what the head takes it for."""
        picture = look(engine, path)
        features = None if picture is None else engine.embed(picture)
        return features, verdict_on(features, state)

    def verdict_on(features: np.ndarray | None, state: State) -> str:
        if features is None:
            return ""
        if state.taught is None:
            return parts.hint("Teach two classes first.")
        sure = lessons.answers(state.taught, features[None])[0]
        found = sorted(zip(state.taught.head.classes, sure.tolist(), strict=True), key=lambda pair: -pair[1])
        return parts.bars(found[:5])

    def save(state: State) -> tuple[Any, str]:
        if state.taught is None:
            raise ValueError("Teach two classes first.")
        folder = Path(tempfile.mkdtemp(prefix="taught-", dir=get_upload_folder()))  # tidied up with the uploads
        file = lessons.save(state.lesson, state.taught, engine.model, folder)
        size = file.stat().st_size / 1e6
        text = (
            f"{file.name}: {len(state.taught.head.classes)} classes, {size:.1f} MB, checked; a student like any other."
        )
        return gr.DownloadButton(value=str(file), visible=True), parts.done(text)

    state, features = gr.State(State(), time_to_live=KEPT), gr.State(None, time_to_live=KEPT)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            with gr.Row(elem_classes="inline"):
                name = gr.Textbox(
                    label="New class", placeholder="such as: my dog", max_lines=1, max_length=LONGEST_NAME,
                    elem_id="class-name", scale=3,
                )  # fmt: skip
                add = gr.Button("Add class", elem_id="add-class", scale=1, min_width=110)
            note = gr.HTML(elem_id="teach-note")
            shown = parts.panel(parts.hint(_BEGIN), name="lesson")
            files = gr.UploadButton(
                "Upload examples once there is a class", file_count="multiple", file_types=PICTURE_ENDINGS,
                interactive=False, elem_id="teach-upload",
            )  # fmt: skip
            uploads_only(files)
            figures = gr.HTML(score(State()), elem_id="score")
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
            order = gr.Radio(list(ORDERS), value=ORDERS[0], label="Gallery pictures", elem_id="order")
            offered = parts.panel(name="offer")
    outputs = [state, shown, figures, offered, note, files, keep, kept]

    def failed(text: str, *, more: int = 0) -> tuple[Any, ...]:
        return tuple(text if output is note else gr.skip() for output in outputs) + (gr.skip(),) * more

    changes = (
        gr.on([add.click, name.submit], told(name_class, lambda text: failed(text, more=1)), [state, name],
              [*outputs, name], **QUICK),
        shown.select(told(click_board, failed), [state], outputs, **QUICK),
        offered.select(told(click_offer, failed), [state], outputs, **QUICK),
        files.upload(told(upload, failed), [state, files], outputs, **QUICK),
    )  # fmt: skip
    for change in changes:  # what was said of the picture to try was said by another head
        change.then(told(verdict_on, lambda text: text), [features, state], verdict, **QUICK)
    order.change(told(rank, failed), [state, order], outputs, **QUICK)
    gr.on([tried.upload, tried.clear], told(try_on, lambda text: (None, text)), [tried, state], [features, verdict],
          **QUICK)  # fmt: skip
    if access.edits:
        keep.click(told(save, lambda text: (gr.skip(), text)), state, [kept, note], **LONG)
    return told(begin, lambda text: text), [state, order], offered
