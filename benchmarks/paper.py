r"""The paper's claims on Imagenette: every run of the grid, one after the other, resumed as often as needed.

    python benchmarks/paper.py --images IMAGENETTE [--work runs/paper] [--minutes 60 | --until 07:30]
    python benchmarks/paper.py --images IMAGENETTE --list
    python benchmarks/paper.py --images IMAGENETTE --only 'finetune_10pct_*' part6
    python benchmarks/paper.py --images IMAGENETTE --ship
    python benchmarks/paper.py --images IMAGENETTE --quick          # all of it in minutes, to see it work

IMAGENETTE holds train/ and val/ (or test/), class folders. Interrupted or killed, the same command goes on; the exit
status is 1 as long as runs are left. Each finished run is a small file in --results (benchmarks/results/paper), and is
not repeated; models and checkpoints are in --work, but for two networks that others begin with, which stay beside the
results (float16, 24 and 6 MB). The validation images measure and choose nothing: what is chosen is chosen on a part of
the training labels. The run beside lightly wants it installed (pip install lightly), and is left out without it.

docs/results.md is made of the result files alone, by benchmarks/paper_tables.py. Other images and labels, for a GPU:

    python benchmarks/paper.py --images CIFAR10 --work runs/cifar10 --results runs/cifar10/results \
        --labels 40 250 4000 --pretrain cifar10_pretrain --size 32 --epochs 200 --batch 512 --only 'part[1-4]'
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from paper_runs import PARTS, QUICK, Grid, Run, read_result, resting_on, shares_of, table, to_do, wanted, work
from paper_work import Found, Place, chosen, do, tidy

from training.data import ImageSet, from_class_folders, stratified_subset
from training.estimate import in_words
from training.loop import DivergedError, pick_device
from training.recipes import RECIPES, PretrainRecipe
from zoo.files import written_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
_VIEWS = 400.0  # a second, of r18_1x at 64 pixels, on two cores: until a run is finished here
_QUICK_IMAGES = 12, 5  # a class, to train on and to measure


# ---- results ---------------------------------------------------------------------------------------------------------


def hardware(device: str) -> str:
    """Processor or GPU, in words."""
    if pick_device(device).type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def versions() -> dict[str, str]:
    """Of what computed, and the commit if this is a checkout."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "lightly"):
        if importlib.util.find_spec(package):
            found[package] = importlib.metadata.version(package)
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found | ({"commit": commit} if commit else {})


def record(run: Run, found: Found, place: Place) -> None:
    """Keep a finished run's result, whole or not at all."""
    result = {"name": run.name, "part": run.part, "kind": run.kind, "share": run.share, "seed": run.seed}
    result |= found | {"config": run.config, "images": len(place.train), "hardware": hardware(place.device)}
    result |= {"versions": versions(), "date": datetime.date.today().isoformat()}
    with written_whole(place.results / f"{run.name}.json") as temporary:
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def told(run: Run, place: Place) -> Found | None:
    """What the file of its result says, if there is one. Raises ValueError for one that other settings made, or other
    images."""
    path = place.results / f"{run.name}.json"
    if not path.exists():
        return None
    found = read_result(path, "config", "images", "seconds", "hardware")
    settings = found["config"] == json.loads(json.dumps(run.config))
    if not settings or found["images"] != len(place.train):
        others = [name for name in resting_on(table(place.grid), run.name) if (path.parent / f"{name}.json").exists()]
        rest = f" and the {len(others)} that rest on it ({', '.join(others)})" if others else ""
        what = f"{found['images']} images, not {len(place.train)}" if settings else "other settings"
        raise ValueError(f"{path} was made with {what}. Give another --results, or remove it{rest}.")
    return found


def finished(runs: Sequence[Run], place: Place) -> dict[str, Found]:
    """The results there are, by name. Raises ValueError for one that other settings made, or that rests on one that is
    no longer there."""
    found = {run.name: result for run in runs if (result := told(run, place)) is not None}
    for run in runs:
        gone = [need for need in run.needs if need not in found]
        if run.name in found and gone:
            raise ValueError(
                f"{place.results / run.name}.json rests on {gone[0]}, which has no result any more; remove it too, or "
                "bring that one back."
            )
    return found


def expected(run: Run, place: Place) -> float:
    """``work``, by the recipe that was chosen once it has been."""
    choices = [name for name in run.needs if name.startswith("choose_")]
    if choices and (place.results / f"{choices[0]}.json").exists():
        run = dataclasses.replace(run, recipe=chosen(run, place))
    return work(run, len(place.train))


def seconds_a_view(place: Place) -> float:
    """Of a view of r18_1x at 64 pixels, by what the grid's finished runs took on this hardware; a guess before."""
    here, seconds, views = hardware(place.device), 0.0, 0.0
    for run in table(place.grid):
        with suppress(ValueError):  # of other settings: who asks for that very run is told
            found = told(run, place)
            if found is not None and found["hardware"] == here and run.recipe is not None:
                seconds, views = seconds + found["seconds"], views + expected(run, place)
    return seconds / views if views else 1 / _VIEWS


# ---- doing them ------------------------------------------------------------------------------------------------------


