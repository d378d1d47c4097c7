"""Losses, heads, LARS and the schedule against values recorded from the authors' TensorFlow code."""

import math

import numpy as np
import pytest
import torch
from conftest import REFERENCE, TINY, relative_error

import zoo
from training.lars import LARS, parameter_groups
from training.losses import distillation_loss, nt_xent_loss
from training.recipes import recipe
from training.schedule import base_rate, learning_rate, total_steps, warmup_steps
from training.stages import Finetune

RECIPE = np.load(REFERENCE / "recipe.npz")


def recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(RECIPE[name].copy())


@pytest.mark.parametrize("case", ["n8_d16_t0.1", "n64_d128_t0.1"])
def test_nt_xent_equals_the_authors(case: str) -> None:
    hidden = recorded(f"ntxent_{case}_hidden").requires_grad_()
    loss = nt_xent_loss(*hidden.chunk(2), temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(RECIPE[f"ntxent_{case}_loss"], rel=1e-5)
    assert relative_error(hidden.grad, RECIPE[f"ntxent_{case}_grad"]) < 1e-5


def test_nt_xent_is_the_papers_sum_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    unit = (z / z.norm(dim=1, keepdim=True)).tolist()
    total = 0.0
    for i in range(6):
        scores = [math.exp(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / 0.5) for j in range(6)]
        total -= math.log(scores[(i + 3) % 6] / (sum(scores) - scores[i])) / 3
    assert nt_xent_loss(z[:3], z[3:], temperature=0.5).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("temperature", ["1", "0.1"])
def test_distillation_equals_the_authors(temperature: str) -> None:
    case = f"distill_n16_c10_t{temperature}"
    student = recorded(f"{case}_student").requires_grad_()
    teacher = recorded(f"{case}_teacher").requires_grad_()
    loss = distillation_loss(student, teacher, temperature=float(temperature))
    loss.backward()
    assert loss.item() == pytest.approx(RECIPE[f"{case}_loss"], rel=1e-5)
    assert relative_error(student.grad, RECIPE[f"{case}_grad"]) < 1e-5
    assert teacher.grad is None
    unscaled = distillation_loss(student, teacher, temperature=float(temperature), scale_by_t2=False)
    assert unscaled.item() * float(temperature) ** 2 == pytest.approx(loss.item(), rel=1e-6)


def test_bad_arguments_of_losses() -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"one shape, not \(2, 3\) and \(1, 3\)"):
        nt_xent_loss(z, z[:1])
    with pytest.raises(ValueError, match="temperature=0"):
        nt_xent_loss(z, z, temperature=0)
    with pytest.raises(ValueError, match="one shape"):
        distillation_loss(z, z.T)


def test_lars_equals_the_authors() -> None:
    names = [key.split("|")[1] for key in RECIPE.files if key.startswith("lars|") and key.endswith("init")]
    parameters = {name: torch.nn.Parameter(recorded(f"lars|{name}|init")) for name in names}
    adapted = [name for name in names if name.endswith("kernel") and "supervised" not in name]
    optimizer = LARS(
        [
            {"params": [parameters[name] for name in adapted]},
            {"params": [parameters[name] for name in names if name not in adapted], "adapt": False},
        ],
        lr=0.0,
        weight_decay=1e-4,
    )
    for step, rate in enumerate(RECIPE["lars_lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(RECIPE[f"lars|{name}|grads"][step])
        optimizer.step()
    assert len(adapted) == 2
    for name, parameter in parameters.items():
        assert relative_error(parameter.detach(), RECIPE[f"lars|{name}|final"]) < 1e-6, name


def test_lars_at_zero_norms_and_without_gradient() -> None:
    zero, still = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = LARS([zero, still], lr=0.5, weight_decay=0.1)
    zero.grad = torch.ones(3)
    optimizer.step()
    assert zero.tolist() == [-0.5] * 3  # trust ratio 1
    assert still.tolist() == [1.0, 1.0]


def test_what_lars_adapts() -> None:
    model = zoo.create(TINY, num_classes=4, classify_from=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adapted, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model))
    assert "backbone.stem.layers.0.conv.weight" in adapted
    assert "projector.layers.0.dense.weight" in adapted
    assert {"classifier.weight", "classifier.bias", "backbone.stem.layers.0.norm.weight"} <= plain
    assert len(adapted) + len(plain) == len(names)
    student, _ = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, adapt_classifier=True))
    assert student - adapted == {"classifier.weight"}


