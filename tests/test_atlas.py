"""The gallery from above: PCA against numpy's SVD, oddities and choices against loops in float64."""

import importlib.util
import sys

import numpy as np
import pytest

from app import atlas
from app.atlas import clusters, flat, outliers, worth_labelling


def heaps(sizes: list[int], *, width: int = 16, spread: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, width) in heaps of these sizes, shuffled, and the heap of each."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), width))
    heap = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = centres[heap] + spread * random.normal(size=(len(heap), width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), heap


# ---- the map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(60, 16), (20, 50), (300, 250)])
@pytest.mark.parametrize("exact", [1024, 10])  # 10: the axes come by repeated multiplication
def test_principal_axes_are_those_of_the_svd(
    count: int, width: int, exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "_EXACT", exact)
    monkeypatch.setattr(atlas, "_COLUMNS", 7)
    vectors, _ = heaps([count // 2, count // 4, count // 4], width=width)
    found = atlas._principal(vectors, 2)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    for place in (0, 1):
        wanted = centred @ axes[place] * np.sign(axes[place][np.abs(axes[place]).argmax()])
        np.testing.assert_allclose(found[:, place], wanted, atol=2e-5)


def test_the_map_keeps_its_scale_and_its_sides() -> None:
    vectors, _ = heaps([300, 200, 100])
    found = flat(vectors)
    assert found.dtype == np.float32
    assert np.abs(found).max() < 1
    points = atlas._principal(vectors, 2)
    edges = [np.quantile(points[:, axis], (0.01, 0.99)) for axis in (0, 1)]
    points = points - [edge.mean() for edge in edges]
    scale = 1.8 / max(np.ptp(edge) for edge in edges)
    inside = np.abs(points * scale).max(1) < 0.9
    assert inside.mean() >= 0.96
    np.testing.assert_allclose(found[inside], (points * scale)[inside], atol=1e-5)
    beyond = np.abs(points[~inside] * scale)
    assert (np.abs(found[~inside]).max(1) >= np.minimum(beyond.max(1), 0.9) - 1e-6).all()
    order = np.argsort(points[:, 0])
    assert (np.diff(found[order, 0]) >= 0).all()
    np.testing.assert_array_equal(flat(vectors), found)
    order = np.random.default_rng(1).permutation(len(vectors))
    np.testing.assert_allclose(flat(vectors[order]), found[order], atol=1e-5)
    np.testing.assert_allclose(flat(vectors[:-1]), found[:-1], atol=0.02)  # one picture less turns nothing round


@pytest.mark.parametrize(
    ("vectors", "shape"),
    [
        (np.zeros((0, 4)), (0, 2)),
        (np.ones((1, 4)), (1, 2)),
        (np.ones((6, 4)), (6, 2)),
        (np.eye(2), (2, 2)),
        (np.eye(3, 1), (3, 2)),
    ],
)
def test_maps_of_next_to_nothing(vectors: np.ndarray, shape: tuple[int, int]) -> None:
    found = flat(vectors)
    assert found.shape == shape
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1).all()
    assert (len(found) > 0 and np.ptp(found, axis=0).max() > 0.1) == (len(np.unique(vectors, axis=0)) > 1)


def test_what_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    vectors, _ = heaps([20, 20])
    for bad, method, said in (
        (vectors, "tsne", "pip install scikit-learn; or choose the method 'pca'"),
        (vectors, "umap", "Choose from: pca, tsne"),
        (vectors * np.inf, "pca", "not finite"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=said):
            flat(bad, method=method)  # type: ignore[arg-type]


def test_rows_beyond_the_most_lie_with_their_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """t-SNE replaced by the first two coordinates: of 80 rows 20 are mapped, the others are put between three."""
    vectors, _ = heaps([40, 40])
    monkeypatch.setattr(atlas, "MOST_ROWS", 20)
    monkeypatch.setattr(atlas, "_tsne", lambda rows, seed, progress: rows[:, :2])
    monkeypatch.setattr(atlas, "_fitted_in", lambda points: points)
    found = flat(vectors, method="tsne")
    taken = np.unique(np.linspace(0, 79, 20).astype(int))
    points = atlas._principal(vectors[taken], 50)[:, :2]
    np.testing.assert_allclose(found[taken], points)
    for row in set(range(80)) - set(taken.tolist()):
        nearest = sorted(range(len(taken)), key=lambda k: -float(vectors[row] @ vectors[taken[k]]))[:3]
        np.testing.assert_allclose(found[row], points[nearest].mean(0), atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="t-SNE needs scikit-learn")
def test_tsne_keeps_heaps_together() -> None:
    vectors, heap = heaps([30, 30, 30])
    found = flat(vectors, method="tsne", seed=1)
    np.testing.assert_array_equal(found, flat(vectors, method="tsne", seed=1))
    for row in range(len(found)):
        distance = ((found - found[row]) ** 2).sum(1)
        distance[row] = np.inf
        assert heap[distance.argmin()] == heap[row]
    assert not flat(np.ones((20, 4)), method="tsne").any()
    assert np.isfinite(flat(np.eye(6, 1), method="tsne")).all()


# ---- clusters and oddities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [5_000, 50])
def test_clusters_are_the_heaps_the_largest_first(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "SOME_ROWS", most)
    sizes = [25, 60, 40]
    vectors, heap = heaps(sizes)
    found = clusters(vectors, 3, seed=1)
    for number, own in enumerate((1, 2, 0)):
        assert (heap[found == number] == own).all()
    assert np.bincount(found).tolist() == [60, 40, 25]


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 1), (50, 5), (200, 10), (5000, 30)])
def test_how_many_clusters(rows: int, count: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, 3))
    assert len(np.unique(clusters(vectors))) == count


