"""Integers: the arithmetic against an independent one, no sum that saturates, and layers that hurt left in float."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_export import randomise, tiny_model
from torch.nn import functional as F

import export
import zoo
from app.cli import main as simclr
from export import choose, fold, graph, quantize, samples, session, write
from zoo.simclr import SimCLR

SIZE = 48


@pytest.fixture(autouse=True)
def no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in milliseconds would warn, or not, by chance."""
    monkeypatch.setattr(write, "timed", lambda sessions, batch: {name: {1: 1.0, 8: 1.0} for name in sessions})


def pictures(count: int, *, size: int = SIZE) -> np.ndarray:
    return samples.textures(count, size, seed=3)


def sk_model(size: int = 33) -> SimCLR:
    model = zoo.create(zoo.Spec(50, 1 / 16, sk=True), num_classes=3, image_size=size, projector=False, seed=0)
    return randomise(model)


def built(model: SimCLR, image_input: str = "float") -> graph.Graph:
    return graph.build(fold.fold_batch_norms(model), image_input=image_input)


def ranges_of(network: graph.Graph, images: np.ndarray) -> quantize.Ranges:
    return quantize.calibrate(network, [images], opset=20)


@pytest.mark.parametrize("image_input", ["float", "uint8"])
def test_equals_integers_computed_by_torch(image_input: str) -> None:
    """The whole of a small ResNet in 64-bit integers, written out step by step."""
    model = tiny_model()
    network = built(model, image_input)
    images = samples.as_input(pictures(6), image_input)
    ranges = ranges_of(network, images)
    integers = quantize.quantise(network, ranges, network.convolutions)
    found = session.run(session.open_graph(integers, opset=20), images)["features"]

    folded = fold.fold_batch_norms(model)
    first = "pixels" if image_input == "uint8" else "images"
    x = torch.round(torch.from_numpy(pictures(6)).double() * 255), first  # 8 bits, and the tensor's name

    def scale_of(name: str) -> tuple[float, int]:
        step, zero = quantize.steps(*ranges[name])
        return float(step), int(zero)

    def rounded(values: torch.Tensor, name: str) -> tuple[torch.Tensor, str]:
        step, zero = scale_of(name)
        return (torch.round(values / step) + zero).clip(0, 255), name

    def real(x: tuple[torch.Tensor, str]) -> torch.Tensor:
        step, zero = scale_of(x[1])
        return (x[0] - zero) * step

    def convolve(layer: torch.nn.Conv2d, x: tuple[torch.Tensor, str], name: str, out: str) -> tuple[torch.Tensor, str]:
        kept, scales = quantize.quantise_weights(layer.weight.numpy())
        step, zero = scale_of(x[1])
        by = (scales * np.float32(step)).astype(np.float64)
        bias = np.rint(layer.bias.numpy().astype(np.float64) / by)
        sums = F.conv2d(x[0] - zero, torch.from_numpy(kept).double(), None, layer.stride, layer.padding)
        sums = (sums + torch.from_numpy(bias)[:, None, None]) * torch.from_numpy(by)[:, None, None]
        return rounded(sums.clip(min=0) if out.endswith("relu") else sums, out)

    x = convolve(folded.backbone.stem.layers[0].conv, x, "stem.0", "stem.0.relu")
    x = F.max_pool2d(F.pad(x[0], (0, 1, 0, 1)), 3, 2), "stem.pool"
    for number, group in enumerate(folded.backbone.groups):
        for place, block in enumerate(group):
            name = f"groups.{number}.{place}"
            skip = x
            if block.shortcut is not None:
                skip = convolve(block.shortcut.conv, x, f"{name}.shortcut", f"{name}.shortcut")
            x = convolve(block.conv1.conv, x, f"{name}.conv1", f"{name}.conv1.relu")
            x = convolve(block.conv2.conv, x, f"{name}.conv2", f"{name}.conv2")
            total = (real(x) + real(skip)).clip(min=0)
            x = rounded(total, name) if name in ranges else (total, name)
    wanted = x[0].mean((2, 3)).numpy()  # the last block is not read by an integer layer: float
    off = np.abs(found - wanted)
    step = max(scale_of(name)[0] for name in ("groups.3.1.conv2", "groups.3.0"))
    # onnxruntime multiplies in float32 before it rounds: now and then a value is one step off, and others after it
    assert off.max() <= 4 * step
    assert (off <= 1e-5).mean() >= 0.5
    assert off.mean() <= step / 10


