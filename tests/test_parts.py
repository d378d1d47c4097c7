"""Pieces of the page: what comes from outside is text, and no path of the machine is shown."""

from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from app import parts
from app.engine import Classification, Prediction
from app.index import Item
from app.tabs.about import card

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{x}}${y}"


class Tags(HTMLParser):
    """Which tags and attributes a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize(
    "piece",
    [
        parts.hint(NASTY),
        parts.problem(NASTY),
        parts.done(NASTY),
        parts.grid([parts.Card(NASTY, NASTY, NASTY, NASTY, True)], action="open", does=NASTY, pick=NASTY),
        parts.bars([(NASTY, 0.5)]),
        parts.answer(NASTY, Classification([Prediction(NASTY, 0.9)], False), 0.5),
        parts.answer(NASTY, Classification([Prediction(NASTY, 0.3)], True), 0.5),
        parts.classes([NASTY] * 50),
        parts.table({NASTY: {NASTY: [NASTY, 1]}}),
        card({"facts": {NASTY: NASTY}, "model": {"file_size": NASTY}, "gallery": {}}, title=NASTY),
    ],
)
def test_what_comes_from_outside_is_text(piece: str) -> None:
    seen = Tags(piece)
    assert "script" not in seen.tags
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    images = [value for name, value in seen.attributes if name == "src"]
    assert images == [NASTY] * ("<ul" in piece and "card" in piece and "data-action" in piece)


def test_a_grid_says_what_its_buttons_do() -> None:
    cards = [parts.Card("a", "a.jpg", "church", "0.98"), parts.Card("b", "b.jpg", "horn", chosen=True)]
    piece = parts.grid(cards, action="like", does="Search like this", pick="Choose")
    labels = [value for name, value in Tags(piece).attributes if name == "aria-label"]
    assert labels == ["Search like this: church, 0.98", "Choose: church", "Search like this: horn", "Choose: horn"]
    assert piece.count('aria-pressed="true"') == 1


def test_a_picture_is_called_by_its_label_or_its_file() -> None:
    assert parts.called(Item("1", "/p/a.jpg", "cat")) == "cat"
    assert parts.called(Item("1", "/p/a.jpg", "")) == "a.jpg"


def test_about_shows_any_facts() -> None:
    facts = {"a_b": {"c": [1, 2.5, {"d": None}]}, "ok": True, "accuracy": 0.5, "n": 12345, "x": "<script>"}
    page = card({"facts": facts, "model": {"file_size": "1 MB"}, "gallery": {}})
    assert "<script>" not in page
    for text in ("a b", "2.5", "–", "yes", "50.0%", "12,345"):
        assert text in page


def test_a_panel_hears_only_what_it_expects() -> None:
    for data in (None, 3, {"action": 5, "id": []}, {}):
        assert parts.clicked(SimpleNamespace(_data=data)) == ("", "")  # type: ignore[arg-type]
    assert parts.clicked(SimpleNamespace(_data={"action": "a", "id": "b"})) == ("a", "b")  # type: ignore[arg-type]
    long = SimpleNamespace(_data={"action": "pick", "id": "x" * 100_000})  # would be kept, a thousand visitors long
    assert parts.clicked(long) == ("pick", "")  # type: ignore[arg-type]
