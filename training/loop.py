"""The one loop of all three stages: batches in, a trained model, a log, checkpoints and a curve out."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import checkpoint
from zoo.files import written_whole


class Stage(Protocol):
    """What the loop needs of a stage; see training/stages.py."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: dict[str, Tensor], /) -> Any: ...


class InterruptedRunError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the checkpoint named in the message is on disk."""


class DivergedError(ValueError):
    """The loss is not a finite number; the last checkpoint is kept."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, where to: ``rate(step)`` is the learning rate, ``out`` the run directory."""

    out: Path
    total_steps: int
    steps_per_epoch: int
    rate: Callable[[int], float]
    identity: str  # of the configuration; a checkpoint of another is refused
    title: str = "training"
    precision: torch.dtype = torch.float32
    log_every: int = 10
    save_every: float = 300.0  # seconds


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is cuda, else mps, else cpu. Raises ValueError for a device that is unknown or not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if name not in available:
        raise ValueError(f"Unknown device {name!r}. Choose from: auto, cuda, mps, cpu.")
    if not available[name]:
        raise ValueError(f"Device {name!r} is not available on this machine. Use --device auto.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware computes in it, else float32 (emulated bf16 is 14 times slower)."""
    if name == "fp32":
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if name != "auto":
        raise ValueError(f"Unknown precision {name!r}. Choose from: auto, fp32, bf16.")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private: it may go
    return torch.bfloat16 if device.type == "cpu" and has_bf16() else torch.float32


def memory_format(model: nn.Module) -> torch.memory_format:
    """channels-last, the faster one, unless the model is very narrow.

    There oneDNN's strided 1x1 convolution with fewer input channels than a vector register holds (8 or 16) writes past
    its workspace in the backward pass when the data are channels-last (uxlfoundation/oneDNN #6035).
    """
    for module in model.modules():
        strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if strided and module.in_channels < 16:  # type: ignore[operator]
            return torch.contiguous_format
    return torch.channels_last


def train(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    stream: Callable[[int, int], Iterable[dict[str, Tensor]]],
    plan: Plan,
    *,
    device: torch.device,
    resume: bool = False,
) -> None:
    """Run the steps that are left, from the last checkpoint if ``resume``. ``stream(start, total)`` gives the batches.

    Leaves ``log.jsonl``, ``curve.png`` and checkpoints in ``plan.out``; the caller saves the finished model. Raises
    InterruptedRunError after Ctrl-C or SIGTERM, once a checkpoint is written, and DivergedError for a loss that is not
    finite.
    """
    folder, log_path = plan.out / "checkpoints", plan.out / "log.jsonl"
    layout = memory_format(stage.model)
    stage.model.to(memory_format=layout)
    start = checkpoint.restore(folder, model=stage.model, optimizer=optimizer, identity=plan.identity) if resume else 0
    log = _kept_log(log_path, start)

    def save(done: int) -> Path:
        return checkpoint.save(folder, step=done, model=stage.model, optimizer=optimizer, identity=plan.identity)

    done, saved, began = start, start, time.monotonic()
    last_save = began
    batches = iter(stream(start, plan.total_steps))
    bar = tqdm(total=plan.total_steps, initial=start, desc=plan.title, unit="step", disable=None, dynamic_ncols=True)
    with _interrupts() as asked, bar, log_path.open("a", encoding="utf-8") as log_file:
        images, tick = 0, began
        for batch in batches:
            rate = plan.rate(done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            metrics = _step(stage, optimizer, batch, device, plan.precision, layout)
            done += 1
            images += sum(len(batch[view]) for view in ("view0", "view1") if view in batch)
            logged = done % plan.log_every == 0 or done == plan.total_steps or bool(asked)
            if logged:
                values = {name: float(value) for name, value in metrics.items()}
                if not math.isfinite(values["loss"]):
                    last = checkpoint.all_of(folder)
                    kept = f"The last checkpoint is {last[-1]}" if last else "There is no checkpoint yet"
                    raise DivergedError(
                        f"The loss is {values['loss']} at step {done}. {kept}; lower the learning rate."
                    )
                now = time.monotonic()
                speed, images, tick = images / max(now - tick, 1e-9), 0, now
                entry = {"step": done, "epoch": done / plan.steps_per_epoch, **values, "learning_rate": rate}
                entry |= {"images_per_second": speed, "seconds": now - began}
                log.append(entry)
                log_file.write(json.dumps(entry) + "\n")
                log_file.flush()
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:.0f} images/s", refresh=False)
            bar.update()
            if logged and (asked or time.monotonic() - last_save > plan.save_every):  # the loss is known to be finite
                path, saved, last_save = save(done), done, time.monotonic()
                draw_curve(log, plan.out / "curve.png", plan.title)
                if asked:
                    where = f"Stopped after step {done} of {plan.total_steps}; checkpoint: {path}."
                    raise InterruptedRunError(f"{where} Go on with --resume.")
    if saved != done or done == start:
        save(done)
    draw_curve(log, plan.out / "curve.png", plan.title)


def _step(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    device: torch.device,
    precision: torch.dtype,
    layout: torch.memory_format,
) -> dict[str, Tensor]:
    moved = {
        name: value.to(device, non_blocking=True, memory_format=layout)
        if value.ndim == 4
        else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
        metrics = stage(moved)
    metrics["loss"].backward()
    optimizer.step()
    return {name: value.detach() for name, value in metrics.items()}


def _kept_log(path: Path, start: int) -> list[dict[str, Any]]:
    """The log up to step ``start``, in memory and on disk: what came after it is repeated."""
    entries = []
    if start and path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [entry for entry in map(_entry, lines) if entry is not None and entry["step"] <= start]
    with written_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return entries


def _entry(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run may be cut
        return None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C or SIGTERM asks for a stop; a second Ctrl-C stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("\nStopping after this step; once more to stop without a checkpoint.", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def draw_curve(log: list[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and the stage's other metric against epochs, as PNG."""
    if not log:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [entry["epoch"] for entry in log]
    axes.plot(epochs, [entry["loss"] for entry in log], color="#1f4e79", linewidth=1)
    axes.set(xlabel="epoch", ylabel="loss", title=title)
    axes.grid(alpha=0.2)
    other = next((name for name in ("contrast_accuracy", "accuracy", "agreement") if name in log[-1]), None)
    if other:
        right = axes.twinx()
        right.plot(epochs, [entry[other] for entry in log], color="#c55a11", linewidth=1)
        right.set(ylabel=other.replace("_", " "), ylim=(0, 1))
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """The run's configuration as JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + os.linesep, encoding="utf-8")
