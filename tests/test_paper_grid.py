"""The grid of benchmarks/paper.py: its table, its choices, what it does next, and the tables made of its results."""

import dataclasses
import datetime
import importlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from training.loop import DivergedError
from training.recipes import FinetuneRecipe
from training.views import recipe_augmentation
from zoo.registry import Spec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


paper, paper_runs, paper_work = _module("paper"), _module("paper_runs"), _module("paper_work")
linear, tables, shipping = _module("paper_linear"), _module("paper_tables"), _module("paper_ship")
RUNS = paper_runs.table(paper_runs.Grid())


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_run_comes_after_those_it_needs_and_once() -> None:
    assert max(Counter(run.name for run in RUNS).values()) == 1
    seen: set[str] = set()
    for run in RUNS:
        assert set(run.needs) <= seen, run.name
        seen.add(run.name)
    assert {run.part for run in RUNS} == set(paper_runs.PARTS)


def test_few_labels_are_drawn_three_times_and_all_once() -> None:
    drawn = Counter(run.share for run in RUNS if run.kind == "supervised" and run.part == 1)
    assert drawn == {0.01: 3, 0.1: 3, 1.0: 1}
    layers = Counter((run.share, run.recipe.classify_from) for run in RUNS if run.kind == "finetune" and run.part == 3)
    few = {(share, layer): 3 for share in (0.01, 0.1) for layer in (0, 1, 2)}
    assert layers == few | {(1.0, 0): 1}


def test_the_main_line_is_long_and_the_rest_short() -> None:
    recipes = {run.name: run.recipe for run in RUNS}
    assert (recipes["pretrain_main"].epochs, recipes["pretrain_main"].batch_size) == (100, 256)
    assert {recipes[f"pretrain_{name}"].epochs for name in ("short", "narrow", "memory_on")} == {30}
    assert recipes["lightly"].epochs == 30
    assert recipes["pretrain_memory_off"].memory == 0
    on, off = recipes["pretrain_memory_on"], recipes["pretrain_memory_off"]
    assert {name for name in vars(on) if getattr(on, name) != getattr(off, name)} == {"memory"}
    fast = recipes["pretrain_memory_fast"]
    assert {name for name in vars(on) if getattr(on, name) != getattr(fast, name)} == {"memory_decay"}
    assert {recipes[name].temperature for name in ("distill_self_1pct_s0", "distill_labels_1pct_s0")} == {0.1}
    assert recipes["distill_labels_1pct_s0"].alpha < recipes["distill_self_1pct_s0"].alpha == 1
    distilled = Counter((run.name.split("_")[1], run.recipe.epochs) for run in RUNS if run.kind == "distill")
    once = {("long", 60): 1, ("teacher", 15): 1, ("large", 15): 1}
    assert distilled == {("self", 15): 6, ("labels", 15): 6, ("small", 30): 6} | once
    needs = {run.name: run.needs for run in RUNS}
    assert needs["distill_long_10pct_s0"] == ("finetune_10pct_layer1_s0",)
    assert needs["distill_teacher_10pct_s0"] == ("finetune_teacher_10pct_layer1_s0",)
    assert needs["finetune_teacher_10pct_layer1_s0"] == ("pretrain_main", "choose_teacher_10pct")
    assert needs["distill_large_10pct_s0"] == ("finetune_large_10pct_layer1_s0",)
    assert needs["finetune_large_10pct_layer1_s0"] == ("pretrain_main", "choose_finetune_10pct")
    sizes = {name: recipe.image_size for name, recipe in recipes.items() if recipe is not None}
    large = {"finetune_large_10pct_layer1_s0", "distill_large_10pct_s0", "supervised_large_10pct_s0"}
    assert {name: size for name, size in sizes.items() if size != 64} == dict.fromkeys(large, 96)
    assert needs["supervised_large_10pct_s0"] == ("choose_supervised_10pct",)
    assert not any("_large_" in run.name for run in paper_runs.table(paper_runs.Grid(size=32)))  # another stem
    assert not any("wide" in run.name for run in RUNS)
    assert any("wide" in run.name for run in paper_runs.table(paper_runs.Grid(wide=Spec(18, 2))))


def test_a_choice_never_sees_other_labels_than_its_run() -> None:
    by_name = {run.name: run for run in RUNS}
    for run in RUNS:
        for need in run.needs:
            if need.startswith("choose"):
                assert by_name[need].of == run.kind or run.kind == "choose"
                assert by_name[need].share <= run.share


