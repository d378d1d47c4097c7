"""A linear head on embeddings, taught by a few examples, with an honest leave-one-out accuracy; numpy only.

The head is a linear discriminant without a bias: in the metric of the pooled covariance within the classes, shrunk
towards the identity by as much as leave-one-out likes best, the class whose mean has the highest cosine with the vector
(for the strongest shrinkage: the nearest class mean). Chosen because on Imagenette it is as right as ridge regression
and the nearest mean, or more so, five points better than ridge where classes have 2 to 20 examples each (docs/log.md),
closed in leave-one-out, and blind to the length of a vector: taught on vectors of length one, it fits features.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from export.embeddings import NEAR_DUPLICATE, normalise

SHRINKAGE = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # added to the summed squares of unit vectors within classes; tried
COSINE_SCALE = 8.0  # of cosines as logits, where no example can be left out to choose it by
LONGEST_NAME = 200  # letters of a class
_MOST_VALUES = 2**22  # float64 in a block of left-out examples
_MOST_COPIES = 50  # left out with one example by itself: what this costs grows with their cube


class Head(NamedTuple):
    """Logits of a vector x: ``weight @ x + bias``. ``weight`` float32 (C, D), ``bias`` float32 (C,), C ``classes``."""

    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray


class Taught(NamedTuple):
    """A head, and what is known of it.

    ``accuracy``: by leave-one-out, 0 to 1, of the examples that can be left out; None if none can. ``per_class``: the
    same by class, without the classes it cannot be told of. ``measured``: how many examples that was, and ``chance``
    what naming always the most frequent class of them would reach. ``examples`` by class. ``length``: the median length
    of the vectors taught, for which the head's probabilities hold (``for_length``). ``shrinkage``: the one chosen.
    ``note``: for people, what to mind.
    """

    head: Head
    accuracy: float | None
    per_class: dict[str, float]
    measured: int
    chance: float
    examples: dict[str, int]
    length: float
    shrinkage: float
    note: str


def check_classes(classes: Sequence[str]) -> None:
    """Raise ValueError, in one line, for names that are empty, twice there, of several lines or too long to be read."""
    for name in classes:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r:.40} is no name of a class; give each class a name.")
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise ValueError(
                f"The class name {name[:40]!r} has line breaks or control characters; write it in one line."
            )
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"The class name {name[:40]!r}... has {len(name)} letters; {LONGEST_NAME} is the most, so shorten it."
            )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise ValueError(f"The class {twice!r:.80} is there twice; give each class a name of its own.")


# ---- using a head ----------------------------------------------------------------------------------------------------


def logits(head: Head, vectors: np.ndarray) -> np.ndarray:
    """Logits float32 (N, C) of vectors (N, D) of the length that the head was taught on."""
    return np.asarray(vectors, np.float32) @ head.weight.T + head.bias


def probabilities(head: Head, vectors: np.ndarray) -> np.ndarray:
    """Probabilities float32 (N, C) of vectors (N, D) of the length that the head was taught on."""
    found = logits(head, vectors)
    shares = np.exp(found - found.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def for_length(head: Head, length: float) -> Head:
    """A head taught on vectors of length one, for vectors of about this length: the same classes, and probabilities as
    sure. ``length``: the median length of a student's features. Raises ValueError unless it is above zero."""
    if not 0 < length < np.inf:
        raise ValueError(f"A length of {length!r}; give the median length of the student's features, above zero.")
    return head._replace(weight=(head.weight / np.float32(length)).astype(np.float32))


# ---- the discriminant ------------------------------------------------------------------------------------------------


class _Fitted(NamedTuple):
    """The examples in coordinates in which the scatter within classes is diagonal."""

    x: np.ndarray  # (N, R)
    off: np.ndarray  # (N, R), each less the mean of its class
    means: np.ndarray  # (C, R)
    scatter: np.ndarray  # (R,)
    basis: np.ndarray  # (D, R)


