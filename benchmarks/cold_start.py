"""Seconds of cold starts, in fresh processes: ``import zoo``, ``simclr --help``, ``simclr app``; peers beside.

    python benchmarks/cold_start.py [--repeat 7] [--peer PYTHON]

Medians, in turns. Files are in the machine's cache and compiled (a start that is not counted sees to it). The page is
there when GET / answers 200; "first start" has an empty cache folder, so that the gallery is embedded too.
Gradio's own is its shortest program, an Interface of one text to another. --peer names a Python that has other packages
(lightly, timm, transformers); what is not installed is left out.
"""

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = ("torch", "torchvision", "gradio", "lightly.loss", "timm", "transformers")
HELLO = (
    "import gradio as gr, sys\n"
    "gr.Interface(lambda text: text, 'text', 'text').launch(server_port=int(sys.argv[1]), quiet=True)"
)
PATIENCE = 120.0


def run_seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """From the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run(command, env=dict(environment), check=True, capture_output=True, cwd=tempfile.gettempdir())
    return time.perf_counter() - began


def page_seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """From the start of a server (the port is added to its command) to its page; it is ended then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen([*command, str(port)], env=dict(environment), stdout=said, stderr=said)
        try:
            while time.perf_counter() - began < PATIENCE and server.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                        answer.read()
                        return time.perf_counter() - began
                except OSError:  # refused, or 503 while it starts
                    time.sleep(0.01)
            said.seek(0)
            raise RuntimeError(f"No page by {' '.join(command)}: {said.read().decode(errors='replace')[-2000:]}")
        finally:
            server.terminate()
            server.wait(30)


def has(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package.split('.')[0]!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def in_turns(tasks: Mapping[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each task, ``repeat`` times, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeat + 1):
        for name, task in tasks.items():
            seconds = task()
            if turn:
                found[name].append(seconds)
    return found


def report(title: str, found: Mapping[str, list[float]], less: str = "") -> None:
    """A line each: median, least and greatest; what is beyond the line ``less``, if named."""
    print(f"\n{title:42}{'median':>9}{'least':>9}{'most':>9}" + (f"{'beyond it':>11}" if less else ""))
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        line = f"  {name:40}{middle:9.3f}{min(seconds):9.3f}{max(seconds):9.3f}"
        print(line + (f"{middle - statistics.median(found[less]):11.3f}" if less else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--peer", default=sys.executable, help="a Python with other packages")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"gradio {version('gradio')}, load {os.getloadavg()[0]:.2f}; seconds")
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
        kept = environment | {"SIMCLR_CACHE": str(cache / "kept")}
        numbers = iter(range(10**6))

        def once(code: str, python: str = sys.executable) -> Callable[[], float]:
            return lambda: run_seconds([python, "-c", code], environment)

        command = [sys.executable, "-m", "app.cli"]
        app = [*command, "app", "--no-browser", "--port"]
        small: dict[str, Callable[[], float]] = {
            "python -c pass": once("pass"),
            "import zoo": once("import zoo"),
            "simclr --help": lambda: run_seconds([*command, "--help"], environment),
        }
        large = {
            f"import {package}": once(f"import {package}", python)
            for package in PEERS
            for python in [next((one for one in (sys.executable, options.peer) if has(one, package)), None)]
            if python
        }
        pages: dict[str, Callable[[], float]] = {
            "simclr app": lambda: page_seconds(app, kept),
            "simclr app, first start": lambda: page_seconds(
                app, environment | {"SIMCLR_CACHE": str(cache / str(next(numbers)))}
            ),
            "gradio's shortest": lambda: page_seconds([sys.executable, "-c", HELLO], environment),
        }
        report("a process", in_turns(small, 3 * options.repeat), "python -c pass")
        report("a peer's import", in_turns(large, max(1, options.repeat // 2)))
        report("to the page", in_turns(pages, options.repeat))


if __name__ == "__main__":
    main()
