"""What runs do beyond the plain case: memory, averages, validation, cached teachers, parts, and refusals."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from filelock import FileLock
from test_runs import DISTILL, FINETUNE, PRETRAIN, entries, equal

import zoo
from training import checkpoint, data, runs, scoring
from training.recipes import DistillRecipe, PretrainRecipe
from training.teachers import open_teacher


def scores(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def start(image_size: int = 48) -> zoo.SimCLR:
    return zoo.create(TINY, num_classes=None, image_size=image_size, seed=1)


def test_memory_mode_is_resumed_with_its_memory(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = data.from_folder(image_folder)
    recipe = dataclasses.replace(PRETRAIN, memory=50, memory_decay=0.9, micro_batch=5, ema_decay=0.9)
    whole = runs.pretrain(recipe, images, out=tmp_path / "whole", device="cpu")
    stream = data.TrainingBatches.stream

    def cut(self: data.TrainingBatches, *, start_step: int = 0, total_steps: int):  # type: ignore[no-untyped-def]
        for step, batch in enumerate(stream(self, start_step=start_step, total_steps=total_steps), start_step):
            if step == 6 and start_step == 0:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(data.TrainingBatches, "stream", cut)
    often = dataclasses.replace(recipe, save_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        runs.pretrain(often, images, out=tmp_path / "cut", device="cpu")
    resumed = runs.pretrain(often, images, out=tmp_path / "cut", device="cpu", resume=True)
    assert equal(whole, resumed)
    assert [e["loss"] for e in entries(tmp_path / "whole")] == [e["loss"] for e in entries(tmp_path / "cut")]
    encoders = [zoo.load_file(tmp_path / name / runs.ENCODER_FILE) for name in ("whole", "cut")]
    assert equal(*encoders)
    assert not equal(encoders[0], whole)
    last = checkpoint.all_of(tmp_path / "whole" / "checkpoints")[-1]
    _, tensors = checkpoint.read(last)
    assert tensors["memory/added"].item() == 2 * 12 * 10
    assert {name.split("/")[0] for name in tensors} == {"model", "average", "encoder", "memory", "optimizer"}


def test_the_moving_average_is_the_result(image_folder: Path, tmp_path: Path) -> None:
    labelled = data.from_class_folders(image_folder)
    plain = runs.finetune(FINETUNE, labelled, start(), out=tmp_path / "a", device="cpu")
    averaged = runs.finetune(
        dataclasses.replace(FINETUNE, ema_decay=0.9), labelled, start(), out=tmp_path / "b", device="cpu"
    )
    assert averaged.classes == plain.classes
    _, tensors = checkpoint.read(checkpoint.all_of(tmp_path / "b" / "checkpoints")[-1])
    for name, value in averaged.state_dict().items():
        assert torch.equal(value, tensors[f"average/model.{name}"])
    for name, value in plain.state_dict().items():  # the weights themselves went the same way
        assert torch.equal(value, tensors[f"model/{name}"])
    assert not equal(plain, averaged)


def test_the_best_on_validation_images_is_kept(image_folder: Path, tmp_path: Path) -> None:
    labelled = data.from_class_folders(image_folder)
    train, held_out = labelled.subset(range(0, 36, 2)), labelled.subset(range(1, 36, 2))
    recipe = dataclasses.replace(FINETUNE, epochs=6, batch_size=6, score_every=1, learning_rate=0.1)
    last = runs.finetune(recipe, train, start(), out=tmp_path / "a", device="cpu", validation=held_out)
    told = scores(tmp_path / "a")
    assert [entry["epoch"] for entry in told][:6] == [1, 2, 3, 4, 5, 6]
    best = zoo.load_file(tmp_path / "a" / runs.BEST_FILE)
    found = {name: runs.evaluate.accuracy(model, held_out).top1 for name, model in (("best", best), ("last", last))}
    assert found["best"] == max(entry["top1"] for entry in told)
    assert found["last"] == told[-1]["top1"]
    both = labelled.subset([*range(1, 36, 2), 0])
    with pytest.raises(ValueError, match="1 validation images are also trained on"):
        runs.finetune(recipe, train, start(), out=tmp_path / "b", device="cpu", validation=both)
    other = data.ImageSet(held_out.paths, held_out.labels, ("a", "b", "c"))
    with pytest.raises(ValueError, match="none of the 3 classes: 'a', 'b', 'c'"):
        runs.finetune(recipe, train, start(), out=tmp_path / "b", device="cpu", validation=other)


def test_pretraining_is_scored_by_nearest_neighbours(image_folder: Path, tmp_path: Path) -> None:
    labelled = data.from_class_folders(image_folder)
    recipe = dataclasses.replace(PRETRAIN, score_every=1)
    model = runs.pretrain(recipe, labelled, out=tmp_path / "a", device="cpu", validation=labelled)
    told = scores(tmp_path / "a")
    features, _, kept = runs.evaluate.embed(model, labelled)
    unit = torch.nn.functional.normalize(features, dim=1)
    hits = 0
    for i in range(36):
        cosines = [(float(unit[i] @ unit[j]), j) for j in range(36) if j != i]
        votes = np.zeros(3)
        for cosine, j in sorted(cosines, reverse=True)[:20]:
            votes[labelled.labels[kept[j]]] += np.exp((cosine - 1) / 0.1)
        hits += votes.argmax() == labelled.labels[kept[i]]
    assert told[-1]["knn"] == pytest.approx(hits / 36)
    assert 1 <= told[-1]["feature_rank"] <= 32
    assert (tmp_path / "a" / runs.BEST_FILE).exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_looked_at_on_the_way_is_of_all_classes(
    labelled: bool, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class folders lie one behind the other: the first images may all be of one class."""
    images, seen = data.from_class_folders(image_folder), []
    real = runs.evaluate.embed

    def looked_at(model: zoo.SimCLR, shown: data.ImageSet, **named: object) -> object:
        seen.append({path.parent.name for path in shown.paths})
        return real(model, shown, **named)

    monkeypatch.setattr(runs.evaluate, "embed", looked_at)
    monkeypatch.setattr(runs, "_SCORED", 9)
    monkeypatch.setattr(runs.evaluate, "_LOOKED_AT", 9)
    runs.pretrain(PRETRAIN, images, out=tmp_path / "a", device="cpu", validation=images if labelled else None)
    assert seen
    assert all(names == {"circle", "square", "stripes"} for names in seen)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_students_learn_from_answers_given_beforehand(precision: str, image_folder: Path, tmp_path: Path) -> None:
    """The same crops and, in float32, the same steps as with the teacher beside it, up to float16's rounding."""
    images = data.from_folder(image_folder)
    teacher = zoo.create(TINY, num_classes=3, image_size=48, seed=5).eval()
    torch.nn.init.normal_(teacher.classifier.weight, generator=torch.Generator().manual_seed(0))
    zoo.save_file(teacher, tmp_path / "teacher.safetensors")
    live = open_teacher(tmp_path / "teacher.safetensors")
    scoring.score_teacher(live, images, tmp_path / "answers", crops=2, seed=3)
    cached = open_teacher(tmp_path / "answers")
    recipe = dataclasses.replace(DISTILL, precision=precision, epochs=3)
    student = runs.distill(recipe, images, cached, out=tmp_path / "a", device="cpu")
    assert student.num_classes == 3
    live.crops = cached.crops
    runs.distill(recipe, images, live, out=tmp_path / "live", device="cpu")
    losses = [[entry["loss"] for entry in entries(tmp_path / folder)] for folder in ("a", "live")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "fp32" else 0.05)
    assert {entry["step"] for entry in entries(tmp_path / "a")} == set(range(1, 11))
    wrong = dataclasses.replace(recipe, image_size=40)
    with pytest.raises(ValueError, match="crops of 48 pixels, the student's are of 40"):
        runs.distill(wrong, images, cached, out=tmp_path / "b", device="cpu")
    with pytest.raises(ValueError, match="36 images; there are 30"):
        runs.distill(recipe, images.subset(range(30)), cached, out=tmp_path / "b", device="cpu")
    with pytest.raises(ValueError, match=r"needs a \.safetensors teacher"):
        runs.distill(dataclasses.replace(recipe, start_from_teacher=True), images, cached, out=tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_tensorboard_is_optional(image_folder: Path, tmp_path: Path) -> None:
    images = data.from_folder(image_folder)
    recipe = dataclasses.replace(PRETRAIN, epochs=0.5, warmup_epochs=0, tensorboard=True)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ValueError, match="pip install tensorboard"):
            runs.pretrain(recipe, images, out=tmp_path / "a", device="cpu")
    else:
        runs.pretrain(recipe, images, out=tmp_path / "a", device="cpu")
        assert next((tmp_path / "a" / "tensorboard").iterdir()).stat().st_size > 0


