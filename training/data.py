"""What people bring: folders and tables of images as one set, subsets of it, and batches that can be resumed."""

import csv as csv_module
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import Augmentation
from training.distributed import share
from zoo.folders import image_files, none_in, not_listed
from zoo.transforms import preprocess, read_image

OnSkip = Callable[[Path, str], None]  # (file, reason)

_log = logging.getLogger(__name__)


# ---- sets of images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Image files and, if known, their labels.

    ``labels`` is int64 (N,), places in ``classes``, -1 for an image without a label (``with_labels``); None if none has
    one, and then ``classes`` is empty.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.paths),):
            raise ValueError(
                f"Labels must be int64 of shape ({len(self.paths)},), one for each image, "
                f"not {self.labels.dtype} of shape {self.labels.shape}."
            )
        if len(self.labels) and not -1 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"Labels go from {self.labels.min()} to {self.labels.max()}, but must lie in "
                f"0..{len(self.classes) - 1}, the places of the {len(self.classes)} classes, or be -1 for none."
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images at these places, in this order, with all the classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return ImageSet(tuple(self.paths[i] for i in chosen), labels, self.classes)


def from_folder(directory: str | Path) -> ImageSet:
    """All images in a folder and the folders below it, unlabeled, sorted by path; hidden files are passed over, links
    to folders followed.

    Raises ValueError if there is no such folder, or no image in it.
    """
    return ImageSet(tuple(_image_files(_existing_folder(directory))))


def from_class_folders(directory: str | Path) -> ImageSet:
    """One folder for each class, images anywhere below it; the classes are the folders' names, sorted.

    Raises ValueError if there is no such folder, no class folder in it, or a class folder without an image or with a
    name that is no text.
    """
    directory = _existing_folder(directory)
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(f"{directory}: no folders in it. Expected one folder of images for each class.")
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(folder.name).decode("utf-8", "replace")
            raise ValueError(
                f"{directory}: the class folder {shown!r} has a name that is not UTF-8; rename it."
            ) from None
    files = [_image_files(folder) for folder in folders]
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(f) for f in files])
    return ImageSet(tuple(path for f in files for path in f), labels, tuple(folder.name for folder in folders))


def from_table(table: str | Path, *, root: str | Path | None = None, classes: Sequence[str] | None = None) -> ImageSet:
    """A ``.csv`` (``from_csv``) or ``.parquet`` (``from_parquet``) file with the columns ``path`` and ``label``.

    Raises ValueError for another ending, and as those two do.
    """
    ending = Path(table).suffix.lower()
    if ending not in _TABLES:
        raise ValueError(f"{table}: a table of labels ends in {' or '.join(_TABLES)}, not {ending or 'nothing'!r}.")
    return _TABLES[ending](table, root=root, classes=classes)


def from_csv(csv: str | Path, *, root: str | Path | None = None, classes: Sequence[str] | None = None) -> ImageSet:
    """A CSV file with the columns ``path`` and ``label`` (class names), in the order of its rows.

    Paths are relative to ``root``, by default the CSV file's folder. ``classes`` gives the classes' order; by default
    it is the labels, sorted (as numbers if all are whole numbers). A file repeated with the same label counts once,
    however its path is written.

    Raises ValueError for missing columns, missing files, empty or unknown labels, or a file with two labels.
    """
    csv = Path(csv)
    return _from_rows(_csv_rows(csv), csv, root=root, classes=classes)


def from_parquet(
    parquet: str | Path, *, root: str | Path | None = None, classes: Sequence[str] | None = None
) -> ImageSet:
    """A Parquet file with the columns ``path`` (text) and ``label`` (text or whole numbers); else as ``from_csv``.

    Needs pyarrow. Raises ValueError as ``from_csv`` does, if a column is of another type, or without pyarrow.
    """
    parquet = Path(parquet)
    return _from_rows(_parquet_rows(parquet), parquet, root=root, classes=classes)


_TABLES = {".csv": from_csv, ".parquet": from_parquet}


def _csv_rows(csv: Path) -> list[tuple[str, str]]:
    """(path, label) of each row, stripped, "" for what is not there."""
    try:
        with csv.open(encoding="utf-8-sig", newline="") as file:
            reader = csv_module.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [((row.get("path") or "").strip(), (row.get("label") or "").strip()) for row in reader]
    except FileNotFoundError:
        raise ValueError(f"{csv}: no such file.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{csv}: not UTF-8 text. Save it as 'CSV UTF-8'.") from None
    except csv_module.Error as error:
        raise ValueError(f"{csv}: cannot be read as CSV ({error}).") from None
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise ValueError(
            f"{csv}: no column {_listing(missing)}; its first line reads {', '.join(columns) or '(nothing)'}. "
            "The first line must name the columns 'path' and 'label'."
        )
    if not rows:
        raise ValueError(f"{csv}: no rows below the first line.")
    return rows


