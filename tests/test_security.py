"""What strangers have done to Gradio pages before, done to this one: published advisories, replayed against the app.

Each must end without a byte of a file that was not uploaded, without a connection to elsewhere, and with the app alive.
"""

import hashlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image
from test_app import GUARD
from test_export import tiny_student

MARK = "TOP-SECRET-8f3a"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Target(NamedTuple):
    url: str
    base: Path
    secret: Path
    log: Path
    process: "subprocess.Popen[bytes]"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """A request as it is written: nothing is normalised on the way."""
        sent = dict(headers or {})
        if isinstance(body, dict | list):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection._validate_path = lambda url: None  # type: ignore[attr-defined]
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "a.png") -> str:
        answer = self.ask("POST", "/gradio_api/upload", *form([("files", name, content)]))
        assert answer.status == 200, answer
        return str(json.loads(answer.body)[0])

    def call(self, name: str, data: list[Any]) -> str:
        """What a call through the queue says, all of it."""
        answer = self.ask("POST", f"/gradio_api/call/{name}", {"data": data})
        if answer.status != 200:
            return answer.body.decode()
        return self.ask("GET", f"/gradio_api/call/{name}/{json.loads(answer.body)['event_id']}").body.decode()

    def uploads(self) -> Path:
        return next(self.base.glob("tmp/simclr-*/uploads"))

    def config(self) -> dict[str, Any]:
        return dict(json.loads(self.ask("GET", "/config").body))


