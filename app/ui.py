"""The page: one picture on the left; what it is, what is like it, and what the model is, on the right. No inference."""

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from app.engine import Engine, Prediction
from app.index import Hit
from app.pictures import CREDIT
from app.uploads import read_upload, uploads_only

MOST_HITS = 48
MAX_FILE_SIZE = "20mb"
CHIPS = 40  # classes shown without unfolding

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace")

_LIGHT = {
    "paper": "#f5f2ea", "card": "#fffdf8", "ink": "#23302c", "muted": "#65706a", "line": "#e2dccd",
    "accent": "#2c6a5b", "soft": "#e1ece5", "warn": "#8f5a14", "warn_soft": "#f7ebd3",
}  # fmt: skip
_DARK = {
    "paper": "#161b1a", "card": "#1e2524", "ink": "#e9e6dd", "muted": "#9aa7a1", "line": "#323c39",
    "accent": "#86c7b3", "soft": "#263632", "warn": "#e2b873", "warn_soft": "#37301f",
}  # fmt: skip

_MARK = (  # two views of one thing
    '<svg class="mark" viewBox="0 0 48 32" aria-hidden="true"><circle cx="17" cy="16" r="14"/>'
    '<circle cx="31" cy="16" r="14"/></svg>'
)


def theme() -> gr.themes.Base:
    """Paper, ink and pine; fonts of the system; nothing fetched."""
    base = gr.themes.Base(font=_SANS, font_mono=_MONO, radius_size="lg", text_size="md")
    values = {
        "body_background_fill": "paper", "background_fill_primary": "card", "background_fill_secondary": "paper",
        "block_background_fill": "card", "block_label_background_fill": "card", "block_label_text_color": "muted",
        "block_title_text_color": "muted", "body_text_color": "ink", "body_text_color_subdued": "muted",
        "border_color_primary": "line", "block_border_color": "line", "input_background_fill": "card",
        "input_border_color": "line", "color_accent_soft": "soft", "slider_color": "accent",
        "border_color_accent": "accent", "link_text_color": "accent", "link_text_color_hover": "accent",
        "link_text_color_visited": "accent", "loader_color": "accent", "stat_background_fill": "accent",
        "button_secondary_background_fill": "soft", "button_secondary_background_fill_hover": "line",
        "button_secondary_text_color": "ink", "panel_background_fill": "card", "table_even_background_fill": "card",
        "error_background_fill": "card", "block_info_text_color": "muted",
    }  # fmt: skip
    colours = {name: _LIGHT[word] for name, word in values.items()}
    colours |= {f"{name}_dark": _DARK[word] for name, word in values.items() if not name.endswith("_dark")}
    colours["color_accent"] = _LIGHT["accent"]  # has no twin for dark: see css()
    return base.set(**colours, block_shadow="none", block_shadow_dark="none", block_border_width="1px")


def css() -> str:
    """The theme's style sheet, with the colours for light and dark."""

    def variables(palette: dict[str, str]) -> str:
        return "".join(f"--s-{name.replace('_', '-')}: {value};" for name, value in palette.items())

    sheet = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return f":root {{{variables(_LIGHT)}}}\n.dark {{{variables(_DARK)}--color-accent: {_DARK['accent']};}}\n{sheet}"


def favicon(path: Path) -> Path:
    """Write the page's mark as a PNG."""
    image = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(image)
    for x in (88, 168):
        draw.ellipse([x - 78, 50, x + 78, 206], outline=_LIGHT["accent"], width=24)
    image.resize((64, 64), Image.Resampling.LANCZOS).save(path)
    return path


