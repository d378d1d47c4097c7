"""One model, one safetensors file: architecture and facts in its header, loaded strictly. Beside it, config.json."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from zoo.files import written_whole
from zoo.registry import Spec
from zoo.simclr import SimCLR

HEADER = "simclrv2"  # the key in the safetensors header that holds architecture and facts, as JSON
MODEL_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
CONFIG_FILE = "config.json"


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


def metadata(model: SimCLR, *, probe: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The header's text entries. ``probe``: outputs to compare with later (see zoo/probe.py)."""
    told = describe(model) | ({"probe": probe} if probe else {})
    return {"format": "pt", HEADER: json.dumps(told, sort_keys=True)}


def save_file(
    model: SimCLR, path: str | Path, *, dtype: torch.dtype | None = None, probe: Mapping[str, Any] | None = None
) -> None:
    """Write a model as one safetensors file with its architecture and facts in the header; whole or not at all.

    ``dtype`` (such as ``torch.float16``) stores parameters and statistics in fewer bytes. Raises OSError when the disk
    is full or the folder cannot be written.
    """
    state = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_tensors(state, path, metadata=metadata(model, probe=probe))


def write_tensors(tensors: dict[str, Tensor], path: str | Path, *, metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not at all. Raises OSError, naming the file, if it cannot be written."""
    try:
        with written_whole(path) as temporary:
            save_tensors(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise OSError(f"{path} cannot be written: {error}") from None


def load_file(path: str | Path, *, device: str | torch.device = "cpu") -> SimCLR:
    """The model in a file that ``save_file`` wrote, in evaluation mode, in float32. Strict: every tensor must fit.

    ``path`` may also be a folder with model.safetensors, or with its shards, their index and config.json. Raises
    ValueError, in one line, for a file that is missing, damaged, not ours, or inconsistent.
    """
    path = Path(path)
    if path.is_dir() and not (path / MODEL_FILE).exists():
        return _load_shards(path, device)
    path = path / MODEL_FILE if path.is_dir() else path
    header = read_header(path)
    model = _empty_model(header, path)
    _fill(model, {path: None}, device)
    return model.eval()


def read_header(path: Path) -> dict[str, Any]:
    """What a model's file says of itself. Raises ValueError for a file that is missing, damaged or not ours."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            told = json.loads(header) if header is not None else None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors model ({error}).") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: not a model of this zoo (its header has no '{HEADER}' entry).")
    return told


def _load_shards(folder: Path, device: str | torch.device) -> SimCLR:
    """A folder as the Hub has it for models over the size of a shard."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        weight_map = json.loads((folder / SHARD_INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError(f"{SHARD_INDEX} names the file {file!r} outside its folder")
            names = shards.setdefault(folder / file, set())
            assert names is not None
            names.add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: no {MODEL_FILE} and no readable shards of one ({error}).") from None
    model = _empty_model(config, folder / CONFIG_FILE)
    _fill(model, shards, device)
    return model.eval()


def _empty_model(header: dict[str, Any], path: Path) -> SimCLR:
    try:
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
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: what it says of its architecture makes no sense ({error}).") from None
    return model


def _fill(model: SimCLR, files: Mapping[Path, set[str] | None], device: str | torch.device) -> None:
    """The model's tensors, every one of them and no other, from files (None: all that a file holds)."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for path, names in files.items():
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                wrong = set(found) ^ names if names is not None else set(found) ^ set(expected)
                wrong |= {name for name, shape in found.items() if expected.get(name) != shape}
                if wrong:
                    shown = ", ".join(sorted(wrong)[:5])
                    raise ValueError(f"{path}: tensors do not fit {model.spec.name}: {shown}.")
                state |= {name: file.get_tensor(name).float() for name in found}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors model ({error}).") from None
    if set(state) != set(expected):
        raise ValueError(f"{path.parent}: tensors are missing: {', '.join(sorted(set(expected) - set(state))[:5])}.")
    model.load_state_dict(state, strict=True, assign=True)


# config.json


def config_of(told: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """What config.json holds: what the header tells (but for outputs), and the SHA-256 of each of ``files``."""
    kept = {key: value for key, value in told.items() if key != "probe"}
    return {"library_name": "simclrv2", "architecture": Spec(**told["spec"]).name, **kept, "files": dict(files)}


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """config.json, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def config_path(model_path: Path) -> Path:
    """Where the config of a model's file belongs: config.json beside it, unless that one is about something else."""
    usual = model_path.with_name(CONFIG_FILE)
    if not usual.exists() or model_path.name in _config_files(usual):
        return usual
    return model_path.with_name(f"{model_path.stem}.{CONFIG_FILE}")


def known_sha256(model_path: Path) -> str | None:
    """The SHA-256 that the config beside a file has for it, or None."""
    return _config_files(config_path(model_path)).get(model_path.name)


def _config_files(path: Path) -> dict[str, str]:
    try:
        files = json.loads(path.read_text(encoding="utf-8")).get("files", {})
        return {str(name): str(sha256) for name, sha256 in files.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(model: SimCLR) -> str:
    """SHA-256 of a state dict: for each name, sorted, the line ``name dtype shape`` and the little-endian bytes.

    For example ``classifier.bias float32 10`` or ``backbone.stem.layers.0.conv.weight float32 64,3,7,7``, each followed
    by a newline and then the values in row-major order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {','.join(map(str, array.shape))}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
