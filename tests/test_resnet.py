"""Pools, batch norm and selective kernels against their definitions written out."""

import numpy as np
import pytest
import torch

import zoo
from zoo.resnet import BatchNorm, ResNetDPool, SelectiveKernel, max_pool_same


def tensorflow_same_max_pool(x: np.ndarray) -> np.ndarray:
    """3x3, stride 2, TensorFlow's SAME, as nested loops over one channel (H, W)."""
    sizes = [-(-n // 2) for n in x.shape]
    before = [max((out - 1) * 2 + 3 - n, 0) // 2 for n, out in zip(x.shape, sizes, strict=True)]
    result = np.full(sizes, -np.inf)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for a in range(3):
                for b in range(3):
                    y, z = 2 * i + a - before[0], 2 * j + b - before[1]
                    if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
                        result[i, j] = max(result[i, j], x[y, z])
    return result


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (9, 6), (4, 11), (2, 1)])
def test_max_pool_is_tensorflows(height: int, width: int) -> None:
    x = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    ours = max_pool_same(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(ours, tensorflow_same_max_pool(x))


@pytest.mark.parametrize("size", [6, 7])
def test_shortcut_pool_counts_zeros_at_stride_2(size: int) -> None:
    x = np.random.default_rng(0).standard_normal((size, size)).astype(np.float64)
    padded = np.pad(x, (0, 1))
    steps = range(0, size, 2)
    expected = [[padded[i : i + 2, j : j + 2].sum() / 4 for j in steps] for i in steps]
    ours = ResNetDPool(2)(torch.from_numpy(x)[None, None])[0, 0]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_shortcut_pool_does_not_count_padding_at_stride_1() -> None:
    x = np.random.default_rng(0).standard_normal((5, 4))
    expected = [[x[i : i + 2, j : j + 2].mean() for j in range(4)] for i in range(5)]  # slices end at the border
    np.testing.assert_allclose(ResNetDPool(1)(torch.from_numpy(x)[None, None])[0, 0], expected, rtol=1e-12)


def test_batch_norm_keeps_the_biased_variance() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = BatchNorm(3).double()
    out = norm(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)
    torch.testing.assert_close(out, (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt())
    assert BatchNorm(3, shift=False).bias is None


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
@pytest.mark.parametrize("shift", [True, False])
def test_batch_norm_of_a_single_value_is_its_bias(shape: tuple[int, ...], shift: bool) -> None:
    x = torch.tensor([2.0, -1.0, 5.0]).reshape(shape).requires_grad_()
    norm = BatchNorm(3, shift=shift)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.tensor([0.5, -2.0, 3.0]))
    out = norm(x)
    assert out.shape == shape
    assert out.flatten().tolist() == ([0.5, -2.0, 3.0] if shift else [0.0, 0.0, 0.0])
    out.sum().backward()
    assert x.grad.flatten().tolist() == norm.weight.grad.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2, -0.1, 0.5]))
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))
    if shift:
        assert norm.bias.grad.tolist() == [1.0, 1.0, 1.0]


def test_selective_kernel_written_out() -> None:
    torch.manual_seed(0)
    unit = SelectiveKernel(4, 8, 2).eval().double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    both = torch.relu(unit.streams(x))
    first, second = both[:, :8], both[:, 8:]
    scores = unit.choose(torch.relu(unit.squeeze((first + second).mean((2, 3), keepdim=True))))
    share = torch.softmax(torch.stack([scores[:, :8], scores[:, 8:]]), dim=0)
    torch.testing.assert_close(unit(x), share[0] * first + share[1] * second)
    assert unit.squeeze.conv.out_channels == 32  # never fewer


def test_initial_values_follow_the_code() -> None:
    model = zoo.create("r50_1x", seed=3)
    kernel = model.backbone.groups[2][0].conv2.conv.weight
    expected_std = (1 / (256 * 9)) ** 0.5
    assert kernel.std().item() == pytest.approx(expected_std, rel=0.01)
    assert kernel.abs().max().item() <= 2 * expected_std / 0.8796 * 1.0001
    assert not model.backbone.groups[0][1].conv3.norm.weight.any()
    assert model.backbone.groups[0][1].conv1.norm.weight.eq(1).all()
    assert model.projector.layers[0].dense.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert torch.equal(kernel, zoo.create("r50_1x", seed=3).backbone.groups[2][0].conv2.conv.weight)