def build(engine: Engine, *, examples: Sequence[Path] = (), example_credit: str = CREDIT) -> gr.Blocks:
    """The page of an engine. Events that gradio_client can call: ``/classify``, ``/embed``, ``/search``."""
    classifies, searches = engine.model.num_classes > 0, engine.index is not None

    def classify(picture: str | None) -> tuple[dict[str, float] | None, str]:
        if picture is None:
            return None, _hint("Choose a picture to see what it is.")
        try:
            ranked, none_likely = engine.classify(read_upload(picture))
        except ValueError as error:
            raise _refusal(error) from None
        return dict(ranked), _verdict(ranked, none_likely, engine.none_likely_below)

    def search(picture: str | None, k: float) -> tuple[list[Any], list[dict[str, Any]], str]:
        if picture is None:
            return [], [], _hint("Choose a picture to find its like in the gallery.")
        try:
            hits = engine.search(read_upload(picture), k=min(max(int(k), 1), MOST_HITS))
        except ValueError as error:
            raise _refusal(error) from None
        shown = [(Image.open(io.BytesIO(hit.thumbnail)), _caption(hit)) for hit in hits]
        # not "path": gradio_client takes that for a file to download
        found = [{"file": hit.path, "label": hit.label, "score": round(hit.score, 6), "id": hit.id} for hit in hits]
        return shown, found, ""

    def embed(picture: str | None) -> list[float]:
        if picture is None:
            raise gr.Error("No picture was given.", print_exception=False)
        try:
            return [float(value) for value in engine.embed(read_upload(picture))]
        except ValueError as error:
            raise _refusal(error) from None

    with gr.Blocks(title="simclrv2", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=False) as page:
        gr.HTML(_header(engine))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=300, elem_id="left"):
                picture = gr.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    label="Picture",
                    show_label=False,
                    buttons=[],
                    height=330,
                    elem_id="picture",
                    placeholder="Drop a picture here\n— or —\nclick to choose one",
                )
                uploads_only(picture)
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
                    gr.HTML(f'<p class="credit">Examples: {html.escape(example_credit)}.</p>')
            with gr.Column(scale=7, min_width=320, elem_id="right"), gr.Tabs(elem_id="tabs"):
                if classifies:
                    with gr.Tab("Classify", id="classify"):
                        verdict = gr.HTML(_hint("Choose a picture to see what it is."), elem_id="verdict")
                        label = gr.Label(
                            num_top_classes=5, show_label=False, show_heading=False, elem_id="label", container=False
                        )
                        gr.HTML(_classes(engine.labels))
                if searches:
                    with gr.Tab("Search", id="search"):
                        note = gr.HTML(_hint("Choose a picture to find its like in the gallery."), elem_id="note")
                        gallery = gr.Gallery(
                            show_label=False,
                            columns=4,
                            height="auto",
                            object_fit="cover",
                            allow_preview=False,
                            buttons=[],
                            interactive=False,
                            elem_id="gallery",
                            container=False,
                        )
                        most = min(MOST_HITS, max(engine.index.count() if engine.index else 1, 1))
                        count = gr.Slider(1, max(most, 2), min(12, most), step=1, label="How many", elem_id="count")
                        found = gr.JSON(visible=False, label="Matches")
                with gr.Tab("About", id="about"):
                    gr.HTML(_about(engine.facts()))
        vector = gr.JSON(visible=False, label="Features")

        model_work: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 2, "show_progress": "minimal"}
        changed: Any = picture.change
        if classifies:
            classified = changed(
                classify,
                [picture],
                [label, verdict],
                api_name="classify",
                api_description="The five most probable classes of a picture.",
                **model_work,
            )
            # What cannot be shown is taken away: the message stays.
            classified.failure(lambda: None, None, [picture], queue=False, api_visibility="private")
            changed = classified.success
        if searches:
            outputs = [gallery, found, note]
            changed(
                search,
                [picture, count],
                outputs,
                api_name="search",
                api_description="The gallery pictures most similar to a picture, with their cosines.",
                **model_work,
            )
            count.release(search, [picture, count], outputs, api_visibility="private", **model_work)
        gr.Button(visible=False).click(
            embed,
            [picture],
            [vector],
            api_name="embed",
            api_description="The features of a picture, one vector, not normalised.",
            **model_work,
        )
    for component in page.blocks.values():
        _refuse_addresses(component)
    page.queue(max_size=64)
    return page


