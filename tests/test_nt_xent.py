"""The ways through NT-Xent (at once, in tiles, kept or again, tiny temperatures) against the sum in nested loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import nt_xent
from training.losses import contrast, nt_xent_loss


def written_out(z0: Tensor, z1: Tensor, temperature: float) -> tuple[float, Tensor, float]:
    """Loss, gradient by z0 and z1 (2, B, D), accuracy: SimCLR's equation 1 in float64, row by row, column by column."""
    leaves = torch.stack([z0, z1]).double().requires_grad_()
    batch = len(z0)
    rows = [row / row.norm().clamp(min=1e-12) for row in leaves.flatten(0, 1)]
    total, hits = torch.zeros((), dtype=torch.float64), 0
    for i, row in enumerate(rows):
        scores = [row @ other / temperature for other in rows]
        positive = scores[(i + batch) % (2 * batch)]
        against = [score for j, score in enumerate(scores) if j != i]
        total = total + torch.logsumexp(torch.stack(against), 0) - positive
        hits += sum(score.item() >= positive.item() for score in against) == 1
    (total / batch).backward()
    assert leaves.grad is not None
    return total.item() / batch, leaves.grad, hits / (2 * batch)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def views(batch: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    z0 = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    z1 = z0 + spread * torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    return z0.to(dtype).requires_grad_(), z1.to(dtype).requires_grad_()


def gradient(loss: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, (z0, z1), retain_graph=True))


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.0229, 0.1, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_way_equals_nested_loops(temperature: float, dtype: torch.dtype) -> None:
    z0, z1 = views(7, dtype, spread=0.9)
    loss, expected, accuracy = written_out(z0.detach(), z1.detach(), temperature)
    assert 0.3 < accuracy < 1
    # a score is known to the type's rounding over the temperature; a weight is its exponential
    bound = 20 * torch.finfo(dtype).eps / min(temperature, 1)
    for tile in (1, 2, 3, 4, 6, 10, 13, 14, 50):
        found = contrast(z0, z1, temperature, tile=tile)
        assert found.loss.item() == pytest.approx(loss, rel=bound, abs=bound), tile
        assert (gradient(found.loss, z0, z1) - expected).norm() <= bound * expected.norm(), tile
        assert found.accuracy.item() == pytest.approx(accuracy), tile


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_what_is_as_near_as_others_is_not_nearest(rows: int) -> None:
    """Images that are all alike, or each there twice: the last bits of differently shaped products decide nothing."""
    for seed in range(4):
        few = torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed))
        alike = few.repeat(100 // rows, 1)
        for tile in (13, 32, 100, 1000):
            assert contrast(alike, alike, 0.1, tile=tile).accuracy == 0, tile


def test_where_the_exponential_leaves_its_type() -> None:
    for dtype in (torch.float32, torch.float64):
        border = 2 / math.log(torch.finfo(dtype).max)
        assert nt_xent.in_range(border * 1.0001, dtype)
        assert not nt_xent.in_range(border / 1.0001, dtype)
        z0, z1 = views(9, dtype, spread=0.0)  # equal views, scores up to 1 / temperature
        for temperature in (border * 1.0001, border / 1.0001):
            for sign in (1, -1):
                loss, expected, _ = written_out(z0.detach(), sign * z1.detach(), temperature)
                ours = nt_xent_loss(z0, sign * z1, temperature, tile=4)
                assert ours.item() == pytest.approx(loss, rel=1e-5, abs=1e-5)
                difference = gradient(ours, z0, z1) - expected * torch.tensor([1, sign])[:, None, None]
                assert difference.norm() <= 1e-3 * expected.norm() + 1e-4


@pytest.mark.parametrize("room", [0, 40 * 8, 100 * 8])
def test_tiles_that_are_kept_change_no_bit(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z0, z1 = views(11)
    kept = gradient(nt_xent_loss(z0, z1, tile=6), z0, z1)
    monkeypatch.setattr(nt_xent, "KEPT", room)
    again = nt_xent_loss(z0, z1, tile=6)
    assert torch.equal(gradient(again, z0, z1), kept)
    assert torch.equal(gradient(again, z0, z1), kept)  # a second backward pass finds the tiles as the first did


@pytest.mark.parametrize("tile", [4, 100])
def test_rows_without_length(tile: int) -> None:
    z0, z1 = views(5)
    with torch.no_grad():
        z0[1], z1[3] = 0, 1e-13 * z1[3]
    loss, expected, _ = written_out(z0.detach(), z1.detach(), 0.5)
    ours = nt_xent_loss(z0, z1, 0.5, tile=tile)
    assert ours.item() == pytest.approx(loss, rel=1e-12)
    found = gradient(ours, z0, z1)
    for view in range(2):
        for k in range(5):  # row by row: these gradients are 1e12 times the others
            assert torch.allclose(found[view, k], expected[view, k], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("tile", [None, 4])
def test_half_precision_is_computed_in_float32(tile: int | None) -> None:
    z0, z1 = views(8, torch.bfloat16)
    found = contrast(z0, z1, 0.2, tile=tile)
    wide = contrast(z0.detach().float(), z1.detach().float(), 0.2, tile=tile)
    assert torch.equal(found.loss, wide.loss)
    assert found.loss.dtype is torch.float32
    assert gradient(found.loss, z0, z1).dtype is torch.bfloat16


@pytest.mark.parametrize("temperature", [1e-3, 0.1])
@pytest.mark.parametrize("tile", [10, 100])
def test_nothing_waits_for_values(tile: int, temperature: float) -> None:
    """On the device `meta` there are none: whatever a GPU would be waited for fails."""
    z0, z1 = (torch.empty(20, 8, device="meta", requires_grad=True) for _ in range(2))
    memory, ids = torch.empty(30, 8, device="meta"), torch.empty(20, dtype=torch.int64, device="meta")
    found = contrast(z0, z1, temperature, tile=tile)
    more = contrast(z0, z1, temperature, ids=ids, memory=memory, memory_ids=ids.repeat(2)[:30], tile=tile)
    keyed = contrast(z0, z1, temperature, keys=torch.empty(20, 2, 8, device="meta"), memory=memory, tile=tile)
    for loss in (found.loss, more.loss, keyed.loss):
        assert gradient(loss, z0, z1).shape == (2, 20, 8)
    with pytest.raises(RuntimeError, match="meta"):
        found.accuracy.item()


def test_the_tiles_of_others_and_the_memory_are_cut_alike() -> None:
    """Columns that are not a multiple of the tile, more and fewer than rows, with and without a common image."""
    z0, z1 = views(5)
    generator = torch.Generator().manual_seed(1)
    for count in (1, 7, 23):
        memory = F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)
        names = torch.arange(count) % 9
        results = [
            contrast(z0, z1, 0.1, ids=torch.arange(5), memory=memory, memory_ids=names, tile=t) for t in (2, 8, 64)
        ]
        z = F.normalize(torch.stack([z0, z1], 1).flatten(0, 1), dim=1).tolist()
        total = 0.0
        for i, row in enumerate(z):
            own = {j: math.exp(10 * dot(row, z[j])) for j in range(10) if j != i}
            more = [math.exp(10 * dot(row, memory[k].tolist())) for k in range(count) if names[k] != i // 2]
            total += math.log((sum(own.values()) + sum(more)) / own[i ^ 1]) / 5
        for found in results:
            assert found.loss.item() == pytest.approx(total, rel=1e-12)
