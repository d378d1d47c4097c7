"""About: what each model is, how good, how large, how fast on this machine."""

import html
import threading
import time
from typing import Any

import gradio as gr

from app import parts
from app.access import Access
from app.engine import Engine
from app.tabs.common import LONG

MEASURED_EVERY = 30.0  # seconds, at most, however many ask


def card(facts: dict[str, dict[str, Any]], *, title: str = "") -> str:
    """A model's facts as a page."""
    told = dict(facts["facts"])
    heads = []
    for name, what in (("accuracy", "top-1 accuracy"), ("supervised_only", "same labels, supervised only")):
        value = told.get(name)
        top1 = value.get("top1") if isinstance(value, dict) else value
        if isinstance(top1, int | float) and not isinstance(top1, bool):
            heads.append(f"<div><strong>{parts.number('top1', top1)}</strong><span>{what}</span></div>")
    heads.append(f"<div><strong>{html.escape(facts['model']['file_size'])}</strong><span>the file</span></div>")
    sections = [f"<h2>{html.escape(title)}</h2>" if title else "", f'<div class="figures">{"".join(heads)}</div>']
    titles = {"facts": "What the model says of itself", "model": "The file", "gallery": "The gallery"}
    for key, name in titles.items():
        if facts[key]:
            sections.append(f"<h3>{name}</h3>{parts.table(facts[key])}")
    return f'<section class="about">{"".join(sections)}</section>'


def facts_for(engine: Engine, access: Access, model: int = 0) -> dict[str, dict[str, Any]]:
    """A model's facts and the gallery's; strangers are not told where the gallery lies."""
    facts = engine.facts(model)
    if not access.edits:
        facts["gallery"] = {name: value for name, value in facts["gallery"].items() if name != "where"}
    return facts


def build(engine: Engine, access: Access) -> Any:
    """Returns the event that tells the facts as they are now: function, inputs, outputs."""
    measuring, latest = threading.Lock(), [(-MEASURED_EVERY, "")]

    def cards() -> list[str]:
        several = len(engine.names) > 1
        return [
            card(facts_for(engine, access, number), title=name if several else "")
            for number, name in enumerate(engine.names)
        ]

    def measure() -> str:
        with measuring:  # it takes a second of all cores: who asks meanwhile gets the same answer
            if time.monotonic() - latest[0][0] >= MEASURED_EVERY:
                latest[0] = time.monotonic(), measured()
            return latest[0][1]

    def measured() -> str:
        rows = []
        for number, name in enumerate(engine.names):
            speed = engine.speed(model=number)
            rows.append(
                f"<div><strong>{speed['milliseconds']:.3g} ms</strong><span>a picture, {html.escape(name)}</span></div>"
                f"<div><strong>{speed['images_per_second']:,.0f}</strong><span>pictures a second, in batches of 16"
                "</span></div>"
            )
        return f'<section class="about"><div class="figures">{"".join(rows)}</div></section>'

    with gr.Column(elem_classes="narrow"):
        run = gr.Button("Measure its speed on this machine", elem_id="measure")
        speed = gr.HTML(elem_id="speed")
        shown = [gr.HTML(text, elem_classes="card-of") for text in cards()]
    run.click(measure, None, speed, **LONG)
    return (lambda: cards() if len(shown) > 1 else cards()[0]), None, shown
