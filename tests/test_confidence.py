"""The factor on a student's logits after distillation at another temperature than 1."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_runs import DISTILL

import zoo
from training import confidence, data, evaluate, runs


def logits(seed: int, count: int = 60, classes: int = 4) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "size"), [(0.1, 0.5), (0.3, 0.7), (2.0, 3.0)])
def test_no_other_factor_is_nearer_to_the_teacher(temperature: float, size: float) -> None:
    teacher = 3 * logits(0)
    student = size * (teacher / 3 + logits(1) / 2)
    found = confidence.logit_scale(student, teacher, temperature)
    factors = torch.linspace(*sorted((1, 1 / temperature)), 2001, dtype=torch.float64)
    errors = [F.cross_entropy(factor * student, teacher.softmax(1)).item() for factor in factors]
    step = (factors[1] - factors[0]).item()
    assert min(factors) + step < found < max(factors) - step  # not at an end
    assert found == pytest.approx(factors[torch.tensor(errors).argmin()].item(), abs=step)


def test_a_teacher_times_a_factor_is_found_again_within_the_temperature() -> None:
    teacher = logits(0)
    assert confidence.logit_scale(teacher / 5, teacher, 0.1) == pytest.approx(5, abs=1e-9)
    assert confidence.logit_scale(teacher / 50, teacher, 0.1) == pytest.approx(10, abs=1e-9)
    assert confidence.logit_scale(teacher * 5, teacher, 0.1) == pytest.approx(1, abs=1e-9)
    assert confidence.logit_scale(teacher / 5, teacher, 1.0) == 1


def test_the_last_and_the_best_student_are_as_sure_as_their_teacher(
    image_folder: Path, tiny_model: zoo.SimCLR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the classifier is touched, and it by the factor for its own logits."""
    images = data.from_folder(image_folder)
    recipe = dataclasses.replace(DISTILL, temperature=0.3, epochs=10, score_every=1)
    runs.distill(recipe, images, tiny_model, out=tmp_path / "matched", device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "match_confidence", lambda *_, **__: 1.0)
        runs.distill(recipe, images, tiny_model, out=tmp_path / "raw", device="cpu")
    _, answers, _ = evaluate.embed(tiny_model, images)
    for name in ("model.safetensors", runs.BEST_FILE):
        raw, matched = (zoo.load_file(tmp_path / folder / name) for folder in ("raw", "matched"))
        factor = confidence.logit_scale(evaluate.embed(raw, images)[1], answers, 0.3)
        assert 1.1 < factor < 3, name
        for key, value in raw.state_dict().items():
            expected = factor * value if key.startswith("classifier.") else value
            torch.testing.assert_close(matched.state_dict()[key], expected, rtol=1e-5, atol=1e-7, msg=f"{name} {key}")
        assert matched.facts == raw.facts


def test_at_temperature_1_nothing_is_asked(
    image_folder: Path, tiny_model: zoo.SimCLR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(runs, "match_confidence")
    recipe = dataclasses.replace(DISTILL, temperature=1.0)
    student = runs.distill(recipe, data.from_folder(image_folder), tiny_model, out=tmp_path, device="cpu")
    assert student.num_classes == tiny_model.num_classes
