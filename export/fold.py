"""A network made ready for inference: batch norms folded into the layers before them, weights rounded to float16."""

import copy

import torch
from torch import nn

from zoo.resnet import BatchNorm, ConvNorm
from zoo.simclr import ProjectionLayer, SimCLR


def fold_batch_norms(model: SimCLR) -> SimCLR:
    """A copy for inference on the CPU in float32, its batch norms folded into what they follow (computed in float64).

    The copy shares no tensor that is folded; the model is left as it was.
    """
    inference = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    for module in list(inference.modules()):
        if isinstance(module, ConvNorm):
            _fold(module.conv, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, ProjectionLayer):
            _fold(module.dense, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
    left = [name for name, module in inference.named_modules() if isinstance(module, BatchNorm)]
    assert not left, f"batch norms not folded: {left}"
    return inference


def _fold(layer: nn.Conv2d | nn.Linear, norm: BatchNorm) -> None:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)  # (out,)
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift += norm.bias.double()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(shift.float(), requires_grad=False)


def round_to_half(model: nn.Module) -> None:
    """Round the weights (not the biases) of convolutions and dense layers to what float16 can hold, in place.

    Raises ValueError for weights beyond float16.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rounded = module.weight.half().float()
            if not torch.isfinite(rounded).all():
                raise ValueError(
                    f"{name} has weights up to {module.weight.abs().max():.3g}, beyond float16; use weights='fp32'."
                )
            module.weight = nn.Parameter(rounded, requires_grad=False)
