"""LARS as the authors' TensorFlow code has it; other ports differ by up to 42 % under a warm-up."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.resnet import BatchNorm


def _chunk(device: torch.device) -> int:
    """Values that are updated together: on a CPU what a cache holds, elsewhere what needs no second model's memory."""
    return 2**18 if device.type == "cpu" else 2**26


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
            for parameters in _chunks(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of parameters of one device and type; a GPU is not waited for."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        velocities = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(velocities, group["momentum"])
        if group["adapt"]:
            updates = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            weight_norms, update_norms = (torch.stack(torch._foreach_norm(x)) for x in (parameters, updates))
            trust = torch.where(
                (weight_norms > 0) & (update_norms > 0), group["eta"] * weight_norms / update_norms, 1.0
            )
            torch._foreach_addcmul_(velocities, updates, (trust * group["lr"]).unbind())
        else:
            torch._foreach_add_(velocities, gradients, alpha=group["lr"])
        torch._foreach_sub_(parameters, velocities)


def _chunks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, by device and type, in runs of ``_chunk`` values, or of one larger parameter."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for (device, _), those in alike.items():
        run, values = those[:0], 0
        for parameter in those:
            if run and values + parameter.numel() > _chunk(device):
                yield run
                run, values = [], 0
            run.append(parameter)
            values += parameter.numel()
        yield run


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