def form(parts: list[tuple[str, str, bytes]]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: text/html\r\n\r\n%s\r\n'
        % (name.encode(), file.encode(), content)
        for name, file, content in parts
    )
    return body + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def photo(seed: int) -> bytes:
    import io

    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def start(base: Path, *options: str) -> Target:
    model, log = tiny_student(base), base / "outside.log"
    for name in ("gallery", "tmp"):
        (base / name).mkdir()
    for n in range(4):
        (base / "gallery" / f"{n}.png").write_bytes(photo(n))
    secret = base / "gallery" / "secret.txt"
    secret.write_text(MARK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", GUARD, str(log), "app", "--model", str(model), "--port", str(port), "--no-browser"]
    command += ["--gallery", str(base / "gallery"), *options]
    environment = {**os.environ, "SIMCLR_CACHE": str(base / "cache"), "TMPDIR": str(base / "tmp"), "ANY_TOKEN": MARK}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    environment["GRADIO_TEMP_DIR"] = str(base / "tmp")  # the app makes a folder of its own there
    process = subprocess.Popen(command, env=environment, cwd=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert f"http://127.0.0.1:{port}" in line, line
    threading.Thread(target=lambda: process.stderr and process.stderr.read(), daemon=True).start()
    return Target(f"http://127.0.0.1:{port}", base, secret, log, process)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The app as its owner starts it: all of it open, to this machine."""
    yield from run(start(tmp_path_factory.mktemp("attacked")))


def run(target: Target) -> Iterator[Target]:
    pictures = json.loads(target.ask("GET", "/api/facts").body)["gallery"]["pictures"]
    yield target
    try:
        assert target.process.poll() is None
        assert target.ask("GET", "/readyz").status == 200
        assert json.loads(target.ask("GET", "/api/facts").body)["gallery"]["pictures"] == pictures
        copies = [path for path in target.uploads().rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]
        assert copies == []
        assert not target.log.exists(), target.log.read_text()
        target.process.terminate()
        assert target.process.wait(30) == 130
        assert list((target.base / "tmp").glob("simclr-*")) == []  # nothing of the visitors stays
    finally:
        target.process.kill()
        for pipe in (target.process.stdout, target.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that must not be asked, and what it was asked."""
    asked: list[str] = []

    class Noting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MARK.encode())

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def leaks(answer: Answer | str) -> bool:
    body = answer.encode() if isinstance(answer, str) else answer.body
    return MARK.encode() in body or b"root:x:" in body


def tells(text: str) -> bool:
    return any(word in text for word in ("Traceback", "site-packages", ".py", "line "))


# Files of the machine: CVE-2023-34239, CVE-2023-51449, CVE-2024-0964, CVE-2024-1728, CVE-2024-10648, CVE-2024-12217,
# CVE-2024-47164, CVE-2024-47166, CVE-2025-23042, CVE-2026-28414

ROUTES = (
    "/file=", "/gradio_api/file=", "/file/", "/gradio_api/file/", "/static/", "/assets/", "/svelte/", "/thumbs/", "/",
    "/custom_component/x/client/component/", "/gradio_api/custom_component/x/client/component/",
)  # fmt: skip


def test_no_file_of_the_machine_is_read(app: Target) -> None:
    secret, uploads = str(app.secret), str(app.uploads())
    up = "../" * 12
    wanted = [
        secret, secret.lstrip("/"), secret.upper(), f"{uploads}/../../../gallery/secret.txt", f"{up}etc/passwd",
        f"{up}{secret.lstrip('/')}", quote(up, safe="") + "etc%2fpasswd", "%2e%2e/" * 12 + "etc/passwd",
        "%252e%252e%252f" * 12 + "etc%252fpasswd", "....//" * 12 + "etc/passwd", "..%5c" * 12 + "etc%5cpasswd",
        "..%c0%af" * 12 + "etc/passwd", f"{uploads}/%2e%2e/%2e%2e/%2e%2e/gallery/secret.txt", f"/{secret}",
        "/etc/passwd", "/etc/passwd%00.png", "/etc/./passwd", "//etc/passwd", "/proc/self/environ",
        "/proc/self/root" + secret,
        "/dev/fd/0", "/dev/stdin", f"file://{secret}", f"file:{secret}", "~/.bashrc", "~root/.bashrc",
        r"\\127.0.0.1\c$\secret.txt", "%5c%5c127.0.0.1%5cshare%5csecret.txt", r"C:\Windows\win.ini",
        "C:/Windows/win.ini",
        "/windows/win.ini", str(app.base / "tiny.onnx"), str(app.base / "cache"), uploads, f"{uploads}/",
        str(Path(sys.prefix) / "pyvenv.cfg"), f"{secret}?x", f"{secret}%3fx", f"{secret}%23", f"{secret}%20",
        f"{secret}.",
    ]  # fmt: skip
    for route in ROUTES:
        for path in wanted:
            try:
                answer = app.ask("GET", (route + path).replace(" ", "%20"))
            except UnicodeEncodeError:
                continue
            assert not leaks(answer), route + path
            assert answer.status >= 400, (route + path, answer.status)
            assert not tells(answer.body.decode(errors="replace")), (route + path, answer.body)


def test_links_in_the_cache_lead_nowhere(app: Target) -> None:
    """Whoever could place a link there must still not read through it."""
    link = app.uploads() / "linked.png"
    link.symlink_to(app.secret)
    try:
        assert not leaks(app.ask("GET", f"/gradio_api/file={link}"))
    finally:
        link.unlink()


# Server functions of components: CVE-2024-1561


def test_components_serve_no_functions(app: Target) -> None:
    for prefix in ("", "/gradio_api"):
        for name in ("move_resource_to_block_cache", "async_move_resource_to_block_cache", "get_config", "__init__"):
            body = {"component_id": "1", "data": str(app.secret), "fn_name": name, "session_hash": "aaaaaaaaaaa"}
            for path in ("/component_server", "/component_server/"):
                answer = app.ask("POST", prefix + path, body)
                assert answer.status == 404
                assert not leaks(answer)


# Files named in data: CVE-2024-4941, CVE-2024-47867, CVE-2024-47868, CVE-2024-48052, and addresses: CVE-2024-47167,
# CVE-2024-4325, CVE-2024-1183


def forged(target: str) -> list[Any]:
    meta = {"meta": {"_type": "gradio.FileData"}}
    return [
        {"path": target, **meta},
        {"path": target},
        {"path": target, "url": target, "orig_name": "a.png", "is_stream": False, **meta},
        {"path": "a.png", "url": target, **meta},
        {"path": "", "url": target, **meta},
        {"image": {"path": target, **meta}, "caption": None},
        {"background": {"path": target, **meta}, "layers": [], "composite": {"path": target, **meta}},
        [{"path": target, **meta}],
        [{"image": {"path": target, **meta}, "caption": "a"}],
        {"value": {"path": target, **meta}},
        {"path": f"/gradio_api/file={target}", **meta},
        {"path": f"file={target}", "url": f"/gradio_api/proxy={target}", **meta},
        {"path": target, "meta": {"_type": "gradio.Other"}},
        [{"image": {"path": target}, "caption": "a"}],
        target,
    ]


def test_files_named_in_data_are_not_read(app: Target) -> None:
    for name, target in (
        ("embed", str(app.secret)), ("classify", "/etc/passwd"), ("search", f"file://{app.secret}"),
        ("embed", f"{app.uploads()}/../../../gallery/secret.txt"),
    ):  # fmt: skip
        for data in forged(target)[:: 1 if name == "embed" else 3]:
            said = app.call(name, [data, 3] if name == "search" else [data])
            assert not leaks(said)
            assert "event: complete" not in said, (name, data)
            assert not tells(said), said


def test_no_event_of_the_page_takes_them(app: Target, elsewhere: tuple[str, list[str]]) -> None:
    """Every function of the page, also those without a name."""
    address, asked = elsewhere
    functions = app.config()["dependencies"]
    assert len(functions) > 5
    for first in range(0, len(functions), 20):  # so that the queue is never full
        session = f"attacker{first:04}"
        for function in functions[first : first + 20]:
            for data in (forged(str(app.secret))[1], forged(f"{address}/a.png")[2]):
                body = {"fn_index": function["id"], "session_hash": session, "data": [data] * len(function["inputs"])}
                answer = app.ask("POST", "/gradio_api/queue/join", {**body, "trigger_id": None, "event_data": data})
                assert answer.status == 200
        ended = app.ask("GET", f"/gradio_api/queue/data?session_hash={session}").body.decode()
        assert ended.count("process_completed") == 2 * len(functions[first : first + 20])
        assert not leaks(ended)
        assert not tells(ended)
    assert asked == []


# Requests to elsewhere: CVE-2024-2206, CVE-2024-8021, CVE-2026-28416, and redirects: CVE-2024-4940, CVE-2024-8021


def test_nothing_is_fetched_for_others(app: Target, elsewhere: tuple[str, list[str]]) -> None:
    address, asked = elsewhere
    plain = address.removeprefix("http://")
    for path in (
        f"/proxy={address}/a", f"/gradio_api/proxy={address}/a", f"/gradio_api/proxy={address}@a.hf.space/",
        "/gradio_api/proxy=https://a.hf.space/", f"/file={address}/a.png", f"/gradio_api/file={address}/a.png",
        f"/gradio_api/file=http:/{plain}/a.png", f"/gradio_api/file=HTTP://{plain}/a.png",
        f"/gradio_api/file=//{plain}/a",
        f"/gradio_api/file=%68ttp://{plain}/a.png", f"/gradio_api/file=ftp://{plain}/a", "/gradio_api/dev/reload",
        "/gradio_api/file=https://203.0.113.9/a.png", f"/gradio_api/run-history/buckets?x={address}",
        f"/gradio_api/mcp/?x={address}", "/gradio_api/mcp/sse", f"/gradio_api/file/{address}/a.png",
    ):  # fmt: skip
        for method in ("GET", "HEAD", "POST"):
            answer = app.ask(method, path, b"" if method == "POST" else None)
            assert answer.status >= 400, (method, path, answer)
            assert "location" not in answer.headers
    for data in forged(f"{address}/a.png"):
        assert "event: complete" not in app.call("embed", [data])
    assert asked == []


def test_no_redirect_leads_away(app: Target) -> None:
    for path in (
        "//evil.example", "//evil.example/%2e%2e", "/%2f%2fevil.example", "/\\evil.example", "/https://evil.example",
        "/file=https://evil.example/a.png", "/gradio_api/file=https://evil.example", "/login?next=//evil.example",
        "/?__theme=dark&next=https://evil.example", "/logout?next=https://evil.example", "/config/",
        "/gradio_api/info/",
    ):  # fmt: skip
        for method in ("GET", "POST"):
            answer = app.ask(method, path, b"username=a&password=b" if method == "POST" else None)
            place = answer.headers.get("location", app.url)
            assert place.startswith((app.url + "/", "/")) or place == app.url, (path, place)
            assert not place.startswith("//")


# Uploads: CVE-2023-41626, CVE-2024-1727 (from other pages), CVE-2024-47872 (pages and drawings with scripts in them)


def test_uploads_stay_in_their_folder(app: Target) -> None:
    before = {path for path in app.base.rglob("*") if app.uploads() not in path.parents}
    for name in (
        "../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "a/../../../escaped.png", "....//escaped.png",
        "%2e%2e%2fescaped.png", "..", ".", "", "a" * 600 + ".png", "con.png", "a\x00b.png", "~/escaped.png",
        "a\u202egnp.exe",
        "state.json", "-rf", "$(id).png", "a;b.png", "😀.png", "\\\\127.0.0.1\\c$\\a.png",
    ):  # fmt: skip
        for field in ("files", "../files", "upload_dir", ""):
            answer = app.ask("POST", "/gradio_api/upload", *form([(field, name, photo(1))]))
            if answer.status == 200:
                for path in json.loads(answer.body):
                    assert app.uploads() in Path(path).resolve().parents
            assert not tells(answer.body.decode()), answer.body
    assert {path for path in app.base.rglob("*") if app.uploads() not in path.parents} == before
    assert not Path("/tmp/escaped.png").exists()


def test_deep_links_show_nothing(app: Target) -> None:
    stored = app.upload(
        json.dumps([{"id": 1, "props": {"value": MARK}}]).replace(MARK, "forged").encode(), "state.json"
    )
    for link in (f"../{Path(stored).parent.name}", Path(stored).parent.name, "..%2f" + Path(stored).parent.name):
        for path in (f"/?deep_link={link}", f"/config?deep_link={link}"):
            assert b"forged" not in app.ask("GET", path).body
    assert app.ask("GET", "/gradio_api/deep_link?session_hash=attacker0000").status == 404


@pytest.mark.parametrize(
    "name", ["a.html", "a.svg", "a.xml", "a.xhtml", "a.htm", "a.js", "a.pdf", "a", "a.png", "a.svgz"]
)
def test_uploaded_pages_run_nothing(app: Target, name: str) -> None:
    content = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/><script>alert(1)</script>"
    path = app.upload(content, name)
    for headers in ({}, {"Range": "bytes=0-20"}, {"Accept": "text/html"}):
        answer = app.ask("GET", f"/gradio_api/file={quote(path)}", headers=headers)
        assert answer.status in (200, 206)
        if name != "a.png":
            assert answer.headers["content-disposition"].startswith("attachment")
            assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


# Other pages: CVE-2024-47084, CVE-2024-1727, CVE-2024-47165


def test_other_pages_may_not_use_this_one(app: Target) -> None:
    port = urlsplit(app.url).port
    for origin in (
        "null",
        "https://evil.example",
        "http://localhost:1",
        "http://127.0.0.1",
        f"http://evil.example:{port}",
    ):
        for method, path in (
            ("GET", "/config"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"), ("POST", "/login"),
            ("POST", "/api/classify"), ("OPTIONS", "/gradio_api/queue/join"), ("OPTIONS", "/api/classify"),
        ):  # fmt: skip
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Content-Type": "text/plain"}
            answer = app.ask(method, path, b"{}" if method == "POST" else None, headers)
            assert answer.status in (403, 405)
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert app.ask("GET", "/config", headers={"Host": f"evil.example:{port}"}).status == 403  # DNS rebinding
    assert app.ask("GET", "/config", headers={"Origin": app.url}).status == 200


# Everything else of Gradio's that this page has no use for: closed


def test_what_the_page_does_not_use_is_closed(app: Target) -> None:
    for method, path in (
        ("GET", "/monitoring"), ("GET", "/monitoring/summary"), ("GET", "/monitoring/x"), ("GET", "/gradio_api/runs"),
        ("GET", "/pwa_icon"), ("GET", "/pwa_icon/100000"), ("GET", "/gradio_api/token"), ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/gradio_api/vibe-edit"), ("GET", "/gradio_api/vibe-code"), ("POST", "/gradio_api/vibe-code"),
        ("POST", "/gradio_api/undo-vibe-edit"), ("POST", "/gradio_api/vibe-starter-queries"),
        ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/process_recording"), ("POST", "/gradio_api/run-history/connect"),
        ("GET", "/gradio_api/mcp"),
        ("POST", "/gradio_api/stream/a"), ("POST", "/gradio_api/stream/a/close"),
        ("GET", "/gradio_api/stream/a/1/1/playlist.m3u8"),
        ("GET", "/gradio_api/profiling/traces"), ("GET", "/gradio_api/file/a"), ("POST", "/gradio_api/api/classify"),
        ("POST", "/run/predict"), ("POST", "/gradio_api/component_server"), ("PUT", "/"), ("TRACE", "/"),
        ("DELETE", "/config"),
    ):  # fmt: skip
        assert app.ask(method, path, {} if method == "POST" else None).status in (404, 405), path
    picture = {"path": app.upload(photo(5)), "meta": {"_type": "gradio.FileData"}}
    round_the_queue = app.ask("POST", "/gradio_api/run/classify", {"data": [picture]})
    assert round_the_queue.status == 404


def test_odd_requests_are_answered_quickly(app: Target) -> None:
    body, headers = form([("files", f"{n}.png", b"") for n in range(1500)])
    requests: list[tuple[str, str, Any, dict[str, str]]] = [
        ("POST", "/gradio_api/upload", body, headers),
        ("POST", "/gradio_api/upload", b"--x\r\n" * 200_000, headers),
        ("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=" + "x" * 5000}),
        ("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; charset=none; boundary=x"}),
        ("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data"}),
        ("POST", "/gradio_api/upload", b"", {}),
        ("POST", "/login", b"username=a", {"Content-Type": 'application/x-www-form-urlencoded; !="' + "\\" * 9000}),
        ("POST", "/login", b"&" * 900_000, {"Content-Type": "application/x-www-form-urlencoded"}),
        ("POST", "/gradio_api/queue/join", b"[" * 500_000, {"Content-Type": "application/json"}),
        ("POST", "/gradio_api/queue/join", b'{"data":' * 50_000, {"Content-Type": "application/json"}),
        ("POST", "/gradio_api/queue/join", b'{"data":[' + b"9" * 500_000 + b"]}", {"Content-Type": "application/json"}),
        ("POST", "/gradio_api/queue/join", {"data": [], "fn_index": 10**6, "session_hash": "a"}, {}),
        ("POST", "/gradio_api/queue/join", {"data": [], "fn_index": -1, "session_hash": "a"}, {}),
        ("POST", "/gradio_api/queue/join", {"data": "x", "fn_index": {}, "session_hash": []}, {}),
        ("POST", "/gradio_api/call/classify", {"data": [None] * 50_000}, {}),
        ("POST", "/gradio_api/call/nothing", {"data": []}, {}),
        ("POST", "/gradio_api/call/v2/nothing", {"a": 1}, {}),
        ("POST", "/gradio_api/call/v2/classify", {"nonsense": 1}, {}),
        ("POST", "/gradio_api/cancel", {"session_hash": "a", "fn_index": 0, "event_id": "b"}, {}),
        ("POST", "/gradio_api/run/classify", {"data": []}, {}),
        ("GET", "/gradio_api/file=" + "a/" * 900, None, {}),
        ("GET", "/gradio_api/queue/data?session_hash=nobody", None, {}),
        ("GET", "/gradio_api/upload_progress?upload_id=nothing", None, {}),
        ("GET", "/gradio_api/info?all_endpoints=true", None, {}),
        ("GET", "/?" + "a=1&" * 3000, None, {}),
        ("GET", "/", None, {"X-Forwarded-Host": "a" * 4000, "X-Gradio-Server": "http://evil.example"}),
        ("GET", "/", None, {"Cookie": "a=" * 3000}),
    ]  # fmt: skip
    for method, path, sent, more in requests:
        started = time.perf_counter()
        answer = app.ask(method, path, sent, more)
        assert time.perf_counter() - started < 8, path
        assert not tells(answer.body.decode(errors="replace")) or answer.status == 200, (path, answer.body[:500])
        assert str(app.base).encode() not in answer.body or answer.status == 200, (path, answer.body[:500])


