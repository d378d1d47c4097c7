"""`simclr run`: the stages in a row, what is done again, what measures, and mistakes before any work."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from filelock import FileLock
from PIL import Image

import zoo
from app.cli import main as simclr
from export import to_onnx
from training import budgets, data, estimate, holdout, pipeline, runs, stage_cache
from training.budgets import BUDGETS, fitted
from training.loop import InterruptedRunError
from training.recipes import FinetuneRecipe, PretrainRecipe, recipe
from training.stage_cache import Contents, stage_key

LABELLED = [f"{name}/{k:02d}.png" for name in ("circle", "square", "stripes") for k in range(5)]


@pytest.fixture
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(BUDGETS["quick"], meant_for=(14, 2))
    monkeypatch.setitem(BUDGETS, "quick", small)
    monkeypatch.setattr(estimate, "_FEW", 1)
    monkeypatch.setattr(estimate, "_TRY", 1)
    monkeypatch.setattr(estimate, "_MOST", 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student such as the runs here make, exported once: exporting takes longer than all their training."""
    model = zoo.create(TINY, num_classes=3, image_size=64, projector=False, seed=0)
    model.classes = ("circle", "square", "stripes")
    return to_onnx(model, tmp_path_factory.mktemp("exported") / "student.onnx", weights="fp16")


class Runner:
    """Runs with one folder of images, and keeps what was said."""

    def __init__(self, images: Path, out: Path, exported: Path) -> None:
        self.images, self.out, self.said, self.students = images, out, [], []
        self.exported = exported
        self.csv = out.parent / "labels.csv"
        self.label(LABELLED)

    def label(self, paths: list[str], **other: str) -> None:
        rows = [f"{path},{other.get(path[:9], path.split('/')[0])}" for path in paths]
        self.csv.write_text("path,label\n" + "\n".join(rows) + "\n")

    def go(self, **other: object) -> pipeline.Figures:
        self.said.clear()
        arguments: dict = {
            "root": self.images, "out": self.out, "export": self.export, "teacher": TINY, "student": TINY,
            "budget": "quick", "device": "cpu", "workers": 0, "say": self.said.append,
        }  # fmt: skip
        labelled = data.from_csv(self.csv, root=self.images)
        return pipeline.run(data.from_folder(self.images), labelled, **(arguments | other))

    def export(self, model: zoo.SimCLR, path: Path) -> None:
        self.students.append(model)
        shutil.copy(self.exported, path)

    def stages(self) -> dict[str, str]:
        told = json.loads((self.out / "run.json").read_text())["stages"]
        return {name: stage["folder"] for name, stage in told.items()}

    def done_before(self) -> list[int]:
        return [int(line[0]) for line in self.said if line.endswith("(done before)")]


@pytest.fixture
def runner(image_folder: Path, tmp_path: Path, tiny_budget: None, exported: Path) -> Runner:
    return Runner(image_folder, tmp_path / "run", exported)


