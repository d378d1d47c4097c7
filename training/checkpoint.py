"""Checkpoints of a run: a folder a step, with all that moves in one safetensors file and a manifest; never pickle.

A folder is written aside: the tensors, synced; then the manifest with their SHA-256, synced; then it is renamed to
``step_00001234`` and the rename is synced. So a folder of that name is whole, and what is not is never one. Older
ones are removed only after. A power cut may still tear a disk: what does not match its manifest is passed over.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.files import json_object, sync_folder
from zoo.model_file import sha256_of

KEEP = 2  # the newest is enough to resume; one older in case the disk damages it
TENSORS, MANIFEST = "state.safetensors", "manifest.json"
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


class NotFiniteError(ValueError):
    """What should be saved holds a value that is no finite number."""


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def all_of(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.name[5:].isdecimal())


def save(
    folder: Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    identity: str,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of ``step`` (steps done), then remove all but the newest ``KEEP``.

    ``modules`` are those whose state moves, by name; the optimizer's state is kept by the names of their parameters.
    ``identity`` names the run (its config); ``restore`` refuses a checkpoint of another. ``more`` are JSON values to
    come back with it. Raises OSError, naming the file, if it cannot be written, and NotFiniteError rather than keep a
    value that is no number; the older checkpoints are then untouched.
    """
    tensors = state_of(modules, optimizer)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise NotFiniteError(f"{name} holds values that are no finite numbers")
    path = path_of(folder, step)
    aside = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        manifest = {"step": step, "identity": identity, "more": more or {}}
        manifest["sha256"] = {TENSORS: _write(tensors, aside / TENSORS)}
        manifest["sha256_of_the_rest"] = _sha256_of(manifest)
        _write_bytes([json.dumps(manifest, indent=2).encode()], aside / MANIFEST)
        sync_folder(aside)
        _put_in_place(aside, path)
        sync_folder(folder)
    except OSError as error:
        raise OSError(f"The checkpoint {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _prune(folder, step)
    return path


def state_of(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every parameter, buffer and optimizer tensor, by name."""
    tensors = {f"{key}/{name}": value for key, module in modules.items() for name, value in module.state_dict().items()}
    for owner, parameter in _parameters(modules).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{owner}/{key}"] = value
    return {name: value.detach() for name, value in tensors.items()}


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{key}.{name}": value for key, module in modules.items() for name, value in module.named_parameters()}


def _write(tensors: Mapping[str, Tensor], path: Path) -> str:
    """A safetensors file, tensor by tensor, synced; the SHA-256 of what was meant, not of what a disk made of it."""
    header, offset = {}, 0
    for name, value in tensors.items():
        end = offset + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    values = (value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data for value in tensors.values())
    return _write_bytes(itertools.chain([len(text).to_bytes(8, "little"), text], values), path)


def _write_bytes(pieces: Iterable[bytes | memoryview], path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _put_in_place(aside: Path, path: Path) -> None:
    """Rename; a damaged checkpoint of the same name makes way, and comes back if that fails."""
    if not path.exists():
        aside.rename(path)
        return
    old = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    """Renamed first, so that no half-removed folder ever bears a checkpoint's name."""
    aside = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: Path, step: int) -> None:
    """Remove what is older than the newest ``KEEP``, and what killed runs left aside; what cannot be removed stays.

    What is of a later step goes too: it is damaged, or the run would have gone on from there. Counted among the newest,
    it would push out whole ones.
    """
    with suppress(OSError):
        there, latest = all_of(folder), path_of(folder, step)
        reached = [path for path in there if path <= latest]
        for old in reached[:-KEEP] + there[len(reached) :]:
            _remove(old)
        for left in folder.glob(".step_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def restore(
    folder: Path, *, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, identity: str
) -> tuple[int, dict[str, Any]]:
    """Load the newest whole checkpoint; the number of steps done and what came with it; 0 and nothing if none is there.

    Raises ValueError for a checkpoint of another configuration, or if there are some and none is whole.
    """
    damaged = []
    for path in reversed(all_of(folder)):
        try:
            manifest, tensors = read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damaged.append(f"{path.name} ({error})")
            continue
        if manifest["identity"] != identity:
            raise ValueError(
                f"{path} belongs to a run with another configuration; resume with the same, or use a new --out."
            )
        load_state(tensors, modules, optimizer)
        return int(manifest["step"]), manifest["more"]
    if damaged:
        raise ValueError(f"No checkpoint in {folder} can be read: {'; '.join(damaged)}. Start again in a new --out.")
    return 0, {}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of a checkpoint. ValueError, OSError or SafetensorError if it is not whole."""
    manifest = json_object((path / MANIFEST).read_bytes())
    if manifest.pop("sha256_of_the_rest", None) != _sha256_of(manifest):
        raise ValueError(f"{MANIFEST} is damaged: its SHA-256 is not the one it names")
    for name, expected in manifest["sha256"].items():
        if sha256_of(path / name) != expected:
            raise ValueError(f"{name} is damaged: its SHA-256 is not the manifest's")
    with safe_open(path / TENSORS, framework="pt") as file:
        return manifest, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)


def load_state(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Put what ``state_of`` gave back in its places, strictly."""
    for key, module in modules.items():
        own = {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{key}/")}
        module.load_state_dict(own, strict=True)
    parameters = _parameters(modules)
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            owner, key = name.removeprefix("optimizer/").rsplit("/", 1)
            optimizer.state[parameters[owner]][key] = _as_parameter(parameters[owner], tensor)


def _as_parameter(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """In the parameter's memory format and place: another order of sums would change the last bits."""
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device)
    return torch.empty_like(parameter.data, dtype=tensor.dtype).copy_(tensor)
