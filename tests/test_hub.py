"""Models pushed to a Hub and loaded from it, with the real client against a server on loopback; the model card."""

import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import onnx
import onnx_files
import pytest
import torch
import yaml
from conftest import TINY, run_client
from hub_server import HubServer

import zoo
from app.cli import main as simclr
from export import OnnxModel, to_onnx, write
from zoo import hub, probe, registry
from zoo.card import model_card
from zoo.model_file import SHARD_INDEX

REPO = "me/simclrv2-r18_0.0625x-pretrained"
ROW = registry.Row(TINY, 0, 1.0, 2.0, 3.0, 4.0, 5.0)
MEASURED = {"dataset": "Shapes", "top1": 0.875, "top5": 1.0, "images": 36, "interval": [0.7, 0.95]}
PUSH_AND_LOAD = """
import sys, zoo
from zoo import registry
_, file, repo = sys.argv
model = zoo.load_file(file)
try:
    commit = zoo.push(model, repo, tag="v1")
    assert zoo.push(model, repo, tag="v1") == commit
    registry.TABLE[model.spec.name] = registry.Row(model.spec, 0, linear=4.0)
    loaded = zoo.load(model.spec.name, namespace="me")
    same = all((loaded.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    print("same" if same else "different")
except ValueError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def narrow_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLE, TINY.name, ROW)


@pytest.fixture
def model(tiny_model: zoo.SimCLR) -> zoo.SimCLR:
    tiny_model.facts = {"weights": "pretrained", "ema": False, "licence": "Apache-2.0", "source_sha256": "0" * 64}
    return tiny_model


@pytest.fixture
def model_file(model: zoo.SimCLR, tmp_path: Path) -> Path:
    zoo.save_file(model, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub without Xet, and the client of this process set to it."""
    with HubServer(tmp_path / "hub", xet=False) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("SIMCLR_HUB_NAMESPACE", "me")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


# what the client's upload of large files does to its own HTTP library (huggingface_hub 2.4, httpx2)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


def load(**options: Any) -> zoo.SimCLR:
    return zoo.load(TINY.name, **options)


def same(model: zoo.SimCLR, other: zoo.SimCLR) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def changed(model: zoo.SimCLR) -> zoo.SimCLR:
    with torch.no_grad():
        model.classifier.weight += 1
    return model