def _fit(unit: np.ndarray, classes: np.ndarray, count: int) -> _Fitted:
    """Unit vectors float64 (N, D) of classes (N,), 0 to ``count`` - 1. R is the smaller of N and D."""
    if len(unit) < unit.shape[1]:  # in the space of the examples
        basis, right = np.linalg.qr(unit.T)
        x = right.T
    else:
        basis, x = np.eye(unit.shape[1]), unit
    members = (classes == np.arange(count)[:, None]).astype(np.float64)  # (C, N)
    means = members @ x / members.sum(1, keepdims=True)
    off = x - means[classes]
    scatter, axes = np.linalg.eigh(off.T @ off)
    return _Fitted(x @ axes, off @ axes, means @ axes, np.maximum(scatter, 0), basis @ axes)


def _weights(fitted: _Fitted, shrinkage: float) -> np.ndarray:
    """Weights float64 (C, D): x to the cosine with each class mean in the metric (scatter + shrinkage)^-1, times the
    length of x in that metric and the root of the shrinkage, so that the strongest gives plain cosines."""
    metric = shrinkage / (fitted.scatter + shrinkage)
    along = fitted.means * metric
    return (along / _root((along * fitted.means).sum(1))[:, None]) @ fitted.basis.T


def _root(squares: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares, 1e-12))


# ---- leaving out -----------------------------------------------------------------------------------------------------


