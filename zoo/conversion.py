"""A checkpoint from elsewhere in, one safetensors file of ours out, with its origin, and outputs to verify it by."""

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from zoo import convert as names
from zoo import model_file, pickles, probe, stream
from zoo.files import sync_folder
from zoo.registry import CATEGORIES, EMA, Spec, paper_top1, suggest
from zoo.registry import spec as find_spec
from zoo.simclr import SimCLR
from zoo.tf_checkpoint import Checkpoint, find_prefix, masked_crc32c, open_checkpoint

LICENCE = "Apache-2.0"  # the authors' weights and code


@dataclass(frozen=True)
class Source:
    """A checkpoint from elsewhere, opened: variables that are read when they are asked for."""

    variables: Mapping[str, np.ndarray]
    layout: names.Layout
    origin: str  # as its facts will tell it
    path: str  # what its category and model may be read from
    sha256: str  # of the .index, which holds every tensor's CRC; of the whole file for a pickle
    step: int | None
    published: bool = False  # it comes from where the authors keep it
    stop: Callable[[], None] = lambda: None  # makes reads that are under way end soon


def convert(
    source: str | Path,
    out: str | Path,
    *,
    model: str | Spec | None = None,
    weights: str | None = None,
    ema: bool = False,
    num_classes: int | None = None,
    image_size: int | None = None,
    to: Literal["simclrv2", "torchvision"] = "simclrv2",
) -> Path:
    """Convert a checkpoint from elsewhere into ``out``, a safetensors file, with its config.json; where the config is.

    ``source``: a TensorFlow checkpoint (prefix, file or folder), or a pickle in the layout of
    ``lightly-ai/simclrv2-imagenet1k-*`` or of VISSL's converted file. ``model`` and ``weights`` (a category, such as
    ``finetuned_1pct``) are recognised where they can be. ``ema``: take the moving averages. ``num_classes``: what the
    classifier must have; 0 leaves it out. ``to="torchvision"``: torchvision's names, for the networks it has.

    Raises ValueError (CheckpointError for a damaged source) for what does not fit or contradicts itself, OSError if
    ``out`` cannot be written; nothing is left behind then.
    """
    with opened(Path(source), ema=ema) as found:
        return write(
            found,
            Path(out),
            model=model,
            weights=weights,
            ema=ema,
            num_classes=num_classes,
            image_size=image_size,
            to=to,
        )


@contextmanager
def opened(path: Path, *, ema: bool = False) -> Iterator[Source]:
    """A source on this machine. Raises ValueError for what is none."""
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is a safetensors file already; zoo.load_file reads it if it is one of this zoo.")
    if path.is_file() and path.suffix in pickles.ENDINGS:
        if ema:
            raise ValueError(f"{path} holds one set of weights; leave --ema out.")
        with pickles.tensors_of(path) as copy:
            yield Source(_Tensors(copy), names.PORT, path.name, str(path), model_file.sha256_of(path), None)
        return
    checkpoint = open_checkpoint(path)
    yield tensorflow_source(checkpoint, str(find_prefix(path).resolve()))