def _refuse_addresses(component: Any) -> None:
    """Make a component take uploads only: Gradio would fetch the address that a client names as a file."""
    original = getattr(component, "async_move_resource_to_block_cache", None)
    if original is None:
        return

    async def uploads_only(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gr.Error("Only uploaded files are read, no addresses.", print_exception=False)
        kept: str | None = await original(path)
        return kept

    component.async_move_resource_to_block_cache = uploads_only


def _refusal(error: ValueError) -> gr.Error:
    return gr.Error(html.escape(str(error)), title="This picture cannot be used", duration=8, print_exception=False)


# Pieces of the page, as HTML; every value that comes from outside is escaped


def _header(engine: Engine) -> str:
    named = engine.model.facts.get("weights", "")
    line = " · ".join(html.escape(str(part)) for part in ("simclrv2", engine.model.architecture, named) if part)
    return (
        f'<header class="top">{_MARK}<div><h1>What is it, and what is like it?</h1>'
        f"<p>A small network that learned to see from pictures without labels.</p></div>"
        f'<span class="model">{line}</span></header>'
    )


def _hint(text: str) -> str:
    return f'<p class="hint">{html.escape(text)}</p>'


def _verdict(ranked: Sequence[Prediction], none_likely: bool, below: float) -> str:
    best = html.escape(ranked[0].label)
    if none_likely:
        return (
            '<div class="verdict none"><strong>None of the classes is likely.</strong><span>The nearest, '
            f"{best}, has {ranked[0].probability:.0%}; a class counts as likely from {below:.0%}.</span></div>"
        )
    return f'<div class="verdict"><strong>{best}</strong><span>{ranked[0].probability:.1%}</span></div>'


def _caption(hit: Hit) -> str:
    return f"{hit.score:.3f}  {hit.label or Path(hit.path).name}"


def _classes(labels: Sequence[str]) -> str:
    def chips(names: Iterable[str]) -> str:
        return "".join(f"<li>{html.escape(name)}</li>" for name in names)

    rest = ""
    if len(labels) > CHIPS:
        rest = f"<details><summary>{len(labels) - CHIPS} more</summary><ul>{chips(labels[CHIPS:])}</ul></details>"
    return (
        f'<section class="classes"><h2>The {len(labels)} classes it knows</h2><ul>{chips(labels[:CHIPS])}</ul>{rest}'
        "<p>A picture of anything else still gets probabilities that sum to one: read them with that in mind.</p>"
        "</section>"
    )


_PERCENT = ("top1", "top5", "top_1", "top_5", "accuracy")


def _about(facts: dict[str, dict[str, Any]]) -> str:
    told = dict(facts["facts"])
    heads = []
    for name, title in (("accuracy", "top-1 accuracy"), ("supervised_only", "same labels, supervised only")):
        value = told.get(name)
        top1 = value.get("top1") if isinstance(value, dict) else value
        if isinstance(top1, int | float) and not isinstance(top1, bool):
            heads.append(f"<div><strong>{_number('top1', top1)}</strong><span>{title}</span></div>")
    heads.append(f"<div><strong>{html.escape(facts['model']['file_size'])}</strong><span>the file</span></div>")
    sections = [f'<div class="figures">{"".join(heads)}</div>']
    titles = {"facts": "What the model says of itself", "model": "The file", "gallery": "The gallery"}
    for key, title in titles.items():
        if facts[key]:
            sections.append(f"<h2>{title}</h2>{_table(facts[key])}")
    return f'<section class="about">{"".join(sections)}</section>'


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(str(name).replace('_', ' '))}</th><td>{_value(str(name), value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return _table(value)
    if isinstance(value, list | tuple):
        return ", ".join(_value(name, item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return _number(name, value)
    text = html.escape(str(value))
    return f"<code>{text}</code>" if name in ("sha256", "command", "commit") else text


def _number(name: str, value: int | float) -> str:
    if name in _PERCENT and 0 <= value <= 1:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
