"""Whole runs of a tiny model: their directory, interruption and resumption, and what goes wrong politely."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import zoo
from training import checkpoint, data, evaluate, runs
from training.loop import DivergedError, InterruptedRunError, memory_format, pick_device, pick_precision
from training.recipes import DistillRecipe, FinetuneRecipe, PretrainRecipe

SMALL = {"log_every": 1, "model": TINY, "image_size": 48, "batch_size": 12, "workers": 0, "precision": "fp32"}
PRETRAIN = PretrainRecipe(**SMALL, epochs=3, warmup_epochs=1, temperature=0.5, weight_decay=1e-3)
FINETUNE = FinetuneRecipe(**SMALL, epochs=2)
DISTILL = DistillRecipe(**SMALL, epochs=2, warmup_epochs=0)


HEADLESS = zoo.create(TINY, num_classes=None, image_size=48, projector=False)


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(a: zoo.SimCLR, b: zoo.SimCLR) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_three_stages_leave_what_they_promise(image_folder: Path, tmp_path: Path) -> None:
    unlabeled, labelled = data.from_folder(image_folder), data.from_class_folders(image_folder)
    pretrained = runs.pretrain(PRETRAIN, unlabeled, out=tmp_path / "a", device="cpu")
    tuned = runs.finetune(FINETUNE, labelled, pretrained, out=tmp_path / "b", device="cpu")
    student = runs.distill(DISTILL, unlabeled, tuned, out=tmp_path / "c", device="cpu")
    linear = dataclasses.replace(FINETUNE, freeze_backbone=True, optimizer="nesterov", classify_from=0)
    probe = runs.finetune(linear, labelled, pretrained, out=tmp_path / "d", device="cpu")
    for out, model, steps in (("a", pretrained, 10), ("b", tuned, 7), ("c", student, 7), ("d", probe, 7)):
        folder = tmp_path / out
        assert {p.name for p in folder.iterdir()} == {
            "config.json", "survey.json", "views.png", "log.jsonl", "scores.jsonl", "curve.png", "checkpoints",
            "model.safetensors", ".lock",
        } | ({"best.safetensors"} if out == "c" else set())  # fmt: skip
        assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert entries(folder)[-1]["step"] == steps
        assert json.loads((folder / "config.json").read_text())["recipe"]["batch_size"] == 12
        assert equal(zoo.load_file(folder / "model.safetensors"), model)
    assert pretrained.num_classes is None
    assert tuned.classes == student.classes == ("circle", "square", "stripes")
    assert tuned.classify_from == 1
    assert student.projector is None
    assert equal_backbone(probe, pretrained)
    assert not equal_backbone(tuned, pretrained)
    assert student.facts["training_images"] == 36
    assert zoo.load_file(tmp_path / "c" / "best.safetensors").facts == student.facts
    again = runs.finetune(linear, labelled, student, out=tmp_path / "e", device="cpu")  # a student has no head
    assert again.projector is None
    assert equal_backbone(again, student)


def equal_backbone(a: zoo.SimCLR, b: zoo.SimCLR) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.backbone.state_dict().values(), b.backbone.state_dict().values()))  # noqa: B905


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_interrupted_and_resumed_equals_uninterrupted(
    stage: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = data.from_class_folders(image_folder)

    def go(out: str, *, resume: bool = False) -> zoo.SimCLR:
        if stage == "pretrain":
            return runs.pretrain(PRETRAIN, labelled, out=tmp_path / out, device="cpu", resume=resume)
        tuning = dataclasses.replace(FINETUNE, optimizer="nesterov", epochs=3, weight_decay=1e-3)
        model = zoo.create(TINY, num_classes=None, image_size=48, seed=1)
        return runs.finetune(tuning, labelled, model, out=tmp_path / out, device="cpu", resume=resume)

    whole = go("whole")
    stream = data.TrainingBatches.stream

    def interrupting(self: data.TrainingBatches, *, start_step: int = 0, total_steps: int):
        for step, batch in enumerate(stream(self, start_step=start_step, total_steps=total_steps), start_step):
            if step in (2, 6) and start_step != step:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(data.TrainingBatches, "stream", interrupting)
    for attempt in range(2):
        with pytest.raises(InterruptedRunError, match="checkpoint: "):
            go("cut", resume=attempt > 0)
    resumed = go("cut", resume=True)
    assert equal(whole, resumed)
    losses = {entry["step"]: entry["loss"] for entry in entries(tmp_path / "whole")}
    again = {entry["step"]: entry["loss"] for entry in entries(tmp_path / "cut")}
    assert len(losses) >= 10
    assert again == losses
    assert len(checkpoint.all_of(tmp_path / "cut" / "checkpoints")) == checkpoint.KEEP
    assert equal(go("cut", resume=True), whole)  # nothing is left to do


def test_the_best_model_is_kept_when_its_score_was_put_off(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped where a score is due, gone on with on a full disk, and gone on with again."""
    images = data.from_folder(image_folder)
    teacher = zoo.create(TINY, num_classes=3, image_size=48, projector=False, seed=1)
    stream, save = data.TrainingBatches.stream, runs.save_file

    def go(out: str) -> zoo.SimCLR:
        return runs.distill(DISTILL, images, teacher, out=tmp_path / out, device="cpu", resume=True)

    def interrupting(self: data.TrainingBatches, *, start_step: int = 0, total_steps: int):
        for step, batch in enumerate(stream(self, start_step=start_step, total_steps=total_steps), start_step):
            if step == total_steps - 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    def full(model: zoo.SimCLR, path: Path) -> None:
        raise OSError(28, "No space left on device")

    go("whole")
    with monkeypatch.context() as patched:
        patched.setattr(data.TrainingBatches, "stream", interrupting)
        with pytest.raises(InterruptedRunError, match="Stopped after step 7 of 7"):
            go("cut")
    assert not (tmp_path / "cut" / "best.safetensors").exists()
    with monkeypatch.context() as patched:
        patched.setattr(runs, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            go("cut")
    assert runs.save_file is save
    go("cut")
    best = [zoo.load_file(tmp_path / out / "best.safetensors") for out in ("whole", "cut")]
    assert equal(*best)


def test_a_folder_that_is_begun_anew_keeps_nothing_of_the_start_before(image_folder: Path, tmp_path: Path) -> None:
    out, short = tmp_path / "a", dataclasses.replace(PRETRAIN, epochs=0.4, warmup_epochs=0)
    out.mkdir()
    for name in ("config.json", "views.png", "best.safetensors", "encoder.safetensors"):
        (out / name).write_text("of a start with other settings that was killed before anything was kept")
    runs.pretrain(short, data.from_folder(image_folder), out=out, device="cpu", resume=True)
    assert (out / "views.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "best.safetensors").exists()
    assert not (out / "encoder.safetensors").exists()
    mine = tmp_path / "mine" / "encoder.safetensors"  # no run was begun where there is no config
    zoo.save_file(HEADLESS, mine)
    runs.pretrain(short, data.from_folder(image_folder), out=mine.parent, device="cpu")
    assert equal(zoo.load_file(mine), HEADLESS)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12 and later
def test_workers_change_nothing(image_folder: Path, tmp_path: Path) -> None:
    images = data.from_folder(image_folder)
    recipes = [dataclasses.replace(PRETRAIN, epochs=1, warmup_epochs=0, workers=n) for n in (0, 2)]
    first, second = (runs.pretrain(r, images, out=tmp_path / str(r.workers), device="cpu") for r in recipes)
    assert equal(first, second)


def test_a_run_is_not_overwritten_or_mixed_up(image_folder: Path, tmp_path: Path) -> None:
    images = data.from_folder(image_folder)
    short = dataclasses.replace(PRETRAIN, epochs=0.4, warmup_epochs=0)
    runs.pretrain(short, images, out=tmp_path / "a", device="cpu")
    with pytest.raises(ValueError, match="already holds a run"):
        runs.pretrain(short, images, out=tmp_path / "a", device="cpu")
    with pytest.raises(ValueError, match=r"other settings \(temperature\)"):
        runs.pretrain(dataclasses.replace(short, temperature=0.9), images, out=tmp_path / "a", resume=True)
    assert zoo.load_file(tmp_path / "a" / "model.safetensors").facts["recipe"]["precision"] == "fp32"
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        runs.pretrain(short, images, out=tmp_path / "a", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(image_folder: Path, tmp_path: Path) -> None:
    wild = dataclasses.replace(
        FINETUNE, learning_rate=1e30, scaling="none", optimizer="nesterov", classify_from=0, epochs=4
    )
    model = zoo.create(TINY, num_classes=None, image_size=48, seed=1)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        runs.finetune(wild, data.from_class_folders(image_folder), model, out=tmp_path / "a", device="cpu")


def test_nesterov_decays_every_kernel_once(image_folder: Path, tmp_path: Path) -> None:
    """As the code's add_weight_decay: a first step moves a kernel by -rate (1 + momentum) decay kernel more."""
    images, rate, decay = data.from_class_folders(image_folder), 0.5, 0.2
    step = dataclasses.replace(
        FINETUNE, optimizer="nesterov", from_scratch=True, classify_from=0, epochs=0.5, batch_size=36, scaling="none",
        learning_rate=rate,
    )  # fmt: skip

    def trained(name: str, **changes: float) -> zoo.SimCLR:
        return runs.finetune(dataclasses.replace(step, **changes), images, None, out=tmp_path / name, device="cpu")

    initial = zoo.create(TINY, num_classes=3, image_size=48, projector=False, seed=step.seed)
    plain, decayed = trained("plain", weight_decay=0.0), trained("decayed", weight_decay=decay)
    after = zip(initial.named_parameters(), plain.parameters(), decayed.parameters(), strict=True)
    for (name, before), without, with_decay in after:
        expected = rate * 1.9 * decay * before if before.ndim > 1 else torch.zeros_like(before)
        torch.testing.assert_close(without - with_decay, expected, atol=1e-6, rtol=1e-4, msg=name)

    trained("two steps", weight_decay=decay, epochs=1)
    second = entries(tmp_path / "two steps")[1]
    kernel, bias = (p.detach().square().sum().item() for p in decayed.classifier.parameters())
    assert bias > 5e-4 * kernel
    assert second["loss"] - second["cross_entropy"] == pytest.approx(decay / 2 * (kernel + bias), rel=5e-5)


def test_unreadable_images_are_named_and_counted(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (image_folder / "circle" / "00.png").write_bytes(b"broken")
    (image_folder / "square" / "00.png").write_bytes(b"")
    recipe = dataclasses.replace(PRETRAIN, epochs=1, warmup_epochs=0)
    runs.pretrain(recipe, data.from_folder(image_folder), out=tmp_path / "a", device="cpu")
    assert "2 unreadable images were skipped" in caplog.text
    assert str(image_folder / "circle" / "00.png") in caplog.text


def test_one_image_is_not_pretrained_on(image_folder: Path, tmp_path: Path) -> None:
    one = data.from_folder(image_folder).subset([0])
    with pytest.raises(ValueError, match="Of 1 images one can be read; pretraining tells images apart"):
        runs.pretrain(PRETRAIN, one, out=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a" / "log.jsonl").exists()


def test_an_epoch_is_as_many_images_as_there_are(image_folder: Path, tmp_path: Path) -> None:
    """Also where batches do not divide them: 23 images in batches of 12 are one batch, and not an epoch."""
    images = data.from_folder(image_folder).subset(range(23))
    runs.pretrain(PRETRAIN, images, out=tmp_path / "a", device="cpu")
    told = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in told] == pytest.approx([step * 12 / 23 for step in range(1, 7)])


def test_what_auto_came_out_as_is_kept(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun on one machine and gone on with on another, as clouds give them."""
    images, asked = data.from_folder(image_folder), []

    def found(name: str, device: torch.device) -> torch.dtype:
        asked.append(name)
        return {"auto": torch.bfloat16, "fp32": torch.float32, "bf16": torch.bfloat16}[name]

    short = dataclasses.replace(PRETRAIN, epochs=0.4, warmup_epochs=0, precision="auto")
    monkeypatch.setattr(runs, "pick_precision", lambda name, device: torch.float32)
    first = runs.pretrain(short, images, out=tmp_path / "a", device="cpu")
    monkeypatch.setattr(runs, "pick_precision", found)
    assert equal(runs.pretrain(short, images, out=tmp_path / "a", device="cpu", resume=True), first)
    with pytest.raises(ValueError, match=r"other settings \(precision\)"):
        runs.pretrain(dataclasses.replace(short, precision="bf16"), images, out=tmp_path / "a", resume=True)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    (tmp_path / "a" / "model.safetensors").unlink()  # as if stopped before anything was kept: begun anew
    monkeypatch.setattr(runs, "pick_precision", lambda name, device: found(name, device) and torch.float32)
    runs.pretrain(short, images, out=tmp_path / "a", device="cpu", resume=True)
    assert asked == ["fp32", "bf16", "auto"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda i, m: (FINETUNE, dataclasses.replace(i, labels=None), m), "None of the 36 images has a label"),
        (lambda i, m: (FINETUNE, i, None), "pretrained model"),
        (lambda i, m: (FINETUNE, i, HEADLESS), "no projection head, .* layer 1 of it .* give --classify-from 0"),
        (lambda i, m: (dataclasses.replace(FINETUNE, image_size=32), i, m), "does not fit"),
        (lambda i, m: (FINETUNE, data.ImageSet(i.paths, np.zeros(36, np.int64), ("one",)), m), "at least 2"),
        (
            lambda i, m: (FINETUNE, data.ImageSet(i.paths, np.arange(36) % 4 - 1, i.classes), m),
            "9 images have no label",
        ),
    ],
)
def test_fine_tuning_refuses_what_cannot_work(make: object, said: str, image_folder: Path, tmp_path: Path) -> None:
    model = zoo.create(TINY, num_classes=None, image_size=48)
    recipe, images, start = make(data.from_class_folders(image_folder), model)  # type: ignore[operator]
    with pytest.raises(ValueError, match=said):
        runs.finetune(recipe, images, start, out=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a" / "config.json").exists()


def test_very_narrow_models_are_not_trained_channels_last() -> None:
    assert memory_format(zoo.create(TINY)) is torch.contiguous_format
    assert memory_format(zoo.create(zoo.Spec(18, 0.25))) is torch.channels_last
    assert memory_format(zoo.create(zoo.Spec(50, 1 / 16, True))) is torch.channels_last  # SK: no strided 1x1


def test_devices_and_precision() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_precision("fp32", cpu) is torch.float32
    assert pick_precision("bf16", cpu) is torch.bfloat16
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="Unknown precision 'fp8'"):
        pick_precision("fp8", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available"):
            pick_device("cuda")


def test_accuracy_and_interval_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [1, 0, 0, 0, 0, 9]])
    found = evaluate.score(logits, np.array([0, 0, 5]))
    assert (found.top1, found.top5, found.images) == (2 / 3, 2 / 3, 3)
    low, high = evaluate.Score(0.5, 1.0, 100).interval
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson, from a table


def test_knn_equals_nested_loops() -> None:
    rng = np.random.default_rng(0)
    bank, queries, labels = rng.standard_normal((30, 4)), rng.standard_normal((5, 4)), rng.integers(0, 3, 30)
    ours = evaluate.knn(torch.tensor(bank), labels, torch.tensor(queries), classes=3, k=7, temperature=0.2, chunk=2)
    for row, query in enumerate(queries):
        cosines = [float(b @ query / np.linalg.norm(b) / np.linalg.norm(query)) for b in bank]
        expected = np.zeros(3)
        for index in sorted(range(30), key=lambda i: -cosines[i])[:7]:
            expected[labels[index]] += np.exp((cosines[index] - 1) / 0.2)
        np.testing.assert_allclose(ours[row], expected, rtol=1e-9)


def test_no_image_votes_on_itself(tiny_model: zoo.SimCLR, image_folder: Path) -> None:
    images = data.from_class_folders(image_folder)
    features, _, _ = evaluate.embed(tiny_model, images)
    some = [20, 3, 30]
    others = [[place for place in range(36) if place != image] for image in some]
    alone = [
        evaluate.knn(features[rest], images.labels[rest], features[[image]], classes=3, k=5)
        for image, rest in zip(some, others, strict=True)
    ]
    own = torch.tensor([20, -1, 30])
    found = evaluate.knn(features, images.labels, features[some], classes=3, k=5, own=own, chunk=2)
    torch.testing.assert_close(found[[0, 2]], torch.cat([alone[0], alone[2]]))
    assert found[1].max() >= 1  # its own vote
    right = np.mean([row.argmax().item() == images.labels[image] for row, image in zip(alone, some, strict=True)])
    linked = image_folder.parent / "linked"
    linked.symlink_to(image_folder)
    asked = data.from_class_folders(linked).subset(some)
    assert evaluate.knn_score(tiny_model, images, asked, k=5).top1 == pytest.approx(right)


def test_accuracy_of_a_model_on_files(tiny_model: zoo.SimCLR, image_folder: Path) -> None:
    images = data.from_class_folders(image_folder)
    found = evaluate.accuracy(tiny_model, images)
    with torch.no_grad():
        answers = [
            tiny_model(torch.from_numpy(zoo.preprocess(path, 48))[None]).logits.argmax().item() for path in images.paths
        ]
    assert found.top1 == pytest.approx(np.mean(np.array(answers) == images.labels))
    tiny_model.classes = ()
    assert evaluate.accuracy(tiny_model, images).top1 == found.top1
    with pytest.raises(ValueError, match=r"tells 3 classes apart and does not name them; the labels have 2\."):
        evaluate.accuracy(tiny_model, data.ImageSet(images.paths, images.labels % 2, ("a", "b")))
    tiny_model.classes = ("a", "b", "c")
    with pytest.raises(ValueError, match="none of the 3 classes: 'circle', 'square', 'stripes'"):
        evaluate.accuracy(tiny_model, images)
