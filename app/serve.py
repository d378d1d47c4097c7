"""From a model's path and a folder to a served page."""

import importlib
import os
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from app.engine import Engine, bundled_student
from app.gallery import open_gallery
from app.pictures import DRAWN, drawn_folder
from app.uploads import restrict_pillow, steady_memory
from export.runtime import OnnxModel
from zoo.files import cache_dir

FIRST_PORT, PORTS = 7860, 100


def serve(
    model: Path | None = None,
    gallery: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
) -> None:
    """Serve the page until interrupted. ``port=None`` takes the first free one from 7860.

    Raises ValueError for a model or gallery that cannot be used, or a port that is taken.
    """
    started = time.monotonic()
    port = free_port(host, port)
    steady_memory()
    with tempfile.TemporaryDirectory(prefix="simclr-", ignore_cleanup_errors=True) as folder:
        be_quiet(Path(folder))
        with ThreadPoolExecutor(1) as pool:  # Gradio takes seconds to import: meanwhile the gallery is opened
            page_module = pool.submit(importlib.import_module, "app.ui")
            onnx = OnnxModel(model or bundled_student())
            index, report = open_gallery(gallery, onnx)
            ui = page_module.result()
        restrict_pillow()  # from here on there are strangers' pictures
        print(_told(report, index.count()), file=sys.stderr)
        try:
            launch(ui, Engine(onnx, index), Path(folder), host=host, port=port, browser=browser)
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            address = f"[{shown}]" if ":" in shown else shown
            print(
                f"Serving {onnx.architecture} at http://{address}:{port} ({time.monotonic() - started:.1f} s)",
                flush=True,
            )
            if host not in ("127.0.0.1", "localhost", "::1"):
                print("Other machines can reach this page; there is no password.", file=sys.stderr)
            while True:
                time.sleep(3600)  # unlike waiting for an event, Ctrl-C ends this on Windows too
        finally:
            index.close()


def launch(ui: ModuleType, engine: Engine, folder: Path, *, host: str, port: int, browser: bool = False) -> Any:
    """Start the server and return the page (``page.close()`` stops it). ``folder`` takes the page's own files."""
    pictures = drawn_folder(cache_dir())
    page = ui.build(engine, examples=[pictures / name / "1.jpg" for name in DRAWN])
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=ui.MAX_FILE_SIZE,
        theme=ui.theme(),
        css=ui.css(),
        favicon_path=ui.favicon(folder / "favicon.png"),
        ssr_mode=False,
    )
    return page


def be_quiet(folder: Path) -> None:
    """Keep Gradio from asking the network for anything, and its uploads in ``folder``. To be called before its import.

    Environment variables are the only switches it has for this.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "uploads"))


def free_port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one from 7860. Raises ValueError if it is taken or cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            socket.create_server((host, candidate), family=family).close()
            return candidate
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    wanted = f"Port {port}" if port is not None else f"Every port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise ValueError(f"{wanted} of {host} cannot be used ({reason}); choose another with --port.")


def _told(report: Any, count: int) -> str:
    parts = [f"Gallery: {count} pictures, {report.embedded} embedded now"]
    if report.gone:
        parts.append(f"{report.gone} files gone")
    if report.unreadable:
        first, reason = next(iter(report.unreadable.items()))
        parts.append(f"{len(report.unreadable)} files skipped, such as {first}: {reason}")
    return "; ".join(parts)
