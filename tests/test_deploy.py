"""The ways to deploy that docs/deploy.md shows: its snippets, its commands and its page, run as they stand there.

SIMCLR_SCREENSHOTS=DIR keeps pictures of the page, wide and narrow.
"""

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_browser import browser as browser
from test_docs import ROOT, blocks
from test_docs import simclr as simclr_main

import export
import zoo
from zoo.transforms import bicubic_taps, preprocess

PAGE = ROOT / "docs" / "deploy.md"
WITH_US, ALONE, SELF_TEST = blocks(PAGE, "py")
NAMES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub", "google-crc32c": "google_crc32c"}  # packages' modules


def self_test_pixels(count: int, size: int) -> np.ndarray:
    """The images of the self-test, one pixel after the other."""
    pixels = np.empty((count, size, size, 3), np.uint8)
    for n, y, x, c in np.ndindex(pixels.shape):
        waves = []
        for k, (across, down, start) in enumerate([(1, 2, 0), (5, -3, 100), (-11, 17, 300)]):
            phase = (x * across + y * down) * 512 // size + start + 170 * c * (k + 1) + 97 * n * (k + 1)
            waves.append(abs(phase % 512 - 256))
        pixels[n, y, x, c] = min(255, (2 * waves[0] + waves[1] + waves[2]) // 4)
    return pixels


def uint8_student(model: zoo.SimCLR, path: Path) -> Path:
    return export.to_onnx(model, path, image_input="uint8")


@pytest.fixture
def photos(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the pictures in photos/ and one more of another shape."""
    image_folder.rename(image_folder.parent / "photos")
    monkeypatch.chdir(image_folder.parent)
    noise = np.random.default_rng(5).integers(0, 256, (131, 97, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/circle/tall.png")
    return image_folder.parent


@pytest.fixture
def model(tiny_model: zoo.SimCLR) -> zoo.SimCLR:
    """The tiny model, undecided about noise and surer about other pictures: their probabilities differ."""
    assert tiny_model.classifier is not None
    with torch.no_grad():
        tiny_model.classifier.weight.mul_(100)
        logits = tiny_model(torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))).logits
        tiny_model.classifier.bias -= logits[0]
    return tiny_model


def wanted(model: zoo.SimCLR, picture: str | Path, folder: Path) -> np.ndarray:
    """Probabilities (classes,) by a file with float input and the project's own preprocessing, rounded to 255 steps."""
    path = folder / "float.onnx"
    student = export.OnnxModel(path if path.exists() else export.to_onnx(model, path))
    rounded = np.rint(preprocess(picture, student.image_size) * 255) / 255
    return student.classify(rounded[None].astype(np.float32))[0]


# Python without torch


def not_needed() -> list[str]:
    """The modules of all our dependencies but the three that the page says to install."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.match(r"[\w-]+", package).group() for package in packages]  # type: ignore[union-attr]
    return [NAMES.get(name, name) for name in names if name not in ("onnxruntime", "numpy", "pillow")]


def run_alone(code: str, blocked: list[str], folder: Path) -> str:
    """Run a snippet in a process in which some modules cannot be imported; what it printed."""
    blocking = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    command = [sys.executable, "-W", "error", "-c", blocking + code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


KEEP = "\nnp.save('found.npy', probabilities)"


def test_with_our_runtime(model: zoo.SimCLR, photos: Path) -> None:
    uint8_student(model, Path("student.onnx"))
    blocked = not_needed()
    assert {"torch", "torchvision", "onnx", "gradio", "click", "safetensors"} <= set(blocked)
    shown = run_alone(WITH_US + "\nimport numpy as np" + KEEP, blocked, photos)
    expected = export.OnnxModel("student.onnx").classify(["photos/circle/00.png", "photos/square/00.png"])
    assert np.load("found.npy") == pytest.approx(expected, abs=1e-4)
    assert f"photos/square/00.png: {model.classes[expected[1].argmax()]} {expected[1].max():.1%}" in shown


def test_with_nothing_of_ours(model: zoo.SimCLR, photos: Path) -> None:
    uint8_student(model, Path("student.onnx"))
    files = ["photos/circle/00.png", "photos/circle/tall.png", "photos/stripes/03.png"]
    assert "photos/circle/00.png" in ALONE
    code = ALONE.replace('["photos/circle/00.png", "photos/square/00.png"]', repr(files))
    shown = run_alone(code + KEEP, [*not_needed(), "zoo", "export", "app", "training"], photos)
    expected = np.stack([wanted(model, file, photos) for file in files])
    assert np.abs(expected[0] - expected[1]).max() > 0.05  # the pictures are told apart
    assert np.load("found.npy") == pytest.approx(expected, abs=1e-4)
    assert model.classes[expected[1].argmax()] in shown


def snippet_names(model: zoo.SimCLR, code: str) -> dict[str, Any]:
    uint8_student(model, Path("student.onnx"))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_snippets_bicubic_is_the_authors(model: zoo.SimCLR, photos: Path) -> None:
    names = snippet_names(model, ALONE)
    for source, target in [(52, 48), (48, 48), (500, 224), (893, 224), (33, 64), (1, 40)]:
        for ours, theirs in zip(names["taps"](source, target), bicubic_taps(source, target), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    rounded = np.rint(preprocess("photos/circle/tall.png", 48) * 255).transpose(1, 2, 0)
    np.testing.assert_array_equal(names["prepare"]("photos/circle/tall.png"), rounded)


def test_the_snippet_reads_odd_pictures_as_we_do(model: zoo.SimCLR, photos: Path) -> None:
    names = snippet_names(model, ALONE)
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 256, (60, 50, 4), dtype=np.uint8))
    clear.save("rgba.png")
    clear.convert("LA").save("la.png")
    clear.convert("RGB").quantize(16).save("palette.png", transparency=3)
    for name, top in (("sixteen.png", 65536), ("twelve.png", 4096)):
        Image.fromarray(rng.integers(0, top, (60, 50), dtype=np.uint16)).save(name)
    for name in ("rgba.png", "la.png", "palette.png", "sixteen.png", "twelve.png"):
        rounded = np.rint(preprocess(name, 48) * 255).transpose(1, 2, 0)
        np.testing.assert_array_equal(names["prepare"](name), rounded, err_msg=name)


def test_the_snippets_self_test(model: zoo.SimCLR, photos: Path) -> None:
    names = snippet_names(model, ALONE + SELF_TEST)  # passes on the true file
    for size in (48, 33):
        np.testing.assert_array_equal(names["self_test_images"](2, size), self_test_pixels(2, size))
    spoil(Path("student.onnx"))
    with pytest.raises(SystemExit, match="answers differ"):
        exec(compile(ALONE + SELF_TEST, str(PAGE), "exec"), {})


def spoil(path: Path) -> None:
    """Let a student's self-test expect a logit that is one part in a hundred off: another machine's, it seems."""
    proto = onnx.load(path)
    entry = next(entry for entry in proto.metadata_props if entry.key == "self_test")
    test = json.loads(entry.value)
    logits = np.frombuffer(base64.b64decode(test["outputs"]["logits"]), "<f4").copy()
    logits[-1] += 0.01 * np.abs(logits).max()
    test["outputs"]["logits"] = base64.b64encode(logits.tobytes()).decode()
    entry.value = json.dumps(test)
    onnx.save(proto, path)


# The command line


def shell_lines() -> list[str]:
    lines = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("simclr export", "simclr classify"))]


def test_commands_run(model: zoo.SimCLR, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line, in the order of the page: later ones use what earlier ones wrote."""
    zoo.save_file(model, photos / "runs" / "student" / "model.safetensors")
    lines = shell_lines()
    assert len([line for line in lines if "classify" in line]) >= 2
    assert len([line for line in lines if "export" in line]) >= 2
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        target = words[words.index(">") + 1] if ">" in words else None
        with pytest.raises(SystemExit) as stop:
            simclr_main(words[: words.index(">")] if target else words)
        shown = capsys.readouterr()
        assert stop.value.code == 0, f"{line}: {shown.err}"
        if target:
            Path(target).write_text(shown.out)
        if words[0] == "export":
            assert onnx.load(words[2]).graph.input[0].name == "images"
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 37  # a line for each picture of the folder and those in it
    tall = next(answer for answer in answers if answer["path"].endswith("tall.png"))
    expected = wanted(model, tall["path"], photos)
    assert tall["predictions"][0]["label"] == model.classes[expected.argmax()]
    assert tall["predictions"][0]["probability"] == pytest.approx(expected.max(), abs=0.02)


# The browser


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page's commands make, less the student."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "package.json").write_text("{}")  # npm would look for one further up
    lines = next(block for block in blocks(PAGE, "sh") if block.startswith("npm install"))
    install = "\n".join(line for line in lines.splitlines() if "http.server" not in line)
    done = subprocess.run(["bash", "-ec", install], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (html,) = blocks(PAGE, "html")
    (folder / "index.html").write_text(html, encoding="utf-8")
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing; with ``isolated``, pages may use threads."""

    isolated = False

    def end_headers(self) -> None:
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Isolated(Quiet):
    isolated = True


@contextlib.contextmanager
def serve(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Opened:
    """The page in a tab, what it asked for, and what it complained of."""

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 860) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.tab.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.troubles: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda told: self.troubles.append(told.text) if told.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.tab.goto(url)

    def choose(self, picture: Path) -> str:
        """The page's line about a picture, once it is there."""
        self.tab.locator("#file:enabled").set_input_files(picture)
        self.tab.locator("#file:enabled").wait_for()
        return self.tab.locator("#status").inner_text()

    def probabilities(self) -> dict[str, float]:
        rows = self.tab.locator("#answers li").evaluate_all(
            "rows => rows.map(row => [...row.querySelectorAll('span')].map(span => span.title || span.innerText))"
        )
        return {label: float(share.rstrip("%")) / 100 for label, share in rows}

    def keep(self, name: str) -> None:
        if folder := os.environ.get("SIMCLR_SCREENSHOTS"):
            self.tab.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1280, 860), ("narrow", 390, 844)])
