"""Files of images into vectors on disk: safetensors shards and paths.csv, by one process or by many, resumed by shard.

A folder of embeddings holds, for N shards,

- ``embeddings-00000-of-0000N.safetensors``: one tensor ``features`` (n, D), not normalised, float32 or float16, and in
  the header the model, its fingerprint (SHA-256), D, and what the shard was made of;
- ``paths-00000-of-0000N.csv``: each file of the shard, ``row,path,problem``; the row is empty where there is a problem;
- once all shards are there, ``paths.csv`` (``row,shard,path``: line by line the rows of the shards one after the other)
  and, if files could not be read, ``skipped.csv`` (``path,problem``).

The files, sorted, are cut into N runs of nearly equal length. Nothing here needs torch unless the model does.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from zoo.ahead import in_order
from zoo.files import json_object, written_whole
from zoo.folders import find_files as find_files
from zoo.transforms import preprocess

FORMAT = "simclrv2-embeddings-1"
HEADER = "simclrv2_embeddings"  # the key in a shard's header that holds what it tells, as JSON
SHARD = 10_000  # images a shard, unless another number or torchrun says otherwise
PATHS, SKIPPED = "paths.csv", "skipped.csv"

OnSkip = Callable[[Path, str], None]  # (file, reason)


def _list_sha256(files: Sequence[Path]) -> str:
    """SHA-256 of a list of files: their names as given, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = file.stat()
            told = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:
            told = "gone"
        digest.update(os.fsencode(file) + f"\0{told}\n".encode())
    return digest.hexdigest()


# ---- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedder:
    """A model that embeds: ``features`` takes float32 (B, 3, S, S) in [0, 1] and gives float32 (B, D).

    ``fingerprint`` is the SHA-256 of an ONNX file, or of a torch model's tensors (``zoo.model_file.weights_sha256``).
    ``prepare`` makes a picture float32 (3, S, S): ``zoo.preprocess`` unless the model has its own.
    """

    name: str
    fingerprint: str
    image_size: int
    dimension: int
    features: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[Path], np.ndarray] | None = None


def open_model(model: str, *, device: str = "auto") -> Embedder:
    """An exported ``.onnx`` file (on the CPU, without torch), a ``.safetensors`` file, or ``name:weights`` of the zoo.

    Under torchrun each process takes the GPU of its local rank. Raises ValueError, in one line, for a model that cannot
    be had or a device that cannot be used.
    """
    if model.lower().endswith(".onnx"):
        return _onnx(model, device)
    import torch

    from training.cli import load_model
    from training.loop import pick_device
    from zoo.model_file import weights_sha256

    network = load_model(model)
    fingerprint = weights_sha256(network)
    where = pick_device(device)
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    network = network.to(where).eval()

    @torch.inference_mode()
    def features(batch: np.ndarray) -> np.ndarray:
        found: np.ndarray = network(torch.from_numpy(batch).to(where)).features.float().cpu().numpy()
        return found

    probe = np.zeros((1, 3, network.image_size, network.image_size), np.float32)
    name = Path(model).name if model.endswith(".safetensors") else model
    return Embedder(name, fingerprint, network.image_size, features(probe).shape[1], features)