def test_a_run_that_learns_nothing_is_told_so(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = dataclasses.replace(PRETRAIN, learning_rate=1e-9, epochs=25, warmup_epochs=0, log_every=5)
    runs.pretrain(recipe, data.from_folder(image_folder), out=tmp_path / "a", device="cpu")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("learning rate" in line for line in warned), warned  # before it began
    kinds = ["".join(c for c in line if not c.isdigit()) for line in warned]
    assert len(set(kinds)) == len(kinds)  # each is said once, though it holds at every entry
    told = runs.health.expected_nt_xent(12, 0.5)
    loss = entries(tmp_path / "a")[-1]["loss"]
    assert loss > 0.9 * told.chance
    assert any(f"{told.chance:.2f}" in line or "collapse" in line.lower() for line in warned), warned


def test_crops_repeat_and_are_named(image_folder: Path) -> None:
    images = data.from_folder(image_folder)
    batches = data.TrainingBatches(
        images,
        batch_size=12,
        augmentation=runs.Augmentation(24, color=False, blur=False),
        views=1,
        seed=1,
        workers=0,
        crops=data.Crops(count=2, seed=9, image_size=24),
    )
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for step, batch in enumerate(batches.stream(total_steps=12)):
        for view, index, crop in zip(batch["view0"], batch["index"].tolist(), batch["crop"].tolist(), strict=True):
            assert crop == step // 3 % 2
            first = seen.setdefault((index, crop), view)
            assert torch.equal(first, view)
    assert len(seen) == 72
    assert not torch.equal(seen[0, 0], seen[0, 1])


def test_processes_share_every_batch(image_folder: Path) -> None:
    images = data.from_folder(image_folder)
    make = {"batch_size": 10, "augmentation": runs.Augmentation(24), "views": 2, "seed": 1, "workers": 0}
    whole = list(data.TrainingBatches(images, **make).stream(total_steps=4))
    parts = [list(data.TrainingBatches(images, **make, process=(k, 3)).stream(total_steps=4)) for k in range(3)]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[step][name] for part in parts]), value)
    with pytest.raises(ValueError, match="fewer than one for each of 11 processes"):
        data.TrainingBatches(images, **make, process=(0, 11))


