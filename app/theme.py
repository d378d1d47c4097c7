"""The page's look: colours for light and dark, fonts of the system, the mark. Nothing is fetched."""

from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace")

_LIGHT = {
    "paper": "#f5f2ea", "card": "#fffdf8", "ink": "#23302c", "muted": "#5d6862", "line": "#e2dccd",
    "accent": "#2c6a5b", "soft": "#e1ece5", "warn": "#8a5410", "warn_soft": "#f7ebd3", "on_accent": "#fffdf8",
}  # fmt: skip
_DARK = {
    "paper": "#161b1a", "card": "#1e2524", "ink": "#e9e6dd", "muted": "#a3b0aa", "line": "#323c39",
    "accent": "#86c7b3", "soft": "#263632", "warn": "#e2b873", "warn_soft": "#37301f", "on_accent": "#14201c",
}  # fmt: skip

MARK = (  # two views of one thing
    '<svg class="mark" viewBox="0 0 48 32" aria-hidden="true"><circle cx="17" cy="16" r="14"/>'
    '<circle cx="31" cy="16" r="14"/></svg>'
)

_FILLS = {  # Gradio's variable -> our colour
    "body_background_fill": "paper", "background_fill_primary": "card", "background_fill_secondary": "paper",
    "block_background_fill": "card", "block_label_background_fill": "card", "block_label_text_color": "muted",
    "block_title_text_color": "muted", "body_text_color": "ink", "body_text_color_subdued": "muted",
    "border_color_primary": "line", "block_border_color": "line", "input_background_fill": "card",
    "input_border_color": "line", "input_placeholder_color": "muted", "color_accent_soft": "soft",
    "slider_color": "accent", "border_color_accent": "accent", "link_text_color": "accent",
    "link_text_color_hover": "accent", "link_text_color_visited": "accent", "loader_color": "accent",
    "stat_background_fill": "accent", "button_secondary_background_fill": "soft",
    "button_secondary_background_fill_hover": "line", "button_secondary_text_color": "ink",
    "button_primary_background_fill": "accent", "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "on_accent", "panel_background_fill": "card", "table_even_background_fill": "card",
    "error_background_fill": "card", "block_info_text_color": "muted", "checkbox_label_background_fill": "card",
    "checkbox_label_background_fill_selected": "soft", "checkbox_label_text_color": "ink",
    "checkbox_label_text_color_selected": "ink", "checkbox_background_color_selected": "accent",
    "checkbox_border_color_selected": "accent",
}  # fmt: skip


def theme() -> gr.themes.Base:
    """Paper, ink and pine."""
    base = gr.themes.Base(font=_SANS, font_mono=_MONO, radius_size="lg", text_size="md")
    colours = {name: _LIGHT[word] for name, word in _FILLS.items()}
    colours |= {f"{name}_dark": _DARK[word] for name, word in _FILLS.items()}
    colours["color_accent"] = _LIGHT["accent"]  # has no twin for dark: see css()
    return base.set(**colours, block_shadow="none", block_shadow_dark="none", block_border_width="1px")


def css() -> str:
    """The page's style sheet, with the colours for light and dark."""

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
