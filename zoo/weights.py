"""Models made and loaded: a name to a model with the authors' initial values, or with weights, wherever they are."""

import os
import sys
from pathlib import Path

import torch

from zoo.files import cache_dir as default_cache_dir
from zoo.model_file import load_file
from zoo.registry import EMA, Spec, SpecLike, list_weights, suggest
from zoo.registry import spec as find_spec
from zoo.simclr import SimCLR, initialise_model
from zoo.sources import Wanted, check_beside, find, from_hub

HUB_SCHEME = "hf://"


def create(
    name: SpecLike,
    *,
    num_classes: int | None = 1000,
    image_size: int = 224,
    classify_from: int = 0,
    seed: int | None = None,
    projector: bool = True,
) -> SimCLR:
    """A new model with the authors' initial values, in training mode, on the CPU.

    ``num_classes=None`` leaves the classifier out, ``projector=False`` the projection head (distilled students have
    none). ``image_size`` <= 32 selects the 3x3 stem. ``seed`` makes the values repeatable without touching torch's
    global generator. Raises ValueError for an unknown name or impossible options.
    """
    with torch.device("meta"):
        model = SimCLR(
            find_spec(name),
            num_classes=num_classes,
            image_size=image_size,
            classify_from=classify_from,
            projector=projector,
        )
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        initialise_model(model)
    return model


def load(
    name: SpecLike,
    *,
    weights: str | Path = "pretrained",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    namespace: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
) -> SimCLR:
    """A model with weights, in evaluation mode, in float32.

    ``weights``: one of ``list_weights(name)`` (those of the authors also with ``_ema`` behind: their moving averages),
    a ``.safetensors`` file or a folder with one, or ``hf://owner/repository``. Named weights are looked for among the
    bundled ones, in the cache (``cache_dir``, else ``SIMCLR_CACHE``, else the platform's), in the Hub's repository
    ``{namespace}/simclrv2-{name}-{weights}`` (``namespace``, else ``SIMCLR_HUB_NAMESPACE``; without either no Hub is
    asked), and in the authors' public bucket, from which they are converted. What was downloaded stays in the cache.
    ``revision``: a tag, branch or commit on the Hub, and then only there. ``local_files_only`` (or ``HF_HUB_OFFLINE``):
    no network.

    Raises ValueError for an unknown name or weights, WeightsNotFoundError (a ValueError) with a line for each source
    that has them not, TamperedError (a ValueError) for a file whose SHA-256 is not the known one.
    """
    path = locate(
        name,
        weights=weights,
        revision=revision,
        cache_dir=cache_dir,
        namespace=namespace,
        local_files_only=local_files_only,
    )
    wanted, model = find_spec(name), load_file(path, device=device)
    if model.spec != wanted:
        raise ValueError(f"{path} holds {model.spec.name}, not {wanted.name}.")
    return model


def load_given(path: str | Path, *, device: str | torch.device = "cpu") -> SimCLR:
    """The model in a file or folder given by its path, once it was compared with the config beside it.

    Raises ValueError as ``load_file`` does, TamperedError (a ValueError) if the config has another SHA-256.
    """
    check_beside(Path(path))
    return load_file(path, device=device)


def _is_named(weights: str, spec: Spec) -> bool:
    known = list_weights(spec)
    return weights in known or (weights.endswith(EMA) and weights.removesuffix(EMA) in known)


def required_name(weights: str, spec: Spec) -> None:
    """Raise ValueError if a model has no weights of this name, bundled or published."""
    if not _is_named(weights, spec):
        known = list_weights(spec)
        hint = suggest(weights, known) if known else " None are published for it; zoo.load takes a .safetensors file."
        raise ValueError(f"Unknown weights {weights!r} for {spec.name!r}.{hint}")


def _is_path(weights: str | Path, spec: Spec) -> bool:
    if isinstance(weights, Path) or weights.endswith(".safetensors") or "/" in weights or os.sep in weights:
        return True
    return not _is_named(weights, spec) and Path(weights).is_dir()


def locate(
    name: SpecLike,
    *,
    weights: str | Path = "pretrained",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    namespace: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The file or folder that ``load`` with the same arguments would load, fetched if need be, and checked."""
    spec = find_spec(name)
    wanted = Wanted(
        spec,
        str(weights),
        cache=Path(cache_dir) if cache_dir is not None else default_cache_dir(),
        namespace=namespace or os.environ.get("SIMCLR_HUB_NAMESPACE") or None,
        revision=revision,
        local_files_only=local_files_only,
        say=lambda line: print(line, file=sys.stderr),
    )
    if isinstance(weights, str) and weights.startswith(HUB_SCHEME):
        return from_hub(weights.removeprefix(HUB_SCHEME), wanted)
    if _is_path(weights, spec):
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for weights from the Hub; {weights} is a path.")
        check_beside(Path(weights))
        return Path(weights)
    required_name(str(weights), spec)
    return find(wanted)
