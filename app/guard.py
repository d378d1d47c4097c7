"""What every request passes before it reaches the page or the HTTP API: only known routes, bounded, same-origin."""

import asyncio
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException

from app.access import is_loopback

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BESIDE = 8192  # bytes that a file takes on disk beside its content: the rest of a block, and its folder

log = logging.getLogger("simclr.server")


class Limits(NamedTuple):
    """How much strangers may take at a time."""

    requests: int = 64  # with a body, in flight
    streams: int = 512  # answers that stay open while a page is
    reads: int = 128  # everything else
    upload: int = 10_000_000 + 65_536  # bytes: a picture and its form
    fields: int = 1_000_000  # bytes of any other body
    held: int = 128_000_000  # bytes of all bodies in flight together
    files: int = 20  # of one upload to disk, where each is kept open until all have arrived
    open_files: int = 256  # of all uploads in flight together
    seconds: float = 30  # until a body has arrived


# Routes, as method and path below where the app is mounted. What is not here is answered 404 by nothing of Gradio's:
# proxying, streaming media, component servers, deep links, monitoring, run history, editing, MCP, icons of any size.
_NAME = r"[\w-]{1,64}"
_ROUTES = {
    "open": [("GET", r"/healthz|/readyz")],
    "static": [
        ("GET", r"/(?:assets|static|svelte)/[\w./@+-]+"),
        ("GET", r"/favicon\.ico|/robots\.txt|/manifest\.json|/(?:gradio_api/)?theme\.css|/pwa_icon/(?:192|512)"),
    ],
    "reads": [
        ("GET", r"/|/config/?|/logout"),
        ("GET", r"/api/facts|/thumbs/[^/]+\.jpg"),
        ("GET", r"/gradio_api/(?:info/?|openapi\.json|app_id/?|user/?|login_check/?|startup-events|queue/status)"),
        ("GET", r"/gradio_api/file=(?:[A-Za-z]:)?[^:]+"),  # no addresses: Gradio would fetch them
    ],
    "streams": [
        ("GET", rf"/gradio_api/(?:queue/data|upload_progress|heartbeat/{_NAME})"),
        ("GET", rf"/gradio_api/call/(?:v2/)?{_NAME}/{_NAME}"),
    ],
    "uploads": [("POST", r"/api/(?:classify|embed|search)|/gradio_api/upload")],
    "fields": [
        ("POST", r"/login/?"),
        ("POST", rf"/gradio_api/(?:queue/join|cancel|reset/?|run/{_NAME}/?|call/(?:v2/)?{_NAME}/?)"),
    ],
}  # fmt: skip
_PATTERNS = [(kind, method, re.compile(path)) for kind, routes in _ROUTES.items() for method, path in routes]
_LONGEST_PATH, _LONGEST_HEAD = 2048, 16_384

_BY_PROXIES = ("forwarded", "x-forwarded-for", "x-real-ip")  # what they add for others' requests

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(), geolocation=()",
}
_FILE_POLICY = "default-src 'none'; sandbox"  # an uploaded page or drawing runs nothing, wherever it is opened


def content_policy(frames: Sequence[str] = ()) -> str:
    """The Content-Security-Policy of the page: this host alone. Gradio's page has scripts and styles in its HTML, and
    makes functions of the page's own scripts."""
    return "; ".join(
        [
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "font-src 'self' data:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            " ".join(["frame-ancestors", "'self'", *frames]),
        ]
    )


class _Stopped(MultiPartException):
    """A body that is not read on. Of this kind since Gradio's parser then removes what it has written."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Parts:
    """Counts the parts of a multipart form as it arrives, each at its first byte: what begins with the boundary and
    does not end the form. Gradio's parser finds the boundary with the same function."""

    def __init__(self, content_type: str) -> None:
        self.boundary = b"--" + parse_options_header(content_type)[1].get(b"boundary", b"")
        self.rest = b""

    def begun(self, piece: bytes) -> int:
        """How many begin in the next piece of the form."""
        seen = self.rest + piece
        self.rest = seen[-len(self.boundary) :]
        return sum(seen.count(self.boundary + end) for end in (b"\r", b" ", b"\t"))