def tensorflow_source(checkpoint: Checkpoint, path: str) -> Source:
    """A TensorFlow checkpoint as a source. ``path``: its prefix, of which its facts tell the last part."""
    name = re.split(r"[/\\]", path)[-1]
    found = re.search(r"-(\d+)$", name)
    step = int(found[1]) if found else None
    return Source(checkpoint, names.TENSORFLOW, name, path, checkpoint.index_sha256, step)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="np") as file:
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            with safe_open(self._path, framework="np") as file:
                return np.asarray(file.get_tensor(name))
        except SafetensorError as error:
            raise ValueError(f"{name} cannot be read ({error}).") from None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write(
    source: Source,
    out: Path,
    *,
    model: str | Spec | None = None,
    weights: str | None = None,
    ema: bool = False,
    num_classes: int | None = None,
    image_size: int | None = None,
    to: Literal["simclrv2", "torchvision"] = "simclrv2",
    keep_unfinished: bool = False,
    workers: int = 2,
) -> Path:
    """``convert`` of a source that is open. ``keep_unfinished``: what is interrupted goes on at the next call."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file in it, such as {out / model_file.MODEL_FILE}.")
    if weights is not None and weights.endswith(EMA):
        weights, ema = weights.removesuffix(EMA), True
    shapes = names.shapes_of(source.variables)
    category = _category(source, weights)
    plan = names.plan(
        shapes,
        _model(source, model),
        layout=source.layout,
        image_size=image_size,
        classify_from=_classify_from(shapes, source.layout, category),
        ema=ema,
        classifier=num_classes != 0,
    )
    if num_classes and plan.model.num_classes != num_classes:
        raise ValueError(f"The classifier has {plan.model.num_classes or 'no'} classes, not {num_classes}.")
    _check_last_beta(source)
    averages = ema or (source.layout is names.PORT and "_ema" in Path(source.path).stem)
    authors = category is not None and _is_the_authors(source, plan.model, category)
    plan.model.facts = {
        "weights": category,
        "ema": averages,
        "source": source.origin,
        "source_sha256": source.sha256,
        "step": source.step,
        "paper_top1": paper_top1(plan.model.spec, category) if authors and category and not averages else None,
        "licence": LICENCE if authors else None,
    }
    with stream.alone(out):
        return _write(plan, source, out, to=to, keep_unfinished=keep_unfinished, workers=workers)


def _is_the_authors(source: Source, model: SimCLR, category: str) -> bool:
    """Whether it is a published one, or looks like one: model, classes and step are. What others trained gets neither
    the authors' licence nor the paper's figure.
    """
    if source.published:
        return True
    published = paper_top1(model.spec, category) is not None and model.num_classes in (1000, None)
    if source.layout is names.PORT:  # made of the pretrained ones
        return published
    return published and CATEGORIES[category].step in (None, source.step)


def _write(plan: names.Plan, source: Source, out: Path, *, to: str, keep_unfinished: bool, workers: int) -> Path:
    theirs = dict(names.torchvision_names(plan.model)) if to == "torchvision" else {}
    written = {theirs.get(ours, ours): ours for ours in plan.sources if not theirs or ours in theirs}
    shapes = {ours: tuple(tensor.shape) for ours, tensor in plan.model.state_dict().items()}
    told = model_file.metadata(plan.model)
    if theirs:
        told["simclrv2_torchvision"] = told.pop(model_file.HEADER)
    target = stream.Target(out, {name: shapes[ours] for name, ours in written.items()}, told)

    def read(name: str) -> np.ndarray:
        return plan.layout.arrange(source.variables[plan.sources[written[name]]])

    def is_right(name: str, array: np.ndarray) -> bool:
        entries = getattr(source.variables, "entries", None)
        return entries is not None and _fits(plan.layout.restore(array), entries[plan.sources[written[name]]].crc32c)

    try:
        stream.fill(target, read, is_right, resume=target.begin(), stop=source.stop, workers=workers, title=out.name)
        with ThreadPoolExecutor(1) as pool:  # the one is bound by a core, the other by the memory
            sealed = pool.submit(target.seal)
            kept = {} if theirs else {"probe": probe.outputs(model_file.load_file(target.partial))}
            sha256 = sealed.result()
    except BaseException:
        if not keep_unfinished:
            with suppress(OSError):  # Windows does not remove what is still mapped; what went wrong matters more
                target.partial.unlink(missing_ok=True)
        raise
    config = model_file.config_path(out)
    target.finish()
    about = model_file.config_of(model_file.describe(plan.model), {out.name: sha256})
    model_file.write_config(config, about | {"layout": to} | kept)
    sync_folder(out.parent)
    return config


def _fits(array: np.ndarray, crc: int) -> bool:
    return masked_crc32c(np.ascontiguousarray(array).reshape(-1).view(np.uint8)) == crc


def _model(source: Source, given: str | Spec | None) -> Spec | None:
    """The model asked for, or that the path speaks of. Raises ValueError if they contradict each other."""
    told = re.findall(r"(?:^|[/\\._-])(r\d+_\dx_sk[01])(?=$|[/\\._-])", source.path)
    wanted = find_spec(given) if given is not None else None
    try:
        spoken = find_spec(told[-1]) if told else wanted  # the nearest
    except ValueError:
        return wanted
    if spoken is None:
        return None
    if wanted is not None and wanted != spoken:
        raise ValueError(f"{source.path} speaks of {spoken.name}, but {wanted.name} was asked for; which is it?")
    return spoken


def _category(source: Source, given: str | None) -> str | None:
    """The category asked for, or that path and step speak of. Raises ValueError if they contradict each other."""
    if given is not None and given not in CATEGORIES:
        raise ValueError(f"Unknown weights {given!r}.{suggest(given, list(CATEGORIES))}")
    told = {key for key, row in CATEGORIES.items() if row.step is not None and row.step == source.step}
    for folder in reversed(re.split(r"[/\\]", source.path)[:-1]):  # the nearest that is a category's
        found = {key for key, row in CATEGORIES.items() if folder in (key, row.folder)}
        told |= found
        if found:
            break
    if source.layout is names.PORT:
        told.add("pretrained")
    if given is not None:
        told.add(given)
    if len(told) > 1:
        asked = f", but {given} was asked for" if given else ""
        raise ValueError(
            f"{source.path} speaks of {', '.join(sorted(told - {given}))}{asked}; which is it? "
            "Name it with --weights, and the folder or file as what it is."
        )
    return told.pop() if told else None


def _classify_from(shapes: Mapping[str, Any], layout: names.Layout, category: str | None) -> int:
    """Which layer the classifier reads: the category tells; without a projection head it can only be the features."""
    if layout.classifier not in shapes:
        return 0
    if category is None and any(name.startswith(layout.head) for name in shapes):
        raise ValueError(
            "Which weights are these? The classifier may read the features or a projection layer: "
            f"give --weights, one of {', '.join(CATEGORIES)}."
        )
    return CATEGORIES[category].classify_from if category else 0


def _check_last_beta(source: Source) -> None:
    if source.layout is names.PORT and names.LAST_BETA in source.variables:
        largest = float(np.abs(source.variables[names.LAST_BETA]).max())
        if largest > 0:
            raise ValueError(f"{names.LAST_BETA} is not zero ({largest:g}); this head is not SimCLRv2's.")


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` found; ``errors`` are relative, in norm, of the kept outputs."""

    sha256: str
    known: str | None  # SHA-256 in the config beside the file
    tensors: str  # what was found of them
    errors: dict[str, float]

    @property
    def good(self) -> bool:
        return self.known in (None, self.sha256) and all(error <= probe.TOLERANCE for error in self.errors.values())

    def lines(self) -> list[str]:
        """One line for each thing looked at."""
        told = {None: "not known (no config is about this file)", self.sha256: "as in config.json"}
        lines = [f"SHA-256   {told.get(self.known, f'DIFFERENT from config.json: {self.known}')}: {self.sha256}"]
        lines.append(f"tensors   {self.tensors}")
        if not self.errors:
            lines.append("outputs   none are kept to compare with")
        for name, error in self.errors.items():
            verdict = "as kept" if error <= probe.TOLERANCE else f"DIFFERENT (allowed {probe.TOLERANCE:g})"
            lines.append(f"outputs   {name}: {verdict}, relative error {error:.1e}")
        return lines


def verify(path: str | Path) -> Verdict:
    """Look at a model's file: its hash, every tensor, its outputs on generated images against those kept with it.

    Hash and outputs are compared with the config beside the file. Raises ValueError for what cannot be loaded; a file
    that loads and differs is not ``good``. One whose hash is wrong is not looked into further.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    known, sha256 = model_file.known_sha256(path), model_file.sha256_of(path)
    config = model_file.read_config(model_file.config_path(path)) if known is not None else {}
    if known not in (None, sha256):
        return Verdict(sha256, known, "not looked at", {})
    if config.get("layout") == "torchvision":
        return Verdict(sha256, known, "under torchvision's names, not looked at", {})
    model = model_file.load_file(path)
    kept = config.get("probe")
    errors = probe.compare(probe.outputs(model), kept) if kept is not None else {}
    return Verdict(sha256, known, f"all {len(model.state_dict())} fit {model.spec.name}", errors)
