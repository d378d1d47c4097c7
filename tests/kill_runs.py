"""Runs that are killed on purpose: where they can die, a server that forks them quickly, and what must hold after.

``python kill_runs.py`` is the server: it has imported all there is to import and forks a process for each line of JSON
that it reads, single-threaded itself, so that a run costs no imports. test_kill.py and benchmarks/kill.py use it.
"""

import builtins
import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from unittest import mock

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "finetune", "distill")
When = Literal["before", "half", "after"]


# ---- the points at which a run can fail or die -----------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A call that changes the disk, or begins a part of the work; ``half`` writes half of the bytes."""

    name: str
    where: str
    call: Callable[[], Any]
    half: Callable[[], Any] | None = None


At = Callable[[Point], Any]


def as_usual(point: Point) -> Any:
    """What happens at a point if nothing is to."""
    return point.call()


@contextmanager
def intercepted(folder: Path, at: At) -> Iterator[None]:
    """``at(point)`` decides about every open for writing, write, fsync, rename and so on below ``folder``.

    Writes are those that reach the system (``write(2)``), after Python's buffer. Those of safetensors' own writer and
    of other processes are not seen.
    """
    owner, base = os.getpid(), os.fspath(folder)

    def below(path: object) -> bool:
        if isinstance(path, int) or os.getpid() != owner:
            return False
        name = os.fspath(path)  # type: ignore[call-overload]
        return isinstance(name, str) and (name.startswith(base) or not Path(name).is_absolute())  # relative: rmtree's

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            with memoryview(data) as view:
                first = bytes(view.cast("B")[: view.nbytes // 2])

            def half() -> int:
                return io.FileIO.write(self, first)

            return at(Point("write", str(self.name), lambda: io.FileIO.write(self, data), half))  # type: ignore[no-any-return]

    def opening(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or not below(file):
                return real(file, mode, buffering, *rest, **more)
            raw = at(Point("open", os.fspath(file), lambda: Raw(file, mode.replace("b", "").replace("t", ""))))
            whole = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, *rest, **more)

        return opened

    def changing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def changed(path: Any, *rest: Any, **more: Any) -> Any:
            if not below(path):
                return real(path, *rest, **more)
            return at(Point(name, os.fspath(path), lambda: real(path, *rest, **more)))

        return changed

    def synced(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        link = Path(f"/proc/self/fd/{handle}")
        where = os.fspath(link.readlink()) if link.is_symlink() else str(handle)
        if os.getpid() == owner and (where.startswith(base) or where == str(handle)):
            at(Point("fsync", where, lambda: real(handle)))
        else:
            real(handle)

    with ExitStack() as stack:
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", opening(module.open)))
        for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
            stack.enter_context(mock.patch.object(os, name, changing(name)))
        stack.enter_context(mock.patch.object(os, "fsync", synced))
        yield


# ---- a run of a tiny model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is trained: some of the three stages, ``steps`` each, a checkpoint every ``interval`` steps."""

    stages: tuple[str, ...] = STAGES
    steps: int = 4
    interval: int = 1
    workers: int = 0
    micro_batch: int = 0
    channels_last: bool = False  # a wider model, in the other memory format
    curve: bool = False  # drawing takes longer than the tiny step itself

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))


@dataclass(frozen=True)
class Kill:
    """A signal to itself at the point of that number among those like ``point``, or from outside after some seconds."""

    number: int = -1
    point: str = ""  # part of its name and place, such as "fsync" or "part pretrain"
    when: When = "before"
    after: float = -1.0  # seconds
    signal: int = int(signal.SIGKILL)
    group: bool = False  # to the workers too
    times: int = 1


def write_images(folder: Path) -> Path:
    """Three classes of eight small pictures."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("circle", "square", "stripes")):
        (folder / name).mkdir(parents=True)
        for k in range(8):
            pixels = rng.integers(0, 120, (40, 44, 3)) + np.roll([130, 60, 0], number)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def train(setup: Setup, *, images: Path, out: Path) -> None:
    """The stages, one after the other, from where they were left."""
    import zoo
    from training import data, runs
    from training.recipes import DistillRecipe, FinetuneRecipe, PretrainRecipe

    unlabeled, labelled = data.from_folder(images), data.from_class_folders(images)
    batch = 8
    common: dict[str, Any] = {
        "model": zoo.Spec(depth=18, width=0.25 if setup.channels_last else 1 / 16),
        "image_size": 36,
        "batch_size": batch,
        "epochs": (setup.steps - 0.5) * batch / len(labelled),
        "precision": "fp32",
        "workers": setup.workers,
        "micro_batch": setup.micro_batch,
        "log_every": 1,
        "save_every": setup.interval - 0.5,  # by the clock that counts steps
        "score_every": 0.7,
    }
    place: dict[str, Any] = {"device": "cpu", "resume": True}
    model = zoo.create(common["model"], num_classes=3, image_size=36, seed=1)
    model.classes = labelled.classes
    if "pretrain" in setup.stages:
        first = PretrainRecipe(**common, warmup_epochs=0, memory=20, memory_decay=0.9, ema_decay=0.8)
        model = runs.pretrain(first, unlabeled, out=out / "pretrain", **place)
    if "finetune" in setup.stages:
        second = FinetuneRecipe(**common, optimizer="nesterov", weight_decay=1e-3)
        model = runs.finetune(second, labelled, model, out=out / "finetune", **place)
    if "distill" in setup.stages:
        third = DistillRecipe(**common, warmup_epochs=0)
        runs.distill(third, unlabeled, model, out=out / "distill", **place)


class _Steps:
    """The clock of the training loop: a second a step."""

    def __init__(self) -> None:
        self.begun = 0

    def monotonic(self) -> float:
        return float(self.begun)


@contextmanager
def _watched(out: Path, setup: Setup, kill: Kill, points: Path | None) -> Iterator[None]:
    """Note in ``out``/trace.jsonl what is begun and saved, and die as told; ``points`` lists where one could."""
    from training import checkpoint, data, loop
    from training.stages import Stage

    trace = os.open(out / "trace.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    listing = None if points is None else os.open(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    clock, passed, owner = _Steps(), 0, os.getpid()

    def note(handle: int, **entry: object) -> None:
        os.write(handle, json.dumps(entry).encode() + b"\n")

    def strike() -> None:
        if kill.group:  # from another process, as workers take it in another way from their parent
            subprocess.run(["kill", f"-{kill.signal}", "--", f"-{os.getpgid(0)}"], check=True, start_new_session=True)
        else:
            os.kill(os.getpid(), kill.signal)
        note(trace, event="struck", step=clock.begun, time=time.time())

    def strikes() -> None:
        for _ in range(kill.times):
            strike()

    def at(point: Point) -> Any:
        nonlocal passed
        if listing is not None:
            note(listing, name=point.name, where=point.where)
        if kill.point not in f"{point.name} {point.where}":
            return point.call()
        number, passed = passed, passed + 1
        if number != kill.number:
            return point.call()
        if kill.when == "half" and point.half is not None:
            point.half()
        if kill.when == "after":
            try:
                return point.call()
            finally:  # it may fail, such as for a folder that is there
                strikes()
        strikes()
        return point.call()

    def stream(self: Any, *, start_step: int = 0, total_steps: int, real: Any = data.TrainingBatches.stream) -> Any:
        stage = current[0]
        for step, batch in enumerate(real(self, start_step=start_step, total_steps=total_steps), start_step):
            clock.begun += 1
            note(trace, event="begun", stage=stage, step=step, process=owner)
            at(Point("batch", f"{stage} {step}", lambda: None))
            yield batch

    def outputs(self: Any, batch: Any, *, real: Any) -> Any:
        at(Point("part", current[0], lambda: None))
        return real(self, batch)

    def save(folder: Path, *, real: Any = checkpoint.save, **what: Any) -> Path:
        path: Path = real(folder, **what)
        note(trace, event="saved", stage=folder.parent.name, step=what["step"], time=time.time())
        return path

    def loop_train(*given: Any, real: Any, **more: Any) -> None:
        current[0] = given[2].title
        real(*given, **more)

    current = [""]
    from training import runs

    kinds = [Stage, *Stage.__subclasses__()]
    with ExitStack() as stack:
        for kind in kinds:
            if "outputs" in vars(kind):
                wrapped = _with_real(outputs, vars(kind)["outputs"])
                stack.enter_context(mock.patch.object(kind, "outputs", wrapped))
        stack.enter_context(mock.patch.object(data.TrainingBatches, "stream", stream))
        stack.enter_context(mock.patch.object(checkpoint, "save", save))
        stack.enter_context(mock.patch.object(runs, "train", _with_real(loop_train, runs.train)))
        stack.enter_context(mock.patch.object(loop, "time", clock))
        if not setup.curve:
            stack.enter_context(mock.patch.object(loop, "draw_curve"))
        stack.enter_context(intercepted(out, at))
        yield


def _with_real(function: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def called(*given: Any, **more: Any) -> Any:
        return function(*given, real=real, **more)

    return called


# ---- the server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, negative for the signal that killed it; seconds; what it said."""

    status: int
    seconds: float
    said: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Server:
    """Forks runs, as many at a time as are asked for by threads; a process of its own, to be closed."""

    def __init__(self, images: Path) -> None:
        self.images, self.lock = images, threading.Lock()
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env=os.environ | one | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, setup: Setup, kill: Kill | None = None, *, points: Path | None = None) -> Ended:
        """One process that trains in ``out`` until it is done or dead."""
        task = {"setup": dataclasses.asdict(setup), "kill": dataclasses.asdict(kill or Kill())}
        return self._ask(out, task | {"images": str(self.images), "points": points and str(points)})

    def command(self, out: Path, arguments: list[str], kill: Kill) -> Ended:
        """The same for the command line (``python -m training``)."""
        return self._ask(out, {"command": arguments, "kill": dataclasses.asdict(kill)})

    def _ask(self, out: Path, task: dict[str, Any]) -> Ended:
        assert self.process.stdin is not None
        out.mkdir(parents=True, exist_ok=True)
        answer = out / "ended.json"
        answer.unlink(missing_ok=True)
        with self.lock:
            self.process.stdin.write(json.dumps(task | {"out": str(out)}) + "\n")
            self.process.stdin.flush()
        while not answer.exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"The server of runs has ended, with status {self.process.returncode}.")
            time.sleep(0.005)
        output = out / "output.txt"  # not there if it was killed early
        return Ended(**json.loads(answer.read_text()), said=output.read_text() if output.exists() else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Read a task a line, and fork who sees to it."""
    import torch
    import torch._dynamo  # which the first optimizer imports, for seconds
    from tqdm import tqdm

    import training.cli  # noqa: F401

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # it is a thread
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        setup = Setup(stages=("finetune",), steps=1, curve=True)
        train(setup, images=write_images(Path(folder) / "images"), out=Path(folder) / "out")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who see to tasks
    tasks = Path("/proc/self/task")  # threads
    for line in sys.stdin:
        assert not tasks.is_dir() or len(list(tasks.iterdir())) == 1
        if not os.fork():
            _see_to(json.loads(line))
            os._exit(0)


def _see_to(task: dict[str, Any]) -> None:
    """Fork a run, wait, kill it if it is time, and answer with a file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    began = time.monotonic()
    child = os.fork()
    if not child:
        _perform(task)
    status = _waited(child, began, Kill(**task["kill"]))
    answer = Path(task["out"]) / "ended.json"
    answer.with_suffix(".tmp").write_text(json.dumps({"status": status, "seconds": time.monotonic() - began}))
    answer.with_suffix(".tmp").replace(answer)


def _waited(child: int, began: float, kill: Kill) -> int:
    struck = kill.after < 0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not struck and time.monotonic() - began >= kill.after:
            struck = True
            os.kill(child, kill.signal)
        time.sleep(0.001)


def _perform(task: dict[str, Any]) -> None:
    """In the child: the task, and out, without what the server would do at its end."""
    out, status = Path(task["out"]), 1
    try:
        os.setpgid(0, 0)
        handle = os.open(out / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = _done(task, out)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _done(task: dict[str, Any], out: Path) -> int:
    from training.cli import main
    from training.loop import InterruptedRunError

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
    kill = Kill(**task["kill"])
    if "command" in task:
        with _watched(out, Setup(), kill, None):
            return main(task["command"])
    setup, points = Setup(**task["setup"]), task["points"] and Path(task["points"])
    try:
        with _watched(out, setup, kill, points):
            train(setup, images=Path(task["images"]), out=out)
    except InterruptedRunError as error:
        print(error)
        return 130
    return 0


# ---- what must hold --------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON lines file; a last line that was cut is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def points_of_a_save(points: list[dict[str, Any]], *, step: int) -> list[int]:
    """Numbers of the points between the step before the save of ``step`` (steps done) and the step after it."""
    begun = [number for number, point in enumerate(points) if point["name"] == "batch"]
    return [number for number in range(begun[step - 1] + 1, begun[step]) if points[number]["name"] != "part"]


def checkpoints(run: Path) -> dict[int, bool]:
    """Step -> whether what bears a checkpoint's name is whole: read here without the engine's help."""
    found = {}
    for path in (run / "checkpoints").glob("step_*"):
        try:
            expected = json.loads((path / "manifest.json").read_text())["sha256"]
            whole = all(
                hashlib.sha256((path / name).read_bytes()).hexdigest() == value for name, value in expected.items()
            )
            found[int(path.name[5:])] = whole and bool(expected)
        except (OSError, ValueError, KeyError):
            found[int(path.name[5:])] = False
    return found


def left(out: Path) -> dict[str, str]:
    """All that a finished run is for, as text that can be compared: tensors, losses, scores, models."""
    found: dict[str, str] = {}
    for run in (out / name for name in STAGES):
        if not run.exists():
            continue
        for name in ("log", "scores"):
            for entry in lines(run / f"{name}.jsonl"):
                kept = {key: value for key, value in entry.items() if key not in ("seconds", "images_per_second")}
                key = f"{run.name} {name} {entry['step']}"
                assert key not in found, f"{key} is there twice"
                found[key] = json.dumps(kept)
        for path in run.iterdir():  # what killed runs leave is to go
            found[f"{run.name} {path.name}"] = "is there"
        for path in run.glob("*.safetensors"):
            found |= {f"{run.name} {path.name} {name}": value for name, value in _tensors(path).items()}
        newest = max((run / "checkpoints").glob("step_*"))
        state = _tensors(newest / "state.safetensors")
        found |= {f"{run.name} {newest.name} {name}": value for name, value in state.items()}
    return found


def _tensors(path: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    return {
        name: f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        for name, value in load_file(path).items()
    }


def damage(out: Path) -> list[str]:
    """What a kill has done that it must not: checkpoints that are half, and saves that are gone."""
    found = []
    for run in (out / name for name in STAGES):
        there = checkpoints(run)
        found += [f"{run.name}: step {step} is not whole" for step, whole in there.items() if not whole]
        saved = [e["step"] for e in lines(out / "trace.jsonl") if e["event"] == "saved" and e["stage"] == run.name]
        if saved and max(there, default=-1) < max(saved):
            found.append(f"{run.name}: step {max(saved)} was saved, but the newest is {max(there, default=None)}")
    return found


def repeated(out: Path) -> int:
    """The most steps that any process did again."""
    most, reached, process = 0, dict[str, int](), dict[str, int]()
    for entry in lines(out / "trace.jsonl"):
        if entry["event"] != "begun":
            continue
        stage, step = entry["stage"], entry["step"]
        if process.get(stage) != entry["process"]:
            process[stage] = entry["process"]
            most = max(most, reached.get(stage, -1) + 1 - step)
        reached[stage] = max(step, reached.get(stage, -1))
    return most


@dataclass(frozen=True)
class Outcome:
    """A run that was killed, perhaps several times, until it was done."""

    kills: int
    damage: tuple[str, ...]
    repeated: int  # steps
    different: tuple[str, ...]  # names of what is not as in the run that was not killed

    def good(self, setup: Setup) -> bool:
        return not self.damage and not self.different and self.repeated <= setup.interval


def survive(server: Server, out: Path, setup: Setup, kills: Iterator[Kill], *, reference: dict[str, str]) -> Outcome:
    """Run, killed as the iterator says, until done; a run after the last of them is left in peace."""
    count, found = 0, list[str]()
    while True:
        ended = server.run(out, setup, next(kills, None))
        if ended.status == 0:
            break
        if not ended.killed:
            raise AssertionError(f"A run ended with status {ended.status}: {ended.said}")
        count += 1
        found += damage(out)
    result = left(out)
    different = sorted(name for name in result.keys() | reference.keys() if result.get(name) != reference.get(name))
    return Outcome(count, tuple(found), repeated(out), tuple(different))


if __name__ == "__main__":
    serve()
