"""LARS as the authors' TensorFlow code has it; other ports differ by up to 42 % under a warm-up."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.resnet import BatchNorm


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (code: lars_optimizer.py, classic momentum, no Nesterov).

    v = momentum * v + lr * trust * (g + weight_decay * w);  w = w - v;
    trust = eta * |w| / |g + weight_decay * w|, or 1 if either norm is 0.
    The learning rate is inside the momentum, so a changing rate acts at once on new gradients only. Parameter groups
    with ``adapt=False`` (BN, bias, classifier) have neither decay nor trust ratio. Parameters without a gradient are
    left alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("eta", eta)):
            if value < 0:
                raise ValueError(f"{name}={value!r} is negative.")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        update = parameter.grad
        assert update is not None
        if group["adapt"]:
            update = update.add(parameter, alpha=group["weight_decay"])
            weight_norm, update_norm = parameter.norm(), update.norm()
            trust = torch.where(
                (weight_norm > 0) & (update_norm > 0),
                group["eta"] * weight_norm / update_norm,
                torch.ones_like(weight_norm),
            )
            update = update * trust
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
        parameter.sub_(velocity)


def parameter_groups(model: nn.Module, *, adapt_classifier: bool = False) -> list[dict[str, Any]]:
    """Two groups: what LARS adapts and decays, and what it does not (BN and bias; the classifier unless asked for).

    Parameters that do not require a gradient are left out. Distillation adapts the student's classifier kernel.
    """
    adapted: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for path, module in model.named_modules():
        is_classifier = path.split(".")[-1] == "classifier"
        for name, parameter in module.named_parameters(recurse=False):
            exempt = isinstance(module, BatchNorm) or name == "bias" or (is_classifier and not adapt_classifier)
            if parameter.requires_grad:
                (plain if exempt else adapted).append(parameter)
    groups = [{"params": adapted, "adapt": True}, {"params": plain, "adapt": False}]
    return [group for group in groups if group["params"]]
