"""The hostile corpus over HTTP: the app in a process of its own, its Gradio endpoint /classify, and POST /api/classify.

Started by ``python tests/hostile.py --http``. An answer must be the one of the student on the same pixels, in this
process; anything else one printable line; and the server must not grow, die, or keep files and threads.
"""

import contextlib
import html
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from hostile import GROWTH, SECONDS, Case, corpus, some, time_bombs

from app.engine import bundled_student
from app.uploads import Refused, read_upload
from export.runtime import OnnxModel

START_SECONDS, WARM_UP = 120, 120
# Beside reading the file: it is sent, written and fetched again, and the model runs, all on what the machine has left.
MORE_SECONDS = 2.0
ALLOWED_FILES = 8  # sockets that are still closing


class Reply(NamedTuple):
    """What came back: the probabilities by class, or what was said."""

    found: dict[str, float]
    said: str
    status: int = 200


@contextlib.contextmanager
def running() -> Iterator[tuple[str, int]]:
    """The app on the bundled student: (its address, its process id)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app", "--no-browser", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(Path(folder) / "uploads")}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The app did not start: {(Path(folder) / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield url, process.pid
            if process.poll() is not None:
                raise RuntimeError(f"The app died: {(Path(folder) / 'log').read_text()[-2000:]}")
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/gradio_api/info", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def gradio_classify(client: httpx.Client) -> Callable[[Case], Reply]:
    """Upload, call and fetch, as gradio_client does it."""
    parameters = client.get("/gradio_api/info").json()["named_endpoints"]["/classify"]["parameters"]
    defaults = [parameter.get("parameter_default") for parameter in parameters[1:]]

    def classify(case: Case) -> Reply:
        sent = client.post("/gradio_api/upload", files={"files": (_header_safe(case.name), case.data)})
        if sent.status_code != 200:
            return Reply({}, _message(sent), sent.status_code)
        file = {"path": sent.json()[0], "orig_name": case.name, "meta": {"_type": "gradio.FileData"}}
        # one visitor: Gradio keeps 50 KB for each that it sees, which is another matter
        body = json.dumps({"data": [file, *defaults], "session_hash": "hostile"}).encode()
        called = client.post("/gradio_api/call/classify", content=body, headers={"content-type": "application/json"})
        if called.status_code != 200:
            return Reply({}, _message(called), called.status_code)
        event = client.get(f"/gradio_api/call/classify/{called.json()['event_id']}").text
        name, _, data = event.strip().rpartition("event: ")[2].partition("\ndata: ")
        value = json.loads(data) if data else None
        if name == "complete":
            return Reply(_probabilities(value), "")
        return Reply({}, html.unescape(str(value["error"] if isinstance(value, dict) else value)))

    return classify


def api_classify(client: httpx.Client) -> Callable[[Case], Reply] | None:
    """The plain HTTP API, if this app has it."""
    if client.post("/api/classify", content=b"x").status_code in (404, 405):
        return None

    def classify(case: Case) -> Reply:
        answer = client.post("/api/classify", files={"image": (_header_safe(case.name), case.data)})
        if answer.status_code == 200:
            return Reply(_probabilities(answer.json()), "")
        return Reply({}, _message(answer), answer.status_code)

    return classify


def _header_safe(name: str) -> str:
    """A name as a client can put it into a form: something, and UTF-8."""
    return name.encode("utf-8", "replace").decode() or "picture"


def _message(response: httpx.Response) -> str:
    try:
        told = response.json()
        return str(told.get("message") or told.get("detail") or told.get("error") or told)
    except (ValueError, AttributeError):
        return response.text


def _probabilities(value: Any) -> dict[str, float]:
    """All {"label": ..., "confidence" or "probability": ...} in an answer."""
    if isinstance(value, list):
        return {label: p for part in value for label, p in _probabilities(part).items()}
    if isinstance(value, dict):
        p = value.get("confidence", value.get("probability"))
        if isinstance(p, int | float) and isinstance(value.get("label"), str):
            return {value["label"]: float(p)}
        return {label: p for part in value.values() for label, p in _probabilities(part).items()}
    return {}


def judged(case: Case, reply: Reply, expected: dict[str, float] | str) -> str:
    """What is wrong about a reply, given what this process says of the file; nothing if it is ""."""
    if isinstance(expected, dict):
        if case.kind == "name" and reply.status == 400:
            return ""  # Gradio takes no file called ".."
        if not reply.found:
            return f"refused: {reply.said!r}"
        apart = max(abs(p - expected.get(label, 2)) for label, p in reply.found.items())
        return "" if apart < 1e-3 else f"another answer, {apart:.4f} apart"
    if reply.found:
        return "answered, and should have been refused"
    said = reply.said.strip()
    if reply.status >= 500 or not said or "Traceback" in said or not said.isprintable():
        return f"said {reply.status} {said!r}"
    if "/tmp" in said or "/home" in said or "/root" in said or len(said) > 400:
        return f"said {said!r}"
    return ""


def _told(model: OnnxModel, case: Case) -> dict[str, float] | str:
    try:
        probabilities = model.classify(read_upload(case.data, name=case.name))[0]
    except Refused as refused:
        return str(refused)
    return dict(zip(model.labels, np.asarray(probabilities, float).tolist(), strict=True))


def check(cases: Iterable[Case]) -> int:
    """Send every case to both endpoints and print what was found; 0 if all is well."""
    model = OnnxModel(bundled_student(), threads=1)
    wrong: list[str] = []
    ends: Counter[str] = Counter()
    slow: list[tuple[float, str]] = []
    with running() as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        endpoints = {"/classify": gradio_classify(client), "POST /api/classify": api_classify(client)}
        for name, call in endpoints.items():
            if call is None:
                print(f"{name}: not there")
        for case in some(corpus(99, without=[time_bombs]), WARM_UP):
            for call in filter(None, endpoints.values()):
                call(case)
        before = _state(process)
        for number, case in enumerate(cases):
            expected = _told(model, case)
            for name, call in endpoints.items():
                if call is None:
                    continue
                what = f"{name} {case.kind} {number} {case.name[:30]!r}"
                started = time.perf_counter()
                try:
                    reply = call(case)
                except httpx.TransportError as error:
                    wrong.append(f"{what}: {type(error).__name__} {error}")
                    continue
                seconds = time.perf_counter() - started
                slow = sorted([*slow, (seconds, what)], reverse=True)[:5]
                ends[f"{name} {'answer' if reply.found else f'refused, {reply.status}'}"] += 1
                fault = judged(case, reply, expected)
                if not fault and seconds > SECONDS + MORE_SECONDS:
                    fault = f"{seconds:.1f} s"
                if fault:
                    wrong.append(f"{what}: {fault}")
        time.sleep(3)
        after = _state(process)
    print("\n".join(f"{end}: {count}" for end, count in sorted(ends.items())))
    print("slowest:", ", ".join(f"{seconds:.2f} s {what}" for seconds, what in slow))
    for name, unit in (("memory", "MB"), ("peak", "MB"), ("threads", ""), ("files", "open")):
        print(f"server, {name}: {before[name]:.0f} after a warm-up, {after[name]:.0f} at the end {unit}".rstrip())
    if after["memory"] - before["memory"] > GROWTH / 1e6:
        wrong.append("the server's memory grew")
    if after["files"] > before["files"] + ALLOWED_FILES or after["threads"] > before["threads"] + ALLOWED_FILES:
        wrong.append("threads or files were left")
    print(f"{len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return int(bool(wrong))


def _state(process: int) -> dict[str, float]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    told = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
    return {
        "memory": int(told["VmRSS"]) * 1024e-6,
        "peak": int(told["VmHWM"]) * 1024e-6,
        "threads": float(told["Threads"]),
        "files": float(sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())),
    }
