"""Checkpoints of a run: whole or not at all, whatever the disk does; and never one without another to fall back on."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_runs import Point, as_usual, checkpoints, intercepted
from torch import Tensor, nn

from training import checkpoint

ERRORS = {errno.ENOSPC: "No space left on device", errno.EIO: "Input/output error"}
GONE = ("unlink", "rmdir")  # these make room: a full disk does not refuse them


class Run:
    """A few weights, statistics, a count and momentum, whose values are a function of the step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = nn.Sequential(nn.Linear(60, 70), nn.BatchNorm1d(70))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)

    @property
    def what(self) -> dict[str, Any]:
        return {"modules": {"model": self.network}, "optimizer": self.optimizer, "identity": "these"}

    def train_to(self, step: int) -> None:
        torch.manual_seed(step)
        with torch.no_grad():
            for value in self.network.state_dict().values():
                value.copy_(torch.randint(0, 9, value.shape))
        for parameter in self.network.parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.randn(parameter.shape)

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in checkpoint.state_of(*list(self.what.values())[:2]).items()}

    def save(self, step: int) -> dict[str, Tensor]:
        """Train to there and save; what was saved."""
        self.train_to(step)
        checkpoint.save(self.folder, step=step, **self.what, more={"twice": 2 * step})
        return self.state()

    def restored(self) -> tuple[int, dict[str, Tensor]]:
        """What a new process finds."""
        fresh = Run(self.folder)
        step, more = checkpoint.restore(self.folder, **fresh.what)
        assert more == ({"twice": 2 * step} if step else {})
        return step, fresh.state()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of saves on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_what_is_saved_comes_back(run: Run) -> None:
    assert run.restored()[0] == 0
    saved = run.save(7)
    step, found = run.restored()
    assert step == 7
    assert same(found, saved)
    assert len(found) == 2 + 5 + 4  # linear, batch norm with its count, momenta
    assert names(run.folder) == ["step_00000007"]
    assert checkpoints(run.folder.parent) == {7: True}


def listed(run: Run, step: int) -> list[Point]:
    """The points of a save."""
    points: list[Point] = []

    def at(point: Point) -> Any:
        points.append(point)
        return as_usual(point)

    with intercepted(run.folder, at):
        run.save(step)
    return points


@pytest.mark.parametrize("how", ["once", "from then on", "half of it"])
@pytest.mark.parametrize("code", ERRORS)
def test_a_fault_at_any_point_of_a_save_costs_that_save_only(
    code: int, how: str, tmp_path: Path, no_sync: None
) -> None:
    example = Run(tmp_path / "example")
    for step in (1, 2):
        example.save(step)
    calls = listed(example, 3)
    kinds = [point.name for point in calls]
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} == set(kinds)
    assert kinds.count("fsync") == 4  # tensors, manifest, their folder, the folder they are in
    assert kinds.count("write") > 4
    in_place = kinds.index("rename")  # after it, the new one is there
    for place in range(len(calls)):
        run = Run(tmp_path / f"{place}" / "checkpoints")
        old = [run.save(step) for step in (1, 2)][1]
        counted, refused = -1, False

        def at(point: Point, place: int = place) -> Any:
            nonlocal counted, refused
            counted += 1
            after = refused and (how == "from then on" or point.name == "write")  # half a write, and then none
            if counted < place or (counted > place and not after) or (code == errno.ENOSPC and point.name in GONE):
                return as_usual(point)
            first, refused = not refused, how != "once"
            if first and how == "half of it" and point.half is not None:
                return point.half()
            raise OSError(code, os.strerror(code), point.where)

        error = None
        with intercepted(run.folder, at):
            try:
                new = run.save(3)
            except OSError as caught:
                error, new = caught, run.state()
        harmless = place > in_place + 1 or (place == 0 and how == "once")
        step, found = run.restored()
        if harmless:  # what is older could not be removed; the folder was there already
            assert error is None
        else:
            assert error is not None, calls[place]
            assert "\n" not in str(error)
            assert str(run.folder / "step_00000003") in str(error)
            assert ERRORS[code] in str(error)
        assert step == (3 if place > in_place or error is None else 2), calls[place]
        assert same(found, new if step == 3 else old)
        assert all(checkpoints(run.folder.parent).values())
        assert {2} <= set(checkpoints(run.folder.parent))
        if step == 2:
            assert set(checkpoints(run.folder.parent)) == {1, 2}
        last = run.save(4)
        assert run.restored()[0] == 4
        assert same(run.restored()[1], last)
        assert len(names(run.folder)) == checkpoint.KEEP, names(run.folder)  # and nothing aside
        assert all(checkpoints(run.folder.parent).values())


