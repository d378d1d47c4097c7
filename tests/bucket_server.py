"""A loopback stand-in for a public Google Cloud Storage bucket that can misbehave in the ways that networks do."""

import hashlib
import json
import re
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

EXTRA = 16  # bytes that a "long" answer has too many
BLOCK = 1 << 16


@dataclass
class Request:
    """What was asked for and how many body bytes were sent; both ends of the range are included, as in the header."""

    method: str
    path: str
    range: tuple[int, int] | None
    sent: int


@dataclass
class Fault:
    """What goes wrong with the next ``times`` GET requests whose path ends in ``suffix``.

    status: answer ``status``, with a Retry-After header if given.
    cut: close the connection after the share ``at`` of the body that was announced.
    short: announce and send only the first half of what was asked for.
    long: announce and send a few bytes more than was asked for.
    flip: change one byte, at the share ``at`` of the body.
    whole: ignore the Range header this once.
    """

    kind: Literal["status", "cut", "short", "long", "flip", "whole"]
    suffix: str = ""
    times: int = 1
    status: int = 503
    retry_after: str | None = None
    at: float = 0.5


@dataclass
class Answer:
    """A response on its way out; ``stop`` is where the connection breaks, in bytes of the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    stop: int | None = None


def error_answer(status: int, headers: dict[str, str] | None = None) -> Answer:
    phrase = HTTPStatus(status).phrase
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{status}</Code><Message>{phrase}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml; charset=UTF-8"} | (headers or {}), body.encode())


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """``bytes=a-b`` or ``bytes=a-`` as (first, last); None for all else, which is then ignored."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return (int(match[1]), int(match[2] or size - 1)) if match else None


def object_answer(path: Path, wanted: tuple[int, int] | None) -> Answer:
    """A file or the wanted part of it."""
    facts = path.stat()
    tag = hashlib.md5(f"{path}{facts.st_size}{facts.st_mtime_ns}".encode()).hexdigest()
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
    if wanted is None:
        return Answer(200, headers, path.read_bytes())
    first, last = wanted[0], min(wanted[1], facts.st_size - 1)
    if first > last:
        return error_answer(416, {"Content-Range": f"bytes */{facts.st_size}"})
    with path.open("rb") as file:
        file.seek(first)
        body = file.read(last - first + 1)
    return Answer(206, headers | {"Content-Range": f"bytes {first}-{last}/{facts.st_size}"}, body)


def list_answer(objects: dict[str, Path], query: dict[str, list[str]], page_size: int) -> Answer:
    """One page of the JSON listing; the token of the next page is the last name of this one."""
    prefix, token = query.get("prefix", [""])[0], query.get("pageToken", [""])[0]
    limit = min(int(query.get("maxResults", [page_size])[0]), page_size)
    names = [name for name in sorted(objects) if name.startswith(prefix) and name > token]
    page = names[:limit]
    listing: dict[str, object] = {"kind": "storage#objects"}
    if page:
        listing["items"] = [{"name": name, "size": str(objects[name].stat().st_size)} for name in page]
    if len(names) > limit:
        listing["nextPageToken"] = page[-1]
    return Answer(200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(listing).encode())


def resized(answer: Answer, body: bytes) -> Answer:
    """The answer with another body, and a Content-Range that fits it."""
    headers = dict(answer.headers)
    if match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", "")):
        headers["Content-Range"] = f"bytes {match[1]}-{int(match[1]) + len(body) - 1}/{match[2]}"
    return Answer(answer.status, headers, body)


def spoiled(answer: Answer, fault: Fault) -> Answer:
    """The answer with the fault in it; "whole" has had its effect before, on the range."""
    body, place = answer.body, int(fault.at * len(answer.body))
    match fault.kind:
        case "status":
            return error_answer(fault.status, {"Retry-After": fault.retry_after} if fault.retry_after else {})
        case "cut":
            return Answer(answer.status, answer.headers, body, stop=place)
        case "short":
            return resized(answer, body[: len(body) // 2])
        case "long":
            return resized(answer, body + bytes(EXTRA))
        case "flip":
            place = min(place, len(body) - 1)
            flipped = bytes([body[place] ^ 0xFF])
            return Answer(answer.status, answer.headers, body[:place] + flipped + body[place + 1 :])
        case "whole":
            return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer's body waits for its head to be acknowledged
    server: "_Server"

    def do_GET(self) -> None:
        self._reply()

    def do_HEAD(self) -> None:
        self._reply()

    def _reply(self) -> None:
        address = urlsplit(self.path)
        request = Request(self.command, unquote(address.path), None, 0)
        answer = self.server.bucket.answer(request, parse_qs(address.query), self.headers.get("Range"))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "GET":
            self._send(request, answer)

    def _send(self, request: Request, answer: Answer) -> None:
        body = answer.body[: answer.stop]
        for start in range(0, len(body), BLOCK):
            block = body[start : start + BLOCK]
            request.sent += len(block)  # before it goes, so that who has the last byte also finds it counted
            self.wfile.write(block)
        if answer.stop is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


class _Server(ThreadingHTTPServer):
    """One thread a connection; all of them have ended when ``server_close`` returns."""

    daemon_threads = False
    request_queue_size = 64  # a client opens several connections at once

    def __init__(self, bucket: "BucketServer") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket = bucket
        self.connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self.connections):  # an idle one would keep its thread waiting for ever
            with suppress(OSError):  # it may have ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is its own business; what else goes wrong is raised when the server stops."""
        error = sys.exception()
        if error and not isinstance(error, ConnectionError):
            self.bucket.errors.append(error)


class BucketServer:
    """A bucket on the loopback address, for as long as the ``with`` block lasts; its objects are the files of a folder.

    ``GET /BUCKET/OBJECT`` and ``GET /storage/v1/b/BUCKET/o?prefix=P`` answer as Google's servers do.

    ranges: whether Range headers are heeded. page_size: the most objects that one page of the listing holds.
    faults: what is to go wrong, first come first served; append to it at any time. requests: what was asked so far.
    """

    def __init__(
        self, folder: Path, *, bucket: str = "simclr-checkpoints", ranges: bool = True, page_size: int = 1000
    ) -> None:
        self.folder = folder
        self.bucket = bucket
        self.ranges = ranges
        self.page_size = page_size
        self.url = ""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "BucketServer":
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for failure in self.errors:
            raise failure

    def bytes_sent(self, suffix: str = "") -> int:
        """How many body bytes were sent for paths that end so."""
        return sum(request.sent for request in self.requests if request.path.endswith(suffix))

    def answer(self, request: Request, query: dict[str, list[str]], range_header: str | None) -> Answer:
        """What to send back for a request, which is noted; only a name that the folder's listing has is ever opened."""
        objects = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        path = objects.get(request.path.removeprefix(f"/{self.bucket}/"))
        request.range = parse_range(range_header, path.stat().st_size) if path else None
        self.requests.append(request)
        fault = self._next_fault(request)
        if path:
            heeded = self.ranges and not (fault and fault.kind == "whole")
            answer = object_answer(path, request.range if heeded else None)
        elif request.path == f"/storage/v1/b/{self.bucket}/o":
            answer = list_answer(objects, query, self.page_size)
        else:
            answer = error_answer(404)
        return spoiled(answer, fault) if fault else answer

    def _next_fault(self, request: Request) -> Fault | None:
        if request.method != "GET":
            return None
        with self._lock:
            for fault in self.faults:
                if request.path.endswith(fault.suffix):
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None
