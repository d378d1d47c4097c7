"""The Hugging Face Hub: repositories of weights, pulled and pushed with its own client."""

import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo import card, probe, stream
from zoo.files import check_room, json_object, platform_cache_dir
from zoo.model_file import (
    CONFIG_FILE,
    MODEL_FILE,
    SHARD_INDEX,
    config_of,
    describe,
    metadata,
    read_config,
    read_shards,
    sha256_of,
    weights_sha256,
    write_config,
)
from zoo.simclr import SimCLR

_PATTERNS = [CONFIG_FILE, "model*.safetensors", SHARD_INDEX]
_CARD_FILE, _EXPORT_FILE = "README.md", "model.onnx"
_WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"  # what a push replaces,
_EXPORTS = r"model\.onnx|[^/]+\.onnx\.[0-9a-f]{12}\.data"  # and this with a new export, or with other weights
_SHARD_BYTES = 5_000_000_000
_NO_XET = "This Hub does not speak Xet, the client's way to send large files; set HF_HUB_DISABLE_XET=1 and try again."


class HubError(ValueError):
    """The Hub does not give, or take, what was asked; one line."""


def cache_folder(cache: Path) -> Path:
    """Where the client keeps repositories: in its own cache, or in ``hub`` of a cache folder that was chosen."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) if cache == platform_cache_dir() else cache / "hub"


def fetch(repo_id: str, *, revision: str | None, cache: Path, offline: bool) -> Path:
    """The folder with a repository's config and tensors, downloaded if need be.

    Without ``revision``, or with a commit, what is there already is taken and the Hub is not asked; a branch or tag is
    asked for again. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_folder(cache),
        "allow_patterns": _PATTERNS,
        "endpoint": endpoint(),
    }
    with _told(repo_id, revision):
        if revision is None or offline or re.fullmatch("[0-9a-f]{40}", revision):
            try:
                folder = Path(snapshot_download(repo_id, local_files_only=True, **options))
                if _complete(folder):
                    return folder
            except FileNotFoundError:  # what the client raises for what it does not have is one
                pass
        if offline:
            raise HubError(f"{repo_id}: not downloaded yet, and offline (local_files_only, or HF_HUB_OFFLINE)")
        try:
            todo = snapshot_download(repo_id, dry_run=True, **options)
            needed = sum(file.file_size for file in todo if file.will_download)
        except (_http_error(), OSError):  # it may be here already; if not, the download says it
            needed = 0
        check_room(cache_folder(cache), needed, repo_id)
        folder = Path(snapshot_download(repo_id, **options))
    if not _complete(folder):
        raise HubError(f"{repo_id}: has no {CONFIG_FILE} with a {MODEL_FILE}")
    return folder


