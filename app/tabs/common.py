"""What several tabs use: a place for a picture, where errors go, how work is queued."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from app.batching import Busy
from app.engine import Engine, Picture
from app.parts import problem
from app.uploads import uploads_only

BUSY = "Many people are asking just now; try again in a few seconds."
# Events of this page only (app.endpoints has the public ones). The quick ones are answered by one request: through
# Gradio's queue they would take a stream of events, which loses one now and then on a busy machine.
QUICK: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "minimal"}
LONG: dict[str, Any] = {
    "api_visibility": "private", "concurrency_id": "long", "concurrency_limit": 2, "show_progress": "full",
}  # fmt: skip
KEPT = 12 * 3600  # seconds that what a visitor does is kept after the last change
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
    uploads_only(image)
    return image


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
        except (ValueError, OSError) as error:
            return otherwise(problem(said(error)))

    return call


def said(error: Exception) -> str:
    """A mistake or a trouble of the machine, in one line without its paths."""
    if isinstance(error, OSError):
        return f"The machine that serves this page cannot do that: {error.strerror or type(error).__name__}."
    return str(error)
