"""What is kept of visitors: for how long, and how much of all of them together."""

from typing import Any, NamedTuple

import pytest

pytest.importorskip("gradio")

import gradio as gr

from app import sessions

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Gradio makes event loops for a page and closes none
]


class Kept(NamedTuple):
    weight: int


@pytest.fixture
def holder() -> tuple[sessions.Sessions, int]:
    """The states of a page that keeps one thing of each visitor, and its number."""
    with gr.Blocks(analytics_enabled=False) as page:
        state = gr.State(Kept(0), time_to_live=3600)
    made = sessions.Sessions()
    made.set_blocks(page)
    return made, state._id


def expired(session: Any) -> list[bool]:
    return [over for _, _, over in session.state_components]


def test_who_asks_has_the_page_open(holder: tuple[sessions.Sessions, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that slept breaks the page's heartbeat off for good; the work on it goes on."""
    states, number = holder
    states["a"][number] = Kept(1)
    session = states.session_data["a"]
    session.STATE_TTL_WHEN_CLOSED = -1
    session.is_closed = True  # as Gradio does when the heartbeat ends
    assert expired(session) == [True]
    assert states["a"][number] == Kept(1)
    assert expired(session) == [False]
    states.delete_all_expired_state()
    assert states["a"][number] == Kept(1)


def test_the_heaviest_are_not_all_kept(holder: tuple[sessions.Sessions, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "HEAVIEST", 10)
    states, number = holder
    for name, weight in (("a", 4), ("light", 0), ("b", 4), ("c", 2)):
        states[name][number] = Kept(weight)
    assert states["a"][number] == Kept(4)  # looked at: b was away longest now
    states["c"][number] = Kept(5)
    states["light"]
    assert set(states.session_data) == {"a", "light", "c"}
    states["a"][number] = Kept(40)
    states["a"]
    assert set(states.session_data) == {"a", "light"}  # who is too heavy alone is kept while asking
