"""One training step: a whole batch's gradient with the memory of a part, batch norm over parts, precision, clipping."""

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import TINY
from torch import Tensor

import zoo
from training.batch_norm import WholeBatchStatistics, recompute_activations, still
from training.distributed import normalise_over_processes
from training.memory import MemoryBuffer, MovingAverage
from training.stages import Distill, Finetune, Pretrain, Stage
from training.step import Step
from training.teachers import ModelTeacher

CPU = torch.device("cpu")


def make(classes: int | None = None, *, seed: int = 0) -> zoo.SimCLR:
    model = zoo.create(TINY, num_classes=classes, image_size=48, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.momentum = 1.0  # one pass gives statistics of such images
        if model.classifier is not None:
            model.classifier.weight.normal_(generator=generator)
        model.train().projector(model.backbone(batch()["view0"]))
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.momentum = 0.1
    return model


def batch(count: int = 13) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    views = {f"view{v}": torch.rand(count, 3, 48, 48, generator=generator, dtype=torch.float64) for v in (0, 1)}
    return views | {"index": torch.arange(count), "label": torch.arange(count) % 3}


STAGES: dict[str, Callable[[], Stage]] = {
    "pretrain": lambda: Pretrain(make(), temperature=0.5),
    "memory": lambda: Pretrain(make(), temperature=0.5, memory=20),
    "finetune": lambda: Finetune(make(3), weight_decay=1e-2),
    "distill": lambda: Distill(make(3), ModelTeacher(make(3, seed=1)), temperature=0.7, alpha=0.4),
}


def one_step(stage: Stage, **settings: object) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient and running statistics after a step with learning rate 0."""
    parameters = [p for p in stage.model.parameters() if p.requires_grad]
    step = Step(stage, torch.optim.SGD(parameters, lr=0.0), device=CPU, **settings)  # type: ignore[arg-type]
    metrics = step(batch())
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    statistics = torch.cat([value.flatten() for value in stage.model.buffers()])
    return metrics["loss"].item(), gradient, statistics


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("micro", [1, 4, 5, 13, 50])
def test_parts_give_the_whole_gradient_where_batch_norm_allows(kind: str, micro: int) -> None:
    whole, parts = STAGES[kind](), STAGES[kind]()
    for stage in (whole, parts):
        stage.eval()  # batch norm by the running statistics mixes no images
    loss, gradient, _ = one_step(whole)
    loss_of_parts, gradient_of_parts, _ = one_step(parts, micro_batch=micro)
    assert loss_of_parts == pytest.approx(loss, rel=1e-12)
    assert (gradient_of_parts - gradient).norm() < 1e-10 * gradient.norm()


@pytest.mark.parametrize("kind", STAGES)
def test_parts_give_the_gradient_of_the_network_that_norms_by_parts(kind: str) -> None:
    """All graphs kept at once, and differentiated by autograd in one go, is the independent answer."""
    stage, other = STAGES[kind]().train(), STAGES[kind]().train()
    step = Step(other, torch.optim.SGD(other.model.parameters(), lr=0.0), device=CPU, micro_batch=4)
    parts = step.parts(batch())
    other.before_step(parts)
    outputs = torch.cat([other.outputs(part) for part in parts])
    whole = other.loss(outputs, batch(), other.counts(batch()))["loss"]
    whole.backward()
    expected = torch.cat([p.grad.flatten() for p in other.model.parameters() if p.requires_grad])
    loss, gradient, statistics = one_step(stage, micro_batch=4)
    assert loss == pytest.approx(whole.item(), rel=1e-12)
    assert (gradient - expected).norm() < 1e-10 * expected.norm()
    moved_once_a_part = torch.cat([value.flatten() for value in other.model.buffers()])
    assert torch.equal(statistics, moved_once_a_part)


def test_parts_are_even_and_no_larger_than_asked() -> None:
    stage = STAGES["pretrain"]()
    for micro, sizes in ((0, [13]), (4, [4, 3, 3, 3]), (5, [5, 4, 4]), (1, [1] * 13), (99, [13])):
        step = Step(stage, torch.optim.SGD(stage.model.parameters(), lr=0.0), device=CPU, micro_batch=micro)
        parts = step.parts(batch())
        assert [len(part["view0"]) for part in parts] == sizes
        assert torch.equal(torch.cat([part["index"] for part in parts]), torch.arange(13))


@pytest.mark.parametrize("kind", ["pretrain", "memory", "distill"])
def test_pooled_statistics(kind: str) -> None:
    """With one part nothing changes; with several they are nearer to the whole batch's than a part's own."""
    reference = one_step(STAGES[kind]().train())
    same = one_step(STAGES[kind]().train(), micro_batch=13, statistics="global")
    assert same[0] == reference[0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same[1:], reference[1:], strict=True))
    pooled = one_step(STAGES[kind]().train(), micro_batch=7, statistics="global")
    parts = one_step(STAGES[kind]().train(), micro_batch=7)
    for place in (1, 2):  # gradient, running statistics
        errors = [(found[place] - reference[place]).norm() for found in (pooled, parts)]
        assert errors[0] < errors[1]


def test_one_value_is_its_own_mean_over_processes_too() -> None:
    """What is left is the bias, exactly: of rounding, half the units after it would be open."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 64, generator=generator) * 100).requires_grad_()
    weight, bias = torch.rand(64, generator=generator) + 1, torch.zeros(64)
    for shape in ((1, 64), (1, 64, 1, 1)):
        for shift in (bias, bias + 0.5, None):
            ours, mean, variance = normalise_over_processes(x.view(shape), weight, shift, 1e-5)
            theirs, their_mean, their_variance = zoo.resnet.normalise_batch(x.view(shape), weight, shift, 1e-5)
            assert torch.equal(ours, theirs)
            assert torch.equal(mean, their_mean)
            assert torch.equal(variance, their_variance)
            (gradient,) = torch.autograd.grad(ours.square().sum(), x)
            assert gradient.abs().max() == 0


def test_pooled_statistics_of_one_layer_are_the_whole_batchs() -> None:
    """By hand: a single norm has nothing below it that parts could change, so its outputs are exactly the whole's."""
    norm = zoo.resnet.BatchNorm(3).double().train()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x = torch.randn(11, 3, 4, 4, dtype=torch.float64) * 3 + 5
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.weight.view(1, 3, 1, 1)
    pool = WholeBatchStatistics(norm)
    with pool.collecting():
        for part in x.tensor_split(3):
            norm(part)
    assert torch.equal(norm.running_mean, torch.zeros(3, dtype=torch.float64))
    with pool.using():
        found = torch.cat([norm(part) for part in x.tensor_split(3)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("micro", [0, 4])
def test_recomputed_activations_change_nothing(micro: int) -> None:
    for kind, build in STAGES.items():
        plain, again = build().train(), build().train()
        recompute_activations(again.model)
        kept = one_step(plain, micro_batch=micro)
        recomputed = one_step(again, micro_batch=micro)
        assert kept[0] == recomputed[0], kind
        assert all(torch.equal(a, b) for a, b in zip(kept[1:], recomputed[1:], strict=True)), kind


def test_recomputing_keeps_fewer_activations() -> None:
    def kept(recompute: bool) -> int:
        stage = STAGES["pretrain"]().train()
        if recompute:
            recompute_activations(stage.model)
        saved: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            stage(batch())
        return sum(saved.values())

    assert kept(True) < 0.7 * kept(False)


def test_still_statistics_move_again_afterwards() -> None:
    model = make().train()
    with still(model):
        model.backbone(batch()["view1"])
        assert torch.equal(next(model.buffers()), next(make().buffers()))
    model.backbone(batch()["view1"])
    assert not torch.equal(next(model.buffers()), next(make().buffers()))


def test_clipping_bounds_the_whole_gradient_and_only_if_asked() -> None:
    _, free, _ = one_step(STAGES["finetune"]().train())
    _, clipped, _ = one_step(STAGES["finetune"]().train(), clip_norm=0.01)
    assert free.norm() > 0.1
    assert clipped.norm() == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_lower_precision_is_near(precision: torch.dtype) -> None:
    def run(dtype: torch.dtype) -> tuple[float, Tensor]:
        stage = Pretrain(make().float(), temperature=0.5).train()
        step = Step(
            stage, torch.optim.SGD(stage.model.parameters(), lr=0.1), device=CPU, precision=dtype, micro_batch=7
        )
        images = {name: value.float() if value.is_floating_point() else value for name, value in batch().items()}
        for _ in range(20):  # float16 skips the steps whose scaled gradient overflows, and halves the scale
            loss = step(images)
            weights = torch.cat([p.detach().flatten() for p in stage.model.parameters()])
            if not torch.equal(weights, start):
                break
        return loss["loss"].item(), weights

    start = torch.cat([p.detach().flatten() for p in make().float().parameters()])
    (loss, after), (full_loss, full_after) = run(precision), run(torch.float32)
    assert loss == pytest.approx(full_loss, rel=0.02)
    moved, full_moved = after - start, full_after - start
    assert torch.cosine_similarity(moved, full_moved, dim=0) > 0.8  # three digits, through 20 layers


def test_moving_average_by_hand() -> None:
    model = make(3)
    average = MovingAverage(model, decay=0.9, average_statistics=True)
    before = model.classifier.weight.detach().clone()
    statistics = model.backbone.stem.layers[0].norm.running_mean.clone()
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
        model.backbone.stem.layers[0].norm.running_mean.add_(2.0)
    average.update(model)
    torch.testing.assert_close(average.model.classifier.weight, before + 0.1)
    torch.testing.assert_close(average.model.backbone.stem.layers[0].norm.running_mean, statistics + 0.2)
    assert not any(p.requires_grad for p in average.model.parameters())
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(model, decay=1.0, average_statistics=True)


def _to_a_gpu_without_float64(tensor: Tensor) -> Tensor:
    """As Apple's."""
    if tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return tensor.to("meta")


def test_a_short_average_forgets_where_it_began() -> None:
    """A decay of 0.999 leaves nine tenths of the start after 100 steps, (1 + n) / (10 + n) nothing to speak of."""
    model = make(3)
    average = MovingAverage(model, decay=0.999, average_statistics=True, warm_up=True)
    wanted, weights = model.classifier.weight.detach().double().clone(), torch.Generator().manual_seed(0)
    for step in range(60):
        with torch.no_grad():
            model.classifier.weight.normal_(generator=weights)
        average.update(model)
        decay = (1 + step) / (10 + step)
        wanted = decay * wanted + (1 - decay) * model.classifier.weight.detach()
    torch.testing.assert_close(average.model.classifier.weight.double(), wanted, rtol=1e-5, atol=1e-6)
    assert average.updates == 60
    moved = copy.deepcopy(average).float()
    moved._apply(_to_a_gpu_without_float64)
    assert (moved.updates.device, moved.model.classifier.weight.device) == (CPU, torch.device("meta"))
    assert (moved.updates.dtype, moved.updates.item()) == (torch.float64, 60)
    assert moved.updates == 60
    average.load_state_dict(average.state_dict() | {"updates": torch.tensor(100_000.0)})
    average.update(model)  # from here on with the decay asked for
    torch.testing.assert_close(
        average.model.classifier.weight.double(),
        0.999 * wanted + 0.001 * model.classifier.weight.detach(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_buffer_holds_the_last_ones() -> None:
    buffer = MemoryBuffer(5, width=2)
    everything = torch.arange(1.0, 27).view(13, 2)
    added = 0
    for count in (2, 2, 0, 3, 5, 1):
        buffer.add(everything[added : added + count], torch.arange(added, added + count))
        added += count
        vectors, ids = buffer.negatives()
        last = list(range(max(0, added - 5), added))
        assert sorted(ids.tolist()) == last
        for vector, number in zip(vectors, ids.tolist(), strict=True):
            torch.testing.assert_close(vector, everything[number] / everything[number].norm())
    small = MemoryBuffer(3, width=2)
    small.add(everything, torch.arange(13))  # more than it holds
    assert sorted(small.negatives()[1].tolist()) == [10, 11, 12]
    with pytest.raises(ValueError, match="holds nothing"):
        MemoryBuffer(0)


def projected(model: zoo.SimCLR, images: Tensor) -> Tensor:
    """Projections (n, 128) of unit length."""
    assert model.projector is not None
    with torch.no_grad():
        return torch.nn.functional.normalize(model.projector(model.backbone(images)), dim=1)


def test_memory_mode_step_by_step() -> None:
    """The encoder follows the weights; what it projects are this step's positives and the next one's negatives."""
    stage = Pretrain(make(), temperature=0.5, memory=40, decay=0.5).double().train()
    assert stage.encoder is not None
    assert stage.buffer is not None
    step = Step(stage, torch.optim.SGD(stage.model.parameters(), lr=0.05), device=CPU)
    before = {name: value.clone() for name, value in stage.encoder.model.named_parameters()}
    plain = Pretrain(make(), temperature=0.5).double().train()
    # at first the buffer is empty and the encoder is the network; but the loss is summed in another order
    assert step(batch())["loss"].item() == pytest.approx(plain(batch())["loss"].item(), rel=1e-13)
    for name, value in stage.encoder.model.named_parameters():
        torch.testing.assert_close(value, 0.5 * (before[name] + dict(stage.model.named_parameters())[name].detach()))
    images = torch.cat([batch()["view0"], batch()["view1"]])
    vectors, ids = stage.buffer.negatives()
    torch.testing.assert_close(vectors, projected(make().train(), images), atol=1e-6, rtol=1e-6)
    assert ids.tolist() == list(range(13)) * 2
    online = projected(copy.deepcopy(stage.model), images)
    keys = projected(copy.deepcopy(stage.encoder.model), images)
    scores = torch.cat([online, vectors]) @ online.T / 0.5  # (2B + K, 2B)
    numbers = torch.cat([ids, ids])
    odds = scores.masked_fill(numbers[:, None] == numbers[None, :26], -torch.inf).logsumexp(0)
    odds = odds - (online * keys.roll(13, 0)).sum(1) / 0.5
    assert step(batch())["loss"].item() == pytest.approx(odds.exp().log1p().sum().item() / 13, rel=1e-6)
    assert (
        stage.encoder.model.backbone.stem.layers[0]
        .norm.running_mean.ne(make().backbone.stem.layers[0].norm.running_mean)
        .any()
    )
    assert set(stage.kept()) == {"model", "memory", "encoder"}