# Visitors among themselves


def test_names_of_uploads_cannot_be_guessed(app: Target) -> None:
    """Whoever has a picture's bytes and this installation's files must not find out that somebody uploaded it."""
    import gradio

    content = photo(7)
    folder = Path(app.upload(content)).parent.name
    seed = Path(gradio.__file__).with_name("hash_seed.txt")
    seeds = [b"", seed.read_text().strip().encode() if seed.exists() else b""]
    assert folder not in [hashlib.sha256(known + content).hexdigest() for known in seeds]
    for guess in (app.uploads(), app.uploads() / folder, app.uploads() / folder[:-1], app.uploads() / "*" / "a.png"):
        assert app.ask("GET", f"/gradio_api/file={guess}").status in (403, 404)


def test_visitors_see_their_own_answers_only(app: Target) -> None:
    picture = {"path": app.upload(photo(8), "mine.png"), "meta": {"_type": "gradio.FileData"}}
    name = next(one for one in app.config()["dependencies"] if one["api_name"] == "classify")
    body = {
        "data": [picture, *[None] * (len(name["inputs"]) - 1)],
        "fn_index": name["id"],
        "session_hash": "visitor0001",
    }
    event = json.loads(app.ask("POST", "/gradio_api/queue/join", body).body)["event_id"]
    for other in ("visitor0002", "", "undefined", "null", "*"):
        seen = app.ask("GET", f"/gradio_api/queue/data?session_hash={other}").body.decode()
        assert "process_completed" not in seen
        assert event not in seen
    assert app.ask("GET", "/gradio_api/queue/data").status in (400, 422)
    mine = app.ask("GET", "/gradio_api/queue/data?session_hash=visitor0001").body.decode()
    assert "process_completed" in mine
    page = app.ask("GET", "/").body + app.ask("GET", "/config").body
    assert b"mine.png" not in page