def test_numbers_of_labels_are_shares_of_any_images(image_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / part)
    folders = [path for path in (tmp_path / "train").iterdir() if path.is_dir()]
    classes, images = len(folders), sum(path.is_file() for folder in folders for path in folder.iterdir())
    given = ["--images", str(tmp_path), "--work", str(tmp_path), "--pretrain", "cifar10_pretrain", "--epochs", "200"]
    place = paper.place_of(paper.parse([*given, "--labels", "8", "6"]))
    assert place.grid.shares == (6 / images, 8 / images, 1.0)
    runs = {run.name: run for run in paper_runs.table(place.grid)}
    recipe = runs["pretrain_main"].recipe
    assert (recipe.epochs, recipe.warmup_epochs, recipe.temperature, recipe.blur) == (200, 2, 0.5, False)
    some = paper_runs.percent(8 / images)
    assert runs["finetune_100pct_layer0_s0"].needs[1] == f"choose_finetune_{some}"
    assert len(runs["linear_main"].draws) == 3 + 3 + 1
    for wrong in ([6, 6], [2 * classes - 1], [images], []):
        with pytest.raises(ValueError, match=rf"give different numbers from {2 * classes} \(two of each class\)"):
            paper_runs.shares_of(wrong, images, classes)


def test_few_labels_have_a_recipe_of_their_own() -> None:
    runs = paper_runs.table(paper_runs.Grid(shares=(0.0008, 0.005, 0.08, 1.0)))
    batches = {run.share: run.recipe.batch_size for run in runs if run.kind == "supervised"}
    recipes = paper_runs.RECIPES
    few, some, whole = (recipes[f"imagenette_supervised{end}"].batch_size for end in ("_1pct", "", "_100pct"))
    assert batches == {0.0008: few, 0.005: few, 0.08: some, 1.0: whole}
    assert len({few, some, whole}) == 3


def test_only_a_pattern_and_what_it_needs() -> None:
    names = [run.name for run in paper_runs.wanted(RUNS, ["distill_self_1pct_s2"])]
    expected = ["pretrain_main", "choose_finetune_1pct", "finetune_1pct_layer1_s2", "distill_self_1pct_s2"]
    assert names == expected
    assert {run.part for run in paper_runs.wanted(RUNS, ["part6"])} == {6}
    assert {run.part for run in paper_runs.wanted(RUNS, ["part[23]"])} == {2, 3}
    assert paper_runs.wanted(RUNS, []) == RUNS
    with pytest.raises(ValueError, match="No run is called 'distil'"):
        paper_runs.wanted(RUNS, ["distil"])


def test_a_lost_model_is_made_again_only_if_it_is_needed() -> None:
    runs = paper_runs.wanted(RUNS, ["distill_self_1pct_s0"])
    everything = {run.name for run in runs}
    assert paper_runs.to_do(runs, everything, set()) == []
    left = paper_runs.to_do(runs, everything - {"distill_self_1pct_s0"}, {"finetune_1pct_layer1_s0"})
    assert [run.name for run in left] == ["distill_self_1pct_s0"]
    left = paper_runs.to_do(runs, everything - {"distill_self_1pct_s0"}, set())
    assert [run.name for run in left] == ["pretrain_main", "finetune_1pct_layer1_s0", "distill_self_1pct_s0"]


def test_a_candidate_multiplies_epochs_and_rate_and_sets_the_colour() -> None:
    recipe = FinetuneRecipe(epochs=10, learning_rate=0.1)
    changed = paper_runs.apply(recipe, {"color_strength": 0.5, "epochs": 2, "learning_rate": 0.3})
    assert (changed.color_strength, changed.epochs, changed.learning_rate) == (0.5, 20, pytest.approx(0.03))
    plain, _ = recipe_augmentation(recipe)
    coloured, views = recipe_augmentation(changed)
    assert (plain.color, plain.blur) == (False, False)
    assert (coloured.color, coloured.strength, coloured.blur, views) == (True, 0.5, False, 1)
    with pytest.raises(KeyError):
        paper_runs.apply(recipe, {"batch_size": 2})


def test_work_is_counted_in_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_runs, "multiply_adds", lambda spec, size: 1)
    by_name = {run.name: run for run in RUNS}
    images, looked = 1000, 600  # 0.6 of an image's evaluation each
    assert paper_runs.work(by_name["pretrain_main"], images) == pytest.approx(2 * 100 * images + looked)
    assert paper_runs.work(by_name["supervised_10pct_s0"], images) == pytest.approx(100 * 100 + looked)
    assert paper_runs.work(by_name["distill_self_1pct_s0"], images) == pytest.approx(15 * images * 4 / 3 + looked)
    choice = 5 * (1 + 1 + 2) * 200 * 10  # five folds of three candidates, one of them twice as long
    assert paper_runs.work(by_name["choose_supervised_1pct"], images) == pytest.approx(choice + looked)