def _parquet_rows(parquet: Path) -> list[tuple[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet as reader
    except ImportError:
        raise ValueError(f"{parquet}: reading Parquet needs pyarrow: pip install pyarrow") from None
    if not parquet.is_file():
        raise ValueError(f"{parquet}: no such file.")
    try:
        with reader.ParquetFile(parquet) as file:
            columns = file.schema_arrow.names
            wrong = [name for name in ("path", "label") if columns.count(name) != 1]
            if wrong:
                raise ValueError(
                    f"{parquet}: no column {_listing(wrong)}, or more than one; its columns are {_listing(columns)}. "
                    "It must have one column 'path' and one 'label'."
                )
            table = file.read(columns=["path", "label"])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{parquet}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    if not table.num_rows:
        raise ValueError(f"{parquet}: no rows.")
    read = {name: table.column(name).to_pylist() for name in ("path", "label")}
    for name, kind, said in (("path", str, "text"), ("label", str | int, "text or whole numbers")):
        if any(value is not None and not isinstance(value, kind) for value in read[name]):
            raise ValueError(f"{parquet}: the column {name!r} is {table.schema.field(name).type}; make it {said}.")
    return list(zip(*(["" if v is None else str(v).strip() for v in values] for values in read.values()), strict=True))


def _from_rows(
    rows: Sequence[tuple[str, str]], table: Path, *, root: str | Path | None, classes: Sequence[str] | None
) -> ImageSet:
    """The checks that all tables share, and what is left after them."""
    base = table.parent if root is None else Path(root)
    labels = _one_label_each(rows, table, base)
    files = [base / path for path in labels]
    _refuse(
        [path for path, file in zip(labels, files, strict=True) if not file.is_file()],
        f"{table}: no such file below {base}:",
        "Correct the paths, or say where the images are with root=.",
    )
    names = set(labels.values())
    if classes is None:
        classes = sorted(names, key=int if all(n.isascii() and n.isdecimal() for n in names) else str)
    _refuse(
        sorted(names - set(classes)), f"{table}: labels that are no class:", f"The classes are {_listing(classes)}."
    )
    number = {name: i for i, name in enumerate(classes)}
    return ImageSet(tuple(files), np.array([number[n] for n in labels.values()], dtype=np.int64), tuple(classes))


def _one_label_each(rows: Sequence[tuple[str, str]], table: Path, base: Path) -> dict[str, str]:
    """path -> label, a file's path as it is written first."""
    first: dict[str, str] = {}
    labels: dict[str, str] = {}
    conflicts: dict[str, str] = {}
    start = base.absolute()
    for written, label in rows:
        path = first.setdefault(os.path.normpath(start / written), written)
        if labels.setdefault(path, label) != label:
            conflicts.setdefault(path, f"{path} ({labels[path]} or {label}?)")
    _refuse(
        [f"row {row}" for row, (path, _) in enumerate(rows, start=1) if not path],
        f"{table}: no path in",
        "Fill it in, or remove the rows.",
    )
    _refuse(list(conflicts.values()), f"{table}: two labels for", "Keep one row for each file.")
    unlabeled = [path for path, label in labels.items() if not label]
    _refuse(unlabeled, f"{table}: no label for", "Label them, or remove the rows.")
    return labels


def _existing_folder(directory: str | Path) -> Path:
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder.")
    return directory


def _image_files(folder: Path) -> list[Path]:
    def cannot(place: str, error: OSError) -> None:
        _log.warning("%s: %s; its images are left out.", place, not_listed(error))

    files = sorted(image_files(folder, links=True, on_error=cannot))
    if not files:
        raise ValueError(none_in(folder, links=True))
    return files


def _listing(items: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(repr(str(item)) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, ... ({len(items)} in all)"


def _refuse(items: Sequence[object], what: str, way_out: str) -> None:
    if items:
        raise ValueError(f"{what} {_listing(items)}. {way_out}")


def with_labels(images: ImageSet, labelled: ImageSet) -> ImageSet:
    """All of ``images``, with the labels that ``labelled`` has for some of the files and -1 for the rest.

    Raises ValueError if a labelled file is not among the images.
    """
    assert labelled.labels is not None
    known = {path.resolve(): int(label) for path, label in zip(labelled.paths, labelled.labels, strict=True)}
    places = [path.resolve() for path in images.paths]
    unknown = known.keys() - set(places)
    _refuse(
        [path for path in labelled.paths if path.resolve() in unknown] if unknown else (),
        f"Labels for files that are not among the {len(images)} images:",
        "Give the folder that holds them, or remove their rows.",
    )
    labels = np.array([known.get(path, -1) for path in places], dtype=np.int64)
    return ImageSet(images.paths, labels, labelled.classes)


def in_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The same labelled images, their labels as places in ``classes``, which may be more or in another order.

    Raises ValueError for a label that is not among ``classes``.
    """
    if images.classes == tuple(classes):
        return images
    assert images.labels is not None
    number = {name: place for place, name in enumerate(classes)}
    strange = [name for name, count in labels_per_class(images).items() if count and name not in number]
    _refuse(strange, f"Labels that are none of the {len(number)} classes:", f"Those are {_listing(classes)}.")
    places = np.array([*(number.get(name, -1) for name in images.classes), -1], dtype=np.int64)  # -1 stays -1
    return ImageSet(images.paths, places[images.labels], tuple(classes))


def spaced(count: int, limit: int) -> np.ndarray:
    """Places of up to ``limit`` of ``count`` images, evenly spaced: folders of classes lie one behind the other."""
    few = min(limit, count)
    return np.arange(few) * count // max(1, few)


def refuse_inside(out: Path, images: Path, *, option: str = "--out") -> None:
    """Raise ValueError for results that lie among the images: the pictures in them would become some of these."""
    if images.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} lies in the folder of images, and would become one of them; choose another {option}.")


def require_images(images: ImageSet, *, after: str = "") -> ImageSet:
    """The set itself. Raises ValueError if it is empty, naming what was done before (``after``)."""
    if not len(images):
        raise ValueError(f"No images are left{' after ' if after else ''}{after}: there is nothing to train on.")
    return images


def require_labels(images: ImageSet, *, least_per_class: int = 2, least_classes: int = 2) -> ImageSet:
    """The set itself, if it has enough labels to learn from.

    Raises ValueError if there are no labels, fewer than ``least_classes`` classes, or classes with fewer than
    ``least_per_class`` labels.
    """
    counts = labels_per_class(images)
    if not sum(counts.values()):
        raise ValueError(f"None of the {len(images)} images has a label. Give class folders, or a table path,label.")
    if len(counts) < least_classes:
        raise ValueError(
            f"All labels are of {_listing(list(counts))}, but telling classes apart takes at least {least_classes} "
            "of them. Add images of another class."
        )
    few = [f"{name} ({count})" for name, count in counts.items() if count < least_per_class]
    _refuse(few, f"Classes with fewer than {least_per_class} labels:", "Label more of them, or leave the class out.")
    return images


def labels_per_class(images: ImageSet) -> dict[str, int]:
    """The number of labelled images of each class, in the classes' order; {} for a set without labels."""
    if images.labels is None:
        return {}
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes))
    return dict(zip(images.classes, counts.tolist(), strict=True))


def stratified_subset(
    labels: np.ndarray, *, fraction: float | None = None, per_class: int | None = None, seed: int
) -> np.ndarray:
    """Places (sorted, int64) of a random subset with each class's share kept.

    Of a class of n images it takes ``fraction`` * n rounded to the nearest (halves up) but at least one, or
    ``per_class``. With the same seed a smaller subset is contained in a larger one, as the authors' 1 % is in the 10 %.

    Raises ValueError unless exactly one of the two is given, or if a class has fewer than ``per_class`` images.
    """
    if (fraction is None) == (per_class is None):
        raise ValueError("Give either fraction or per_class.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], not {fraction}; 0.01 is 1 %.")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class must be at least 1, not {per_class}.")
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if fraction is None else max(1, int(np.floor(fraction * len(members) + 0.5)))
        assert count is not None
        if count > len(members):
            raise ValueError(
                f"Class {label} has {len(members)} images, fewer than per_class={count}. Take at most {len(members)}."
            )
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


# ---- training batches ------------------------------------------------------------------------------------------------

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>
_Skipped = list[tuple[int, str]]  # place in the set, reason


@dataclass(frozen=True)
class Crops:
    """Random crops to be repeated: number c of an image is ``Augmentation(image_size, color=False, blur=False)`` with
    ``epoch=c, view=0, seed=seed``, c from 0 to ``count`` - 1."""

    count: int
    seed: int
    image_size: int


class _TrainingSteps(Dataset[tuple[dict[str, Tensor], _Skipped]]):
    """Step number -> its batch. Runs in the workers and is all that is sent to them."""

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        augmentation: Augmentation,
        views: int,
        seed: int,
        crops: Crops | None,
        process: tuple[int, int],
    ) -> None:
        self.images, self.augmentation, self.views, self.seed = images, augmentation, views, seed
        self.crops, self.process = crops, process
        self.batch_size = min(batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size
        self._order: tuple[int, np.ndarray] | None = None  # the epoch last used, and its permutation

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a step, and the places of its images (B,): a function of (seed, step)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        return epoch, self._order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], _Skipped]:
        epoch, indices = self.indices(step)
        pixels, kept, skipped = _read(self.images, indices[share(len(indices), *self.process)])
        batch = {"index": torch.tensor(kept, dtype=torch.int64)}
        seed = self.seed
        if self.crops is not None:
            epoch, seed = epoch % self.crops.count, self.crops.seed
            batch["crop"] = torch.full((len(kept),), epoch)
        if self.images.labels is not None:
            batch["label"] = torch.from_numpy(self.images.labels[kept])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: the last bits may depend on it
        try:
            views = self.augmentation.views(pixels, indices=kept, epoch=epoch, views=range(self.views), seed=seed)
            batch |= {f"view{number}": view for number, view in enumerate(views)}
        finally:
            torch.set_num_threads(threads)
        return batch, skipped


