"""What is done with embeddings, in numpy only: unit length, and exact nearest neighbours by cosine."""

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
