"""The loopback servers do what they say: the Hub with its real client, the bucket with one request for each claim."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from bucket_server import EXTRA, BucketServer, Fault
from conftest import run_client
from hub_server import HubServer
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

REPO = "me/tiny"
WEIGHTS = bytes(range(251)) * 800  # about 200 KB
UPLOAD = """
import sys, huggingface_hub
_, repo, folder = sys.argv
api = huggingface_hub.HfApi()
api.create_repo(repo, exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="first")
again = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="nothing new")
assert first.oid == again.oid
print(huggingface_hub.snapshot_download(repo, revision="main"))
"""
DOWNLOAD = """
import sys, huggingface_hub
_, repo = sys.argv
print(huggingface_hub.snapshot_download(repo, revision="v1"))
"""
BUCKET = "/simclr-checkpoints"
NAME = f"{BUCKET}/r50_1x_sk0/model.ckpt.data"
CONTENT = bytes(range(256)) * 4


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "onnx" / "model.onnx").write_bytes(WEIGHTS[:1000])
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with a repository of small files: nothing that asks the client of this process for LFS or Xet."""
    with HubServer(tmp_path / "hub") as server:
        api = huggingface_hub.HfApi(endpoint=server.url, token=server.token)
        api.create_repo(REPO)
        api.upload_file(repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="config.json", commit_message="first")
        yield server


def assert_same_files(snapshot: str, folder: Path) -> None:
    files = [file.relative_to(folder) for file in folder.rglob("*.*")]
    assert len(files) == 3
    for file in files:
        assert (Path(snapshot) / file).read_bytes() == (folder / file).read_bytes()


