"""LARS for many parameters at a time against its formula, value by value."""

import copy
import math

import pytest
import torch

from training import lars
from training.lars import LARS

SHAPES = ((3,), (2, 3), (4, 3, 2, 2), (1,), (5, 5))


def model(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def by_hand(weights: list[float], gradients: list[list[float]], *, adapt: bool) -> list[float]:
    """Steps at rates 0.1, 0.2, ... with momentum 0.9, decay 0.01, eta 0.5."""
    velocity = [0.0] * len(weights)
    for step, gradient in enumerate(gradients):
        trust = 1.0
        if adapt:
            gradient = [g + 0.01 * w for g, w in zip(gradient, weights, strict=True)]
            lengths = math.hypot(*weights), math.hypot(*gradient)
            trust = 0.5 * lengths[0] / lengths[1] if all(lengths) else 1.0
        rate = 0.1 * (step + 1) * trust
        velocity = [0.9 * v + rate * g for v, g in zip(velocity, gradient, strict=True)]
        weights = [w - v for w, v in zip(weights, velocity, strict=True)]
    return weights


@pytest.mark.parametrize("chunk", [1, 7, 30, 10**6])
def test_many_at_a_time_equal_the_formula(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lars, "_chunk", lambda device: chunk)
    parameters = model() + model(torch.float32)  # of two types in one group
    with torch.no_grad():
        parameters[2].data = parameters[2].to(memory_format=torch.channels_last)
        parameters[4].zero_()  # no length: trust 1
    still = torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [*parameters[:7], still]}, {"params": parameters[7:], "adapt": False}]
    optimizer = LARS(groups, lr=0.0, weight_decay=0.01, eta=0.5)
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters] for _ in range(4)]
    starts = [parameter.detach().clone() for parameter in parameters]
    for step, those in enumerate(gradients):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (step + 1)
        for parameter, gradient in zip(parameters, those, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for place, parameter in enumerate(parameters):
        expected = by_hand(
            starts[place].flatten().tolist(),
            [those[place].flatten().tolist() for those in gradients],
            adapt=place < 7,
        )
        bound = 1e-5 if parameter.dtype is torch.float32 else 1e-12
        assert parameter.flatten().tolist() == pytest.approx(expected, rel=bound, abs=bound), place
        assert torch.equal(parameter.grad, gradients[-1][place])
    assert still.tolist() == [1.0, 1.0, 1.0]
    assert still not in optimizer.state


def test_the_state_is_what_it_was() -> None:
    parameters = model()
    optimizer = LARS(parameters, lr=0.1)
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    assert sorted(state) == [1, 2, 3, 4]  # the first has no gradient yet
    assert all(list(of_one) == ["momentum"] for of_one in state.values())
    assert all(state[k]["momentum"].shape == SHAPES[k] for k in state)
    again = LARS(model(), lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for old, new in zip(parameters, again.param_groups[0]["params"], strict=True):
        new.data.copy_(old.data)
        old.grad = new.grad = torch.full_like(old, 0.5)
    optimizer.step()
    again.step()
    for old, new in zip(parameters, again.param_groups[0]["params"], strict=True):
        assert torch.equal(old, new)


def test_no_step_waits_for_values() -> None:
    """On the device `meta` there are none: whatever a GPU would be waited for fails."""
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = LARS([{"params": parameters[:3]}, {"params": parameters[3:], "adapt": False}], lr=0.1)
    optimizer.step()
    assert len(optimizer.state) == len(SHAPES)
