"""Teachers: live, ONNX and from disk give the same answers, on the same crops; scoring goes on after a kill."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from app.cli import simclr
from export import to_onnx
from training import answers, data, scoring
from training.answers import compress, kept_classes, rebuild
from training.augment import Augmentation
from training.losses import distillation_loss
from training.teachers import CachedTeacher, ModelTeacher, OnnxTeacher, check_classes, open_teacher
from zoo.console import run_command
from zoo.transforms import read_image

BUNDLED = Path(zoo.__file__).parents[1] / "export/bundled/r18_1x.imagenette_distilled.onnx"
SMALL = {"crops": 2, "seed": 7, "shard_images": 16}  # 36 images: shards of 16, 16 and 4


class Watched:
    """A teacher that keeps the views it was shown, and fails at a given call."""

    def __init__(self, teacher: ModelTeacher, *, fail_at: int = -1) -> None:
        self.teacher, self.fail_at, self.views = teacher, fail_at, []
        self.num_classes, self.classes, self.image_size = teacher.num_classes, teacher.classes, teacher.image_size
        self.fingerprint, self.crops = teacher.fingerprint, None

    def to(self, device: torch.device) -> "Watched":
        return self

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        if len(self.views) == self.fail_at:
            raise KeyboardInterrupt
        self.views.append(batch["view0"])
        return self.teacher(batch)


@pytest.fixture
def images(image_folder: Path) -> data.ImageSet:
    return data.from_folder(image_folder)


@pytest.fixture
def teacher(tiny_model: zoo.SimCLR) -> ModelTeacher:
    return ModelTeacher(tiny_model)


def crops_of(images: data.ImageSet, places: list[int], crop: list[int], crops: data.Crops) -> Tensor:
    """The student's side: each image alone, with the number of its crop as epoch."""
    augmentation = Augmentation(crops.image_size, color=False, blur=False)
    views = [
        augmentation([read_image(images.paths[i])], indices=[i], epoch=c, view=0, seed=crops.seed)
        for i, c in zip(places, crop, strict=True)
    ]
    return torch.cat(views)


# ---- live ------------------------------------------------------------------------------------------------------------


def test_model_is_frozen_and_takes_other_sizes(tiny_model: zoo.SimCLR) -> None:
    teacher = ModelTeacher(tiny_model.train()).to("cpu")
    assert not tiny_model.training
    assert not any(p.requires_grad for p in tiny_model.parameters())
    before = teacher.fingerprint
    for size in (48, 80):
        views = torch.rand(3, 3, size, size)
        found = teacher({"view0": views.requires_grad_()})
        torch.testing.assert_close(found, tiny_model(views).logits.detach(), rtol=0, atol=0)
        assert found.dtype == torch.float32
        assert not found.requires_grad
    assert ModelTeacher(tiny_model).fingerprint == before
    with torch.no_grad():
        tiny_model.classifier.bias[0] += 1
    assert ModelTeacher(tiny_model).fingerprint != before


@pytest.mark.parametrize(("ours", "views"), [(48, 32), (32, 48), (32, 24)])
def test_another_stem_is_refused(ours: int, views: int) -> None:
    model = zoo.create(zoo.Spec(depth=18, width=1 / 16), num_classes=3, image_size=ours, seed=0)
    with pytest.raises(ValueError, match=f"for {ours} pixels, the images have {views}"):
        ModelTeacher(model)({"view0": torch.zeros(1, 3, views, views)})


