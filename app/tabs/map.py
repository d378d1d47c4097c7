"""Map: the gallery in two dimensions; a click on a point shows its picture."""

import base64
import html
import importlib.util
import threading
from typing import Any

import gradio as gr
import numpy as np

from app import atlas, parts
from app.engine import Engine
from app.tabs.common import LONG, QUICK, told

MOST_POINTS = 50_000
MOST_TSNE = 10_000
MOST_COLOURS = 12  # classes with a colour of their own; the rest share one
_CLUSTERS = 10


class Maps:
    """Positions of the gallery's pictures, computed once for every state of the gallery and kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, str], tuple[list[str], np.ndarray]] = {}

    def positions(self, method: str) -> tuple[list[str], np.ndarray]:
        """Ids and positions (N, 2) in [-1, 1]; of a large gallery an even sample."""
        assert self.engine.index is not None
        with self._lock:
            key = (self.engine.index.version(), method)
            if key not in self._kept:
                self._kept = {kept: value for kept, value in self._kept.items() if kept[0] == key[0]}
                ids, vectors = self.engine.index.vectors()
                rows = spread(len(ids), MOST_TSNE if method == "tsne" else MOST_POINTS)
                self._kept[key] = [ids[row] for row in rows], atlas.flat(vectors[rows], method=method)  # type: ignore[arg-type]
            return self._kept[key]

    def clusters(self, ids: list[str]) -> list[str]:
        assert self.engine.index is not None
        with self._lock:
            vectors = self.engine.vectors_of(ids)
            found = atlas.clusters(vectors, min(_CLUSTERS, len(vectors)))
        return [f"cluster {number + 1}" for number in found]


def spread(count: int, most: int) -> np.ndarray:
    """Row numbers, all of them or ``most`` evenly."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def points(positions: np.ndarray, names: list[str]) -> dict[str, Any]:
    """What the script draws: positions as 16-bit numbers, colours as numbers of the most frequent names, a legend."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    coloured = ranked[:MOST_COLOURS]
    number = {name: row for row, name in enumerate(coloured)}
    colours = np.array([number.get(name, MOST_COLOURS) for name in names], np.uint8)
    legend = [[name or "(no label)", counts[name]] for name in coloured]
    if len(ranked) > MOST_COLOURS:
        legend.append([f"{len(ranked) - MOST_COLOURS} others", sum(counts[name] for name in ranked[MOST_COLOURS:])])
    whole = np.rint(positions * 32767).astype("<i2")
    return {
        "count": len(names),
        "xy": base64.b64encode(whole.tobytes()).decode(),
        "colours": base64.b64encode(colours.tobytes()).decode(),
        "legend": legend,
        "more": MOST_COLOURS if len(ranked) > MOST_COLOURS else None,
    }


def build(engine: Engine) -> tuple[Any, gr.HTML]:
    """Returns the event that draws the map (function, inputs, outputs) and the panel whose buttons lead to Search."""
    maps = Maps(engine)

    def draw(method: str, colour: str) -> tuple[Any, str, list[str], str]:
        if engine.index is None or engine.index.count() < 3:
            return None, parts.hint("A map needs a gallery of three pictures or more."), [], ""
        ids, positions = maps.positions(method)
        if colour == "cluster":
            names = maps.clusters(ids)
        else:
            label = {item.id: item.label for item in engine.index.get(ids)}
            names = [label.get(id_, "") for id_ in ids]
        total = engine.index.count()
        some = f" (an even sample of {total:,})" if len(ids) < total else ""
        text = f"{len(ids):,} pictures{some}; near means alike to the model. Click a point, or use the arrow keys."
        return points(positions, names), parts.hint(text), ids, ""

    def point(ids: list[str], event: gr.EventData) -> str:
        _, row = parts.clicked(event)
        items = engine.index.get([ids[int(row)]]) if row.isdecimal() and int(row) < len(ids) and engine.index else []
        if not items:
            return parts.hint("That picture is no longer in the gallery.")
        item = items[0]
        return (
            f'<figure class="point"><img src="{parts.thumb(item.id)}" alt="">'
            f'<figcaption><p role="status"><strong>{html.escape(item.label or "(no label)")}</strong>'
            f"<span>{html.escape(engine.places().shown(item.path))}</span></p>"
            f'<button type="button" data-action="open" data-id="{item.id}">More like this</button>'
            "</figcaption></figure>"
        )

    methods = [("PCA", "pca")]
    if importlib.util.find_spec("sklearn"):
        methods.append(("t-SNE (slower)", "tsne"))
    ids = gr.State([])
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=9, min_width=320):
            note = gr.HTML(elem_id="map-note")
            canvas = gr.HTML(
                None, html_template='<div class="map"></div>', js_on_load=parts.script("map"), elem_id="map",
                apply_default_css=False,
            )  # fmt: skip
        with gr.Column(scale=3, min_width=240, elem_classes="side"):
            method = gr.Radio(methods, value="pca", label="Layout", elem_id="map-method")
            colour = gr.Radio(["label", "cluster"], value="label", label="Colour", elem_id="map-colour")
            shown = parts.panel(name="point")
    inputs, outputs = [method, colour], [canvas, note, ids, shown]
    run = told(draw, lambda text: (None, text, [], ""))
    for control in (method, colour):
        control.change(run, inputs, outputs, **LONG)
    canvas.select(told(point, lambda text: text), ids, shown, **QUICK)
    return (run, inputs, outputs), shown
