"""What many tests share: recorded TensorFlow values, a tiny model, a few small images."""

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference.reference_weights import variable_value

import zoo

REFERENCE = Path(__file__).parent / "reference"
TINY = zoo.Spec(depth=18, width=1 / 16)

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of onnxruntime, which some tests import before `export` does this
torch.set_num_threads(1)  # tiny models gain nothing from more, and results do not depend on the machine


@pytest.fixture(scope="module", autouse=True)
def what_gradio_leaves_open() -> Iterator[None]:
    """Gradio and its client make event loops and close none: a file's are collected here, not in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache, and none asks a server it did not start."""
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "cache"))
    for server in ("SIMCLR_BUCKET_ENDPOINT", "SIMCLR_SUBSETS_ENDPOINT"):
        monkeypatch.setenv(server, "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("SIMCLR_HUB_NAMESPACE", "SIMCLR_LOCK", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


class RecordedVariables(Mapping[str, np.ndarray]):
    """TensorFlow variables by name, each made only when it is asked for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return variable_value(name, self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def run_client(code: str, *arguments: str, url: str, token: str, home: Path, xet: bool) -> str:
    """Run code with a Hub client of its own, as it reads its settings when it is imported; the last line printed."""
    settings = {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(home)}
    settings |= {"HF_HUB_DISABLE_XET": str(int(not xet)), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def relative_error(ours: object, reference: object) -> float:
    """Norm of the difference over the norm of the reference."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture
def tiny_model() -> zoo.SimCLR:
    """A narrow ResNet-18 for 48-pixel images and three classes, with seeded values, in evaluation mode."""
    model = zoo.create(TINY, num_classes=3, image_size=48, seed=0)
    model.classes = ("circle", "square", "stripes")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        model.classifier.weight.normal_(generator=generator)
    return model.eval()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three class folders of twelve small pictures each, told apart by colour and pattern."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :72]
    patterns = {
        "circle": (y - 30) ** 2 + (x - 36) ** 2 < 400,
        "square": (abs(y - 30) < 18) & (abs(x - 36) < 18),
        "stripes": x // 6 % 2 == 0,
    }
    for number, (name, mask) in enumerate(patterns.items()):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for k in range(12):
            colour = np.roll([220, 90, 40], number) + rng.integers(-30, 30, 3)
            pixels = np.where(mask[..., None], colour, 255 - colour) + rng.integers(-20, 20, (60, 72, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k:02d}.png")
    return tmp_path / "images"
