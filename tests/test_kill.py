"""A run killed anywhere and resumed ends bit-identical to one that was not; ten of each of benchmarks/kill.py."""

import dataclasses
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from kill_runs import (
    Kill,
    Outcome,
    Server,
    Setup,
    When,
    checkpoints,
    damage,
    left,
    lines,
    points_of_a_save,
    repeated,
    survive,
    write_images,
)

THREE = Setup(steps=3, micro_batch=3, interval=2)
TWO = dataclasses.replace(THREE, stages=("pretrain", "finetune"))
ONE = Setup(stages=("finetune",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(write_images(tmp_path_factory.mktemp("kill") / "images")) as started:
        yield started


class Undisturbed:
    """What the run of a setup leaves, and how long it takes."""

    def __init__(self, server: Server, out: Path, setup: Setup) -> None:
        ended = server.run(out, setup, points=out.with_suffix(".points"))
        assert ended.status == 0, ended.said
        self.seconds, self.left, self.points = ended.seconds, left(out), lines(out.with_suffix(".points"))
        assert damage(out) == []
        assert repeated(out) == 0


@pytest.fixture(scope="module")
def three(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(server, tmp_path_factory.mktemp("three") / "run", THREE)


@pytest.fixture(scope="module")
def two(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(server, tmp_path_factory.mktemp("two") / "run", TWO)


def assert_good(outcome: Outcome, setup: Setup) -> None:
    assert outcome.damage == ()
    assert outcome.different == ()
    assert outcome.repeated <= setup.interval


def test_killed_at_calls_of_a_save(server: Server, tmp_path: Path) -> None:
    whole = Undisturbed(server, tmp_path / "whole", ONE)
    numbers = points_of_a_save(whole.points, step=3)
    kinds = {whole.points[number]["name"] for number in numbers}
    assert kinds == {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"}
    chosen = [numbers[k] for k in np.linspace(0, len(numbers) - 1, 10).astype(int)]

    def killed(number: int, when: When) -> Outcome:
        kills = iter([Kill(number=number, when=when)])
        return survive(server, tmp_path / f"{number}", ONE, kills, reference=whole.left)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(killed, chosen, ["before", "half", "after"] * 4))
    for outcome in outcomes:
        assert outcome.kills == 1
        assert_good(outcome, ONE)


def test_killed_at_random_instants(server: Server, three: Undisturbed, tmp_path: Path) -> None:
    instants = np.random.default_rng(0).uniform(0, three.seconds, 100).tolist()

    def killed(number: int) -> Outcome:
        """Twice, unless it is done before."""
        kills = (Kill(after=instants.pop()) for _ in range(2))
        return survive(server, tmp_path / f"{number}", THREE, kills, reference=three.left)

    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(2) as pool:
        while sum(outcome.kills for outcome in outcomes) < 10:
            outcomes += pool.map(killed, range(len(outcomes), len(outcomes) + 2))
    for outcome in outcomes:
        assert_good(outcome, THREE)


@pytest.mark.parametrize(
    "workers", [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_killed_within_an_epoch_within_a_batch_and_between_stages(
    workers: int, server: Server, two: Undisturbed, tmp_path: Path
) -> None:
    setup = dataclasses.replace(TWO, workers=workers, interval=1)
    kills = [
        Kill(point="part pretrain", number=6 + 4),  # second step, second part of the second pass
        Kill(point="batch pretrain 2", number=0),  # the last of the epoch
        Kill(point="open " + str(tmp_path / "finetune" / ".config.json"), number=0),  # the first stage is done
        Kill(point="part finetune", number=3 + 1),  # second step, second part
    ]
    outcome = survive(server, tmp_path, setup, iter(kills), reference=two.left)
    assert outcome.kills == 4
    assert_good(outcome, setup)
    assert outcome.repeated == 1


def test_a_wider_model_in_channels_last(server: Server, tmp_path: Path) -> None:
    setup = Setup(stages=("pretrain",), steps=3, channels_last=True)
    whole = Undisturbed(server, tmp_path / "whole", setup)
    kills = iter([Kill(point="part pretrain", number=2)])
    outcome = survive(server, tmp_path / "cut", setup, kills, reference=whole.left)
    assert outcome.kills == 1
    assert_good(outcome, setup)


def test_killed_again_and_again_when_all_steps_are_done(server: Server, tmp_path: Path) -> None:
    """The only checkpoint is the last one; what is done after it must not endanger it."""
    setup = Setup(stages=("finetune",), steps=2, interval=9)
    whole = Undisturbed(server, tmp_path / "whole", setup)
    out, listing = tmp_path / "cut", tmp_path / "points"
    assert server.run(out, setup, Kill(point="open " + str(out / "finetune" / ".model"), number=0)).killed
    for place in (".log", ".model"):  # the first change of the disk, the last
        assert server.run(out, setup, Kill(point=f"open {out}/finetune/{place}", number=0), points=listing).killed
        assert [point for point in lines(listing) if "/checkpoints" in point["where"]] == []
        assert damage(out) == []
    assert server.run(out, setup).status == 0
    assert left(out) == whole.left
    assert repeated(out) == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_checkpoint(
    number: signal.Signals, workers: int, server: Server, two: Undisturbed, tmp_path: Path
) -> None:
    """As a terminal, systemd and batch systems ask: all processes of the group."""
    setup = dataclasses.replace(TWO, workers=workers, interval=9)
    ended = server.run(tmp_path, setup, Kill(point="part finetune", number=3 + 1, signal=number, group=True))
    assert ended.status == 130, ended.said
    assert "Traceback" not in ended.said
    assert f"Stopped after step 2 of 3; checkpoint: {tmp_path}/finetune/checkpoints/step_00000002. " in ended.said
    assert ended.said.count("Stopping after this step") == 1
    seconds = {entry["event"]: entry["time"] for entry in lines(tmp_path / "trace.jsonl") if "time" in entry}
    assert 0 <= seconds["saved"] - seconds["struck"] < 5
    assert checkpoints(tmp_path / "finetune") == {2: True}
    assert server.run(tmp_path, setup).status == 0
    assert left(tmp_path) == two.left
    assert repeated(tmp_path) == 0


def test_asked_twice(server: Server, tmp_path: Path) -> None:
    """A second SIGTERM changes nothing, as a batch system and torchrun may both send one; a second Ctrl-C does."""
    for number, wanted in ((signal.SIGTERM, {2: True}), (signal.SIGINT, {})):
        out = tmp_path / number.name
        kill = Kill(point="part finetune", number=1, signal=int(number), times=2)
        ended = server.run(out, dataclasses.replace(ONE, interval=9), kill)
        assert (ended.status == 130) is bool(wanted), ended.said
        assert checkpoints(out / "finetune") == wanted


def test_asked_in_a_step_after_which_it_would_score(server: Server, two: Undisturbed, tmp_path: Path) -> None:
    """The checkpoint comes first, as a score can take minutes; the score is made up for."""
    for kill in (Kill(point="part pretrain", number=6 + 1), Kill(point="part pretrain", number=1)):
        asked = dataclasses.replace(kill, signal=int(signal.SIGTERM))
        assert server.run(tmp_path, TWO, asked).status == 130
        newest = max(checkpoints(tmp_path / "pretrain"))
        assert newest == max(entry["step"] for entry in lines(tmp_path / "pretrain" / "log.jsonl"))
        scored = [entry["step"] for entry in lines(tmp_path / "pretrain" / "scores.jsonl")]
        assert newest not in scored
    assert server.run(tmp_path, TWO).status == 0
    assert left(tmp_path) == two.left


def test_asked_while_the_last_checkpoint_is_written(server: Server, two: Undisturbed, tmp_path: Path) -> None:
    """It stops there, and does not begin the next stage."""
    last = Kill(point="rename " + str(tmp_path / "pretrain/checkpoints/.step_00000003"), number=0)
    ended = server.run(tmp_path, TWO, dataclasses.replace(last, signal=int(signal.SIGTERM)))
    assert ended.status == 130, ended.said
    assert "Stopped after step 3 of 3" in ended.said
    assert not (tmp_path / "finetune").exists()
    assert server.run(tmp_path, TWO).status == 0
    assert left(tmp_path) == two.left


def test_the_command_line_stops_politely_and_goes_on(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["imagenette_supervised", "--images", str(server.images), "--out", str(out), "--device", "cpu"]
    command += ["--epochs", "0.9", "--warmup-epochs", "0", "--batch-size", "8", "--image-size", "36"]
    ended = server.command(tmp_path, command, Kill(point="part finetune", number=1, signal=int(signal.SIGTERM)))
    assert ended.status == 130, ended.said
    assert f"Stopped after step 2 of 3; checkpoint: {out}/checkpoints/step_00000002. Go on with --resume." in ended.said
    assert "Traceback" not in ended.said
    ended = server.command(tmp_path, [*command, "--resume"], Kill())
    assert ended.status == 0, ended.said
    assert str(out / "model.safetensors") in ended.said
    assert [entry["step"] for entry in lines(out / "log.jsonl")] == [3]