def test_clusters_that_cannot_be() -> None:
    assert clusters(np.zeros((0, 4))).shape == (0,)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"{count} clusters of 5 vectors: choose from 1 to 5"):
            clusters(np.eye(5), count)


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_outliers_by_loops(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "_ROWS", 7)
    monkeypatch.setattr(atlas, "_COLUMNS", 11)
    vectors, _ = heaps([20, 10])
    vectors[3] = -vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    found = outliers(vectors * 3, k)
    wide = vectors.astype(np.float64)
    for row in range(len(wide)):
        others = sorted((float(wide[row] @ wide[other]) for other in range(len(wide)) if other != row), reverse=True)
        assert found[row] == pytest.approx(1 - np.mean(others[:k]), abs=1e-5)
    assert found.argmax() == 3


def test_outliers_of_next_to_nothing() -> None:
    assert outliers(np.ones((1, 3))).tolist() == [0]
    assert outliers(np.zeros((0, 3))).shape == (0,)
    np.testing.assert_allclose(outliers(np.eye(3)), 1)
    np.testing.assert_allclose(outliers(np.ones((5000, 2))), 0, atol=1e-6)
    with pytest.raises(ValueError, match="k=0"):
        outliers(np.eye(3), 0)


# ---- what is worth labelling -----------------------------------------------------------------------------------------


def test_uncovered_heaps_come_first_the_largest_before() -> None:
    vectors, heap = heaps([40, 20, 30, 10], spread=0.4)
    known = [int(np.flatnonzero(heap == 1)[0])]
    found = worth_labelling(vectors, known, None, 3)
    assert heap[found].tolist() == [0, 2, 3]
    wide = vectors.astype(np.float64)
    for row in found:
        members = np.flatnonzero(heap == heap[row])
        assert row == max(members, key=lambda k: sum(float(wide[k] @ wide[other]) for other in members))
    assert worth_labelling(vectors, [], None, 4).tolist() == worth_labelling(vectors, [], None, 4).tolist()


def test_doubt_decides_which_heap_comes_first() -> None:
    vectors, heap = heaps([40, 20, 30, 10], spread=0.4)
    known = [int(np.flatnonzero(heap == 1)[0])]
    sure = np.where((heap == 3)[:, None], [[0.4, 0.35, 0.25]], [[0.98, 0.01, 0.01]])
    found = worth_labelling(vectors, known, sure, 3)  # doubt: 10 x 0.95 in heap 3, 40 x 0.03 and 30 x 0.03
    assert heap[found].tolist() == [3, 0, 2]
    assert set(found) == set(worth_labelling(vectors, known, None, 3))
    assert heap[worth_labelling(vectors, known, np.ones((100, 1)), 3)].tolist() == [0, 2, 3]


def test_no_copies_no_known_ones_nothing_unusable() -> None:
    vectors, _ = heaps([12])
    vectors = np.concatenate([vectors, vectors[:6] * 2, np.zeros((1, 16)), np.full((1, 16), np.nan)]).astype(np.float32)
    found = worth_labelling(vectors, [0, 13], None, 50)
    assert sorted(found.tolist()) == list(range(2, 12))  # 12 is a copy of 0, 1 one of 13, which are known
    found = worth_labelling(vectors, [], None, 5)
    assert len({row % 12 for row in found.tolist()}) == 5
    assert worth_labelling(vectors, range(12), None, 5).shape == (0,)
    assert worth_labelling(np.zeros((0, 4)), [], None, 5).shape == (0,)


def test_many_known_leave_no_cluster_uncovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer clusters than rows known and wanted, the turns go round: never a known row, none twice."""
    monkeypatch.setattr(atlas, "_MOST_SPREAD", 4)
    vectors, _ = heaps([10, 10, 10, 10], spread=0.4)
    known = list(range(20))
    for count in (3, 9, 20, 30):
        found = worth_labelling(vectors, known, None, count)
        assert len(set(found.tolist())) == len(found) == min(count, 20)
        assert found.min() >= 20


def test_of_very_many_rows_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "SOME_ROWS", 30)
    vectors, heap = heaps([100, 50, 50])
    found = worth_labelling(vectors, [int(np.flatnonzero(heap == 0)[0])], None, 2)
    assert sorted(heap[found].tolist()) == [1, 2]


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="at least 1 picture"):
        worth_labelling(np.eye(3), [], None, 0)
    with pytest.raises(ValueError, match=r"Probabilities \(2, 3\) for 3 vectors"):
        worth_labelling(np.eye(3), [], np.ones((2, 3)), 1)


@pytest.mark.parametrize("budget", [6, 12])
def test_better_than_chance(budget: int) -> None:
    """Heaps of very different sizes: what is chosen meets all of them, what is drawn does not."""
    sizes = [120, 60, 30, 15, 8, 8]
    ours, drawn = [], []
    for seed in range(5):
        vectors, heap = heaps(sizes, seed=seed)
        ours.append(len(set(heap[worth_labelling(vectors, [], None, budget, seed=seed)])))
        drawn.append(len(set(heap[np.random.default_rng(seed).permutation(len(heap))[:budget]])))
    assert min(ours) == 6
    assert np.mean(drawn) < 5.5
