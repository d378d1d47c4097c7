"""From models' paths and a gallery to a served page."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.access import Access, access_for, accounts, told
from app.engine import Engine, bundled_student
from app.gallery import Report, open_gallery
from app.guard import Limits
from app.index import Index
from app.pictures import examples
from app.quick import import_page, without_stubs
from app.uploads import restrict_pillow, steady_memory
from export.runtime import OnnxModel
from zoo.console import plain

FIRST_PORT, PORTS = 7860, 100
_CONNECTIONS = 1000  # open at a time; beyond that, 503 at once
_HEADER_BYTES, _HEADER_SECONDS = 16_384, 15.0
_MANY, _MANY_FILES = 500_000_000, 300  # bytes and files of one upload of many pictures, to a page that may be edited
_HUGGING_FACE = "https://huggingface.co"  # shows Spaces in a frame


def serve(
    models: Sequence[Path] = (),
    gallery: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    public: bool = False,
    auth: Path | None = None,
    labels: Path = Path("labels.csv"),
) -> None:
    """Serve the page until interrupted. ``port=None`` takes the first free one from 7860.

    ``models``: exported students, the bundled one unless given; the first one embeds. ``auth``: a file with lines
    user:password; $SIMCLR_AUTH adds to it. ``labels``: the table that Label writes. The address
    answers at once: /healthz with 200, all else with 503 until the models have passed their self-tests and the gallery
    is up to date; from then on /readyz answers 200.

    Raises ValueError for a model or gallery that cannot be used, a port that is taken, or accounts that cannot be read.
    """
    started = time.monotonic()
    users = accounts(auth)
    access = access_for(host, public=public, auth=bool(users))
    listening = listen(host, port)
    port = listening.getsockname()[1]
    steady_memory()
    with (
        contextlib.closing(listening),
        _own_folder() as folder,
        running(waiting := Waiting(), listening),
    ):
        uploads = be_quiet(folder)
        with ThreadPoolExecutor(1) as pool:  # Gradio takes seconds to import: meanwhile the gallery is opened
            page_modules = pool.submit(import_page)
            students = [OnnxModel(path, threads=_cores()) for path in models or [bundled_student()]]
            index, report = open_gallery(gallery, students[0])
            page_modules.result()
        restrict_pillow()  # from here on there are strangers' pictures
        print(_told(report, index), file=sys.stderr)
        engine = Engine(students[0], index, others=students[1:])
        try:
            page = application(engine, access, uploads=uploads, folder=folder, auth=users, labels=labels)
            waiting.hand_over(page)
            address = f"http://{_shown(host)}:{port}"
            names = " and ".join(student.architecture for student in students)
            print(f"Serving {names} at {address} ({time.monotonic() - started:.1f} s)", flush=True)
            print("\n".join(told(access, host, port)), file=sys.stderr)
            if browser:
                webbrowser.open(address)
            while True:
                time.sleep(3600)  # unlike waiting for an event, Ctrl-C ends this on Windows too
        finally:
            engine.close()


def application(
    engine: Engine,
    access: Access,
    *,
    uploads: Path,
    folder: Path,
    auth: Sequence[tuple[str, str]] = (),
    labels: Path = Path("labels.csv"),
) -> Any:
    """The web application with the page. ``folder`` takes the page's own files."""
    from app import server, theme, ui

    page = ui.build(engine, access, examples=examples(), labels=labels)
    look = server.own_look()._replace(favicon=theme.favicon(folder / "favicon.png"))
    frames = (_HUGGING_FACE,) if "SPACE_ID" in os.environ else ()
    many = Limits(upload=_MANY, held=2 * _MANY, seconds=600, files=_MANY_FILES, open_files=2 * _MANY_FILES)
    limits = many if access.edits else Limits()
    return server.create_app(
        engine, access, page=page, look=look, auth=auth, uploads=uploads, frames=frames, limits=limits
    )


def be_quiet(folder: Path) -> Path:
    """Keep Gradio from asking the network for anything, its files in ``folder``, and it from writing into its package.
    To be called before its import.

    Environment variables are the only switches it has for the first two. Returns the folder of uploads, which is in
    ``folder`` also where GRADIO_TEMP_DIR named another: that may hold others' files, and uploads are tidied up.
    """
    without_stubs()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    return folder / "uploads"


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A new folder for one server's files, deleted at its end: in GRADIO_TEMP_DIR if that is set, else where temporary
    files go."""
    place = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    Path(place).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="simclr-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


# The address


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at the port asked for, or the first free one from 7860.

    Raises ValueError if it is taken or cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return socket.create_server((host, candidate), family=family, backlog=1024)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    wanted = f"Port {port}" if port is not None else f"Every port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise ValueError(f"{wanted} of {host} cannot be used ({reason}); choose another with --port.")


def _shown(host: str) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"[{shown}]" if ":" in shown else shown


def _cores() -> int | None:
    """The processors this process may use, where fewer than there are; onnxruntime would not notice."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = len(os.sched_getaffinity(0))
    return mine if mine < (os.cpu_count() or 1) else None


# The server


class Waiting:
    """An ASGI application that is alive but not ready, until it hands over to the one that is."""

    def __init__(self) -> None:
        self.app: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.contexts = contextlib.AsyncExitStack()

    def hand_over(self, app: Any) -> None:
        """Start ``app`` in the server's event loop; from then on every request goes there. Called from any thread."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(self._take(app), self.loop).result()

    async def _take(self, app: Any) -> None:
        await self.contexts.enter_async_context(app.router.lifespan_context(app))
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            alive = scope["path"] == "/healthz"
            said = {"status": "alive" if alive else "starting"}
            headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
            headers += [] if alive else [(b"retry-after", b"2")]
            await send({"type": "http.response.start", "status": 200 if alive else 503, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        self.loop = asyncio.get_running_loop()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.contexts.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class Impatient(H11Protocol):
    """uvicorn's HTTP, for clients that dawdle: a connection on which no request begins within 15 s, counted from its
    opening or the answer before, is closed, however slowly its bytes drip in."""

    _watched: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watched is not None:
            self._watched.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._watched is not None:
            self._watched.cancel()
        self._watched = self.loop.call_later(_HEADER_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


@contextlib.contextmanager
def running(app: Any, listening: socket.socket) -> Iterator[uvicorn.Server]:
    """A server in a thread of its own, for as long as the context lasts."""
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="on",
        log_level="critical",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True, name="server")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("The server did not start.")
            time.sleep(0.005)
        yield server
    finally:
        server.should_exit = True
        thread.join(10)


def _told(report: Report, index: Index | None) -> str:
    if index is None:
        parts = ["No gallery (name one with --gallery DIR): the model can read no picture that comes with the app"]
    else:
        parts = [f"Gallery: {index.count()} pictures, {report.embedded} embedded now"]
    if report.gone:
        parts.append(f"{report.gone} files gone")
    if report.unreadable:
        first, reason = next(iter(report.unreadable.items()))
        parts.append(f"{len(report.unreadable)} files skipped, such as {plain(first)}: {plain(reason)}")
    return "; ".join(parts)
