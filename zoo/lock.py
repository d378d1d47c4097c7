"""simclr.lock: the SHA-256 of every file of weights, recorded when it is first used and checked from then on."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from zoo import stream
from zoo.files import cache_dir, json_object, written_whole

LOCK_FILE = "simclr.lock"
ENVIRONMENT = "SIMCLR_LOCK"  # names another lock file


class TamperedError(ValueError):
    """A file of weights is not what it was, or not what it is said to be; nothing of it was used."""


def lock_path(root: Path) -> Path:
    """``SIMCLR_LOCK``, such as a file kept with a project, else simclr.lock in the cache folder ``root``."""
    return Path(os.environ.get(ENVIRONMENT) or root / LOCK_FILE)


def read(path: Path) -> dict[str, dict[str, str]]:
    """SHA-256 by file, by weights (``r50_1x:pretrained``). Raises ValueError for a damaged lock file."""
    if not path.exists():
        return {}
    try:
        weights = json_object(path.read_bytes())["weights"]
        return {str(key): {str(name): str(sha256) for name, sha256 in files.items()} for key, files in weights.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a readable lock file ({error}); restore it, or delete it and begin anew."
        ) from None


def check(path: Path, key: str, files: Mapping[str, str]) -> None:
    """Compare with what is recorded for ``key``; record it if nothing is.

    Raises TamperedError if it differs. A lock file that cannot be written (a read-only folder) records nothing.
    """
    recorded = read(path).get(key)
    if recorded is None:
        try:
            recorded = _recorded(path, key, files)
        except OSError:
            return
    if recorded != dict(files):
        name = next(name for name in sorted(recorded.keys() | files) if recorded.get(name) != files.get(name))
        raise TamperedError(
            f"{key}: {name} has the SHA-256 {files.get(name, '-')}, but {path} has {recorded.get(name, '-')} for it "
            f"from its first use. If the change is meant: {_forgetting(path, key)}."
        )


def _forgetting(path: Path, key: str) -> str:
    """The command that takes ``key`` out of this lock file, which may be another than the one it takes by itself."""
    told = "" if path == lock_path(cache_dir()) else f"{ENVIRONMENT}={shlex.quote(str(path))} "
    return f"{told}simclr lock --forget {shlex.quote(key)}"


def _recorded(path: Path, key: str, files: Mapping[str, str]) -> dict[str, str]:
    """What is recorded for ``key`` once ``files`` are, unless another process was first."""
    with stream.alone(path):
        weights = read(path)
        if key not in weights:
            weights[key] = dict(files)
            _write(path, weights)
        return weights[key]


def forget(path: Path, key: str) -> None:
    """Forget what is recorded for ``key``. Raises ValueError if nothing is."""
    with stream.alone(path):
        weights = read(path)
        if key not in weights:
            raise ValueError(f"{path} has nothing about {key}.")
        del weights[key]
        _write(path, weights)


def _write(path: Path, weights: Mapping[str, Mapping[str, str]]) -> None:
    with written_whole(path) as temporary:
        content = json.dumps({"version": 1, "weights": weights}, indent=2, sort_keys=True)
        temporary.write_text(content + "\n", encoding="utf-8")