class _Clock:
    """Asks the process to stop, as SIGTERM would, when ``seconds`` are over; 0: never."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds if seconds else float("inf")
        self._timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        self._timer.daemon = True

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def __enter__(self) -> "_Clock":
        self._before = signal.signal(
            signal.SIGTERM, _stop
        )  # training takes it over while it runs, and stops after a step
        if self.end < float("inf"):
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        signal.signal(signal.SIGTERM, self._before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say_where(runs: Sequence[Run], place: Place, left: Sequence[Run]) -> None:
    """What is done, what is next, and how long it may take."""
    pace = seconds_a_view(place)
    rest = sum(expected(run, place) for run in left) * pace
    until = datetime.datetime.now() + datetime.timedelta(seconds=rest)
    print(
        f"{len(runs) - len(left)} of {len(runs)} runs done; next: {left[0].name} (about "
        f"{in_words(expected(left[0], place) * pace)}); all of them: about {in_words(rest)}, until {until:%d %b %H:%M}",
        flush=True,
    )


def go(runs: Sequence[Run], place: Place, seconds: float = 0) -> bool:
    """Do what is left, for so many seconds at most (0: to the end). Whether all is done. Runs that diverge, and those
    that need them, are passed over."""
    all_runs, diverged = table(place.grid), set[str]()
    with _Clock(seconds) as clock:
        try:
            while left := _possible(_left(runs, place), diverged):
                say_where(runs, place, left)
                if clock.over:
                    return False
                run = left[0]
                try:
                    record(run, do(run, place), place)
                except DivergedError as error:
                    print(f"{run.name}: {error}", flush=True)
                    diverged.add(run.name)
                else:
                    tidy(run, place, all_runs)
        except KeyboardInterrupt as stopped:
            said = str(stopped).removesuffix(" Go on with --resume.") or "Stopped."
            print(f"{said} The same command goes on from there.", flush=True)
            return False
    print(f"Diverged: {', '.join(sorted(diverged))}" if diverged else f"All {len(runs)} runs are done: {place.results}")
    return not diverged


def _possible(left: Sequence[Run], diverged: set[str]) -> list[Run]:
    blocked, found = set(diverged), []
    for run in left:
        if run.name in blocked or blocked & set(run.needs):
            blocked.add(run.name)
        else:
            found.append(run)
    return found


def _left(runs: Sequence[Run], place: Place) -> list[Run]:
    kept = {run.name for run in runs if place.has_model(run.name)}
    return to_do(runs, set(finished(runs, place)), kept)


def show(runs: Sequence[Run], place: Place) -> None:
    """The table, with what is done."""
    done = finished(runs, place)
    pace = seconds_a_view(place)
    for run in runs:
        took = f"done, {in_words(done[run.name]['seconds'])}" if run.name in done else ""
        about = took or f"about {in_words(expected(run, place) * pace)}"
        print(f"part {run.part} {PARTS[run.part]:36} {run.name:36} {about:22} {', '.join(run.needs)}")


# ---- the command -----------------------------------------------------------------------------------------------------


def seconds_until(clock: str, now: datetime.datetime) -> float:
    """From now to the next ``HH:MM``. Raises ValueError for anything else."""
    end = datetime.datetime.strptime(clock, "%H:%M")
    at = now.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0)
    return (at - now).total_seconds() % 86_400 or 86_400


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder with train/ and val/ or test/")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"))
    parser.add_argument("--results", type=Path)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="names, shell patterns, part1 to part7"
    )
    parser.add_argument("--list", action="store_true", help="show the runs, and what is done")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; the same command goes on")
    parser.add_argument("--until", metavar="HH:MM")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few images, one epoch: minutes")
    parser.add_argument("--ship", action="store_true", help="make the bundled student's files of the best one")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--labels",
        type=int,
        nargs="+",
        metavar="N",
        help="about so many, the same of each class (1 %% and 10 %%); all are added",
    )
    parser.add_argument("--pretrain", choices=[n for n, r in RECIPES.items() if isinstance(r, PretrainRecipe)])
    parser.add_argument("--main", help="network of the main line, the teacher (r18_1x)")
    parser.add_argument("--small", help="the student that is smaller than the teacher (r18 of width 0.5)")
    parser.add_argument("--wide", help="a wider network beside them (none)")
    for name in ("epochs", "short-epochs", "distill-epochs"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("size", "batch", "workers"):
        parser.add_argument(f"--{name}", type=int)
    return parser.parse_args(arguments)


def grid_of(options: argparse.Namespace, train: ImageSet) -> Grid:
    """The grid with what the options change."""
    names = {field.name for field in dataclasses.fields(Grid)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.labels:
        given["shares"] = shares_of(options.labels, len(train), len(train.classes))
    return dataclasses.replace(QUICK if options.quick else Grid(), **given)


def _first_of_each(images: ImageSet, count: int) -> ImageSet:
    return images.subset(stratified_subset(np.asarray(images.labels), per_class=count, seed=0))


def place_of(options: argparse.Namespace) -> Place:
    measured = "val" if (options.images / "val").exists() else "test"
    train, test = (from_class_folders(options.images / part) for part in ("train", measured))
    if train.classes != test.classes:
        raise ValueError(f"train/ and {measured}/ of {options.images} have other classes.")
    folder = options.work / "quick" if options.quick else options.work
    results = options.results or (folder / "results" if options.quick else RESULTS)
    if options.quick:
        torch.set_num_threads(1)  # threads of tiny networks wait for each other
        logging.getLogger("simclrv2").setLevel(logging.ERROR)  # that runs are too short is meant here
        train, test = (_first_of_each(*pair) for pair in zip((train, test), _QUICK_IMAGES, strict=True))
    return Place(grid_of(options, train), train, test, folder, results, options.device)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        place = place_of(options)
        runs = wanted(table(place.grid), options.only)
        if options.ship:
            import paper_ship

            paper_ship.ship(place, place.work / "shipped" if options.quick else None)
            return 0
        if importlib.util.find_spec("lightly") is None:
            print("lightly is not installed: its runs are left out", flush=True)
            runs = [run for run in runs if run.part != 7]
        if options.list:
            show(runs, place)
            return 0
        seconds = seconds_until(options.until, datetime.datetime.now()) if options.until else options.minutes * 60
        return 0 if go(runs, place, seconds) else 1
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
