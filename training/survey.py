"""One pass over an image set before training: what is there, what cannot be read, what is there twice."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.data import ImageSet, labels_per_class, require_images
from zoo.ahead import in_order
from zoo.console import plain
from zoo.files import json_object, write_json
from zoo.transforms import read_image

_CHUNK = 32  # images handed to a thread at a time
_SHOWN = 10  # files or classes named in `lines`; the JSON has all


# ---- one image -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What one file is."""

    sides: tuple[int, int] = (0, 0)  # shorter, longer; upright or not
    format: str = ""
    grey: bool = False
    nbytes: int = 0
    digest: bytes = b""
    reason: str = ""  # why it cannot be read


def _look(path: Path) -> _Look:
    try:
        pixels = read_image(path)  # in full: a truncated file shows only at its end
        with Image.open(path) as opened:
            kind = opened.format or "?"
        content = path.read_bytes()
    except (ValueError, OSError) as error:
        return _Look(reason=str(error).removeprefix(f"{path}: "))
    height, width = pixels.shape[:2]
    sides = (min(height, width), max(height, width))
    return _Look(sides, kind, _is_grey(pixels), len(content), hashlib.sha256(content).digest())


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels (H, W, 3) are the same everywhere; most colour shows in a few pixels."""
    few = pixels[:: max(1, len(pixels) // 8), :: max(1, pixels.shape[1] // 8)]
    return all(bool(np.array_equal(part[..., 0], part[..., k])) for part in (few, pixels) for k in (1, 2))


# ---- the whole set ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """Sides of the readable images in pixels; the median is one of them."""

    least: int
    median: int
    most: int


@dataclass(frozen=True)
class Survey:
    """What a set of images holds. ``dataclasses.asdict`` makes it fit for JSON.

    ``smaller`` counts the images whose shorter side is below ``smallest`` (None: not asked). ``duplicates`` are groups
    of files with the same bytes, ``contradictions`` those of them with more than one label. ``classes`` counts the
    labels of each class ({}: no labels), ``unlabelled`` the files without one, readable or not.
    """

    count: int
    readable: int
    unreadable: dict[str, str]  # path, reason
    nbytes: int
    formats: dict[str, int]
    shorter_side: Sides
    longer_side: Sides
    smallest: int | None
    smaller: int
    grey: int
    duplicates: list[list[str]]
    contradictions: list[list[str]]
    classes: dict[str, int]
    unlabelled: int
    classes_with_one_label: list[str]
    fingerprint: str  # of what was surveyed: paths, sizes, dates, labels

    @property
    def copies(self) -> int:
        """Files that could go without loss: all but the first of each group of duplicates."""
        return sum(len(group) - 1 for group in self.duplicates)

    def lines(self) -> list[str]:
        """The survey in plain words."""
        formats = ", ".join(f"{count:,} {name}" for name, count in self.formats.items())
        lines = [
            f"{_many(self.count, 'file')}, {_many(self.readable, 'readable image')}{': ' if formats else ''}{formats}"
        ]
        if self.readable:
            short, long = self.shorter_side, self.longer_side
            lines += [
                f"{self.nbytes / 1e6:,.1f} MB, {self.nbytes / 1e3 / self.readable:,.1f} kB an image",
                f"shorter side {short.least:,} to {short.most:,} pixels, median {short.median:,}; "
                f"longer side {long.least:,} to {long.most:,}, median {long.median:,}",
                f"{self.grey:,} grey ({self.grey / self.readable:.1%})",
            ]
        if self.smallest is not None:
            lines.append(f"{self.smaller:,} with a side below the {self.smallest:,} pixels of training")
        if self.classes:
            counts = self.classes.values()
            spread = f"{min(counts):,} to {max(counts):,} each"
            lines.append(f"{_many(sum(counts), 'label')} of {_many(len(counts), 'class', 'classes')}, {spread}")
            lines.append(f"{_many(self.unlabelled, 'file')} without a label")
        named = [
            ("cannot be read", [f"{path}: {reason}" for path, reason in self.unreadable.items()]),
            ("same bytes in more than one file", [" = ".join(_head(group, 3)) for group in self.duplicates]),
            ("same bytes, but not the same label", [" = ".join(_head(group, 3)) for group in self.contradictions]),
            ("classes without a label", [name for name, count in self.classes.items() if not count]),
            ("classes with one label", self.classes_with_one_label),
        ]
        for what, items in named:
            if items:
                lines += [f"{what} ({len(items):,}):", *(f"  {plain(item)}" for item in _head(items, _SHOWN))]
        return lines

    def save(self, path: str | Path) -> None:
        """As JSON, whole or not at all."""
        write_json(path, dataclasses.asdict(self))


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _head(items: Sequence[str], most: int) -> list[str]:
    return list(items) if len(items) <= most else [*items[:most], f"... and {len(items) - most:,} more"]


def survey(images: ImageSet, *, workers: int = 2, smallest: int | None = None, progress: bool = True) -> Survey:
    """Decodes every file once, in ``workers`` threads, and reports; nothing is raised for files that cannot be read.

    ``smallest`` is the side of the training images in pixels. Threads are as quick as processes here: decoding and
    hashing leave the interpreter free.

    Raises ValueError if the set is empty.
    """
    require_images(images)
    fingerprint = _fingerprint(images, smallest)
    chunks = [images.paths[first : first + _CHUNK] for first in range(0, len(images), _CHUNK)]
    looks: list[_Look] = []
    workers = max(1, workers)
    # `disable=None`: no bar where the output is no terminal
    with tqdm(
        total=len(images),
        desc="Looking at the images",
        unit=" images",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for found in in_order(_look_at_each, chunks, threads=workers, ahead=4 * workers):
            looks += found
            bar.update(len(found))
    return _summary(images, looks, smallest=smallest, fingerprint=fingerprint)


def _look_at_each(paths: Sequence[Path]) -> list[_Look]:
    return [_look(path) for path in paths]


def _summary(images: ImageSet, looks: Sequence[_Look], *, smallest: int | None, fingerprint: str) -> Survey:
    good = [look for look in looks if not look.reason]
    duplicates = list(_duplicates(looks))
    labels = images.labels
    classes = labels_per_class(images)
    return Survey(
        count=len(looks),
        readable=len(good),
        unreadable={str(p): look.reason for p, look in zip(images.paths, looks, strict=True) if look.reason},
        nbytes=sum(look.nbytes for look in good),
        formats=dict(Counter(look.format for look in good).most_common()),
        shorter_side=_sides([look.sides[0] for look in good]),
        longer_side=_sides([look.sides[1] for look in good]),
        smallest=smallest,
        smaller=sum(look.sides[0] < smallest for look in good) if smallest is not None else 0,
        grey=sum(look.grey for look in good),
        duplicates=[[str(images.paths[i]) for i in group] for group in duplicates],
        contradictions=[
            [str(images.paths[i]) for i in group]
            for group in duplicates
            if labels is not None and len({labels[i] for i in group} - {-1}) > 1
        ],
        classes=classes,
        unlabelled=len(images) - sum(classes.values()),
        classes_with_one_label=[name for name, count in classes.items() if count == 1],
        fingerprint=fingerprint,
    )


def _sides(sides: list[int]) -> Sides:
    return Sides(min(sides), median_low(sides), max(sides)) if sides else Sides(0, 0, 0)


def _duplicates(looks: Sequence[_Look]) -> Iterator[list[int]]:
    """Places of the files with the same bytes, in groups of two and more."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for place, look in enumerate(looks):
        if look.digest:
            same[look.digest].append(place)
    return (group for group in same.values() if len(group) > 1)


