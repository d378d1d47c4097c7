"""The page in Debian's Chromium: serving it, going about in it, and what every page must never do."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from test_app import GUARD

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOOKS = {"wide": (1280, 900, "light"), "narrow": (390, 844, "light"), "dark": (1280, 900, "dark")}
PATIENCE = 15_000  # milliseconds, for machines with much else to do
SHIFTS = """() => { window.shifts = []; new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.shifts.push(shift.value);
}).observe({type: "layout-shift"}); }"""


class Served(NamedTuple):
    """``url`` ends without a slash; ``folder`` has the labels (labels.csv) and the cache."""

    url: str
    folder: Path


@contextlib.contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[Served]:
    """The app in a process of its own that may not leave this machine; with onnx, to save what was taught."""
    log = folder / "outside.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        GUARD.replace('"onnx", ', ""),
        str(log),
        "app",
        "--port",
        str(port),
        "--no-browser",
    ]
    command += ["--labels", str(folder / "labels.csv"), *map(str, arguments)]
    environment = {**os.environ, "SIMCLR_CACHE": str(folder / "cache")}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, line
        yield Served(f"http://127.0.0.1:{port}", folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not log.exists(), f"asked for: {log.read_text()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def visit(browser: Any, served: Served, look: str = "wide", **options: Any) -> Iterator[Any]:
    """A visitor of its own. Whatever else is tested: no request leaves the host, and the console has no errors."""
    width, height, scheme = LOOKS[look]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    context.set_default_timeout(PATIENCE)
    asked: list[str] = []
    troubles: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(served.url + ("?__theme=dark" if scheme == "dark" else ""))
    page.locator("#picture input[type=file]").first.wait_for(state="attached")
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((f"{served.url}/", "data:", "blob:"))] == []
    assert troubles == []


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def give(page: Any, place: str, *files: Path) -> None:
    """Choose files for a place that takes some."""
    if page.locator(f"{place} input[type=file]").count():
        page.locator(f"{place} input[type=file]").first.set_input_files(list(files))
        return
    with page.expect_file_chooser() as chooser:  # of a button
        page.locator(place).click()
    chooser.value.set_files(list(files))


def type_in(page: Any, place: str, text: str) -> None:
    page.locator(f"{place} input, {place} textarea").first.fill(text)


def choose(page: Any, place: str, text: str) -> None:
    """Choose one of a drop-down list."""
    page.locator(f"{place} input").first.click()
    page.locator(place).get_by_role("option", name=text, exact=True).click()


def until(page: Any, place: str, text: str) -> None:
    """Wait until a text stands at a place."""
    try:
        page.locator(place).filter(has_text=text).first.wait_for()
    except Exception:
        raise AssertionError(f"{place}: {page.locator(place).all_inner_texts()}, not {text!r}") from None


def count(page: Any, place: str, number: int) -> None:
    """Wait until there are so many of something, and no more."""
    try:
        page.wait_for_function(
            "([place, number]) => document.querySelectorAll(place).length === number", arg=[place, number]
        )
    except Exception:
        raise AssertionError(f"{place}: {page.locator(place).count()}, not {number}") from None


def settled(page: Any) -> None:
    """Wait until no answer is on its way."""
    page.wait_for_function("() => !document.querySelector('.html-container.pending, .progress-text')")
    page.wait_for_timeout(400)


def keep(page: Any, name: str) -> None:
    """A picture of the page, where SIMCLR_SCREENSHOTS names a folder."""
    folder = os.environ.get("SIMCLR_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(800)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def too_wide(page: Any) -> int:
    """Pixels that the page is wider than the window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def small_targets(page: Any, least: int = 24) -> list[str]:
    """What can be clicked and is smaller than ``least`` pixels; controls in a label of that size count with it."""
    found: list[str] = page.evaluate(
        """(least) => [...document.querySelectorAll("button, a[href], input, textarea, summary, [role=tab]")]
          .filter((one) => one.checkVisibility({visibilityProperty: true}) && !one.closest("[inert]"))
          .map((one) => [one, one.closest("label, .wrap-inner, .wrap")])
          .filter(([one, around]) => [one, around].every((box) => {
            const size = box ? box.getBoundingClientRect() : {width: 0, height: 0};
            return size.width + 0.5 < least || size.height + 0.5 < least;
          }))
          .filter(([one]) => one.getBoundingClientRect().width > 1 && one.type !== "range" && one.type !== "file")
          .map(([one]) => `${one.outerHTML.slice(0, 120)} ${JSON.stringify(one.getBoundingClientRect())}`)""",
        least,
    )
    return found
