"""The app under load, over real HTTP: capacity, 70 % of it, three times of it, and thousands of mixed requests.

    python benchmarks/serving.py --images imagenette/val [--model student.onnx] [--seconds 60] [--mixed 5000]
        [--quick] [--out benchmarks/results/serving_....md]

The server runs on one core, this generator on another (Linux: sched_setaffinity, /proc). Closed loop: so many askers,
each with one request at a time; open loop: requests arrive at random (Poisson), whether others are answered or not.
Every answer is compared with the one computed beforehand, without the server. Without --images, the app's own are sent.
Wants two quiet cores: what others take of the server's is told, and is missing from the capacity.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
SERVER_CORE, GENERATOR_CORE = 1, 0
TOLERANCE = 2e-5  # of a probability, six places of which are sent; of a feature, relative to the largest


class Asked(NamedTuple):
    """One request: HTTP status (0: no answer), seconds, and whether the answer was the right one."""

    status: int
    seconds: float
    right: bool


class Known(NamedTuple):
    """A picture and its answers, computed without the server."""

    content: bytes
    probabilities: dict[str, float]
    features: np.ndarray


class Usage(NamedTuple):
    """What a process holds."""

    rss: float  # MB
    threads: int
    files: int
    cached: int  # files in Gradio's folder


class Server:
    """The app in a process of its own, on its core."""

    def __init__(self, base: Path, arguments: list[str]) -> None:
        self.base = base
        (base / "tmp").mkdir()
        environment = {**os.environ, "SIMCLR_CACHE": str(base / "cache"), "TMPDIR": str(base / "tmp")}
        environment["PYTHONPATH"] = str(ROOT)
        environment.pop("GRADIO_TEMP_DIR", None)
        self.command = [sys.executable, "-m", "app", "--no-browser", *arguments]
        self.log = (base / "log.txt").open("w")
        self.process = subprocess.Popen(
            self.command, env=environment, cwd=base, stdout=subprocess.PIPE, stderr=self.log, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://" in line, line
        self.port = int(line.split("http://", 1)[1].split()[0].rsplit(":", 1)[1])

    def usage(self) -> Usage:
        place = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        cached = sum(path.is_file() for path in (self.base / "tmp").glob("simclr-*/uploads/**/*"))
        return Usage(
            int(status["VmRSS"].split()[0]) / 1000, int(status["Threads"]), len(list((place / "fd").iterdir())), cached
        )

    def cpu(self) -> tuple[float, float]:
        """Seconds that the server has computed, and that its core has been busy, with whatever."""
        mine = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path("/proc/stat").read_text().splitlines()
        core = next(line for line in lines if line.startswith(f"cpu{SERVER_CORE} ")).split()[1:]
        tick = os.sysconf("SC_CLK_TCK")
        idle = int(core[3]) + int(core[4])
        return (int(mine[11]) + int(mine[12])) / tick, (sum(map(int, core[:8])) - idle) / tick

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.close()


# HTTP, as cheap as can be: the generator must not be what is measured


async def http(port: int, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg") -> tuple[int, bytes]:
    """Status and body of a request on a connection of its own; status 0 where there was no answer."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    if method == "POST":
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer = None
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + b"\r\n" + body)
            answer = await reader.read()
            while more := await reader.read():
                answer += more
    except (OSError, TimeoutError):
        return 0, b""
    finally:
        if writer is not None:
            writer.close()
    headers, _, rest = answer.partition(b"\r\n\r\n")
    if not headers.startswith(b"HTTP/1.1 "):
        return 0, b""
    if b"transfer-encoding: chunked" in headers.lower():
        parts, left = [], rest
        while left:
            size, _, left = left.partition(b"\r\n")
            if not size or not int(size, 16):
                break
            parts.append(left[: int(size, 16)])
            left = left[int(size, 16) + 2 :]
        rest = b"".join(parts)
    return int(headers[9:12]), rest


def form(content: bytes, field: str) -> tuple[bytes, str]:
    boundary = "-----serving"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n\r\n'.encode()
    return head + content + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def as_known(features: Any, known: Known) -> bool:
    found = np.asarray(features, np.float64)
    return found.shape == known.features.shape and bool(
        np.abs(found - known.features).max() <= TOLERANCE * np.abs(known.features).max()
    )


