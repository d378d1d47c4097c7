"""The wheel in an environment of its own, with the group `serve` and no torch: everything that serves works there."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import importlib.util, sys, zoo, numpy as np
assert importlib.util.find_spec("torch") is None
assert "site-packages" in zoo.__file__, zoo.__file__
assert zoo.list_models("r50*") and zoo.spec("r50_1x").facts and zoo.list_weights("r18_1x")
from export import OnnxModel
from app.engine import bundled_student
model = OnnxModel(bundled_student())
image = np.full((90, 120, 3), 128, np.uint8)
probabilities, features = model.classify(image), model.embed(image)
assert probabilities.shape == (1, len(model.labels)) and abs(probabilities.sum() - 1) < 1e-5
assert features.shape == (1, 512)
try:
    zoo.load("r18_1x", weights="imagenette_distilled")
except ImportError as error:
    assert "torch" in str(error)
else:
    raise SystemExit("zoo.load must need torch")
print(zoo.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def serving(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the group `serve` and the wheel without its dependencies."""
    home = tmp_path_factory.mktemp("serving")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    binaries = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["serve"]
    pip = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "--disable-pip-version-check"]
    pip += ["install", "--quiet", "--no-compile"]  # most files are never imported: half a minute of compiling
    subprocess.run([*pip, *group], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    return binaries


def test_wheel_holds_what_it_must(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"zoo", "training", "export", "app"} == {top for top in tops if not top.endswith(".dist-info")}
    bundled = ("export/bundled/r18_1x.imagenette_distilled.onnx", "app/bundled/pictures/tench/1.jpg")
    for needed in ("zoo/py.typed", "app/style.css", *bundled):
        assert needed in names
    student = next(i for i in zipfile.ZipFile(wheel).infolist() if i.filename.endswith("imagenette_distilled.onnx"))
    assert student.file_size <= 25_000_000


def test_serving_needs_no_torch(serving: Path, tmp_path: Path) -> None:
    done = subprocess.run([serving / "python", "-c", CHECK], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([serving / "simclr", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == done.stdout


def test_what_needs_torch_says_so_in_one_line(serving: Path, tmp_path: Path) -> None:
    command = [serving / "simclr", "convert", "model.ckpt-1", "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this needs the package ")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def page(serving: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [serving / "simclr", "app", "--port", str(port), "--no-browser"]
    environment = os.environ | {"SIMCLR_CACHE": str(tmp_path / "cache")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        for _ in range(240):
            if server.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                yield f"http://127.0.0.1:{port}"
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail((tmp_path / "log").read_text())
    finally:
        server.terminate()
        server.wait(30)


def test_installed_app_serves_the_bundled_student(page: str) -> None:
    with urllib.request.urlopen(f"{page}/gradio_api/info", timeout=30) as answer:
        info = json.load(answer)
    assert {"/classify", "/embed", "/search"} <= set(info["named_endpoints"])


def test_a_space_installs_what_serves() -> None:
    """A Space builds from requirements.txt before it has the rest of the folder, so the group is written out there."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["serve"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == wanted
    header = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: gradio\n" in header
    assert "app_file: space.py\n" in header
    assert (ROOT / "space.py").read_text().count("\n\n") == 2


def test_a_space_opens_to_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("app.serve.serve", lambda **options: asked.append(options))
    runpy.run_path(str(ROOT / "space.py"))
    assert asked == [{"host": "0.0.0.0", "port": 7860, "browser": False, "public": True}]
