"""Vectors of folders on disk: shards, what counts as finished, several processes, ONNX and torch alike."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import relative_error
from safetensors.numpy import load_file

import zoo
from app.cli import main as simclr
from export import OnnxModel
from training import data, evaluate
from training import embed as embedding
from zoo.model_file import sha256_of, weights_sha256

ROOT = Path(__file__).parents[1]
STUDENT = ROOT / "export" / "bundled" / "r18_1x.imagenette_distilled.onnx"
NO_TORCH = "import sys; sys.modules['torch'] = None; from app.cli import main; main(sys.argv[1:])"


def mean_colours(batch: np.ndarray) -> np.ndarray:
    return batch.mean((2, 3)).astype(np.float32)


def colours(name: str = "colours", features: Callable[[np.ndarray], np.ndarray] = mean_colours) -> embedding.Embedder:
    """A model simple enough to be checked by hand: the mean of each colour."""
    return embedding.Embedder(name, f"sha256 of {name}", 40, 3, features)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        simclr([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def files(image_folder: Path) -> list[Path]:
    return embedding.find_files([image_folder])


def test_files_are_those_of_training_each_once(image_folder: Path, files: list[Path]) -> None:
    assert tuple(files) == data.from_folder(image_folder).paths
    (image_folder / ".hidden").mkdir()
    for name in (".hidden/a.png", ".b.png", "notes.txt", "UPPER.JPG"):
        (image_folder / name).touch()
    again = embedding.find_files([image_folder / "circle", image_folder, image_folder / "notes.txt"])
    assert again == sorted([*files, image_folder / "notes.txt", image_folder / "UPPER.JPG"])


@pytest.mark.parametrize("model", ["tiny.safetensors", "r18_1x:imagenette_distilled", str(STUDENT)])
def test_torch_and_onnx_agree_with_evaluation(
    model: str, tiny_model: zoo.SimCLR, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zoo.save_file(tiny_model, "tiny.safetensors")
    reference = tiny_model if model.startswith("tiny") else zoo.load("r18_1x", weights="imagenette_distilled")
    assert command("embed", model, "images", "--batch", 7, "--device", "cpu") == 0
    paths, features, told = embedding.read_embeddings("embeddings")
    assert paths == embedding.find_files(["images"])
    wanted = evaluate.embed(reference, data.from_folder("images"))[0].numpy()
    # the bundled ONNX file was rounded to float16 once more, after batch norm was folded in
    assert relative_error(features, wanted) < (2e-3 if model == str(STUDENT) else 1e-6)
    if model == str(STUDENT):
        np.testing.assert_allclose(features, OnnxModel(STUDENT).embed(paths), rtol=1e-4, atol=1e-5)
        fingerprint = sha256_of(STUDENT)
    else:
        fingerprint = weights_sha256(reference)
    assert told["model"] == (STUDENT.name if model == str(STUDENT) else model)
    assert (told["fingerprint"], told["dimension"]) == (fingerprint, wanted.shape[1])


def test_json(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("embed", STUDENT, image_folder / "circle", "--out", tmp_path / "o", "--shard", 5, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [told[key] for key in ("images", "skipped", "shards", "done_before", "dimension")] == [12, 0, 3, 0, 512]


def test_shards_paths_and_unreadable_files(files: list[Path], tmp_path: Path) -> None:
    files[3].write_bytes(b"no picture")
    files[20].write_bytes(files[20].read_bytes()[:200])
    missed: list[Path] = []
    done = embedding.embed_to(
        colours(), files, tmp_path / "o", shard=10, batch=4, on_skip=lambda path, _: missed.append(path)
    )
    assert done == (4, 0, 34, 2)
    assert missed == [files[3], files[20]]
    assert [line["path"] for line in lines(tmp_path / "o" / "skipped.csv")] == [str(files[3]), str(files[20])]
    assert "not an image" in lines(tmp_path / "o" / "skipped.csv")[0]["problem"]
    shards = [load_file(path)["features"] for path in sorted((tmp_path / "o").glob("*.safetensors"))]
    assert [len(shard) for shard in shards] == [8, 9, 8, 9]
    listed = lines(tmp_path / "o" / "paths.csv")
    assert [Path(line["path"]) for line in listed] == [f for k, f in enumerate(files) if k not in (3, 20)]
    for line in listed:
        pixels = zoo.preprocess(line["path"], 40)
        np.testing.assert_allclose(shards[int(line["shard"])][int(line["row"])], pixels.mean((1, 2)), rtol=1e-5)


def test_a_file_whose_name_is_no_text_is_skipped(files: list[Path], tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/\xff.png"))
    try:
        strange.write_bytes(files[0].read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this system has no such names")
    done = embedding.embed_to(colours(), [files[0], strange], tmp_path / "o")
    assert (done.images, done.skipped) == (1, 1)
    assert lines(tmp_path / "o" / "skipped.csv")[0]["path"].endswith(r"\udcff.png")


KILLED = """
import os, signal, sys
from pathlib import Path
from training import embed as embedding
from zoo.model_file import sha256_of, weights_sha256
seen = 0
def features(batch):
    global seen
    seen += len(batch)
    if seen > 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.mean((2, 3))
