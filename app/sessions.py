"""What Gradio keeps of each visitor, without the copy of the whole page that it keeps for deep links, which are closed.

That copy takes 40 ms and 0.3 MB for every new visitor of a page like ours, and every call over HTTP is a new one.
"""

import datetime
from copy import copy
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder

from app.uploads import uploads_only

AFTER_LEAVING = 600  # seconds that a visitor's state is kept when the page is closed
HEAVIEST = 20_000  # what all states may weigh together, an example of a lesson (about 27 KB) being one


class Session(SessionState):
    """A visitor's state: values of ``gr.State`` and components that events have changed."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks_config = copy(blocks.default_config)
        self.config_values: dict[int, Any] = {}  # of deep links
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict[int, Any] = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = AFTER_LEAVING

    def __setitem__(self, key: int, value: Any) -> None:
        block = self.blocks_config.blocks.get(key)
        if isinstance(block, gr.State):
            self._state_ttl[key] = (block.time_to_live, datetime.datetime.now())
            self.state_data[key] = value
        else:  # an event has changed a component: Gradio makes it anew, without what uploads_only did to it
            if getattr(block, "takes_uploads_only", False):
                uploads_only(value)
            self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass

    @property
    def weight(self) -> int:
        """Of the values that say what they weigh."""
        return sum(getattr(value, "weight", 0) for value in list(self.state_data.values()))


class Sessions(StateHolder):
    """The states of the latest visitors, as many as are light enough together."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        found = super().__getitem__(session_id)
        found.is_closed = False  # who asks has the page open, though its heartbeat may have broken off meanwhile
        self._lighten(session_id)
        return found

    def _lighten(self, keep: str) -> None:
        """Forget the visitors who were away longest until the others are light enough."""
        weights = {name: session.weight for name, session in list(self.session_data.items())}
        total = sum(weights.values())
        for name, weight in weights.items():
            if total <= HEAVIEST:
                return
            if weight and name != keep:
                with self.lock:
                    self.session_data.pop(name, None)
                    self.time_last_used.pop(name, None)
                total -= weight
