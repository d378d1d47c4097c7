"""The web application: the page, the plain HTTP API beside it, thumbnails and health, behind one guard."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security.utils import get_authorization_scheme_param
from gradio import processing_utils, routes
from gradio.context import LocalContext
from gradio.utils import get_upload_folder
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from app.access import Access
from app.batching import Busy
from app.engine import Engine
from app.guard import BESIDE, Guard, Limits, kind_and_place, log
from app.index import Filter
from app.sessions import Sessions
from app.uploads import MAX_BYTES, Refused

KEPT = 3600  # seconds that uploads and results stay on disk
KEPT_BYTES = 1_000_000_000  # of them together; the oldest go first
SESSIONS = 1000  # visitors whose state is kept, the latest
QUEUED = 64  # calls of the page that wait
UNREAD, UNREAD_OF_ONE = 2000, 300  # messages that wait for visitors to read them; a call makes three or more
MOST_CLASSES, MOST_HITS = 1000, 100
_TIDY = 30  # seconds between clean-ups
_STATUS = {"empty": 400, "too_large_file": 413, "too_many_pixels": 413, "format": 415}  # of refusals; else 422
_PICTURE_TYPES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")  # the last: curl's own


class Failure(Exception):  # noqa: N818
    """What a visitor is told instead of an answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Look(NamedTuple):
    """How the page looks; each as ``gradio.mount_gradio_app`` takes it."""

    theme: Any = None
    css: str = ""
    head: str = ""
    js: Any = None
    favicon: Path | None = None


def own_look() -> Look:
    """That of ``app.ui``'s page, but for the picture in the browser's tab."""
    from app import theme

    return Look(theme=theme.theme(), css=theme.css())


