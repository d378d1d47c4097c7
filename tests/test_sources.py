"""Where weights come from: the authors' bucket (and what goes wrong on the way), the cache (and what is done to it)."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bucket_server import BucketServer, Fault
from checkpoint_writer import published_shapes, write_checkpoint
from conftest import RecordedVariables

import zoo
from app.cli import main as simclr
from training.teachers import open_teacher
from zoo import bucket, conversion, convert, lock, registry, stream
from zoo.model_file import read_header, sha256_of

SPEC = zoo.Spec(50, 1 / 16)
NAME = SPEC.name
DATA = ".data-00000-of-00001"
SCRIPT = f"""
import zoo
from zoo import registry
registry.TABLE[{NAME!r}] = registry.Row(zoo.Spec(50, 1 / 16), 0, 1.0, 2.0, 3.0, 4.0, 5.0)
zoo.load({NAME!r})
"""


@pytest.fixture(autouse=True)
def narrow_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the authors had published a network of a sixteenth of the width."""
    monkeypatch.setitem(registry.TABLE, NAME, registry.Row(SPEC, 0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between tries, not waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(bucket.Bucket, "_wait", lambda self, wait: seconds.append(wait))
    return seconds


def publish(folder: Path, category: str = "pretrained", *, step: int = 250228, seed: str = "") -> Path:
    """A checkpoint like the authors', where they would keep it; the prefix."""
    with torch.device("meta"):
        network = zoo.SimCLR(SPEC, num_classes=7)
    shapes = published_shapes(network)
    variables = RecordedVariables(shapes)
    if seed:
        variables = {name: variables[name] * np.float32(1.5) for name in shapes}  # type: ignore[assignment]
    return write_checkpoint(
        folder / "simclrv2" / category / SPEC.authors_name / f"model.ckpt-{step}", variables, block_rows=50
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    publish(tmp_path / "published")
    with BucketServer(tmp_path / "published") as server:
        monkeypatch.setenv("SIMCLR_BUCKET_ENDPOINT", server.url)
        yield server


@pytest.fixture
def sha256(tmp_path: Path, server: BucketServer) -> str:
    """Of what must be in the cache in the end: what a conversion of the files themselves gives."""
    checkpoint = conversion.open_checkpoint(next((tmp_path / "published").rglob("*.index")))
    prefix = f"simclrv2/pretrained/{SPEC.authors_name}/model.ckpt-250228"
    source = conversion.tensorflow_source(checkpoint, prefix)
    source = dataclasses.replace(source, origin=prefix, published=True)
    conversion.write(source, tmp_path / "direct" / "model.safetensors")
    return sha256_of(tmp_path / "direct" / "model.safetensors")


def cached(tmp_path: Path, weights: str = "pretrained") -> Path:
    return tmp_path / "cache" / NAME / weights / "model.safetensors"


# The bucket


def test_only_the_wanted_bytes_are_fetched(
    server: BucketServer, sha256: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = zoo.load(NAME)
    assert not model.training
    assert model.facts["paper_top1"] == 4.0
    assert model.facts["source"] == f"simclrv2/pretrained/{SPEC.authors_name}/model.ckpt-250228"
    wanted = sum(value.numel() * 4 for value in model.state_dict().values())
    assert server.bytes_sent(DATA) == wanted + 1  # one byte to learn the file's size
    total = next((tmp_path / "published").rglob(f"*{DATA}")).stat().st_size
    assert total > 2.9 * wanted
    assert sha256_of(cached(tmp_path)) == sha256
    assert "from the authors' bucket" in capsys.readouterr().err
    assert sorted(path.name for path in cached(tmp_path).parent.iterdir()) == ["config.json", "model.safetensors"]
    server.requests.clear()
    again = zoo.load(NAME, local_files_only=True)
    assert not server.requests
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_moving_averages_are_fetched_when_asked_for(server: BucketServer, tmp_path: Path) -> None:
    model = zoo.load(NAME, weights="pretrained_ema")
    with torch.device("meta"):
        variables = RecordedVariables(published_shapes(zoo.SimCLR(SPEC, num_classes=7)))
    kernel = convert.from_tensorflow_layout(variables["ema_model/base_model/conv2d/kernel"])
    np.testing.assert_array_equal(model.backbone.stem.layers[0].conv.weight.detach().numpy(), kernel)
    assert model.facts["ema"] is True
    assert cached(tmp_path, "pretrained_ema").exists()
    with pytest.raises(ValueError, match="Unknown weights 'best_ema'"):
        zoo.load(NAME, weights="best_ema")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", DATA, times=3, at=0.3),
        Fault("cut", ".index", times=1),
        Fault("short", DATA, times=4),
        Fault("long", DATA, times=2),
        Fault("flip", DATA, times=1),
        Fault("status", DATA, times=3, status=503),
        Fault("status", ".index", times=2, status=429, retry_after="7"),
        Fault("status", DATA, times=2, status=500),
    ],
    ids=lambda fault: f"{fault.kind}{fault.suffix[:6]}{fault.status if fault.kind == 'status' else ''}",
)
def test_a_misbehaving_bucket_is_borne(
    fault: Fault, server: BucketServer, sha256: str, tmp_path: Path, waits: list[float]
) -> None:
    server.faults.append(fault)
    zoo.load(NAME)
    assert sha256_of(cached(tmp_path)) == sha256
    assert fault.times == 0
    if fault.retry_after:
        assert max(waits) == 7


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("flip", DATA, times=10**6), "is damaged: its CRC does not fit"),
        (Fault("cut", DATA, times=10**6, at=0.0), "tried 6 times"),
        (Fault("status", DATA, times=10**6, status=429), r"HTTP status 429 \(tried 6 times\)"),
        (Fault("status", DATA, times=10**6, status=403), "HTTP status 403"),
        (Fault("whole", DATA, times=10**6), "cannot send parts of a file"),
        (Fault("flip", ".index", times=10**6), "The index is damaged"),
        (Fault("status", "", times=10**6, status=404), "not there"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_bucket_that_stays_bad_is_one_line(
    fault: Fault, said: str, server: BucketServer, tmp_path: Path, waits: list[float]
) -> None:
    server.faults.append(fault)
    with pytest.raises(zoo.WeightsNotFoundError, match=f"authors' bucket: .*{said}") as caught:
        zoo.load(NAME)
    assert len(str(caught.value).splitlines()) == 6
    assert not cached(tmp_path).exists()
    assert len(waits) <= 4 * 6
    server.faults.clear()
    zoo.load(NAME)


def test_no_range_support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "published")
    with BucketServer(tmp_path / "published", ranges=False) as server:
        monkeypatch.setenv("SIMCLR_BUCKET_ENDPOINT", server.url)
        with pytest.raises(zoo.WeightsNotFoundError, match="cannot send parts of a file; use one that can"):
            zoo.load(NAME)


def test_interrupted_and_resumed(
    server: BucketServer, sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = stream.Target.put, []

    def put(self: stream.Target, name: str, array: np.ndarray) -> None:
        if len(done) >= 150:
            raise KeyboardInterrupt
        done.append(name)
        real(self, name, array)

    monkeypatch.setattr(stream.Target, "put", put)
    with pytest.raises(KeyboardInterrupt):
        zoo.load(NAME)
    assert not cached(tmp_path).exists()
    monkeypatch.setattr(stream.Target, "put", real)
    server.requests.clear()
    model = zoo.load(NAME)
    state = model.state_dict()
    missing = sum(value.numel() * 4 for name, value in state.items() if name not in done)
    assert 0 < server.bytes_sent(DATA) <= missing + 1
    assert sha256_of(cached(tmp_path)) == sha256
    assert not list(cached(tmp_path).parent.glob(".*"))


def test_what_changed_meanwhile_is_not_mixed(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one checkpoint, then another in its place: all of the other."""
    real, count = stream.Target.put, []

    def put(self: stream.Target, name: str, array: np.ndarray) -> None:
        count.append(name)
        if len(count) > 100:
            raise KeyboardInterrupt
        real(self, name, array)

    monkeypatch.setattr(stream.Target, "put", put)
    with pytest.raises(KeyboardInterrupt):
        zoo.load(NAME)
    monkeypatch.setattr(stream.Target, "put", real)
    checkpoint = conversion.open_checkpoint(publish(tmp_path / "published", seed="other"))
    model = zoo.load(NAME)
    for ours, theirs in convert.tensorflow_names(model):
        expected = convert.from_tensorflow_layout(checkpoint[theirs])
        np.testing.assert_array_equal(model.state_dict()[ours].numpy(), expected)


def test_two_processes_at_once(server: BucketServer, sha256: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sha256_of(cached(tmp_path)) == sha256
    state = zoo.load(NAME).state_dict()
    assert server.bytes_sent(DATA) == sum(value.numel() * 4 for value in state.values()) + 1  # by one of them only


def test_a_full_disk_is_said_before_the_download(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5_000_000 // 100))
    with pytest.raises(zoo.WeightsNotFoundError, match=r"has 0\.00 GB free, but model\.safetensors takes 0\.00 GB"):
        zoo.load(NAME)
    assert server.bytes_sent(DATA) == 1


def test_distilled_ones_are_looked_up(server: BucketServer, tmp_path: Path) -> None:
    """Their steps are not known: the bucket is listed, and its file ``checkpoint`` read if there are several."""
    with pytest.raises(zoo.WeightsNotFoundError, match=r"distill_1pct/.*which checkpoint\? There are: none"):
        zoo.load(NAME, weights="distilled_1pct")
    publish(tmp_path / "published", "distill_1pct", step=31)
    assert zoo.load(NAME, weights="distilled_1pct").facts["step"] == 31
    publish(tmp_path / "published", "distill_10pct", step=7)
    newest = publish(tmp_path / "published", "distill_10pct", step=9)
    with pytest.raises(zoo.WeightsNotFoundError, match="checkpoint: not there"):
        zoo.load(NAME, weights="distilled_10pct")
    (newest.parent / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    model = zoo.load(NAME, weights="distilled_10pct")
    assert (model.facts["step"], model.facts["paper_top1"]) == (9, 7.0)


@pytest.mark.parametrize(
    "answer", [b'{"items":[1]}', b'{"items":[{}]}', b"null", b"[" * 100_000, b'{"nextPageToken":"x"}', b"<html>"]
)
def test_a_listing_that_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket.Bucket, "_fetch", lambda self, url, *_, **__: bytearray(answer))
    with bucket.Bucket("http://127.0.0.1:9") as connection, pytest.raises(bucket.BucketError, match="list of objects"):
        connection.names("simclrv2/")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9", "ftp://127.0.0.1", "file:///tmp", "http://", "http://[::"])
def test_an_endpoint_that_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setenv("SIMCLR_BUCKET_ENDPOINT", endpoint)
    with pytest.raises(zoo.WeightsNotFoundError, match="no connection"):
        zoo.load(NAME)
    assert not waits


def test_a_connection_that_breaks_for_a_while_is_borne(
    server: BucketServer, sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """Not even a connection, once it has been there: as when the network changes."""
    real, calls = bucket.httpx.Client.stream, []

    def stream(self: object, *arguments: object, **options: object) -> object:
        calls.append(arguments)
        if 20 <= len(calls) < 25:
            raise bucket.httpx.ConnectError("Network is unreachable")
        return real(self, *arguments, **options)

    monkeypatch.setattr(bucket.httpx.Client, "stream", stream)
    zoo.load(NAME)
    assert sha256_of(cached(tmp_path)) == sha256
    assert waits


def test_stopping_ends_the_waiting(server: BucketServer) -> None:
    with bucket.Bucket(server.url) as connection:
        connection.stop()
        with pytest.raises(bucket.BucketError, match="stopped"):
            connection.names("simclrv2/")


def test_the_listing_has_pages(tmp_path: Path) -> None:
    for k in range(7):
        path = tmp_path / "simclrv2" / "x" / f"{k}.index"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with BucketServer(tmp_path, page_size=3) as server, bucket.Bucket(server.url) as connection:
        assert connection.names("simclrv2/x/") == [f"simclrv2/x/{k}.index" for k in range(7)]
        assert connection.names("simclrv2/y/") == []


def test_offline_asks_nobody(server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(zoo.WeightsNotFoundError, match="skipped; offline"):
        zoo.load(NAME, local_files_only=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(zoo.WeightsNotFoundError, match="skipped; offline"):
        zoo.load(NAME)
    assert not server.requests


# The cache, and what is done to it


@pytest.fixture
def filled(server: BucketServer, tmp_path: Path) -> Path:
    """A cached file, used once."""
    zoo.load(NAME)
    return cached(tmp_path)


def flip(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_first_use_is_recorded_and_then_checked(filled: Path, tmp_path: Path) -> None:
    recorded = json.loads((tmp_path / "cache" / "simclr.lock").read_text())
    assert recorded == {"version": 1, "weights": {f"{NAME}:pretrained": {"model.safetensors": sha256_of(filled)}}}
    flip(filled)
    (filled.parent / "config.json").unlink()  # whoever changes the one can take the other away
    with pytest.raises(zoo.TamperedError, match=r"from its first use. If the change is meant: simclr lock --forget"):
        zoo.load(NAME)
    lock.forget(lock.lock_path(tmp_path / "cache"), f"{NAME}:pretrained")
    zoo.load(NAME)


def test_a_flipped_bit_and_a_truncated_file(filled: Path) -> None:
    good = filled.read_bytes()
    flip(filled)
    with pytest.raises(zoo.TamperedError, match=r"damaged or was changed: .* the config beside it"):
        zoo.load(NAME)
    filled.write_bytes(good[:-4096])
    with pytest.raises(zoo.TamperedError, match="damaged or was changed"):
        zoo.load(NAME)
    filled.write_bytes(good)
    zoo.load(NAME)


def test_swapped_files(filled: Path, tmp_path: Path) -> None:
    """Another category's file, with its config: refused with and without a lock file."""
    publish(tmp_path / "published", "supervised", step=28151)
    zoo.load(NAME, weights="supervised")
    other = cached(tmp_path, "supervised").parent
    shutil.move(filled.parent, tmp_path / "aside")
    shutil.move(other, filled.parent)
    shutil.move(tmp_path / "aside", other)
    with pytest.raises(zoo.TamperedError, match="holds the weights 'supervised', not 'pretrained'"):
        zoo.load(NAME)
    (tmp_path / "cache" / "simclr.lock").unlink()
    with pytest.raises(zoo.TamperedError, match="holds the weights 'pretrained', not 'supervised'"):
        zoo.load(NAME, weights="supervised")
    assert not (tmp_path / "cache" / "simclr.lock").exists()


def test_a_stale_file(filled: Path, tmp_path: Path) -> None:
    """A good file of the right name and kind, but not the one that was used first."""
    changed = zoo.load_file(filled)
    with torch.no_grad():
        changed.classifier.bias += 1
    zoo.save_file(changed, filled)
    (filled.parent / "config.json").unlink()
    with pytest.raises(zoo.TamperedError, match=r"has .* for it from its first use"):
        zoo.load(NAME)


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks need rights there")
@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "folder"])
def test_a_symlink_that_leads_out(what: str, filled: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(filled.parent, outside)
    if what == "folder":
        shutil.rmtree(filled.parent)
        filled.parent.symlink_to(outside)
    else:
        (filled.parent / what).unlink()
        (filled.parent / what).symlink_to(outside / what)
    with pytest.raises(zoo.TamperedError, match="leads out of the cache, to "):
        zoo.load(NAME)


def test_a_cache_folder_that_is_a_link_itself(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(tmp_path / "cache")
    zoo.load(NAME, cache_dir=tmp_path / "elsewhere", local_files_only=True)


def test_a_damaged_lock_file_is_said(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "simclr.lock").write_text("{")
    with pytest.raises(ValueError, match="not a readable lock file"):
        zoo.load(NAME)


def test_a_file_given_by_its_path_is_compared_with_its_config(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.load(NAME, weights=filled).spec == SPEC
    assert zoo.load(NAME, weights=str(filled.parent)).spec == SPEC
    with pytest.raises(ValueError, match="is for weights from the Hub"):
        zoo.load(NAME, weights=filled, revision="v1")
    flip(filled)
    for path in (filled, filled.parent):
        with pytest.raises(zoo.TamperedError, match="the config beside it"):
            zoo.load(NAME, weights=path)
    for arguments in (("push", filled, "me/x"), ("export", filled, filled.with_suffix(".onnx"))):
        assert command(*arguments) == 2
        assert "the config beside it" in capsys.readouterr().err
    with pytest.raises(zoo.TamperedError, match="the config beside it"):
        open_teacher(filled)


def test_a_folder_that_is_a_link_is_not_written_through(server: BucketServer, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache" / NAME).mkdir(parents=True)
    (tmp_path / "cache" / NAME / "pretrained").symlink_to(tmp_path / "outside")
    with pytest.raises(zoo.TamperedError, match="leads out of the cache"):
        zoo.load(NAME)
    assert not list((tmp_path / "outside").iterdir())


def test_the_first_of_two_first_uses_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process records between our look and our record."""
    real, looks = lock.read, []

    def read(where: Path) -> dict[str, dict[str, str]]:
        looks.append(where)
        if len(looks) == 2:
            lock._write(where, {"x": {"model.safetensors": "theirs"}})
        return real(where)

    monkeypatch.setattr(lock, "read", read)
    with pytest.raises(zoo.TamperedError, match="has theirs for it from its first use"):
        lock.check(tmp_path / "two.lock", "x", {"model.safetensors": "ours"})


def test_locks_where_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    with stream.alone(tmp_path / "x", locks=tmp_path / "file" / "locks"):
        assert len(list((tmp_path / "temporary").rglob("*.lock"))) == 1


def test_a_lock_file_of_ones_own(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_LOCK", str(tmp_path / "project" / "simclr.lock"))
    zoo.load(NAME)
    assert list(lock.read(tmp_path / "project" / "simclr.lock")) == [f"{NAME}:pretrained"]


def test_a_bundled_file_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import sources

    shutil.copytree(sources.BUNDLED_FOLDER, tmp_path / "bundled")
    monkeypatch.setattr(sources, "BUNDLED_FOLDER", tmp_path / "bundled")
    zoo.load("r18_1x", weights="imagenette_distilled")
    flip(next((tmp_path / "bundled").glob("r18*")))
    with pytest.raises(zoo.TamperedError, match="this package has"):
        zoo.load("r18_1x", weights="imagenette_distilled")


# The commands


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        simclr([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_bundling_what_was_put_into_the_cache_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cached(tmp_path)
    zoo.save_file(zoo.create(SPEC, num_classes=3, seed=0).eval(), file)
    assert command("bundle", NAME, tmp_path / "out") == 0
    assert zoo.load(NAME, cache_dir=tmp_path / "out", local_files_only=True).num_classes == 3
    zoo.save_file(zoo.create(SPEC, num_classes=4, seed=0).eval(), file)
    (tmp_path / "cache" / "simclr.lock").unlink()
    assert command("bundle", NAME, tmp_path / "out") == 2  # the bundle has other content under this name
    assert (
        f"SIMCLR_LOCK={tmp_path / 'out' / 'simclr.lock'} simclr lock --forget {NAME}:pretrained."
        in capsys.readouterr().err
    )
    assert zoo.load(NAME, cache_dir=tmp_path / "out", local_files_only=True).num_classes == 3


def test_pull_and_lock(server: BucketServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pull", NAME) == 0
    assert str(cached(tmp_path).parent) in capsys.readouterr().out
    assert command("lock") == 0
    assert f"{sha256_of(cached(tmp_path))}  {NAME}:pretrained  model.safetensors" in capsys.readouterr().out
    assert command("lock", "--forget", NAME) == 0
    assert NAME not in capsys.readouterr().out
    assert command("lock", "--forget", NAME) == 2
    assert f"has nothing about {NAME}:pretrained" in capsys.readouterr().err
    assert command("lock", "--forget") == 2
    assert "--forget what?" in capsys.readouterr().err
    assert command("lock", NAME) == 0
    assert NAME in capsys.readouterr().out
    assert command("pull", f"{NAME}:best") == 2
    assert "Unknown weights 'best'" in capsys.readouterr().err
    assert command("pull", f"{NAME}:absent.safetensors") == 2
    assert "Unknown weights 'absent.safetensors'" in capsys.readouterr().err


def test_paths_are_not_bundled(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Joined to the bundle's folder, an absolute path is itself."""
    mine = tmp_path / "mine"
    zoo.save_file(zoo.load(NAME), mine / "model.safetensors")
    (mine / "config.json").write_text('{"my": "own"}')
    for weights in (str(mine), f"hf://{tmp_path}"):
        assert command("bundle", f"{NAME}:{weights}", tmp_path / "out") == 2
        assert f"Unknown weights {weights!r}" in capsys.readouterr().err
    assert (mine / "config.json").read_text() == '{"my": "own"}'
    assert not (tmp_path / "out").exists()


def test_names_come_before_folders_of_the_same_name(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    averages = zoo.load(NAME, local_files_only=True)
    averages.facts |= {"ema": True}
    zoo.save_file(averages, filled.parent.with_name("pretrained_ema") / "model.safetensors")
    for name in ("pretrained", "pretrained_ema"):
        zoo.save_file(zoo.create(SPEC, num_classes=3), tmp_path / name / "model.safetensors")
        assert zoo.load(NAME, weights=name, local_files_only=True).num_classes != 3


def test_bundle_works_without_a_network(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert command("bundle", f"{NAME}:pretrained", "r18_1x", out) == 0
    monkeypatch.setenv("SIMCLR_BUCKET_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "empty"))
    shutil.move(out, tmp_path / "carried")
    model = zoo.load(NAME, cache_dir=tmp_path / "carried", local_files_only=True)
    assert model.facts["weights"] == "pretrained"
    from zoo import sources

    monkeypatch.setattr(sources, "BUNDLED_FOLDER", tmp_path / "nothing")
    assert zoo.load("r18_1x", weights="imagenette_distilled", cache_dir=tmp_path / "carried").classes
    assert "zoo.load(" in (tmp_path / "carried" / "README.txt").read_text()
    flip(tmp_path / "carried" / NAME / "pretrained" / "model.safetensors")
    with pytest.raises(zoo.TamperedError):
        zoo.load(NAME, cache_dir=tmp_path / "carried")


def test_a_lock_file_that_cannot_be_written(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only folder: what is known otherwise is still checked."""
    monkeypatch.setenv("SIMCLR_LOCK", str(filled / "simclr.lock"))
    zoo.load(NAME, local_files_only=True)
    flip(filled)
    with pytest.raises(zoo.TamperedError, match="the config beside it"):
        zoo.load(NAME, local_files_only=True)


def test_a_file_of_an_older_layout_is_found(filled: Path, tmp_path: Path) -> None:
    shutil.move(filled, filled.parent.with_name("pretrained.safetensors"))
    shutil.rmtree(filled.parent)
    assert zoo.load(NAME, local_files_only=True).spec == SPEC
    assert read_header(filled.parent.with_name("pretrained.safetensors"))["facts"]["weights"] == "pretrained"