def test_push_and_load(server: HubServer, model: zoo.SimCLR, tmp_path: Path) -> None:
    commit = zoo.push(model, REPO, tag="v1", measured=[MEASURED])
    assert server.repos[REPO].tags == {"v1": commit}
    assert set(server.files(REPO)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    server.log.clear()
    assert zoo.push(model, REPO, tag="v1", measured=[MEASURED]) == commit  # nothing changed, nothing uploaded
    assert {method for method, path in server.log if "repos/create" not in path} == {"GET"}
    assert len(server.commits(REPO)) == 2
    for options in ({}, {"revision": "v1"}, {"revision": commit}, {"weights": f"hf://{REPO}"}):
        assert same(load(**options), model)
    server.log.clear()
    assert same(load(), model)  # what is there is taken, and nobody asked
    assert same(load(local_files_only=True, revision="v1"), model)
    assert same(load(revision=commit), model)
    assert not server.log
    lock = json.loads((tmp_path / "cache" / "simclr.lock").read_text())["weights"]
    assert set(lock) == {f"hf://{REPO}", f"hf://{REPO}@v1", f"hf://{REPO}@{commit}"}


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_push_and_load_as_users_do(xet: bool, model_file: Path, tmp_path: Path) -> None:
    """In a process that has read its settings from the environment, with Xet and without."""
    with HubServer(tmp_path / "hub", xet=xet) as server:
        place = {"url": server.url, "token": server.token, "home": tmp_path / "home"}
        assert run_client(PUSH_AND_LOAD, str(model_file), REPO, xet=xet, **place) == "same"
        assert len(server.commits(REPO)) == 2
        assert any("xet-write-token" in path for _, path in server.log) == xet


def test_a_hub_without_xet_is_explained(model_file: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub", xet=False) as server:
        place = {"url": server.url, "token": server.token, "home": tmp_path / "home"}
        told = run_client(PUSH_AND_LOAD, str(model_file), REPO, xet=True, **place)
        assert "does not speak Xet" in told
        assert "set HF_HUB_DISABLE_XET=1" in told
        assert len(server.commits(REPO)) == 1


def test_a_new_version_is_one_commit_and_a_tag_stays(server: HubServer, model: zoo.SimCLR) -> None:
    first = zoo.push(model, REPO, tag="v1")
    with pytest.raises(hub.HubError, match="has a tag 'v1' already"):
        zoo.push(changed(model), REPO, tag="v1")
    assert server.repos[REPO].branches["main"] == first
    second = zoo.push(model, REPO, tag="v2")
    assert server.repos[REPO].tags == {"v1": first, "v2": second}
    assert same(load(revision="v2"), model)
    assert not same(load(revision="v1"), model)


def test_shards_and_back(server: HubServer, model: zoo.SimCLR) -> None:
    zoo.push(model, REPO, shard_bytes=100_000)
    names = server.files(REPO)
    assert "model.safetensors.index.json" in names
    assert sum(name.startswith("model-0000") for name in names) > 1
    assert "model.safetensors" not in names
    assert same(load(), model)
    zoo.push(model, REPO)  # in one file again: the shards go
    assert set(server.files(REPO)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_an_export_goes_with_it(server: HubServer, model: zoo.SimCLR, tmp_path: Path) -> None:
    to_onnx(model, tmp_path / "model.onnx")
    zoo.push(model, REPO, onnx=tmp_path / "model.onnx")
    assert server.read(REPO, "model.onnx") == (tmp_path / "model.onnx").read_bytes()
    assert b"model.onnx" in server.read(REPO, "README.md")
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 50)
    for name, said in (("noise", "not an ONNX file"), ("gone", "no such file")):
        with pytest.raises(hub.HubError, match=said):
            zoo.push(model, REPO, onnx=tmp_path / f"{name}.onnx")
    with pytest.raises(hub.HubError, match=r"is not an export of this r18_0\.0625x"):
        zoo.push(changed(model), REPO, onnx=tmp_path / "model.onnx")
    assert len(server.commits(REPO)) == 2


def test_an_export_stays_as_long_as_its_weights(
    server: HubServer,
    model: zoo.SimCLR,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(write, "MOST_BYTES", 1000)
    zoo.push(model, REPO, onnx=to_onnx(model, tmp_path / "student.onnx"))
    (data,) = tmp_path.glob("student.onnx.*.data")
    commit = zoo.push(model, REPO, measured=[MEASURED])
    assert {"model.onnx", data.name} < set(server.files(REPO))
    assert b"87.5%" in server.read(REPO, "README.md")
    assert b"`model.onnx` is the same model" in server.read(REPO, "README.md")
    assert zoo.push(model, REPO, measured=[MEASURED]) == commit  # nothing changed
    assert "deleted" not in capsys.readouterr().err
    zoo.push(changed(model), REPO)
    assert not {"model.onnx", data.name} & set(server.files(REPO))
    assert b"model.onnx" not in server.read(REPO, "README.md")
    assert f"{REPO}: deleted model.onnx, {data.name}, of the version before.\n" in capsys.readouterr().err


def test_an_export_with_its_data(
    server: HubServer, model: zoo.SimCLR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MOST_BYTES", 1000)
    exported = to_onnx(model, tmp_path / "student.onnx", weights="fp16")
    zoo.push(model, REPO, onnx=exported)
    (before,) = tmp_path.glob("student.onnx.*.data")
    assert server.read(REPO, before.name) == before.read_bytes()
    exported = to_onnx(model, tmp_path / "student.onnx")
    (data,) = tmp_path.glob("student.onnx.*.data")
    proto = onnx.load(exported, load_external_data=False)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    record = json.loads(told["external_data"])
    zoo.push(model, REPO, onnx=exported)
    assert before.name not in server.files(REPO)  # gigabytes that nothing names
    assert server.read(REPO, "model.onnx") == exported.read_bytes()
    assert server.read(REPO, data.name) == data.read_bytes()
    for name in ("model.onnx", data.name):
        (tmp_path / "pulled").mkdir(exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(server.read(REPO, name))
    assert OnnxModel(tmp_path / "pulled" / "model.onnx").labels == model.classes
    commits = len(server.commits(REPO))
    zoo.push(model, REPO, onnx=exported)
    assert len(server.commits(REPO)) == commits  # nothing changed

    def refused(said: str, **changes: object) -> None:
        onnx_files.write(exported, proto, told | {"external_data": json.dumps(record | changes)})
        with pytest.raises(hub.HubError, match=said) as caught:
            zoo.push(model, REPO, onnx=exported)
        assert "\n" not in str(caught.value)

    refused("its weights lie in other files than the one it records", file="other")
    refused("not the file that student.onnx was written with", sha256="0" * 64)
    refused("not the file that student.onnx was written with", bytes=3)
    onnx_files.write(exported, proto, told | {"external_data": "{}"})
    with pytest.raises(hub.HubError, match="its weights lie in other files than the one it records"):
        zoo.push(model, REPO, onnx=exported)
    data.rename(tmp_path / "elsewhere")
    refused(r"student\.onnx\.[0-9a-f]{12}\.data: no such file")
    data.symlink_to(tmp_path / "elsewhere")
    refused("its weights lie in other files than the one it records")
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "model.safetensors" if entry.key == "location" else entry.value
    (tmp_path / "elsewhere").rename(tmp_path / "model.safetensors")
    refused("its data lie in model.safetensors, a name that this repository needs", file="model.safetensors")
    assert len(server.commits(REPO)) == commits


def test_changed_bytes_from_the_hub_are_refused(server: HubServer, model: zoo.SimCLR) -> None:
    zoo.push(model, REPO)
    server.tamper(REPO, "model.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(zoo.TamperedError, match=r"damaged or was changed: .* what was announced has") as caught:
        load()
    server.tamper(REPO, "model.safetensors", lambda data: data)
    with pytest.raises(zoo.TamperedError):  # the client keeps it: it stays refused until it is deleted
        load()
    Path(str(caught.value).split(" is damaged")[0]).unlink()
    assert same(load(), model)


def test_truncated_bytes_from_the_hub(server: HubServer, model: zoo.SimCLR) -> None:
    zoo.push(model, REPO)
    server.tamper(REPO, "model.safetensors", lambda data: data[:-100])
    with pytest.raises(zoo.WeightsNotFoundError, match=r"Hub: me/simclrv2-r18_0\.0625x-pretrained on "):
        load()
    server.tamper(REPO, "model.safetensors", lambda data: data)
    assert same(load(), model)


def test_a_branch_that_moved_is_noticed(server: HubServer, model: zoo.SimCLR) -> None:
    zoo.push(model, REPO)
    assert same(load(revision="main"), model)
    zoo.push(changed(model), REPO)
    with pytest.raises(zoo.TamperedError, match=r"simclr lock --forget hf://me/simclrv2-r18_0\.0625x-pretrained@main"):
        load(revision="main")


def test_another_model_in_its_place(server: HubServer) -> None:
    zoo.push(zoo.create(zoo.Spec(18, 1 / 8), num_classes=3, image_size=48, seed=0), REPO)
    with pytest.raises(zoo.TamperedError, match=r"holds r18_0\.125x, not r18_0\.0625x"):
        load()


def test_a_full_disk_is_said_before_the_download(
    server: HubServer, model: zoo.SimCLR, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.push(model, REPO, tag="v1")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    server.log.clear()
    with pytest.raises(zoo.WeightsNotFoundError, match=r"Hub: .* has 0\.00 GB free, but .* takes 0\.00 GB; make room"):
        load(revision="v1")
    assert not [path for method, path in server.log if method == "GET" and path.endswith(".safetensors")]
    monkeypatch.setattr(shutil, "disk_usage", real)
    assert same(load(revision="v1"), model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert same(load(revision="v1"), model)  # it is there already


def test_other_files_of_a_repository_stay(server: HubServer, model: zoo.SimCLR) -> None:
    api = huggingface_hub.HfApi(endpoint=server.url)
    api.create_repo(REPO)
    others = ("models/other.safetensors", "model_fp16.onnx", "model-card/extra.index.json", "notes.md")
    for path in others:
        api.upload_file(repo_id=REPO, path_or_fileobj=path.encode(), path_in_repo=path)
    zoo.push(model, REPO)
    zoo.push(changed(model), REPO)
    assert set(others) < set(server.files(REPO))


def test_outputs_that_differ_in_their_last_bits_are_no_change(
    server: HubServer, model: zoo.SimCLR, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do between machines."""
    first = zoo.push(model, REPO)
    real = probe.outputs
    monkeypatch.setattr(probe, "outputs", lambda model: real(model) | {"logits": [0.1]})
    assert zoo.push(model, REPO) == first
    monkeypatch.setattr(probe, "outputs", real)
    model.classes = ("a", "b", "c")
    assert zoo.push(model, REPO) != first


def test_a_sharded_model_of_other_weights(server: HubServer, model: zoo.SimCLR) -> None:
    model.facts["weights"] = "finetuned_1pct"
    zoo.push(model, REPO, shard_bytes=100_000)
    with pytest.raises(zoo.TamperedError, match="holds the weights 'finetuned_1pct', not 'pretrained'"):
        load()


def test_the_config_of_shards_is_locked(server: HubServer, model: zoo.SimCLR, tmp_path: Path) -> None:
    zoo.push(model, REPO, shard_bytes=100_000)
    load()
    config = next((tmp_path / "cache").rglob("config.json"))
    told = json.loads(config.read_text())
    config.resolve().write_text(json.dumps(told | {"image_size": 49}))
    with pytest.raises(zoo.TamperedError, match=r"config\.json has the SHA-256"):
        load()


def test_shards_of_other_names_are_hashed_too(server: HubServer, model: zoo.SimCLR, tmp_path: Path) -> None:
    """Whatever the index names is used, so whatever it names is checked, and goes into a bundle."""
    zoo.push(model, REPO, shard_bytes=100_000)
    load()
    folder = tmp_path / "by_hand"
    shutil.copytree(next((tmp_path / "cache").rglob("config.json")).parent, folder)
    index = json.loads((folder / SHARD_INDEX).read_text())
    others = {
        name: name.replace("model-", "part_").replace(".safetensors", ".st")
        for name in set(index["weight_map"].values())
    }
    for name, other in others.items():
        (folder / name).rename(folder / other)
    told = {"weight_map": {tensor: others[name] for tensor, name in index["weight_map"].items()}}
    (folder / SHARD_INDEX).write_text(json.dumps(told))
    cache = tmp_path / "second"
    shutil.copytree(folder, cache / TINY.name / "pretrained")
    zoo.load(TINY, cache_dir=cache, local_files_only=True)
    from zoo import bundling

    carried = bundling.add(tmp_path / "carried", TINY.name, "pretrained", cache_dir=cache, local_files_only=True)
    assert {path.name for path in carried.iterdir()} == {*others.values(), SHARD_INDEX, "config.json"}
    shard = cache / TINY.name / "pretrained" / min(others.values())
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(zoo.TamperedError, match=f"{shard.name} has the SHA-256"):
        zoo.load(TINY, cache_dir=cache, local_files_only=True)
    told = json.loads((folder / "config.json").read_text()) | {"files": {shard.name: "0" * 64}}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(zoo.TamperedError, match="the config beside it"):
        zoo.load(TINY, weights=folder)
    shard.unlink()
    with pytest.raises(zoo.TamperedError, match=f"has no {shard.name}"):
        zoo.load(TINY, cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize("answer", [b"<html>log in</html>", b"[]", b"{}", b'{"siblings": 3}'])
def test_a_server_that_is_no_hub(answer: bytes, model: zoo.SimCLR, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captive portal, a wrong address: one line, and the next source is asked."""

    class Portal(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal) as portal:
        thread = threading.Thread(target=portal.serve_forever)
        thread.start()
        try:
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{portal.server_port}")
            with pytest.raises(zoo.WeightsNotFoundError, match=r"Hub: .*\n.*authors' bucket: "):
                load(namespace="me")
            with pytest.raises(hub.HubError):
                zoo.push(model, REPO, token="hf_x")
        finally:
            portal.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"namespace": "nobody"}, "Hub: no repository nobody/simclrv2-r18_0.0625x-pretrained on "),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"revision": "v9"}, "cache: has no revisions, and 'v9' was asked for"),
        ({"local_files_only": True}, "not downloaded yet, and offline"),
        ({"weights": "hf://me/other"}, "no repository me/other"),
        ({"weights": "hf://me/a/b"}, "is no name of a repository"),
        ({"weights": "hf://me/empty"}, "has no config.json with a model.safetensors"),
    ],
)
def test_what_is_not_there(options: dict[str, Any], said: str, server: HubServer, model: zoo.SimCLR) -> None:
    zoo.push(model, REPO)
    huggingface_hub.HfApi(endpoint=server.url).create_repo("me/empty")
    with pytest.raises(zoo.WeightsNotFoundError, match=re.escape(said)):
        load(**options)


def test_the_server_is_gone(tmp_path: Path, model: zoo.SimCLR, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer(tmp_path / "hub", xet=False) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        zoo.push(model, REPO, tag="v1")
        assert same(load(revision="v1", namespace="me"), model)
    assert same(load(revision="v1", namespace="me"), model)
    with pytest.raises(zoo.WeightsNotFoundError, match="Hub: "):
        load(revision="v2", namespace="me")
    with pytest.raises(hub.HubError, match=f"{REPO} on http"):
        zoo.push(model, REPO)


def test_a_wrong_token(server: HubServer, model: zoo.SimCLR) -> None:
    with pytest.raises(hub.HubError, match=r"on http.*401"):
        zoo.push(model, REPO, token="hf_wrong")
    assert not server.repos


def test_push_command(server: HubServer, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(json.dumps({k: v for k, v in MEASURED.items() if k != "dataset"}))
    measured = f"Shapes={tmp_path / 'result.json'}"
    with pytest.raises(SystemExit) as stop:
        simclr(["push", str(model_file), REPO, "--measured", measured, "--tag", "v1"])
    assert not stop.value.code
    assert re.search(rf"{REPO}: commit [0-9a-f]{{40}}, tag v1", capsys.readouterr().out)
    assert b"87.5%" in server.read(REPO, "README.md")


def test_mistakes_of_the_push_command(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("[]")
    for arguments, said in (
        (["--measured", "result.json"], "write DATASET=FILE"),
        (["--measured", f"A={tmp_path / 'bad.json'}"], "not what `simclr evaluate --json` prints"),
    ):
        with pytest.raises(SystemExit) as stop:
            simclr(["push", str(model_file), REPO, *arguments])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


# The card


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return found


def test_card_of_a_measured_model(tiny_model: zoo.SimCLR) -> None:
    tiny_model.facts = {"stage": "distill", "training_images": 9469, "licence": "Apache-2.0"}
    entry = MEASURED | {"command": "simclr evaluate model.safetensors --images shapes"}
    text = model_card(tiny_model, "me/shapes", [entry])
    about = front_matter(text)
    assert about["license"] == "apache-2.0"
    assert about["pipeline_tag"] == "image-classification"
    result = about["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "Shapes"
    assert result["metrics"][0]["value"] == 0.875
    assert "| Shapes | 87.5% | 100.0% | 36 | 70.0% to 95.0% | measured |" in text
    assert "simclr evaluate model.safetensors" in text
    assert "circle, square, stripes" in text
    assert "distill, on 9,469 images" in text
    for part in ("## Use", "## Intended use", "## Licence and citation", "@inproceedings{chen2020big"):
        assert part in text
    assert model_card(tiny_model, "me/shapes", [entry]) == text


def test_card_of_a_published_model() -> None:
    with torch.device("meta"):
        model = zoo.SimCLR(zoo.spec("r50_1x"), classify_from=1)
    model.facts = {"weights": "finetuned_1pct", "source": "x/model.ckpt-751", "source_sha256": "ab", "step": 751}
    assert "the paper" not in model_card(model, "me/x")  # a checkpoint that somebody else trained
    model.facts["paper_top1"] = 99.9
    assert "the paper" not in model_card(model, "me/x")
    model.facts["paper_top1"] = 57.9
    text = model_card(model, "me/simclrv2-r50_1x-finetuned_1pct")
    assert "| ImageNet validation | 57.9% | - | 50,000 | - | the paper |" in text
    assert "it was not measured again for this file" in text
    assert "projection layer 1" in text
    assert "model-index" not in front_matter(text)
    assert front_matter(text)["license"] == "other"


def test_card_of_an_unknown_model(tiny_model: zoo.SimCLR) -> None:
    text = model_card(tiny_model, "me/x")
    assert "Nothing was measured" in text
    assert "Not told by the file." in text
    tiny_model.facts = {"data": "shapes: 36\nimages"}
    text = model_card(tiny_model, "me/x")
    assert "Trained on shapes: 36 images." in text
    assert "Not told by the file." not in text
    good = {"dataset": "x", "top1": 0.5, "images": 3}
    for wrong in ({"images": "3"}, {"top1": 65.5}, {"top1": None}, {"top5": "1"}, {"interval": [0.1]}, {"interval": 3}):
        with pytest.raises(ValueError, match=r"A measurement's (figures|images|interval)"):
            model_card(tiny_model, "me/x", [good | wrong])
    with pytest.raises(ValueError, match="images is missing"):
        model_card(tiny_model, "me/x", [{"dataset": "x", "top1": 0.5}])


def test_the_cards_snippet_runs(
    tiny_model: zoo.SimCLR, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the repository's files where the client keeps them."""
    monkeypatch.delitem(registry.TABLE, TINY.name)
    monkeypatch.chdir(tmp_path)
    zoo.save_file(tiny_model, tmp_path / "repo" / "model.safetensors")
    (tmp_path / "repo" / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "fetch", lambda repo_id, **options: tmp_path / "repo")
    monkeypatch.setattr(hub, "cache_folder", lambda cache: tmp_path)
    shutil.copy(next(image_folder.rglob("*.png")), tmp_path / "photo.jpg")
    snippet = re.search(r"```python\n(.*?)```", model_card(tiny_model, "me/x"), re.DOTALL)
    assert snippet is not None
    exec(snippet[1], {})
