"""A gallery seen from above: a map in two dimensions, clusters, oddities, and what is worth labelling; numpy only.

t-SNE is scikit-learn's, imported where it is used.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from export.embeddings import NEAR_DUPLICATE, near_duplicates, normalise, spherical_kmeans

MOST_ROWS = 20_000  # that t-SNE places itself; the others go with their nearest
SOME_ROWS = 5_000  # that clusters are made of, and that are looked at for what to label: so neither takes minutes
MOST_CLUSTERS = 30  # unless a number is given: more colours cannot be told apart
_MOST_SPREAD = 500  # clusters among which is chosen what to label (so Hacohen et al. 2022)
_ROWS, _COLUMNS = 1024, 4096  # of the cosines looked at at a time
_EXACT = 1024  # rows and columns of a matrix whose axes are computed at once
_INSIDE = 0.9  # of the map: nearer the edge, distances are pressed together


# ---- the map ---------------------------------------------------------------------------------------------------------


def flat(
    vectors: np.ndarray, *, method: Literal["pca", "tsne"] = "pca", seed: int = 0, progress: bool = False
) -> np.ndarray:
    """A map of vectors (N, D): float32 (N, 2) from -1 to 1, the same for the same vectors and seed.

    ``pca``: the two axes of the greatest variance, each pointing where its largest coefficient is positive. ``tsne``:
    scikit-learn's t-SNE (van der Maaten and Hinton 2008) of the first 50 such axes, by cosine; of more than 20,000
    rows that many are taken, evenly, and the others put where their three nearest of those are. Both axes have one
    scale; the middle 98 % along each are true to it, what lies beyond is drawn towards the edge.

    Raises ValueError for an unknown method, rows that are not finite, or ``tsne`` without scikit-learn.
    """
    if method not in ("pca", "tsne"):
        raise ValueError(f"Unknown method {method!r}. Choose from: pca, tsne.")
    if not np.isfinite(vectors).all():
        raise ValueError("Some vectors are not finite; delete those pictures from the gallery.")
    if method == "pca" or len(vectors) < 5:
        return _fitted_in(_principal(vectors, 2))
    taken = _even(len(vectors), MOST_ROWS)
    points = _tsne(_principal(vectors[taken], 50), seed, progress)
    if len(taken) == len(vectors):
        return _fitted_in(points)
    return _fitted_in(_near(normalise(vectors), taken, points))


def _principal(vectors: np.ndarray, count: int) -> np.ndarray:
    """Rows (N, D) along the ``count`` axes of the greatest variance, float64 (N, count); zeros beyond their rank."""
    found = np.zeros((len(vectors), count))
    if len(vectors) < 2:
        return found
    rows = np.asarray(vectors, np.float32)
    mean = rows.mean(0, dtype=np.float64)
    axes = _axes(rows, mean, min(count, *rows.shape))  # (D, A)
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    axes *= np.where(signs == 0, 1, signs)
    for some in _parts(len(rows), _COLUMNS):
        found[some, : axes.shape[1]] = (rows[some] - mean) @ axes
    return found


def _axes(rows: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
    """The axes of the greatest variance, float64 (D, count): of the covariance or, for few rows, of the inner products;
    where both are large, by multiplying a few directions with the covariance until they stay."""
    size, width = rows.shape
    if width <= _EXACT:
        covariance = np.zeros((width, width))
        for some in _parts(size, _COLUMNS):
            part = rows[some] - mean.astype(np.float32)
            covariance += part.T @ part
        return np.linalg.eigh(covariance)[1][:, ::-1][:, :count].copy()
    if size <= _EXACT:
        part = rows - mean
        axes = part.T @ np.linalg.eigh(part @ part.T)[1][:, ::-1][:, :count]
        return axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(width, count + 10)))[0]
    for _ in range(100):
        before = axes[:, :count]
        product = np.zeros_like(axes)
        for some in _parts(size, _COLUMNS):
            part = rows[some] - mean
            product += part.T @ (part @ axes)
        turn = np.linalg.eigh(axes.T @ product)[1][:, ::-1]
        axes = np.linalg.qr(product @ turn)[0]
        if np.linalg.norm(before - axes[:, :count] @ (axes[:, :count].T @ before)) < 1e-6:
            break
    return axes[:, :count].copy()


def _tsne(rows: np.ndarray, seed: int, progress: bool) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ValueError(
            "A t-SNE map needs scikit-learn: pip install scikit-learn; or choose the method 'pca'."
        ) from None
    spread = rows[:, 0].std()
    if spread < 1e-6:  # all the same: scikit-learn would divide by it, and end the process
        return rows[:, :2]
    begin = (rows[:, :2] * (1e-4 / spread)).astype(np.float32)
    told = {"metric": "cosine", "init": begin, "random_state": seed, "verbose": int(progress)}
    points: np.ndarray = TSNE(2, perplexity=min(30.0, (len(rows) - 1) / 3), **told).fit_transform(
        rows.astype(np.float32)
    )
    return points


def _near(unit: np.ndarray, taken: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Places (N, 2) of all rows: of those ``taken`` their ``points``, of others the mean of the three nearest taken."""
    found = np.empty((len(unit), 2))
    for some in _parts(len(unit), _ROWS):
        cosines = unit[some] @ unit[taken].T
        found[some] = points[np.argpartition(-cosines, 2, axis=1)[:, :3]].mean(1)
    found[taken] = points
    return found


