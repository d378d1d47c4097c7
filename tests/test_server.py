"""The server around an engine, over real HTTP: its API, health, limits, passwords, and as a part of another one."""

import base64
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from python_multipart.multipart import MultipartParser
from test_export import LABELS, tiny_student

from app import serve
from app.access import Access, access_for, accounts, told
from app.engine import Engine
from app.guard import Limits, _Parts
from app.index import Record, open_index
from app.server import create_app, tidy
from export.runtime import OnnxModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(gradio_client|gradio|httpx|httpx2|websockets|starlette).*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Gradio makes event loops for a page and closes none
]

LOCAL = Access(edits=True, public=False, password=False)
PUBLIC = Access(edits=False, public=True, password=False)
SECRET = "/secret/folder"


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    model = OnnxModel(tiny_student(tmp_path_factory.getbasetemp()), threads=1)
    place = tmp_path_factory.mktemp("gallery") / "gallery.sqlite"
    made = Engine(model, open_index(place, model=model.fingerprint, dimension=model.feature_width))
    assert made.index is not None
    for n in range(6):
        seen = made.look(picture(n), name=f"{n}.png")
        path = f"{SECRET}/{n}.png"
        made.index.add([Record(seen.id, path, ("even", "odd")[n % 2], seen.thumbnail, made.embed(seen))])
    yield made
    made.close()


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening, serve.running(app, listening):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with served(create_app(engine, LOCAL)) as address:
        yield address


def form(content: bytes, name: str = "a.png") -> dict[str, Any]:
    return {"image": (name, content, "image/png")}


# The HTTP API


def test_classify(url: str, engine: Engine) -> None:
    wanted = engine.classify(engine.look(picture(3)))
    for answer in (
        httpx.post(f"{url}/api/classify", files=form(picture(3))),
        httpx.post(f"{url}/api/classify", content=picture(3), headers={"content-type": "image/png"}),
        httpx.post(f"{url}/api/classify", content=picture(3)),
    ):
        assert answer.status_code == 200
        found = answer.json()
        assert [entry["label"] for entry in found["predictions"]] == [entry.label for entry in wanted.ranked]
        np.testing.assert_allclose(
            [entry["probability"] for entry in found["predictions"]],
            [entry.probability for entry in wanted.ranked],
            atol=1e-5,
        )
        assert found["none_likely"] == wanted.none_likely
    assert len(httpx.post(f"{url}/api/classify?k=1", content=picture(3)).json()["predictions"]) == 1
    assert set(LABELS) == {entry.label for entry in wanted.ranked}


def test_embed_and_search(url: str, engine: Engine) -> None:
    answer = httpx.post(f"{url}/api/embed", content=picture(2)).json()
    np.testing.assert_allclose(answer["features"], engine.embed(engine.look(picture(2))), rtol=1e-5, atol=1e-6)
    assert (answer["model"], answer["sha256"]) == ("tiny", engine.model.fingerprint)
    hits = httpx.post(f"{url}/api/search?k=3", files=form(picture(2))).json()["hits"]
    assert hits[0]["name"] == "2.png"
    assert hits[0]["path"] == f"{SECRET}/2.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    odd = httpx.post(f"{url}/api/search?k=6&label=odd", content=picture(2)).json()["hits"]
    assert {hit["name"] for hit in odd} == {"1.png", "3.png", "5.png"}
    shown = httpx.get(f"{url}/{hits[0]['thumbnail']}")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")
    assert shown.content == engine.look(picture(2)).thumbnail
    assert shown.headers["cache-control"].startswith("private")


def test_facts(url: str, engine: Engine) -> None:
    facts = httpx.get(f"{url}/api/facts").json()
    assert facts["models"]["tiny"]["model"]["sha256"] == engine.model.fingerprint
    assert facts["models"]["tiny"]["facts"]["accuracy"]["top1"] == 0.875
    assert facts["gallery"]["pictures"] == 6