def test_lfs_uploads_come_back(model_folder: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub", xet=False, multipart_over=64 << 10) as hub:
        snapshot = run_client(
            UPLOAD, REPO, str(model_folder), url=hub.url, token=hub.token, home=tmp_path / "home", xet=False
        )
        assert_same_files(snapshot, model_folder)
        assert hub.read(REPO, "model.safetensors") == WEIGHTS
        assert hub.commits(REPO) == ["initial commit", "first"]
        assert sum("/part/" in path for _, path in hub.log) == 4
        assert not any("xet" in path for _, path in hub.log)
        api = huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
        siblings = api.repo_info(REPO, files_metadata=True).siblings or []
        assert {file.rfilename: file.size for file in siblings if file.lfs} == {
            "model.safetensors": len(WEIGHTS),
            "onnx/model.onnx": 1000,
        }


def test_xet_uploads_come_back_also_without_xet_and_also_tampered_with(model_folder: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub") as hub:
        snapshot = run_client(
            UPLOAD, REPO, str(model_folder), url=hub.url, token=hub.token, home=tmp_path / "xet", xet=True
        )
        assert_same_files(snapshot, model_folder)
        assert hub.read(REPO, "model.safetensors") == WEIGHTS
        assert hub.commits(REPO) == ["initial commit", "first"]
        paths = [path for _, path in hub.log]
        assert f"/api/models/{REPO}/xet-write-token/main" in paths
        assert not any(path.endswith("model.safetensors") for path in paths)
        huggingface_hub.HfApi(endpoint=hub.url, token=hub.token).create_tag(REPO, tag="v1")
        assert_same_files(
            run_client(DOWNLOAD, REPO, url=hub.url, token=hub.token, home=tmp_path / "lfs", xet=False), model_folder
        )
        hub.tamper(REPO, "model.safetensors", lambda content: content[::-1])
        snapshot = run_client(DOWNLOAD, REPO, url=hub.url, token=hub.token, home=tmp_path / "tampered", xet=True)
        assert (Path(snapshot) / "model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_without_xet_the_client_cannot_upload_large_files(model_folder: Path, tmp_path: Path) -> None:
    with (
        HubServer(tmp_path / "hub", xet=False) as hub,
        pytest.raises(AssertionError, match=r"ConnectionError: .*404 Not Found.*xet-write-token"),
    ):
        run_client(UPLOAD, REPO, str(model_folder), url=hub.url, token=hub.token, home=tmp_path / "home", xet=True)


def test_commits_tags_and_branches(hub: HubServer) -> None:
    api = huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
    first = api.repo_info(REPO).sha
    changes = [
        huggingface_hub.CommitOperationAdd("docs/a note.md", b"hello"),
        huggingface_hub.CommitOperationDelete("config.json"),
    ]
    second = api.create_commit(REPO, changes, commit_message="second", parent_commit=first).oid
    stale = [huggingface_hub.CommitOperationAdd("other.json", b"{}")]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit(REPO, stale, commit_message="third", parent_commit=first)
    assert caught.value.response.status_code == 412
    api.create_tag(REPO, tag="v1", revision=first)
    api.create_branch(REPO, branch="next/try", revision="v1")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="a.txt", revision="next/try", commit_message="try")
    refs = api.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches}["main"] == second
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert hub.commits(REPO) == ["initial commit", "first", "second"]
    assert hub.commits(REPO, "next/try") == ["initial commit", "first", "try"]
    assert hub.files(REPO, "next/try") == [".gitattributes", "a.txt", "config.json"]
    assert [item.path for item in api.list_repo_tree(REPO)] == ["docs", ".gitattributes"]
    assert [item.path for item in api.list_repo_tree(REPO, "docs")] == ["docs/a note.md"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1")


def test_private_repositories_need_the_token(hub: HubServer) -> None:
    huggingface_hub.HfApi(endpoint=hub.url, token=hub.token).create_repo("me/secret", private=True)
    with pytest.raises(RepositoryNotFoundError):
        huggingface_hub.HfApi(endpoint=hub.url, token=False).repo_info("me/secret")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        huggingface_hub.HfApi(endpoint=hub.url, token="hf_other").create_repo("me/more")


def test_the_client_notices_a_changed_length_only(hub: HubServer, tmp_path: Path) -> None:
    def download(cache: str) -> bytes:
        place = tmp_path / cache
        path = huggingface_hub.hf_hub_download(REPO, "config.json", endpoint=hub.url, cache_dir=place, token=False)
        return Path(path).read_bytes()

    assert download("true") == b"{}"
    hub.tamper(REPO, "config.json", lambda content: content[:-1] + b"]")
    assert download("changed") == b"{]"
    assert hub.read(REPO, "config.json") == b"{}"
    hub.tamper(REPO, "config.json", lambda content: content + b"\n")
    with pytest.raises(OSError, match="should be of size 2 but has size 3"):
        download("longer")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[BucketServer]:
    for number in range(5):
        path = tmp_path / "bucket" / f"r50_1x_sk{number}" / "model.ckpt.data"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"secret")
    with BucketServer(tmp_path / "bucket", page_size=2) as server:
        yield server


def ask(
    server: BucketServer, path: str, wanted: str | None = None, *, method: str = "GET"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of one request; the range wanted is given as in the header."""
    with closing(http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=5)) as connection:
        connection.request(method, path, headers={"Range": wanted} if wanted else {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_objects_and_ranges(bucket: BucketServer) -> None:
    assert ask(bucket, NAME)[::2] == (200, CONTENT)
    status, headers, body = ask(bucket, NAME, "bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, CONTENT[10:20], "bytes 10-19/1024")
    assert ask(bucket, NAME, "bytes=1000-")[::2] == (206, CONTENT[1000:])
    status, headers, body = ask(bucket, NAME, "bytes=1024-2000")
    assert (status, headers["Content-Range"]) == (416, "bytes */1024")
    status, headers, body = ask(bucket, NAME, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "1024", b"")
    assert [request.range for request in bucket.requests] == [None, (10, 19), (1000, 1023), (1024, 2000), None]
    assert [request.sent for request in bucket.requests[:3]] == [1024, 10, 24]
    assert bucket.bytes_sent("_sk0/model.ckpt.data") == 1024 + 10 + 24 + bucket.requests[3].sent
    assert bucket.bytes_sent("nothing") == 0
    for path in (
        f"{BUCKET}/nothing",
        "/other/r50_1x_sk0/model.ckpt.data",
        f"{BUCKET}/../secret",
        f"{BUCKET}/%2e%2e/secret",
    ):
        assert ask(bucket, path)[0] == 404
    bucket.ranges = False
    assert ask(bucket, NAME, "bytes=10-19")[::2] == (200, CONTENT)


def test_one_connection_serves_many_requests(bucket: BucketServer) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", int(bucket.url.rsplit(":", 1)[1]), timeout=5)) as connection:
        sockets = set()
        for first in range(3):
            connection.request("GET", NAME, headers={"Range": f"bytes={first}-{first}"})
            sockets.add(connection.sock)
            assert connection.getresponse().read() == CONTENT[first : first + 1]
    assert len(sockets) == 1


def test_listing_comes_in_pages(bucket: BucketServer) -> None:
    def page(query: str) -> dict[str, Any]:
        status, _, body = ask(bucket, f"/storage/v1/b/simclr-checkpoints/o?{query}")
        assert status == 200
        return json.loads(body)

    names, token = [], ""
    while True:
        found = page(f"prefix=r50_1x&pageToken={token}")
        assert len(found["items"]) <= 2
        names += [item["name"] for item in found["items"]]
        assert {item["size"] for item in found["items"]} == {"1024"}
        token = found.get("nextPageToken", "")
        if not token:
            break
    assert names == [f"r50_1x_sk{number}/model.ckpt.data" for number in range(5)]
    assert len(page("prefix=r50&maxResults=1")["items"]) == 1
    assert page("prefix=r101") == {"kind": "storage#objects"}


def test_faults_come_once_each(bucket: BucketServer) -> None:
    wanted, part = "bytes=100-199", CONTENT[100:200]
    bucket.faults += [Fault("status", ".data", status=429, retry_after="7"), Fault("status", times=2)]
    status, headers, _ = ask(bucket, NAME, wanted)
    assert (status, headers["Retry-After"]) == (429, "7")
    assert [ask(bucket, NAME, wanted)[0] for _ in range(3)] == [503, 503, 206]

    bucket.faults.append(Fault("cut", at=0.25))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(bucket, NAME, wanted)
    assert (caught.value.partial, caught.value.expected) == (part[:25], 75)

    bucket.faults.append(Fault("short"))
    status, headers, body = ask(bucket, NAME, wanted)
    assert (status, body, headers["Content-Range"]) == (206, part[:50], "bytes 100-149/1024")

    bucket.faults.append(Fault("long"))
    status, headers, body = ask(bucket, NAME, wanted)
    assert (len(body), body[:100]) == (100 + EXTRA, part)
    assert headers["Content-Length"] == str(100 + EXTRA)

    bucket.faults.append(Fault("flip", at=0.5))
    _, _, body = ask(bucket, NAME, wanted)
    assert [place for place in range(100) if body[place] != part[place]] == [50]

    bucket.faults += [Fault("whole"), Fault("cut", suffix="another file")]
    assert ask(bucket, NAME, wanted, method="HEAD")[0] == 206
    assert ask(bucket, NAME, wanted)[::2] == (200, CONTENT)
    assert ask(bucket, NAME, wanted)[::2] == (206, part)
    assert [fault.suffix for fault in bucket.faults] == ["another file"]