def _fitted_in(points: np.ndarray) -> np.ndarray:
    """Points (N, 2) about the middle of their middle 98 %, which reaches to 0.9; beyond, a curve that never meets 1.

    Not about the median: between two heaps it leaps from one to the other."""
    if not len(points):
        return np.empty((0, 2), np.float32)
    low, high = np.quantile(points, (0.01, 0.99), axis=0)
    points = points - (low + high) / 2
    scale = float((high - low).max()) / 2 or float(np.abs(points).max())
    scale = scale if scale > 1e-6 else 1.0  # what is left is rounding
    points = points * (_INSIDE / scale)
    far = np.minimum(np.abs(points), 1e6)
    pressed = _INSIDE + (1 - _INSIDE) * np.tanh((far - _INSIDE) / (1 - _INSIDE))
    return np.where(far > _INSIDE, np.sign(points) * pressed, points).astype(np.float32)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _even(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` rows, evenly from first to last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


# ---- clusters and oddities -------------------------------------------------------------------------------------------


def clusters(vectors: np.ndarray, count: int | None = None, *, seed: int = 0) -> np.ndarray:
    """The cluster of each row of ``vectors`` (N, D), int64 (N,): 0 is the largest.

    ``count``: how many; None for the root of half the rows, from 1 to 30. Spherical k-means; of more than 5,000 rows
    that many are clustered, evenly, and the others go to the nearest centre.

    Raises ValueError for fewer than 1 cluster or more than there are rows.
    """
    if not len(vectors) and count is None:
        return np.empty(0, np.int64)
    if count is None:
        count = max(1, min(MOST_CLUSTERS, round((len(vectors) / 2) ** 0.5)))
    unit = normalise(vectors)
    taken = _even(len(unit), max(SOME_ROWS, count))
    if count > len(taken):
        raise ValueError(f"{count} clusters of {len(unit)} vectors: choose from 1 to {len(taken)}.")
    found = spherical_kmeans(unit[taken], count, seed=seed, restarts=2)
    if len(taken) < len(unit):
        centres = normalise(np.stack([unit[taken][found == number].sum(0) for number in range(count)]))
        found = np.concatenate([(unit[some] @ centres.T).argmax(1) for some in _parts(len(unit), _COLUMNS)])
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return rank[found]


def outliers(vectors: np.ndarray, k: int = 10, *, progress: bool = False) -> np.ndarray:
    """How odd each row of ``vectors`` (N, D) is, float32 (N,) from 0 to 2: one less the mean cosine with the ``k``
    nearest other rows (Ramaswamy et al. 2000, by cosine); with fewer than ``k`` others, with all; 0 for a single row.

    Exact: every row with every other, in blocks, so that memory stays small. Raises ValueError for ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: the nearest others must be 1 or more.")
    unit = normalise(vectors)
    k = min(k, len(unit) - 1)
    found = np.zeros(len(unit), np.float32)
    if k < 1:
        return found
    for some in tqdm(_parts(len(unit), _ROWS), desc="outliers", disable=None if progress else True):
        found[some] = 1 - _highest(unit, some, k).mean(1)
    return found


def _highest(unit: np.ndarray, some: slice, k: int) -> np.ndarray:
    """The ``k`` highest cosines (B, k) of some rows with all others."""
    rows = unit[some]
    best = np.full((len(rows), k), -np.inf, np.float32)
    for others in _parts(len(unit), _COLUMNS):
        cosines = rows @ unit[others].T  # (B, _COLUMNS)
        own = np.arange(max(some.start, others.start), min(some.start + len(rows), others.start + cosines.shape[1]))
        cosines[own - some.start, own - others.start] = -np.inf
        if others.start == 0 and cosines.shape[1] >= k:
            best = np.partition(cosines, cosines.shape[1] - k, axis=1)[:, -k:]
            continue
        row, column = np.nonzero(cosines > best.min(1)[:, None])  # soon only a few
        if not len(row):
            continue
        passed = np.bincount(row, minlength=len(rows))
        place = np.arange(len(row)) - np.repeat(passed.cumsum() - passed, passed)
        fresh = np.full((len(rows), passed.max()), -np.inf, np.float32)
        fresh[row, place] = cosines[row, column]
        both = np.concatenate([best, fresh], axis=1)
        best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    return best


# ---- what is worth labelling -----------------------------------------------------------------------------------------


def worth_labelling(
    vectors: np.ndarray,
    known: Sequence[int],
    probabilities: np.ndarray | None,
    count: int,
    *,
    duplicates: float = NEAR_DUPLICATE,
    seed: int = 0,
) -> np.ndarray:
    """The ``count`` rows of ``vectors`` (N, D) to label next, most worth first, int64; fewer if fewer are left.

    The rows ``known`` are labelled already. Coverage decides: as many clusters as rows known and wanted (500 at most,
    or ``count``), of which those without a known row count, and of each the most typical picture (TypiClust, Hacohen et
    al. 2022). ``probabilities`` (N, C) of a taught head or of the student decide which of those clusters come first:
    those with the most doubt in them, the sum over their pictures of one less the margin between the two most probable
    classes (Scheffer et al. 2001); without, the largest. Doubt does not choose within a cluster: measured, that was
    worse (docs/log.md).

    Left out are near-duplicates (cosine ``duplicates`` or more) of a known row or of an earlier one, and rows that are
    zero or not finite. Of more than 5,000 rows without a label that many are looked at, evenly. Raises ValueError for
    a ``count`` below 1, or probabilities that do not fit.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least 1 picture.")
    if probabilities is not None and (probabilities.ndim != 2 or len(probabilities) != len(vectors)):
        raise ValueError(f"Probabilities {probabilities.shape} for {len(vectors)} vectors; give a row for each.")
    usable = np.isfinite(vectors).all(1) & vectors.any(1)
    labelled = np.zeros(len(vectors), bool)
    labelled[list(known)] = True
    fresh = np.flatnonzero(usable & ~labelled)
    rows = np.concatenate([np.flatnonzero(usable & labelled), fresh[_even(len(fresh), max(SOME_ROWS, count))]])
    unit = normalise(vectors[rows])
    kept = np.flatnonzero(near_duplicates(unit, threshold=duplicates) == np.arange(len(unit)))
    rows, unit = rows[kept], unit[kept]
    before = np.flatnonzero(labelled[rows])
    count = min(count, len(rows) - len(before))
    if count < 1:
        return np.empty(0, np.int64)
    total = max(count, min(count + len(before), _MOST_SPREAD))
    groups = spherical_kmeans(unit, total, seed=seed, start=before.tolist())
    doubt = np.ones(len(rows)) if probabilities is None else _doubt(probabilities[rows])
    covered, doubts = np.bincount(groups[before], minlength=total), np.bincount(groups, doubt, total)
    order = np.lexsort((-doubts[groups], covered[groups], _turns(unit, groups, labelled[rows])))
    return rows[order[:count]]


def _turns(unit: np.ndarray, groups: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """For each row (N, D) its turn in its cluster, int64 (N,): 0 for the most typical without a label, by the cosine
    with the cluster's mean, then 1 and so on; labelled rows after all others."""
    by_group = np.argsort(groups, kind="stable")
    firsts = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
    sums = np.add.reduceat(unit[by_group].astype(np.float64), firsts)
    typical = (unit * sums[groups]).sum(1)
    order = np.lexsort((-typical, labelled, groups))
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.repeat(firsts, np.diff(firsts, append=len(groups)))
    turns[labelled] = len(groups)
    return turns


def _doubt(probabilities: np.ndarray) -> np.ndarray:
    """One less the margin between the two most probable classes (N,); with one class there is none."""
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities))
    best = np.partition(probabilities, -2, axis=1)[:, -2:]
    return 1 - (best[:, 1] - best[:, 0]).astype(np.float64)
