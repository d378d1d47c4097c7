"""Pieces of the page as HTML: picture cards, bars, tables, messages. Every value from outside is escaped."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr

from app.engine import Classification
from app.index import Hit, Item

_SCRIPTS = Path(__file__).with_name("js")
_LONGEST_ID = 256  # letters; a picture's id has 64, a label of a gallery's folder as many as a file's name may have


class Card(NamedTuple):
    """A picture to show: its id, where the browser gets it, what stands below it, and whether it is chosen."""

    id: str
    source: str
    title: str
    note: str = ""
    chosen: bool = False


def script(name: str) -> str:
    """The text of one of the page's scripts, run when its component appears."""
    return (_SCRIPTS / f"{name}.js").read_text(encoding="utf-8")


def panel(value: str = "", *, name: str, script_name: str = "clicks", **props: Any) -> gr.HTML:
    """HTML whose buttons with ``data-action`` send a ``select`` event of their action and ``data-id``."""
    return gr.HTML(value, elem_id=name, js_on_load=script(script_name), apply_default_css=False, **props)


def clicked(event: gr.EventData) -> tuple[str, str]:
    """Action and id of a panel's event; empty where the client sent something else. States keep ids, so they are
    short."""
    data = event._data if isinstance(event._data, dict) else {}
    action, id_ = (
        value if isinstance(value := data.get(name), str) and len(value) <= _LONGEST_ID else ""
        for name in ("action", "id")
    )
    return action, id_


def hint(text: str) -> str:
    return f'<p class="hint">{html.escape(text)}</p>'


def problem(text: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(text)}</p>'


def done(text: str) -> str:
    return f'<p class="done" role="status">{html.escape(text)}</p>'


def data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def thumb(id_: str) -> str:
    """Where the server has the small picture of a gallery picture, relative to the page."""
    return f"thumbs/{quote(id_, safe='')}.jpg"


def called(item: Item | Hit) -> str:
    """What stands below a gallery picture: its label, else its file's name."""
    return item.label or PurePosixPath(item.path).name


def hit_cards(hits: Iterable[Hit], *, chosen: Iterable[str] = ()) -> list[Card]:
    picked = set(chosen)
    return [Card(hit.id, thumb(hit.id), called(hit), f"{hit.score:.3f}", hit.id in picked) for hit in hits]


def item_cards(items: Iterable[Item], *, chosen: Iterable[str] = ()) -> list[Card]:
    picked = set(chosen)
    return [Card(item.id, thumb(item.id), called(item), "", item.id in picked) for item in items]


def grid(cards: Sequence[Card], *, action: str, does: str, pick: str = "", small: bool = False) -> str:
    """Cards as a list of buttons. ``action`` is what a click sends and ``does`` what it does, in words for those who
    hear the page; ``pick`` adds a second button, for choosing several, called so."""
    rows = []
    for card in cards:
        title, note = html.escape(card.title), html.escape(card.note)
        spoken = html.escape(f"{does}: {card.title}{f', {card.note}' if card.note else ''}", quote=True)
        id_ = html.escape(card.id, quote=True)
        second = ""
        if pick:
            spoken_pick = html.escape(f"{pick}: {card.title}", quote=True)
            pressed = "true" if card.chosen else "false"
            second = (
                f'<button type="button" class="pick" data-action="pick" data-id="{id_}" aria-pressed="{pressed}" '
                f'aria-label="{spoken_pick}"><span aria-hidden="true">{"✓" if card.chosen else "+"}</span></button>'
            )
        rows.append(
            f'<li class="{"chosen" if card.chosen else ""}"><button type="button" class="card" data-action="{action}" '
            f'data-id="{id_}" aria-label="{spoken}"><img src="{html.escape(card.source, quote=True)}" alt="" '
            f'loading="lazy" width="160" height="160"></button>{second}'
            f'<span class="caption"><span>{title}</span>{f"<em>{note}</em>" if note else ""}</span></li>'
        )
    return f'<ul class="cards{" small" if small else ""}">{"".join(rows)}</ul>'


def bars(ranked: Sequence[tuple[str, float]]) -> str:
    """Probabilities as bars, with their numbers."""
    rows = "".join(
        f'<li><span class="name">{html.escape(label)}</span><span class="value">{probability:.1%}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{max(probability, 0.002):.2%}"></i></span></li>'
        for label, probability in ranked
    )
    return f'<ol class="bars">{rows}</ol>'


def answer(name: str, found: Classification, below: float) -> str:
    """What one model says of a picture: a verdict in words and its five best classes."""
    best, probability = found.ranked[0]
    if found.none_likely:
        verdict = (
            '<div class="verdict none"><strong>None of the classes is likely.</strong><span>The nearest, '
            f"{html.escape(best)}, has {probability:.0%}; a class counts as likely from {below:.0%}.</span></div>"
        )
    else:
        verdict = f'<div class="verdict"><strong>{html.escape(best)}</strong><span>{probability:.1%}</span></div>'
    title = f'<h3 class="model">{html.escape(name)}</h3>' if name else ""
    return f'<section class="answer">{title}{verdict}{bars(found.ranked)}</section>'


def classes(labels: Sequence[str], *, shown: int = 40) -> str:
    """The classes a model knows, as chips."""

    def chips(names: Iterable[str]) -> str:
        return "".join(f"<li>{html.escape(name)}</li>" for name in names)

    rest = ""
    if len(labels) > shown:
        rest = f"<details><summary>{len(labels) - shown} more</summary><ul>{chips(labels[shown:])}</ul></details>"
    return (
        f'<section class="classes"><h3>The {len(labels)} classes it knows</h3><ul>{chips(labels[:shown])}</ul>{rest}'
        "<p>A picture of anything else still gets probabilities that sum to one: read them with that in mind.</p>"
        "</section>"
    )


# Facts of any shape

_PERCENT = ("top1", "top5", "top_1", "top_5", "accuracy")


def table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(str(name).replace('_', ' '))}</th><td>{_value(str(name), value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return table(value)
    if isinstance(value, list | tuple):
        return ", ".join(_value(name, item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return number(name, value)
    text = html.escape(str(value))
    return f"<code>{text}</code>" if name in ("sha256", "command", "commit") else text


def number(name: str, value: int | float) -> str:
    if name in _PERCENT and 0 <= value <= 1:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