# ---- held-out labels -------------------------------------------------------------------------------------------------


def test_folds_hold_every_image_out_once_and_every_class_each_time() -> None:
    labels = np.repeat([0, 1, 2], [9, 10, 5])
    held = []
    for kept, out in linear.folds(labels):
        assert sorted([*kept, *out]) == list(range(24))
        assert set(labels[kept]) == set(labels[out]) == {0, 1, 2}
        held += list(out)
    assert sorted(held) == list(range(24))
    assert len(list(linear.folds(np.repeat([0, 1], 2)))) == 2
    ((kept, out),) = linear.folds(np.repeat([0, 1], 300))
    assert (len(kept), len(out)) == (480, 120)
    with pytest.raises(ValueError, match="single image"):
        next(linear.folds(np.array([0, 0, 1])))


def test_logistic_regression_is_where_its_gradient_ends() -> None:
    """The objective is convex: (p - y)^T x / N + penalty * weight = 0 at its least, and there alone."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = random.normal(size=(60, 8)) + 3 * np.eye(8)[labels]
    fitted = linear.fit(torch.from_numpy(x), labels, classes=3, penalty=0.05)
    scaled = (x - x.mean(0)) / x.std(0)
    logits = scaled @ fitted.weight.numpy().T + fitted.bias.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = shares - np.eye(3)[labels]
    assert np.abs(error.T @ scaled / 60 + 0.05 * fitted.weight.numpy()).max() < 1e-4
    assert np.abs(error.mean(0)).max() < 1e-4
    assert np.allclose(fitted(torch.from_numpy(x)).numpy(), logits)


def test_a_strong_penalty_is_chosen_where_features_are_noise() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(80) % 2
    noise = torch.from_numpy(random.normal(size=(80, 30)))
    assert linear.choose_penalty(noise, labels, classes=2) == max(linear.PENALTIES)
    clear = torch.from_numpy(labels[:, None] * 4.0 + random.normal(size=(80, 2)) / 10)
    assert linear.choose_penalty(clear, labels, classes=2) == min(linear.PENALTIES)


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, image_folder: Path) -> Any:
    from training.data import from_class_folders

    images = from_class_folders(image_folder)
    grid = paper_runs.QUICK
    return paper_work.Place(grid, images, images, tmp_path / "work", tmp_path / "results", "cpu")


def _pretend(monkeypatch: pytest.MonkeyPatch, done: list[str], stop_at: str = "", diverge_at: str = "") -> None:
    """Runs that take no time; one of them is asked to stop, one diverges."""
    monkeypatch.setattr(paper_runs, "multiply_adds", lambda spec, size: 1)

    def do(run: Any, place: Any) -> dict[str, Any]:
        if run.name == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        if run.name == diverge_at:
            raise DivergedError("The loss is nan at step 3.")
        done.append(run.name)
        if run.kind in paper_runs.TRAINED:
            (place.work / run.name).mkdir(parents=True)
            (place.work / run.name / "model.safetensors").write_bytes(b"")
        return {"seconds": 1.5, "chosen": {}, "scores": {"test": {"top1": 0.5}}}

    monkeypatch.setattr(paper, "do", do)


def test_the_grid_stops_goes_on_and_repeats_nothing(
    place: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    runs = paper_runs.wanted(paper_runs.table(place.grid), ["distill_self_20pct_s0"])
    names, done = [run.name for run in runs], []
    _pretend(monkeypatch, done, stop_at=names[2])
    assert not paper.go(runs, place)
    assert "The same command goes on" in capsys.readouterr().out
    _pretend(monkeypatch, done)
    assert paper.go(runs, place)
    assert done == names
    assert f"All {len(runs)} runs are done" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    told = json.loads((place.results / f"{names[-1]}.json").read_text())
    assert (told["seconds"], told["share"], told["seed"]) == (1.5, 0.2, 0)
    assert torch.__version__.startswith(told["versions"]["torch"])
    (place.work / names[0] / "model.safetensors").unlink()
    assert paper._left(runs, place) == []


def test_time_is_up_between_runs(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    _pretend(monkeypatch, done)
    monkeypatch.setattr(paper._Clock, "over", property(lambda clock: len(done) == 1))
    assert not paper.go(paper_runs.table(place.grid), place)
    assert len(done) == 1


def test_a_run_that_diverges_holds_up_only_those_that_need_it(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = paper_runs.wanted(paper_runs.table(place.grid), ["finetune_20pct_layer1_s0", "part6"])
    done: list[str] = []
    _pretend(monkeypatch, done, diverge_at="choose_finetune_20pct")
    assert not paper.go(runs, place)
    names = {run.name for run in runs}
    assert set(done) == names - {"choose_finetune_20pct", "finetune_20pct_layer1_s0"}


def test_results_of_other_settings_are_refused(place: Any) -> None:
    run = paper_runs.table(place.grid)[0]
    paper.record(run, {"seconds": 1.0}, place)
    assert set(paper.finished([run], place)) == {run.name}
    fewer = dataclasses.replace(place, train=place.train.subset(range(5)))
    with pytest.raises(
        ValueError, match=rf"was made with {len(place.train)} images, not 5\. Give another --results, or"
    ):
        paper.finished([run], fewer)
    other = paper_runs.table(paper_runs.Grid(shares=(0.2, 0.4, 1.0)))[0]
    with pytest.raises(ValueError, match="made with other settings"):
        paper.finished([other], place)


def test_results_that_rest_on_one_that_is_gone_are_refused(place: Any) -> None:
    """As when a pretraining's file is removed to make it with other settings: its fine-tunings would stay."""
    runs = paper_runs.table(place.grid)
    pretraining = next(run for run in runs if run.name == "pretrain_main")
    resting = paper_runs.resting_on(runs, "pretrain_main")
    assert {"linear_main", "finetune_20pct_layer1_s0", "distill_self_20pct_s0"} <= set(resting)
    assert not {"pretrain_main", "supervised_20pct_s0", "pretrain_narrow"} & set(resting)
    for run in runs:
        paper.record(run, {"seconds": 1.0}, place)
    assert len(paper.finished(runs, place)) == len(runs)
    (place.results / "pretrain_main.json").unlink()
    with pytest.raises(ValueError, match=r"linear_main\.json rests on pretrain_main, which has no result any more"):
        paper.finished(runs, place)
    assert pretraining.recipe is not None
    other = dataclasses.replace(pretraining.recipe, epochs=7)
    paper.record(dataclasses.replace(pretraining, recipe=other), {"seconds": 1.0}, place)
    said = rf"or remove it and the {len(resting)} that rest on it \(.*linear_main.*\)\.$"
    with pytest.raises(ValueError, match=said):
        paper.finished(runs, place)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"name": "supervised_20pct_s0", "config": {}}'])
