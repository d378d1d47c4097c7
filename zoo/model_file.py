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

from zoo.files import json_object, json_text, written_whole
from zoo.registry import Spec
from zoo.simclr import SimCLR

HEADER = "simclrv2"  # the key in the safetensors header that holds architecture and facts, as JSON
MODEL_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_KINDS: dict[str, type | tuple[type, ...]] = {  # what a header must tell
    "spec": dict,
    "num_classes": (int, type(None)),
    "image_size": int,
    "classify_from": int,
    "projector": bool,
}


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


def metadata(model: SimCLR) -> dict[str, str]:
    """The header's text entries."""
    return {"format": "pt", HEADER: json.dumps(describe(model), sort_keys=True)}


def save_file(model: SimCLR, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model as one safetensors file with its architecture and facts in the header; whole or not at all.

    ``dtype`` (such as ``torch.float16``) stores parameters and statistics in fewer bytes. A config beside it that is
    about an earlier file of this name is written anew. Raises OSError when the disk is full or the folder cannot be
    written.
    """
    state = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_tensors(state, path, metadata=metadata(model))
    if known_sha256(Path(path)) is not None:
        hashes = {Path(path).name: sha256_of(Path(path))}
        write_config(config_path(Path(path)), config_of(describe(model), hashes))


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
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors model ({error}).") from None
    if header is None:
        raise ValueError(f"{path}: not a model of this zoo (its header has no '{HEADER}' entry).")
    try:
        return json_object(header)
    except ValueError as error:
        raise ValueError(f"{path}: what its header tells cannot be read ({error}).") from None


def _load_shards(folder: Path, device: str | torch.device) -> SimCLR:
    """A folder as the Hub has it for models over the size of a shard."""
    try:
        config = read_config(folder / CONFIG_FILE)
        shards: dict[Path, set[str] | None] = {folder / file: names for file, names in read_shards(folder).items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no {MODEL_FILE} and no readable shards of one ({error}).") from None
    model = _empty_model(config, folder / CONFIG_FILE)
    _fill(model, shards, device)
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, whatever it holds. Raises ValueError if it is not a JSON object, OSError if it is not there."""
    return json_object(path.read_bytes())


def read_shards(folder: Path) -> dict[str, set[str]]:
    """Names of the tensors by name of the file. Raises ValueError for a bad index, OSError if there is none."""
    weight_map = json_object((folder / SHARD_INDEX).read_bytes()).get("weight_map")
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{SHARD_INDEX} names the file {file!r}, which is not one of its folder")
        shards.setdefault(file, set()).add(name)
    if not shards:
        raise ValueError(f"{SHARD_INDEX} names no files")
    return shards


def _empty_model(header: dict[str, Any], path: Path) -> SimCLR:
    try:
        for key, kinds in _KINDS.items():
            if not isinstance(header[key], kinds) or (isinstance(header[key], bool) and key != "projector"):
                raise ValueError(f"{key}={header[key]!r}")
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
    """What config.json holds: what the header tells, and the SHA-256 of each of ``files``."""
    return {"library_name": "simclrv2", "architecture": Spec(**told["spec"]).name, **told, "files": dict(files)}


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """config.json, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json_text(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
        files = read_config(path).get("files", {})
    except (OSError, ValueError):
        return {}
    return {str(name): str(sha256) for name, sha256 in files.items()} if isinstance(files, dict) else {}


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
