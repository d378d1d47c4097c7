"""A teacher's answers on disk: the best logits for K crops of each image, in shards, and a manifest that says of what.

A folder of answers holds ``answers-00000.safetensors`` and so on, and, written last, ``manifest.json``. A shard of n
images has ``logits`` (n, K + 1, k) float16, ``readable`` (n,) uint8 and, unless all classes are kept, ``classes``
(n, K + 1, k) uint16 (int32 beyond 65,536 classes) and ``rest`` (n, K + 1) float32. Row K of the middle axis is the
evaluation view.
"""

import hashlib
import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from torch import Tensor
from tqdm import tqdm

from training.data import ImageSet
from zoo.files import json_object, json_text, written_whole
from zoo.model_file import sha256_of
from zoo.transforms import read_image

FORMAT = "simclrv2-answers-2"
MANIFEST = "manifest.json"
SHARD_IMAGES = 8192
ALL_CLASSES = 128  # up to so many, all classes are kept ...
TOP_K = 64  # ... beyond, so many of the best
_HEADER = "answers"  # the key in a shard's header that holds its Scoring as JSON
_LOWEST = -65504.0  # float16's lowest number; e to its power is 0
_DTYPES = {"F16": "<f2", "F32": "<f4", "U16": "<u2", "I32": "<i4", "U8": "|u1"}  # safetensors' names, numpy's


# ---- logits, compressed ----------------------------------------------------------------------------------------------


def kept_classes(num_classes: int, top_k: int | None = None) -> int:
    """How many logits are kept: ``top_k``, by default all of up to 128 classes and 64 of more.

    From half of the classes on all are kept: without the classes' numbers that takes no more room. Raises ValueError
    for a ``top_k`` below 1.
    """
    if top_k is None:
        top_k = num_classes if num_classes <= ALL_CLASSES else TOP_K
    if top_k < 1:
        raise ValueError(f"top_k={top_k} keeps no class; take at least 1, or leave it out.")
    return num_classes if 2 * top_k >= num_classes else top_k


def compress(logits: Tensor, top_k: int) -> dict[str, Tensor]:
    """Logits (B, classes) as float16, relative to each row's greatest: the softmax is the same, nothing overflows.

    With ``top_k`` = classes: ``logits`` (B, classes) in the classes' order. Else the best: ``logits`` (B, top_k)
    descending, ``classes`` (B, top_k) int64, and ``rest`` (B,) float32, the log-sum-exp of all others, relative too.
    """
    relative = logits.float() - logits.float().amax(1, keepdim=True)  # (B, classes), at most 0
    if top_k == logits.shape[1]:
        return {"logits": relative.clamp(min=_LOWEST).half()}
    best, classes = relative.topk(top_k)
    rest = relative.scatter(1, classes, -torch.inf).logsumexp(1).clamp(min=_LOWEST)
    return {"logits": best.clamp(min=_LOWEST).half(), "classes": classes, "rest": rest}