def test_a_damaged_result_is_named(content: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.results / "supervised_20pct_s0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    said = r"supervised_20pct_s0\.json: damaged, or no result .*; remove it, and that run is done again\.$"
    with pytest.raises(ValueError, match=said):
        paper.finished(paper_runs.table(place.grid), place)
    if "config" not in content:
        with pytest.raises(SystemExit, match=said):
            tables.main(["--results", str(place.results)])


def test_the_pace_is_that_of_this_hardware_and_these_settings(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other, elsewhere = [run for run in paper_runs.table(place.grid) if run.kind == "supervised"][:3]
    assert paper.seconds_a_view(place) == 1 / paper._VIEWS
    paper.record(run, {"seconds": 30.0}, place)
    changed = dataclasses.replace(other, recipe=dataclasses.replace(other.recipe, epochs=7))
    paper.record(changed, {"seconds": 1e6}, place)
    monkeypatch.setattr(paper, "hardware", lambda device: "a faster one")
    paper.record(elsewhere, {"seconds": 1.0}, place)
    monkeypatch.undo()
    assert paper.seconds_a_view(place) == pytest.approx(30 / paper_runs.work(run, len(place.train)))


def test_what_was_chosen_is_in_the_time_told(place: Any) -> None:
    run = next(run for run in paper_runs.table(place.grid) if run.kind == "supervised")
    images = len(place.train)
    assert paper.expected(run, place) == paper_runs.work(run, images)
    choice = next(found for found in paper_runs.table(place.grid) if found.name == run.needs[0])
    paper.record(choice, {"seconds": 1.0, "chosen": {"epochs": 3}}, place)
    longer = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, epochs=3 * run.recipe.epochs))
    assert paper.expected(run, place) == paper_runs.work(longer, images) > paper_runs.work(run, images)


