"""Where weights come from, and in what order: bundled, the cache, a Hub repository, the authors' bucket.

Whatever the source, a file is hashed, and compared with what is known of it, before a tensor of it is used.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo import lock
from zoo.lock import TamperedError
from zoo.model_file import (
    CONFIG_FILE,
    MODEL_FILE,
    SHARD_INDEX,
    known_sha256,
    read_config,
    read_header,
    read_shards,
    sha256_of,
)
from zoo.registry import BUNDLED, CATEGORIES, EMA, Spec

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


class WeightsNotFoundError(ValueError):
    """No source has the weights; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Wanted:
    """What is looked for, and where it may be looked for."""

    spec: Spec
    weights: str
    cache: Path
    namespace: str | None = None  # whose repositories on the Hub
    revision: str | None = None  # a tag, branch or commit there
    local_files_only: bool = False
    say: Callable[[str], None] = lambda line: None

    @property
    def name(self) -> str:
        return f"{self.spec.name}:{self.weights}"

    @property
    def folder(self) -> Path:
        """Where the cache keeps them."""
        return self.cache / self.spec.name / self.weights

    @property
    def offline(self) -> bool:
        """No network: asked for, or ``HF_HUB_OFFLINE`` is set."""
        return self.local_files_only or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def find(wanted: Wanted) -> Path:
    """A file, or a folder with shards, on this machine, checked. The first source that has it is taken.

    Raises WeightsNotFoundError with a line for each source that has it not, TamperedError for a file that is not what
    it should be.
    """
    tried = []
    for source, look in SOURCES:
        try:
            return look(wanted)
        except WeightsNotFoundError as reason:
            tried.append(f"  {source}: {reason}")
    raise WeightsNotFoundError(
        f"Weights {wanted.weights!r} of {wanted.spec.name!r} were not found. Tried:\n"
        + "\n".join(tried)
        + f"\nPut the file at {wanted.folder / MODEL_FILE}, or give its path: "
        f"zoo.load({wanted.spec.name!r}, weights='file.safetensors'). "
        "A checkpoint of the authors becomes one with: simclr convert."
    )


def _bundled(wanted: Wanted) -> Path:
    sha256 = BUNDLED.get((wanted.spec.name, wanted.weights))
    if sha256 is None:
        raise WeightsNotFoundError("not among the weights bundled with this package")
    if wanted.revision is not None:
        raise WeightsNotFoundError(_no_revisions(wanted))
    path = BUNDLED_FOLDER / f"{wanted.spec.name}.{wanted.weights}.safetensors"
    if not path.is_file():
        raise WeightsNotFoundError(f"no file {path}")
    _compare(path, sha256_of(path), sha256, "this package")
    return path


def cached(wanted: Wanted) -> Path:
    """What the cache folder has. Raises WeightsNotFoundError, or TamperedError."""
    if wanted.revision is not None:
        raise WeightsNotFoundError(_no_revisions(wanted))
    flat = wanted.folder.with_name(f"{wanted.weights}.safetensors")  # put there by hand
    for path in (wanted.folder, flat):
        if (path / MODEL_FILE).exists() or (path / SHARD_INDEX).exists() or path.is_file():
            return _checked(path, wanted, key=wanted.name)
    raise WeightsNotFoundError(f"no file {wanted.folder / MODEL_FILE}")


def _no_revisions(wanted: Wanted) -> str:
    return f"has no revisions, and {wanted.revision!r} was asked for"


def _hub(wanted: Wanted) -> Path:
    if not wanted.namespace:
        raise WeightsNotFoundError("skipped; SIMCLR_HUB_NAMESPACE, or namespace=, names whose repositories to ask")
    return from_hub(hub_name(wanted.namespace, wanted.spec, wanted.weights), wanted)


def hub_name(namespace: str, spec: Spec, weights: str) -> str:
    """The repository that holds one model's weights: ``me/simclrv2-r50_1x-finetuned_1pct``."""
    return f"{namespace}/simclrv2-{spec.name}-{weights}"


def from_hub(repo_id: str, wanted: Wanted) -> Path:
    """The folder of a repository's files, downloaded if need be. Raises WeightsNotFoundError with the reason."""
    from zoo import hub

    try:
        folder = hub.fetch(repo_id, revision=wanted.revision, cache=wanted.cache, offline=wanted.offline)
    except hub.HubError as error:
        raise WeightsNotFoundError(str(error)) from None
    key = f"hf://{repo_id}" + (f"@{wanted.revision}" if wanted.revision else "")
    return _checked(folder, wanted, key=key, root=hub.cache_folder(wanted.cache), known=hub.known_sha256(folder))