def test_page(
    browser: Any, page_folder: Path, model: zoo.SimCLR, photos: Path, name: str, width: int, height: int
) -> None:
    uint8_student(model, page_folder / "student.onnx")
    translucent = Image.open("photos/square/01.png").convert("RGBA")
    translucent.putalpha(Image.linear_gradient("L").resize(translucent.size))
    translucent.save("photos/translucent.png")
    bad = photos / "a picture with a rather long name that is none.jpg"
    bad.write_text("I am no picture")
    with serve(page_folder) as url:
        opened = Opened(browser, url, width, height)
        opened.tab.locator("#status", has_text="Ready.").wait_for()
        opened.keep(f"deploy_ready_{name}")
        for file in ("photos/circle/tall.png", "photos/stripes/03.png", "photos/translucent.png"):
            picture = photos / file
            assert opened.choose(picture) == picture.name
            found, expected = opened.probabilities(), wanted(model, picture, photos)
            assert list(found) == [model.classes[k] for k in np.argsort(-expected)]
            for label, probability in zip(model.classes, expected, strict=True):
                assert found[label] == pytest.approx(probability, abs=1e-3)
        opened.choose(photos / "photos/circle/tall.png")
        opened.keep(f"deploy_answer_{name}")
        assert opened.choose(bad) == f"{bad.name}: this browser cannot read it as a picture."
        assert opened.probabilities() == {}
        opened.keep(f"deploy_refused_{name}")
        overflow = opened.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        assert [address for address in opened.asked if not address.startswith((url, "data:", "blob:"))] == []
        assert opened.troubles == []
        opened.tab.close()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_makes_the_same_pixels(browser: Any, page_folder: Path, model: zoo.SimCLR, photos: Path) -> None:
    uint8_student(model, page_folder / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (223, 301, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(page_folder / "noise.png")
    with serve(page_folder) as url:
        opened = Opened(browser, url)
        opened.tab.locator("#status", has_text="Ready.").wait_for()
        script = "async () => [...await prepare(new File([await (await fetch('noise.png')).blob()], 'noise.png'))]"
        found = np.array(opened.tab.evaluate(script)).reshape(48, 48, 3)
        np.testing.assert_array_equal(found, np.rint(preprocess(pixels, 48) * 255).transpose(1, 2, 0))
        for size in (48, 33):
            made = np.array(opened.tab.evaluate(f"[...selfTestImages(2, {size})]")).reshape(2, size, size, 3)
            np.testing.assert_array_equal(made, self_test_pixels(2, size))
        opened.tab.close()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_refuses_a_student(browser: Any, page_folder: Path, model: zoo.SimCLR, photos: Path) -> None:
    student = page_folder / "student.onnx"
    with serve(page_folder) as url:

        def line() -> str:
            opened = Opened(browser, url)
            opened.tab.locator("#status.error").wait_for()
            assert not opened.tab.locator("#file").is_enabled()
            text: str = opened.tab.locator("#status").inner_text()
            opened.tab.close()
            return text

        spoil(uint8_student(model, student))
        assert re.fullmatch(
            r"This browser's answers differ from the measured ones \(logits: .* of the largest\)\.", line()
        )
        export.to_onnx(model, student)
        assert line() == "student.onnx: export it with --image-input uint8."
        model.classifier, model.classes = None, ()
        uint8_student(model, student)
        assert line() == "student.onnx has no classifier; it embeds only."
        student.unlink()
        assert line() == "student.onnx is not beside this page."


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_with_threads(browser: Any, page_folder: Path, model: zoo.SimCLR, photos: Path) -> None:
    uint8_student(model, page_folder / "student.onnx")
    with serve(page_folder, Isolated) as url:
        opened = Opened(browser, url)
        opened.tab.locator("#status", has_text="Ready.").wait_for()
        assert opened.tab.evaluate("ort.env.wasm.numThreads") == opened.tab.evaluate("navigator.hardwareConcurrency")
        opened.choose(photos / "photos/circle/tall.png")
        expected = wanted(model, photos / "photos/circle/tall.png", photos)
        found = [opened.probabilities()[label] for label in model.classes]
        assert found == pytest.approx(list(expected), abs=1e-3)
        assert opened.troubles == []
        opened.tab.close()