def test_until_is_the_next_such_time() -> None:
    now = datetime.datetime(2026, 1, 2, 23, 30)
    assert paper.seconds_until("00:15", now) == 45 * 60
    assert paper.seconds_until("23:45", now) == 15 * 60
    assert paper.seconds_until("23:30", now) == 24 * 3600


def test_seconds_are_counted_over_restarts(tmp_path: Path) -> None:
    lines = [{"step": 10, "epoch": 1, "loss": 5.0, "images_per_second": 32.0, "seconds": 10}]
    lines += [{"step": 20, "epoch": 2, "loss": 4.0, "images_per_second": 64.0, "seconds": 1}]  # of a new process
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = paper_work.trained(tmp_path, 32)
    assert found["seconds"] == 10 + 5
    assert found["curves"] == {"loss": [[1, 5.0], [2, 4.0]]}
    lines += [{"step": 30, "epoch": 3, "loss": 3.0, "images_per_second": 0.3, "seconds": 1067}]  # it was paused
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert paper_work.trained(tmp_path, 32)["seconds"] == 10 + 5 + 10
    lines[-1]["images_per_second"] = 3.2  # slow, as beside other work
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert paper_work.trained(tmp_path, 32)["seconds"] == 10 + 5 + 100


def test_what_nobody_needs_is_taken_away(place: Any) -> None:
    by_name = {run.name: run for run in paper_runs.table(place.grid)}
    for name in ("pretrain_main", "supervised_20pct_s0", "distill_self_20pct_s0"):
        (place.work / name / "checkpoints").mkdir(parents=True)
        (place.work / name / "model.safetensors").write_bytes(b"x")
        paper_work.tidy(by_name[name], place, list(by_name.values()))
        assert not (place.work / name / "checkpoints").exists()
        assert (place.work / name / "model.safetensors").exists() == (name != "supervised_20pct_s0")


# ---- the tables and the student --------------------------------------------------------------------------------------


def test_the_main_line_outlives_its_work_folder(place: Any) -> None:
    runs = paper_runs.table(place.grid)
    assert [run.name for run in runs if run.lasting] == ["pretrain_main", "pretrain_narrow"]
    (run,) = paper_runs.wanted(runs, ["pretrain_main"])
    assert not place.has_model("pretrain_main")
    paper_work.do(run, place)
    trained = zoo.load_file(place.work / "pretrain_main" / "model.safetensors").state_dict()
    shutil.rmtree(place.work)
    assert place.has_model("pretrain_main")
    for name, tensor in place.model("pretrain_main").state_dict().items():
        assert torch.equal(tensor, trained[name].half().to(tensor.dtype)), name


def test_networks_are_timed_as_files(place: Any) -> None:
    (run,) = [run for run in paper_runs.table(place.grid) if run.kind == "speed"]
    found = paper_work.do(run, place)["milliseconds"]
    assert set(found) == {zoo.spec(place.grid.main).name, zoo.spec(place.grid.small).name}
    assert min(found.values()) > 0


def test_the_interval_over_draws_is_students() -> None:
    """Of 1, 2, 3: mean 2, deviation 1, t = 4.303 for two degrees of freedom."""
    mean, half = tables.mean_interval([1, 2, 3])
    assert (mean, half) == (2, pytest.approx(4.303 / math.sqrt(3)))


def _scored(name: str, part: int, share: float, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    score = {"top1": top1, "interval": [top1 - 0.01, top1 + 0.01], "top5": 1.0, "images": 100}
    told = {"name": name, "part": part, "share": share, "seed": seed, "seconds": 60.0, "hardware": "two cores"}
    return told | {"model": "r18_1x", "parameters": 11_000_000, "scores": {"test": score}} | more


def test_tables_come_from_the_files_alone(tmp_path: Path) -> None:
    made = [_scored(f"supervised_10pct_s{seed}", 1, 0.1, seed, top1) for seed, top1 in enumerate((0.5, 0.6, 0.7))]
    made += [_scored("supervised_100pct_s0", 1, 1.0, 0, 0.9), _scored("supervised_1pct_s0", 1, 0.01, 0, 0.3)]
    made += [_scored("finetune_10pct_layer1_s0", 3, 0.1, 0, 0.8)]
    for result in made:
        (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
    results = tables.load(tmp_path)
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in tables.methods_table(results)
    }
    assert rows["supervised only"] == ["30.0 (21.9–39.6)", "60.0 ± 24.8", "90.0 (82.6–94.5)", "25.4", "56.4", "76.6"]
    assert rows["fine-tuned"][:3] == ["–", "80.0 (71.1–86.7)", "–"]
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in tables.TABLES))
    tables.write(results, page, tmp_path)
    assert "60.0 ± 24.8" in page.read_text()
    assert (tmp_path / "images" / "results_shares.png").stat().st_size > 1000


