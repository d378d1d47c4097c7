"""Training runs that are killed: at every call of a save, and at random instants; then resumed and compared.

    python benchmarks/kill.py [--random 200] [--seed 0] [--processes 2] [--json]

First, every open, write (as it reaches the system), fsync, rename, unlink and so on between two steps, with the save of
a checkpoint that replaces older ones, the log and the curve: a run kills itself there with SIGKILL, before the call,
after it and, for writes, with half of the bytes written. The same before every call of a rerun that finds all steps
done. Then SIGKILL from outside at random instants, uniform over the time that an undisturbed run takes, in the three
stages of a tiny model (pretraining with a memory and a moving average, fine-tuning, distillation) one after the other;
what is left is resumed, killed once more, and resumed until it is done. At last each must equal the run that was not
killed in every parameter, buffer, optimizer tensor, loss and score, and in its models; no checkpoint may be lost or
half; and no more than a save interval may have been done again. The work is in tests/kill_runs.py. Needs fork.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kill_runs import (  # noqa: E402
    Kill,
    Outcome,
    Server,
    Setup,
    When,
    left,
    lines,
    points_of_a_save,
    survive,
    write_images,
)

ONE = Setup(stages=("finetune",), steps=4, curve=True)
RANDOM = {  # a name for the table
    "random, a save each step": Setup(),
    "random, a save every 3 steps, micro-batches": Setup(interval=3, micro_batch=3),
    "random, a save every 2 steps, 2 workers, micro-batches": Setup(interval=2, micro_batch=3, workers=2),
}


@dataclass
class Row:
    """What many kills of a sort came to."""

    name: str
    interval: int  # steps between saves
    runs: int = 0
    kills: int = 0
    damaged: int = 0  # checkpoints lost or unreadable after a kill
    repeated: int = 0  # steps, at most
    different: int = 0  # runs that did not end like the one that was not killed

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.kills += outcome.kills
        self.damaged += len(outcome.damage)
        self.repeated = max(self.repeated, outcome.repeated)
        self.different += bool(outcome.different)

    @property
    def good(self) -> bool:
        return not self.damaged and not self.different and self.repeated <= self.interval


class Bench:
    """A server, a folder to work in, and as many runs at a time as there are processes."""

    def __init__(self, folder: Path, server: Server, processes: int) -> None:
        self.folder, self.server, self.processes = folder, server, processes

    def undisturbed(self, setup: Setup, name: str) -> tuple[float, dict[str, str], Path]:
        """Seconds, what is left, and the list of points of a run that nobody kills."""
        out, points = self.folder / name, self.folder / f"{name}.points"
        ended = self.server.run(out, setup, points=points)
        if ended.status:
            raise RuntimeError(ended.said)
        return ended.seconds, left(out), points

    def calls(self, rows: list[Row]) -> None:
        """A row for each way to die at the calls of a save, and one for those after the last step."""
        _, reference, listing = self.undisturbed(ONE, "one")
        points = lines(listing)
        save = points_of_a_save(points, step=3)
        writes = [number for number in save if points[number]["name"] == "write"]
        ways: dict[When, list[int]] = {"before": save, "half": writes, "after": save}
        for when, numbers in ways.items():
            name = f"{when} a call of a save" if when != "half" else "half-way through a write of a save"
            kills = [Kill(number=number, when=when) for number in numbers]
            rows.append(self._each(Row(name, ONE.interval), ONE, kills, reference))
        rerun = self.folder / "rerun.points"
        self._all_steps_done(self.folder / "rerun")
        if self.server.run(self.folder / "rerun", ONE, points=rerun).status:
            raise RuntimeError("The rerun of a run whose steps are done has failed.")
        kills = [Kill(number=number) for number in range(len(lines(rerun)))]
        done = Row("before a call of a rerun, all steps done", ONE.interval)
        rows.append(self._each(done, ONE, kills, reference, prepare=self._all_steps_done))

    def _all_steps_done(self, out: Path) -> None:
        """A run that has been killed before it could write its model."""
        self.server.run(out, ONE, Kill(point=f"open {out}/finetune/.model", number=0))

    def _each(
        self,
        row: Row,
        setup: Setup,
        kills: list[Kill],
        reference: dict[str, str],
        prepare: Callable[[Path], None] = lambda out: None,
    ) -> Row:
        def one(numbered: tuple[int, Kill]) -> Outcome:
            out = self.folder / f"{row.name} {numbered[0]}"
            prepare(out)
            try:
                return survive(self.server, out, setup, iter([numbered[1]]), reference=reference)
            finally:
                shutil.rmtree(out)

        with ThreadPoolExecutor(self.processes) as pool:
            for outcome in tqdm(pool.map(one, enumerate(kills)), total=len(kills), desc=row.name, unit="run"):
                row.add(outcome)
        return row

    def instants(self, row: Row, setup: Setup, number: int, seed: int) -> Row:
        """Kills at random instants until there are ``number``."""
        seconds, reference, _ = self.undisturbed(setup, row.name)
        instants = iter(np.random.default_rng(seed).uniform(0, seconds, 100 * number).tolist())
        lock, left_over = threading.Lock(), [number]  # kills to go, less those that are on their way
        bar = tqdm(total=number, desc=row.name, unit="kill")

        def work(worker: int) -> None:
            for turn in itertools.count():
                with lock:
                    mine = min(2, left_over[0])  # on the first run and on the one that resumes it
                    left_over[0] -= mine
                if not mine:
                    return
                out = self.folder / f"{row.name} {worker} {turn}"
                kills = (Kill(after=next(instants)) for _ in range(mine))
                outcome = survive(self.server, out, setup, kills, reference=reference)
                shutil.rmtree(out)
                with lock:
                    row.add(outcome)
                    left_over[0] += mine - outcome.kills  # it was done before
                bar.update(outcome.kills)

        with bar, ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(work, range(self.processes)))
        return row


def table(rows: list[Row]) -> str:
    """As Markdown."""
    text = "| killed | kills | runs | checkpoints lost or half | most steps repeated | save interval, steps |"
    text += " runs that ended otherwise |\n|---|---|---|---|---|---|---|\n"
    for row in rows:
        cells = (row.name, row.kills, row.runs, row.damaged, row.repeated, row.interval, row.different)
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=200, help="kills at random instants, over three setups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(write_images(folder / "images")) as server:
            bench = Bench(folder, server, options.processes)
            bench.calls(rows)
            for k, (title, setup) in enumerate(RANDOM.items()):
                number = options.random // len(RANDOM) + (k < options.random % len(RANDOM))
                rows.append(bench.instants(Row(title, setup.interval), setup, number, options.seed + k))
    minutes = (time.monotonic() - began) / 60
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
        print(f"torch {torch.__version__}, {minutes:.1f} minutes\n")
        print(table(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
