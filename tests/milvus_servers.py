"""Milvus on loopback for the tests: found by an environment variable, or started from where `make test-milvus` put it.

A real server (the package `milvus`) listens on all interfaces; only `milvus-lite server` can be told not to.
"""

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[1]
VARIABLES = {"milvus-lite": "SIMCLR_TEST_MILVUS_LITE", "milvus": "SIMCLR_TEST_MILVUS"}


def milvus_server(kind: str) -> str:
    """The address of a running server, ``milvus-lite`` or ``milvus``; skips the test where there can be none."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed: make test-milvus")
    found = _server(kind)
    if not found.startswith("http"):
        pytest.skip(found)
    return found


def client(kind: str) -> Any:
    from pymilvus import MilvusClient

    return MilvusClient(milvus_server(kind))


@functools.cache
def _server(kind: str) -> str:
    """An address, or why there is none."""
    if os.environ.get(VARIABLES[kind]):
        return os.environ[VARIABLES[kind]]
    place = Path(sys.executable).parent if kind == "milvus-lite" else ROOT / ".venv-milvus" / "bin"
    program = place / {"milvus-lite": "milvus-lite", "milvus": "milvus-server"}[kind]
    if not program.is_file():
        return f"{program} is not there: make test-milvus, or give a server's address in {VARIABLES[kind]}"
    folder = tempfile.mkdtemp(prefix="simclr-milvus-")
    port = _free_port()
    if kind == "milvus-lite":
        command = [program, "server", "--data-dir", f"{folder}/data", "--host", "127.0.0.1", "--port", str(port)]
    else:
        command = [program, "--data", f"{folder}/data", "--proxy-port", str(port)]
    log = Path(folder, "log").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    atexit.register(_stop, process, log, folder)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            _ask(f"http://127.0.0.1:{port}")
            return f"http://127.0.0.1:{port}"
        except Exception:  # whatever a server says that is not ready yet
            time.sleep(0.5)
    return f"{program} did not start: {Path(folder, 'log').read_text()[-500:]}"


def _ask(uri: str) -> None:
    from pymilvus import MilvusClient

    asked = MilvusClient(uri, timeout=5)
    try:
        asked.list_collections(timeout=5)
    finally:
        asked.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _stop(process: subprocess.Popen[bytes], log: IO[str], folder: str) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    log.close()
    shutil.rmtree(folder, ignore_errors=True)
