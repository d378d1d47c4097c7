"""The published ImageNet lists, fetched from a loopback server that misbehaves, and labels by every name."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from training import subsets
from training.subsets import NameList, imagenet_subset, labelled_images, subset_names
from zoo.files import cache_dir

NAMES = ["n03000002_7.JPEG", "n01000001_12.JPEG", "n03000002_1.JPEG"]
CONTENT = "".join(f"{name}\n" for name in NAMES).encode()
PATH = "/google-research/simclr/master/imagenet_subsets/1percent.txt"


class Home:
    """A server of one file. ``faults``: what goes wrong with the next requests, a status, "cut" or bytes to send."""

    def __init__(self) -> None:
        self.faults: list[int | str | bytes] = []
        self.asked: list[str] = []
        home = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                home.asked.append(self.path)
                fault = home.faults.pop(0) if home.faults else CONTENT
                self.send_response(fault if isinstance(fault, int) else 200)
                body = fault if isinstance(fault, bytes) else CONTENT
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(body[:10] if fault == "cut" else body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    made = Home()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SIMCLR_SUBSETS_ENDPOINT", made.url + "/")
    monkeypatch.setattr(subsets, "_WAIT", 0.0)
    small = NameList("1percent.txt", len(NAMES), len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(subsets.LISTS, "1pct", small)
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def train(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    for name in [*NAMES, "n02000003_5.JPEG"]:
        (folder / name[:9]).mkdir(parents=True, exist_ok=True)
        (folder / name[:9] / name).touch()
    (folder / "notes").mkdir()
    return folder


def in_cache() -> list[str]:
    return sorted(path.name for path in cache_dir().rglob("*") if path.is_file())


def test_the_pinned_lists() -> None:
    # A line is a wnid of nine characters, an underscore, a number of at most 6 digits, ".JPEG" and a line feed.
    for wanted in subsets.LISTS.values():
        assert 17 * wanted.count <= wanted.nbytes <= 22 * wanted.count
        assert len(bytes.fromhex(wanted.sha256)) == 32
    assert [wanted.count for wanted in subsets.LISTS.values()] == [12_811, 128_116]


def test_a_list_is_fetched_once_and_kept(home: Home) -> None:
    assert subset_names("1pct") == NAMES
    assert subset_names("1pct") == NAMES
    assert home.asked == [PATH]
    assert in_cache() == ["1percent.txt"]
    (cache_dir() / "imagenet_subsets" / "1percent.txt").write_bytes(CONTENT[:-1])  # damaged: fetched anew
    assert subset_names("1pct") == NAMES
    assert home.asked == [PATH, PATH]


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        ([CONTENT.swapcase()], r"not the published list \(SHA-256 [0-9a-f]{12}\.\.\. instead of", 1),
        ([CONTENT + b"n01000001_1.JPEG\n"], r"not the published list \(\d+ bytes instead of 52\)", 1),
        ([404], "HTTP status 404", 1),
        ([503] * 3, "HTTP status 503", 3),
        (["cut"] * 3, "RemoteProtocolError", 3),
    ],
)
def test_what_is_not_the_list_is_refused_and_not_kept(
    home: Home, faults: list[int | str | bytes], message: str, requests: int
) -> None:
    home.faults = faults
    with pytest.raises(OSError, match=message) as error:
        subset_names("1pct")
    assert home.url + PATH in str(error.value)
    assert "put it at" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(home.asked) == requests
    assert in_cache() == []


def test_a_cut_connection_and_a_busy_server_are_asked_again(home: Home) -> None:
    home.faults = ["cut", 503]
    assert subset_names("1pct") == NAMES
    assert len(home.asked) == 3


def test_without_a_network(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        subset_names("1pct")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("SIMCLR_SUBSETS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="no connection"):
        subset_names("1pct")
    assert home.asked == []


def test_a_list_may_be_given(home: Home, tmp_path: Path) -> None:
    given = tmp_path / "list.txt"
    given.write_bytes(CONTENT)
    assert subset_names("1pct", file=given) == NAMES
    given.write_bytes(CONTENT[17:])
    with pytest.raises(ValueError, match=r"list\.txt: not the published list 1percent\.txt \(35 bytes instead of 52\)"):
        subset_names("1pct", file=given)
    with pytest.raises(ValueError, match="no such file"):
        subset_names("1pct", file=tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"Unknown subset '5pct'\. Choose from: 1pct, 10pct"):
        subset_names("5pct")  # type: ignore[arg-type]
    assert home.asked == []


def test_images_of_a_list_in_class_folders(home: Home, train: Path) -> None:
    found = imagenet_subset("1pct", train)
    assert [path.relative_to(train).as_posix() for path in found.paths] == [f"{name[:9]}/{name}" for name in NAMES]
    assert found.classes == ("n01000001", "n02000003", "n03000002")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 2]


def test_images_of_a_list_in_one_folder(home: Home, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    found = imagenet_subset("1pct", tmp_path)
    assert found.paths == tuple(tmp_path / name for name in NAMES)
    assert found.classes == ("n01000001", "n03000002")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1]


def test_missing_images_are_counted_and_the_first_named(home: Home, train: Path) -> None:
    for name in NAMES[1:]:
        (train / name[:9] / name).unlink()
    with pytest.raises(ValueError, match=r"2 of the 3 images of imagenet_1pct .* the first is n01000001_12\.JPEG"):
        imagenet_subset("1pct", train)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        imagenet_subset("1pct", train / "nowhere")


def test_labels_by_every_name(home: Home, train: Path, image_folder: Path) -> None:
    listed = labelled_images(train, Path("imagenet_1pct"))  # as the command line gives it
    assert [path.name for path in listed.paths] == NAMES
    folders = labelled_images(image_folder)
    assert np.bincount(folders.labels).tolist() == [12, 12, 12]
    table = image_folder.parent / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{p.relative_to(image_folder)},x\n" for p in folders.paths[:5]))
    assert labelled_images(image_folder, table).paths == folders.paths[:5]
    third = labelled_images(image_folder, None, 1 / 3, 7)
    assert np.bincount(third.labels).tolist() == [4, 4, 4]
    assert third.paths == labelled_images(image_folder, share=1 / 3, seed=7).paths
    assert third.paths != labelled_images(image_folder, share=1 / 3, seed=8).paths
    with pytest.raises(
        ValueError, match=r"Unknown labels 'imagenet_5pct'\. Choose from: imagenet_1pct, imagenet_10pct"
    ):
        labelled_images(train, "imagenet_5pct")