def test_strangers_are_told_no_places(engine: Engine) -> None:
    with served(create_app(engine, PUBLIC)) as url:
        hits = httpx.post(f"{url}/api/search", content=picture(2)).json()["hits"]
        assert len(hits) == 6
        assert SECRET not in json.dumps(hits)
        assert "sqlite" not in httpx.get(f"{url}/api/facts").text
        refused = httpx.post(f"{url}/api/search?folder=/secret", content=picture(2))
        assert (refused.status_code, refused.json()["error"]) == (403, "folder")


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        ("/api/classify", {"content": b""}, 400, "empty"),
        ("/api/classify", {"files": form(b"")}, 400, "empty"),
        ("/api/classify", {"files": {"other": ("a.png", b"x")}}, 400, "empty"),
        ("/api/classify", {"data": {"image": "x"}, "files": {"b": b""}}, 400, "empty"),
        ("/api/classify", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        ("/api/embed", {"content": b"no picture at all"}, 415, "format"),
        ("/api/embed", {"files": form(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg")}, 415, "format"),
        ("/api/search", {"content": picture(0)[:60]}, 422, "damaged"),
        ("/api/search", {"json": {"image": "/etc/passwd"}}, 415, "format"),
        ("/api/search?k=0", {"content": picture(0)}, 400, "invalid"),
        ("/api/search?k=101", {"content": picture(0)}, 400, "invalid"),
        ("/api/search?k=%D9%A3", {"content": picture(0)}, 400, "invalid"),
        ("/api/classify?model=other", {"content": picture(0)}, 400, "invalid"),
        ("/api/nothing", {"content": picture(0)}, 404, "not_found"),
        ("/healthz", {"content": b""}, 405, "method"),
    ],
)  # fmt: skip
def test_refusals_are_one_typed_line(url: str, path: str, sent: dict[str, Any], status: int, code: str) -> None:
    answer = httpx.post(f"{url}{path}", **sent)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    message = answer.json()["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "name", ["0" * 64, "0" * 63, "F" * 64, "..%2f..%2fetc%2fpasswd", "a" * 3000, "%00", "' OR 1=1 --", "⁴" * 64]
)
def test_only_thumbnails_of_the_gallery(url: str, name: str) -> None:
    assert httpx.get(f"{url}/thumbs/{name}.jpg").status_code == 404


def test_what_fails_within_is_not_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("/secret/folder/model.onnx")

    monkeypatch.setattr(engine, "embed", fails)
    with served(create_app(engine, LOCAL)) as url:
        answer = httpx.post(f"{url}/api/embed", content=picture(0))
        assert (answer.status_code, answer.json()["error"]) == (500, "error")
        assert "secret" not in answer.text
        assert httpx.post(f"{url}/api/classify", content=picture(0)).status_code == 200


# Health


def test_alive_and_ready(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}

    def gone(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr(engine.index, "count", gone)
    assert httpx.get(f"{url}/readyz").status_code == 503
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_not_ready_until_handed_over(engine: Engine) -> None:
    waiting = serve.Waiting()
    with served(waiting) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        for path in ("/readyz", "/", "/api/facts"):
            answer = httpx.get(f"{url}{path}")
            assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
            assert "retry-after" in answer.headers
        waiting.hand_over(create_app(engine, LOCAL))
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert httpx.post(f"{url}/api/classify", content=picture(0)).status_code == 200


# Headers and origins


def test_headers(url: str) -> None:
    headers = httpx.get(f"{url}/healthz", headers={"Origin": url}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_frames_may_be_allowed(engine: Engine) -> None:
    with served(create_app(engine, PUBLIC, frames=("https://huggingface.co",))) as url:
        headers = httpx.get(f"{url}/healthz").headers
    assert headers["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
    assert "x-frame-options" not in headers


@pytest.mark.parametrize(
    ("headers", "local", "public"),
    [
        ({"Host": "evil.example"}, 403, 200),
        ({"Host": "127.0.0.1.evil.example:7860"}, 403, 200),
        ({"Host": "localhost:7860"}, 200, 200),
        ({"Host": "[::1]:7860"}, 200, 200),
        ({"Host": "127.0.0.1@evil.example"}, 403, 200),
        ({"Host": "["}, 403, 200),
        ({"Origin": "https://evil.example"}, 403, 403),
        ({"Origin": "null"}, 403, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403, 403),
        ({"Origin": "https://a.example", "Host": "a.example"}, 403, 200),
        ({"Origin": "https://a.example", "X-Forwarded-Host": "a.example"}, 200, 200),
        ({"Origin": "https://a.example:444", "Host": "a.example"}, 403, 403),
    ],
)
def test_hosts_and_origins(engine: Engine, url: str, headers: dict[str, str], local: int, public: int) -> None:
    with served(create_app(engine, PUBLIC)) as other:
        for address, status in ((url, local), (other, public)):
            assert httpx.post(f"{address}/api/classify", content=picture(0), headers=headers).status_code == status


# Limits


class Slowly:
    """A request whose body is held back."""

    def __init__(self, url: str, path: str, declared: int, *, chunked: bool = False, kind: str = "") -> None:
        address = httpx.URL(url)
        self.socket = socket.create_connection((address.host, address.port), 10)
        lines = [f"POST {path} HTTP/1.1", f"Host: {address.netloc.decode()}"]
        lines += ["Transfer-Encoding: chunked" if chunked else f"Content-Length: {declared}"]
        lines += [f"Content-Type: {kind}"] if kind else []
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def answer(self) -> str:
        with self.socket:
            return self.socket.recv(65536).decode()


def test_what_a_proxy_passes_on_is_not_taken_for_the_owner(engine: Engine, url: str) -> None:
    with served(create_app(engine, PUBLIC)) as other:
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            assert httpx.get(f"{url}/api/facts", headers={name: "203.0.113.7"}).status_code == 403
            assert httpx.get(f"{other}/api/facts", headers={name: "203.0.113.7"}).status_code == 200


def test_two_lengths_and_foreign_logouts_are_refused(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sent:
        sent.sendall(
            b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert sent.recv(64).startswith(b"HTTP/1.1 400")
    foreign = httpx.get(f"{url}/logout", headers={"Sec-Fetch-Site": "cross-site"})
    assert (foreign.status_code, foreign.json()["error"]) == (403, "origin")


def test_private_answers_are_not_cached(url: str) -> None:
    assert httpx.get(f"{url}/api/facts").headers["cache-control"] == "private, no-cache"


def test_places_are_bounded(engine: Engine) -> None:
    with served(create_app(engine, LOCAL, limits=Limits(requests=2))) as url:
        slow = [Slowly(url, "/api/classify", len(picture(0))) for _ in range(2)]
        time.sleep(0.2)
        started = time.perf_counter()
        refused = httpx.post(f"{url}/api/classify", content=picture(0))
        assert time.perf_counter() - started < 1
        assert (refused.status_code, refused.json()["error"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/healthz").status_code == 200
        for one in slow:
            one.socket.sendall(picture(0))
            assert one.answer().startswith("HTTP/1.1 200")
        assert httpx.post(f"{url}/api/classify", content=picture(0)).status_code == 200


def test_slow_bodies_are_given_up(engine: Engine) -> None:
    with served(create_app(engine, LOCAL, limits=Limits(seconds=0.2))) as url:
        assert Slowly(url, "/api/classify", 100).answer().startswith("HTTP/1.1 408")


def test_slow_headers_are_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_HEADER_SECONDS", 0.3)
    with served(create_app(engine, LOCAL)) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port), 10) as dawdler:
            dawdler.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            ended = False
            for _ in range(30):
                try:
                    dawdler.sendall(b"X-A: b\r\n")
                except OSError:
                    ended = True
                    break
                time.sleep(0.05)
            assert ended or dawdler.recv(10) == b""


def test_long_bodies_and_headers_are_stopped(engine: Engine) -> None:
    with served(create_app(engine, LOCAL)) as url:
        declared = httpx.post(f"{url}/api/classify", content=b"0" * 10_070_000)
        assert (declared.status_code, declared.json()["error"]) == (413, "too_large")
        endless = Slowly(url, "/api/embed", 0, chunked=True)
        chunk = b"100000\r\n" + b"0" * 0x100000 + b"\r\n"
        for _ in range(11):
            endless.socket.sendall(chunk)
        assert endless.answer().startswith("HTTP/1.1 413")
        assert httpx.post(f"{url}/login", content=b"0" * 1_000_001).status_code == 413
        assert httpx.get(f"{url}/healthz", headers={"X-Long": "0" * 20_000}).status_code == 431
        assert httpx.get(f"{url}/?{'0' * 20_000}").status_code == 431
        assert httpx.post(f"{url}/api/classify", content=picture(0)).status_code == 200


def test_memory_of_bodies_is_bounded(engine: Engine) -> None:
    with served(create_app(engine, LOCAL, limits=Limits(held=1_000_000))) as url:
        assert httpx.post(f"{url}/api/embed", content=b"0" * 1_000_001).status_code == 503
        endless = Slowly(url, "/api/embed", 0, chunked=True)
        endless.socket.sendall(b"100000\r\n" + b"0" * 0x100000 + b"\r\n")
        assert endless.answer().startswith("HTTP/1.1 503")
        assert httpx.post(f"{url}/api/embed", content=picture(0)).status_code == 200  # given back


def upload(url: str, count: int) -> httpx.Response:
    return httpx.post(f"{url}/gradio_api/upload", files=[("files", (f"{n}.png", picture(n))) for n in range(count)])


def test_files_of_uploads_are_bounded(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    limits = Limits(files=3, open_files=5)
    with served(create_app(engine, PUBLIC, page=page(engine), limits=limits)) as url:
        assert len(upload(url, 3).json()) == 3
        stored = set(tmp_path.rglob("*"))
        refused = upload(url, 4)
        assert (refused.status_code, refused.json()["error"]) == (413, "too_many")
        assert "At most 3 files" in refused.json()["message"]
        assert set(tmp_path.rglob("*")) == stored  # nothing of it stays
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        body = part + b"\r\n" + part + b"\r\n" + part + b"\r\n--x--\r\n"
        slow = Slowly(url, "/gradio_api/upload", len(body), kind="multipart/form-data; boundary=x")
        slow.socket.sendall(body[:-9])
        time.sleep(0.2)
        assert upload(url, 3).status_code == 503  # six files, of five
        slow.socket.sendall(body[-9:])
        assert slow.answer().startswith("HTTP/1.1 200")
        assert len(upload(url, 3).json()) == 3  # given back


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_are_counted_however_the_form_is_cut(size: int) -> None:
    head = b'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    between = (b"--a-b\r\n", b"\r\n--a-b\r\n", b"\r\n--a-b \t\r\n")
    form = b"\r\n" + b"".join(text + head + b"--a-\r\n--a-b- -a-b" for text in between) + b"\r\n--a-b--\r\n"
    begun: list[None] = []
    MultipartParser(b"a-b", {"on_part_begin": lambda: begun.append(None)}).write(form)
    parts = _Parts('multipart/form-data; boundary="a-b"')
    assert sum(parts.begun(form[at : at + size]) for at in range(0, len(form), size)) == len(begun) == 3


def test_under_overload_answers_are_right_or_refused_at_once(engine: Engine) -> None:
    """Many at a time, each with a picture of its own; who is answered gets the own answer."""
    wanted = {seed: engine.embed(engine.look(picture(seed))) for seed in range(60)}
    with served(create_app(engine, LOCAL, limits=Limits(requests=6))) as url, httpx.Client() as client:

        def ask(number: int) -> tuple[int, float]:
            started = time.perf_counter()
            answer = client.post(f"{url}/api/embed", content=picture(number % 60))
            if answer.status_code == 200:
                np.testing.assert_allclose(answer.json()["features"], wanted[number % 60], rtol=1e-4, atol=1e-5)
            return answer.status_code, time.perf_counter() - started

        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(ask, range(600)))
        statuses = [status for status, _ in found]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) > 50
        assert np.median([seconds for status, seconds in found if status == 503]) < 0.5
        assert client.post(f"{url}/api/embed", content=picture(0)).status_code == 200


# Passwords


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Iterator[str]:
    access = access_for("0.0.0.0", auth=True)
    with served(create_app(engine, access, page=page(engine), auth=[("ann", "a:ß"), ("bob", "b")])) as address:
        yield address


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_passwords(locked: str) -> None:
    def status(path: str, **more: Any) -> int:
        return httpx.request(
            "GET" if path.startswith(("/api/facts", "/thumbs")) else "POST", locked + path, **more
        ).status_code

    for path in ("/api/facts", "/api/classify", "/api/embed", "/api/search", f"/thumbs/{'0' * 64}.jpg"):
        assert status(path) == 401
    for wrong in (basic("ann", "b"), basic("", ""), {"Authorization": "Basic ?"}, {"Authorization": "Bearer x"}):
        assert status("/api/facts", headers=wrong) == 401
    assert status("/api/facts", headers=basic("ann", "a:ß")) == 200
    assert status("/api/classify", headers=basic("bob", "b"), content=picture(0)) == 200
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/queue/data?session_hash=a",
    ):
        assert httpx.get(locked + path).status_code == 401
    assert httpx.post(f"{locked}/gradio_api/call/name", json={"data": [None]}).status_code == 401
    assert httpx.post(f"{locked}/gradio_api/upload", files={"files": b"x"}).status_code == 401
    assert httpx.get(f"{locked}/healthz").status_code == httpx.get(f"{locked}/readyz").status_code == 200


def test_the_cookie_of_the_page_opens_the_api(locked: str) -> None:
    with httpx.Client(base_url=locked) as client:
        started = time.perf_counter()
        wrong = client.post("/login", data={"username": "ann", "password": "nope"})
        assert wrong.status_code == 400
        assert time.perf_counter() - started > 0.4  # guessing is slow
        assert client.get("/api/facts").status_code == 401
        assert client.post("/login", data={"username": "ann", "password": "a:ß"}).status_code == 200
        assert client.get("/api/facts").status_code == 200
        assert client.get("/config").status_code == 200
        client.get("/logout")
        assert client.get("/api/facts").status_code == 401


def test_a_password_needs_accounts(engine: Engine) -> None:
    with pytest.raises(ValueError, match="give --auth FILE"):
        create_app(engine, Access(edits=True, public=False, password=True))


def test_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "users"
    file.write_text("# of the lab\nann:a:b\n\nbob: c \n", encoding="utf-8")
    assert accounts(file) == [("ann", "a:b"), ("bob", " c ")]
    file.write_text("ann:a\nbob:b", encoding="utf-8-sig")  # as Windows' Notepad may write it
    assert accounts(file) == [("ann", "a"), ("bob", "b")]
    monkeypatch.setenv("SIMCLR_AUTH", "eve:e")
    assert accounts(None) == [("eve", "e")]
    assert ("eve", "e") in accounts(file)
    monkeypatch.delenv("SIMCLR_AUTH")
    assert accounts(None) == []
    for content, said in (("ann:a\nsecret-without-user", "line 2 is not"), ("# none", "no accounts"), (":p", "line 1")):
        file.write_text(content)
        with pytest.raises(ValueError, match=said) as caught:
            accounts(file)
        assert "secret" not in str(caught.value).replace(str(file), "")
    with pytest.raises(ValueError, match="cannot be read"):
        accounts(tmp_path / "absent")


@pytest.mark.parametrize(
    ("host", "public", "auth", "wanted"),
    [
        ("127.0.0.1", False, False, Access(edits=True, public=False, password=False)),
        ("localhost", False, True, Access(edits=True, public=False, password=True)),
        ("::1", True, False, Access(edits=False, public=True, password=False)),
        ("0.0.0.0", False, False, Access(edits=False, public=True, password=False)),
        ("0.0.0.0", False, True, Access(edits=True, public=False, password=True)),
        ("192.0.2.1", True, True, Access(edits=False, public=True, password=True)),
        ("127.0.0.1.evil.example", False, False, Access(edits=False, public=True, password=False)),
    ],
)
def test_access(host: str, public: bool, auth: bool, wanted: Access) -> None:
    assert access_for(host, public=public, auth=auth) == wanted
    lines = " ".join(told(wanted, host, 7860))
    assert ("read-only" in lines) == (not wanted.edits)
    assert ("with a password" in lines) == auth
    assert ("Only this machine" in lines) == (host in ("127.0.0.1", "localhost", "::1"))


# The page, and as a part of another application


def page(engine: Engine) -> Any:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        shown = gr.Image(type="filepath")
        gr.Button().click(
            lambda path: str(engine.classify(engine.look(path)).ranked[0].label), shown, gr.Textbox(), api_name="name"
        )
    return blocks


def test_mounted_in_another_application(engine: Engine, tmp_path: Path) -> None:
    other = FastAPI()

    @other.get("/")
    def own() -> str:
        return "mine"

    other.mount("/pictures", create_app(engine, PUBLIC, page=page(engine)))
    (tmp_path / "a.png").write_bytes(picture(1))
    best = engine.classify(engine.look(picture(1))).ranked[0].label
    with served(other) as url:
        assert httpx.get(url).json() == "mine"
        assert httpx.get(f"{url}/pictures/readyz").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 404
        named = httpx.post(f"{url}/pictures/api/classify", content=picture(1)).json()
        assert named["predictions"][0]["label"] == best
        assert "gradio_config" in httpx.get(f"{url}/pictures/").text
        assert httpx.get(f"{url}/pictures/monitoring/summary").status_code == 404
        code = f"from gradio_client import Client, handle_file\nclient = Client('{url}/pictures', verbose=False)\n"
        assert in_a_process(code + "print(client.predict(handle_file('a.png'), api_name='/name'))", tmp_path) == best


def in_a_process(code: str, folder: Path) -> str:
    """The last line that a program prints (gradio_client leaves threads and event loops behind)."""
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_tidy_keeps_the_newest(tmp_path: Path) -> None:
    now = time.time()
    for name, age, size in (("own", 9000, 50), ("old", 9000, 50), ("a", 300, 50), ("b", 200, 50), ("c", 100, 50)):
        file = tmp_path / name / "file.png"
        file.parent.mkdir()
        file.write_bytes(b"0" * size)
        os.utime(file, (now - age, now - age))
    own = {tmp_path / "own" / "file.png"}
    assert tidy(tmp_path, own, seconds=3600, most=20_000) == 2 * (50 + 8192)  # each takes whole blocks
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["b", "c", "own"]
    for folder in tmp_path.iterdir():
        os.utime(folder, (now - 300, now - 300))
    (tmp_path / "new").mkdir()
    assert tidy(tmp_path, own, seconds=3600) == 2 * (50 + 8192)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "new", "own"]
    assert tidy(tmp_path / "absent", set()) == 0


def test_what_cannot_be_deleted_is_said_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path, **_: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    (tmp_path / "visitors-own-name.png").write_bytes(b"0" * 5000)
    assert tidy(tmp_path, set(), most=0) == 5000 + 8192
    assert "Operation not permitted" in caplog.text
    assert "visitors-own-name" not in caplog.text


def test_the_folder_of_uploads_is_the_servers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tidied up: where others' files lie, there is a folder inside for this server, which goes with it."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_EXAMPLES_CACHE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "shared"))
    with serve._own_folder() as folder:
        assert folder.parent == tmp_path / "shared"
        (tmp_path / "shared" / "others.safetensors").write_bytes(b"0")
        uploads = serve.be_quiet(folder)
        assert uploads.parent == folder
        assert os.environ["GRADIO_TEMP_DIR"] == str(uploads)
        assert serve.be_quiet(tmp_path / "mine") == tmp_path / "mine" / "uploads"
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["others.safetensors"]


# Starting and ending


def test_listening_passes_over_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        monkeypatch.setattr(serve, "FIRST_PORT", min(first, 65_000))
        with serve.listen("127.0.0.1", None) as found:
            assert found.getsockname()[1] != first
        with pytest.raises(ValueError, match="choose another with --port"):
            serve.listen("127.0.0.1", first)


def test_a_server_ends_with_open_connections(engine: Engine) -> None:
    before = threading.active_count()
    with served(create_app(engine, LOCAL)) as url:
        slow = Slowly(url, "/api/classify", 100)
        started = time.perf_counter()
    assert time.perf_counter() - started < 8
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)  # threads of its pool end on their own
    assert threading.active_count() <= before
    slow.socket.close()


# docs/serving.md


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The engine with the page that people see."""
    from app import ui

    with served(create_app(engine, LOCAL, page=ui.build(engine, LOCAL))) as address:
        yield address


def test_what_strangers_send_is_not_in_the_log(
    whole: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Gradio prints a traceback with the values; those may hold lines of their own, and what a terminal obeys."""
    evil = "\x1b[31mforged\nERROR line" + "A" * 1000
    refused = 0
    for event in httpx.get(f"{whole}/config").json()["dependencies"]:
        for data in ([evil] * len(event["inputs"]), [evil], [{"path": evil}, evil, evil], []):
            sent = {"data": data, "fn_index": event["id"], "session_hash": "q"}
            refused += httpx.post(f"{whole}/gradio_api/run/predict", json=sent, timeout=30).status_code >= 400
    assert refused > 20
    shown = "".join(capfd.readouterr())
    assert "forged" not in shown + caplog.text
    assert "Traceback" not in shown + caplog.text


def documented(language: str) -> list[str]:
    page = Path(__file__).parents[1] / "docs" / "serving.md"
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_documented_python_runs(
    whole: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(picture(4))
    Path("photos").mkdir()
    Path("photos", "a.png").write_bytes(picture(4))
    client, mounting = documented("py")
    code = client.replace("http://127.0.0.1:7860", whole) + "\nprint(hits[0]['score'] > 0.99, len(more), len(vector))"
    assert in_a_process(code, tmp_path) == f"True 5 {engine.model.feature_width}"
    names: dict[str, Any] = {}
    monkeypatch.setattr(serve, "be_quiet", lambda folder: folder)  # Gradio is imported already
    exec(mounting, names)
    with served(names["app"]) as url:
        assert httpx.post(f"{url}/pictures/api/search", content=picture(4)).json()["hits"][0]["name"] == "a.png"
        assert "--s-accent" in httpx.get(f"{url}/pictures/theme.css").text + httpx.get(f"{url}/pictures/").text
    names["engine"].close()


def test_the_documented_commands_answer(whole: str, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture(4))
    lines = [
        line for block in documented("sh") for line in block.splitlines() if "curl" in line or line.startswith("DATA")
    ]
    assert len(lines) == 8
    script = "\n".join(lines).replace("http://127.0.0.1:7860", whole).replace("curl ", "curl -sf ")
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert '"predictions"' in done.stdout
    assert '"features"' in done.stdout
    assert '"hits"' in done.stdout
    assert "event: complete" in done.stdout
