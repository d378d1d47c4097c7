"""The authors' lists of 1 % and 10 % of ImageNet, and labelled images by whatever people name them."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import httpx
import numpy as np

import zoo
from training.data import ImageSet, from_class_folders, from_table, stratified_subset
from zoo.files import cache_dir, written_whole

Share: TypeAlias = Literal["1pct", "10pct"]

ENDPOINT = "https://raw.githubusercontent.com"  # SIMCLR_SUBSETS_ENDPOINT names a mirror with the same paths instead
_FOLDER = "google-research/simclr/master/imagenet_subsets"
_TRIES = 3
_WAIT = 0.5  # seconds before the second try; doubled before each further one
_WNID = re.compile(r"n\d{8}")
_PREFIX = "imagenet_"


@dataclass(frozen=True)
class NameList:
    """A published list: one name such as ``n02107142_4388.JPEG`` a line, the class before the underscore."""

    file: str
    count: int
    nbytes: int
    sha256: str


# Counts, sizes and SHA-256 as TensorFlow Datasets records them (its data set imagenet2012_subset: README.md and
# checksums.tsv, unchanged from 4.4.0 of 2021 to 4.9.10 of 2026); the sizes are those of the files in the authors'
# repository, too.
LISTS: dict[Share, NameList] = {
    "1pct": NameList(
        "1percent.txt", 12_811, 260_323, "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"
    ),
    "10pct": NameList(
        "10percent.txt", 128_116, 2_603_168, "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"
    ),
}


# ---- the lists -------------------------------------------------------------------------------------------------------


def subset_names(share: Share, *, file: str | Path | None = None) -> list[str]:
    """The names of a published list, in its order: from ``file``, the cache, or its public home, and then cached.

    Raises ValueError if ``file`` is not that list, OSError if the list cannot be fetched or is not the published one.
    """
    if share not in LISTS:
        raise ValueError(f"Unknown subset {share!r}. Choose from: {', '.join(LISTS)}.")
    wanted = LISTS[share]
    if file is not None:
        content = _content(Path(file))
        reason = "no such file" if content is None else _difference(content, wanted)
        if content is None or reason:
            raise ValueError(
                f"{file}: not the published list {wanted.file} ({reason}). Lists of your own: a table path,label."
            )
    else:
        content = _cached(wanted)
    names = content.decode("ascii").split()
    assert len(names) == wanted.count
    return names


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _difference(content: bytes, wanted: NameList) -> str:
    """In what the content is not the wanted list; "" if it is."""
    if len(content) != wanted.nbytes:
        return f"{len(content):,} bytes instead of {wanted.nbytes:,}"
    found = hashlib.sha256(content).hexdigest()
    return "" if found == wanted.sha256 else f"SHA-256 {found[:12]}... instead of {wanted.sha256[:12]}..."


def _cached(wanted: NameList) -> bytes:
    place = cache_dir() / "imagenet_subsets" / wanted.file
    content = _content(place)
    if content is not None and not _difference(content, wanted):
        return content
    url = f"{(os.environ.get('SIMCLR_SUBSETS_ENDPOINT') or ENDPOINT).rstrip('/')}/{_FOLDER}/{wanted.file}"
    way_out = f"Fetch it by other means and put it at {place}."
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError(f"{url}: not fetched, HF_HUB_OFFLINE is set. {way_out}")
    content, reason = _fetch(url, wanted)
    if reason:
        raise OSError(f"{url}: {reason}. {way_out}")
    with written_whole(place) as temporary:
        temporary.write_bytes(content)
    return content


def _fetch(url: str, wanted: NameList) -> tuple[bytes, str]:
    """The content and "", or what is wrong: tried again where that may help."""
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT * 2 ** (attempt - 1))
        try:
            with httpx.stream("GET", url, timeout=10.0, follow_redirects=True, headers=_headers()) as answer:
                if answer.status_code != 200:
                    reason = f"HTTP status {answer.status_code}"
                    if answer.status_code != 429 and answer.status_code < 500:
                        break
                    continue
                content = _at_most(answer.iter_bytes(), wanted.nbytes + 1)
        except httpx.ConnectError as error:
            return b"", f"no connection ({error})"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"{type(error).__name__} {error}".rstrip()
            continue
        difference = _difference(content, wanted)
        return content, f"not the published list ({difference})" if difference else ""
    return b"", reason


def _headers() -> dict[str, str]:
    return {"User-Agent": f"simclrv2/{zoo.__version__}"}


def _at_most(pieces: Iterator[bytes], most: int) -> bytes:
    """The pieces in one; what goes beyond ``most`` is not waited for."""
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) >= most:
            break
    return bytes(data)


# ---- the images ------------------------------------------------------------------------------------------------------


def imagenet_subset(share: Share, train_folder: str | Path, *, file: str | Path | None = None) -> ImageSet:
    """The images of a published list (paper: section 4), in its order, with their labels.

    They are looked for at ``train_folder``/<wnid>/<name> and ``train_folder``/<name>. The classes are the sorted wnids:
    of the class folders if there are any, else of the list, which has all 1000.

    Raises ValueError for images that are missing, and as ``subset_names`` does.
    """
    folder = Path(train_folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    names = subset_names(share, file=file)
    wnids = [name.partition("_")[0] for name in names]
    folders = {path.name for path in folder.iterdir() if _WNID.fullmatch(path.name) and path.is_dir()}
    found = [_place(folder, wnid, name) for wnid, name in zip(wnids, names, strict=True)]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing):,} of the {len(names):,} images of imagenet_{share} are not there, the first is "
            f"{missing[0]}. Give ImageNet's training folder, with n01440764/n01440764_18.JPEG and so on."
        )
    classes = sorted(folders or set(wnids))
    number = {wnid: place for place, wnid in enumerate(classes)}
    strange = sorted(set(wnids) - set(classes))
    if strange:
        raise ValueError(f"{folder}: some class folders are there, but none for {strange[0]} ({len(strange)} lack).")
    labels = np.array([number[wnid] for wnid in wnids], dtype=np.int64)
    return ImageSet(tuple(path for path in found if path is not None), labels, tuple(classes))


def _place(folder: Path, wnid: str, name: str) -> Path | None:
    return next((path for path in (folder / wnid / name, folder / name) if path.is_file()), None)


def labelled_images(
    images_dir: str | Path, labels: str | Path | None = None, share: float | None = None, seed: int = 0
) -> ImageSet:
    """Labelled images below a folder, by any of the ways in which people name labels.

    ``labels``: None for class folders; ``imagenet_1pct`` or ``imagenet_10pct``; or a table, .csv or .parquet, with the
    columns path (relative to the folder) and label. ``share`` in (0, 1] takes that share of every class, drawn with
    ``seed``.

    Raises ValueError as ``from_class_folders``, ``from_table``, ``imagenet_subset`` and ``stratified_subset`` do.
    """
    names = [f"{_PREFIX}{name}" for name in get_args(Share)]
    if labels is None:
        found = from_class_folders(images_dir)
    elif str(labels) in names:
        found = imagenet_subset(cast(Share, str(labels).removeprefix(_PREFIX)), images_dir)
    elif not Path(labels).suffix:
        raise ValueError(f"Unknown labels {str(labels)!r}. Choose from: {', '.join(names)}, a .csv or .parquet file.")
    else:
        found = from_table(labels, root=images_dir)
    if share is not None:
        found = found.subset(stratified_subset(np.asarray(found.labels), fraction=share, seed=seed))
    return found
