"""The page in a real browser: a picture is classified, its like found, and nothing but this machine is asked.

SIMCLR_SCREENSHOTS=DIR keeps pictures of the page, wide and narrow.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_app import Served, start, stop

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app with the gallery that it draws itself."""
    running = start(tmp_path_factory.getbasetemp(), None)
    yield running
    assert stop(running) == 130
    assert not running.log.exists(), f"asked for: {running.log.read_text()}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    assert Path(CHROMIUM).exists(), f"{CHROMIUM} is not installed: apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


def keep(page: Any, name: str) -> None:
    folder = os.environ.get("SIMCLR_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1280, 860), ("narrow", 390, 844)])
def test_classify_and_search(browser: Any, served: Served, tmp_path: Path, name: str, width: int, height: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(120_000)
    asked, troubles = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(served.url)
    picture = next((served.cache).glob("pictures-*/church/3.jpg"))
    page.locator("#picture input[type=file]").first.set_input_files(picture)
    page.locator("#verdict .verdict").wait_for()
    page.locator("#label").get_by_text("golf ball").first.wait_for()
    keep(page, f"classify_{name}")
    page.get_by_role("tab", name="Search").click()
    page.locator("#gallery img").nth(11).wait_for()
    assert page.locator("#gallery .caption-label").first.inner_text().split() == ["1.000", "church"]  # itself
    keep(page, f"search_{name}")
    page.get_by_role("tab", name="About").click()
    page.locator(".about").get_by_text("87.5%").first.wait_for()
    keep(page, f"about_{name}")
    page.get_by_role("tab", name="Classify").click()
    bad = tmp_path / "text.jpg"
    bad.write_text("I am no picture")
    page.get_by_label("Remove Image").click()
    page.locator("#verdict .hint").wait_for()
    page.locator("#picture input[type=file]").first.set_input_files(bad)
    page.get_by_text("text.jpg: not an image in a known format").first.wait_for()
    page.locator("#verdict .hint").wait_for()  # the page is as it was without a picture
    keep(page, f"refused_{name}")
    page.locator("#examples button, #left .gallery-item").nth(4).click()
    page.locator("#verdict .verdict").wait_for()
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    outside = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    assert outside == []
    assert [text for text in troubles if "text.jpg" not in text] == []
    page.close()