def create_app(
    engine: Engine,
    access: Access,
    *,
    page: gr.Blocks | None = None,
    look: Look | None = None,
    auth: Sequence[tuple[str, str]] = (),
    uploads: Path | None = None,
    frames: Sequence[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The application of an engine, to be served by itself or mounted in another one.

    ``page`` comes from ``app.ui.build``; without it there is only the HTTP API. ``look``: ``own_look()`` unless given.
    ``auth``: accounts (user, password)
    that may sign in; required if ``access.password``. ``uploads``: Gradio's folder for uploads (GRADIO_TEMP_DIR),
    which is then kept small; leave it out where other pages share the folder. ``frames``: origins whose pages may show
    this one in a frame, such as "https://huggingface.co". ``limits``: what strangers may take at a time.

    Raises ValueError for a password that is wanted without accounts.
    """
    if access.password and not auth:
        raise ValueError("A password is wanted, but there are no accounts; give --auth FILE with lines user:password.")
    doors = _Doors(dict(auth))
    gradio_app: list[routes.App] = []
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="simclrv2")

    async def signed_in(request: Request) -> bool:
        return not access.password or await doors.open_to(request, gradio_app[0] if gradio_app else None)

    _add_health(app, engine)
    _add_api(app, engine, access, signed_in, most=(limits or Limits()).requests)
    if page is not None:
        gradio_app.append(_mount(app, page, look or own_look(), sign_in=doors.sign_in if access.password else None))
    guards: list[Guard] = []
    app.router.lifespan_context = _once(app.router.lifespan_context, page, uploads, guards)
    app.add_middleware(_Started, start=app.router.lifespan_context, app_of=app)
    app.add_middleware(_guard, guards=guards, local=access.edits and not access.password, frames=frames, limits=limits)
    return app


def _guard(app: Any, *, guards: list[Guard], local: bool, frames: Sequence[str], limits: Limits | None) -> Guard:
    guards.append(Guard(app, local=local, frames=frames, limits=limits))
    return guards[-1]


# Health


def _add_health(app: FastAPI, engine: Engine) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    own: list[anyio.CapacityLimiter] = []  # made in the event loop: a thread that visitors cannot take

    @app.get("/readyz")
    async def readyz() -> Response:
        """The models have passed their self-tests, or there would be no engine; the gallery must still answer."""
        try:
            if not own:
                own.append(anyio.CapacityLimiter(1))
            if engine.index is not None:
                await anyio.to_thread.run_sync(engine.index.count, limiter=own[0])
        except Exception:  # whatever it is, it is not ready
            return JSONResponse({"status": "the gallery does not answer"}, status_code=503)
        return JSONResponse({"status": "ready"})


# The HTTP API


def _add_api(app: FastAPI, engine: Engine, access: Access, signed_in: Callable[[Request], Any], *, most: int) -> None:
    threads: list[anyio.CapacityLimiter] = []  # made in the event loop

    async def work(function: Callable[..., Any], *arguments: Any) -> Any:
        if not threads:
            threads.append(anyio.CapacityLimiter(most))
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=threads[0])

    def answered(respond: Callable[[Request], Any]) -> Callable[[Request], Any]:
        @functools.wraps(respond)
        async def route(request: Request) -> Response:
            try:
                if not await signed_in(request):
                    raise Failure(401, "password", "Sign in: user and password of an account (curl -u user:password).")
                answer = await respond(request)
                return answer if isinstance(answer, Response) else JSONResponse(answer)
            except Failure as error:
                status, code, message = error.status, error.code, error.message
            except Refused as error:
                status, code, message = _STATUS.get(error.code, 422), error.code, str(error)
            except Busy:
                status, code, message = 503, "busy", "Too many pictures wait at the moment; try again in a second."
            except ValueError as error:
                status, code, message = 400, "invalid", str(error)
            headers = {"www-authenticate": 'Basic realm="simclrv2"'} if status == 401 else None
            return JSONResponse({"error": code, "message": message}, status_code=status, headers=headers)

        return route

    async def classify(request: Request) -> Any:
        k, name = _number(request, "k", 5, MOST_CLASSES), request.query_params.get("model", engine.names[0])
        if name not in engine.names:
            raise Failure(400, "invalid", f"model is one of {', '.join(engine.names)}.")
        model = engine.names.index(name)
        content, file = await _picture(request)
        found = await work(lambda: engine.classify(engine.look(content, name=file), k=k, model=model))
        predictions = [{"label": one.label, "probability": round(one.probability, 6)} for one in found.ranked]
        return {"model": name, "predictions": predictions, "none_likely": bool(found.none_likely)}

    async def embed(request: Request) -> Any:
        content, name = await _picture(request)
        features = await work(lambda: engine.embed(engine.look(content, name=name)))
        told = {"model": engine.names[0], "sha256": engine.models[0].fingerprint}
        return told | {"features": [float(value) for value in features]}

    async def search(request: Request) -> Any:
        if engine.index is None:
            raise Failure(404, "no_gallery", "There is no gallery to search here.")
        k, folder = _number(request, "k", 12, MOST_HITS), request.query_params.get("folder", "")
        if folder and access.public:
            raise Failure(403, "folder", "Folders are not told to strangers; filter by label.")
        where = Filter(labels=tuple(request.query_params.getlist("label")), folder=folder)
        content, name = await _picture(request)
        hits = await work(lambda: engine.search(engine.look(content, name=name), k=k, where=where))
        return {"hits": [_shown(hit, access) for hit in hits]}

    async def facts(request: Request) -> Any:
        told = [await work(engine.facts, number) for number in range(len(engine.models))]
        gallery = dict(told[0]["gallery"])
        if access.public:
            gallery = {name: value for name, value in gallery.items() if isinstance(value, int | float | bool)}
        models = {
            name: {"model": one["model"], "facts": one["facts"]} for name, one in zip(engine.names, told, strict=True)
        }
        return {"models": models, "gallery": gallery}

    async def thumbnail(request: Request) -> Any:
        name, found = request.path_params["name"], None
        if re.fullmatch(r"[0-9a-f]{64}", name) and engine.index is not None:
            found = await work(engine.index.thumbnail, name)
        if not found:
            raise Failure(404, "not_found", "There is no such picture.")
        return Response(found, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    for path, method, respond in (
        ("/api/classify", "POST", classify),
        ("/api/embed", "POST", embed),
        ("/api/search", "POST", search),
        ("/api/facts", "GET", facts),
        ("/thumbs/{name}.jpg", "GET", thumbnail),
    ):
        app.router.add_route(path, answered(respond), methods=[method])


def _number(request: Request, name: str, default: int, most: int, *, least: int = 1) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise Failure(400, "invalid", f"{name} is a whole number from {least} to {most}.")
    return int(text)


def _shown(hit: Any, access: Access) -> dict[str, Any]:
    name = hit.path.rpartition("/")[2]
    shown = {"id": hit.id, "name": name, "label": hit.label, "score": round(float(hit.score), 6)}
    return shown | {"thumbnail": f"thumbs/{hit.id}.jpg"} | ({} if access.public else {"path": hit.path})


async def _picture(request: Request) -> tuple[bytes, str]:
    """The picture's bytes and file name, from a form's field ``image`` or as the whole body."""
    kind = request.headers.get("content-type", "application/octet-stream").lower()
    if kind.startswith("multipart/form-data"):
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                image = form.get("image")
                if not isinstance(image, UploadFile):
                    raise Failure(400, "empty", "The form has no file in a field called image.")
                content, name = await image.read(), image.filename or ""
        except HTTPException:
            raise Failure(400, "form", "The form cannot be read; send one file in a field called image.") from None
    elif kind.startswith(_PICTURE_TYPES):
        content, name = await request.body(), ""
    else:
        raise Failure(415, "format", "Send a picture: the form field image, or the file as the whole body.")
    if len(content) > MAX_BYTES:
        raise Failure(413, "too_large_file", f"A picture has at most {MAX_BYTES / 1e6:.0f} MB.")
    return content, name


# Passwords


class _Doors:
    """Who may come in: by the page's cookie, or by HTTP Basic. A wrong password costs half a second, of eight at once,
    so that guessing is slow however many guess."""

    def __init__(self, accounts: dict[str, str]) -> None:
        self.key = secrets.token_bytes(32)
        self.digests = {user: self._digest(password) for user, password in accounts.items()}
        self.nobody = secrets.token_bytes(32)
        self.slow: asyncio.Semaphore | None = None

    def _digest(self, password: str) -> bytes:
        return hmac.digest(self.key, password.encode("utf-8", "surrogatepass"), hashlib.sha256)

    async def sign_in(self, user: str, password: str) -> bool:
        """The same work whether there is such a user or not."""
        if hmac.compare_digest(self._digest(password), self.digests.get(user, self.nobody)):
            return True
        self.slow = self.slow or asyncio.Semaphore(8)
        async with self.slow:
            await asyncio.sleep(0.5)
        return False

    async def open_to(self, request: Request, page: routes.App | None) -> bool:
        if page is not None:
            for name in (f"access-token-{page.cookie_id}", f"access-token-unsecure-{page.cookie_id}"):
                if request.cookies.get(name) in page.tokens:
                    return True
        scheme, encoded = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return False
        return await self.sign_in(user, password)


# The page


def _mount(app: FastAPI, page: gr.Blocks, look: Look, *, sign_in: Any) -> routes.App:
    """Gradio's application at the root, with all off that this page does not use."""
    # Gradio names an upload's folder by a hash of its content and a seed that lies beside its code, the same in every
    # copy of a container image: who knows both would know the names of others' files.
    processing_utils.hash_seed = secrets.token_bytes(32)
    page.api_open = False  # nothing goes round the queue
    page.state_session_capacity = SESSIONS
    page.queue(max_size=QUEUED, api_open=False, default_concurrency_limit=2)
    _take_uploads_only(page)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=sign_in,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_BYTES,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=["api"],
        theme=look.theme,
        css=look.css,
        head=look.head,
        js=look.js,
        favicon_path=str(look.favicon) if look.favicon else None,
    )
    page.has_launched = True  # else what a callback returns as a file is not checked
    _bound_unread(page)
    found = [getattr(route, "app", None) for route in app.routes]
    mounted: routes.App = next(one for one in found if isinstance(one, routes.App))
    mounted.state_holder = Sessions()
    mounted.state_holder.set_blocks(page)
    return mounted


def _bound_unread(page: gr.Blocks) -> None:
    """Keep no more answers than that for visitors who call and do not come for them; Gradio would keep them all."""
    queue = page._queue
    push = queue.push

    async def bounded_push(body: Any, request: Any, username: Any = None) -> tuple[bool, Any, Any]:
        waiting = queue.pending_messages_per_session
        mine = waiting.get(body.session_hash)
        if mine is not None and mine.qsize() >= UNREAD_OF_ONE:
            return False, "Read the answers to your other calls first.", "queue_full"
        unread = sum(messages.qsize() for messages in waiting.values())
        for session, messages in list(waiting.items()) if unread > UNREAD else ():  # the oldest first
            if unread <= UNREAD // 2:
                break
            unread -= messages.qsize()
            while not messages.empty():
                messages.get_nowait()
            calls = queue.pending_event_ids_session.get(session, set())
            if not any(call in queue.event_ids_to_events for call in calls):
                waiting.pop(session, None)
                queue.pending_event_ids_session.pop(session, None)
        pushed: tuple[bool, Any, Any] = await push(body=body, request=request, username=username)
        return pushed

    queue.push = bounded_push


def _take_uploads_only(page: gr.Blocks) -> None:
    """Refuse files in what clients send, unless they lie in the folder of uploads.

    Gradio reads any path that comes without ``meta``, and fetches the address that is named as a file, or asks a name
    server elsewhere whether it may. What is done here goes for every event and component of the page, also for those
    that an event has made anew for its visitor.
    """
    refusal = gr.Error("Only uploaded files are read.", print_exception=False)
    original = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> Any:
        if not _uploads_only(inputs, Path(get_upload_folder()).resolve()):
            raise refusal
        try:
            return await original(block_fn, inputs, *rest, **more)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise
            log.error("%s in what a page sent", kind_and_place(error))  # Gradio would print what it was
            raise gr.Error("This page does not send that.", print_exception=False) from None

    page.preprocess_data = preprocess_data
    fetch = processing_utils.async_ssrf_protected_download

    async def fetch_for_others(url: str, *arguments: Any, **more: Any) -> str:
        if LocalContext.blocks.get(None) is page:
            raise refusal
        fetched: str = await fetch(url, *arguments, **more)
        return fetched

    processing_utils.async_ssrf_protected_download = fetch_for_others


def _uploads_only(data: Any, folder: Path) -> bool:
    if isinstance(data, list):
        return all(_uploads_only(value, folder) for value in data)
    if not isinstance(data, dict):
        return True
    path = data.get("path")
    if isinstance(path, str):
        try:
            if "://" in path or folder not in Path(path).resolve().parents:
                return False
        except (OSError, ValueError, RuntimeError):
            return False
    return all(_uploads_only(value, folder) for value in data.values())


# From start to end


class _Started:
    """ASGI middleware: applications that mount this one do not start it, so the first request does. It ends with the
    event loop."""

    def __init__(self, app: Any, *, start: Callable[[Any], Any], app_of: FastAPI) -> None:
        self.app, self.start, self.app_of = app, start, app_of
        self.started: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if self.started is None:
                self.started = asyncio.get_running_loop().create_future()
                self.task = asyncio.create_task(self._run(self.started))
            await asyncio.shield(self.started)
        await self.app(scope, receive, send)

    async def _run(self, started: "asyncio.Future[None]") -> None:
        try:
            async with self.start(self.app_of):
                started.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)


