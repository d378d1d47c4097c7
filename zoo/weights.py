"""Models made, saved and loaded: (name, weights) to a file on this machine to a model, strictly, from safetensors."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from zoo.files import cache_dir, written_whole
from zoo.registry import BUNDLED, CLASSIFY_FROM, Spec, SpecLike, list_weights, suggest
from zoo.registry import spec as find_spec
from zoo.simclr import SimCLR, initialise_model

HEADER = "simclrv2"  # the key in the safetensors header that holds architecture and facts, as JSON
BUNDLED_FOLDER = Path(__file__).parent / "bundled"


class WeightsNotFoundError(ValueError):
    """No source on this machine has the weights; the message says what was tried and what to do."""


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


def describe(model: SimCLR) -> dict[str, Any]:
    """Architecture, classes and facts of a model as plain JSON values: what its file's header holds."""
    return {
        "spec": dataclasses.asdict(model.spec),
        "num_classes": model.num_classes,
        "image_size": model.image_size,
        "classify_from": model.classify_from,
        "projector": model.projector is not None,
        "classes": list(model.classes),
        "facts": model.facts,
    }


def save_file(model: SimCLR, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model as one safetensors file with its architecture and facts in the header; whole or not at all.

    ``dtype`` (such as ``torch.float16``) stores parameters and statistics in fewer bytes. Raises OSError when the disk
    is full or the folder cannot be written.
    """
    state = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_tensors(state, path, metadata={"format": "pt", HEADER: json.dumps(describe(model), sort_keys=True)})


def write_tensors(tensors: dict[str, Tensor], path: str | Path, *, metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not at all. Raises OSError, naming the file, if it cannot be written."""
    try:
        with written_whole(path) as temporary:
            save_tensors(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise OSError(f"{path} cannot be written: {error}") from None


def load_file(path: str | Path, *, device: str | torch.device = "cpu") -> SimCLR:
    """The model in a file that ``save_file`` wrote, in evaluation mode, in float32. Strict: every tensor must fit.

    Raises ValueError, in one line, for a file that is missing, damaged, not ours, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = (file.metadata() or {}).get(HEADER)
            if header is None:
                raise ValueError(f"{path}: not a model of this zoo (its header has no '{HEADER}' entry).")
            model = _empty_model(json.loads(header))
            expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (not a dict)
            if expected != found:
                wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                raise ValueError(f"{path}: tensors do not fit {model.spec.name}: {', '.join(wrong[:5])}.")
            state = {name: file.get_tensor(name).float() for name in expected}
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors model ({error}).") from None
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _empty_model(header: dict[str, Any]) -> SimCLR:
    with torch.device("meta"):
        model = SimCLR(
            Spec(**header["spec"]),
            num_classes=header["num_classes"],
            image_size=header["image_size"],
            classify_from=header["classify_from"],
            projector=header["projector"],
        )
    model.classes = tuple(map(str, header.get("classes", ())))
    model.facts = dict(header.get("facts", {}))
    return model


def _bundled(name: str, weights: str) -> Path:
    stem = BUNDLED.get((name, weights))
    if stem is None:
        raise WeightsNotFoundError("not among the weights bundled with this package")
    return _existing(BUNDLED_FOLDER / f"{stem}.safetensors")


def _cached(name: str, weights: str) -> Path:
    return _existing(cache_dir() / name / f"{weights}.safetensors")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WeightsNotFoundError(f"no file {path}")
    return path


# Asked in this order; each gives a local file or says in one line why it cannot.
SOURCES: tuple[tuple[str, Callable[[str, str], Path]], ...] = (
    ("bundled", _bundled),
    ("cache", _cached),
)


def load(name: SpecLike, *, weights: str | Path = "pretrained", device: str | torch.device = "cpu") -> SimCLR:
    """A model with weights, in evaluation mode. ``weights``: one of ``list_weights(name)``, or a ``.safetensors`` path.

    Raises ValueError for an unknown name or weights, and WeightsNotFoundError (a ValueError) when they are not on this
    machine, saying what was tried.
    """
    wanted = find_spec(name)
    if isinstance(weights, Path) or weights.endswith(".safetensors"):
        model = load_file(weights, device=device)
        if model.spec != wanted:
            raise ValueError(f"{weights} holds {model.spec.name}, not {wanted.name}.")
        return model
    known = list_weights(wanted)
    if weights not in known:
        hint = suggest(weights, known) if known else " None are published for it; give a .safetensors path."
        raise ValueError(f"Unknown weights {weights!r} for {wanted.name!r}.{hint}")
    tried = []
    for source, find in SOURCES:
        try:
            path = find(wanted.name, weights)
        except WeightsNotFoundError as reason:
            tried.append(f"  {source}: {reason}")
            continue
        model = load_file(path, device=device)
        if model.spec != wanted:
            raise ValueError(f"{path} holds {model.spec.name}, not {wanted.name}; delete it.")
        return model
    raise WeightsNotFoundError(
        f"Weights {weights!r} of {wanted.name!r} are not on this machine. Tried:\n"
        + "\n".join(tried)
        + f"\nPut the file at {cache_dir() / wanted.name / f'{weights}.safetensors'}, or give its path: "
        f"zoo.load({wanted.name!r}, weights='file.safetensors'). From a TensorFlow checkpoint: "
        f"zoo.convert.tensorflow_state_dict(..., classify_from={CLASSIFY_FROM.get(weights, 0)})."
    )