def endpoint() -> str | None:
    """``HF_ENDPOINT``, read now (the client reads it when it is imported); None: the client's own."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _complete(folder: Path) -> bool:
    if not (folder / CONFIG_FILE).exists():
        return False
    if (folder / MODEL_FILE).exists():
        return True
    try:
        return all((folder / shard).exists() for shard in read_shards(folder))
    except (OSError, ValueError):
        return False


def known_sha256(folder: Path) -> dict[str, str]:
    """The SHA-256 that the Hub announced of large files: the client names what came through LFS by it.

    (What came through Xet is named by Xet's own hash, and checked by it.)
    """
    blobs = {file.name: file.resolve() for file in folder.glob("model*.safetensors")}
    own = folder.resolve().parents[1] / "blobs"  # of snapshots/<commit>
    return {name: blob.name for name, blob in blobs.items() if blob.parent == own and len(blob.name) == 64}


@contextmanager
def _told(repo_id: str, revision: str | None) -> Iterator[None]:
    """The client's errors, as one line that says what to do."""
    from huggingface_hub import errors

    where = endpoint() or "the Hub"
    try:
        yield
    except HubError:
        raise
    except errors.RevisionNotFoundError:
        raise HubError(f"{repo_id} on {where} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise HubError(f"no repository {repo_id} on {where} (or it is private: run hf auth login)") from None
    except errors.LocalEntryNotFoundError:
        raise HubError(f"{repo_id}: {where} does not answer, and it was not downloaded before") from None
    except errors.HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {_first_line(error)}") from None
    except (_http_error(), OSError, RuntimeError) as error:  # of the Hub, the network, and hf_xet
        if "xet-write-token" in str(error):
            raise HubError(f"{repo_id} on {where}: {_NO_XET}") from None
        raise HubError(f"{repo_id} on {where}: {_first_line(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # what the client makes of it
        raise HubError(f"{where} does not answer as a Hub does ({type(error).__name__}); is it one?") from None


def _http_error() -> type[Exception]:
    """The base of what the client's HTTP library raises (httpx2 in version 2, httpx in version 1)."""
    from huggingface_hub import utils

    library = getattr(utils, "httpx", None) or importlib.import_module("httpx")
    error: type[Exception] = library.HTTPError
    return error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def push(
    model: SimCLR,
    repo_id: str,
    *,
    measured: Sequence[Mapping[str, Any]] = (),
    onnx: str | Path | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> str:
    """Push a model to a repository of the Hub, made if need be; the commit that holds it.

    One commit of safetensors (in shards over ``shard_bytes``), config.json, a model card, and the exported ``onnx`` if
    given, as model.onnx, with the file of its external data if it has one, under the name that it has for it; where
    nothing changed there is none. An export that is there stays as long as the weights do; what is deleted is told on
    the error output. ``measured``: for the card, what ``simclr evaluate --json`` prints (keys
    ``top1`` and ``top5`` from 0 to 1, ``images``, ``interval``) with the name of the ``dataset``. ``tag`` names the
    commit for good.

    Raises HubError (a ValueError), in one line, for what the Hub refuses; OSError if there is no room for the files.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    with tempfile.TemporaryDirectory(prefix="simclr-push-") as name:
        files = _stage(model, repo_id, Path(name), measured, onnx, shard_bytes)
        exported = card.model_card(model, repo_id, measured, onnx=True)
        with _told(repo_id, tag):
            return _commit(api, repo_id, files, exported, message=_message(model), tag=tag, private=private)


def _message(model: SimCLR) -> str:
    return f"{model.spec.name}, {model.facts.get('weights') or 'weights'}"


def _commit(
    api: Any,
    repo_id: str,
    files: Mapping[str, Path],
    exported: str,
    *,
    message: str,
    tag: str | None,
    private: bool | None,
) -> str:
    """What is new of ``files`` in one commit, if anything is, and the tag. ``exported``: the card where one stays."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo_id, private=private, exist_ok=True)
    head = api.model_info(repo_id, files_metadata=True)
    there = {file.rfilename: file for file in head.siblings or ()}
    changed, stale = _changes(files, there, exported)
    if (
        changed == {CONFIG_FILE} and not stale and CONFIG_FILE in there
    ):  # its outputs differ in the last bits by machine
        theirs = api.hf_hub_download(
            repo_id, CONFIG_FILE, revision=head.sha, local_dir=files[CONFIG_FILE].parent / "there"
        )
        if _but_outputs(Path(theirs)) == _but_outputs(files[CONFIG_FILE]):
            changed = set()
    tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}.get(tag or "")
    if tagged is not None and (changed or stale or tagged != head.sha):
        raise HubError(f"{repo_id} has a tag {tag!r} already, on the commit {tagged[:8]}; choose another.")
    commit = str(head.sha)
    if changed or stale:
        operations: list[Any] = [CommitOperationDelete(path) for path in sorted(stale)]
        operations += [CommitOperationAdd(path, files[path]) for path in sorted(changed)]
        commit = api.create_commit(repo_id, operations, commit_message=message, parent_commit=commit).oid
        if stale:
            print(f"{repo_id}: deleted {', '.join(sorted(stale))}, of the version before.", file=sys.stderr)
    if tag is not None and tagged is None:
        api.create_tag(repo_id, tag=tag, revision=commit)
    return commit


def _changes(files: Mapping[str, Path], there: Mapping[str, Any], exported: str) -> tuple[set[str], set[str]]:
    """The paths to write and those to delete. An export of the same weights stays unless a new one comes, and the card
    (its text then: ``exported``) goes on naming it."""

    def differing(paths: Iterable[str]) -> set[str]:
        return {path for path in paths if path not in there or not _same(files[path], there[path])}

    changed, left = differing(files), there.keys() - files.keys()
    stale = {path for path in left if re.fullmatch(_WEIGHTS, path)}
    exports = {path for path in left if re.fullmatch(_EXPORTS, path)}
    if _EXPORT_FILE in files or any(re.fullmatch(_WEIGHTS, path) for path in changed | stale):
        return changed, stale | exports
    if _EXPORT_FILE in exports:
        files[_CARD_FILE].write_text(exported, encoding="utf-8")
        changed = changed - {_CARD_FILE} | differing([_CARD_FILE])
    return changed, stale


def _but_outputs(config: Path) -> dict[str, Any]:
    try:
        return {key: value for key, value in read_config(config).items() if key != "probe"}
    except ValueError:
        return {}


def _stage(
    model: SimCLR,
    repo_id: str,
    folder: Path,
    measured: Sequence[Mapping[str, Any]],
    onnx: str | Path | None,
    shard_bytes: int,
) -> dict[str, Path]:
    """The repository's files, by their path in it."""
    check_room(folder, 4 * sum(value.numel() for value in model.state_dict().values()), "a copy of the model")
    hashes = _write_tensors(model, folder, metadata(model), shard_bytes)
    write_config(folder / CONFIG_FILE, config_of(describe(model), hashes) | {"probe": _outputs(model)})
    text = card.model_card(model, repo_id, measured, onnx=onnx is not None)
    (folder / _CARD_FILE).write_text(text, encoding="utf-8")
    files = {file.name: file for file in sorted(folder.iterdir())}
    if onnx is not None:
        exported = _export_of(model, Path(onnx))
        taken = sorted(set(exported) & set(files))
        if taken:
            raise HubError(f"{onnx}: its data lie in {taken[0]}, a name that this repository needs; export it again.")
        files |= exported
    return files


def _outputs(model: SimCLR) -> dict[str, Any]:
    """Outputs to verify it by, in evaluation mode; every part is left in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        return probe.outputs(model.eval())
    finally:
        for module, training in modes.items():
            module.training = training


def _write_tensors(model: SimCLR, folder: Path, told: Mapping[str, str], shard_bytes: int) -> dict[str, str]:
    """The tensors in one file or several, the same bytes for the same model; the SHA-256 of each.

    The safetensors package writes its metadata in an order that changes from call to call: hence our own writer.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    state = model.state_dict()
    split = split_torch_state_dict_into_shards(state, max_shard_size=shard_bytes)
    hashes = {}
    for file, names in split.filename_to_tensors.items():
        target = stream.Target(folder / file, {name: tuple(state[name].shape) for name in names}, told)
        target.begin()
        for name in names:
            target.put(name, state[name].detach().cpu().numpy())
        hashes[file] = target.seal()
        target.finish()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SHARD_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return hashes


def _same(file: Path, there: Any) -> bool:
    """Whether the Hub has these bytes already: by SHA-256 for large files, by git's SHA-1 for others."""
    if there.lfs is not None:
        return bool(there.lfs.sha256 == sha256_of(file))
    data = file.read_bytes() if file.stat().st_size == (there.size or 0) else b""
    return bool(hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == there.blob_id)


def _export_of(model: SimCLR, path: Path) -> dict[str, Path]:
    """An exported file and that of its external data, by their path in the repository, if they are this model's.

    Raises HubError.
    """
    import onnx

    if not path.is_file():
        raise HubError(f"{path}: no such file.")
    try:
        loaded = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, whatever it is called in this version
        raise HubError(f"{path}: not an ONNX file ({_first_line(error)}).") from None
    told = {entry.key: entry.value for entry in loaded.metadata_props}
    if told.get("weights_sha256") != weights_sha256(model):
        raise HubError(f"{path} is not an export of this {model.spec.name}; export it again.")
    located = {
        entry.value
        for tensor in loaded.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {_EXPORT_FILE: path} | _data_of(path, told.get("external_data", "{}"), located)


def _data_of(path: Path, told: str, located: set[str]) -> dict[str, Path]:
    """The file beside an exported one where all its external tensors lie, if any do. Raises HubError."""
    try:
        record = json_object(told)
        name, recorded = str(record.get("file", "")), (record.get("bytes"), record.get("sha256"))
    except ValueError:
        raise HubError(f"{path}: its metadata is damaged (external_data); export it again.") from None
    if not located and not record:
        return {}
    beside = path.parent / name
    if located != {name} or not re.fullmatch(r"[^./\\:][^/\\:]*", name) or beside.is_symlink():
        raise HubError(f"{path}: its weights lie in other files than the one it records; export it again.")
    if not beside.is_file():
        raise HubError(f"{beside}: no such file, and the weights of {path.name} lie in it; export it again.")
    if recorded != (beside.stat().st_size, sha256_of(beside)):
        raise HubError(f"{beside}: not the file that {path.name} was written with; export it again.")
    return {name: beside}