def _read(images: ImageSet, indices: np.ndarray) -> tuple[list[np.ndarray], list[int], _Skipped]:
    pixels, kept, skipped = [], [], []
    for index in indices.tolist():
        path = images.paths[index]
        try:
            pixels.append(read_image(path))
            kept.append(index)
        except ValueError as error:
            skipped.append((index, str(error).removeprefix(f"{path}: ")))
    return pixels, kept, skipped


class TrainingBatches:
    """Shuffled, augmented batches of an image set, the same for any number of workers and after any restart.

    An epoch is a permutation of the set, a function of (seed, epoch), cut into batches; the rest that does not fill a
    batch is dropped. A set smaller than ``batch_size`` is one batch an epoch.

    Images that cannot be read are left out: their batch is smaller by them. ``skipped`` collects them with the reason,
    and ``on_skip(path, reason)`` is called the first time each is met (by default a warning is logged).

    ``crops`` repeats, epoch after epoch, the crops that a teacher was asked about, and says in ``crop`` which each is.
    ``process`` = (number, processes): this process's part of every batch.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        augmentation: Augmentation,
        views: int,
        seed: int,
        workers: int = 1,
        crops: Crops | None = None,
        process: tuple[int, int] = (0, 1),
        on_skip: OnSkip | None = None,
    ) -> None:
        if not len(images):
            raise ValueError("The image set is empty: there is nothing to train on.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        if views not in (1, 2):
            raise ValueError(f"views must be 1 or 2, not {views}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but is {seed}.")
        self.images, self.workers = images, workers
        self._steps = _TrainingSteps(
            images,
            batch_size=batch_size,
            augmentation=augmentation,
            views=views,
            seed=seed,
            crops=crops,
            process=process,
        )
        if self.batch_size < process[1]:
            raise ValueError(
                f"A batch of {self.batch_size} images is fewer than one for each of {process[1]} processes."
            )
        self._skips = _Skips(images, on_skip)

    @property
    def batch_size(self) -> int:
        """Images in a batch before unreadable ones are left out."""
        return self._steps.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, at least 1."""
        return self._steps.steps_per_epoch

    @property
    def skipped(self) -> dict[Path, str]:
        """The unreadable files met so far, with the reason."""
        return self._skips.reasons

    def stream(self, *, start_step: int = 0, total_steps: int) -> Iterator[dict[str, Tensor]]:
        """The batches of the steps ``start_step`` to ``total_steps`` - 1 of the run, over all its epochs.

        Each is a dict of ``view0`` and, with two views, ``view1`` (B, 3, S, S) float32 in [0, 1], ``index`` (B,) int64,
        the images' places in the set, and, if the set is labelled, ``label`` (B,) int64; with ``crops`` also ``crop``.

        Raises ValueError if no image of a batch can be read; with several processes a part may be empty.
        """
        for batch, skipped in loaded(self._steps, range(start_step, total_steps), self.workers):
            self._skips.note(skipped)
            if not len(batch["index"]):
                self._refuse_empty(skipped)
            yield batch

    def _refuse_empty(self, skipped: _Skipped) -> None:
        if self._steps.process[1] == 1:
            names = [self.images.paths[index] for index, _ in skipped]
            raise ValueError(
                f"None of the {len(names)} images of a batch can be read: {_listing(names)}. "
                f"The first: {skipped[0][1]} Repair or remove them."
            )


