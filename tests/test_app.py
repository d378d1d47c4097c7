"""The app over HTTP, as gradio_client sees it, in a process without torch that may not leave this machine; the CLI."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from test_export import LABELS, tiny_student
from test_uploads import BAD

import export
import zoo
from app import cli
from app.uploads import MAX_BYTES

# Runs the command with torch out of reach, and writes down every look-up and connection that is not local.
GUARD = """
import socket, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "onnx", "safetensors"], None))
log, argv = sys.argv[1], sys.argv[2:]
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, "")
def note(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL:
        open(log, "a").write(f"{host}\\n")
look_up, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex
def guarded_look_up(host, *rest, **more):
    note(host)
    return look_up(host, *rest, **more)
def guarded(original):
    def call(self, address):
        if isinstance(address, tuple):
            note(address[0])
        return original(self, address)
    return call
socket.getaddrinfo = guarded_look_up
socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)
from app.cli import main
main(argv)
"""


class Served(NamedTuple):
    url: str
    model: Path
    gallery: Path
    log: Path
    cache: Path
    process: "subprocess.Popen[str]"


def start(base: Path, gallery: Path | None, *, model: Path | None = None) -> Served:
    """The app in a process of its own, on a free port; returns when the page is served."""
    model, log = model or tiny_student(base), base / "outside.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", GUARD, str(log), "app", "--model", str(model), "--port", str(port), "--no-browser"]
    command += ["--labels", str(base / "labels.csv")]
    if gallery is not None:
        command += ["--gallery", str(gallery)]
    environment = {**os.environ, "SIMCLR_CACHE": str(base / "app-cache")}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=sys.stderr)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line
    return Served(f"http://127.0.0.1:{port}", model, gallery or Path(), log, base / "app-cache", process)


def stop(served: Served) -> int:
    served.process.send_signal(signal.SIGINT)
    try:
        return served.process.wait(60)
    finally:
        served.process.kill()
        if served.process.stdout is not None:
            served.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.getbasetemp()
    rng = np.random.default_rng(0)
    for n in range(9):
        folder = base / "gallery" / f"kind <b>{n % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((64, 64)).save(folder / f"{n}.png")
    (base / "gallery" / "broken.jpg").write_text("no picture")
    running = start(base, base / "gallery")
    yield running
    assert stop(running) == 130
    assert not running.log.exists(), f"asked for: {running.log.read_text()}"


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from gradio_client import Client

    connected = Client(served.url, verbose=False)
    yield connected
    connected.close()


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(gradio_client|gradio|httpx|httpx2|websockets|starlette).*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # gradio_client leaves its threads' event loops open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def handle(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(str(path))


@pytest.mark.parametrize(
    "name", [name for name, (content, *_) in BAD.items() if 0 < len(content) <= MAX_BYTES]
)  # the client itself sends no others
def test_bad_uploads_get_one_line(client: Any, name: str, tmp_path: Path) -> None:
    content = BAD[name][0]
    path = tmp_path / name
    path.write_bytes(content)
    for endpoint in ("/classify", "/embed"):
        with pytest.raises(Exception, match=r"\.(jpg|png|gif): ") as caught:
            client.predict(handle(path), api_name=endpoint)
        said = str(caught.value)
        assert "\n" not in said
        assert "/" not in said.replace("&lt;/", "")  # no path of the server
        assert "<b>" not in said


def post(url: str, value: Any) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/etc/passwd", "http://203.0.113.7/a.png", "https://example.org/a.png"])
def test_only_uploads_are_read(served: Served, path: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    bare = {"path": path}  # which Gradio takes for an image that needs no check
    calls = (
        ("classify", [file]),
        ("classify", [file, 5, ""]),
        ("search", [file, 3, "", ""]),
        ("search", [file, 3]),
        ("classify", [bare, 5, ""]),
        ("classify", [bare]),
        ("embed", [bare]),
    )
    for name, data in calls:
        status, body = post(f"{served.url}/gradio_api/call/{name}", {"data": data})
        if status == 200:
            event = json.loads(body)["event_id"]
            with urllib.request.urlopen(f"{served.url}/gradio_api/call/{name}/{event}", timeout=60) as answer:
                body = answer.read().decode()
            assert "event: error" in body
        assert "root:" not in body
    assert not served.log.exists()


def test_files_of_the_machine_are_not_served(served: Served) -> None:
    for path in ("/etc/passwd", str(served.gallery / "kind <b>0" / "0.png"), str(served.model)):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{served.url}/gradio_api/file={urllib.request.quote(path)}", timeout=60)


def test_the_page(served: Served) -> None:
    with urllib.request.urlopen(served.url, timeout=60) as answer:
        page = answer.read().decode()
    for outside in ("fonts.googleapis", "cdnjs", "<iframe"):
        assert outside not in page
    config = json.loads(urllib.request.urlopen(f"{served.url}/config", timeout=60).read())
    texts = json.dumps([each for each in config["components"] if each["type"] == "html"])
    assert "kind <b>" not in texts
    assert "tiny <i>" not in texts  # the model's facts are escaped
    assert "tiny &lt;i&gt;" in texts
    assert "87.5%" in texts
    assert all(label in texts for label in LABELS)


def test_a_taken_port_is_said(served: Served) -> None:
    environment = {**os.environ, "SIMCLR_CACHE": str(served.cache)}
    port = served.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "app", "--model", str(served.model), "--port", port]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: Port {port} of 127.0.0.1 cannot be used (")
    assert done.stderr.count("\n") == 1


# The command line


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_version_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys) == (0, f"{zoo.__version__}\n", "")
    code, out, _ = run("--help", capsys=capsys)
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)
    code, out, _ = run("list", "r50_1x*", capsys=capsys)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["r50_1x", "r50_1x_sk"]
    assert "23,508,032" in out


@pytest.mark.parametrize(
    "start",
    ["import zoo; zoo.list_models()", "from app.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"],
)
def test_the_first_word_imports_nothing_heavy(start: str) -> None:
    code = (
        f"import sys; {start}\n"
        "print([name for name in ('torch', 'numpy', 'gradio', 'onnxruntime', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_classify_command(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    folder = served.gallery / "kind <b>0"
    code, out, err = run("classify", served.model, folder, "--json", capsys=capsys)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [Path(answer["path"]).name for answer in answers] == ["0.png", "3.png", "6.png"]
    assert sum(p["probability"] for p in answers[0]["predictions"]) == pytest.approx(1, abs=1e-5)
    code, out, err = run(
        "classify", served.model, folder / "0.png", served.gallery / "broken.jpg", "--top", 1, capsys=capsys
    )
    assert code == 1
    assert out.count("\n") == 1
    assert "broken.jpg: not an image in a known format" in err
    assert "1 of 2 files skipped" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "error: Unknown command 'lst'. Did you mean 'list'?"),
        (["list", "r50_9x"], "error: No model is called 'r50_9x'. Did you mean"),
        (["classify", "absent.onnx", "a.jpg"], "error: absent.onnx: no such file."),
        (["app", "--model", "absent.onnx", "--no-browser"], "error: absent.onnx: no such file."),
        (["export", "absent.safetensors", "a.onnx"], "error: absent.safetensors: no such file."),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(pattern: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo.registry, "list_models", interrupted)
    code, out, err = run("list", capsys=capsys)
    assert (code, out, err.strip()) == (130, "", "Stopped.")


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_export import tiny_model

    zoo.save_file(tiny_model(), tmp_path / "a.safetensors")
    out = tmp_path / "a.onnx"
    code, told, _ = run("export", tmp_path / "a.safetensors", out, "--weights", "fp16", "--opset", 17, capsys=capsys)
    assert code == 0
    assert told == f"# a.onnx\n\n{out.stat().st_size / 1e6:.1f} MB.\n"
    student = export.OnnxModel(out)
    assert (student.labels, student.weights, student.image_input) == (LABELS, "fp16", "float")
    code, _, error = run("export", tmp_path / "none.safetensors", out, capsys=capsys)
    assert (code, len(error.strip().splitlines())) == (2, 1)
    code, _, error = run("export", tmp_path / "a.safetensors", tmp_path, capsys=capsys)
    assert (code, error) == (2, f"error: {tmp_path}: a folder; name a file to write.\n")
    code, _, error = run("export", "r18_9x", out, capsys=capsys)
    assert code == 2
    assert "Unknown model 'r18_9x'" in error
