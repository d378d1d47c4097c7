"""Weights in a folder of their own, laid out as the cache is, with a lock file: it works with no network anywhere."""

import shutil
from pathlib import Path
from typing import Any

from zoo import lock
from zoo.files import written_whole
from zoo.model_file import CONFIG_FILE, MODEL_FILE, config_of, read_header, sha256_of, write_config
from zoo.registry import spec as find_spec
from zoo.sources import Wanted, cached
from zoo.weights import locate

_README = """\
Weights for simclrv2, to be used without a network:

    import zoo
    model = zoo.load("{model}", weights="{weights}", cache_dir="path/to/this/folder")

or set SIMCLR_CACHE to this folder. simclr.lock has the SHA-256 of every file; they are checked at every load.
"""


def add(out: Path, model: str, weights: str, **options: Any) -> Path:
    """Put weights, fetched if need be (``options`` as for ``zoo.load``), into the bundle ``out``; where they are there.

    Raises what ``zoo.load`` raises; OSError if ``out`` cannot be written. A bundle that has them already is checked.
    """
    source = locate(model, weights=weights, **options)
    folder = out / model / weights
    files = [source] if source.is_file() else sorted(source.glob("model*"))
    hashes = {}
    for file in files:
        target = folder / (MODEL_FILE if source.is_file() else file.name)
        with written_whole(target) as temporary:
            shutil.copyfile(file, temporary)
        if target.suffix == ".safetensors" or target.name.endswith(".index.json"):
            hashes[target.name] = sha256_of(target)
    if source.is_file():  # its config names the file, which has another name here
        write_config(folder / CONFIG_FILE, config_of(read_header(source), hashes))
    else:
        with written_whole(folder / CONFIG_FILE) as temporary:
            shutil.copyfile(source / CONFIG_FILE, temporary)
    lock.record(out / lock.LOCK_FILE, f"{model}:{weights}", hashes)
    with written_whole(out / "README.txt") as temporary:
        temporary.write_text(_README.format(model=model, weights=weights), encoding="utf-8")
    return cached(Wanted(find_spec(model), weights, cache=out, local_files_only=True))
