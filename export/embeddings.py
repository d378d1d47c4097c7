"""What is done with embeddings, in numpy only: unit length, exact nearest neighbours, and which images to label."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows (..., D) at length one, in float32; rows of zeros stay zeros."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def cosine_topk(
    matrix: np.ndarray, query: np.ndarray, k: int, *, normalised: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``matrix`` (N, D) nearest to ``query`` (D,): their numbers and cosines, best first.

    Exact. Fewer than ``k`` rows give fewer answers; equal cosines come in the order of the rows. ``normalised`` says
    that the rows of ``matrix`` have length one already.
    """
    scores = (matrix if normalised else normalise(matrix)) @ normalise(query)  # (N,)
    k = min(k, len(scores))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)  # ties at the edge included, so that the order decides, not chance
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return best, scores[best]


# ---- which images to label -------------------------------------------------------------------------------------------

NEAR_DUPLICATE = 0.98  # cosine from which two pictures count as one: re-encoded, made smaller, cropped a little
_ROWS = 4096  # rows at a time: bounds the memory of 100,000 rows against many
_BLOCK = 1024  # rows compared with each other at a time


def near_duplicates(vectors: np.ndarray, *, threshold: float = NEAR_DUPLICATE) -> np.ndarray:
    """For each row of ``vectors`` (N, D) the row that stands for it, int64 (N,): itself, or an earlier near-duplicate.

    Row by row: one whose cosine with a row kept before it is ``threshold`` or more is stood for by the most similar of
    those (of equals the first); else it is kept. Kept rows are below ``threshold`` to each other. Exact; time grows
    with N times the number kept, memory does not.
    """
    unit = normalise(vectors)
    stands = np.arange(len(unit), dtype=np.int64)
    kept = np.empty(len(unit), dtype=np.int64)
    count = 0
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        best, by = _nearest(rows, unit, kept[:count])
        within = rows @ rows.T  # (_BLOCK, _BLOCK)
        fresh: list[int] = []
        for row in range(len(rows)):
            cosine, place = best[row], by[row]
            if fresh:
                nearest = int(within[row, fresh].argmax())
                if within[row, fresh[nearest]] > cosine:
                    cosine, place = within[row, fresh[nearest]], start + fresh[nearest]
            if cosine >= threshold:
                stands[start + row] = place
            else:
                fresh.append(row)
        kept[count : count + len(fresh)] = start + np.array(fresh, dtype=np.int64)
        count += len(fresh)
    return stands


