"""The one loop of all three stages: batches in, a trained model, a log, checkpoints and a curve out."""

import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import checkpoint, distributed
from training.step import Step
from zoo.files import written_whole

Entry = dict[str, Any]


class InterruptedRunError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the checkpoint named in the message is on disk."""


class DivergedError(ValueError):
    """The loss or a weight is not a finite number; the last checkpoint is kept."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, where to: ``rate(step)`` is the learning rate, ``out`` the run directory.

    ``score()`` measures the model every ``score_every`` steps and at the end: name -> value, the first of which counts;
    ``keep_best()`` is called when it is the highest so far. ``watch(entries, scores)`` gives warnings in words.
    """

    out: Path
    total_steps: int
    steps_per_epoch: float  # images over the batch
    rate: Callable[[int], float]
    identity: str  # of the configuration; a checkpoint of another is refused
    title: str = "training"
    log_every: int = 10  # steps
    save_every: float = 300.0  # seconds
    score_every: int = 0  # steps; 0: at the end only
    score: Callable[[], dict[str, float]] | None = None
    keep_best: Callable[[], None] = lambda: None
    watch: Callable[[list[Entry], list[Entry]], list[str]] = lambda entries, scores: []
    warn: Callable[[str], None] = lambda line: None
    tensorboard: bool = False


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
    if name == "fp16":
        return torch.float16
    if name != "auto":
        raise ValueError(f"Unknown precision {name!r}. Choose from: auto, fp32, bf16, fp16.")
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


def train(step: Step, stream: Callable[[int, int], Iterable[dict[str, Tensor]]], plan: Plan, *, resume: bool) -> None:
    """Run the steps that are left, from the last checkpoint if ``resume``. ``stream(start, total)`` gives the batches.

    Leaves ``log.jsonl``, ``scores.jsonl``, ``curve.png`` and checkpoints in ``plan.out``; the caller saves the finished
    model. Raises InterruptedRunError after Ctrl-C or SIGTERM, once a checkpoint is written, and DivergedError for a
    loss or weights that are not finite. With several processes all run this; the first one writes.
    """
    start = _Journal.restored(step, plan) if resume else 0
    with _Journal(step, plan, start) as journal, _interrupts() as asked:
        journal.begin_run()
        for batch in stream(start, plan.total_steps):
            rate = plan.rate(journal.done)
            for group in step.optimizer.param_groups:
                group["lr"] = rate
            metrics = step(batch)
            if journal.note(batch, metrics, rate, stop=bool(asked)):
                raise journal.stopped()
        journal.close_run()
        (stop,) = distributed.any_of(bool(asked))  # in the last moments: what would follow is not to begin
        if stop:
            raise journal.stopped()


class _Journal:
    """What a run leaves behind, step by step: log, scores, checkpoints, curve, the bar; and whether it is to stop."""

    def __init__(self, step: Step, plan: Plan, start: int) -> None:
        self.step, self.plan, self.start, self.done = step, plan, start, start
        self.first = distributed.is_first()
        self.saved = checkpoint.path_of(plan.out / "checkpoints", start)
        self._saved_at, self._said = start, set[str]()
        self._began = self._last_save = self._tick = time.monotonic()
        self._images = 0
        self.log, self.scores = (_Lines(plan.out / name, start, write=self.first) for name in ("log", "scores"))

    @staticmethod
    def restored(step: Step, plan: Plan) -> int:
        """Put the last checkpoint into the stage and the optimizer; the steps done."""
        done, more = checkpoint.restore(
            plan.out / "checkpoints", modules=step.stage.kept(), optimizer=step.optimizer, identity=plan.identity
        )
        if more.get("scaler"):
            step.scaler.load_state_dict(more["scaler"])
        if len(set(distributed.counts(done, torch.device("cpu")))) > 1:
            raise ValueError(
                f"The processes do not see the same {plan.out}; it must be a folder that all of them share."
            )
        return done

    def __enter__(self) -> "_Journal":
        silent = None if self.first else True
        self.bar = tqdm(
            total=self.plan.total_steps,
            initial=self.start,
            desc=self.plan.title,
            unit="step",
            disable=silent,
            dynamic_ncols=True,
        )
        self.board = _tensorboard(self.plan.out, self.start) if self.plan.tensorboard and self.first else None
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def begin_run(self) -> None:
        """The score that was put off when the run was asked to stop."""
        if self.start:
            self._score_if_due()

    def note(self, batch: dict[str, Tensor], metrics: dict[str, Tensor], rate: float, *, stop: bool) -> bool:
        """After a step: log, score, save as due. True if any process was asked to stop; then a checkpoint is there."""
        plan = self.plan
        self.done += 1
        self._images += len(batch["view0"])
        due = self.first and time.monotonic() - self._last_save > plan.save_every
        stop, due = distributed.any_of(stop, due)
        logged = self.done % plan.log_every == 0 or self.done == plan.total_steps
        if logged or stop or due:
            values = self._values(metrics)
            if logged:
                self._write_entry(values, rate)
        self.bar.update()
        if not stop:  # a score can take minutes
            self._score_if_due()
        if stop or due:
            self._save()
        return stop

    def close_run(self) -> None:
        """At the end: the last checkpoint and the curve."""
        if self._saved_at != self.done:
            self._save()
        elif self.done == self.start:  # restored, and never to be written over: it may be the only one
            self._draw()

    def stopped(self) -> InterruptedRunError:
        """What to raise once the checkpoint is there."""
        where = f"Stopped after step {self.done} of {self.plan.total_steps}; checkpoint: {self.saved}."
        return InterruptedRunError(f"{where} Go on with --resume.")

    def _values(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """The metrics over all processes. Raises DivergedError if the loss is no finite number."""
        names = sorted(metrics)
        summed = distributed.total(torch.stack([metrics[name].cpu().double() for name in names])).tolist()
        values = dict(zip(names, summed, strict=True))
        if not math.isfinite(values["loss"]):
            raise DivergedError(self._diverged(f"The loss is {values['loss']} at step {self.done}"))
        return {"loss": values.pop("loss"), **values}

    def _diverged(self, what: str) -> str:
        kept = checkpoint.all_of(self.plan.out / "checkpoints")
        last = f"The last checkpoint is {kept[-1]}" if kept else "There is no checkpoint yet"
        return f"{what}. {last}; lower the learning rate."

    def _write_entry(self, values: dict[str, float], rate: float) -> None:
        now = time.monotonic()
        speed, self._images, self._tick = self._images / max(now - self._tick, 1e-9), 0, now
        entry: Entry = {"step": self.done, "epoch": self.done / self.plan.steps_per_epoch, **values}
        entry |= self.step.stage.signs()
        if self.step.scaler.is_enabled():
            entry["loss_scale"] = self.step.scaler.get_scale()
        entry |= {"learning_rate": rate, "images_per_second": speed * distributed.size(), "seconds": now - self._began}
        self.log.add(entry)
        self._tell(entry)
        self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {entry['images_per_second']:.0f} images/s", refresh=False)

    def _score_if_due(self) -> None:
        plan = self.plan
        due = self.done == plan.total_steps or (plan.score_every and self.done % plan.score_every == 0)
        if due and plan.score is not None:
            distributed.first_does(self._score)

    def _score(self) -> None:
        assert self.plan.score is not None
        if any(entry["step"] == self.done for entry in self.scores.entries[-1:]):
            return  # done before the run was stopped
        found = self.plan.score()
        name = next(iter(found))  # earlier entries may be of another score, if the validation images are new
        best = max((entry[name] for entry in self.scores.entries if list(entry)[2] == name), default=-math.inf)
        if found[name] > best:
            self.plan.keep_best()  # before the score is: stopped in between, both are done again
        entry: Entry = {"step": self.done, "epoch": self.done / self.plan.steps_per_epoch, **found}
        self.scores.add(entry)
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        """To TensorBoard, and warnings of what is seen, each once."""
        if not self.first:
            return
        if self.board is not None:
            for name in entry.keys() - {"step", "seconds"}:
                self.board.add_scalar(name, entry[name], self.done)
        for line in self.plan.watch(self.log.entries, self.scores.entries):
            kind = re.sub(r"[\d.,]+", "#", line)  # the same words about other figures
            if kind not in self._said:
                self._said.add(kind)
                self.plan.warn(line)

    def _save(self) -> None:
        """Raises DivergedError rather than keep weights that are no finite numbers."""
        self.saved = checkpoint.path_of(self.plan.out / "checkpoints", self.done)
        self._saved_at, self._last_save = self.done, time.monotonic()
        distributed.first_does(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        try:
            checkpoint.save(
                self.plan.out / "checkpoints",
                step=self.done,
                modules=self.step.stage.kept(),
                optimizer=self.step.optimizer,
                identity=self.plan.identity,
                more={"scaler": self.step.scaler.state_dict()},
            )
        except checkpoint.NotFiniteError as error:
            raise DivergedError(self._diverged(f"After step {self.done}, {error}")) from None
        self._draw()

    def _draw(self) -> None:
        if self.first:
            draw_curve(self.log.entries, self.plan.out / "curve.png", self.plan.title, scores=self.scores.entries)


class _Lines:
    """A file of JSON lines, kept up to a step: what came after it is repeated."""

    def __init__(self, stem: Path, start: int, *, write: bool) -> None:
        self.path, self.write = stem.with_suffix(".jsonl"), write
        self.entries: list[Entry] = []
        if start and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.entries = [entry for entry in map(_entry, lines) if entry is not None and entry["step"] <= start]
        if write:
            with written_whole(self.path) as temporary:
                text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
                temporary.write_text(text, encoding="utf-8")

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self.write:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _first(entry: Entry) -> float:
    """The score that counts: the one after step and epoch."""
    return float(list(entry.values())[2])


def _tensorboard(out: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    return SummaryWriter(out / "tensorboard", purge_step=start)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run may be cut
        return None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C or SIGTERM asks for a stop; a second Ctrl-C stops at once.

    A SIGTERM after it does not: torchrun sends one to its processes when it gets a Ctrl-C, as they did.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)
        if distributed.is_first() and len(asked) == 1:
            print("\nStopping after this step; once more to stop without a checkpoint.", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def draw_curve(log: list[Entry], path: Path, title: str, *, scores: list[Entry] | None = None) -> None:
    """Loss, the stage's other metric and the scores against epochs, as PNG."""
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
    shares = scores if scores and _first(max(scores, key=_first)) <= 1 else None  # of images; a rank is none
    if other or shares:
        right = axes.twinx()
        right.set(ylim=(0, 1))
        if other:
            right.plot(epochs, [entry[other] for entry in log], color="#c55a11", linewidth=1, label=_words(other))
        if shares:
            name = list(shares[0])[2]
            points = [entry["epoch"] for entry in shares], [_first(entry) for entry in shares]
            right.plot(*points, color="#548235", marker="o", markersize=3, label=_words(name))
        right.legend(loc="center right", fontsize="small")
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _words(name: str) -> str:
    return name.replace("_", " ")


def write_config(path: Path, config: dict[str, Any]) -> None:
    """The run's configuration as JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + os.linesep, encoding="utf-8")