def left_out_scores(
    vectors: np.ndarray,
    classes: np.ndarray,
    *,
    shrinkage: Sequence[float] = SHRINKAGE,
    duplicates: float = NEAR_DUPLICATE,
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of every example by the head taught without it: float64 (S, N, C) for the S strengths of shrinkage,
    NaN where it cannot be left out; and how many examples are left out with it, int64 (N,), itself included.

    ``vectors`` (N, D), ``classes`` int64 (N,). Left out with an example are those of its class whose cosine with it is
    ``duplicates`` or more: copies would vouch for each other. (Where one has more than 50, the copies of its copies
    are left out too, and so on: all at once, for all of them.) Then means and scatter are those of the rest, exactly:
    of the scatter a matrix of low rank is taken away (Woodbury), which costs next to nothing. An example cannot be left
    out if none of its class is left.
    """
    unit = normalise(vectors).astype(np.float64)
    count = int(classes.max()) + 1
    fitted = _fit(unit, classes, count)
    together = (unit @ unit.T >= duplicates) & (classes == classes[:, None])  # (N, N)
    np.fill_diagonal(together, True)
    size = together.sum(1)
    if size.max() > _MOST_COPIES:
        heap = _heaps(together)
        large = np.isin(heap, heap[size > _MOST_COPIES])
        together[large] = heap[large, None] == heap
        size = together.sum(1)
    left = np.bincount(classes)[classes] - size
    scores = np.full((len(shrinkage), len(unit), count), np.nan)
    for some in np.unique(size[left > 0]):
        rows = np.flatnonzero((size == some) & (left > 0))
        step = max(1, _MOST_VALUES // ((some + 1) * max(fitted.x.shape[1], count)))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            groups = np.nonzero(together[part])[1].reshape(len(part), some)
            groups, first, of = np.unique(groups, axis=0, return_index=True, return_inverse=True)
            own = part[first]
            for place, strength in enumerate(shrinkage):
                scores[place, part] = _without(fitted, part, groups, of.reshape(-1), classes[own], left[own], strength)
    return scores, size


def _heaps(together: np.ndarray) -> np.ndarray:
    """For each of N examples the first that is linked with it, over any number of links (N, N)."""
    heap = np.arange(len(together))
    while True:
        least = np.where(together, heap, len(heap)).min(1)
        least = least[least]
        if (least == heap).all():
            return heap
        heap = least


def _without(
    fitted: _Fitted,
    rows: np.ndarray,
    groups: np.ndarray,
    of: np.ndarray,
    own: np.ndarray,
    left: np.ndarray,
    shrinkage: float,
) -> np.ndarray:
    """Scores (B, C) of examples ``rows`` by heads without their ``groups`` (U, G), of which theirs is number ``of``
    (B,); all of a group are of the class ``own`` (U,), of which ``left`` (U,) examples stay.

    With d the offsets of a group from the class mean m and s their sum, what stays has the mean m - s / left, and the
    scatter is smaller by the squares of d and of s / sqrt(left).
    """
    metric = shrinkage / (fitted.scatter + shrinkage)
    off = fitted.off[groups]  # (U, G, R)
    root = np.sqrt(left)[:, None]
    gone = np.concatenate([off, (off.sum(1) / root)[:, None]], axis=1)  # (U, G + 1, R)
    weighed = gone * metric
    each = np.arange(len(groups))
    gone_gone = weighed @ gone.transpose(0, 2, 1)  # (U, G + 1, G + 1)
    gone_mean = weighed @ fitted.means.T  # (U, G + 1, C)
    mean_mean = np.repeat(((fitted.means**2) @ metric)[None], len(groups), axis=0)  # (U, C)
    mean_mean[each, own] += -2 * gone_mean[each, -1, own] / root[:, 0] + gone_gone[:, -1, -1] / left
    gone_mean[each, :, own] -= gone_gone[:, :, -1] / root
    inner = shrinkage * np.eye(gone.shape[1]) - gone_gone
    solved = np.linalg.solve(inner, gone_mean)  # (U, G + 1, C)
    lengths = _root(mean_mean + (gone_mean * solved).sum(1))  # (U, C)
    found = (fitted.x[rows] * metric) @ fitted.means.T  # (B, C)
    for group in each:
        mine = np.flatnonzero(of == group)
        gone_x = fitted.x[rows[mine]] @ weighed[group].T  # (., G + 1)
        found[mine, own[group]] -= gone_x[:, -1] / root[group]
        found[mine] = (found[mine] + gone_x @ solved[group]) / lengths[group]
    return found


# ---- how sure --------------------------------------------------------------------------------------------------------


def _scale(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The factor that makes logits of scores (N, C) with the least log loss against ``targets`` (N, C), shares that sum
    to one, and the loss (N,) with it. The loss is convex in the factor: its slope is halved to zero."""
    low, high = np.log(1e-2), np.log(1e4)
    for _ in range(40):
        middle = (low + high) / 2
        shares = np.exp(_log_shares(scores * np.exp(middle)))
        if ((shares - targets) * scores).sum() < 0:
            low = middle
        else:
            high = middle
    factor = float(np.exp((low + high) / 2))
    return factor, -(targets * _log_shares(scores * factor)).sum(1)


def _log_shares(found: np.ndarray) -> np.ndarray:
    found = found - found.max(1, keepdims=True)
    return found - np.log(np.exp(found).sum(1, keepdims=True))


def _smoothed(classes: np.ndarray, count: int) -> np.ndarray:
    """The classes as shares (N, C), short of certainty by as much as N examples leave open (Platt 1999): else a few
    examples, all right, would make the head as sure as can be."""
    doubt = 1 / (len(classes) + 2)
    shares = np.full((len(classes), count), doubt / (count - 1))
    shares[np.arange(len(classes)), classes] = 1 - doubt
    return shares


# ---- the whole -------------------------------------------------------------------------------------------------------


def teach(vectors: np.ndarray, labels: Sequence[str], *, duplicates: float = NEAR_DUPLICATE) -> Taught:
    """A head for the classes that ``labels`` (N,) name, from embeddings (N, D) of any length but zero.

    Shrinkage and temperature are those with the least log loss by leave-one-out. The accuracy is honest about it: for
    each example the shrinkage is the one that the *other* examples' leave-one-out would choose. Near-duplicates
    within a class (cosine ``duplicates`` or more) are left out together; classes of one example, or of copies of one,
    are not counted. An example is judged by a head with fewer examples than the one handed out, so with two or three a
    class the accuracy is too low.

    Raises ValueError for fewer than two classes, vectors and labels that do not fit, vectors that are zero or not
    finite, or a name that ``check_classes`` refuses.
    """
    vectors = np.asarray(vectors)
    _check(vectors, labels)
    labels = [str(label) for label in labels]  # numpy's own texts would not be plain values
    names = tuple(dict.fromkeys(labels))
    place = {name: number for number, name in enumerate(names)}
    classes = np.array([place[label] for label in labels], dtype=np.int64)
    scores, together = left_out_scores(vectors, classes, duplicates=duplicates)
    counted = np.isfinite(scores[0, :, 0])
    strength, factor, right = SHRINKAGE[-1], COSINE_SCALE, np.zeros(len(classes), bool)
    if counted.any():
        strength, factor, right[counted] = _chosen(scores[:, counted], classes[counted])
    unit = normalise(vectors).astype(np.float64)
    length = float(np.median(np.linalg.norm(vectors.astype(np.float64), axis=1)))
    weight = _weights(_fit(unit, classes, len(names)), strength) * factor / length
    head = Head(names, weight.astype(np.float32), np.zeros(len(names), np.float32))
    examples = np.bincount(classes)
    per_class = {
        name: float(right[counted & (classes == number)].mean())
        for number, name in enumerate(names)
        if (counted & (classes == number)).any()
    }
    return Taught(
        head=head,
        accuracy=float(right[counted].mean()) if counted.any() else None,
        per_class=per_class,
        measured=int(counted.sum()),
        chance=float(np.bincount(classes[counted]).max() / counted.sum()) if counted.any() else 0.0,
        examples=dict(zip(names, examples.tolist(), strict=True)),
        length=length,
        shrinkage=strength,
        note=_note(names, classes, counted, together, vectors, duplicates),
    )


def _check(vectors: np.ndarray, labels: Sequence[str]) -> None:
    if vectors.ndim != 2 or len(vectors) != len(labels):
        raise ValueError(f"{len(labels)} labels for vectors of shape {vectors.shape}; give one for each row of (N, D).")
    bad = np.flatnonzero(~(np.isfinite(vectors).all(1) & vectors.any(1)))
    if len(bad):
        raise ValueError(f"The vector of example {bad[0] + 1} is zero or not finite; leave that picture out.")
    check_classes(list(dict.fromkeys(labels)))
    if len(set(labels)) < 2:
        raise ValueError("A head tells classes apart: give examples of two or more, such as 'cat' and 'no cat'.")


def _chosen(scores: np.ndarray, classes: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The shrinkage and the factor of the logits, from left-out scores (S, N, C), and which examples are right (N,),
    each by the shrinkage that the others choose."""
    targets = _smoothed(classes, scores.shape[2])
    found = [_scale(each, targets) for each in scores]
    losses = np.stack([loss for _, loss in found])  # (S, N)
    best = _least(losses.sum(1))
    others = _least(losses.sum(1, keepdims=True) - losses)  # (N,)
    answers = scores.argmax(2)[others, np.arange(len(classes))]
    return SHRINKAGE[int(best)], found[int(best)][0], answers == classes


def _least(losses: np.ndarray) -> np.ndarray:
    """The place of the least along the first axis; of equals the last, the strongest shrinkage."""
    return np.asarray(len(losses) - 1 - losses[::-1].argmin(0))


def _note(
    names: tuple[str, ...],
    classes: np.ndarray,
    counted: np.ndarray,
    together: np.ndarray,
    vectors: np.ndarray,
    duplicates: float,
) -> str:
    """What to mind about the accuracy, in sentences; empty if there is nothing."""
    alone = [name for number, name in enumerate(names) if not counted[classes == number].any()]
    found = []
    if alone:
        shown = ", ".join(name[:40] for name in alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        found.append(f"Not measured, for want of a second example that is no copy of the first: {shown}.")
    copies = int((together > 1).sum())
    if copies:
        found.append(f"{copies} examples have near-copies in their class; each was judged without its copies.")
    unit = normalise(vectors)
    torn = int((((unit @ unit.T) >= duplicates) & (classes != classes[:, None])).any(1).sum())
    if torn:
        found.append(f"{torn} examples look like one of another class: look at their labels.")
    smallest = int(np.bincount(classes).min())
    if counted.any() and smallest <= 3:
        found.append("With so few examples the accuracy is rough, and rather too low.")
    return " ".join(found)