def test_a_single_evaluation_makes_tables(tmp_path: Path) -> None:
    """The first results of a grid are those of one pretrained network."""
    score = {"top1": 0.5, "top5": 0.9, "images": 100}
    pretrained = {"name": "pretrain_narrow", "part": 5, "kind": "pretrain", "share": None, "seconds": 60.0}
    pretrained |= {"model": "r18_0.5x", "parameters": 2_800_000, "hardware": "a processor"}
    draws = [{"share": share, "seed": 0, "linear": score, "knn": score} for share in (0.1, 1.0)]
    linear_ = {"name": "linear_narrow", "part": 5, "kind": "linear", "share": None, "seconds": 1.0, "draws": draws}
    results = {"linear_narrow": linear_ | {"hardware": "a processor"}, "pretrain_narrow": pretrained}
    assert tables.widths_table(results)[2] == "| r18_0.5x (2.80 M) | – | – | 50.0 (40.4–59.6) |"
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in tables.TABLES))
    tables.write(results, page, tmp_path)
    assert "r18_0.5x" in page.read_text()


def test_cells_are_rounded_once() -> None:
    """2,922 of 3,925 are 74.446 %; the four digits that are kept of it would round to 74.5."""
    told = {"supervised_1pct_s0": {"scores": {"test": {"top1": 0.7445, "top5": 1.0, "images": 3925}}}}
    assert tables.cell(tables.on_test(told, "supervised_1pct")) == "74.4 (73.1–75.8)"


def test_choices_are_told_to_the_image() -> None:
    """63 of 97 are 64.948 %; the four digits that are kept of it would round to 65.0."""
    candidate = {"change": {"epochs": 2}, "held_out_top1": 0.6495, "held_out_images": 97}
    results = {"choose_finetune_1pct": {"candidates": [candidate], "chosen": {"epochs": 2}}}
    assert tables.choices_table(results)[2] == "| finetune_1pct | epochs 2 | 64.9 | 97 | chosen |"


def test_the_student_is_chosen_without_the_validation_images(place: Any) -> None:
    with pytest.raises(ValueError, match="No student is finished yet"):
        shipping.best(place)
    place.results.mkdir()

    def finished(name: str, test: float, unlabeled: float) -> None:
        scores = {"test": {"top1": test}, "unlabeled": {"top1": unlabeled}}
        (place.results / f"{name}.json").write_text(json.dumps({"name": name, "scores": scores}))

    finished("distill_self_40pct_s0", 0.9, 0.6)
    finished("distill_self_40pct_s1", 0.5, 0.7)
    finished("distill_small_40pct_s0", 0.9, 0.9)  # another network
    finished("distill_self_20pct_s0", 0.9, 0.9)  # of fewer labels
    assert shipping.best(place).name == "distill_self_40pct_s1"
    finished("distill_large_40pct_s0", 0.4, 0.8)
    assert shipping.best(place).name == "distill_large_40pct_s0"
    with pytest.raises(ValueError, match="the card needs supervised_large_40pct_s0"):
        shipping.baseline(shipping.best(place), place)
    finished("supervised_large_40pct_s0", 0.3, 0)
    assert shipping.baseline(shipping.best(place), place)["scores"]["test"]["top1"] == 0.3


def test_the_card_tells_how_sure_the_student_is() -> None:
    answers = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25], [0.3, 0.3, 0.4]])
    words = " ".join(shipping.how_sure(answers, np.array([0, 0, 1, 1, 1])).split())
    assert "On the 5 validation images it says 58 % on average and is right in 60 %;" in words
    assert words.endswith("where it says less than 50 % (40 % of the images) it is right in 0 %.")
    assert shipping.how_sure(answers[:3], np.array([0, 1, 1])).endswith("it never says less than 50 %.")


def test_the_registry_gets_the_new_digest(tmp_path: Path) -> None:
    from zoo import registry

    path = tmp_path / "registry.py"
    path.write_text(Path(registry.__file__).read_text())
    shipping.register("0" * 64, path)
    before = registry.BUNDLED[shipping.KEY]
    assert path.read_text() == Path(registry.__file__).read_text().replace(before, "0" * 64)