def _bucket(wanted: Wanted) -> Path:
    category = wanted.weights.removesuffix(EMA)
    if category not in CATEGORIES:
        raise WeightsNotFoundError("holds only what the authors published")
    if wanted.revision is not None:
        raise WeightsNotFoundError(_no_revisions(wanted))
    if wanted.offline:
        raise WeightsNotFoundError("skipped; offline (local_files_only, or HF_HUB_OFFLINE)")
    from zoo import bucket, conversion, stream

    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        _check_inside(wanted.folder, wanted.cache.resolve())
        with stream.alone(wanted.folder, wanted.say, locks=wanted.cache / "locks"):
            try:
                return cached(wanted)  # another process has been faster
            except WeightsNotFoundError:
                pass
            with bucket.Bucket() as connection:
                checkpoint, prefix = connection.open_published(wanted.spec, category)
                wanted.say(f"Fetching {wanted.name} from the authors' bucket ({connection.endpoint}/{prefix}).")
                source = conversion.tensorflow_source(checkpoint, prefix)
                conversion.write(
                    dataclasses.replace(source, origin=prefix, published=True, stop=connection.stop),
                    wanted.folder / MODEL_FILE,
                    model=wanted.spec,
                    weights=wanted.weights,
                    keep_unfinished=True,
                    workers=4,
                )
            return cached(wanted)
    except TamperedError:
        raise
    except (OSError, ValueError) as error:  # of the bucket, the checkpoint, the disk
        raise WeightsNotFoundError(" ".join(str(error).split())) from None


# Asked in this order; each gives a checked file or folder on this machine, or says in one line why it cannot.
SOURCES: tuple[tuple[str, Callable[[Wanted], Path]], ...] = (
    ("bundled", _bundled),
    ("cache", cached),
    ("Hub", _hub),
    ("authors' bucket", _bucket),
)


def _checked(
    path: Path, wanted: Wanted, *, key: str, root: Path | None = None, known: Mapping[str, str] | None = None
) -> Path:
    """``path`` again, if its files are inside the cache, what is known of them, and what they are said to be."""
    root = (root or wanted.cache).resolve()
    files = files_of(path)
    for file in [*files, path / CONFIG_FILE] if path.is_dir() else files:
        if file.exists():
            _check_inside(file, root)
        elif file in files:
            raise TamperedError(f"{path} has no {file.name}; delete it and load again.")
    hashes = {file.name: sha256_of(file) for file in files}
    for file in files:
        expected = known.get(file.name) if known else known_sha256(file)
        _compare(file, hashes[file.name], expected, "what was announced" if known else "the config beside it")
    _is_what_it_is_called(path, wanted)
    named = hashes if len(files) > 1 else {MODEL_FILE: hashes[files[0].name]}  # whatever a file by itself is called
    lock.check(lock.lock_path(wanted.cache), key, named)
    return path


def _check_inside(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise TamperedError(f"{path} leads out of the cache, to {path.resolve()}; delete it.")


def files_of(path: Path) -> list[Path]:
    """All that is used of a file, or of a folder: with shards, their index and the config that tells the model.

    Raises TamperedError for a folder that has neither a model nor a readable index of shards.
    """
    if path.is_file():
        return [path]
    if (path / MODEL_FILE).exists():
        return [path / MODEL_FILE]
    try:
        shards = sorted(read_shards(path))
    except (OSError, ValueError) as error:
        raise TamperedError(f"{path}: no {MODEL_FILE} and no readable shards of one ({error}).") from None
    return [*(path / name for name in shards), path / SHARD_INDEX, path / CONFIG_FILE]


def check_beside(path: Path) -> None:
    """Raise TamperedError if a file given by its path is not the one that the config beside it is about."""
    for file in files_of(path) if path.exists() else ():
        expected = known_sha256(file)
        if expected is not None and file.is_file():
            _compare(file, sha256_of(file), expected, "the config beside it")


def _compare(path: Path, found: str, expected: str | None, by: str) -> None:
    if expected is not None and found != expected:
        raise TamperedError(
            f"{path.resolve()} is damaged or was changed: its SHA-256 is {found}, but {by} has {expected}. "
            "Delete it and load again."
        )


def _is_what_it_is_called(path: Path, wanted: Wanted) -> None:
    """A file tells its model, a converted one its category too; one in the place of another is refused."""
    file = path / MODEL_FILE if path.is_dir() else path
    try:
        header = read_header(file) if file.exists() else read_config(path / CONFIG_FILE)
        spec, facts = Spec(**header["spec"]), header.get("facts", {})
        told = f"{facts.get('weights')}{EMA}" if facts.get("ema") else facts.get("weights")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TamperedError(f"{path}: what it says of its architecture makes no sense ({error}); delete it.") from None
    if spec != wanted.spec:
        raise TamperedError(f"{path} holds {spec.name}, not {wanted.spec.name}; delete it.")
    named = wanted.weights.removesuffix(EMA) in CATEGORIES and str(told).removesuffix(EMA) in CATEGORIES
    if named and told != wanted.weights:
        raise TamperedError(f"{path} holds the weights {told!r}, not {wanted.weights!r}; delete it.")
