"""One step of the optimizers, in turns: LARS, LARS a parameter at a time, lightly's if installed, torch's SGD.

    python benchmarks/lars.py [--models r18_1x r50_1x] [--device cpu] [--repeat 15]

Medians; random gradients; momentum and weight decay everywhere. SGD does less: it needs no norms.
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zoo
from training.lars import LARS, parameter_groups


class OneByOne(LARS):
    """The formula as one would write it down."""

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            update = parameter.grad
            assert update is not None
            if group["adapt"]:
                update = update.add(parameter, alpha=group["weight_decay"])
                weight, length = parameter.norm(), update.norm()
                trust = group["eta"] * weight / length
                update = update * torch.where((weight > 0) & (length > 0), trust, torch.ones_like(weight))
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            parameter.sub_(state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"]))


def optimizers(name: str, device: torch.device) -> dict[str, torch.optim.Optimizer]:
    """Each with a model of its own, of the same weights and gradients."""
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "ours": lambda groups: LARS(groups, lr=0.1, weight_decay=1e-4),
        "one by one": lambda groups: OneByOne(groups, lr=0.1, weight_decay=1e-4),
        "torch SGD, foreach": lambda groups: torch.optim.SGD(
            _bare(groups), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=True
        ),
        "torch SGD, fused": lambda groups: torch.optim.SGD(
            _bare(groups), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
        ),
    }
    if importlib.util.find_spec("lightly"):
        from lightly.utils.lars import LARS as Theirs  # noqa: N811

        makers["lightly LARS"] = lambda groups: Theirs(_bare(groups), lr=0.1, momentum=0.9, weight_decay=1e-4)
    made = {}
    for maker, make in makers.items():
        model = zoo.create(name, num_classes=None, seed=0).to(device)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        made[maker] = make(parameter_groups(model))
    return made


def _bare(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BN and bias without decay, as the peers' users write it."""
    return [{"params": group["params"], **({} if group["adapt"] else {"weight_decay": 0.0})} for group in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["r18_1x", "r50_1x"])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    print(f"{platform.machine()}, {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in options.models:
        seconds: dict[str, list[float]] = {}
        made = optimizers(name, options.device)
        for turn in range(options.repeat + 2):
            for maker, optimizer in made.items():
                began = time.perf_counter()
                optimizer.step()
                if options.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn > 1:
                    seconds.setdefault(maker, []).append(time.perf_counter() - began)
        ours = statistics.median(seconds["ours"])
        for maker, values in seconds.items():
            median = statistics.median(values)
            print(f"{name:8} {maker:20} {median * 1e3:8.2f} ms   {median / ours:5.2f} times ours", flush=True)


if __name__ == "__main__":
    main()