def _nearest(rows: np.ndarray, unit: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest cosine of each row with the rows of ``unit`` that ``among`` names, and which one; -inf if none."""
    best, by = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
    for first in range(0, len(among), _ROWS):
        some = among[first : first + _ROWS]
        for start in range(0, len(rows), _ROWS):
            here = slice(start, start + _ROWS)
            cosines = rows[here] @ unit[some].T
            nearest = cosines.argmax(1)
            highest = cosines[np.arange(len(cosines)), nearest]
            better = highest > best[here]
            best[here] = np.where(better, highest, best[here])
            by[here] = np.where(better, some[nearest], by[here])
    return best, by


def spherical_kmeans(
    vectors: np.ndarray,
    clusters: int,
    *,
    seed: int,
    start: Sequence[int] = (),
    restarts: int = 4,
    iterations: int = 50,
) -> np.ndarray:
    """The cluster of each row of ``vectors`` (N, D), int64 (N,), none of the ``clusters`` empty.

    Rows go to the centre of the highest cosine, centres to the mean direction of their rows (Dhillon and Modha 2001),
    until the sum of the cosines grows by less than 1e-4 of itself; the best of ``restarts``, each begun by greedy
    k-means++ (Arthur and Vassilvitskii 2007) after the rows named by ``start``. The same seed gives the same clusters.

    Raises ValueError for fewer than 1 or more than N clusters.
    """
    unit = normalise(vectors)
    if not 1 <= clusters <= len(unit):
        raise ValueError(f"{clusters} clusters of {len(unit)} vectors: choose from 1 to {len(unit)}.")
    best, found = -np.inf, np.zeros(len(unit), np.int64)
    for restart in range(restarts):
        centres = unit[_plus_plus(unit, clusters, np.random.default_rng([seed, restart]), start)]
        before = -np.inf
        for _ in range(iterations):
            labels, cosines = _assign(unit, centres)
            total = float(cosines.sum(dtype=np.float64))
            if total > best:
                best, found = total, labels
            if total - before <= 1e-4 * abs(total):
                break
            before, centres = total, normalise(_sums(unit, labels, clusters))
    return found


def _plus_plus(unit: np.ndarray, clusters: int, random: np.random.Generator, start: Sequence[int]) -> np.ndarray:
    """Rows to begin from: those of ``start``, then one by one of a few drawn with probability by their squared distance
    to the nearest the one that leaves all rows the nearest."""
    chosen = list(start)[:clusters] or [int(random.integers(len(unit)))]
    nearest = _nearest(unit, unit, np.array(chosen))[0]
    draws = 2 + int(np.log(clusters))
    while len(chosen) < clusters:
        weights = np.maximum(1 - nearest.astype(np.float64), 0)  # half the squared distance
        weights[chosen] = 0
        if not weights.any():  # only copies are left
            weights[:] = 1
            weights[chosen] = 0
        total = weights.cumsum()
        drawn = np.searchsorted(total, random.random(draws) * total[-1], side="right").clip(max=len(unit) - 1)
        then = np.maximum(nearest, unit[drawn] @ unit.T)  # (draws, N)
        best = int(then.sum(1, dtype=np.float64).argmax())
        chosen.append(int(drawn[best]))
        nearest = then[best]
    return np.array(chosen)


def _assign(unit: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of the highest cosine for each row, and that cosine; an empty cluster takes the worst-placed row."""
    labels, cosines = np.empty(len(unit), np.int64), np.empty(len(unit), np.float32)
    for row in range(0, len(unit), _ROWS):
        scores = unit[row : row + _ROWS] @ centres.T  # (_ROWS, K)
        labels[row : row + _ROWS] = scores.argmax(1)
        cosines[row : row + _ROWS] = scores.max(1)
    sizes = np.bincount(labels, minlength=len(centres))
    for empty in np.flatnonzero(sizes == 0):
        worst = int(np.where(sizes[labels] > 1, cosines, np.inf).argmin())
        sizes[labels[worst]] -= 1
        labels[worst], cosines[worst], sizes[empty] = empty, 1, 1
    return labels, cosines


def _sums(unit: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """The sum of each cluster's rows, float64 (K, D)."""
    sums = np.zeros((clusters, unit.shape[1]))
    for row in range(0, len(unit), _ROWS):
        members = labels[row : row + _ROWS] == np.arange(clusters)[:, None]  # (K, _ROWS)
        sums += members.astype(np.float32) @ unit[row : row + _ROWS]
    return sums


def medoids(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The row of each cluster, 0 to the highest label, with the highest sum of cosines to its cluster; int64 (K,).

    Of rows at length one that is the row nearest the mean: the sum of x.y over a cluster's y is x times their sum.
    Raises ValueError for an empty cluster.
    """
    unit = normalise(vectors)
    clusters = int(labels.max()) + 1 if len(labels) else 0
    sums = _sums(unit, labels, clusters)
    scores = np.concatenate(
        [(unit[row : row + _ROWS] * sums[labels[row : row + _ROWS]]).sum(1) for row in range(0, len(unit), _ROWS)]
        or [np.empty(0)]
    )
    order = np.lexsort((np.arange(len(unit)), -scores, labels))
    names, firsts = np.unique(labels[order], return_index=True)
    if len(names) != clusters:
        raise ValueError(f"{clusters - len(names)} of the {clusters} clusters are empty; number them without gaps.")
    return order[firsts]


def farthest_first(vectors: np.ndarray, count: int, *, known: Sequence[int] = ()) -> np.ndarray:
    """``count`` rows, each the farthest by cosine from ``known`` and those before it: greedy k-centre (Gonzalez 1985).

    Without ``known`` the first is the row nearest the mean direction. Of equals the first row; int64 (count,). Raises
    ValueError if there are not so many rows besides ``known``.
    """
    unit = normalise(vectors)
    taken = np.zeros(len(unit), bool)
    taken[list(known)] = True
    if not 0 <= count <= len(unit) - taken.sum():
        raise ValueError(f"{count} rows asked for, but there are {len(unit) - taken.sum()} to choose from.")
    if not count:
        return np.empty(0, np.int64)
    centre = -normalise(unit.sum(0))  # the most central row is the farthest from this
    nearest = _nearest(unit, unit, np.flatnonzero(taken))[0] if taken.any() else unit @ centre
    chosen: list[int] = []
    while True:
        row = int(np.where(taken, np.inf, nearest).argmin())
        taken[row] = True
        chosen.append(row)
        if len(chosen) == count:
            return np.array(chosen)
        cosines = unit @ unit[row]
        nearest = cosines if len(chosen) == 1 and not len(known) else np.maximum(nearest, cosines)


class Choice(NamedTuple):
    """Rows to label, int64, the first ones first, and how many rows near-duplicates and unusable ones were."""

    rows: np.ndarray
    near_duplicates: int
    unusable: int


def choose(
    vectors: np.ndarray,
    budget: int,
    *,
    method: Literal["kmeans", "kcenter"] = "kmeans",
    known: Sequence[int] = (),
    duplicates: float = NEAR_DUPLICATE,
    seed: int = 0,
) -> Choice:
    """Which ``budget`` of the rows of ``vectors`` (N, D) to label, the rows ``known`` being labelled already.

    Rows that are zero or not finite are left out, and near-duplicates of another row (``near_duplicates`` with
    ``duplicates`` as threshold, the ``known`` rows first; none with 1). Then ``kmeans``: as many clusters as rows in
    ``known`` and budget together, of which those without a known row count, the largest first (so Hacohen et al. 2022),
    and their medoids: typical images. Or ``kcenter``: ``farthest_first``, which covers everything, oddities too, and
    does not depend on the seed.

    Raises ValueError for a budget below 1 or above the rows that are left, or an unknown method.
    """
    if method not in ("kmeans", "kcenter"):
        raise ValueError(f"Unknown method {method!r}. Choose from: kmeans, kcenter.")
    if budget < 1:
        raise ValueError(f"The budget must be at least 1 image, not {budget}.")
    usable = np.isfinite(vectors).all(1) & vectors.any(1)
    first = np.zeros(len(vectors), bool)
    first[list(known)] = True
    order = np.concatenate([np.flatnonzero(usable & first), np.flatnonzero(usable & ~first)])
    unit = normalise(vectors[order])
    stands = near_duplicates(unit, threshold=duplicates) if duplicates < 1 else np.arange(len(unit))
    before = int(first[order].sum())
    kept = np.flatnonzero(stands == np.arange(len(order)))
    few, left = order[kept], int((kept >= before).sum())
    dropped = len(order) - before - left
    if budget > left:
        raise ValueError(
            f"A budget of {budget}, but there are {left} images to choose from (of {len(vectors)}: {before} labelled, "
            f"{dropped} near-duplicates, {len(vectors) - len(order)} unusable); ask for fewer."
        )
    unit, labelled = unit[kept], range(int((kept < before).sum()))
    if method == "kcenter":
        rows = farthest_first(unit, budget, known=labelled)
    else:
        clusters = spherical_kmeans(unit, budget + len(labelled), seed=seed, start=labelled)
        sizes = np.bincount(clusters)
        sizes[clusters[list(labelled)]] = 0
        largest = np.argsort(-sizes, kind="stable")[:budget]
        rows = medoids(unit, clusters)[largest]
    return Choice(few[rows], dropped, len(vectors) - len(order))
