"""Training steps against three steps of the authors' TensorFlow code, and what each stage leaves alone."""

import numpy as np
import pytest
import torch
from conftest import REFERENCE, TINY, RecordedVariables, relative_error
from reference.reference_weights import input_images, variable_value

import zoo
from training.lars import LARS
from training.losses import contrast
from training.stages import Distill, Finetune, Pretrain
from training.teachers import ModelTeacher
from zoo.convert import tensorflow_names, to_tensorflow_layout

STEPS = {
    "pretrain": {"rates": (0.01, 0.02, 0.006), "decay": 1e-4, "images": 96, "classify_from": 0},
    "finetune": {"rates": (0.05, 0.1, 0.03), "decay": 0.0, "images": 18, "classify_from": 1},
}


@pytest.mark.parametrize("kind", STEPS)
def test_steps_equal_the_authors(kind: str) -> None:
    step, arrays = STEPS[kind], np.load(REFERENCE / f"step_r18_{kind}.npz")
    prefix = "after1|"
    shapes = {k[len(prefix) :].replace(".", "/"): arrays[k].shape for k in arrays.files if k.startswith(prefix)}
    model = zoo.create(
        TINY, num_classes=10 if step["classify_from"] else None, image_size=48, classify_from=step["classify_from"]
    )
    model.load_state_dict(
        zoo.convert.tensorflow_state_dict(
            RecordedVariables(shapes), TINY, image_size=48, classify_from=step["classify_from"]
        )
    )
    stage = Pretrain(model, temperature=0.5) if kind == "pretrain" else Finetune(model)
    optimizer = LARS(stage.train().parameter_groups(), lr=0.0, weight_decay=step["decay"])
    images = torch.from_numpy(input_images(step["images"], 48)).permute(0, 3, 1, 2).contiguous()
    for k, batch in enumerate(images.chunk(3)):
        for group in optimizer.param_groups:
            group["lr"] = step["rates"][k]
        if kind == "pretrain":
            metrics = stage({"view0": batch[:16], "view1": batch[16:]})
        else:
            metrics = stage({"view0": batch, "label": torch.arange(6)})
        assert metrics["loss"].item() == pytest.approx(arrays["loss"][k, 0], rel=3e-5)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
        if k in (0, 2):
            compare(model, arrays, f"after{k + 1}|")


def compare(model: zoo.SimCLR, arrays: np.lib.npyio.NpzFile, prefix: str) -> None:
    """Moving statistics by value, the rest by its change: kernels move so little that their values prove nothing."""
    state, moved = model.state_dict(), 0
    for ours, theirs in tensorflow_names(model):
        value = to_tensorflow_layout(state[ours].numpy())
        reference = arrays[prefix + theirs.replace("/", ".")]
        if "moving" in theirs:
            assert relative_error(value, reference) < 5e-5, theirs
            continue
        initial = variable_value(theirs, reference.shape)
        change = np.linalg.norm(reference - initial)
        if change == 0:
            np.testing.assert_array_equal(value, initial)
            continue
        moved += 1
        is_kernel = theirs.endswith("kernel") and "head_supervised" not in theirs
        assert np.linalg.norm(value - reference) / change < (5e-3 if is_kernel else 1e-3), theirs
    assert moved > 60


@pytest.mark.parametrize("classify_from", [0, 1, 2, 3])
def test_every_trainable_parameter_gets_a_gradient(classify_from: int) -> None:
    batch = {"view0": torch.rand(4, 3, 48, 48), "view1": torch.rand(4, 3, 48, 48), "label": torch.tensor([0, 1, 2, 0])}
    make = {"num_classes": 3, "image_size": 48, "seed": 0, "classify_from": classify_from}
    stages = [
        Pretrain(zoo.create(TINY, **make)),
        Finetune(zoo.create(TINY, **make)),
        Finetune(zoo.create(TINY, **make), freeze_backbone=True),
        Distill(zoo.create(TINY, **make), ModelTeacher(zoo.create(TINY, **make)), alpha=0.5),
    ]
    for stage in stages:
        stage.train()(batch)["loss"].backward()
        for name, parameter in stage.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        given = sum(len(group["params"]) for group in stage.parameter_groups())
        assert given == sum(parameter.requires_grad for parameter in stage.model.parameters())


def test_frozen_backbone_moves_nothing_but_the_classifier(tiny_model: zoo.SimCLR) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    stage = Finetune(tiny_model, freeze_backbone=True).train()
    optimizer = torch.optim.SGD(stage.parameter_groups()[0]["params"], lr=0.1)
    stage({"view0": torch.rand(4, 3, 48, 48), "label": torch.tensor([0, 1, 2, 0])})["loss"].backward()
    optimizer.step()
    changed = {name for name, value in tiny_model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_distillation_mixes_labels_where_there_are_some(tiny_model: zoo.SimCLR) -> None:
    student = zoo.create(TINY, num_classes=3, image_size=48, projector=False, seed=2)
    images, labels = torch.rand(4, 3, 48, 48), torch.tensor([0, -1, 2, -1])
    teacher = ModelTeacher(tiny_model)
    teacher_only = Distill(student, teacher)({"view0": images})["loss"]
    half = Distill(student, teacher, alpha=0.25)
    mixed = half({"view0": images, "label": labels})["loss"]
    logits = student.train()(images).logits
    error = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(mixed, 0.25 * teacher_only + 0.75 * error, rtol=1e-4, atol=1e-5)
    none = half({"view0": images, "label": torch.full((4,), -1)})["loss"]
    torch.testing.assert_close(none, 0.25 * teacher_only, rtol=1e-4, atol=1e-5)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_contrast_accuracy_by_hand() -> None:
    z0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert contrast(z0, z0).accuracy.item() == 1.0
    assert contrast(z0, z0.flip(0)).accuracy.item() == 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Pretrain(zoo.create(TINY, projector=False)), "projection head"),
        (lambda: Finetune(zoo.create(TINY, num_classes=None)), "classifier"),
        (lambda: Distill(zoo.create(TINY), zoo.create(TINY), alpha=2), "alpha=2"),
    ],
)
def test_stages_refuse_what_cannot_work(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
