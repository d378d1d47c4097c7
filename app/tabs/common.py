"""What several tabs use: a place for a picture, where errors go, how work is queued."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from app.batching import Busy
from app.engine import Engine, Picture
from app.parts import problem

BUSY = "Many people are asking just now; try again in a few seconds."
# Events of this page only (app.endpoints has the public ones). The quick ones are answered by one request: through
# Gradio's queue they would take a stream of events, which loses one now and then on a busy machine.
QUICK: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "minimal"}
LONG: dict[str, Any] = {
    "api_visibility": "private", "concurrency_id": "long", "concurrency_limit": 2, "show_progress": "full",
}  # fmt: skip
PICTURE_ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"]


def picture_input(name: str, *, says: str, height: int = 330) -> gr.Image:
    """A place to drop one picture. Its value is the uploaded file's path; only ``Engine.look`` reads that file."""
    image = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Picture",
        show_label=False,
        buttons=[],
        height=height,
        elem_id=name,
        placeholder=says,
    )
    image.preprocess = uploaded  # Gradio's own would open the file with any decoder that Pillow has
    return image


def uploaded(payload: Any) -> str | None:
    """The path of an upload."""
    return payload and payload.path


def look(engine: Engine, path: str | None) -> Picture | None:
    return None if path is None else engine.look(path)


def told(function: Callable[..., Any], otherwise: Callable[[str], Any]) -> Callable[..., Any]:
    """``function``, whose errors become ``otherwise(HTML that says what is wrong)``."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Busy:
            return otherwise(problem(BUSY))
        except ValueError as error:
            return otherwise(problem(str(error)))

    return call
