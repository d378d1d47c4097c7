"""Taught heads: leave-one-out against teaching again without the example, in float64, by the formulas as written."""

import time

import numpy as np
import pytest

from export import heads
from export.embeddings import normalise
from export.heads import Head, for_length, left_out_scores, logits, probabilities, teach


def draw(
    sizes: list[int], *, width: int = 12, spread: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors (N, width) about a centre for each class, mixed; classes (N,) and their names."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), width)) + 1
    classes = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = (centres[classes] + spread * random.normal(size=(len(classes), width))).astype(np.float32)
    return (
        vectors * random.uniform(1, 9, (len(classes), 1)).astype(np.float32),
        classes,
        [f"class {c}" for c in classes],
    )


def by_definition(vectors: np.ndarray, classes: np.ndarray, strength: float, x: np.ndarray, count: int) -> np.ndarray:
    """Scores (count,) of a vector: the cosine with each class mean in the metric (scatter / strength + 1)^-1, times the
    length of the vector there. Loops and an explicit inverse."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))
    means = [np.mean([row for row, own in zip(unit, classes, strict=True) if own == c], axis=0) for c in range(count)]
    scatter = np.zeros((unit.shape[1], unit.shape[1]))
    for row, own in zip(unit, classes, strict=True):
        scatter += np.outer(row - means[own], row - means[own])
    metric = np.linalg.inv(scatter / strength + np.eye(unit.shape[1]))
    return np.array([x @ metric @ mean / np.sqrt(mean @ metric @ mean) for mean in means])


@pytest.mark.parametrize(("sizes", "width"), [([4, 7, 2], 5), ([3, 3, 5, 2], 40), ([1, 6, 2], 12)])
@pytest.mark.parametrize("spread", [0.5, 1e-3])  # with 1e-3 each class is a heap of near-copies
def test_leaving_out_is_teaching_without(sizes: list[int], width: int, spread: float) -> None:
    vectors, classes, _ = draw(sizes, width=width, spread=spread)
    away = np.flatnonzero(classes == 1)[:2]  # two groups in class 1
    vectors[away, 0] += 5 * np.linalg.norm(vectors[away], axis=1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores, together = left_out_scores(vectors, classes, shrinkage=(0.1, 3.0, 100.0))
    told = 0
    for row in range(len(vectors)):
        copies = [k for k in range(len(vectors)) if classes[k] == classes[row] and unit[k] @ unit[row] >= 0.98]
        rest = np.array([k for k in range(len(vectors)) if k != row and k not in copies])
        assert together[row] == len({row, *copies})
        if classes[row] not in classes[rest]:
            assert np.isnan(scores[:, row]).all()
            continue
        for place, strength in enumerate((0.1, 3.0, 100.0)):
            wanted = by_definition(vectors[rest], classes[rest], strength, vectors[row], len(sizes))
            np.testing.assert_allclose(scores[place, row], wanted, rtol=1e-5, atol=1e-6)
            assert scores[place, row].argmax() == wanted.argmax()
            told += 1
    assert told


def test_the_head_is_the_discriminant() -> None:
    vectors, classes, labels = draw([5, 6, 4])
    taught = teach(vectors, labels)
    order = [taught.head.classes.index(f"class {c}") for c in range(3)]
    found = logits(taught.head, vectors)[:, order].astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = np.array([by_definition(vectors, classes, taught.shrinkage, row, 3) for row in vectors])
    wanted *= np.linalg.norm(vectors, axis=1, keepdims=True) / taught.length
    factor = (found * wanted).sum() / (wanted**2).sum()
    np.testing.assert_allclose(found, factor * wanted, rtol=1e-4)
    assert 0.01 <= factor <= 1e4
    np.testing.assert_allclose(probabilities(taught.head, unit).sum(1), 1, rtol=1e-5)


def test_the_accuracy_takes_the_shrinkage_that_the_others_choose() -> None:
    vectors, classes, labels = draw([6, 6, 6], spread=1.6, seed=3)
    taught = teach(vectors, labels)
    order = [int(name[-1]) for name in taught.head.classes]
    scores, _ = left_out_scores(vectors, classes)
    count, right = len(classes), []
    doubt = 1 / (count + 2)

    def losses(place: int) -> np.ndarray:
        """The least log loss over a fine grid of factors."""
        best = np.full(count, np.inf)
        for factor in np.exp(np.linspace(np.log(0.01), np.log(1000), 4000)):
            found = (scores[place] - scores[place].max(1, keepdims=True)) * factor
            shares = found - np.log(np.exp(found).sum(1, keepdims=True))
            told = np.full((count, 3), doubt / 2)
            told[np.arange(count), classes] = 1 - doubt
            loss = -(told * shares).sum(1)
            best = loss if loss.sum() < best.sum() else best
        return best

    every = np.stack([losses(place) for place in range(len(heads.SHRINKAGE))])
    for row in range(count):
        others = np.delete(every, row, axis=1).sum(1)
        right.append(scores[others.argmin(), row].argmax() == classes[row])
    assert taught.shrinkage == heads.SHRINKAGE[every.sum(1).argmin()]
    assert taught.accuracy == pytest.approx(np.mean(right))
    for number, name in enumerate(taught.head.classes):
        assert taught.per_class[name] == pytest.approx(np.mean(np.array(right)[classes == order[number]]))
    assert 0.3 < taught.accuracy < 1


def test_labels_at_random_are_told_at_chance() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(40):
        labels = random.permutation(np.repeat(["a", "b", "c", "d"], 8))
        found.append(teach(random.normal(size=(32, 20)) + 1, labels.tolist()).accuracy)
    assert 0.15 < float(np.mean(found)) < 0.27  # 0.25, or a little below: an example's own class is one short


def test_single_examples_say_nothing() -> None:
    vectors, _, labels = draw([1, 1, 1])
    taught = teach(vectors, labels)
    assert taught.accuracy is None
    assert taught.per_class == {}
    assert taught.note.startswith("Not measured")
    assert probabilities(taught.head, vectors).max() < 0.999
    vectors, classes, labels = draw([1, 5, 5], spread=0.05)
    vectors *= np.random.default_rng(1).uniform(0.9, 1.1, vectors.shape)
    taught = teach(vectors, labels, duplicates=1.1)
    assert set(taught.per_class) == {"class 1", "class 2"}
    assert taught.accuracy == 1
    assert "class 0" in taught.note
    assert taught.examples == {f"class {c}": int((classes == c).sum()) for c in (1, 2, 0)}
    assert (taught.measured, taught.chance) == (10, 0.5)  # of what was measured, which class 0 is not


def test_copies_do_not_vouch_for_each_other() -> None:
    """Random pictures, each there three times: a head that has seen the copies names them all."""
    random = np.random.default_rng(2)
    base = random.normal(size=(24, 30)).astype(np.float32)
    vectors = np.repeat(base, 3, axis=0) * (1 + 0.001 * random.normal(size=(72, 30)))
    labels = np.repeat(random.permutation(np.repeat(["a", "b"], 12)), 3).tolist()
    naive, honest = teach(vectors, labels, duplicates=1.1), teach(vectors, labels)
    assert naive.accuracy is not None
    assert honest.accuracy is not None
    assert naive.accuracy > 0.95
    assert honest.accuracy < 0.7
    assert "72 examples have near-copies" in honest.note
    alone = teach(vectors[:6], ["a"] * 3 + ["b"] * 3)
    assert alone.accuracy is None
    torn = teach(vectors[[0, 1, 3, 6]], ["a", "b", "a", "b"])
    assert "2 examples look like one of another class" in torn.note


def test_the_length_of_vectors_does_not_matter() -> None:
    vectors, _, labels = draw([5, 5, 5])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    once, again = teach(vectors, labels), teach(unit, labels)
    assert (once.accuracy, once.shrinkage) == (again.accuracy, again.shrinkage)
    assert again.length == pytest.approx(1)
    assert once.length == pytest.approx(float(np.median(np.linalg.norm(vectors, axis=1))))
    np.testing.assert_allclose(for_length(again.head, once.length).weight, once.head.weight, rtol=1e-4, atol=1e-6)
    assert (logits(once.head, vectors).argmax(1) == logits(again.head, unit).argmax(1)).all()
    for length in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="above zero"):
            for_length(once.head, length)


def test_more_examples_of_a_class_favour_it_less_than_least_squares() -> None:
    """Two classes alike in spread, 40 examples of one and 4 of the other: how often the rare one is found."""
    random = np.random.default_rng(5)
    centres = np.array([[1.0, 0.35], [0.35, 1.0]]) @ random.normal(size=(2, 16))
    classes, fresh = np.repeat([0, 1], [40, 4]), np.repeat(1, 200)
    ours, squares = [], []
    for _ in range(20):
        vectors, others = (centres[own] + random.normal(size=(len(own), 16)) for own in (classes, fresh))
        ours.append(logits(teach(vectors, [str(c) for c in classes]).head, others).argmax(1).mean())
        vectors, others = (
            np.c_[rows / np.linalg.norm(rows, axis=1)[:, None], np.ones(len(rows))] for rows in (vectors, others)
        )
        weights = np.linalg.solve(vectors.T @ vectors + 0.3 * np.eye(17), vectors.T @ np.eye(2)[classes])
        squares.append((others @ weights).argmax(1).mean())
    assert np.mean(ours) > 0.6
    assert np.mean(ours) > np.mean(squares) + 0.2


def test_fast_and_plain() -> None:
    vectors, _, labels = draw([100] * 10, width=512, spread=2.0)
    start = time.process_time()
    taught = teach(vectors, np.array(labels))  # type: ignore[arg-type]
    assert time.process_time() - start < 5  # 0.4 on one core
    assert all(type(name) is str for name in (*taught.head.classes, *taught.per_class, *taught.examples))
    assert taught.head.weight.dtype == taught.head.bias.dtype == np.float32
    assert isinstance(taught.head, Head)


@pytest.mark.parametrize(
    ("vectors", "labels", "said"),
    [
        (np.ones((2, 3)), ["a"], r"1 labels for vectors of shape \(2, 3\)"),
        (np.ones(3), ["a"] * 3, r"vectors of shape \(3,\)"),
        (np.ones((2, 3)), ["a", "a"], "two or more"),
        (np.ones((0, 3)), [], "two or more"),
        (np.ones((2, 3)), ["a", " "], "no name of a class"),
        (np.ones((2, 3)), ["a", "b\nc"], "line breaks"),
        (np.ones((2, 3)), ["a", "b" * 10_000], "has 10000 letters"),
        (np.array([[1.0, 0], [0, 0]]), ["a", "b"], "example 2 is zero"),
        (np.array([[np.nan, 0], [0, 1]]), ["a", "b"], "example 1 is zero or not finite"),
    ],
)
def test_what_cannot_be_taught(vectors: np.ndarray, labels: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        teach(vectors, labels)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_many_near_copies_are_left_out_together_and_quickly() -> None:
    """A burst of photographs, each a near-copy of about half of the others, and one that is not."""
    rng = np.random.default_rng(0)
    heaps = np.repeat(rng.normal(size=(2, 128)), 150, axis=0)
    vectors = heaps + 0.14 * rng.normal(size=heaps.shape)
    vectors[[0, 150]] = rng.normal(size=(2, 128))
    classes = np.arange(300) // 150
    unit = normalise(vectors)
    alike = (unit @ unit.T >= 0.98).sum(1)
    assert 50 < np.median(alike) < 149
    started = time.process_time()
    scores, together = left_out_scores(vectors, classes)
    assert time.process_time() - started < 5
    assert together.max() == 149
    row, rest = 1, [0, *range(150, 300)]
    assert together[row] == 149
    wanted = by_definition(vectors[rest], classes[rest], heads.SHRINKAGE[2], vectors[row], 2)
    np.testing.assert_allclose(scores[2, row], wanted, rtol=1e-5, atol=1e-6)
