"""The estimates of benchmarks/paper_estimate.py against numbers worked out by hand."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import paper_estimate
    finally:
        sys.path.remove(str(BENCHMARKS))
    return paper_estimate


@pytest.fixture(scope="module")
def scaling(paper: ModuleType) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import scaling
    finally:
        sys.path.remove(str(BENCHMARKS))
    return scaling


@pytest.fixture
def round_constants(paper: ModuleType) -> dict[str, float]:
    """Numbers that a person can multiply."""
    return dict.fromkeys(paper.GIVEN | paper.ASSUMED | paper.MEASURED_DEFAULTS, 1.0) | {
        "peak": 1e12,
        "peak_fp32": 1e12,
        "h100_bandwidth": 1e12,
        "h200_bandwidth": 2e12,
        "h100_memory": 10e9,
        "nvlink": 100e9,
        "network": 10e9,
        "node": 8.0,
        "node_cores": 80.0,
        "views_per_core": 10.0,
        "latency": 1e-3,
    }


def test_resnet_50_is_counted_as_its_table_says(paper: ModuleType) -> None:
    products, written, weights = 112**2 * 64 * 7 * 7 * 3, 112**2 * 64, 64 * 7 * 7 * 3
    inside, size = 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        out = size if width == 64 else size // 2
        for block in range(blocks):
            here = size if block == 0 else out  # the first 1x1 runs before the stride
            layers = [(here, inside, width, 1), (out, width, width, 3), (out, width, 4 * width, 1)]
            layers += [(out, inside, 4 * width, 1)] if block == 0 else []
            for side, before, after, kernel in layers:
                products += side**2 * before * after * kernel**2
                written += side**2 * after
                weights += before * after * kernel**2
            inside = 4 * width
        size = out
    norms = 2 * 26_560  # scale and shift of 26,560 channels
    head = 2 * (2048 * 2048 + 2 * 2048) + 2048 * 128 + 128
    found = paper.network("r50_1x")
    assert (found.multiply_adds, found.activations) == (products, written)
    assert found.parameters == weights + norms + head
    assert (found.norms, found.features) == (1 + 3 * 16 + 4 + 3, 2048)


def test_a_view_costs_its_products_or_its_bytes(paper: ModuleType, round_constants: dict[str, float]) -> None:
    computing = paper.Network(10**9, 10**6, 1, 1, 1)
    moving = paper.Network(10**6, 10**9, 1, 1, 1)
    assert paper.view_seconds(computing, round_constants, card="h100") == pytest.approx(6e9 / 1e12)
    assert paper.view_seconds(computing, round_constants, card="h100", training=False) == pytest.approx(2e9 / 1e12)
    assert paper.view_seconds(moving, round_constants, card="h100") == pytest.approx(2e9 / 1e12)
    assert paper.view_seconds(moving, round_constants, card="h200") == pytest.approx(1e-3)


def test_a_step_by_hand(paper: ModuleType, round_constants: dict[str, float]) -> None:
    """Batch 128 on 16 GPUs in two machines: 16 views each, of a network of 25 million weights and 5 norms."""
    net = paper.Network(10**9, 10**6, 25 * 10**6, 5, 1)
    step = paper.step(net, 16, round_constants, card="h100", batch=128)
    assert step.network == pytest.approx(16 * 6e-3)
    assert step.reduce == pytest.approx(2 * 15 / 16 * 100e6 / 80e9)  # eight adapters together, slower than NVLink
    assert step.norm == pytest.approx(2 * 5 * 1e-3)
    assert step.loss == pytest.approx(3 * 2 * 16 * 256 * 128 / 1e12 + 15 / 16 * 256 * 512 / 80e9 + 3e-3)
    assert step.optimizer == pytest.approx(500e6 / 1e12)
    assert step.gpu_bytes == pytest.approx(300e6 + 16 * 2e6)
    assert step.cores == pytest.approx((1 / 6e-3) / 10)
    assert step.seconds == pytest.approx(step.network + step.norm + step.loss + step.optimizer)  # the sum is hidden
    assert paper.limit(step, round_constants) == "decode and augmentation"  # 16.7 cores wanted, 10 there
    wide = round_constants | {"node_cores": 800.0}
    assert paper.limit(step, wide) == "batch norm's statistics"
    assert paper.limit(step._replace(reduce=0.2), wide) == "gradient all-reduce"
    assert step._replace(reduce=0.2).seconds == pytest.approx(step.seconds + 0.2 - 0.064)


def test_one_gpu_waits_for_none(paper: ModuleType, round_constants: dict[str, float]) -> None:
    step = paper.step(paper.Network(10**9, 10**6, 10**6, 5, 1), 1, round_constants, card="h100", batch=64)
    assert (step.reduce, step.norm) == (0, 0)
    assert step.loss == pytest.approx(3 * 2 * 128 * 128 * 128 / 1e12)


def test_the_fewest_gpus_whose_memory_holds_a_batch(paper: ModuleType, round_constants: dict[str, float]) -> None:
    net = paper.Network(1, 10**7, 10**6, 1, 1)  # 20 MB a view: 164 GB of 8,192 views, and 9 GB of each GPU
    assert paper.least_gpus(net, round_constants, card="h100") == 32


def test_training_of_800_epochs_is_as_the_paper_has_it(paper: ModuleType, tmp_path: Path) -> None:
    """floor(1,281,167 * 800 / 4,096) + 1 steps; and the hours of a row are its steps times its milliseconds."""
    title, _, *rows = paper.training_table(paper.constants_from(tmp_path / "none.json"))
    assert title.startswith("250,228 steps")
    assert 1_281_167 * 800 // 4096 + 1 == 250_228
    for row in rows[2:]:
        cells = [cell.strip().replace(",", "") for cell in row.strip("|").split("|")]
        gpus, milliseconds, hours = int(cells[2]), float(cells[8]), float(cells[10])
        assert hours == pytest.approx(250_228 * milliseconds / 3.6e6, rel=0.01, abs=0.06)
        assert float(cells[11]) == pytest.approx(hours * gpus, rel=0.1)


def test_constants_are_measured_or_told(paper: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "scaling.json"
    results.write_text(json.dumps({"constants": {"views_per_core": 321.0, "unknown": 1}}))
    found = paper.constants_from(results, {"latency": 2e-5})
    assert (found["views_per_core"], found["latency"], found["decode_per_core"]) == (321, 2e-5, 300)
    with pytest.raises(ValueError, match="Did you mean 'latency'"):
        paper.constants_from(results, {"latencies": 1})
    with pytest.raises(ValueError, match="peak=0 is not positive"):
        paper.constants_from(results, {"peak": 0})


def test_a_page_is_changed_between_its_marks_only(paper: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- estimate -->\nold\n<!-- /estimate -->\nb\n")
    for _ in range(2):
        paper.put_between_marks(page, "estimate", "new")
        assert page.read_text() == "a\n<!-- estimate -->\nnew\n<!-- /estimate -->\nb\n"
    with pytest.raises(ValueError, match="has no <!-- measured -->"):
        paper.put_between_marks(page, "measured", "new")


def test_constants_of_what_was_measured(scaling: ModuleType) -> None:
    index = {"images": 1000, "width": 512, "bytes": 6_024_000, "query_ms": 0.5}
    embed = {"network": "r50_1x", "where": "onnxruntime", "ms_an_image": 40.0}
    found = scaling.constants({"embed": [{"decode_per_core": 200.0}, embed], "index": [index]})
    assert found == {
        "decode_per_core": 200,
        "embed_r50_224": 25,
        "index_bytes": 5000,  # 6,024 less two bytes for each of 512 numbers
        "search_bandwidth": pytest.approx(4.096e9),
    }


def test_an_exponent_is_the_slope(scaling: ModuleType) -> None:
    assert scaling.exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