class Guard:
    """ASGI middleware, outermost. ``local``: only names of this machine may stand in the Host header, since a page
    elsewhere could otherwise reach this one under a name of its own (DNS rebinding)."""

    def __init__(
        self, app: Any, *, local: bool = False, frames: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self.app, self.local, self.limits = app, local, limits or Limits()
        self.policy, self.framed = content_policy(frames), bool(frames)
        self.taken: Counter[str] = Counter()  # places taken, by kind
        self.held = self.open_files = 0
        self.room = sys.maxsize  # bytes that may still be uploaded to disk; whoever tidies up sets it

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        kind, refusal = self._looked_at(scope["method"], path, scope.get("query_string", b""), headers)
        if refusal is not None:
            await self._refuse(send, *refusal)
            return
        place = {"uploads": "requests", "fields": "requests"}.get(kind, kind)
        self.taken[place] += 1
        try:
            await self._pass_on(kind, scope, receive, send)
        finally:
            self.taken[place] -= 1

    def _looked_at(
        self, method: str, path: str, query: bytes, headers: Headers
    ) -> tuple[str, tuple[int, str, str] | None]:
        """The kind of a request, or (status, code, message) of its refusal."""
        asked = "GET" if method == "HEAD" else method
        matching = [(kind, wanted) for kind, wanted, pattern in _PATTERNS if pattern.fullmatch(path)]
        kind = next((kind for kind, wanted in matching if wanted == asked), "")
        host = headers.get("host", "")
        if self.local and not is_loopback(_hostname(host)):
            return kind, (403, "host", "This page answers only to names of its own machine, such as 127.0.0.1.")
        if self.local and any(name in headers for name in _BY_PROXIES):
            return kind, (403, "proxy", "Behind a proxy this page must be started with --public or --auth.")
        if "content-length" in headers and "transfer-encoding" in headers:
            return kind, (400, "length", "A request has one length.")
        if path == "/logout" and headers.get("sec-fetch-site") == "cross-site":
            return kind, (403, "origin", "Pages of other hosts may not use this one.")
        if not matching or len(path) > _LONGEST_PATH or (".." in path and kind == "static"):
            return kind, (404, "not_found", "There is nothing here.")
        if len(query) + sum(len(name) + len(value) for name, value in headers.raw) > _LONGEST_HEAD:
            return kind, (431, "headers", "The headers or the query are too long.")
        if not kind:
            return kind, (405, "method", f"{method} does not go here.")
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host, headers.get("x-forwarded-host", "")):
            return kind, (403, "origin", "Pages of other hosts may not use this one.")
        limits = self.limits
        place, most = {
            "uploads": ("requests", limits.requests),
            "fields": ("requests", limits.requests),
            "streams": ("streams", limits.streams),
            "reads": ("reads", limits.reads),
        }.get(kind, (kind, sys.maxsize))
        if self.taken[place] >= most:
            return kind, (503, "busy", "Too many requests at the moment; try again in a second.")
        largest = limits.upload if kind == "uploads" else limits.fields
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > largest:
            return kind, (413, "too_large", f"At most {largest / 1e6:.0f} MB are taken.")
        if self.held + int(length) > limits.held or (path.endswith("/upload") and int(length) > self.room):
            return kind, (503, "busy", "Too much is being uploaded at the moment; try again in a second.")
        return kind, None

    async def _pass_on(self, kind: str, scope: Message, receive: Receive, send: Send) -> None:
        limits, path = self.limits, scope["path"]
        largest = limits.upload if kind == "uploads" else limits.fields
        stored = path.endswith("/gradio_api/upload")
        parts = _Parts(Headers(scope=scope).get("content-type", "") if stored else "")
        until = time.monotonic() + limits.seconds
        taken, files, complete, started = 0, 0, False, False
        stopped: _Stopped | None = None

        def stop(status: int, code: str, message: str) -> _Stopped:
            nonlocal stopped
            stopped = _Stopped(status, code, message)
            return stopped

        async def bounded_receive() -> Message:
            nonlocal taken, files, complete
            if complete:
                return await receive()
            if stopped is not None:
                raise stopped
            try:
                async with asyncio.timeout(max(until - time.monotonic(), 0.001)):
                    message = await receive()
            except TimeoutError:
                raise stop(408, "slow", f"A request must arrive within {limits.seconds:.0f} s.") from None
            if message["type"] != "http.request":
                raise stop(400, "disconnect", "The request did not arrive whole.")
            size = len(message.get("body", b""))
            taken += size
            self.held += size
            if stored:
                begun = parts.begun(message.get("body", b""))
                self.room -= size + begun * BESIDE
                files += begun
                self.open_files += begun
            complete = not message.get("more_body", False)
            if taken > largest:
                raise stop(413, "too_large", f"At most {largest / 1e6:.0f} MB are taken.")
            if files > limits.files:
                raise stop(413, "too_many", f"At most {limits.files} files are taken at a time; send fewer.")
            if self.held > limits.held or self.room < 0 or self.open_files > limits.open_files:
                raise stop(503, "busy", "Too much is being uploaded at the moment; try again in a second.")
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if stopped is not None and not started:
                return  # what is said of a body that was not read on, we say
            if message["type"] == "http.response.start":
                started = True
                self._dress(message, path)
            await send(message)

        try:
            await self.app(scope, bounded_receive, guarded_send)
        except Exception as error:
            if error is not stopped:
                log.error("%s in %s %s", kind_and_place(error), scope["method"], scope["path"])
            if not started and stopped is None:
                await self._refuse(send, 500, "error", "This could not be answered.")
                return
            if started and kind == "streams":
                await send({"type": "http.response.body", "body": b""})  # Gradio ends them so when all is said
            elif started and error is not stopped:
                raise _Cut from None
        finally:
            self.held -= taken
            self.open_files -= files
        if stopped is not None and not started:
            await self._refuse(send, stopped.status, stopped.code, stopped.message)

    def _dress(self, message: Message, path: str) -> None:
        message.setdefault("headers", [])
        headers = MutableHeaders(scope=message)
        for name in [name for name in headers if name.startswith("access-control-") or name == "server"]:
            del headers[name]
        headers.update(_HEADERS)
        is_file = "/gradio_api/file=" in path
        headers["content-security-policy"] = _FILE_POLICY if is_file else self.policy
        if not self.framed:
            headers["x-frame-options"] = "SAMEORIGIN"
        if is_file:
            headers["cache-control"] = "private, max-age=3600"
        headers.setdefault("cache-control", "private, no-cache")
        if message["status"] in (429, 503):
            headers["retry-after"] = "1"

    async def _refuse(self, send: Send, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": code, "message": message}).encode()
        start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
        self._dress(start, "")
        await send(start)
        await send({"type": "http.response.body", "body": body})


class _Cut(Exception):  # noqa: N818
    """An answer that had begun when its maker failed: the connection is closed, and the failure is already logged."""


def kind_and_place(error: BaseException) -> str:
    """An error in one line for the log: its kind and the line of code, not its text, which may hold a visitor's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_origin(origin: str, host: str, forwarded: str) -> bool:
    """Whether the page that asks came from here: its host and port are those asked for, by the visitor or by the proxy
    in front. (Other pages cannot set X-Forwarded-Host without asking first, which is refused.)"""
    names: Collection[str] = {name.strip().lower() for name in (host, *forwarded.split(",")) if name.strip()}
    asking = urlsplit(origin) if "://" in origin else None
    if asking is None or not asking.netloc:
        return False
    port = {"http": ":80", "https": ":443"}.get(asking.scheme, "")
    netloc = asking.netloc.lower()
    return bool({netloc, netloc.removesuffix(port)} & {*names, *(name.removesuffix(port) for name in names)})
