"""How long will it take here: a few steps and a few images are timed before a run begins."""

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache

import torch
from torch import Tensor, nn

from training import small_planes
from training.augment import Augmentation
from training.data import ImageSet, give_back_freed_memory, keep_freed_memory
from training.loop import memory_format
from zoo.registry import Spec
from zoo.simclr import SimCLR
from zoo.transforms import read_image
from zoo.weights import create

_FEW = 4  # images that are read and augmented for a trial
_TRY, _MOST = 4, 32  # images in the first trial step, and in the largest: few of them show less than the speed of many
_LONG = 0.7  # seconds of a step that is long enough to tell
_PATIENCE = 20.0  # seconds; a slower first step is taken for the measure itself
_LARGEST = 60e6  # parameters; a larger network is not built for the trial, but reckoned from _YARDSTICK
_YARDSTICK = Spec(50, 1, True)


@cache
def multiply_adds(spec: Spec, image_size: int) -> int:
    """Multiplications of the convolutions for one image, forward; nothing is computed or allocated."""
    count = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        assert isinstance(module, nn.Conv2d)
        count += output[0].numel() * module.weight[0].numel()

    with torch.device("meta"):
        model = SimCLR(spec, num_classes=None, image_size=image_size, projector=False).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        model(torch.empty(1, 3, image_size, image_size))
    return count


@cache
def step_seconds(spec: Spec, image_size: int, device: torch.device, precision: torch.dtype) -> float:
    """Seconds of forward and backward for one image (one view)."""
    facts = spec.facts
    if facts is not None and facts.parameters > _LARGEST:
        ratio = multiply_adds(spec, image_size) / multiply_adds(_YARDSTICK, image_size)
        return ratio * step_seconds(_YARDSTICK, image_size, device, precision)
    model = create(spec, num_classes=None, image_size=image_size, projector=False, seed=0).train()
    model = model.to(device, memory_format=memory_format(model))  # type: ignore[call-overload]
    if device.type != "cpu":
        return _trial(model, image_size, device, precision, _MOST) / _MOST
    with ExitStack() as meanwhile:
        keep_freed_memory()  # all as a run does
        meanwhile.callback(give_back_freed_memory)
        meanwhile.enter_context(small_planes.matrix_products(model, precision))
        count = _TRY
        seconds = _trial(model, image_size, device, precision, count)
        while seconds < _LONG and 2 * count <= _MOST:
            count *= 2
            seconds = _trial(model, image_size, device, precision, count)
        return seconds / count


def _trial(model: SimCLR, image_size: int, device: torch.device, precision: torch.dtype, count: int) -> float:
    """Seconds of a step of ``count`` images."""
    images = torch.rand(count, 3, image_size, image_size, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
            loss = model(images).features.float().square().mean()
        loss.backward()
        loss.item()  # waits for the device

    first = _seconds(step, least=1, longest=0)  # it also allocates and chooses algorithms
    return first if first > _PATIENCE else _seconds(step, least=2)


def view_seconds(images: ImageSet, image_size: int) -> float:
    """Seconds of one core to read and augment one view of these images."""
    few = images.paths[:: -(-len(images) // _FEW)]
    augmentation = Augmentation(image_size)

    def two_views() -> None:
        pixels = []
        for path in few:
            with suppress(ValueError):  # unreadable: training will name it
                pixels.append(read_image(path))
        for view in range(2 if pixels else 0):
            augmentation(pixels, indices=list(range(len(pixels))), epoch=0, view=view, seed=0)

    return _seconds(two_views, least=1) / (2 * len(few))


def _seconds(call: Callable[[], object], *, least: int, longest: float = 0.5) -> float:
    """The quickest of at least ``least`` calls, and of as many as fit in ``longest`` seconds."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or (time.perf_counter() - began < longest and len(times) < 20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def together(compute: float, loading: float, *, device: torch.device, workers: int) -> float:
    """Seconds for work of which the second part is done beside the first: by the same cores, or by others."""
    if device.type == "cpu":
        return compute + loading / cores()
    return max(compute, loading / max(workers, 1))


def in_words(seconds: float) -> str:
    """``40 seconds``, ``6 minutes``, ``9 hours``, ``3 days``: two digits at most, for nobody can know more."""
    units = ((90, 1, "second"), (90 * 60, 60, "minute"), (36 * 3600, 3600, "hour"), (math.inf, 86400, "day"))
    unit, name = next((unit, name) for limit, unit, name in units if seconds < limit)
    count = max(1, round(seconds / unit))
    if count >= 100:
        count = round(count, 1 - int(math.log10(count)))
    return f"{count} {name}{'' if count == 1 else 's'}"
