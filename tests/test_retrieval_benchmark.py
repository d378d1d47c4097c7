"""The retrieval benchmark: its exact answers against nested loops, and a small whole run of our own index."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def retrieval() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import retrieval
    finally:
        sys.path.remove(str(BENCHMARKS))
    return retrieval


def test_exact_answers_are_those_of_nested_loops(retrieval: ModuleType) -> None:
    random = np.random.default_rng(0)
    rows, queries = random.standard_normal((20_050, 3), np.float32), random.standard_normal((2, 3), np.float32)
    found = retrieval.exact(rows, queries, 4)
    for query, places in zip(queries.tolist(), found.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows.tolist()]
        assert places == sorted(range(len(rows)), key=lambda row: -scores[row])[:4]


def test_recall_by_hand(retrieval: ModuleType) -> None:
    right = np.array([[1, 2], [3, 4], [5, 6]])
    assert retrieval.recall([[2, 9], [4, 3]], right) == 3 / 4  # the third query was not asked
    assert retrieval.recall([[7], [], [6]], right) == 1 / 6  # short lists miss what is not in them


def test_vectors_are_like_features(retrieval: ModuleType) -> None:
    rows = retrieval.features(300, 64, seed=0)
    assert rows.shape == (300, 64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows.min() == 0  # none below, some there
    # the last bit, as with AVX2 a product of few rows takes another kernel than one of many
    np.testing.assert_allclose(retrieval.features(40, 64, seed=0), rows[:40], atol=1e-6)


def test_a_whole_run(tmp_path: Path) -> None:
    out = tmp_path / "results.md"
    command = [sys.executable, str(BENCHMARKS / "retrieval.py"), "--sets", "600x32", "--systems", "ours fp32"]
    options = ["--threads", "1", "--rounds", "1", "--folder", str(tmp_path / "kept"), "--out", str(out)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    text = out.read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ours fp32")]
    speed, place, change = rows
    assert speed[2] == "1.0000"  # recall against float64
    assert change[2:4] == ["1.0000", "0%"]  # and under a filter
    assert all(float(cell.replace(",", "")) > 0 for cell in (speed[3], speed[5], *place[2:8], *change[4:9]))
    assert "left out" not in text
    assert text.splitlines()[-1] in run.stdout
    assert (tmp_path / "kept" / "600x32" / "ours_fp32" / "built.json").exists()


def test_a_system_unknown_is_refused(retrieval: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"Unknown system 'lucene'. Choose from: numpy, ours fp16"):
        retrieval.chosen(["numpy", "lucene"], print)
    assert retrieval.chosen(["ours"], print) == ["ours fp16", "ours fp32"]