class _Skips:
    """The unreadable files of a set, each reported once."""

    def __init__(self, images: ImageSet, on_skip: OnSkip | None) -> None:
        self.images, self.on_skip = images, on_skip or _warn
        self.reasons: dict[Path, str] = {}

    def note(self, skipped: _Skipped) -> None:
        for index, reason in skipped:
            path = self.images.paths[index]
            if path not in self.reasons:
                self.reasons[path] = reason
                self.on_skip(path, reason)


def _warn(path: Path, reason: str) -> None:
    _log.warning("Skipped %s: %s", path, reason)


def loaded(dataset: Dataset[Any], keys: range | Sequence[Any], workers: int) -> Iterable[Any]:
    """``dataset[key]`` for each key, in order, made ahead by ``workers`` processes (0: by this one)."""
    return DataLoader(
        dataset,
        batch_size=None,  # an item is a batch already
        sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # DataLoader draws a seed, which nothing here uses: not from the global generator
    )


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group by a terminal, by torchrun, by systemd
        signal.signal(number, signal.SIG_IGN)  # they are the parent's: it writes a checkpoint, then ends us
    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """From here on up to 2 GB of what is freed stay with the process, where glibc manages memory.

    Fresh pages take time to clear, and a step of ResNet-18 at batch 128 would ask for 320,000 of them. Other systems
    are left as they are.
    """
    _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def give_back_freed_memory() -> None:
    """The end of ``keep_freed_memory``: glibc's own ways, and what is free now goes back to the system."""
    _set_malloc({_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024})
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _set_malloc(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


# ---- evaluation batches ----------------------------------------------------------------------------------------------


class _EvaluationBatches(Dataset[tuple[Tensor, list[int], _Skipped]]):
    def __init__(self, images: ImageSet, *, size: int, batch_size: int) -> None:
        self.images, self.size, self.batch_size = images, size, batch_size

    def __getitem__(self, number: int) -> tuple[Tensor, list[int], _Skipped]:
        first = number * self.batch_size
        indices = np.arange(first, min(first + self.batch_size, len(self.images)))
        pixels, kept, skipped = _read(self.images, indices)
        batch = torch.empty(len(kept), 3, self.size, self.size)
        for out, index, image in zip(batch, kept, pixels, strict=True):
            try:
                out.copy_(torch.from_numpy(preprocess(image, self.size)))
            except ValueError as error:  # of the wrong size for a 32-pixel model: not a damaged file, but a mistake
                raise ValueError(f"{self.images.paths[index]}: {error}") from None
        return batch, kept, skipped


def evaluation_batches(
    images: ImageSet, *, size: int, batch_size: int = 64, workers: int = 0, on_skip: OnSkip | None = None
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """The images in their order through the evaluation transform (``zoo.preprocess``), never augmented.

    Yields (images (B, 3, size, size) float32 in [0, 1], labels (B,) int64 or None, places in the set (B,) int64).
    Images that cannot be read are left out and reported as in ``TrainingBatches``.

    Raises ValueError if none can be read, or if ``size`` <= 32 and an image has another size.
    """
    if not len(images):
        raise ValueError("The image set is empty: there is nothing to evaluate.")
    dataset = _EvaluationBatches(images, size=size, batch_size=batch_size)
    skips = _Skips(images, on_skip)
    for batch, kept, skipped in loaded(dataset, range(-(-len(images) // batch_size)), workers):
        skips.note(skipped)
        if kept:
            labels = None if images.labels is None else torch.from_numpy(images.labels[kept])
            yield batch, labels, torch.tensor(kept, dtype=torch.int64)
    if len(skips.reasons) == len(images):
        raise ValueError(f"None of the {len(images)} images can be read: {_listing(images.paths)}.")
