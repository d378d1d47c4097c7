"""Classify: a picture in; what each model takes it for, and the gallery pictures that explain the answer."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import parts
from app.engine import Engine, Picture
from app.tabs.common import QUICK, look, picture_input, told

NEAREST = 6
_EMPTY = "Choose a picture to see what it is."


class ClassifyTab(NamedTuple):
    picture: gr.Image
    nearest: gr.HTML  # its cards lead to Search


def build(engine: Engine, *, examples: Sequence[Path], credit: str) -> ClassifyTab:
    able = [number for number, model in enumerate(engine.models) if model.num_classes]
    names = [engine.names[number] for number in able]

    def show(path: str | None, chosen: list[str], shown: bool) -> tuple[Any, ...]:
        picture = look(engine, path)
        if picture is not None:
            return answers(picture, chosen), nearest(picture), True, gr.skip()
        if not shown:  # there was nothing, or a message why it could not be, which stays
            return (gr.skip(),) * 4
        return parts.hint(_EMPTY), "", False, gr.skip()

    def again(path: str | None, chosen: list[str]) -> str:
        picture = look(engine, path)
        return parts.hint(_EMPTY) if picture is None else answers(picture, chosen)

    def answers(picture: Picture, chosen: list[str]) -> str:
        if not able:
            return parts.hint("This model has no classifier; it embeds only. Its nearest gallery pictures are below.")
        asked = [number for number, name in zip(able, names, strict=True) if name in chosen] or able[:1]
        told = [
            parts.answer(
                engine.names[number] if len(able) > 1 else "",
                engine.classify(picture, model=number),
                engine.threshold_of(number),
            )
            for number in asked
        ]
        return f'<div class="answers">{"".join(told)}</div>'

    def nearest(picture: Picture) -> str:
        if engine.index is None:
            return ""
        hits = engine.search(picture, k=NEAREST)
        if not hits:
            return '<section class="near"><h3>Nearest in the gallery</h3>' + parts.hint("It is empty.") + "</section>"
        labels = [hit.label for hit in hits if hit.label]
        most = max(labels, key=labels.count) if labels else ""
        agree = (
            f"<p>{labels.count(most)} of the {len(hits)} are labelled {html.escape(most)}.</p>"
            if most
            else "<p>None of them has a label.</p>"
        )
        return (
            f'<section class="near"><h3>Nearest in the gallery</h3>{agree}'
            f"{parts.grid(parts.hit_cards(hits), action='open', does='Search like this', small=True)}</section>"
        )

    with gr.Row(elem_classes=["columns", "looking"]):
        with gr.Column(scale=5, min_width=300, elem_classes="side"):
            picture = picture_input("picture", says="Drop a picture here\n— or —\nclick to choose one")
            if examples:
                gr.Examples(
                    [[str(path)] for path in examples],
                    inputs=[picture],
                    label="Examples",
                    cache_examples=False,
                    examples_per_page=24,
                    api_visibility="private",
                    elem_id="examples",
                )
                called = html.escape("\n".join(path.parent.name for path in examples), quote=True)
                gr.HTML(
                    f'<p class="credit" data-names="{called}">Examples: {html.escape(credit)}.</p>',
                    js_on_load=parts.script("examples"),
                )
            if able:
                gr.HTML(parts.classes(engine.labels_of(able[0])))
        with gr.Column(scale=7, min_width=320, elem_classes="tall"):
            chosen = gr.CheckboxGroup(
                names, value=names, label="Models", visible=len(able) > 1, elem_id="models", container=False
            )
            verdicts = parts.panel(parts.hint(_EMPTY), name="verdict")
            near = parts.panel(name="nearest")
    there = gr.State(False)
    # What cannot be shown is taken away; the message stays.
    run = told(show, lambda text: (text, "", False, None))
    picture.change(run, [picture, chosen, there], [verdicts, near, there, picture], **QUICK)
    chosen.change(told(again, lambda text: text), [picture, chosen], verdicts, **QUICK)
    return ClassifyTab(picture, near)