def test_every_convolution_is_in_integers_and_no_pair_of_products_saturates(tmp_path: Path) -> None:
    for model, size in ((tiny_model(), SIZE), (sk_model(), 33)):
        network = built(model)
        images = pictures(4, size=size)
        integers = quantize.quantise(network, ranges_of(network, images), network.convolutions)
        proto, _ = graph.to_proto(integers, opset=20, metadata={})
        onnx.checker.check_model(proto, full_check=True)
        weights = {name: values for name, values in integers.weights.items() if values.dtype == np.int8}
        kinds = {node.name: node.op_type for node in proto.graph.node}
        assert [name for name in network.convolutions if f"{name}.weight.int8" not in weights] == []
        assert "AveragePool" not in kinds.values()
        for name, values in weights.items():
            rows = np.abs(values.reshape(len(values), -1).astype(np.int32))
            if name.endswith(".int8"):
                assert 0 < rows.max() <= 64
            assert int(np.sort(rows, axis=1)[:, -2:].sum(1).max()) * 255 <= 2**15 - 1  # the worst pair, full inputs
        steps = [values for name, values in integers.weights.items() if name.endswith(".weight.step")]
        assert all(len(values) > 1 for values in steps)  # one for each output channel
        assert {v.dtype for n, v in integers.weights.items() if n.endswith(".zero") and v.ndim == 0} == {np.dtype("u1")}


@pytest.mark.parametrize("size", [33, 48])
def test_selective_kernels_in_integers_are_near_float(size: int) -> None:
    network = built(sk_model(size), "uint8")
    images = samples.as_input(pictures(8, size=size), "uint8")
    integers = quantize.quantise(network, ranges_of(network, images), network.convolutions)
    wanted = session.run(session.open_graph(network, opset=20), images)["features"]
    found = session.run(session.open_graph(integers, opset=20), images)["features"]
    assert np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.1


def test_averages_of_8_bits_are_averages() -> None:
    """Of stride 2 and 1, at odd and even sizes: the convolution that takes the place of the pool."""
    for size in (33, 48):
        network = built(sk_model(size))
        images = pictures(2, size=size)
        pools = {node.name: node.input[0] for node in network.nodes if node.op_type == "AveragePool"}
        assert len(pools) == 4
        ranges = ranges_of(network, images)
        integers = quantize.quantise(network, ranges, network.convolutions)
        shown = {name: None for pair in pools.items() for name in (pair[0], f"{pair[1]}.rounded")}
        integers.outputs = shown
        found = session.run(session.open_graph(integers, opset=20), images)
        for place, (pool, read) in enumerate(pools.items()):
            x = torch.from_numpy(found[f"{read}.rounded"])
            if place == 0:  # stride 1: TensorFlow's SAME leaves the padding out
                wanted = F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
            else:
                wanted = F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)
            assert np.abs(found[pool] - wanted.numpy()).max() <= 1e-5 * np.abs(wanted.numpy()).max()


def test_ranges_hold_what_was_seen_and_clip_what_is_rare() -> None:
    random = np.random.default_rng(0)
    histogram = quantize._Histogram()
    values = random.normal(1.0, 1.0, 200_000).astype(np.float32)
    for part in np.split(values, 8):
        histogram.add(part)
    histogram.add(np.float32([-40.0]))  # beyond all before: bins are joined
    assert histogram.counts.sum() == 200_001
    low, high = histogram.best()
    exact = min(
        np.linspace(0.02, 1, 99), key=lambda s: _error(np.append(values, -40.0), -40.0 * s, float(values.max()) * s)
    )
    assert low > -40.0
    assert _error(np.append(values, -40.0), low, high) <= 1.05 * _error(
        np.append(values, -40.0), -40.0 * max(exact, 0.2), float(values.max()) * max(exact, 0.2)
    )
    positive = quantize._Histogram()
    positive.add(np.abs(values))
    assert positive.best()[0] == 0.0


def _error(values: np.ndarray, low: float, high: float) -> float:
    scale, zero = quantize.steps(low, high)
    kept = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(((kept - values) ** 2).mean())


def test_weights_have_the_least_error_of_the_steps_tried() -> None:
    weights = np.random.default_rng(0).standard_t(3, (5, 4, 3, 3)).astype(np.float32)
    kept, scales = quantize.quantise_weights(weights)
    for channel in range(5):
        errors = []
        for share in np.linspace(0.6, 1.0, 41):
            step = np.abs(weights[channel]).max() * share / 64
            errors.append(((np.clip(np.rint(weights[channel] / step), -64, 64) * step - weights[channel]) ** 2).sum())
        mine = ((kept[channel].astype(np.float64) * scales[channel] - weights[channel]) ** 2).sum()
        assert mine == pytest.approx(min(errors), rel=1e-4)
    kept, scales = quantize.quantise_weights(np.zeros((2, 1, 1, 1), np.float32))  # a channel of zeros divides by none
    assert not kept.any()
    assert np.isfinite(scales).all()


