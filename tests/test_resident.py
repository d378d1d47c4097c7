"""Resident images: the batches and views of streamed ones; what is refused before decoding; steps without a wait."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from test_runs import PRETRAIN

import zoo
from training import data, resident, runs
from training.augment import Augmentation
from training.data import Crops
from training.lars import LARS
from training.stages import Finetune, Pretrain, Stage
from training.step import Step

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> data.ImageSet:
    """Eleven labelled images of several shapes, of which one cannot be read."""
    rng = np.random.default_rng(0)
    for k in range(11):
        folder = tmp_path / "set" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + k, 44 - 2 * k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    (tmp_path / "set" / "a" / "04.png").write_bytes(b"no image")
    return data.from_class_folders(tmp_path / "set")


def _both(images: data.ImageSet, size: int = 24, **options: object) -> tuple[list[dict], list[dict]]:
    common = {"batch_size": 4, "views": 2, "seed": 3, "workers": 0} | options
    streamed = data.TrainingBatches(images, augmentation=Augmentation(size, exact=True), **common)
    held = resident.ResidentBatches(images, augmentation=Augmentation(size), device=CPU, **common)
    return [list(batches.stream(total_steps=5)) for batches in (streamed, held)]


def test_batches_are_those_of_the_stream(images: data.ImageSet) -> None:
    streamed, held = _both(images)
    assert sorted({len(batch["index"]) for batch in held}) == [3, 4]  # one image is left out
    for theirs, ours in zip(streamed, held, strict=True):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5)


def test_each_process_makes_its_part(images: data.ImageSet) -> None:
    streamed, held = _both(images, process=(1, 3))
    assert [b["index"].tolist() for b in held] == [b["index"].tolist() for b in streamed]


def test_a_resumed_stream_is_the_rest_of_it(images: data.ImageSet) -> None:
    told: list[str] = []
    make = {"batch_size": 4, "augmentation": Augmentation(24), "views": 1, "seed": 3, "device": CPU, "workers": 0}
    batches = resident.ResidentBatches(images, **make, on_skip=lambda path, reason: told.append(path.name))
    again = resident.ResidentBatches(images, **make, on_skip=lambda path, reason: None)
    whole = list(batches.stream(total_steps=6))
    rest = list(again.stream(start_step=4, total_steps=6))
    assert told == ["04.png"]
    assert [path.name for path in batches.skipped] == ["04.png"]
    for one, other in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_workers_decode_the_same(images: data.ImageSet) -> None:
    alone, helped = (resident.load(images, image_size=24, device=CPU, workers=n) for n in (0, 1))
    assert torch.equal(alone.pixels.planes, helped.pixels.planes)
    assert alone.skipped == helped.skipped


def test_images_are_kept_as_they_are_up_to_twice_the_side(images: data.ImageSet) -> None:
    held = resident.load(images, image_size=24, device=CPU, workers=0)
    place = 7
    pixels = np.asarray(Image.open(images.paths[place]))
    start, (height, width) = held.pixels.starts[place], held.shapes[place]
    kept = held.pixels.planes[:, start : start + height * width].view(3, height, width)
    assert np.array_equal(kept.permute(1, 2, 0).numpy(), pixels)
    large = np.full((90, 61, 3), 7, dtype=np.uint8)
    assert resident.reduced(large, 15).shape == (44, 30, 3)  # 90 * 30 / 61 = 44.3
    assert (resident.reduced(large, 15) == 7).all()
    assert resident.reduced(large, 31) is large
    assert resident.kept_bytes(images, 24) == held.pixels.planes.numel()


def test_what_does_not_fit_is_refused_before_it_is_decoded(
    images: data.ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "free_memory", lambda device: 20_000.0)
    monkeypatch.setattr(resident, "read_image", lambda path: pytest.fail("decoded"))
    with pytest.raises(
        ValueError, match=r"^The 11 images take .* GB are free on cpu. Give --data stream, or a sm"
    ) as e:
        resident.load(images, image_size=24, device=CPU, workers=0)
    assert "\n" not in str(e.value)


def test_auto_is_resident_on_a_gpu_with_four_times_the_room(
    images: data.ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(wanted: str, device: str, crops: Crops | None = None) -> str:
        return resident.choose(wanted, images, image_size=24, device=torch.device(device), crops=crops)

    needed = resident.kept_bytes(images, 24)
    monkeypatch.setattr(resident, "free_memory", lambda device: 4 * needed)
    assert [chosen("auto", "cuda"), chosen("auto", "cpu"), chosen("stream", "cuda")] == ["resident", "stream", "stream"]
    assert chosen("resident", "cpu") == "resident"
    monkeypatch.setattr(resident, "free_memory", lambda device: 4 * needed - 8)
    assert chosen("auto", "cuda") == "stream"
    crops = Crops(2, 0, 24)
    assert chosen("auto", "cuda", crops) == "stream"
    with pytest.raises(ValueError, match="scored are for streamed images: give --data stream"):
        chosen("resident", "cpu", crops)


def test_a_set_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"no image")
    batches = resident.ResidentBatches(
        data.from_folder(tmp_path),
        batch_size=3,
        augmentation=Augmentation(24),
        views=1,
        seed=0,
        device=CPU,
        workers=0,
        on_skip=lambda path, reason: None,
    )
    with pytest.raises(ValueError, match="None of the 3 images of a batch can be read"):
        next(iter(batches.stream(total_steps=1)))


def test_a_run_on_resident_images_is_not_mixed_with_another(image_folder: Path, tmp_path: Path) -> None:
    images = data.from_folder(image_folder).subset(range(0, 36, 3))
    recipe = dataclasses.replace(PRETRAIN, epochs=1, warmup_epochs=0, data="resident")
    runs.pretrain(recipe, images, out=tmp_path, device="cpu")
    assert json.loads((tmp_path / "config.json").read_text())["same_result"]["data"] == "resident"
    finished = runs.pretrain(dataclasses.replace(recipe, data="auto"), images, out=tmp_path, device="cpu", resume=True)
    assert finished.image_size == recipe.image_size  # auto, which here would stream, goes on as the run was begun
    streamed = dataclasses.replace(recipe, data="stream")
    with pytest.raises(ValueError, match=r"begun with other settings \(data\)"):
        runs.pretrain(streamed, images, out=tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize(
    "stage", [Pretrain, partial(Pretrain, memory=20), Finetune], ids=["pretrain", "memory", "finetune"]
)
def test_the_host_waits_for_no_value_within_a_step(stage: Callable[[zoo.SimCLR], Stage]) -> None:
    """On a device that keeps shapes alone every value that the host asks for raises."""
    model = zoo.create(TINY, num_classes=3, image_size=48, seed=0)
    there = torch.device("meta")
    learner = stage(model).train().to(there)
    optimizer = LARS(learner.parameter_groups(), lr=0.1, weight_decay=1e-4)
    step = Step(learner, optimizer, device=there, layout=torch.channels_last, clip_norm=1.0)
    batch = {"index": torch.arange(6), "label": torch.arange(6) % 3}
    batch |= {f"view{k}": torch.empty(6, 3, 48, 48, device=there) for k in range(2)}
    assert [step(batch)["loss"].device for _ in range(2)] == [there, there]