def test_one_byte_of_the_tensors_is_noticed(run: Run) -> None:
    old = run.save(1)
    run.save(2)
    path = run.folder / "step_00000002" / checkpoint.TENSORS
    size = path.stat().st_size
    for place in [0, 7, 8, 100, *range(501, size, size // 50), size - 1]:
        flip(path, place, place % 8)
        step, found = run.restored()
        assert step == 1, place
        assert same(found, old)
        flip(path, place, place % 8)
    assert run.restored()[0] == 2


def test_one_byte_of_the_manifest_is_noticed(run: Run) -> None:
    run.save(1)
    run.save(2)
    path = run.folder / "step_00000002" / checkpoint.MANIFEST
    for place in range(path.stat().st_size):
        flip(path, place, place % 7)
        assert run.restored()[0] == 1, path.read_text()
        flip(path, place, place % 7)
    assert run.restored()[0] == 2


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.MANIFEST])
def test_what_a_power_cut_tore_is_passed_over(name: str, run: Run) -> None:
    old = run.save(1)
    run.save(2)
    path = run.folder / "step_00000002" / name
    whole = path.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], bytes(len(whole)), whole + b"\0", b"[]", b'{"sha256": []}'):
        path.write_bytes(torn)
        step, found = run.restored()
        assert step == 1
        assert same(found, old)
    path.unlink()
    assert run.restored()[0] == 1
    run.save(2)  # in the place of the damaged one
    assert run.restored()[0] == 2
    assert names(run.folder) == ["step_00000001", "step_00000002"]


def test_if_none_is_whole_that_is_said_in_a_line(run: Run) -> None:
    for step in (1, 2):
        run.save(step)
        flip(run.folder / f"step_0000000{step}" / checkpoint.TENSORS, -1)
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read: step_00000002 .* step_00000001 ") as caught:
        run.restored()
    assert "\n" not in str(caught.value)
    assert str(run.folder) in str(caught.value)
    assert "new --out" in str(caught.value)


def test_damaged_ones_do_not_push_out_the_whole_ones(run: Run) -> None:
    """Three are there if the last run was killed before it removed the oldest, and the disk has torn two of them."""
    run.save(1)
    kept = run.folder.with_name("kept")
    shutil.copytree(run.folder, kept)
    for step in (3, 4):
        run.save(step)
        flip(run.folder / f"step_0000000{step}" / checkpoint.TENSORS, -1)
    shutil.copytree(kept, run.folder, dirs_exist_ok=True)
    assert run.restored()[0] == 1
    saved = run.save(2)
    assert run.restored()[0] == 2
    assert same(run.restored()[1], saved)
    assert checkpoints(run.folder.parent) == {1: True, 2: True}


def test_another_configuration_is_refused(run: Run) -> None:
    run.save(1)
    before = run.state()
    with pytest.raises(ValueError, match=r"step_00000001 belongs to a run with another configuration; .*new --out"):
        checkpoint.restore(run.folder, **(run.what | {"identity": "those"}))
    assert same(run.state(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "statistics", "momentum"])
def test_what_is_no_number_is_not_saved(where: str, value: float, run: Run) -> None:
    old = run.save(1)
    run.train_to(2)
    linear, norm = run.network
    tensor, name = {
        "weight": (linear.weight.data, "model/0.weight"),
        "statistics": (norm.running_var, "model/1.running_var"),
        "momentum": (run.optimizer.state[linear.bias]["momentum_buffer"], "optimizer/model.0.bias/momentum_buffer"),
    }[where]
    tensor.view(-1)[-1] = value
    with pytest.raises(checkpoint.NotFiniteError, match=name):
        checkpoint.save(run.folder, step=2, **run.what)
    assert names(run.folder) == ["step_00000001"]
    assert same(run.restored()[1], old)


def test_the_newest_are_kept_and_leftovers_go(run: Run) -> None:
    run.folder.mkdir()
    for left in (".step_00000001.tmp", ".step_00000009.tmp", ".step_00000001.old.tmp"):
        (run.folder / left).mkdir()
        (run.folder / left / checkpoint.TENSORS).write_bytes(b"half")
    (run.folder / "notes.txt").write_text("not ours")
    for step in (1, 2, 9, 10, 100):
        run.save(step)
        assert run.restored()[0] == step
    assert names(run.folder) == ["notes.txt", "step_00000010", "step_00000100"]


def test_what_is_aside_is_no_checkpoint(run: Run) -> None:
    run.save(1)
    run.save(2)
    (run.folder / "step_00000002").rename(run.folder / ".step_00000002.tmp")  # whole, but for the rename
    (run.folder / "step_00000003").mkdir()
    (run.folder / "step_x").mkdir()
    assert run.restored()[0] == 1


def test_the_manifest_says_what_is_in_it(run: Run) -> None:
    run.save(5)
    manifest = json.loads((run.folder / "step_00000005" / checkpoint.MANIFEST).read_text())
    assert (manifest["step"], manifest["identity"], manifest["more"]) == (5, "these", {"twice": 10})
    assert len(manifest["sha256"][checkpoint.TENSORS]) == 64