def test_onnx_equals_model(teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    to_onnx(teacher.model, path)
    other = open_teacher(path).to("cpu")
    assert isinstance(other, OnnxTeacher)
    assert (other.num_classes, other.classes, other.image_size, other.crops) == (3, teacher.classes, 48, None)
    views = torch.rand(70, 3, 48, 48, generator=torch.Generator().manual_seed(0))  # more than one chunk
    torch.testing.assert_close(other({"view0": views}), teacher({"view0": views}), rtol=1e-4, atol=1e-4)
    (some, ours), (same, theirs) = (t.evaluation_logits(images, 20) for t in (teacher, other))
    assert some.paths == same.paths == tuple(images.paths[i * len(images) // 20] for i in range(20))
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    with pytest.raises(ValueError, match="takes images of 48 pixels, the student's have 56"):
        other({"view0": torch.zeros(1, 3, 56, 56)})


def test_evaluation_logits_are_the_models(teacher: ModelTeacher, images: data.ImageSet) -> None:
    images.paths[10].write_bytes(b"no image")
    some, found = teacher.evaluation_logits(images, 7)
    assert some.paths == tuple(images.paths[i] for i in (0, 5, 15, 20, 25, 30))
    with torch.no_grad():
        for path, answer in zip(some.paths, found, strict=True):
            expected = teacher.model(torch.from_numpy(zoo.preprocess(path, 48))[None]).logits[0]
            torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


# ---- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_all_classes_kept_to_half_precision(scale: float) -> None:
    logits = scale * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    kept = compress(logits, 10)
    assert list(kept) == ["logits"]
    assert kept["logits"].isfinite().all()
    relative = (logits - logits.amax(1, keepdim=True)).clamp(min=-65504)
    # half a unit in the last place of 11 bits, and of the least subnormal
    assert ((kept["logits"].float() - relative).abs() <= relative.abs() * 2**-11 + 2**-25).all()
    assert (kept["logits"].float().argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize(("spread", "top_k"), [(2.0, 64), (4.0, 64), (4.0, 8), (0.0, 64), (1e6, 64)])
def test_error_of_the_best_logits_alone(spread: float, top_k: int) -> None:
    """1,000 classes, normal logits: at t = 1 the error is bounded by the others' probability, at 0.1 there is none."""
    generator = torch.Generator().manual_seed(1)
    teacher = spread * torch.randn(64, 1000, generator=generator)
    student = 2.0 * torch.randn(64, 1000, generator=generator)
    kept = compress(teacher, top_k)
    assert kept["logits"].shape == (64, top_k)
    found = rebuild(**kept, num_classes=1000)
    assert found.isfinite().all()
    full, ours = teacher.double().softmax(1), found.double().softmax(1)
    best = full.topk(top_k, dim=1)
    others = 1 - best.values.sum(1)
    # A logit from -16 to 0 is off by 2^-8 at most, so a probability by that share of it.
    torch.testing.assert_close(ours.gather(1, kept["classes"]), full.gather(1, kept["classes"]), rtol=2**-7, atol=1e-7)
    divergence = (full * (full.clamp_min(1e-300).log() - ours.clamp_min(1e-300).log())).sum(1)
    assert (divergence <= others * math.log(1000 - top_k) + 2**-7).all()
    # What it comes to in the loss: the others' share, spread evenly instead of as it was.
    error = (distillation_loss(student, found) - distillation_loss(student, teacher)).abs().item()
    reach = student.log_softmax(1).aminmax(dim=1)
    assert error <= (others * (reach.max - reach.min) + 2**-6).mean().item()
    if spread == 4.0:  # as sharp as a trained teacher
        sharp = [distillation_loss(student, logits, 0.1).item() for logits in (found, teacher)]
        assert sharp[0] == pytest.approx(sharp[1], rel=1e-4)
        assert _divergence(teacher / 0.1, found / 0.1).mean() < 1e-4
        assert divergence.mean() > 0.01  # at t = 1 it does show: the numbers are in docs/distillation.md
        for t, most in ((0.1, 2e-4), (1.0, 0.01 if top_k == 64 else 0.1)):
            ours, full = (_gradient(student, logits, t) for logits in (found, teacher))
            assert (ours - full).norm() < most * full.norm()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.double().log_softmax(1), q.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _gradient(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    student = student.clone().requires_grad_()
    distillation_loss(student, teacher, t).backward()
    return student.grad


def test_rebuilt_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 with two kept: the three others get 1/12 each."""
    logits = torch.tensor([[0.25, 0.5, 0.0625, 0.125, 0.0625]]).log()
    found = rebuild(**compress(logits, 2), num_classes=5).softmax(1)
    torch.testing.assert_close(found, torch.tensor([[1 / 4, 1 / 2, 1 / 12, 1 / 12, 1 / 12]]), rtol=2**-11, atol=0)


def test_how_many_are_kept() -> None:
    found = [kept_classes(n, k) for n, k in ((10, None), (128, None), (129, None), (1000, None), (1000, 5), (10, 5))]
    assert found == [10, 128, 64, 64, 5, 10]
    assert kept_classes(3, 99) == 3
    with pytest.raises(ValueError, match="top_k=0 keeps no class"):
        kept_classes(10, 0)


# ---- scored once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_cached_answers_are_the_live_ones(
    teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path, workers: int
) -> None:
    watched = Watched(teacher)
    manifest = scoring.score_teacher(watched, images, tmp_path, batch_size=10, workers=workers, **SMALL)
    assert manifest is not None
    assert sorted(p.name for p in tmp_path.glob("*.*")) == [*sorted(manifest["shards"]), "manifest.json"]
    cached = CachedTeacher(tmp_path)
    cached.check(images)
    arrays = [array for shard in cached._shards for array in shard.values()]
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays)  # mapped, not read
    assert cached.crops == data.Crops(count=2, seed=7, image_size=48)
    assert (cached.num_classes, cached.classes, cached.image_size) == (3, teacher.classes, 48)

    places = [35, 3, 17, 16, 15, 0, 3]  # over three shards, in no order, one twice
    crop = [0, 1, 1, 0, 1, 0, 0]
    views = crops_of(images, places, crop, cached.crops)
    shown = torch.cat([v.view(-1, 2, 3, 48, 48) for v in watched.views[2::2]])  # after the two trials: crops, then not
    assert torch.equal(views, shown[places, crop])  # bit by bit what the teacher saw
    index = torch.tensor(places)
    found = cached({"view0": views, "index": index, "crop": torch.tensor(crop)})
    live = teacher({"view0": views})
    live = live - live.amax(1, keepdim=True)
    # float16's rounding; and the batch was another one, which moves float32's last bits
    assert ((found - live).abs() <= live.abs() * 2**-11 + 1e-5).all()
    assert found.dtype == torch.float32

    (some, ours), (same, theirs) = (t.evaluation_logits(images, 20) for t in (cached, teacher))
    assert some.paths == same.paths
    assert torch.equal(ours.argmax(1), theirs.argmax(1))


def test_top_k_on_disk(images: data.ImageSet, tmp_path: Path) -> None:
    teacher = ModelTeacher(zoo.create(zoo.Spec(depth=18, width=1 / 16), num_classes=40, image_size=48, seed=0))
    with torch.no_grad():
        teacher.model.classifier.weight.mul_(300)
    manifest = scoring.score_teacher(teacher, images, tmp_path, top_k=3, **SMALL)
    cached = CachedTeacher(tmp_path)
    views = crops_of(images, [20, 1], [1, 0], cached.crops)
    found = cached({"view0": views, "index": torch.tensor([20, 1]), "crop": torch.tensor([1, 0])}).softmax(1)
    live = teacher({"view0": views}).softmax(1)
    best = live.topk(3, dim=1)
    torch.testing.assert_close(found.gather(1, best.indices), best.values, rtol=2**-9, atol=0)
    rest = found.scatter(1, best.indices, 0.0)
    torch.testing.assert_close(rest.sum(1), 1 - best.values.sum(1), rtol=1e-3, atol=1e-6)
    assert rest.topk(37, dim=1).values.std(1).max() < 1e-7  # evenly
    assert 0 < manifest["outside_top_k"] < 1
    plan = scoring.plan_scoring(teacher, images, top_k=3, **SMALL)
    shards = [tmp_path / name for name in plan.shards]
    assert plan.bytes_per_image == 1 + 3 * (3 * (2 + 2) + 4)
    assert 0 < sum(p.stat().st_size for p in shards) - 36 * plan.bytes_per_image < 3 * 2000  # their headers
    _, ours = cached.evaluation_logits(images, 36)
    assert torch.equal(ours.argmax(1), teacher.evaluation_logits(images, 36)[1].argmax(1))


def test_goes_on_after_a_kill(teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path) -> None:
    """Two trial calls, then two a batch of 4 images: four batches in a shard of 16."""
    options = {**SMALL, "batch_size": 8}
    whole = scoring.score_teacher(teacher, images, tmp_path / "a", **options)
    with pytest.raises(KeyboardInterrupt):
        scoring.score_teacher(Watched(teacher, fail_at=2 + 8 + 3), images, tmp_path / "b", **options)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["answers-00000.safetensors"]
    with pytest.raises(ValueError, match=r"no manifest\.json in it.*by the same command"):
        CachedTeacher(tmp_path / "b")
    watched = Watched(teacher)
    assert scoring.score_teacher(watched, images, tmp_path / "b", **options) == whole  # SHA-256 of the shards included
    assert len(watched.views) == 2 + 8 + 2
    again = Watched(teacher)
    assert scoring.score_teacher(again, images, tmp_path / "b", **options) == whole
    assert len(again.views) == 2
    assert CachedTeacher(tmp_path / "a").fingerprint == CachedTeacher(tmp_path / "b").fingerprint


def test_processes_share_the_shards(
    teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = scoring.score_teacher(teacher, images, tmp_path / "alone", **SMALL)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert scoring.score_teacher(teacher, images, tmp_path / "shared", **SMALL) is None
    assert [p.name for p in (tmp_path / "shared").iterdir()] == ["answers-00001.safetensors"]
    monkeypatch.setenv("RANK", "0")
    assert scoring.score_teacher(teacher, images, tmp_path / "shared", **SMALL) == alone
    damaged = tmp_path / "shared" / "answers-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(KeyboardInterrupt):  # while it makes that one again
        scoring.score_teacher(Watched(teacher, fail_at=3), images, tmp_path / "shared", **SMALL)
    monkeypatch.setenv("RANK", "1")
    assert scoring.score_teacher(teacher, images, tmp_path / "shared", **SMALL) is None  # and takes it for whole not


def test_what_can_be_read_by_now_is_asked_about_again(
    teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path
) -> None:
    whole = images.paths[3].read_bytes()
    images.paths[3].write_bytes(bytes(len(whole)))
    images.paths[30].write_bytes(b"no image")
    scoring.score_teacher(teacher, images, tmp_path, **SMALL)
    images.paths[3].write_bytes(whole)  # as many bytes: still the list of images that was scored
    with pytest.raises(ValueError, match=r"03\.png could not be read when the teacher was asked, but can be now"):
        CachedTeacher(tmp_path).check(images)
    kept = sorted(tmp_path.glob("answers-*"), key=lambda path: path.stat().st_mtime_ns)
    manifest = scoring.score_teacher(teacher, images, tmp_path, **SMALL)
    assert manifest["unreadable"] == 1
    assert sorted(tmp_path.glob("answers-*"), key=lambda path: path.stat().st_mtime_ns)[-1] == tmp_path / min(
        path.name for path in kept
    )
    cached = CachedTeacher(tmp_path)
    cached.check(images)
    assert cached.evaluation_logits(images, 36)[0].paths == images.paths[:30] + images.paths[31:]


def test_unreadable_images_are_marked(teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path) -> None:
    images.paths[3].write_bytes(b"no image")
    manifest = scoring.score_teacher(teacher, images, tmp_path, **SMALL)
    assert manifest["unreadable"] == 1
    cached = CachedTeacher(tmp_path)
    cached.check(images)
    some, found = cached.evaluation_logits(images, 36)
    assert some.paths == images.paths[:3] + images.paths[4:]
    assert torch.equal(found.argmax(1), teacher.evaluation_logits(images, 36)[1].argmax(1))
    batch = {"view0": torch.zeros(2, 3, 48, 48), "index": torch.tensor([2, 3]), "crop": torch.tensor([0, 0])}
    with pytest.raises(ValueError, match="image 3 could not be read when the teacher was asked"):
        cached(batch)
    for path in images.paths:
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the 36 images can be read"):
        scoring.score_teacher(teacher, images, tmp_path / "none", **SMALL)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path) -> Path:
    scoring.score_teacher(teacher, images, tmp_path / "scored", **SMALL)
    return tmp_path / "scored"


def test_damage_is_named_and_repaired(scored: Path, teacher: ModelTeacher, images: data.ImageSet) -> None:
    manifest, shard = scored / "manifest.json", scored / "answers-00001.safetensors"
    before, content = manifest.read_bytes(), shard.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), content[:-7], b""):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00001\.safetensors: damaged, its SHA-256 .*makes it again"):
            CachedTeacher(scored)
        scoring.score_teacher(teacher, images, scored, **SMALL)
        assert shard.read_bytes() == content
        assert manifest.read_bytes() == before
    shard.unlink()
    with pytest.raises(ValueError, match=r"00001\.safetensors: no such file"):
        CachedTeacher(scored)
    scoring.score_teacher(teacher, images, scored, **SMALL)
    assert len(CachedTeacher(scored).evaluation_logits(images, 99)[1]) == 36


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "its format is 'x'"),
        ({"crops": "2"}, "crops is '2'"),
        ({"images": 0}, "images is 0"),
        ({"images": 99}, "its shards are not those of 99 images"),
        ({"classes": ["a"]}, "1 named"),
        ({"shards": {}}, "its shards are not those of 36 images"),
        (None, "manifest of a teacher's answers"),
    ],
)
def test_wrong_manifest(scored: Path, change: dict[str, object] | None, said: str) -> None:
    path = scored / "manifest.json"
    text = path.read_text()
    path.write_text(text[:40] if change is None else json.dumps(json.loads(text) | change))
    with pytest.raises(ValueError, match=said) as caught:
        CachedTeacher(scored)
    assert "manifest.json: damaged, or not" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_shard_that_does_not_fit(scored: Path, images: data.ImageSet) -> None:
    """Its SHA-256 is right, but it is not what the manifest says."""
    content = json.loads((scored / "manifest.json").read_text()) | {"crops": 1}
    (scored / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"00000\.safetensors: belongs to another scoring \(crops differ\)"):
        CachedTeacher(scored)


def test_other_images_are_refused(scored: Path, images: data.ImageSet, tmp_path: Path) -> None:
    cached = CachedTeacher(scored)
    with pytest.raises(ValueError, match=r"answers for 36 images; there are 35"):
        cached.check(images.subset(range(35)))
    with pytest.raises(ValueError, match="for other images"):
        cached.check(images.subset(range(35, -1, -1)))
    (tmp_path / "images").rename(tmp_path / "moved")
    cached.check(data.from_folder(tmp_path / "moved"))  # the folder may move
    last = data.from_folder(tmp_path / "moved").paths[35]
    last.write_bytes(last.read_bytes() + b"0")
    with pytest.raises(ValueError, match="for other images"):
        cached.check(data.from_folder(tmp_path / "moved"))


def test_classes_must_be_the_teachers(scored: Path, teacher: ModelTeacher, image_folder: Path) -> None:
    labelled = data.from_class_folders(image_folder)
    for one in (teacher, CachedTeacher(scored)):
        check_classes(one, labelled)
        check_classes(one, data.from_folder(image_folder))
        other = data.ImageSet(labelled.paths, labelled.labels, ("circle", "stripes", "square"))
        with pytest.raises(ValueError, match=r"knows 3 classes, circle, square, stripes; .* same order"):
            check_classes(one, other)
    with pytest.raises(ValueError, match="knows 3 classes"):
        CachedTeacher(scored).check(other)
    teacher.classes = ()
    check_classes(teacher, other)
    with pytest.raises(ValueError, match="knows 3 classes; the labels have 4, a, b, c, d"):
        check_classes(teacher, data.ImageSet(labelled.paths, labelled.labels, tuple("abcd")))


def test_another_scoring_in_the_folder(scored: Path, teacher: ModelTeacher, images: data.ImageSet) -> None:
    content = {path: path.read_bytes() for path in scored.iterdir()}
    with pytest.raises(ValueError, match=r"holds other answers \(crop_seed differ\); choose another folder"):
        scoring.score_teacher(teacher, images, scored, **SMALL | {"seed": 8})
    (scored / "manifest.json").unlink()
    with torch.no_grad():
        teacher.model.classifier.bias += 1
    with pytest.raises(ValueError, match=r"holds other answers \(teacher differ\)"):
        scoring.score_teacher(ModelTeacher(teacher.model), images, scored, **SMALL)
    assert all(path.read_bytes() == before for path, before in content.items() if path.suffix != ".json")


def test_asked_for_what_is_not_there(scored: Path) -> None:
    cached, view = CachedTeacher(scored), torch.zeros(1, 3, 48, 48)
    with pytest.raises(ValueError, match="crops 0 to 1 of each image, no 2"):
        cached({"view0": view, "index": torch.tensor([0]), "crop": torch.tensor([2])})  # that is the evaluation view
    with pytest.raises(ValueError, match="images 0 to 35, none for 36"):
        cached({"view0": view, "index": torch.tensor([36]), "crop": torch.tensor([0])})


def test_impossible_options(scored: Path, teacher: ModelTeacher, images: data.ImageSet, tmp_path: Path) -> None:
    for options, said in (
        ({"crops": 0}, "crops=0 is below 1"),
        ({"seed": -1}, "crop_seed=-1 is below 0"),
        ({"top_k": 0}, "top_k=0"),
        ({"image_size": 24}, "for 48 pixels, the images have 24"),
    ):
        with pytest.raises(ValueError, match=said):
            scoring.score_teacher(teacher, images, tmp_path / "new", **options)
    with pytest.raises(ValueError, match="folder of answers already"):
        scoring.score_teacher(CachedTeacher(scored), images, tmp_path / "new")
    with torch.no_grad():
        teacher.model.classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"00\.png: the teacher's logits are not finite"):
        scoring.score_teacher(teacher, images, tmp_path / "new", **SMALL)
    assert not (tmp_path / "new").exists()


def test_open_teacher(scored: Path, tiny_model: zoo.SimCLR, tmp_path: Path) -> None:
    assert isinstance(open_teacher(scored), CachedTeacher)
    zoo.save_file(tiny_model, tmp_path / "model" / "model.safetensors")
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert open_teacher(str(path)).classes == tiny_model.classes
    named, exported = open_teacher("r18_1x:imagenette_distilled"), open_teacher(BUNDLED)
    views = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    # The file's float16 weights were rounded after batch norm was folded into them.
    torch.testing.assert_close(named({"view0": views}), exported({"view0": views}), rtol=0, atol=0.02)
    (tmp_path / "void").mkdir()
    (tmp_path / "notes.txt").touch()
    zoo.save_file(zoo.create(tiny_model.spec, num_classes=None, image_size=48), tmp_path / "no_classifier.safetensors")
    for name, said in (
        (tmp_path / "void", "void: no manifest.json in it"),
        (tmp_path / "notes.txt", "notes.txt: not a teacher. Give a"),
        (tmp_path / "absent", "absent: no such file or folder. Give a"),
        (tmp_path / "absent.onnx", "no such file"),
        (tmp_path / "absent.safetensors", "no such file"),
        (tmp_path / "no_classifier.safetensors", "has no classifier; fine-tune it first"),
        ("r18_1y", "Did you mean"),
        ("r18_1x:best", "imagenette_distilled"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            open_teacher(name)
        assert len(str(caught.value).splitlines()) == 1


def test_command(
    image_folder: Path, tiny_model: zoo.SimCLR, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.save_file(tiny_model, tmp_path / "t.safetensors")
    out = tmp_path / "out"
    given = ["score", str(tmp_path / "t.safetensors"), "--images", str(image_folder), "--out", str(out)]
    given += ["--crops", "3", "--crop-seed", "5", "--image-size", "40", "--workers", "0", "--device", "cpu"]
    assert run_command(simclr, given, name="simclr") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(
        "36 images, 3 crops of 40 pixels and an evaluation view each, all 3 classes: 25 bytes an"
    )
    assert shown[1].startswith(f"Answers for 36 images in {out}: ")
    assert CachedTeacher(out).crops == data.Crops(3, 5, 40)
    size = sum(path.stat().st_size for path in out.iterdir())
    assert f"{size / 36:,.0f} bytes each" in shown[1]
    assert run_command(simclr, [*given, "--top-k", "0"], name="simclr") == 2
    assert capsys.readouterr().err.startswith("error: top_k=0")


def test_the_list_is_of_names_order_and_sizes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x" / "1.png").write_bytes(b"12")
        (tmp_path / folder / "2.png").write_bytes(b"3")
    sets = {
        folder: data.ImageSet((tmp_path / folder / "x" / "1.png", tmp_path / folder / "2.png")) for folder in ("a", "b")
    }
    one = answers.image_list_sha256(sets["a"])
    assert one == answers.image_list_sha256(sets["b"])
    assert one != answers.image_list_sha256(sets["a"].subset([1, 0]))
    (tmp_path / "b" / "2.png").write_bytes(b"33")
    assert one != answers.image_list_sha256(sets["b"])
    (tmp_path / "b" / "2.png").unlink()
    assert len(answers.image_list_sha256(sets["b"])) == 64
    relative = data.ImageSet(tuple(Path(os.path.relpath(path)) for path in sets["a"].paths))
    assert one == answers.image_list_sha256(relative)
    assert np.unique([one, answers.image_list_sha256(sets["a"].subset([0]))]).size == 2
