"""NT-Xent in tiles against the dense form with the whole matrix, and its gradient against differences."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import contrast, nt_xent_loss


def dense(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    memory: Tensor | None = None,
    same: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """The whole (2B, 2B + K) matrix, and cross-entropy; ``same`` (B, K) marks a memory of a row's own image, and
    ``keys`` (B, 2, D) of unit length stand for the positives."""
    z = torch.cat([F.normalize(z, dim=1) for z in (z0, z1)])
    batch = len(z0)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(2 * batch, dtype=torch.bool), -1e9)
    if memory is not None and same is not None:
        scores = torch.cat([scores, (z @ memory.T / temperature).masked_fill(torch.cat([same, same]), -1e9)], 1)
    target = torch.arange(2 * batch).roll(batch)
    if keys is not None:
        others = torch.cat([keys[:, 1], keys[:, 0]])
        scores = scores.scatter(1, target[:, None], (z * others).sum(1, keepdim=True) / temperature)
    return F.cross_entropy(scores, target, reduction="sum") / batch


def loss_and_gradient(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, leaves)])


def agree(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], *, temperature: float, bound: float = 1e-10
) -> None:
    assert torch.isfinite(ours[0])
    assert torch.isfinite(ours[1]).all()
    assert (ours[0] - theirs[0]).abs() <= bound * theirs[0].abs().clamp(min=1)
    # a gradient that vanishes is a difference of terms of size 1 / temperature
    assert (ours[1] - theirs[1]).norm() <= bound * theirs[1].norm() + 1e-13 / temperature


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 33, 257])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
def test_tiles_equal_the_dense_form(batch: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(batch)
    z0, z1 = (torch.randn(batch, 7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    expected = loss_and_gradient(dense(z0, z1, temperature), z0, z1)
    for tile in (1, 2, 3, 5, 16, 64, 100, 514, 1000) if batch < 40 else (37, 64, 100, 514, 1000):
        agree(
            loss_and_gradient(nt_xent_loss(z0, z1, temperature, tile=tile), z0, z1), expected, temperature=temperature
        )


def test_a_memory_adds_negatives_but_for_the_same_image() -> None:
    generator = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    memory = F.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=1)
    ids, memory_ids = torch.arange(6), torch.tensor([0, 0, 3, 7, 8, 9, 5, 5, -1])
    same = ids[:, None] == memory_ids[None]
    expected = loss_and_gradient(dense(z0, z1, 0.3, memory, same), z0, z1)
    for tile in (1, 2, 4, 7, 100):
        found = contrast(z0, z1, 0.3, ids=ids, memory=memory, memory_ids=memory_ids, tile=tile)
        agree(loss_and_gradient(found.loss, z0, z1), expected, temperature=0.3)
    everything = contrast(z0, z1, 0.3, memory=memory).loss
    assert everything > expected[0]
    assert everything > nt_xent_loss(z0, z1, 0.3)


def test_the_key_of_the_other_view_is_the_positive() -> None:
    generator = torch.Generator().manual_seed(2)
    z0, z1 = (torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    keys = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    memory = F.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=1)
    ids, memory_ids = torch.arange(6), torch.tensor([0, 0, 3, 7, 8, 9, 5, 5, -1])
    same = ids[:, None] == memory_ids[None]
    for temperature in (0.001, 0.01, 0.3):  # the first beyond the range of exp
        unit = F.normalize(keys, dim=2)
        with_memory = loss_and_gradient(dense(z0, z1, temperature, memory, same, unit), z0, z1)
        without = loss_and_gradient(dense(z0, z1, temperature, keys=unit), z0, z1)
        for tile in (1, 2, 4, 7, 100):
            found = contrast(z0, z1, temperature, keys=keys, ids=ids, memory=memory, memory_ids=memory_ids, tile=tile)
            agree(loss_and_gradient(found.loss, z0, z1), with_memory, temperature=temperature)
            found = contrast(z0, z1, temperature, keys=keys, tile=tile)
            agree(loss_and_gradient(found.loss, z0, z1), without, temperature=temperature)
    own = contrast(z0, z1, 0.3, keys=torch.stack([z0, z1], 1))
    plain = contrast(z0, z1, 0.3)
    assert own.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    assert own.accuracy == plain.accuracy
    with pytest.raises(ValueError, match=r"keys must be \(6, 2, 5\), one for each view, not \(6, 5\)"):
        contrast(z0, z1, 0.3, keys=keys[:, 0])


def test_no_gradient_flows_into_keys() -> None:
    z0, z1, keys = (torch.randn(4, *shape, dtype=torch.float64).requires_grad_() for shape in ((3,), (3,), (2, 3)))
    contrast(z0, z1, 0.3, keys=keys).loss.backward()
    assert keys.grad is None
    assert z0.grad is not None


@pytest.mark.parametrize("batch", range(1, 9))
def test_the_gradient_is_that_of_the_loss(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    z0, z1 = (torch.randn(batch, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    memory = F.normalize(torch.randn(4, 3, generator=generator, dtype=torch.float64), dim=1)
    for tile in (1, 3, 100):
        assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, 0.4, tile=tile), (z0, z1))  # noqa: B023
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, 0.4, memory=memory, tile=3).loss, (z0, z1))
    keys = torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64)
    for tile in (1, 3, 100):
        assert torch.autograd.gradcheck(
            lambda a, b: contrast(a, b, 0.4, keys=keys, memory=memory, tile=tile).loss,  # noqa: B023
            (z0, z1),
        )


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
def test_identical_and_orthogonal_embeddings(temperature: float) -> None:
    same = torch.ones(8, 8, dtype=torch.float64)
    loss = nt_xent_loss(same, same, temperature, tile=3)
    assert loss.item() == pytest.approx(2 * torch.tensor(15.0, dtype=torch.float64).log().item(), rel=1e-12)
    apart = torch.eye(8, dtype=torch.float64).requires_grad_()
    agree(
        loss_and_gradient(nt_xent_loss(apart, apart, temperature, tile=3), apart),
        loss_and_gradient(dense(apart, apart, temperature), apart),
        temperature=temperature,
    )


def test_logits_of_ten_thousand_are_no_nan() -> None:
    for dtype, sign in itertools.product((torch.float32, torch.float64), (1, -1)):
        generator = torch.Generator().manual_seed(0)
        z0 = torch.randn(16, 8, generator=generator, dtype=dtype)
        z1 = (sign * z0).requires_grad_()  # similarities to the other view of 1 and -1, over 1e-4
        z0.requires_grad_()
        loss, gradient = loss_and_gradient(nt_xent_loss(z0, z1, 1e-4, tile=5), z0, z1)
        reference, expected = loss_and_gradient(dense(z0, z1, 1e-4), z0, z1)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert loss.item() == pytest.approx(reference.item(), rel=1e-4, abs=1e-2)
        # float32 knows logits of 1e4 to 1e-3, and so the probabilities
        assert (gradient - expected).norm() <= (1e-2 if dtype is torch.float32 else 1e-8) * expected.norm() + 1e-8 * 1e4


def test_accuracy_counts_rows_whose_other_view_is_nearest() -> None:
    generator = torch.Generator().manual_seed(1)
    z0 = torch.randn(20, 6, generator=generator)
    z1 = z0 + 0.9 * torch.randn(20, 6, generator=generator)
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    hits = 0
    for i in range(40):
        others = [(float(z[i] @ z[j]), j) for j in range(40) if j != i]
        hits += max(others)[1] == (i + 20) % 40
    assert 0 < hits < 40
    for tile in (1, 7, 64):
        assert contrast(z0, z1, 0.2, tile=tile).accuracy.item() == pytest.approx(hits / 40)


def test_autocast_leaves_the_loss_in_float32() -> None:
    z0, z1 = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)).unbind()
    plain = nt_xent_loss(z0, z1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent_loss(z0, z1), plain)


def test_no_large_matrix_is_built() -> None:
    """The largest tensor made in the forward and backward pass is a tile, or as large as the embeddings."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    z0, z1 = torch.randn(2, 1500, 8, requires_grad=True).unbind()
    with Watch():
        nt_xent_loss(z0, z1, tile=64).backward()
    assert 0 < largest <= 3000 * 8 * 4 * 2  # the whole matrix would be 36 MB
    with pytest.raises(ValueError, match="tile=0"):
        nt_xent_loss(z0, z1, tile=0)