async def classify(port: int, known: Known) -> Asked:
    started = time.perf_counter()
    status, body = await http(port, "POST", "/api/classify?k=1000", known.content)
    seconds = time.perf_counter() - started
    if status != 200:
        return Asked(status, seconds, status in (429, 503))
    found = {entry["label"]: entry["probability"] for entry in json.loads(body)["predictions"]}
    right = found.keys() == known.probabilities.keys()
    return Asked(
        200, seconds, right and all(abs(found[name] - p) <= TOLERANCE for name, p in known.probabilities.items())
    )


async def embed(port: int, known: Known) -> Asked:
    started = time.perf_counter()
    status, body = await http(port, "POST", "/api/embed", *form(known.content, "image"))
    right = as_known(json.loads(body)["features"], known) if status == 200 else status in (429, 503)
    return Asked(status, time.perf_counter() - started, right)


async def search(port: int, known: Known) -> Asked:
    started = time.perf_counter()
    status, body = await http(port, "POST", "/api/search?k=5", known.content)
    right = status in (429, 503)
    if status == 200:
        scores = [hit["score"] for hit in json.loads(body)["hits"]]
        right = len(scores) == 5 and scores == sorted(scores, reverse=True)
    return Asked(status, time.perf_counter() - started, right)


async def through_gradio(port: int, known: Known) -> Asked:
    """As gradio_client does: upload, call, wait for the event."""
    started = time.perf_counter()
    status, body = await http(port, "POST", "/gradio_api/upload", *form(known.content, "files"))
    right = status in (429, 503)
    if status == 200:
        file = {"path": json.loads(body)[0], "meta": {"_type": "gradio.FileData"}}
        call = json.dumps({"data": [file]}).encode()
        status, body = await http(port, "POST", "/gradio_api/call/embed", call, "application/json")
        right = status in (429, 503)
    if status == 200:
        status, body = await http(port, "GET", f"/gradio_api/call/embed/{json.loads(body)['event_id']}")
        right = status in (429, 503)
    if status == 200:
        event, _, data = body.decode().rstrip().rpartition("\ndata: ")
        right = "event: complete" in event and as_known(json.loads(data)[0], known)
        if "event: error" in event:
            status = 503
    return Asked(status, time.perf_counter() - started, right)


def expecting(method: str, path: str, wanted: int, body: bytes = b"") -> Callable[[int, Known], Awaitable[Asked]]:
    async def ask(port: int, known: Known) -> Asked:
        started = time.perf_counter()
        status, _ = await http(port, method, path, body)
        return Asked(status, time.perf_counter() - started, status == wanted)

    return ask


Ask = Callable[[int, Known], Awaitable[Asked]]


# Loops


async def closed(
    ask: Ask, port: int, pictures: list[Known], *, askers: int, seconds: float
) -> tuple[list[Asked], float]:
    found: list[Asked] = []
    until = time.perf_counter() + seconds

    async def asker(seed: int) -> None:
        chance = random.Random(seed)
        while time.perf_counter() < until:
            found.append(await ask(port, chance.choice(pictures)))

    started = time.perf_counter()
    await asyncio.gather(*[asker(seed) for seed in range(askers)])
    return found, time.perf_counter() - started


async def opened(
    ask: Ask, port: int, pictures: list[Known], *, rate: float, seconds: float
) -> tuple[list[Asked], float]:
    chance = random.Random(7)
    tasks: list[asyncio.Task[Asked]] = []
    started = at = time.perf_counter()
    while at < started + seconds:
        await asyncio.sleep(max(0, at - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(port, chance.choice(pictures))))
        at += chance.expovariate(rate)
    return list(await asyncio.gather(*tasks)), time.perf_counter() - started


async def watched(work: Awaitable[Any], server: Server) -> tuple[Any, list[Usage]]:
    """The result of some work, and what the server held, every second of it."""
    seen: list[Usage] = []

    async def look() -> None:
        while True:
            seen.append(server.usage())
            await asyncio.sleep(1)

    looking = asyncio.ensure_future(look())
    try:
        return await work, seen
    finally:
        looking.cancel()


