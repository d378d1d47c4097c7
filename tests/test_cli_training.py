"""The command line of training: overrides, the three commands, and mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from training import cli, data, evaluate, runs
from training.loop import InterruptedRunError
from zoo.console import run_command


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_recipe_with_overrides(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--image-size", 40, "--batch-size", 12, "--epochs", 0.3, "--warmup-epochs", 0, "--workers", 0)
    assert run("quick_pretrain", "--images", image_folder, "--out", tmp_path / "a", "--no-blur", *small) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())["recipe"]
    assert config["image_size"] == 40
    assert config["blur"] is False
    assert config["temperature"] == 0.2  # the recipe's own
    pretrained = tmp_path / "a" / "model.safetensors"
    tuning = ("--images", image_folder, "--from", pretrained, "--label-share", 0.5, *small, "--out", tmp_path / "b")
    assert run("quick_finetune", *tuning) == 0
    teacher = tmp_path / "b" / "model.safetensors"
    distilling = ("--images", image_folder, "--teacher", teacher, "--alpha", 0.5, *small, "--out", tmp_path / "c")
    assert run("quick_distill", *distilling) == 0
    assert "Student: " in capsys.readouterr().out
    student = tmp_path / "c" / "model.safetensors"
    assert run_command(cli.evaluate, [str(student), "--images", str(image_folder), "--json"], name="x") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 36
    assert found["interval"][0] <= found["top1"] <= found["interval"][1]
    assert zoo.load_file(teacher).facts["training_images"] == 18


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quick_pretran"], "Did you mean 'quick_pretrain'"),
        (["quick_pretrain", "--images", "{}/absent", "--out", "{}/o"], "no such folder"),
        (["quick_pretrain", "--images", "{}/void", "--out", "{}/o"], "no images in it"),
        (["quick_pretrain", "--images", "{}/images", "--out", "{}/o", "--epochs", "0"], "epochs=0.0 is not positive"),
        (["quick_pretrain", "--images", "{}/images", "--out", "{}/o", "--model", "r19_1x"], "Did you mean"),
        (["quick_pretrain", "--images", "{}/images", "--out", "{}/o", "--device", "tpu"], "Unknown device 'tpu'"),
        (["quick_finetune", "--images", "{}/images", "--out", "{}/o", "--from", "{}/no.safetensors"], "no such file"),
        (["quick_finetune", "--images", "{}/images", "--out", "{}/o", "--labels", "{}/bad.csv"], "no column 'label'"),
        (["quick_distill", "--images", "{}/images", "--out", "{}/o", "--teacher", "r18_2x"], "Unknown weights"),
        (
            ["quick_distill", "--images", "{}/images", "--out", "{}/o", "--teacher", "r18_1x:best"],
            "imagenette_distilled",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "bad.csv").write_text("path,class\na.png,1\n")
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["quick_pretrain"],
        ["quick_finetune", "--from", "r18_1x:imagenette_distilled"],
        ["quick_distill", "--teacher", "r18_1x:imagenette_distilled"],
    ],
)
def test_results_among_the_images_are_refused(
    arguments: list[str], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their pictures would be images of the next run, and of the same one when it is resumed."""
    assert run(*arguments, "--images", image_folder, "--out", image_folder / "runs" / "a") == 2
    assert "would become one of them" in capsys.readouterr().err
    assert not (image_folder / "runs").exists()


def test_classes_are_compared_by_name(
    tiny_model: zoo.SimCLR, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test set without one of the classes shifts no label, whether a classifier answers or neighbours vote."""
    model, few = tmp_path / "model.safetensors", tmp_path / "few"
    zoo.save_file(tiny_model, model)

    def measured(*arguments: object) -> dict:
        command = [str(argument) for argument in (model, "--json", *arguments)]
        assert run_command(cli.evaluate, command, name="x") == 0
        return json.loads(capsys.readouterr().out)

    for name in ("square", "stripes"):
        shutil.copytree(image_folder / name, few / name)
    images = data.from_class_folders(image_folder)
    shutil.copytree(image_folder, tmp_path / "copies")  # under their own names none votes on itself
    asked = data.from_class_folders(tmp_path / "copies").subset(range(12, 36))
    votes = evaluate.knn_score(tiny_model, images, asked)
    assert measured("--images", few, "--knn", image_folder)["top1"] == pytest.approx(votes.top1)
    rows = [f"{path.relative_to(few)},{path.parent.name}" for path in sorted(few.rglob("*.png"))]
    (tmp_path / "few.csv").write_text("path,label\n" + "\n".join(rows))
    answers = [tiny_model(torch.from_numpy(zoo.preprocess(path, 48))[None]) for path in sorted(few.rglob("*.png"))]
    right = [answer.logits.argmax().item() for answer in answers] == np.repeat([1, 2], 12)
    assert measured("--images", few, "--labels", tmp_path / "few.csv")["top1"] == pytest.approx(right.mean())
    (few / "square").rename(few / "cube")
    assert run_command(cli.evaluate, [str(model), "--images", str(few)], name="x") == 2
    assert "Labels that are none of the 3 classes: 'cube'. Those are 'circle', " in capsys.readouterr().err


def test_a_stopped_run_says_where_its_checkpoint_is(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError("Stopped after step 3 of 9; checkpoint: here. Go on with --resume.")

    monkeypatch.setattr(runs, "pretrain", stopped)
    assert run("quick_pretrain", "--images", image_folder, "--out", tmp_path / "a") == 130
    assert "checkpoint: here. Go on with --resume." in capsys.readouterr().err


def test_help_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "imagenet_pretrain" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.pretrain.main(["--help"], prog_name="simclr pretrain")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--color-strength" in shown
    assert "standard_pretrain" in shown
