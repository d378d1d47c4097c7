"""Checkpoints of a run: model, optimizer and step in one safetensors file; never pickle."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.model_file import write_tensors

KEEP = 2  # the newest is enough to resume; one older in case the disk damages it


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.safetensors"


def save(folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> Path:
    """Write the checkpoint of ``step`` (steps done), then remove all but the newest ``KEEP``.

    ``identity`` names the run (its config); ``restore`` refuses a checkpoint of another. An old checkpoint is removed
    only once the new one is whole on disk, so a full disk loses none. Raises OSError.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    path = path_of(folder, step)
    write_tensors(tensors, path, metadata={"step": json.dumps(step), "identity": identity})
    for old in all_of(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def all_of(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*.safetensors"))


def restore(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> int:
    """Load the newest readable checkpoint into model and optimizer; the number of steps done, 0 if there is none.

    Raises ValueError for a checkpoint of another configuration, or if there are some and none is readable.
    """
    damaged = []
    for path in reversed(all_of(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            damaged.append(f"{path.name} ({error})")
            continue
        if metadata.get("identity") != identity:
            raise ValueError(
                f"{path} belongs to a run with another configuration; resume with the same, or use a new --out."
            )
        parameters = dict(model.named_parameters())
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            kind, rest = name.split("/", 1)
            if kind == "model":
                state[rest] = tensor
            else:
                owner, key = rest.rsplit("/", 1)
                # in the parameter's memory format: another order of sums would change the last bits
                optimizer.state[parameters[owner]][key] = torch.empty_like(parameters[owner].data).copy_(tensor)
        model.load_state_dict(state, strict=True)
        return int(json.loads(metadata["step"]))
    if damaged:
        raise ValueError(f"No checkpoint in {folder} can be read: {'; '.join(damaged)}. Start again in a new --out.")
    return 0
