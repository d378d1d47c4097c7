"""Checkpoints from elsewhere become our files: TensorFlow's, the PyTorch port's; to torchvision; verified later."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_writer import published_shapes, write_checkpoint
from conftest import REFERENCE, RecordedVariables, relative_error
from reference.reference_weights import input_images

import zoo
from app.cli import main as simclr
from zoo import conversion, convert, probe, registry, stream
from zoo.model_file import read_header
from zoo.tf_checkpoint import find_prefix, open_checkpoint, shard_path

FOLDER = REFERENCE / "checkpoints"
RECORDED = {  # name -> (what the command is told, what it must find)
    "r50_pretrained": (["--image-size", "64"], (zoo.Spec(50, 1 / 16), "pretrained", 0)),
    "r50_sk_ft": (["--image-size", "64"], (zoo.Spec(50, 1 / 16, True), "finetuned_1pct", 1)),
    "r18_cifar": (["--weights", "pretrained"], (zoo.Spec(18, 1 / 16), "pretrained", 0)),
}


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        simclr([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def outputs(model: zoo.SimCLR, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        features, logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        found = {"final_avg_pool": features, "logits_sup": logits}
        found |= {f"proj_{k}": model.projector(features, stop=k) for k in range(4)}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_the_authors_checkpoints_through_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, (spec, category, classify_from) = RECORDED[name]
    out = tmp_path / "out" / "model.safetensors"
    assert command("convert", FOLDER / name, out, *told) == 0
    assert f"{spec.name}, {category}" in capsys.readouterr().out
    model = zoo.load_file(out)
    assert (model.spec, model.facts["weights"], model.classify_from) == (spec, category, classify_from)
    arrays = np.load(FOLDER / f"{name}.npz")
    found = outputs(model, input_images(len(arrays["logits_sup"]), model.image_size))
    for key in ("final_avg_pool", "proj_0", "proj_1", "proj_2", "proj_3"):
        assert relative_error(found[key], arrays[key]) < 1e-5, key
    logits = arrays["logits_sup"]
    assert relative_error(found["logits_sup"], logits) < 1e-5
    assert command("verify", out) == 0
    shown = capsys.readouterr().out
    assert "good" in shown
    assert "as in config.json" in shown
    assert shown.count("as kept, relative error 0.0e+00") == 3
    assert sorted(file.name for file in out.parent.iterdir()) == ["config.json", "model.safetensors"]


def test_header_and_config_tell_the_origin(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    config = json.loads(conversion.convert(FOLDER / "r50_sk_ft", out, image_size=64).read_text())
    header = read_header(out)
    index = Path(f"{find_prefix(FOLDER / 'r50_sk_ft')}.index")
    for told in (header, config):
        assert told["spec"] == {"depth": 50, "width": 0.0625, "sk": True}
        assert told["classify_from"] == 1
        assert told["facts"] == {
            "weights": "finetuned_1pct",
            "ema": False,
            "source": "model.ckpt-751",
            "source_sha256": _sha256(index),
            "step": 751,
            "paper_top1": None,  # the paper has no network of this width
            "licence": None,  # nor is it one of the authors'
        }
    assert config["files"] == {"model.safetensors": _sha256(out)}
    assert str(tmp_path) not in json.dumps(config)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_source_gives_the_same_bytes_on_every_processor(tmp_path: Path) -> None:
    for name, settings in (("a", {}), ("b", {"DNNL_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"})):
        code = "import sys; from app.cli import main; main(sys.argv[1:])"
        arguments = ["convert", str(FOLDER / "r50_sk_ft"), str(tmp_path / name / "m.safetensors"), "--image-size", "64"]
        subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | settings, check=True)
    assert _sha256(tmp_path / "a" / "m.safetensors") == _sha256(tmp_path / "b" / "m.safetensors")
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "a")
    assert conversion.verify(tmp_path / "a" / "m.safetensors").good


def twin(name: str) -> zoo.Spec:
    spec = zoo.spec(name)
    return zoo.Spec(spec.depth, spec.width / 16, spec.sk)


@pytest.mark.parametrize(
    ("category", "name"),
    [("pretrained", name) for name in zoo.list_models()]
    + [  # only the classifier's place differs: a few in every run
        pytest.param("finetuned_10pct", name, marks=() if name.startswith(("r18", "r50")) else pytest.mark.slow)
        for name in zoo.list_models()
    ],
)
def test_every_architecture_makes_the_round_trip(category: str, name: str, tmp_path: Path) -> None:
    """Its twin of a sixteenth of the width: checkpoint, safetensors, model; every tensor bit for bit."""
    classify_from = 1 if category == "finetuned_10pct" else 0
    with torch.device("meta"):
        network = zoo.SimCLR(twin(name), num_classes=7, classify_from=classify_from)
    variables = RecordedVariables(published_shapes(network))
    prefix = write_checkpoint(tmp_path / category / "x" / "model.ckpt-5", variables, shards=2, block_rows=100)
    out = tmp_path / "out" / "model.safetensors"
    conversion.convert(prefix, out)
    model = zoo.load_file(out)
    assert (model.spec, model.classify_from, model.num_classes) == (twin(name), classify_from, 7)
    state = model.state_dict()
    for ours, theirs in convert.tensorflow_names(model):
        np.testing.assert_array_equal(state[ours].numpy(), convert.from_tensorflow_layout(variables[theirs]))


def test_moving_averages(tmp_path: Path) -> None:
    out = tmp_path / "ema.safetensors"
    assert command("convert", FOLDER / "r50_pretrained", out, "--ema", "--image-size", 64) == 0
    model = zoo.load_file(out)
    checkpoint = open_checkpoint(FOLDER / "r50_pretrained")
    kernel = checkpoint["ema_model/base_model/conv2d/kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(model.backbone.stem.layers[0].conv.weight.detach().numpy(), kernel)
    assert model.facts["ema"] is True


def test_without_a_classifier(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert command("convert", FOLDER / "r50_sk_ft", out, "--num-classes", 0, "--image-size", 64) == 0
    model = zoo.load_file(out)
    assert model.num_classes is None
    assert model.projector is not None
    assert command("convert", FOLDER / "r50_sk_ft", out, "--num-classes", 10, "--image-size", 64) == 0
    assert zoo.load_file(out).num_classes == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "r50_1x"], "They are those of r50_0.0625x_sk; use that"),
        (["--weights", "finetuned_10pct"], "speaks of finetuned_1pct, but finetuned_10pct was asked for"),
        (["--weights", "pretrained"], "speaks of finetuned_1pct, but pretrained was asked for"),
        (["--num-classes", "1000"], "10 classes, not 1000"),
        (["--image-size", "32"], "(image_size=32): missing"),
        (["--model", "r51_1x"], "Unknown model 'r51_1x'"),
        (["--weights", "best"], "'best' is not one of"),
        (["--to", "torchvision", "--num-classes", "0"], "torchvision has no network for r50_0.0625x_sk"),
    ],
)
def test_contradictions_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("convert", FOLDER / "r50_sk_ft", tmp_path / "o" / "m.safetensors", *arguments) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize(
    ("folder", "told", "said"),
    [
        ("finetuned_10pct/r50_1x_sk1", {}, "speaks of finetuned_10pct, finetuned_1pct"),
        ("r50_1x_sk0", {}, "not those of r50_1x "),
        ("r50_2x_sk1", {"model": "r50_1x_sk"}, "speaks of r50_2x_sk, but r50_1x_sk was asked for"),
    ],
)
def test_what_the_path_says_counts(folder: str, told: dict[str, Any], said: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    shutil.copytree(FOLDER / "r50_sk_ft", place)
    with pytest.raises(ValueError, match=said):
        conversion.convert(place, tmp_path / "m.safetensors", **told)


def test_unknown_weights_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Which weights are these"):
        conversion.convert(FOLDER / "r18_cifar", tmp_path / "m.safetensors")


def test_a_fine_tuned_model_needs_the_layer_it_reads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FOLDER / "r50_sk_ft")
    headless = {name: checkpoint[name] for name in checkpoint if "head_contrastive" not in name}
    prefix = write_checkpoint(tmp_path / "model.ckpt-751", headless)
    with pytest.raises(ValueError, match="classify_from=1 needs a projection head"):
        conversion.convert(prefix, tmp_path / "m.safetensors")
    supervised = write_checkpoint(tmp_path / "model.ckpt-28151", headless)
    conversion.convert(supervised, tmp_path / "m.safetensors")
    assert zoo.load_file(tmp_path / "m.safetensors").projector is None


@pytest.mark.parametrize(
    ("prefix", "classes", "authors"),
    [
        ("finetuned_1pct/r50_1x_sk0/model.ckpt-751", 1000, True),
        ("my_run/model.ckpt-751", 10, False),
        ("finetuned_1pct/model.ckpt-9000", 1000, False),
    ],
)
def test_the_papers_figure_and_licence_are_for_the_authors_weights(
    prefix: str, classes: int, authors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = registry.Row(zoo.Spec(50, 1 / 16), 0, finetuned_1pct=57.9, linear=1.0)
    monkeypatch.setitem(registry.TABLE, "r50_0.0625x", row)
    with torch.device("meta"):
        network = zoo.SimCLR(zoo.Spec(50, 1 / 16), classify_from=1, num_classes=classes)
    folder = tmp_path / prefix.replace("r50_1x_sk0", "narrow")
    write_checkpoint(folder, RecordedVariables(published_shapes(network)))
    config = json.loads(conversion.convert(folder, tmp_path / "out" / "m.safetensors").read_text())
    assert config["facts"]["paper_top1"] == (57.9 if authors else None)
    assert config["facts"]["licence"] == ("Apache-2.0" if authors else None)


def test_a_config_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    config = conversion.convert(FOLDER / "r18_cifar", tmp_path / "m.safetensors", weights="pretrained")
    assert config == tmp_path / "m.config.json"
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'
    assert conversion.verify(tmp_path / "m.safetensors").known == _sha256(tmp_path / "m.safetensors")


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "r18_cifar", tmp_path / "ck")
    data = shard_path(find_prefix(tmp_path / "ck"), 0, 1)
    content = bytearray(data.read_bytes())
    content[100_000] ^= 4
    data.write_bytes(content)
    with pytest.raises(zoo.CheckpointError, match="is damaged: its CRC"):
        conversion.convert(tmp_path / "ck", tmp_path / "o" / "m.safetensors", weights="pretrained")
    assert not list((tmp_path / "o").iterdir())


def test_an_interrupt_stops_the_readers(tmp_path: Path) -> None:
    """Ctrl-C while a tensor is on its way: the source is told, nothing waits for what it would have sent."""
    stopped = threading.Event()

    def read(name: str) -> np.ndarray:
        if name == "first":
            return np.ones(4, np.float32)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.wait(timeout=60)
        raise ConnectionError("stopped")

    target = stream.Target(tmp_path / "made.safetensors", {"first": (4,), "second": (4,)}, {})
    with pytest.raises(KeyboardInterrupt):
        stream.fill(target, read, lambda name, array: False, resume=target.begin(), stop=stopped.set, workers=1)
    assert stopped.is_set()
    assert list(target.get("first")) == [1] * 4
    assert target.begin()  # what it left is gone on with


def test_a_full_disk_is_said_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"0\.00 GB free, but m\.safetensors takes 0\.00 GB; make room"):
        conversion.convert(FOLDER / "r18_cifar", tmp_path / "m.safetensors", weights="pretrained")
    assert not list(tmp_path.glob("*m.safetensors*"))


def changed(path: Path, position: int) -> None:
    with path.open("rb+") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_verify_finds_a_flipped_bit_and_other_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.safetensors"
    conversion.convert(FOLDER / "r50_sk_ft", out, image_size=64)
    start = 8 + struct.unpack("<Q", out.read_bytes()[:8])[0]
    changed(out, start + 2)  # a low bit of a weight: the outputs hardly move, the hash does
    assert command("verify", out) == 1
    assert "DIFFERENT from config.json" in capsys.readouterr().out
    conversion.convert(FOLDER / "r50_sk_ft", out, image_size=64)
    model = zoo.load_file(out)
    kept = json.loads((tmp_path / "config.json").read_text())["probe"]
    with torch.no_grad():
        model.classifier.bias += 0.01
    zoo.save_file(model, out)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["files"] == {out.name: _sha256(out)}  # saving anew keeps the config true
    assert conversion.verify(out).good
    for hostile in ([1], {}, {"side": 64}, kept | {"logits": ["x"]}, kept | {"features": None}, kept | {"logits": [1]}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"probe": hostile}))
        with pytest.raises(ValueError, match="kept outputs"):
            conversion.verify(out)
    (tmp_path / "config.json").write_text(json.dumps(config | {"probe": kept}))
    verdict = conversion.verify(out)
    assert not verdict.good
    assert verdict.errors["features"] == 0
    assert verdict.errors["logits"] > probe.TOLERANCE
    with pytest.raises(ValueError, match="no such file"):
        conversion.verify(tmp_path / "gone.safetensors")


def test_a_file_without_kept_outputs(tiny_model: zoo.SimCLR, tmp_path: Path) -> None:
    zoo.save_file(tiny_model, tmp_path / "own.safetensors")
    verdict = conversion.verify(tmp_path / "own.safetensors")
    assert verdict.good
    assert any("none are kept" in line for line in verdict.lines())


def test_probe_images_are_the_same_everywhere() -> None:
    images = probe.images(64)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == np.float32
    assert images[1, 2, 40, 63] == np.float32((3 * 63 * 2 + 5 * 40 + (63 * 40) // 7 + 160 + 40) % 256) / np.float32(255)
    assert 0 <= images.min() < images.max() <= 1


# The PyTorch port: {"resnet": ..., "head": ...}, and VISSL's nesting of it


def port_pickle(model: zoo.SimCLR, path: Path, *, vissl: bool = False) -> None:
    state = model.state_dict()
    named = {theirs: state[ours] for ours, theirs in convert.port_names(model)}
    for name in [name for name in named if name.endswith("running_mean")]:
        named[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    resnet = {name: value for name, value in named.items() if not name.startswith("head.")}
    head = {name.removeprefix("head."): value for name, value in named.items() if name.startswith("head.")}
    head["layers.7.bias"] = torch.zeros(128)
    content: dict[str, Any] = {"resnet": resnet, "head": head}
    if vissl:
        trunk = {f"_feature_blocks.{name}": value for name, value in resnet.items() if not name.startswith("fc.")}
        content = {"phase_idx": 0, "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}}
    torch.save(content, path)


def port_model(spec: zoo.Spec) -> zoo.SimCLR:
    model = zoo.create(spec, seed=3, num_classes=5)
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value += 0.1 * torch.rand(value.shape, generator=torch.Generator().manual_seed(number))
    return model.eval()


@pytest.mark.parametrize("spec", [zoo.Spec(50, 1 / 16), zoo.Spec(50, 1 / 16, True)], ids=lambda spec: spec.name)
def test_the_ports_pickle(spec: zoo.Spec, tmp_path: Path) -> None:
    model = port_model(spec)
    port_pickle(model, tmp_path / "port.pth")
    out = tmp_path / "out.safetensors"
    assert command("convert", tmp_path / "port.pth", out) == 0
    loaded = zoo.load_file(out)
    assert loaded.facts["weights"] == "pretrained"
    assert loaded.facts["source_sha256"] == _sha256(tmp_path / "port.pth")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_vissls_pickle_has_a_backbone_only(tmp_path: Path) -> None:
    model = port_model(zoo.Spec(50, 1 / 16, True))
    port_pickle(model, tmp_path / "converted_r50_ema.torch", vissl=True)
    conversion.convert(tmp_path / "converted_r50_ema.torch", tmp_path / "out.safetensors")
    loaded = zoo.load_file(tmp_path / "out.safetensors")
    assert (loaded.projector, loaded.classifier, loaded.facts["ema"]) == (None, None, True)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_port_names_are_those_of_the_published_files() -> None:
    """A few by hand, as they stand in the files."""
    with torch.device("meta"):
        plain, sk = zoo.SimCLR(zoo.spec("r50_1x")), zoo.SimCLR(zoo.spec("r50_1x_sk"))
    theirs = dict(convert.port_names(plain))
    assert theirs["backbone.stem.layers.0.conv.weight"] == "net.0.0.weight"
    assert theirs["backbone.stem.layers.0.norm.running_mean"] == "net.0.1.0.running_mean"
    assert theirs["backbone.groups.0.0.shortcut.conv.weight"] == "net.1.blocks.0.projection.shortcut.weight"
    assert theirs["backbone.groups.0.0.shortcut.norm.weight"] == "net.1.blocks.0.projection.bn.0.weight"
    assert theirs["backbone.groups.3.2.conv3.conv.weight"] == "net.4.blocks.2.net.4.weight"
    assert theirs["backbone.groups.3.2.conv3.norm.bias"] == "net.4.blocks.2.net.5.0.bias"
    assert theirs["projector.layers.2.norm.weight"] == "head.layers.7.weight"
    theirs = dict(convert.port_names(sk))
    assert theirs["backbone.stem.layers.2.norm.weight"] == "net.0.5.0.weight"
    assert theirs["backbone.groups.1.0.shortcut.1.conv.weight"] == "net.2.blocks.0.projection.shortcut.2.weight"
    assert theirs["backbone.groups.1.0.conv2.streams.conv.weight"] == "net.2.blocks.0.net.2.main_conv.0.weight"
    assert theirs["backbone.groups.1.0.conv2.squeeze.norm.weight"] == "net.2.blocks.0.net.2.mixing_conv.1.0.weight"
    assert theirs["backbone.groups.1.0.conv2.choose.weight"] == "net.2.blocks.0.net.2.mixing_conv.2.weight"
    assert theirs["backbone.groups.1.0.conv3.norm.weight"] == "net.2.blocks.0.net.4.0.weight"
    for model, names in ((plain, convert.port_names(plain)), (sk, convert.port_names(sk))):
        assert {ours for ours, _ in names} == set(model.state_dict())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_pickles_of_other_types_and_of_claims(tmp_path: Path) -> None:
    model = port_model(zoo.Spec(50, 1 / 16))
    port_pickle(model, tmp_path / "port.pth")
    content = torch.load(tmp_path / "port.pth", weights_only=True)  # of our own making
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in content["resnet"].items()}
    torch.save(content | {"resnet": half}, tmp_path / "half.pth")
    conversion.convert(tmp_path / "half.pth", tmp_path / "half.safetensors")
    weight = zoo.load_file(tmp_path / "half.safetensors").backbone.stem.layers[0].conv.weight
    assert torch.equal(weight, model.backbone.stem.layers[0].conv.weight.bfloat16().float())
    content["resnet"]["net.0.0.weight"] = torch.zeros(1).expand(10**7, 10**6)
    torch.save(content, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"net\.0\.0\.weight claims more than the file holds"):
        conversion.convert(tmp_path / "bomb.pth", tmp_path / "out.safetensors")


def test_hostile_pickles_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"resnet": {"net.0.0.weight": Bomb()}}, "bomb.pth")
    torch.save({"weights": {"conv1.weight": torch.zeros(3)}}, "other.pth")
    (tmp_path / "noise.pth").write_bytes(os.urandom(2000))
    (tmp_path / "empty.pth").write_bytes(b"")
    for name, said in (("bomb", "not a pickle of plain tensors"), ("other", "no network of the known layout")):
        assert command("convert", f"{name}.pth", "out.safetensors") == 2
        shown = capsys.readouterr().err.strip()
        assert said in shown
        assert len(shown.splitlines()) == 1
    for name in ("noise", "empty"):
        with pytest.raises(ValueError, match="not a pickle of plain tensors"):
            conversion.convert(f"{name}.pth", "out.safetensors")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_head_that_is_not_simclrs(tmp_path: Path) -> None:
    model = port_model(zoo.Spec(50, 1 / 16))
    port_pickle(model, tmp_path / "port.pth")
    content = torch.load(tmp_path / "port.pth", weights_only=True)  # of our own making
    content["head"]["layers.7.bias"][3] = 0.5
    torch.save(content, tmp_path / "port.pth")
    with pytest.raises(ValueError, match=r"layers\.7\.bias is not zero \(0\.5\)"):
        conversion.convert(tmp_path / "port.pth", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="one set of weights; leave --ema out"):
        conversion.convert(tmp_path / "port.pth", tmp_path / "out.safetensors", ema=True)


# torchvision


def test_torchvision_gives_the_same_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines that the command prints are run."""
    import safetensors.torch
    import torchvision

    with torch.device("meta"):
        network = zoo.SimCLR(zoo.spec("r50_1x"))
    arrays = np.load(REFERENCE / "forward_r50_1x_224.npz")
    prefix = write_checkpoint(tmp_path / "pretrained" / "m.ckpt-1", RecordedVariables(published_shapes(network)))
    out = tmp_path / "tv.safetensors"
    assert command("convert", prefix, out, "--to", "torchvision") == 0
    lines = capsys.readouterr().out.strip().splitlines()[-3:]
    names: dict[str, Any] = {"torch": torch, "torchvision": torchvision, "safetensors": safetensors}
    exec("\n".join(lines), names)
    model = names["model"].eval()
    images = torch.from_numpy(input_images(len(arrays["logits_sup"]), 224)).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert relative_error(model(images), arrays["logits_sup"]) < 1e-5
        wrong = torchvision.models.resnet50()
        wrong.load_state_dict(model.state_dict())
        assert relative_error(wrong.eval()(images), arrays["logits_sup"]) > 1e-3  # torchvision's own pool


@pytest.mark.slow
def test_the_largest_converts_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """r152_3x_sk: 10.5 GB generated, 3.5 GB out of them wanted; needs 15 GB of disk."""
    with torch.device("meta"):
        network = zoo.SimCLR(zoo.spec("r152_3x_sk"))
    variables = RecordedVariables(published_shapes(network))
    prefix = write_checkpoint(tmp_path / "pretrained" / "r152_3x_sk1" / "model.ckpt-250228", variables)
    out = tmp_path / "cache" / "r152_3x_sk" / "pretrained" / "model.safetensors"
    conversion.convert(prefix, out)
    model = zoo.load("r152_3x_sk")
    assert model.facts["paper_top1"] == 79.8
    assert conversion.verify(out).good
    state = model.state_dict()
    pairs = list(convert.tensorflow_names(model))
    for ours, theirs in pairs[:: len(pairs) // 20]:
        np.testing.assert_array_equal(state[ours].numpy(), convert.from_tensorflow_layout(variables[theirs]))