def test_another_account_is_asked_for_its_password_slowly_but_equally(app: Target) -> None:
    """Without accounts nobody can sign in, and /login says nothing."""
    answer = app.ask("POST", "/login", b"username=a&password=b", {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status in (302, 400, 404)
    assert "set-cookie" not in answer.headers


# What a visitor could cost the others


def test_answers_that_nobody_reads_are_not_kept_for_ever(app: Target) -> None:
    body = {"data": [["nothing"], 5, "", ""], "session_hash": "never-reads"}
    name = next(one["id"] for one in app.config()["dependencies"] if one["api_name"] == "similar")
    statuses = []
    for _ in range(400):
        statuses.append(app.ask("POST", "/gradio_api/queue/join", {**body, "fn_index": name}).status)
        if statuses[-1] == 503 and len(statuses) > 80:
            break
    assert statuses[-1] == 503
    for _ in range(30):  # nor of many who call once
        assert app.ask("POST", "/gradio_api/call/similar", {"data": body["data"]}).status in (200, 503)
    until = time.monotonic() + 20  # for the calls that still wait
    while "Queue is full" in (said := app.call("similar", body["data"])) and time.monotonic() < until:
        time.sleep(0.1)
    assert "event: error" in said  # others are answered


def test_an_example_given_many_times_is_one_example(app: Target) -> None:
    """Leaving out hundreds of copies of one picture took minutes."""
    found = json.loads(app.call("gallery", [0, 4, "", ""]).partition("data: ")[2])[0]["pictures"]
    ids = [one["id"] for one in found]
    started = time.perf_counter()
    said = app.call("teach", [{"a": [ids[0]] * 249 + [ids[1]], "b": [ids[2]] * 249 + [ids[3]]}, None])
    assert "event: complete" in said
    assert time.perf_counter() - started < 5


def test_speed_is_not_measured_for_everybody_anew(app: Target) -> None:
    name = next(one["id"] for one in app.config()["dependencies"] if one["api_name"] == "measure")
    said, took = [], []
    for number in range(5):
        session, started = f"measuring{number}", time.perf_counter()
        body = {"data": [], "fn_index": name, "session_hash": session}
        assert app.ask("POST", "/gradio_api/queue/join", body).status == 200
        answer = app.ask("GET", f"/gradio_api/queue/data?session_hash={session}").body.decode()
        said.append(answer.partition('"output":{"data":')[2].partition("]")[0])
        took.append(time.perf_counter() - started)
    assert "pictures a second" in said[0]
    assert len(set(said)) == 1
    assert sum(took[1:]) < 2