def test_from_images_and_labels_to_a_student_and_a_report(runner: Runner) -> None:
    figures = runner.go()
    assert (figures.images, figures.labels_used, figures.held_out) == (33, 12, 3)  # of 36 images, 15 labelled
    assert figures.student.images == figures.baseline.images == figures.teacher.images == figures.knn.images == 3
    assert any(line.startswith("on this machine about ") for line in runner.said)
    kept = {path.name for path in runner.out.iterdir()}
    assert {"run.json", "figures.json", "held_out.json", "student.onnx", "report.html", "stages"} <= kept
    student = runner.students[0]
    assert (student.classes, student.image_size, student.facts["budget"]) == (
        ("circle", "square", "stripes"),
        64,
        "quick",
    )
    assert json.loads((runner.out / "figures.json").read_text())["student"]["images"] == 3
    held_out = {Path(name) for name in json.loads((runner.out / "held_out.json").read_text())["paths"]}
    stages = runner.stages()
    assert list(stages) == ["pretrain", "finetune", "distill", "supervised"]
    for name, folder in stages.items():
        config = json.loads((runner.out / folder / "config.json").read_text())
        assert config["images"] == (12 if name in ("finetune", "supervised") else 33)
    assert zoo.load_file(runner.out / stages["supervised"] / "model.safetensors").projector is None
    page = (runner.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg viewBox") == 5  # the mark and four curves
    assert page.count('title="held out') + page.count('alt="held out') == len(held_out)

    before = {name: (runner.out / folder / "model.safetensors").stat().st_mtime_ns for name, folder in stages.items()}
    assert runner.go() == figures
    assert runner.done_before() == [1, 2, 3, 4]
    assert "all stages are done already" in runner.said
    assert runner.stages() == stages
    for name, folder in stages.items():
        assert (runner.out / folder / "model.safetensors").stat().st_mtime_ns == before[name]

    # other labels: the same pictures measure, and pretraining stands
    runner.label([*LABELLED, "circle/09.png"])
    assert runner.go().labels_used == 13
    assert runner.done_before() == [1]
    again = runner.stages()
    assert [again[name] == folder for name, folder in stages.items()] == [True, False, False, False]
    assert {Path(name) for name in json.loads((runner.out / "held_out.json").read_text())["paths"]} == held_out
    assert any("to delete: rm -r -- " in line and str(runner.out / stages["distill"]) in line for line in runner.said)

    # another picture: everything but the baseline, which sees labelled ones only
    Image.new("RGB", (60, 60), "red").save(runner.images / "more.png")
    runner.go()
    assert runner.done_before() == [4]


def test_what_was_stopped_goes_on(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runs.distill
    monkeypatch.setattr(runs, "distill", _stopped)
    with pytest.raises(InterruptedRunError, match=r"checkpoint: x\. Give the same command again to go on\.$"):
        runner.go()
    monkeypatch.setattr(runs, "distill", real)
    runner.go()
    assert runner.done_before() == [1, 2]


def test_a_test_set_measures_and_is_not_trained_on(runner: Runner) -> None:
    test = data.from_class_folders(runner.images).subset([10, 11, 22, 23, 34, 35])
    figures = runner.go(held_out=test)
    assert (figures.images, figures.labels_used, figures.held_out) == (30, 15, 6)
    assert not (runner.out / "held_out.json").exists()


# ---- what measures ---------------------------------------------------------------------------------------------------


def test_held_out_images_and_their_copies_are_trained_on_in_no_stage(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(f"{p},{p.split('/')[0]}" for p in LABELLED))
    labelled = data.from_csv(tmp_path / "labels.csv", root=image_folder)

    def split(labelled: data.ImageSet, share: float = 0.4) -> holdout.Split:
        images, contents = data.from_folder(image_folder), Contents(image_folder, tmp_path)
        contents.read(images.paths)
        return holdout.split(images, labelled, None, holdout=share, contents=contents, out=tmp_path)

    first = split(labelled)
    whole = split(dataclasses.replace(labelled, paths=tuple(path.resolve() for path in labelled.paths)))
    contents = Contents(image_folder, tmp_path)
    contents.read([*first.few.paths, *whole.few.paths])
    assert contents.digest(whole.few) == contents.digest(first.few)  # however a table spells its paths
    assert np.bincount(first.held_out.labels).tolist() == [2, 2, 2]
    measured = set(first.held_out.paths)
    assert measured.isdisjoint(first.unlabeled.paths)
    assert measured.isdisjoint(first.few.paths)
    assert len(first.unlabeled) == 30
    shutil.copy(first.held_out.paths[0], image_folder / "copy.png")  # the same bytes elsewhere
    second = split(labelled)
    assert second.copies == 1
    assert second.unlabeled.paths == first.unlabeled.paths
    assert second.held_out.paths == first.held_out.paths

    # labels for more, and for a class that had none: what measures stays
    more = data.from_csv(tmp_path / "labels.csv", root=image_folder, classes=["circle", "new", "square", "stripes"])
    more = dataclasses.replace(
        more, paths=(*more.paths, image_folder / "square" / "11.png"), labels=np.append(more.labels, 1)
    )
    third = split(more)
    assert set(third.held_out.paths) == measured
    assert third.unmeasured == ("new",)
    assert len(third.few) == len(first.few) + 1
    with pytest.raises(ValueError, match="No label of 'circle' is left to train on"):
        split(labelled, share=0.95)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_the_key_tells_apart_what_changes_the_result() -> None:
    one = PretrainRecipe(model="r18_1x")
    usual = {"images": "i", "weights": "w", "classes": ("a", "b")}
    key = stage_key("pretrain", one, **usual)
    assert len(key) == 12
    same = [dataclasses.replace(one, workers=7, note="x"), dataclasses.replace(one, model=zoo.spec("r18_1x_sk0"))]
    assert {stage_key("pretrain", recipe, **usual) for recipe in same} == {key}
    others = [
        stage_key("distill", one, **usual),
        stage_key("pretrain", dataclasses.replace(one, temperature=0.2), **usual),
        stage_key("pretrain", dataclasses.replace(one, model="r34_1x"), **usual),
        *(stage_key("pretrain", one, **(usual | changed)) for changed in ({"images": "j"}, {"weights": None})),
        stage_key("pretrain", one, **(usual | {"classes": ("a", "c")})),
    ]
    assert len({key, *others}) == 7


def test_contents_are_read_once_and_again_when_they_change(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = data.from_folder(image_folder)
    for path in images.paths:
        os.utime(path, (1e9, 1e9))
    real, read = stage_cache.sha256_of, []
    monkeypatch.setattr(stage_cache, "sha256_of", lambda path: read.append(path) or real(path))

    def digest() -> str:
        read.clear()
        contents = Contents(image_folder, tmp_path)
        contents.read(images.paths)
        return contents.digest(images)

    first = digest()
    assert len(read) == 36
    assert digest() == first
    assert read == []
    content = bytearray(images.paths[5].read_bytes())
    content[-1] ^= 1  # of the same length
    images.paths[5].write_bytes(content)
    assert digest() != first
    assert read == [images.paths[5]]
    digest()
    assert read == [images.paths[5]]  # so young that it may change again within one tick of the clock
    (tmp_path / ".hashes.json").write_text("{")
    digest()
    assert len(read) == 36


# ---- budgets and estimates -------------------------------------------------------------------------------------------


def test_recipes_are_fitted_to_the_set() -> None:
    long = PretrainRecipe(batch_size=256, epochs=200, warmup_epochs=10)
    small = fitted(long, 500, least_steps=2000)
    assert (small.batch_size, small.epochs, small.warmup_epochs) == (250, 1000, 50)  # 2000 steps of two an epoch
    assert fitted(long, 100_000, least_steps=2000) == long
    few = FinetuneRecipe(batch_size=64, epochs=20)
    assert [fitted(few, n).batch_size for n in (5, 20, 50, 1000)] == [5, 16, 25, 64]
    assert fitted(few, 50, meant_for=200).epochs == 80
    assert fitted(few, 8000, meant_for=200).epochs == 0.5


def test_every_budget_has_its_stages() -> None:
    images = data.ImageSet(tuple(Path(f"{k}.png") for k in range(500)))
    few = data.ImageSet(images.paths[:50], np.arange(50) % 5, tuple("abcde"))
    for name, budget in BUDGETS.items():
        stages = budgets.plan(name, None, None, images, few, workers=3)
        by_name = {stage.name: stage for stage in stages}
        assert stages[0].recipe.model == budget.teacher
        assert by_name["distill"].recipe.model == by_name["supervised"].recipe.model == budget.student
        assert by_name["supervised"].recipe.from_scratch
        assert by_name["supervised"].recipe.image_size == by_name["distill"].recipe.image_size
        assert all(stage.recipe.workers == 3 for stage in stages)
        assert by_name["distill"].recipe.start_from_teacher is (name == "quick")
        assert by_name["distill"].source == ("self_distill" if name == "paper" else "finetune")
    other = budgets.plan("quick", "r34_1x", None, images, few, workers=0)
    assert not other[2].recipe.start_from_teacher  # of another shape
    assert (BUDGETS["standard"].teacher, recipe("standard_pretrain").image_size) == ("r50_1x_sk", 96)
    assert (BUDGETS["paper"].teacher, recipe("imagenet_pretrain").image_size) == ("r152_3x_sk", 224)


def test_multiply_adds_by_hand() -> None:
    count, size, width_in = 112 * 112 * 64 * 3 * 49, 56, 64  # the stem
    for group, width in enumerate((64, 128, 256, 512)):
        size = 56 >> group
        shortcut = size * size * width * width_in
        count += shortcut + size * size * width * 9 * (width_in + 3 * width)
        width_in = width
    assert estimate.multiply_adds(zoo.spec("r18_1x"), 224) == count


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"), (40, "40 seconds"), (100, "2 minutes"), (3600 * 9.2, "9 hours"), (86400 * 3, "3 days"),
        (86400 * 1234, "1200 days"),
    ],
)  # fmt: skip
def test_time_in_words(seconds: float, words: str) -> None:
    assert estimate.in_words(seconds) == words


@pytest.mark.parametrize(("image", "counts"), [(0.001, [4, 8, 16, 32]), (0.1, [4, 8]), (2.0, [4])])
def test_a_trial_grows_until_it_takes_long_enough(
    monkeypatch: pytest.MonkeyPatch, image: float, counts: list[int]
) -> None:
    """A step has a cost of its own, which few images do not show the share of."""
    tried = []

    def trial(model: object, image_size: int, device: object, precision: object, count: int) -> float:
        tried.append(count)
        return 0.01 + image * count

    monkeypatch.setattr(estimate, "_trial", trial)
    seconds = estimate.step_seconds.__wrapped__(TINY, 32, torch.device("cpu"), torch.float32)
    assert tried == counts
    assert seconds == pytest.approx(image + 0.01 / counts[-1])


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_one_run_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="in use by another run"), stage_cache.claimed(out):
        pass
    with stage_cache.claimed(out):  # free again
        pass