def _once(
    lifespan: Callable[[Any], Any], page: gr.Blocks | None, uploads: Path | None, guards: list[Guard]
) -> Callable[[Any], Any]:
    """The lifespan with the clean-up; entering it again, while it runs, does nothing."""
    running = False

    @contextlib.asynccontextmanager
    async def context(app: FastAPI) -> AsyncIterator[Any]:
        nonlocal running
        if running:
            yield None
            return
        running = True
        try:
            async with lifespan(app) as state:
                tidying = asyncio.create_task(_tidy_for_ever(page, uploads, guards))
                try:
                    yield state
                finally:
                    tidying.cancel()
        finally:
            running = False

    return context


async def _tidy_for_ever(page: gr.Blocks | None, uploads: Path | None, guards: list[Guard]) -> None:
    own = set(await anyio.to_thread.run_sync(_files, uploads)) if uploads else set()  # the page's, such as examples
    while True:
        if page is not None:
            _forget(page)
        if uploads is not None:
            left = await anyio.to_thread.run_sync(tidy, uploads, own)
            for guard in guards:
                guard.room = max(KEPT_BYTES - left, 0)
        await asyncio.sleep(_TIDY)


def tidy(folder: Path, own: set[Path], *, seconds: float = KEPT, most: int = KEPT_BYTES // 2) -> int:
    """Delete what visitors left in ``folder`` longer than ``seconds`` ago, and the oldest until at most ``most`` bytes
    are left, and empty folders; files of ``own`` stay, and what cannot be deleted. Returns the bytes left."""
    now, left = time.time(), 0
    for path, (size, changed) in sorted(_files(folder).items(), key=lambda item: -item[1][1]):
        if path in own or ((now - changed > seconds or left + size > most) and _deleted(path)):
            continue
        left += size
    for inner, *_ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # most are not empty
            if inner != str(folder) and now - Path(inner).stat().st_mtime > _TIDY:  # a new one is about to be filled
                Path(inner).rmdir()
    return left


def _deleted(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("An upload cannot be deleted (%s)", error.strerror)
        return False
    return True


def _files(folder: Path) -> dict[Path, tuple[int, float]]:
    """Bytes on disk and time of change of every file below a folder."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                stat = (path := Path(parent, name)).stat()
                found[path] = stat.st_size + BESIDE, stat.st_mtime
    return found


def _forget(page: gr.Blocks) -> None:
    """Forget what Gradio would remember for ever of visitors who never came for their answers."""
    queue = page._queue
    kept = queue.pending_messages_per_session
    for session in [session for session in queue.pending_event_ids_session if session not in kept]:
        if not any(event in queue.event_ids_to_events for event in queue.pending_event_ids_session[session]):
            queue.pending_event_ids_session.pop(session, None)
    for remembered in (routes.file_upload_statuses._statuses, routes.file_upload_statuses._signals):
        for name in list(remembered)[:-1000]:
            remembered.pop(name, None)