def _onnx(model: str, device: str) -> Embedder:
    from export.runtime import OnnxModel

    if device not in ("auto", "cpu"):
        raise ValueError(f"--device {device}, but an ONNX file is computed on the CPU here; leave --device out.")
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    network = OnnxModel(model, threads=max(1, (os.cpu_count() or 1) // sharing) if sharing > 1 else None)
    return Embedder(
        name=Path(model).name,
        fingerprint=network.fingerprint,
        image_size=network.image_size,
        dimension=network.feature_width,
        features=lambda batch: network(batch).features,
        prepare=network.prepare,
    )


# ---- vectors in memory -----------------------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """Features (n, D) float32 of the files at ``places`` (n,), and why the others have none, by place."""

    features: np.ndarray
    places: np.ndarray
    problems: dict[int, str]


def embed_files(
    model: Embedder, files: Sequence[Path], *, batch: int = 64, bar: Any = None, on_skip: OnSkip | None = None
) -> Vectors:
    """The vectors of files, in their order. Files that cannot be read are left out and told to ``on_skip``.

    Pictures are read and preprocessed by threads while the model computes. ``bar`` is a tqdm bar to move on.
    """
    features, places, problems, place = [np.empty((0, model.dimension), np.float32)], [], {}, 0
    for group in _read_ahead(files, model, batch):
        images = []
        for outcome in group:
            if isinstance(outcome, str):
                problems[place] = outcome
                if on_skip is not None:
                    on_skip(files[place], outcome)
            else:
                images.append(outcome)
                places.append(place)
            place += 1
        if images:
            features.append(model.features(np.stack(images)))
        if bar is not None:
            bar.update(len(group))
    return Vectors(np.concatenate(features), np.array(places, dtype=np.int64), problems)


def _read_ahead(files: Sequence[Path], model: Embedder, batch: int) -> Iterator[list[np.ndarray | str]]:
    """Batches of what ``_read`` makes of the files; the next batch is read while one is worked on."""
    threads = min(8, os.cpu_count() or 1)
    reading = in_order(partial(_read, model=model), files, threads=threads, ahead=batch)
    for start in range(0, len(files), batch):
        yield list(islice(reading, min(batch, len(files) - start)))
    next(reading, None)  # there is none, but Ctrl-C may have come meanwhile


def _read(path: Path, model: Embedder) -> np.ndarray | str:
    """A picture as the model takes it, or in one line why it cannot be used."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    try:
        return model.prepare(path) if model.prepare else preprocess(path, model.image_size)
    except (ValueError, OSError, MemoryError) as error:
        return " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__


# ---- vectors on disk -------------------------------------------------------------------------------------------------


class Processes(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    world: int


def processes() -> Processes:
    """As torchrun's RANK and WORLD_SIZE say, else 0 of 1. Raises ValueError if they make no sense."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world} make no sense; torchrun sets them, or unset both.")
    return Processes(int(rank), int(world))


class _Shards(NamedTuple):
    """The shards of one set of files by one model; ``told`` is what each must say of itself to count as finished."""

    out: Path
    files: Sequence[Path]
    number: int
    dtype: str
    told: dict[str, Any]

    def share(self, shard: int) -> Sequence[Path]:
        first, last = (len(self.files) * place // self.number for place in (shard, shard + 1))
        return self.files[first:last]

    def finished(self, shard: int) -> bool:
        """Whether a shard is there, whole. Raises ValueError if it is another model's, or of other files."""
        header = _read_header(_shard_path(self.out, shard, self.number))
        if header is None:
            return False
        differences = {
            "format": "was written by another program",
            "fingerprint": f"is of another model ({header.get('model')})",
            "files_sha256": "is of other files, or some have changed since",
            "dtype": f"holds {header.get('dtype')}",
        }
        for key, words in differences.items():
            if header.get(key) != self.told[key]:
                path = _shard_path(self.out, shard, self.number)
                raise ValueError(f"{path} {words}; give another --out, or empty this one.")
        try:
            content = _part_path(self.out, shard, self.number).read_bytes()
        except FileNotFoundError:
            return False
        return hashlib.sha256(content).hexdigest() == header.get("paths_sha256")

    def write(self, shard: int, vectors: Vectors) -> None:
        """A shard's list of files, then the shard: it counts once both are there."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        rows = {int(place): row for row, place in enumerate(vectors.places)}
        share = enumerate(self.share(shard))
        lines = [(rows.get(place, ""), path.as_posix(), vectors.problems.get(place, "")) for place, path in share]
        part = _csv(("row", "path", "problem"), lines)
        _write(_part_path(self.out, shard, self.number), part)
        with np.errstate(over="ignore"):  # said in words next
            features = vectors.features.astype(self.dtype)
        if not np.isfinite(features).all() and np.isfinite(vectors.features).all():
            raise ValueError("The features are too large for float16; use --dtype float32.")
        path = _shard_path(self.out, shard, self.number)
        told = self.told | {"shard": shard, "paths_sha256": hashlib.sha256(part).hexdigest()}
        try:
            with written_whole(path) as temporary:
                save_file({"features": features}, temporary, metadata={HEADER: json.dumps(told, sort_keys=True)})
        except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
            raise OSError(f"{path} cannot be written: {error}") from None


def _told(model: Embedder, files: Sequence[Path], count: int, dtype: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dimension": model.dimension,
        "image_size": model.image_size,
        "dtype": dtype,
        "files": len(files),
        "files_sha256": _list_sha256(files),
        "shards": count,
    }


def _shard_path(out: Path, shard: int, count: int) -> Path:
    return out / f"embeddings-{shard:05d}-of-{count:05d}.safetensors"


def _part_path(out: Path, shard: int, count: int) -> Path:
    return out / f"paths-{shard:05d}-of-{count:05d}.csv"


def _read_header(path: Path) -> dict[str, Any] | None:
    """What a shard tells of itself, or None if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shape = file.get_slice("features").get_shape()
            header = json_object((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError):
        return None
    return header if header.get("dimension") == shape[-1] else None


def _csv(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8 have been skipped, but are told


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


class Summary(NamedTuple):
    """What a process did; ``images`` and ``skipped`` of the whole folder, None while other processes are at work."""

    shards: int
    done_before: int
    images: int | None
    skipped: int | None


def embed_to(
    model: Embedder,
    files: Sequence[Path],
    out: str | Path,
    *,
    batch: int = 64,
    shard: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    on_skip: OnSkip | None = None,
) -> Summary:
    """The vectors of ``files`` in the folder ``out``, this process's share of them: see the top of this file.

    ``shard``: images a shard at most, by default 10,000; under torchrun by default one shard a process. Process r of W
    makes the shards r, r + W, ... A shard that is finished is passed over: one that can be read, by the same model, of
    the same list of files (names as given, sizes, times of change). Whoever finds all shards finished writes
    ``paths.csv``.

    Raises ValueError for a folder that holds something else, or if no file at all could be read; after Ctrl-C
    KeyboardInterrupt, with how far it came.
    """
    rank, world = processes()
    out = Path(out)
    if not files:
        raise ValueError("There are no files to embed.")
    for name, value in (("shard", shard), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"A {name} holds at least 1 image, not {value}.")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"Unknown dtype {dtype!r}. Choose from: float32, float16.")
    count = world if shard is None and world > 1 else -(-len(files) // (shard or SHARD))
    shards = _Shards(out, files, count, dtype, _told(model, files, count, dtype))
    _refuse_other_shards(out, count)
    done = {number for number in range(count) if shards.finished(number)}
    mine = range(rank, count, world)
    todo = [number for number in mine if number not in done]
    title = "embedding" if world == 1 else f"embedding ({rank + 1} of {world})"
    total, left = (sum(len(shards.share(number)) for number in numbers) for numbers in (mine, todo))
    finished = len(mine) - len(todo)
    with tqdm(total=total, initial=total - left, desc=title, unit=" images", disable=None, dynamic_ncols=True) as bar:
        for number in todo:
            try:
                found = embed_files(model, shards.share(number), batch=batch, bar=bar, on_skip=on_skip)
                shards.write(number, found)
            except KeyboardInterrupt:
                told = f"Stopped; {finished} of {len(mine)} shards are finished. The same command goes on from there."
                raise KeyboardInterrupt(told) from None
            finished += 1
    images, skipped = _merge(shards) or (None, None)
    return Summary(count, len(mine) - len(todo), images, skipped)


def _refuse_other_shards(out: Path, count: int) -> None:
    ending = f"-of-{count:05d}.safetensors"
    for path in sorted(out.glob("embeddings-*-of-*.safetensors")):
        if not path.name.endswith(ending):
            raise ValueError(
                f"{path} is of a set cut into another number of shards than {count}; go on with the same files, "
                "--shard and number of processes, give another --out, or empty this one."
            )


def _merge(shards: _Shards) -> tuple[int, int] | None:
    """Write paths.csv and skipped.csv if all shards are finished: (images, skipped). Twice gives the same files."""
    if not all(shards.finished(number) for number in range(shards.number)):
        return None
    rows: list[tuple[object, ...]] = []
    skipped: list[tuple[object, ...]] = []
    for number in range(shards.number):
        for line in _read_csv(_part_path(shards.out, number, shards.number)):
            if line["problem"]:
                skipped.append((line["path"], line["problem"]))
            else:
                rows.append((line["row"], number, line["path"]))
    if skipped:
        _write(shards.out / SKIPPED, _csv(("path", "problem"), skipped))
    else:
        (shards.out / SKIPPED).unlink(missing_ok=True)
    _write(shards.out / PATHS, _csv(("row", "shard", "path"), rows))
    if not rows:
        raise ValueError(f"None of the {len(skipped)} files could be read; the first: {skipped[0][0]}: {skipped[0][1]}")
    return len(rows), len(skipped)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_embeddings(folder: str | Path) -> tuple[list[Path], np.ndarray, dict[str, Any]]:
    """(paths, features (n, D) float32, what the first shard tells) of a folder that ``embed_to`` finished.

    Raises ValueError for a folder that is none, is not finished, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    found = sorted(folder.glob("embeddings-*-of-*.safetensors"))
    if not found or not (folder / PATHS).is_file():
        raise ValueError(
            f"{folder}: no finished embeddings in it; `simclr embed MODEL PATH... --out {folder}` makes them."
        )
    lines = _read_csv(folder / PATHS)
    header = _read_header(found[0])
    try:
        features = np.concatenate([load_file(path)["features"].astype(np.float32) for path in found])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folder}: its shards cannot be read ({error}); run `simclr embed` again.") from None
    if header is None or header.get("format") != FORMAT or len(lines) != len(features):
        raise ValueError(f"{folder}: its shards and {PATHS} do not belong together; run `simclr embed` again.")
    return [Path(line["path"]) for line in lines], features, header


def skipped_files(folder: str | Path) -> list[Path]:
    """The files that could not be read when a folder of embeddings was made."""
    listed = Path(folder) / SKIPPED
    return [Path(line["path"]) for line in _read_csv(listed)] if listed.is_file() else []
