"""THE tables: every architecture with its parameters and what the paper measured; every kind of weights. No torch."""

import fnmatch
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Depth = Literal[18, 34, 50, 101, 152, 200]

BLOCKS: dict[int, tuple[int, int, int, int]] = {  # blocks a group (code: resnet.py)
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclass(frozen=True)
class Spec:
    """An architecture: ResNet depth, width multiplier (may be fractional), selective kernels or not.

    Raises ValueError for a depth that does not exist, a width that leaves no channels, or SK with residual blocks
    (depth 18 and 34), which the authors' code does not build.
    """

    depth: int
    width: float = 1
    sk: bool = False

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(f"Unknown depth {self.depth!r}. Choose from: {', '.join(map(str, BLOCKS))}.")
        if not 1 / 64 <= self.width <= 16:
            raise ValueError(f"Width {self.width!r} is outside 1/64 to 16.")
        if self.sk and not self.bottleneck:
            raise ValueError(f"Selective kernels need bottleneck blocks; depth {self.depth} has none. Use depth >= 50.")

    @property
    def name(self) -> str:
        """The zoo's name: ``r152_3x_sk``; fractional widths are written out, ``r50_0.0625x``."""
        return f"r{self.depth}_{self.width:g}x{'_sk' if self.sk else ''}"

    @property
    def authors_name(self) -> str:
        """The authors' own name: ``r152_3x_sk1``."""
        return f"{self.name.removesuffix('_sk')}_sk{int(self.sk)}"

    @property
    def bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        return BLOCKS[self.depth]

    @property
    def feature_width(self) -> int:
        """Length of the pooled features h."""
        return int(512 * self.width) * (4 if self.bottleneck else 1)

    @property
    def facts(self) -> "Row | None":
        """What is known of this architecture, or None if it is not in the table."""
        return TABLE.get(self.name)


SpecLike: TypeAlias = str | Spec


class Row(NamedTuple):
    """One architecture: its spec, backbone parameters, and ImageNet top-1 in percent (paper: Table 1)."""

    spec: Spec
    parameters: int  # of the backbone, exactly; tests count them
    finetuned_1pct: float | None = None
    finetuned_10pct: float | None = None
    finetuned_100pct: float | None = None
    linear: float | None = None
    supervised: float | None = None
    distilled_1pct: float | None = None  # paper: Table 2 and section 4; of r152_3x_sk, self-distilled
    distilled_10pct: float | None = None


def _row(depth: int, width: int, sk: bool, parameters: int, *top1: float | None) -> Row:
    return Row(Spec(depth, width, sk), parameters, *top1)


TABLE: dict[str, Row] = {
    row.spec.name: row
    for row in (
        #                            parameters   1 %  10 % 100 %  linear supervised  distilled from 1 %, 10 %
        _row(50, 1, False, 23_508_032, 57.9, 68.4, 76.3, 71.7, 76.6, 73.9, 77.5),
        _row(50, 1, True, 35_215_584, 64.5, 72.1, 78.7, 74.6, 78.5),
        _row(50, 2, False, 93_907_072, 66.3, 73.9, 79.1, 75.6, 77.8),
        _row(50, 2, True, 140_306_048, 70.6, 77.0, 81.3, 77.7, 79.3, 75.9, 80.2),
        _row(50, 3, False, 211_197_120),
        _row(50, 3, True, 315_493_600),
        _row(101, 1, False, 42_500_160, 62.1, 71.4, 78.2, 73.6, 78.0),
        _row(101, 1, True, 64_662_304, 68.3, 75.1, 80.6, 76.3, 79.6),
        _row(101, 2, False, 169_771_136, 69.1, 75.8, 80.7, 77.0, 78.9),
        _row(101, 2, True, 257_132_224, 73.2, 78.8, 82.4, 79.0, 80.1),
        _row(101, 3, False, 381_812_928),
        _row(101, 3, True, 578_260_288),
        _row(152, 1, False, 58_143_808, 64.0, 73.0, 79.3, 74.5, 78.3),
        _row(152, 1, True, 88_940_896, 70.0, 76.5, 81.3, 77.2, 79.9),
        _row(152, 2, False, 232_253_568, 70.2, 76.6, 81.1, 77.4, 79.1),
        _row(152, 2, True, 353_398_528, 74.2, 79.4, 82.9, 79.4, 80.4),
        _row(152, 3, False, 522_329_280),
        _row(152, 3, True, 794_704_160, 74.9, 80.1, 83.1, 79.8, 80.5, 76.6, 80.9),
        # students, and two the authors mention
        _row(18, 1, False, 11_180_736),
        _row(18, 2, False, 44_684_672),
        _row(34, 1, False, 21_288_896),
        _row(200, 1, False, 62_624_832),
        _row(50, 4, False, 375_378_176),
    )
}


class Category(NamedTuple):
    """One kind of weights the authors published: where they keep it, and what its classifier reads."""

    folder: str  # in their bucket, under simclrv2/
    step: int | None  # of the checkpoint; None: not known, the bucket is asked
    classify_from: int  # 0 = features, 1 = projection layer 1
    top1: str  # the column of the table that has its accuracy


CATEGORIES: dict[str, Category] = {
    "pretrained": Category("pretrained", 250228, 0, "linear"),
    "finetuned_1pct": Category("finetuned_1pct", 751, 1, "finetuned_1pct"),
    "finetuned_10pct": Category("finetuned_10pct", 3754, 1, "finetuned_10pct"),
    "finetuned_100pct": Category("finetuned_100pct", 37535, 0, "finetuned_100pct"),
    "supervised": Category("supervised", 28151, 0, "supervised"),
    "distilled_1pct": Category("distill_1pct", None, 0, "distilled_1pct"),
    "distilled_10pct": Category("distill_10pct", None, 0, "distilled_10pct"),
}
EMA = "_ema"  # behind a category: the moving averages that the published files hold beside the weights
BUNDLED: dict[tuple[str, str], str] = {  # (name, weights) -> SHA-256 of zoo/bundled/{name}.{weights}.safetensors
    ("r18_1x", "imagenette_distilled"): "a41ac797bb1b486e5c5bce1afe7fca503068e7d745c56ff0c2ea5594b8184a32",
}


def spec(name: SpecLike) -> Spec:
    """The architecture a name stands for; a ``Spec`` is returned as it is. ``_sk0`` and ``_sk1`` are aliases.

    Raises ValueError for an unknown name, suggesting the nearest.
    """
    if isinstance(name, Spec):
        return name
    if not isinstance(name, str):
        raise ValueError(f"A model is a name such as 'r50_1x' or a zoo.Spec, not {name!r}.")
    canonical = name.removesuffix("_sk0")
    if canonical.endswith("_sk1"):
        canonical = canonical[:-1]
    if canonical in TABLE:
        return TABLE[canonical].spec
    raise ValueError(f"Unknown model {name!r}.{suggest(name, list(TABLE))} For another shape, use zoo.Spec(depth=...).")


def suggest(wrong: str, choices: list[str]) -> str:
    """`` Did you mean ...?`` with up to three near choices, or all the choices when none is near."""
    import difflib

    near = difflib.get_close_matches(wrong, choices, n=3, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(map(repr, near))}?"
    return f" Choose from: {', '.join(choices)}."


def list_models(pattern: str = "*") -> list[str]:
    """Names in the table that match a shell pattern, such as ``"r50_*"``."""
    return fnmatch.filter(TABLE, pattern)


def list_weights(name: SpecLike) -> list[str]:
    """Weights that exist for a model: those the authors published, and those bundled with this package.

    Those the authors published can also be had as moving averages, with ``_ema`` behind the name: ``pretrained_ema``.
    """
    wanted = spec(name).name
    row = TABLE.get(wanted)
    published = [weights for weights, category in CATEGORIES.items() if row and getattr(row, category.top1) is not None]
    return published + [weights for model, weights in BUNDLED if model == wanted]


def paper_top1(name: SpecLike, category: str) -> float | None:
    """ImageNet top-1 in percent that the paper gives for a model's weights, or None."""
    row = TABLE.get(spec(name).name)
    return getattr(row, CATEGORIES[category].top1) if row and category in CATEGORIES else None
