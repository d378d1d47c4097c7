"""Weights in a folder of their own, laid out as the cache is, with a lock file: it works with no network anywhere."""

import shutil
from pathlib import Path
from typing import Any

from zoo import lock
from zoo.files import check_room, written_whole
from zoo.model_file import (
    CONFIG_FILE,
    MODEL_FILE,
    config_of,
    config_path,
    known_sha256,
    read_config,
    read_header,
    sha256_of,
    write_config,
)
from zoo.registry import spec as find_spec
from zoo.sources import Wanted, cached, files_of
from zoo.weights import locate, required_name

_README = """\
Weights for simclrv2, to be used without a network:

    import zoo
    model = zoo.load(NAME, weights=WEIGHTS, cache_dir="path/to/this/folder")

or set SIMCLR_CACHE to this folder. simclr.lock tells names and weights (NAME:WEIGHTS) and the SHA-256 of every file;
they are checked at every load.
"""


def add(out: Path, model: str, weights: str, **options: Any) -> Path:
    """Put named weights, fetched if need be (``options`` as for ``zoo.load``), into the bundle ``out``; where they are
    there.

    Raises what ``zoo.load`` raises, TamperedError if the bundle has other content under this name already, OSError if
    ``out`` cannot be written.
    """
    required_name(weights, find_spec(model))
    source = locate(model, weights=weights, **options)
    whole = source / MODEL_FILE if source.is_dir() else source
    files = {MODEL_FILE: whole} if whole.exists() else {file.name: file for file in files_of(source)}
    check_room(out, sum(file.stat().st_size for file in files.values()), f"{model}:{weights}")
    hashes = {name: sha256_of(file) for name, file in files.items()}
    folder = out / model / weights
    lock.check(out / lock.LOCK_FILE, f"{model}:{weights}", hashes)
    for name, file in files.items():
        with written_whole(folder / name) as temporary:
            shutil.copyfile(file, temporary)
    if whole.exists():  # its config names the file, which may have another name here, or there is none
        config = config_of(read_header(whole), hashes)
        if known_sha256(whole) is not None:
            config = read_config(config_path(whole)) | {"files": hashes}
        write_config(folder / CONFIG_FILE, config)
    with written_whole(out / "README.txt") as temporary:
        temporary.write_text(_README, encoding="utf-8")
    return cached(Wanted(find_spec(model), weights, cache=out, local_files_only=True))