@pytest.mark.parametrize("kind", ["linear_eval", "head_decay_lars"])
def test_heads_equal_the_authors(kind: str) -> None:
    frozen = kind == "linear_eval"
    model = zoo.create(TINY, num_classes=5)
    model.classifier = torch.nn.Linear(12, 5)
    with torch.no_grad():
        model.classifier.weight.copy_(recorded(f"{kind}_kernel_init").T)
        model.classifier.bias.copy_(recorded(f"{kind}_bias_init"))
    stage = Finetune(model, freeze_backbone=frozen, weight_decay=1e-2, decay_bias=frozen)
    stage.path._hidden = lambda features: features  # type: ignore[method-assign]
    model.backbone = torch.nn.Identity()  # the recorded batches are features already
    groups = [{"params": list(model.classifier.parameters()), "adapt": False}]
    optimizer = (
        torch.optim.SGD(groups[0]["params"], lr=0.0, momentum=0.9, nesterov=True)
        if frozen
        else LARS(groups, lr=0.0, weight_decay=1e-2)
    )
    for step, rate in enumerate(RECIPE[f"{kind}_lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        features, labels = recorded(f"{kind}_features")[step], recorded(f"{kind}_labels")[step]
        metrics = stage({"view0": features, "label": labels})
        assert [metrics["cross_entropy"].item(), metrics["loss"].item()] == pytest.approx(
            RECIPE[f"{kind}_loss"][step].tolist(), rel=1e-6
        )
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    assert relative_error(model.classifier.weight.detach().T, RECIPE[f"{kind}_kernel_final"]) < 1e-6
    assert relative_error(model.classifier.bias.detach(), RECIPE[f"{kind}_bias_final"]) < 1e-6


def test_schedule_equals_the_authors() -> None:
    images, epochs, batch = 1_281_167, 100, 4096
    total, warmup = total_steps(images, epochs, batch), warmup_steps(images, 10, batch)
    peak = base_rate(0.075, batch)
    assert total == int(RECIPE["schedule_sqrt_4096_total"])
    assert peak == pytest.approx(4.8)
    ours = [learning_rate(int(s), peak=peak, total=total, warmup=warmup) for s in RECIPE["schedule_sqrt_4096_steps"]]
    np.testing.assert_allclose(ours, RECIPE["schedule_sqrt_4096_lr"], atol=1e-6 * peak, rtol=0)
    assert ours[0] == 0


def test_recipes_have_the_papers_steps() -> None:
    images = 1_281_167
    pretraining = recipe("imagenet_pretrain")
    assert total_steps(images, pretraining.epochs, pretraining.batch_size) == 250_228
    assert base_rate(pretraining.learning_rate, pretraining.batch_size) == pytest.approx(6.4)
    assert pretraining.warmup_epochs == 0.05 * pretraining.epochs
    steps = {"1pct": (12_811, 751), "10pct": (128_116, 3_754), "100pct": (images, 37_535)}
    for share, (labelled, expected) in steps.items():
        tuning = recipe(f"imagenet_finetune_{share}")
        assert total_steps(labelled, tuning.epochs, tuning.batch_size) == expected
        assert base_rate(tuning.learning_rate, tuning.batch_size) == pytest.approx(0.064)
    assert base_rate(1.0, 512, "linear") == 2.0
    with pytest.raises(ValueError, match="Did you mean 'imagenet_pretrain'"):
        recipe("imagenet_pretraining")