# ---- beside a run ----------------------------------------------------------------------------------------------------


def kept_survey(images: ImageSet, path: str | Path, *, workers: int = 2, smallest: int | None = None) -> Survey:
    """The survey in the JSON file at ``path`` if it is one of these very files, else a new one, kept there.

    Files are the same if their paths, sizes and dates are: a run that is resumed does not decode everything again.
    """
    try:
        told = json_object(Path(path).read_bytes())
        told |= {name: Sides(**told[name]) for name in ("shorter_side", "longer_side")}
        kept = Survey(**told)
        if kept.fingerprint == _fingerprint(images, smallest):
            return kept
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or of another version
        pass
    found = survey(images, workers=workers, smallest=smallest)
    found.save(path)
    return found


def _fingerprint(images: ImageSet, smallest: int | None) -> str:
    digest = hashlib.sha256(f"{smallest}\n{images.classes}\n".encode(errors="surrogateescape"))
    if images.labels is not None:
        digest.update(images.labels.tobytes())
    for path in images.paths:
        try:
            facts = path.stat()
            told = f"{path}\n{facts.st_size} {facts.st_mtime_ns}\n"
        except OSError:
            told = f"{path}\n-\n"
        digest.update(told.encode(errors="surrogateescape"))
    return digest.hexdigest()


def only_readable(images: ImageSet, found: Survey) -> ImageSet:
    """The images that could be read, in their order. Raises ValueError if there is none."""
    kept = [place for place, path in enumerate(images.paths) if str(path) not in found.unreadable]
    return require_images(images.subset(kept), after="leaving out files that cannot be read")