def fragile_model() -> SimCLR:
    """The tiny network with one channel after the stem a thousand times as large, and its readers' weights as much
    smaller: the same answers, but 8 bits of the stem's output leave nothing of the other channels."""
    model = tiny_model()
    stem, block = model.backbone.stem.layers[0], model.backbone.groups[0][0]
    with torch.no_grad():
        stem.norm.weight[0] *= 1000
        stem.norm.bias[0] *= 1000
        for reader in (block.shortcut, block.conv1):
            reader.conv.weight[:, 0] /= 1000
    return model


def test_layers_that_hurt_stay_in_float(tmp_path: Path) -> None:
    images = pictures(120)
    report = write.export_model(
        fragile_model(), tmp_path / "a.onnx", weights="int8", calibration=images[:60], images=images[60:]
    )
    assert [form.name for form in report.forms] == ["fp32", "int8 everywhere", "int8"]
    assert report.forms[1].agreement < choose.AGREEMENT <= report.forms[2].agreement
    floats = {layer.name: layer.error for layer in report.layers if not layer.integer}
    assert {"stem.0", "groups.0.0.shortcut", "groups.0.0.conv1"} <= set(floats)
    integers = [layer.error for layer in report.layers if layer.integer]
    assert integers
    assert max(integers) <= min(floats.values())
    kept = {tensor.name for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer}
    for layer in report.layers:
        assert (f"{layer.name}.weight.int8" in kept) == layer.integer


def test_the_fewest_in_float_are_found_by_halves() -> None:
    for most in (1, 5, 21):
        for wanted in range(most + 1):
            asked: list[int] = []

            def good(number: int, wanted: int = wanted, asked: list[int] = asked) -> bool:
                asked.append(number)
                return number >= wanted

            assert choose._fewest(good, most) == wanted
            assert len(asked) <= 12


def test_judgements() -> None:
    places = np.arange(40)
    logits = np.eye(4, dtype=np.float32)[places % 4]
    labels = places % 4
    features = np.ones((40, 2), np.float32)

    def judged(found: np.ndarray, labels: np.ndarray | None = None) -> choose.Judgement:
        wanted = choose.Answers(places, features, logits)
        return choose.judge(wanted, choose.Answers(places, features, found), labels)

    changed = logits.copy()
    changed[:1] = np.roll(changed[:1], 1, axis=1)  # one of forty: 97.5 %
    assert judged(changed) == (40, 0.975, None, None, pytest.approx(1))
    assert judged(changed).good
    assert judged(changed, labels) == (40, 0.975, 1.0, 0.975, pytest.approx(1))
    assert not judged(changed, labels).good  # 2.5 points lost
    changed[:2] = np.roll(logits[:2], 1, axis=1)
    assert not judged(changed).good
    turned = logits.copy()
    turned[0] = [1, 0.25, 0, 0]  # a cosine of 0.970
    one_class = np.zeros((40, 1), np.float32)  # always the same class: the features tell
    for head in (None, one_class):
        found = choose.judge(choose.Answers(places, logits, head), choose.Answers(places, turned, head), None)
        assert found == (40, 0.975, None, None, pytest.approx(1 - 0.0299 / 40, abs=1e-4))


def test_a_bias_survives_weights_of_nothing() -> None:
    """Gammas of zero are common in trained networks: the bias is then all that a channel has."""
    model = tiny_model()
    for group in model.backbone.groups:
        for block in group:
            with torch.no_grad():
                block.conv1.norm.weight[::2] = 1e-7
                block.conv1.norm.bias.fill_(0.5)
    network = built(model)
    images = pictures(8)
    integers = quantize.quantise(network, ranges_of(network, images), network.convolutions)
    wanted = session.run(session.open_graph(network, opset=20), images)["features"]
    found = session.run(session.open_graph(integers, opset=20), images)["features"]
    assert np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.03
    assert max(int(np.abs(v).max()) for n, v in integers.weights.items() if n.endswith(".bias.int32")) < 2**30


def test_what_cannot_be_integers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "AGREEMENT", 1.01)
    with pytest.raises(export.ParityError, match=r"No form in integers .* with \d+ of 21 convolutions in integers \d+"):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", weights="int8", calibration=pictures(40))
    assert not list(tmp_path.iterdir())


