"""Several processes as one: who takes part, rows and sums over all of them, and the one global batch norm."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.resnet import BatchNorm

_PATIENCE = timedelta(hours=6)  # while the first process looks through a million images, or scores


def size() -> int:
    """The number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 without torchrun. Process 0 writes the files."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def started_by_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, and leaves them at the end; the device of this one.

    gloo carries what is on the CPU, NCCL what is on GPUs: one for each process of a machine, by LOCAL_RANK. Without
    torchrun, or if they are joined already, nothing happens. Raises ValueError for fewer GPUs than processes.
    """
    if dist.is_available() and dist.is_initialized():
        yield torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        return
    if not started_by_torchrun():
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= torch.cuda.device_count():
            raise ValueError(
                f"Process {place} of this machine has no GPU: there are {torch.cuda.device_count()}. "
                "Start as many processes as GPUs (torchrun --nproc-per-node), or use --device cpu."
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(count: int, number: int, processes: int) -> slice:
    """The part of ``count`` things that process ``number`` of ``processes`` takes: contiguous, in their order, even."""
    each, more = divmod(count, processes)
    first = number * each + min(number, more)
    return slice(first, first + each + (number < more))


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes; no gradient flows through it."""
    if size() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set in some process: what all then agree on."""
    if size() == 1:
        return flags
    return tuple(bool(value) for value in total(torch.tensor(flags, dtype=torch.int32)))


def counts(count: int, device: torch.device) -> list[int]:
    """What each process counts, in their order."""
    if size() == 1:
        return [count]
    told = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size())]
    dist.all_gather(told, torch.tensor([count], device=device))
    return [int(value) for value in told]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, in their order; n may differ. No gradient flows through it."""
    if size() == 1:
        return rows.detach()
    lengths = counts(len(rows), rows.device)
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    return torch.cat([part[:length] for part, length in zip(_gather(padded), lengths, strict=True)])


def _gather(values: Tensor) -> list[Tensor]:
    """A tensor of one shape everywhere, from all processes."""
    parts = [torch.empty_like(values) for _ in range(size())]
    dist.all_gather(parts, values)
    return parts


def first_does(work: Callable[[], None]) -> None:
    """The first process does it while the others wait. If it fails, all stop: with its error, and with a short one."""
    error: Exception | None = None
    if is_first():
        try:
            work()
        except (ValueError, OSError) as found:
            error = found
    (failed,) = any_of(error is not None)
    if error is not None:
        raise error
    if failed:
        raise ValueError("The first process stopped; see its message.")


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        total(torch.zeros(1))


def data_parallel(network: nn.Module) -> nn.Module:
    """The network, its gradients averaged over the processes in every backward pass (DDP); as it is if there is one."""
    if size() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    ddp = nn.parallel.DistributedDataParallel
    # the statistics are the same everywhere already; torch 2.14 has another name for not sending them
    renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters
    still = {"forward_sync_buffers": False} if renamed else {"broadcast_buffers": False}
    return ddp(network, gradient_as_bucket_view=True, **still)  # type: ignore[arg-type]


# ---- batch norm ------------------------------------------------------------------------------------------------------


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (1,), mean (C,) and biased variance (C,) of (B, C, ...) over all processes, in float32 or finer.

    Each process tells its own mean and the squares about it (Chan, Golub and LeVeque 1983), so that nothing is lost
    where the mean is large; a process without images counts for nothing.
    """
    values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    axes = [axis for axis in range(x.ndim) if axis != 1]
    count = x.numel() // x.shape[1]
    if count:
        variance, mean = torch.var_mean(values, axes, correction=0)
    else:
        mean = variance = values.new_zeros(x.shape[1])
    told = torch.cat([mean.new_tensor([count]), mean, variance])  # (1 + 2C,)
    return pooled(torch.stack(_gather(told))) if size() > 1 else (told[:1], mean, variance)


def pooled(told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of the union of groups, told as rows (groups, 1 + 2C)."""
    counts = told[:, :1]
    means, variances = told[:, 1:].chunk(2, dim=1)  # (groups, C) each
    count = counts.sum(0)  # (1,)
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return count, mean, variance


class _GlobalNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are those of all processes' x.

    The gradient of a process's loss flows into the other processes' x through the statistics; their sum is what
    backward gives. Gradients of weight and bias are this process's share, as those of any other parameter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, variance = moments(x)
        shift = weight.new_zeros(weight.shape) if bias is None else bias
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance)
        if x.numel() == 0:
            return x.clone(), mean, variance
        out = F.batch_norm(x, mean, variance, weight, shift, False, 0.0, eps)
        if x.numel() == x.shape[1]:  # one value a channel here, and if it is the only one, it is its own mean
            out = torch.where(count == 1, shift.to(out.dtype).view([1, -1] + [1] * (x.ndim - 2)), out)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        gradient = gradients[0].to(mean.dtype)
        unit = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        by_bias, by_weight = gradient.sum(axes), (gradient * unit).sum(axes)  # (C,) each, of this process
        all_bias, all_weight = (total(torch.stack([by_bias, by_weight])) / count).unbind()
        inner = gradient - all_bias.view(shape) - unit * all_weight.view(shape)
        by_x = (inner * (weight * inverse).view(shape)).to(x.dtype)
        return by_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype) if ctx.has_bias else None, None


def normalise_over_processes(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The global batch norm of the authors' code, for ``zoo.resnet.BatchNorm.normalise``, on any device."""
    out, mean, variance = _GlobalNorm.apply(x, weight, bias, eps)
    return out, mean, variance


def make_global(model: nn.Module) -> None:
    """Every batch norm of the model takes its statistics over all processes; nothing changes if there is one."""
    if size() == 1:
        return
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.normalise = normalise_over_processes