model = embedding.Embedder("colours", "sha256 of colours", 40, 3, features)
embedding.embed_to(model, embedding.find_files([sys.argv[1]]), sys.argv[2], shard=10, batch=4)
"""


def test_a_killed_run_goes_on_with_the_shard_it_was_at(image_folder: Path, files: list[Path], tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(image_folder), str(tmp_path / "o")]
    killed = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert len(list((tmp_path / "o").glob("embeddings-*"))) == 2
    assert not (tmp_path / "o" / "paths.csv").exists()
    with pytest.raises(ValueError, match="no finished embeddings"):
        embedding.read_embeddings(tmp_path / "o")
    seen = []

    def counted(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return mean_colours(batch)

    assert embedding.embed_to(colours(features=counted), files, tmp_path / "o", shard=10) == (4, 2, 36, 0)
    assert sum(seen) == 18
    embedding.embed_to(colours(), files, tmp_path / "whole", shard=10)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "o" / path.name).read_bytes()
    assert embedding.embed_to(colours(features=counted), files, tmp_path / "o", shard=10) == (4, 4, 36, 0)
    assert sum(seen) == 18


def test_ctrl_c_says_how_far_it_came(files: list[Path], tmp_path: Path) -> None:
    def interrupted(batch: np.ndarray) -> np.ndarray:
        if (tmp_path / "o").exists():
            raise KeyboardInterrupt
        return mean_colours(batch)

    with pytest.raises(KeyboardInterrupt, match="Stopped; 1 of 4 shards are finished"):
        embedding.embed_to(colours(features=interrupted), files, tmp_path / "o", shard=10)


def test_damaged_shards_are_made_again(files: list[Path], tmp_path: Path) -> None:
    embedding.embed_to(colours(), files, tmp_path / "o", shard=10)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    names = sorted(whole)
    (tmp_path / "o" / names[1]).write_bytes(whole[names[1]][:50])
    (tmp_path / "o" / "paths-00002-of-00004.csv").unlink()
    (tmp_path / "o" / "paths-00003-of-00004.csv").write_text("row,path,problem\n")
    assert embedding.embed_to(colours(), files, tmp_path / "o", shard=10) == (4, 1, 36, 0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == whole


def test_another_set_is_refused_in_words(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "o"
    embedding.embed_to(colours("first"), files, out, shard=10)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"is of another model \(first\); give another --out"):
        embedding.embed_to(colours("second"), files, out, shard=10)
    with pytest.raises(ValueError, match="holds float32"):
        embedding.embed_to(colours("first"), files, out, shard=10, dtype="float16")
    with pytest.raises(ValueError, match="another number of shards than 2"):
        embedding.embed_to(colours("first"), files, out, shard=20)
    with pytest.raises(ValueError, match="is of other files"):
        embedding.embed_to(colours("first"), files[:-1], out, shard=10)
    os.utime(files[0], (1, 1))
    with pytest.raises(ValueError, match="or some have changed since"):
        embedding.embed_to(colours("first"), files, out, shard=10)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_two_processes_make_what_one_makes(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "square" / "05.png").write_bytes(b"no picture")
    arguments = [sys.executable, "-c", NO_TORCH, "embed", str(STUDENT), str(image_folder), "--out"]

    def start(out: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
        return subprocess.Popen([*arguments, str(tmp_path / out)], env=environment, stdout=-1, stderr=-1, text=True)

    ended = [start("one")]
    for rank in "01":
        ended.append(start("two", RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2"))
    outputs = [process.communicate(timeout=60) for process in ended]
    assert [process.returncode for process in ended] == [0, 0, 0], outputs
    assert outputs[0][0].endswith(
        f"35 vectors of 512 in 1 shard; 1 files skipped, see {tmp_path / 'one' / 'skipped.csv'}\n"
    )
    assert any("35 vectors of 512 in 2 shards" in shown for shown, _ in outputs[1:])
    one, two = (embedding.read_embeddings(tmp_path / out) for out in ("one", "two"))
    assert one[0] == two[0]
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5, atol=1e-5)
    assert [line["shard"] for line in lines(tmp_path / "two" / "paths.csv")] == ["0"] * 17 + ["1"] * 18
    assert (tmp_path / "one" / "skipped.csv").read_bytes() == (tmp_path / "two" / "skipped.csv").read_bytes()


def test_whoever_ends_last_lists_all_and_shards_are_dealt(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, wanted in ((2, (5, 0, None, None)), (0, (5, 0, None, None)), (1, (5, 0, 36, 0))):
        monkeypatch.setenv("RANK", str(rank))
        assert embedding.embed_to(colours(), files, tmp_path / "o", shard=8) == wanted
    assert embedding.read_embeddings(tmp_path / "o")[0] == files
    for rank in range(3):  # fewer files than processes: shards without rows
        monkeypatch.setenv("RANK", str(rank))
        embedding.embed_to(colours(), files[:2], tmp_path / "two")
    paths, features, _ = embedding.read_embeddings(tmp_path / "two")
    assert (paths, features.shape) == (files[:2], (2, 3))
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ValueError, match="RANK=3 and WORLD_SIZE=3 make no sense"):
        embedding.embed_to(colours(), files, tmp_path / "o")


def test_half_the_bytes(files: list[Path], tmp_path: Path) -> None:
    embedding.embed_to(colours(), files, tmp_path / "32")
    embedding.embed_to(colours(), files, tmp_path / "16", dtype="float16")
    assert load_file(tmp_path / "16" / "embeddings-00000-of-00001.safetensors")["features"].dtype == np.float16
    np.testing.assert_allclose(*(embedding.read_embeddings(tmp_path / kind)[1] for kind in ("16", "32")), rtol=5e-4)
    large = colours(features=lambda batch: mean_colours(batch) + np.float32(1e5))
    with pytest.raises(ValueError, match="too large for float16"):
        embedding.embed_to(large, files, tmp_path / "large", dtype="float16")


def test_nothing_readable(files: list[Path], tmp_path: Path) -> None:
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 36 files could be read; the first: "):
        embedding.embed_to(colours(), files, tmp_path / "o")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/absent.onnx", "{}/images"], "absent.onnx: no such file"),
        (["{}/absent.safetensors", "{}/images"], "absent.safetensors: no such file"),
        (["r18_2x", "{}/images"], "Unknown weights"),
        (["r18_1x:imagenette_distilled", "{}/absent"], "no such file or folder"),
        (["r18_1x:imagenette_distilled", "{}/void"], "no images in it"),
        (["r18_1x:imagenette_distilled", "{}/images", "--device", "tpu"], "Unknown device 'tpu'"),
        (["{}/a.onnx", "{}/images", "--device", "cuda"], "leave --device out"),
        (["{}/a.onnx", "{}/images", "--shard", "0"], "0 is not in the range"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    assert command("embed", *(text.format(tmp_path) for text in arguments), "--out", tmp_path / "o") == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_folder_that_does_not_fit_is_told(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished embeddings"):
        embedding.read_embeddings(tmp_path)
    embedding.embed_to(colours(), files, tmp_path / "o")
    (tmp_path / "o" / "paths.csv").write_text("row,shard,path\n0,0,a.png\n")
    with pytest.raises(ValueError, match="do not belong together"):
        embedding.read_embeddings(tmp_path / "o")