def test_a_slower_form_is_a_warning_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "timed", lambda sessions, batch: {n: {1: 2.0 + (n == "int8"), 8: 9.0} for n in sessions})
    images = pictures(40)
    with pytest.warns(
        UserWarning, match=r"int8 is slower than fp32 on this machine \(3\.0 ms against 2\.0 ms at batch 1"
    ):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", weights="int8", calibration=images)


def test_an_embedding_model_goes_to_integers_too(tmp_path: Path) -> None:
    model = randomise(zoo.create(zoo.Spec(18, 1 / 16), num_classes=None, image_size=SIZE, projector=False, seed=0))
    images = pictures(40)
    path = export.to_onnx(model, tmp_path / "a.onnx", weights="int8", calibration=images)
    student = export.OnnxModel(path)
    wanted = export.OnnxModel(export.to_onnx(model, tmp_path / "b.onnx")).embed(images)
    found = student.embed(images)
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (cosines > choose.ALIKE).mean() >= choose.AGREEMENT
    assert student.accuracy["measured"]["images"] == 20  # every other one


def test_int8_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    zoo.save_file(model, tmp_path / "tiny.safetensors")
    images = (pictures(24).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    for place, pixels in enumerate(images):
        folder = tmp_path / "pictures" / model.classes[place % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    (tmp_path / "pictures" / "tench" / "bad.jpg").write_text("no picture")
    out, report = tmp_path / "a.onnx", tmp_path / "report.md"
    given = [
        "export", str(tmp_path / "tiny.safetensors"), str(out), "--weights", "int8", "--image-input", "uint8",
        "--calibration", str(tmp_path / "pictures"), "--report", str(report),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        simclr(given)
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert "1 pictures cannot be read" in captured.err
    assert report.read_text() == captured.out
    assert "| stem.0 |" in captured.out
    assert "| int8 |" in captured.out
    meta = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert (meta["weights"], meta["image_input"]) == ("int8", "uint8")
    assert len(json.loads(meta["quantisation"])["layers"]) == 21
    (tmp_path / "pictures" / "tench" / "bad.jpg").unlink()
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    with pytest.raises(SystemExit) as stop:
        simclr([*given, "--images", str(tmp_path / "others")])  # class folders called as the classes: labelled
    assert stop.value.code == 0, capsys.readouterr().err
    measured = export.OnnxModel(out).accuracy["measured"]
    assert measured["images"] == 24
    answers = export.OnnxModel(out)
    right = [
        answers.labels[answers.classify([path])[0].argmax()] == path.parent.name
        for path in sorted((tmp_path / "others").glob("*/*"))
    ]
    assert measured["top1"] == pytest.approx(np.mean(right))
    (tmp_path / "empty").mkdir()
    for wrong, said in (
        (["--calibration", str(tmp_path / "empty")], "no images in it"),
        (["--calibration", str(tmp_path / "none")], "no such folder of pictures"),
        (["--images", str(tmp_path / "pictures")], "calibration: the same pictures as images; leave images out"),
        (["--labels", str(tmp_path / "x.csv")], "--labels .*x.csv needs --images"),
        (["--weights", "fp16"], "calibration is for weights='int8', not 'fp16'"),
    ):
        before = out.read_bytes()
        with pytest.raises(SystemExit) as stop:
            simclr([*given, *wrong])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert re.search(said, error), error
        assert len(error.strip().splitlines()) == 1
        assert out.read_bytes() == before


def test_what_cannot_be_calibrated_is_one_line(tmp_path: Path) -> None:
    given = {"weights": "int8"}
    with pytest.raises(ValueError, match="calibration: one picture is not enough"):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", calibration=pictures(1), **given)
    (tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "bad" / name).write_text("no picture")
    with pytest.raises(ValueError, match=r"calibration: none of the 1 pictures can be read"):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", calibration=tmp_path / "bad", **given)
    with pytest.raises(ValueError, match=r"images: none of the 1 pictures .*bad.b\.jpg: not an image in a known"):
        export.to_onnx(tiny_model(), tmp_path / "a.onnx", images=[tmp_path / "bad" / "b.jpg"])
    spoiled = tiny_model()
    with torch.no_grad():
        spoiled.backbone.stem.layers[0].conv.weight[0] = np.inf
    with pytest.raises(ValueError, match="Nothing was written"):
        export.to_onnx(spoiled, tmp_path / "a.onnx", calibration=pictures(8), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]