def test_only_one_process_trains_in_a_folder(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / ".lock"), pytest.raises(ValueError, match="Another process trains in"):
        runs.pretrain(PRETRAIN, data.from_folder(image_folder), out=tmp_path / "a", device="cpu")


def test_weights_that_are_no_numbers_are_not_kept(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is finite, but the step overflows: the checkpoint before stays the last."""
    wild = dataclasses.replace(FINETUNE, epochs=4, save_every=0.0, log_every=1000)
    real, calls = runs.Step.__call__, iter(range(100))

    def overflowing(step: runs.Step, batch: dict) -> dict:
        metrics = real(step, batch)
        if next(calls) == 2:
            with torch.no_grad():
                step.stage.model.classifier.weight[0, 0] = torch.inf
        return metrics

    monkeypatch.setattr(runs.Step, "__call__", overflowing)
    with pytest.raises(ValueError, match=r"After step 3, .*no finite number.*lower the learning rate"):
        runs.finetune(wild, data.from_class_folders(image_folder), start(), out=tmp_path / "a", device="cpu")
    (last,) = checkpoint.all_of(tmp_path / "a" / "checkpoints")[-1:]
    _, tensors = checkpoint.read(last)
    assert last.name == "step_00000002"
    assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PretrainRecipe(micro_batch=5000), "micro_batch=5000 is more than batch_size=4096"),
        (lambda: PretrainRecipe(batch_norm="global"), "needs a micro_batch"),
        (lambda: PretrainRecipe(memory=-1), "memory=-1 is negative"),
        (lambda: PretrainRecipe(memory_decay=1.0), r"not in \[0, 1\)"),
        (lambda: DistillRecipe(ema_decay=1.0), "not below 1"),
        (lambda: DistillRecipe(clip_norm=-1.0), "clip_norm=-1.0 is negative"),
        (lambda: DistillRecipe(learning_rate=float("nan")), "learning_rate=nan is no finite number"),
        (lambda: DistillRecipe(optimizer="nesterov", momentum=0.0), "needs a momentum"),
        (lambda: DistillRecipe(alpha=1.5), "alpha=1.5 is not between"),
        (lambda: PretrainRecipe(temperature=0.0), "temperature=0.0 is not positive"),
    ],
)
def test_impossible_combinations_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_a_folder_where_nothing_was_kept_is_begun_anew(image_folder: Path, tmp_path: Path) -> None:
    broken = dataclasses.replace(PRETRAIN, precision="fp32", tensorboard=False)
    images = data.from_folder(image_folder)
    for path in images.paths:
        path.rename(path.with_suffix(".kept"))
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the 36 images can be read"):
        runs.pretrain(broken, images, out=tmp_path / "a", device="cpu")
    for path in images.paths:
        path.with_suffix(".kept").replace(path)
    short = dataclasses.replace(PRETRAIN, epochs=0.5, warmup_epochs=0)  # other settings, even
    runs.pretrain(short, images, out=tmp_path / "a", device="cpu")
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_other_images_of_the_same_names_are_another_run(image_folder: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(PRETRAIN, epochs=0.5, warmup_epochs=0)
    images = data.from_folder(image_folder)
    runs.pretrain(short, images, out=tmp_path / "a", device="cpu")
    (image_folder / "circle" / "00.png").write_bytes((image_folder / "square" / "00.png").read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"other settings \(image_list\)"):
        runs.pretrain(short, images, out=tmp_path / "a", device="cpu", resume=True)


def test_what_small_models_cannot_be_evaluated_on_is_refused_first(image_folder: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(PRETRAIN, image_size=32)
    with pytest.raises(ValueError, match="exactly that size; these have sides of 60 to 72"):
        runs.pretrain(small, data.from_folder(image_folder), out=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a" / "log.jsonl").exists()


def test_a_file_as_run_directory_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        runs.pretrain(PRETRAIN, data.from_folder(image_folder), out=tmp_path / "a", device="cpu")


def test_the_best_is_kept_when_validation_images_come_later(image_folder: Path, tmp_path: Path) -> None:
    labelled = data.from_class_folders(image_folder)
    recipe = dataclasses.replace(PRETRAIN, score_every=1, save_every=0.0)
    stream = data.TrainingBatches.stream

    def cut(self: data.TrainingBatches, *, start_step: int = 0, total_steps: int):  # type: ignore[no-untyped-def]
        for step, batch in enumerate(stream(self, start_step=start_step, total_steps=total_steps), start_step):
            if step == 6:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data.TrainingBatches, "stream", cut)
        with pytest.raises(KeyboardInterrupt):
            runs.pretrain(recipe, labelled, out=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a" / runs.BEST_FILE).exists()
    runs.pretrain(recipe, labelled, out=tmp_path / "a", device="cpu", validation=labelled, resume=True)
    assert (tmp_path / "a" / runs.BEST_FILE).exists()