async def recovery(port: int, pictures: list[Known], calm: float) -> float:
    """Seconds until three requests in a row take at most twice what they take in calm, or 20 ms more."""
    started, good = time.perf_counter(), 0
    while time.perf_counter() < started + 30:
        asked = await classify(port, random.choice(pictures))
        good = good + 1 if asked.status == 200 and asked.seconds <= max(2 * calm, calm + 0.02) else 0
        if good == 3:
            return time.perf_counter() - started
    return float("inf")


# The whole


def pictures_of(folder: Path | None, model: Any, count: int) -> list[Known]:
    from app.pictures import PICTURES
    from app.uploads import read_upload
    from export.runtime import softmax

    among = (folder or PICTURES).rglob("*")
    files = sorted(path for path in among if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    random.Random(0).shuffle(files)
    known = []
    for file in files[:count]:
        content = file.read_bytes()
        output = model(model.prepare(read_upload(content, name=file.name))[None])
        probabilities = dict(zip(model.labels, softmax(output.logits)[0].tolist(), strict=True))
        known.append(Known(content, probabilities, output.features[0].astype(np.float64)))
    return known


def milliseconds(found: list[Asked], share: float) -> str:
    return f"{np.quantile([one.seconds for one in found], share) * 1e3:.0f}" if found else "-"


def statuses(found: list[Asked]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(Counter(one.status for one in found).items()))


async def measure(server: Server, known: list[Known], *, seconds: float, mixed: int) -> list[str]:
    port, lines = server.port, []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, file=sys.stderr, flush=True)

    await closed(classify, port, known, askers=4, seconds=3)  # warm
    await closed(through_gradio, port, known, askers=2, seconds=2)
    before = server.usage()
    say("| closed loop | askers | answers a second | median ms | p99 ms | wrong | statuses |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    capacity, calm = 0.0, 1.0
    for name, ask in (("POST /api/classify", classify), ("Gradio: upload, call, event", through_gradio)):
        for askers in (1, 4, 16, 64):
            found, took = await closed(ask, port, known, askers=askers, seconds=max(seconds / 6, 2))
            good = [one for one in found if one.status == 200]
            if ask is classify:
                capacity = max(capacity, len(good) / took)
                calm = float(np.median([one.seconds for one in good])) if askers == 1 else calm
            wrong = sum(not one.right for one in found)
            say(
                f"| {name} | {askers} | {len(good) / took:.1f} | {milliseconds(good, 0.5)} "
                f"| {milliseconds(good, 0.99)} | {wrong} | {statuses(found)} |"
            )
    say()
    say(f"Capacity: {capacity:.1f} answers a second.")
    say()
    say(
        "| open loop, /api/classify | asked a second | for | answered | refused | other | wrong "
        "| answers: median, p99 ms | refusals: median, p99 ms "
        "| memory MB: before, most, after | the server's core: for it, for others |"
    )
    say("| --- " * 11 + "|")
    for share in (0.7, 3.0):
        held, computed = server.usage(), server.cpu()
        (found, took), seen = await watched(
            opened(classify, port, known, rate=share * capacity, seconds=seconds), server
        )
        mine, busy = (now - then for now, then in zip(server.cpu(), computed, strict=True))
        back = await recovery(port, known, calm) if share > 1 else 0.0
        await asyncio.sleep(2)
        good = [one for one in found if one.status == 200]
        refused = [one for one in found if one.status in (429, 503)]
        say(
            f"| {share:.0%} of capacity | {len(found) / seconds:.1f} | {seconds:.0f} s | {len(good)} | {len(refused)} "
            f"| {len(found) - len(good) - len(refused)} | {sum(not one.right for one in found)} "
            f"| {milliseconds(good, 0.5)}, {milliseconds(good, 0.99)} "
            f"| {milliseconds(refused, 0.5)}, {milliseconds(refused, 0.99)} "
            f"| {held.rss:.0f}, {max(one.rss for one in seen):.0f}, {server.usage().rss:.0f} "
            f"| {mine / took:.0%}, {max(busy - mine, 0) / took:.0%} |"
        )
    say()
    say(f"Latency is back {back:.2f} s after the overload (median in calm {calm * 1e3:.0f} ms).")
    say()
    thumb = json.loads((await http(port, "POST", "/api/search?k=1", known[0].content))[1])["hits"][0]["thumbnail"]
    kinds: dict[str, tuple[float, Ask]] = {
        "classify": (0.3, classify), "search": (0.2, search), "embed": (0.15, embed),
        "Gradio call": (0.15, through_gradio),
        "bad file": (0.05, expecting("POST", "/api/classify", 415, b"no picture")),
        "truncated file": (0.03, expecting("POST", "/api/embed", 422, known[0].content[:2000])),
        "page": (0.04, expecting("GET", "/", 200)), "thumbnail": (0.05, expecting("GET", f"/{thumb}", 200)),
        "nothing there": (0.02, expecting("GET", "/gradio_api/file=/etc/passwd", 403)),
        "facts": (0.01, expecting("GET", "/api/facts", 200)),
    }  # fmt: skip
    chance = random.Random(3)
    names = chance.choices(list(kinds), [share for share, _ in kinds.values()], k=mixed)
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    todo = iter(names)

    async def worker() -> None:
        for name in todo:
            asked = await kinds[name][1](port, chance.choice(known))
            counts[name] += 1
            if not asked.right or asked.status in (0, 429, 503):
                failures[f"{name} {asked.status}"] += 1

    at_first = server.usage()
    started = time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(8)])
    took = time.perf_counter() - started
    await asyncio.sleep(6)  # kept-alive connections and threads end
    say(f"Mixed: {mixed} requests of 8 askers in {took:.0f} s, failures: {dict(failures) or 0}")
    say(f"({', '.join(f'{counts[name]} {name}' for name in kinds)}).")
    say()
    say("| the server holds | memory MB | threads | open files | files in Gradio's folder |")
    say("| --- | --- | --- | --- | --- |")
    for when, usage in (("before all", before), ("before the mixed", at_first), ("after all", server.usage())):
        say(f"| {when} | {usage.rss:.0f} | {usage.threads} | {usage.files} | {usage.cached} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--mixed", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="5 s and 300 requests: is all well?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds, mixed = (5.0, 300) if options.quick else (options.seconds, options.mixed)
    from app.engine import bundled_student
    from export.runtime import OnnxModel

    model = OnnxModel(options.model or bundled_student())
    known = pictures_of(options.images, model, 400)
    os.sched_setaffinity(0, {GENERATOR_CORE})
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        base = Path(folder)
        (base / "gallery").mkdir()
        for number, one in enumerate(known[:200]):
            (base / "gallery" / f"{number}.jpg").write_bytes(one.content)
        arguments = ["--gallery", str(base / "gallery"), *(["--model", str(options.model)] if options.model else [])]
        server = Server(base, arguments)
        load = os.getloadavg()
        try:
            lines = asyncio.run(measure(server, known, seconds=seconds, mixed=mixed))
        finally:
            with contextlib.suppress(Exception):
                server.stop()
            told = (base / "log.txt").read_text()
    complaints = [line for line in told.splitlines() if "rror" in line]
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("gradio", "uvicorn", "starlette", "onnxruntime", "pillow")
    )
    size = sum(len(one.content) for one in known) / len(known) / 1e3
    head = [
        f"# The app under load, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/serving.py {shlex.join(sys.argv[1:])}`",
        "",
        f"{platform.machine()}, server on core {SERVER_CORE}, generator on core {GENERATOR_CORE}, Python "
        f"{platform.python_version()}, {versions}; {model.path.name} ({model.architecture}, {model.image_size} px), "
        f"{len(known)} pictures of {size:.0f} kB on average; load average at the start {load[0]:.1f}.",
        "",
        f"Server: `simclr app --no-browser {'--model student.onnx ' if options.model else ''}--gallery gallery`; "
        f"errors in its log: {len(complaints)}.",
        "",
    ]
    print("\n".join([*head, *lines, *complaints[:5]]))
    if options.out is not None:
        from zoo.files import written_whole

        with written_whole(options.out) as temporary:
            temporary.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