def rebuild(logits: Tensor, classes: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Float32 logits (B, num_classes) of what ``compress`` kept: the other classes share their probability evenly.

    At temperature 1 the kept classes have their probabilities to float16's precision, and the KL divergence from the
    full answer is at most p log(classes - top_k), with p the probability of the others together. Below temperature 1
    the even share understates the others, which then weigh far less than p; above, it overstates them.
    """
    others = num_classes - logits.shape[1]
    full = (rest.float() - math.log(others))[:, None].repeat(1, num_classes)
    return full.scatter_(1, classes.long(), logits.float())


# ---- what was scored -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a folder of answers is about; the shards and the manifest of one folder agree on all of it."""

    teacher: str  # its fingerprint
    classes: tuple[str, ...]
    num_classes: int
    crops: int
    crop_seed: int
    image_size: int
    evaluation_size: int
    top_k: int
    images: int
    image_list: str
    shard_images: int = SHARD_IMAGES
    format: str = FORMAT

    @property
    def shards(self) -> list[str]:
        """The shards' file names."""
        return [f"answers-{number:05d}.safetensors" for number in range(-(-self.images // self.shard_images))]

    @property
    def bytes_per_image(self) -> int:
        """Of the shards, without their headers."""
        return sum(
            math.prod(shape) * np.dtype(kind).itemsize for kind, shape in self._layout(1).values()
        )  # of one image

    def span(self, number: int) -> range:
        """The places of the images in a shard."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, self.images))

    def empty_shard(self, number: int) -> dict[str, np.ndarray]:
        """A shard in which no image is readable."""
        return {name: np.zeros(shape, kind) for name, (kind, shape) in self._layout(len(self.span(number))).items()}

    def _layout(self, images: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows = (images, self.crops + 1)
        layout = {"readable": ("|u1", (images,)), "logits": ("<f2", (*rows, self.top_k))}
        if self.top_k < self.num_classes:
            layout["classes"] = ("<u2" if self.num_classes <= 65536 else "<i4", (*rows, self.top_k))
            layout["rest"] = ("<f4", rows)
        return layout

    def differences(self, other: "Scoring") -> list[str]:
        """The names of the fields in which another differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Scoring":
        """From a manifest or a shard's header. Raises ValueError if it makes no sense."""
        if told.get("format") != FORMAT:
            raise ValueError(f"its format is {told.get('format')!r}, not {FORMAT!r}")
        for field in fields(cls):
            value, kind = told.get(field.name), {"classes": list, "teacher": str, "image_list": str, "format": str}
            wanted = kind.get(field.name, int)
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}")
            if wanted is int and value < (field.name != "crop_seed"):
                raise ValueError(f"{field.name} is {value}")
        found = cls(
            **{f.name: told[f.name] for f in fields(cls) if f.name != "classes"},
            classes=tuple(map(str, told["classes"])),
        )
        if found.top_k > found.num_classes or len(found.classes) not in (0, found.num_classes):
            raise ValueError(f"{found.top_k} of {found.num_classes} classes kept, {len(found.classes)} named")
        return found


def image_list_sha256(images: ImageSet) -> str:
    """SHA-256 of the images' order, their names relative to the folder they have in common, and their sizes in bytes.

    The folder may move. A file that is gone has size -1.
    """
    paths = [path.absolute() for path in images.paths]
    common = os.path.commonpath([path.parent for path in paths])
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError:
            size = -1
        digest.update(os.fsencode(path.relative_to(common).as_posix()) + f"\0{size}\n".encode())
    return digest.hexdigest()


# ---- shards ----------------------------------------------------------------------------------------------------------


def write_shard(path: Path, scoring: Scoring, arrays: dict[str, np.ndarray]) -> None:
    """One shard, whole or not at all. Raises OSError, naming the file, if it cannot be written."""
    try:
        with written_whole(path) as temporary:
            save_arrays(arrays, temporary, metadata={_HEADER: scoring.to_json()})
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise OSError(f"{path} cannot be written: {error}") from None


def read_shard_header(path: Path) -> Scoring:
    """What a shard says of itself. Raises ValueError, in one line, if it is missing, cut off or not one."""
    try:
        with safe_open(path, framework="np") as file:
            return Scoring.of(json_object((file.metadata() or {}).get(_HEADER, "null")))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable shard of a teacher's answers ({error}).") from None


def first_readable(images: ImageSet, places: np.ndarray) -> int | None:
    """The first of some places whose image can be read."""
    for place in places.tolist():
        with suppress(ValueError):
            read_image(images.paths[place])
            return int(place)
    return None


def map_shard(path: Path, scoring: Scoring, number: int) -> dict[str, np.ndarray]:
    """The arrays of a shard, memory-mapped: pages are read when they are asked for. Raises ValueError if they do not
    fit the scoring."""
    found = read_shard_header(path)  # safetensors has checked the header against the file's size
    if found != scoring:
        raise ValueError(f"{path}: belongs to another scoring ({', '.join(scoring.differences(found))} differ).")
    raw = np.memmap(path, np.uint8, mode="r")
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8:start].tobytes())
    wanted = scoring._layout(len(scoring.span(number)))
    told = {k: (_DTYPES.get(v["dtype"]), tuple(v["shape"])) for k, v in header.items() if k != "__metadata__"}
    if told != wanted:
        raise ValueError(f"{path}: its tensors are {told}, not {wanted}.")
    offsets = {name: header[name]["data_offsets"] for name in wanted}
    return {
        name: np.asarray(raw[start + offsets[name][0] : start + offsets[name][1]]).view(kind).reshape(shape)
        for name, (kind, shape) in wanted.items()
    }


# ---- the manifest ----------------------------------------------------------------------------------------------------


def write_manifest(folder: Path, scoring: Scoring) -> dict[str, Any]:
    """Hash the shards, which are all there, and write the manifest, whole; its content.

    Beside the scoring it holds ``unreadable``, the number of images that could not be read, ``outside_top_k``, the mean
    probability of the classes that were not kept, and ``shards``, their SHA-256 by name. Raises ValueError if no image
    could be read.
    """
    unreadable, outside, hashes = 0, 0.0, {}
    for number, name in enumerate(scoring.shards):
        arrays = map_shard(folder / name, scoring, number)
        readable = arrays["readable"] != 0
        unreadable += int((~readable).sum())
        if "rest" in arrays:
            kept = np.exp(arrays["logits"][readable].astype(np.float32)).sum(-1)
            rest = np.exp(arrays["rest"][readable])
            outside += float((rest / (kept + rest)).sum())
        hashes[name] = sha256_of(folder / name)
    if unreadable == scoring.images:
        raise ValueError(f"None of the {scoring.images} images can be read; there is nothing to score.")
    rows = (scoring.images - unreadable) * (scoring.crops + 1)
    manifest = asdict(scoring) | {"unreadable": unreadable, "outside_top_k": outside / rows, "shards": hashes}
    with written_whole(folder / MANIFEST) as temporary:
        temporary.write_text(json_text(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> tuple[Scoring, dict[str, str]]:
    """What was scored, and the shards' SHA-256 by name. Raises ValueError, in one line, for a manifest that is missing
    or damaged."""
    path = folder / MANIFEST
    try:
        told = json_object(path.read_bytes())
        scoring = Scoring.of(told)
        hashes = told.get("shards")
        if not isinstance(hashes, dict) or sorted(hashes) != scoring.shards:
            raise ValueError(f"its shards are not those of {scoring.images} images")
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: no {MANIFEST} in it. Write one with `simclr score`, or end what was begun by the same command."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged, or not the manifest of a teacher's answers ({error}). "
            "Remove it, and run `simclr score` again."
        ) from None
    return scoring, {str(name): str(sha256) for name, sha256 in hashes.items()}


def verify_shards(folder: Path, hashes: dict[str, str]) -> None:
    """Compare the shards with the manifest's SHA-256. Raises ValueError, naming one that is missing or damaged."""
    total = sum((folder / name).stat().st_size for name in hashes if (folder / name).is_file())
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for name, sha256 in hashes.items():
            path = folder / name
            again = "The command of `simclr score` that wrote it makes it again."
            if not path.is_file():
                raise ValueError(f"{path}: no such file. {again}")
            if sha256_of(path) != sha256:
                raise ValueError(f"{path}: damaged, its SHA-256 is not the manifest's. {again}")
            bar.update(path.stat().st_size)
