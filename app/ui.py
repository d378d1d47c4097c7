"""The page: a header, and the tabs that a visitor may use. No inference."""

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import endpoints, parts, theme
from app.access import Access
from app.engine import Engine
from app.pictures import CREDIT
from app.tabs import about, classify, gallery, label, map, search, teach
from app.tabs.common import LONG, QUICK

LOCAL = Access(edits=True, public=False, password=False)


def build(
    engine: Engine,
    access: Access = LOCAL,
    *,
    examples: Sequence[Path] = (),
    credit: str = CREDIT,
    labels: Path = Path("labels.csv"),
) -> gr.Blocks:
    """The page of an engine, with what ``access`` allows: Map, Label and Gallery only where it may be edited.

    ``labels`` is the CSV file that Label writes. ``app.endpoints`` lists what programs can call.
    """
    edits = access.edits and engine.index is not None
    with gr.Blocks(title="simclrv2", analytics_enabled=False, delete_cache=(600, 3600), fill_width=False) as page:
        gr.HTML(_header(engine))
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Classify", id="classify"):
                first = classify.build(engine, examples=examples, credit=credit)
            with gr.Tab("Search", id="search") as searching:
                found = search.build(engine, access)
            with gr.Tab("Teach", id="teach") as teaching:
                lesson = teach.build(engine, access)
            if edits:
                with gr.Tab("Map", id="map") as mapping:
                    draw, point = map.build(engine)
                with gr.Tab("Label", id="label") as labelling:
                    begin = label.build(engine, labels.absolute())
                with gr.Tab("Gallery", id="gallery-tab") as listing:
                    show, filters = gallery.build(engine)
            with gr.Tab("About", id="about") as telling:
                facts = about.build(engine, access)

        def open_search(event: gr.EventData) -> tuple[Any, ...]:
            return *search.opened(parts.clicked(event)[1]), gr.Tabs(selected="search")

        for panel in [first.nearest, *([point] if edits else [])]:
            panel.select(open_search, None, [*found.asked, tabs], **QUICK).then(
                found.run, found.inputs, found.outputs, **QUICK
            )
        quick = [(searching, (found.run, found.inputs, found.outputs)), (teaching, lesson), (telling, facts)]
        long = []
        if not edits:  # but somebody else may
            quick.append((searching, (partial(search.refresh_labels, engine), found.filters[:1], found.filters[:1])))
        else:
            quick.append((listing, show))
            for tab, controls in ((searching, found.filters), (listing, filters)):
                quick.append((tab, (partial(search.refresh, engine), controls, controls)))
            long = [(mapping, draw), (labelling, begin)]
        for tab, (run, inputs, outputs) in quick:
            tab.select(run, inputs, outputs, **QUICK)
        for tab, (run, inputs, outputs) in long:
            tab.select(run, inputs, outputs, **LONG)
        endpoints.add(engine, access, labels=labels.absolute())
    page.queue(max_size=64)
    return page


def _header(engine: Engine) -> str:
    named = engine.model.facts.get("weights", "")
    line = " · ".join(html.escape(str(part)) for part in ("simclrv2", engine.model.architecture, named) if part)
    return (
        f'<header class="top">{theme.MARK}<div><h1>What is it, and what is like it?</h1>'
        "<p>A small network that learned to see from pictures without labels.</p></div>"
        f'<span class="model">{line}</span></header>'
    )
