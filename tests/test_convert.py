"""Our networks against outputs recorded from the authors' own TensorFlow graph."""

import numpy as np
import pytest
import torch
from conftest import REFERENCE, RecordedVariables, relative_error
from reference.reference_weights import input_images, variable_value

import zoo
from zoo.convert import tensorflow_names
from zoo.registry import BLOCKS
from zoo.simclr import SimCLR

RECORDED = sorted(path.stem.removeprefix("forward_") for path in REFERENCE.glob("forward_*.npz"))
TOLERANCE = 1e-5


def recorded(name: str) -> tuple[np.lib.npyio.NpzFile, RecordedVariables, str, int]:
    arrays = np.load(REFERENCE / f"forward_{name}.npz")
    shapes = [tuple(map(int, shape.split(","))) for shape in arrays["shapes"]]
    model, size = name.rsplit("_", 1)
    variables = RecordedVariables(dict(zip(arrays["names"].tolist(), shapes, strict=True)))
    return arrays, variables, model, int(size.removeprefix("cifar"))


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_equal_the_authors(name: str) -> None:
    arrays, variables, model_name, size = recorded(name)
    state = zoo.convert.tensorflow_state_dict(variables, model_name, image_size=size)
    classes = len(arrays["logits_sup"][0])
    with torch.device("meta"):
        model = SimCLR(zoo.spec(model_name), num_classes=classes, image_size=size)
    model.load_state_dict(state, strict=True, assign=True)
    model.eval()
    seen: dict[str, torch.Tensor] = {"initial_max_pool": None}
    model.backbone.stem.layers[-1].conv.register_forward_hook(lambda m, i, o: seen.update(initial_conv=o))
    model.backbone.stem.register_forward_hook(lambda m, i, o: seen.update(initial_max_pool=o))
    for k, group in enumerate(model.backbone.groups, 1):
        group.register_forward_hook(lambda m, i, o, k=k: seen.update({f"block_group{k}": o}))
    images = torch.from_numpy(input_images(len(arrays["logits_sup"]), size)).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = model(images)
        assert relative_error(output.features, arrays["final_avg_pool"]) < TOLERANCE
        assert relative_error(output.logits, arrays["logits_sup"]) < TOLERANCE
        for k in range(4):
            assert relative_error(model.projector(output.features, stop=k), arrays[f"proj_{k}"]) < TOLERANCE
    for layer, value in seen.items():
        assert value.permute(0, 2, 3, 1).shape == tuple(arrays[f"{layer}_shape"])
        assert relative_error(value.mean((2, 3)), arrays[f"{layer}_mean"]) < TOLERANCE
        assert relative_error(value.std((2, 3), unbiased=False), arrays[f"{layer}_std"]) < TOLERANCE


@pytest.mark.parametrize("name", RECORDED)
def test_names_are_in_the_authors_order(name: str) -> None:
    _, variables, model_name, size = recorded(name)
    with torch.device("meta"):
        model = SimCLR(zoo.spec(model_name), num_classes=1, image_size=size)
    ours = [theirs for _, theirs in tensorflow_names(model)]
    kinds = ("kernel", "moving_variance")
    for kind in kinds:  # the recorded list is in graph order; within a BN the leaves' order is free
        assert [n for n in ours if n.endswith(kind)] == [n for n in variables if n.endswith(kind)]
    assert set(ours) == set(variables)


@pytest.mark.parametrize("name", zoo.list_models())
def test_counts_and_names_of_every_architecture(name: str) -> None:
    spec = zoo.spec(name)
    with torch.device("meta"):
        model = SimCLR(spec)
    blocks = sum(BLOCKS[spec.depth])
    per_block = (5 if spec.sk else 3) if spec.depth >= 50 else 2
    convolutions = blocks * per_block + 4 + (3 if spec.sk else 1)
    norms = convolutions - (blocks if spec.sk else 0)  # the last 1x1 of a selective kernel has none
    pairs = list(tensorflow_names(model))
    theirs = [t for _, t in pairs]
    kernels = [t for t in theirs if t.startswith("base_model/conv2d")]
    assert kernels == ["base_model/conv2d/kernel"] + [f"base_model/conv2d_{k}/kernel" for k in range(1, convolutions)]
    assert sum(t.startswith("base_model/") and t.endswith("gamma") for t in theirs) == norms
    assert {ours for ours, _ in pairs} == set(model.state_dict())
    assert len(theirs) == len(set(theirs))


def small_source(**extra: tuple[int, ...]) -> RecordedVariables:
    with torch.device("meta"):
        model = SimCLR(zoo.Spec(50, 1 / 16, True), num_classes=10, image_size=64, classify_from=1)
    state = model.state_dict()
    shapes = {}
    for ours, theirs in tensorflow_names(model):
        shape = tuple(state[ours].shape)
        shapes[theirs] = (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
    return RecordedVariables(shapes | extra)


SMALL = {"spec": zoo.Spec(50, 1 / 16, True), "image_size": 64, "classify_from": 1}


def test_training_state_is_skipped_and_ema_is_chosen() -> None:
    plain = small_source()
    kernel = "base_model/conv2d/kernel"
    shape = plain.shapes[kernel]
    ema = {f"ema_model/{n}": s for n, s in plain.shapes.items() if not n.startswith("head_supervised")}
    source = small_source(
        **{f"{kernel}/Momentum": shape, "memory_bank": (9, 9), "global_step": (), **ema},
    )
    chosen = zoo.convert.tensorflow_state_dict(source, **SMALL, ema=True)
    usual = zoo.convert.tensorflow_state_dict(source, **SMALL)
    first = "backbone.stem.layers.0.conv.weight"
    np.testing.assert_array_equal(usual[first], variable_value(kernel, shape).transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(chosen[first], variable_value(f"ema_model/{kernel}", shape).transpose(3, 2, 0, 1))
    assert torch.equal(chosen["classifier.bias"], usual["classifier.bias"])


def test_source_without_heads() -> None:
    source = small_source()
    bare = RecordedVariables({n: s for n, s in source.shapes.items() if n.startswith("base_model/")})
    state = zoo.convert.tensorflow_state_dict(bare, SMALL["spec"], image_size=64)
    assert all(name.startswith("backbone.") for name in state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model/conv2d_99/kernel": (1, 1, 4, 4)}, "unknown base_model/conv2d_99/kernel"),
        ({"something": (3,)}, "unknown something"),
        ({"base_model/conv2d/kernel": (7, 7, 3, 4)}, r"base_model/conv2d/kernel is \(7, 7, 3, 4\), not \(3, 3, 3, 2\)"),
        ({"base_model/batch_normalization_3/gamma": None}, "missing base_model/batch_normalization_3/gamma"),
    ],
)
def test_what_does_not_fit_is_listed(change: dict, said: str) -> None:
    source = small_source()
    shapes = {n: s for n, s in (source.shapes | change).items() if s is not None}
    with pytest.raises(ValueError, match=said):
        zoo.convert.tensorflow_state_dict(RecordedVariables(shapes), **SMALL)


def test_each_variable_is_read_by_itself() -> None:
    """The source may be larger than memory: at most one of its arrays is alive at a time besides the result."""
    alive = {"now": 0, "most": 0}

    class Tracked(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive["now"] -= 1

    class Source(RecordedVariables):
        def __getitem__(self, name: str) -> np.ndarray:
            array = np.ndarray.__new__(Tracked, self.shapes[name], np.float32)
            array[...] = super().__getitem__(name)
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            return array

    zoo.convert.tensorflow_state_dict(Source(small_source().shapes), **SMALL)
    assert 0 < alive["most"] <= 3