def test_a_full_disk_is_seen_before(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(runner.images)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match="what the stages keep takes"):
            runner.go()
    assert not (runner.out / "stages").exists()
    monkeypatch.setattr(runs, "pretrain", _stopped)
    with pytest.raises(InterruptedRunError):  # there is room now, and the same command goes on
        runner.go()


def _stopped(*arguments: object, **named: object) -> None:
    raise InterruptedRunError("Stopped after step 3 of 9; checkpoint: x. Go on with --resume.")


def test_a_student_beyond_one_file_is_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"r200_8x does not fit into one ONNX file"):
        runner.go(student=zoo.Spec(200, 8))
    assert not runner.out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has no class folders: give --labels"),
        (["--labels", "none.csv"], "none.csv: no such file"),
        (["--labels", "outside.csv"], "1 labelled images are not among the images"),
        (["--labels", "absent.csv"], "no such file below"),
        (["--labels", "lonely.csv"], "Too few labels to put any aside for: b"),
        (["--labels", "one.csv"], "only one class, a"),
        (["--labels", "good.csv", "--holdout", "1"], "holdout=1.0 is not between"),
        (["--labels", "good.csv", "--teacher", "r19_1x"], "Unknown model 'r19_1x'"),
        (["--labels", "good.csv", "--student", "r18_x"], "Did you mean"),
        (["--labels", "good.csv", "--device", "tpu"], "Unknown device"),
        (["--labels", "good.csv", "--budget", "free"], "free"),
        (["--labels", "good.csv", "--out", "flat/out"], "would become one of them"),
        (["--labels", "good.csv", "--out", "full"], "full holds something else (thesis.tex)"),
        (["--labels", "good.csv", "--out", "good.csv"], "is a file, not a folder"),
        (["--labels", "good.csv", "--out", "good.csv/below"], "cannot be written"),
        (["--images", "empty", "--labels", "good.csv"], "no images in it"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("flat", "full", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for k in range(6):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / "flat" / f"{k}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "beside.png")
    tables = {
        "good": "0.png,a\n1.png,a\n2.png,b\n3.png,b\n",
        "lonely": "0.png,a\n1.png,a\n2.png,b\n",
        "one": "0.png,a\n1.png,a\n",
        "absent": "9.png,a\n",
        "outside": "0.png,a\n1.png,a\n2.png,b\n../beside.png,b\n",
    }
    for name, rows in tables.items():
        (tmp_path / f"{name}.csv").write_text("path,label\n" + rows)
    for option, value in (("--images", "flat"), ("--out", "out")):
        if option not in arguments:
            arguments = [*arguments, option, value]
    with pytest.raises(SystemExit) as stop:
        simclr(["run", *arguments])
    shown = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_is_told_as_it_was_given(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    def pretended(images: data.ImageSet, labelled: data.ImageSet, **named: object) -> None:
        seen.update(named)
        raise ValueError("enough")

    monkeypatch.setattr(pipeline, "run", pretended)
    with pytest.raises(SystemExit):
        simclr(["run", "--images", str(runner.images), "--out", "a run", "--budget", "quick"])
    assert seen["command"] == f"simclr run --images {runner.images} --budget quick --out 'a run'"
