"""A loopback stand-in for the Hugging Face Hub: what its real client needs of the HTTP API to push and pull models."""

import base64
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".data", ".pt", ".npz", ".parquet")
LFS_OVER = 10 << 20  # bytes; a larger file goes to LFS whatever its name
GIT_ATTRIBUTES = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % suffix.encode() for suffix in LFS_SUFFIXES)
USER = "tester"
XET_READER = """
import sys, hf_xet
store, xet_hash, size, target = sys.argv[1:]
with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{store}") as group:
    group.start_download_file(hf_xet.XetFileInfo(xet_hash, int(size)), target)
"""


class HubError(Exception):
    """An answer other than success; the client picks its exception by the status and by ``code``."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} | (headers or {})


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def xet_hashes(shard: bytes) -> Iterator[tuple[str, str]]:
    """The (sha256, Xet hash) of every file in one of hf_xet's shards, whose file records lie right after the header.

    A record is a row of 48 bytes (hash, flags, number of segments), a row a segment, with bit 31 of the flags a second
    row a segment, and with bit 30 a last row that begins with the sha256. Hashes are four little-endian words.
    """
    row = 48
    place = row
    while shard[place : place + 32] != b"\xff" * 32:
        xet_hash = _four_words(shard, place)
        flags, segments = struct.unpack_from("<II", shard, place + 32)
        place += row * (1 + segments * (2 if flags >> 31 & 1 else 1))
        if flags >> 30 & 1:
            yield _four_words(shard, place), xet_hash
            place += row


def _four_words(shard: bytes, place: int) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", shard, place))


@dataclass(frozen=True)
class Entry:
    """A file of a commit: git's object id and its size; a large file is known by the sha256 of its content as well."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def key(self) -> str:
        """What the client compares, takes as etag, and what the content is stored under."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    parent: str | None
    tree: dict[str, Entry]


@dataclass
class Repo:
    """Commits by their hash, and the branches and tags that point at them."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, message: str, tree: dict[str, Entry]) -> Commit:
        parent = self.branches.get(branch)
        facts = [len(self.commits), parent, message, sorted((path, entry.key) for path, entry in tree.items())]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, parent, tree)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a full hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, oldest first."""
        commit: Commit | None = self.at(revision)
        found: list[Commit] = []
        while commit:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found[::-1]


class Store:
    """File contents: those sent over HTTP lie under ``blobs``, those sent through Xet in hf_xet's own store ``cas``."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.cas = root / "cas"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.cas.mkdir(exist_ok=True)

    def add(self, content: bytes) -> Entry:
        """Keep a small file, as git would."""
        entry = Entry(git_oid(content), len(content))
        (self.blobs / entry.key).write_bytes(content)
        return entry

    def add_large(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "BadRequest", f"The content received is not that of LFS object {sha256}")
        (self.blobs / sha256).write_bytes(content)

    def large(self, sha256: str, size: int) -> Entry:
        """The entry of a large file, whose content must be here already."""
        if not (self.blobs / sha256).exists() and self.xet_hash(sha256) is None:
            raise HubError(400, "BadRequest", f"LFS pointer points to a file that does not exist: {sha256}")
        return Entry(git_oid(lfs_pointer(sha256, size)), size, sha256)

    def xet_hash(self, sha256: str) -> str | None:
        for shard in self.cas.rglob("shards/*.mdb"):
            found = dict(xet_hashes(shard.read_bytes())).get(sha256)
            if found:
                return found
        return None

    def path(self, entry: Entry) -> Path:
        """Where the content lies as a plain file; it is brought out of Xet's store when first asked for."""
        path = self.blobs / entry.key
        if not path.exists():
            assert entry.sha256
            self.add_large(entry.sha256, self._from_xet(str(self.xet_hash(entry.sha256)), entry.size))
        return path

    def _from_xet(self, xet_hash: str, size: int) -> bytes:
        """Read with hf_xet from a copy of its store, as the store's database opens in one process at a time."""
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(self.cas, Path(folder) / "cas")
            target = Path(folder) / "content"
            reader = [sys.executable, "-c", XET_READER, str(copy), xet_hash, str(size), str(target)]
            subprocess.run(reader, env=os.environ | {"HF_HOME": folder}, check=True)  # hf_xet writes its log there
            return target.read_bytes()


@dataclass(frozen=True)
class Call:
    """A request as the handlers see it; ``path`` is still percent-encoded, for a branch's name may have a slash."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


Handler = Callable[..., Response]
ROUTES: list[tuple[list[str], re.Pattern[str], bool, Handler]] = []
REPO_ID = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
MODEL = rf"/api/models/{REPO_ID}"


def route(methods: str, path: str, *, write: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler of the server, the call and the decoded groups of ``path``; ``write`` asks for the token."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((methods.split(), re.compile(path), write, handler))
        return handler

    return register


@route("GET", "/api/whoami-v2", write=True)
def whoami(hub: "HubServer", call: Call) -> Response:
    token = {"role": "write", "displayName": "loopback"}
    auth = {"type": "access_token", "accessToken": token}
    return JSONResponse({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "HubServer", call: Call) -> Response:
    return JSONResponse({"errors": [], "warnings": []})


@route("POST", "/api/repos/create", write=True)
def create_repo(hub: "HubServer", call: Call) -> Response:
    wanted = call.json()
    repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
    facts = {"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in hub.repos:
        return JSONResponse(facts | {"error": "You already created this model repo"}, status_code=409)
    hub.repos[repo_id] = Repo(private=wanted.get("visibility") == "private")
    hub.repos[repo_id].add("main", "initial commit", {".gitattributes": hub.store.add(GIT_ATTRIBUTES)})
    return JSONResponse(facts)


@route("DELETE", "/api/repos/delete", write=True)
def delete_repo(hub: "HubServer", call: Call) -> Response:
    wanted = call.json()
    repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
    hub.repo(call, repo_id)
    del hub.repos[repo_id]
    return JSONResponse({})


@route("POST", rf"{MODEL}/preupload/{REVISION}", write=True)
def preupload(hub: "HubServer", call: Call, repo_id: str, revision: str) -> Response:
    """How each file is to be sent, and what is there already: the client leaves out what has not changed."""
    tree = hub.repo(call, repo_id).at(revision).tree
    files = []
    for file in call.json()["files"]:
        path = file["path"]
        large = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_OVER
        known = tree[path].key if path in tree else None
        mode = "lfs" if large else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
    return JSONResponse({"files": files})


@route("GET", rf"{MODEL}/xet-(?P<kind>read|write)-token/{REVISION}")
def xet_token(hub: "HubServer", call: Call, repo_id: str, kind: str, revision: str) -> Response:
    """Leave to use the store, which is a folder: ``local://`` is hf_xet's own scheme for its tests."""
    hub.repo(call, repo_id)
    if not hub.xet:
        raise HubError(404, "NotFound", "Xet is not enabled on this server")
    if kind == "write" and not hub.knows(call):
        raise HubError(401, "Unauthorized", "Invalid username or password.")
    store, expiry = f"local://{hub.store.cas.resolve()}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "loopback", "X-Xet-Token-Expiration": str(expiry)}
    return JSONResponse({"casUrl": store, "accessToken": "loopback", "exp": expiry}, headers=headers)


@route("POST", rf"/{REPO_ID}\.git/info/lfs/objects/batch", write=True)
def lfs_batch(hub: "HubServer", call: Call, repo_id: str) -> Response:
    hub.repo(call, repo_id)
    objects = [lfs_instructions(hub, wanted["oid"], wanted["size"]) for wanted in call.json()["objects"]]
    return JSONResponse({"transfer": "multipart", "objects": objects})


def lfs_instructions(hub: "HubServer", oid: str, size: int) -> dict[str, Any]:
    """Where an object's bytes are to be sent: nowhere if they are here, else at one address or one for each part."""
    if (hub.store.blobs / oid).exists():
        return {"oid": oid, "size": size}
    url = f"{hub.url}/lfs/{oid}"
    upload: dict[str, Any] = {"href": url, "header": {}}
    if size > hub.multipart_over:
        numbers = range(1, -(-size // hub.multipart_over) + 1)
        parts = {str(number): f"{url}/part/{number}" for number in numbers}
        upload = {"href": f"{url}/complete", "header": {"chunk_size": str(hub.multipart_over)} | parts}
    return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{url}/verify", "header": {}}}}


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(hub: "HubServer", call: Call, oid: str) -> Response:
    hub.store.add_large(oid, call.body)
    return Response()


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)")
def lfs_put_part(hub: "HubServer", call: Call, oid: str, number: str) -> Response:
    hub.parts.setdefault(oid, {})[int(number)] = call.body
    return Response(headers={"ETag": hashlib.md5(call.body).hexdigest()})


@route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete")
def lfs_complete(hub: "HubServer", call: Call, oid: str) -> Response:
    parts = hub.parts.pop(oid)
    hub.store.add_large(oid, b"".join(parts[part["partNumber"]] for part in call.json()["parts"]))
    return JSONResponse({})


@route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(hub: "HubServer", call: Call, oid: str) -> Response:
    if not (hub.store.blobs / oid).exists():
        raise HubError(404, "NotFound", f"No LFS object {oid}")
    return JSONResponse({})


@route("POST", rf"{MODEL}/commit/{REVISION}", write=True)
def commit(hub: "HubServer", call: Call, repo_id: str, revision: str) -> Response:
    """The whole commit or none of it: a line of JSON says its message and parent, and a line each says a change."""
    repo = hub.repo(call, repo_id)
    header, *changes = [json.loads(line) for line in call.body.splitlines() if line]
    head = repo.at(revision)
    if not head.sha.startswith(header["value"].get("parentCommit", "")):
        raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    tree = dict(head.tree)
    for change in changes:
        apply_change(hub.store, tree, change["key"], change["value"])
    sha = repo.add(revision, header["value"]["summary"], tree).sha
    return JSONResponse({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo_id}/commit/{sha}"})


def apply_change(store: Store, tree: dict[str, Entry], kind: str, value: dict[str, Any]) -> None:
    path = value["path"]
    match kind:
        case "file":
            tree[path] = store.add(base64.b64decode(value["content"]))
        case "lfsFile":
            tree[path] = store.large(value["oid"], value["size"])
        case "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        case "deletedFolder":
            for name in [name for name in tree if name.startswith(f"{path.rstrip('/')}/")]:
                del tree[name]
        case _:
            raise HubError(400, "BadRequest", f"Unknown change {kind!r}")


@route("POST", rf"{MODEL}/tag/{REVISION}", write=True)
def create_tag(hub: "HubServer", call: Call, repo_id: str, revision: str) -> Response:
    repo = hub.repo(call, repo_id)
    return add_ref(repo, repo.tags, call.json()["tag"], revision)


@route("POST", rf"{MODEL}/branch/(?P<name>[^/]+)", write=True)
def create_branch(hub: "HubServer", call: Call, repo_id: str, name: str) -> Response:
    repo = hub.repo(call, repo_id)
    return add_ref(repo, repo.branches, name, call.json().get("startingPoint", "main"))


def add_ref(repo: Repo, refs: dict[str, str], name: str, revision: str) -> Response:
    if name in refs:
        raise HubError(409, "Conflict", f"Reference already exists: {name}")
    refs[name] = repo.at(revision).sha
    return JSONResponse({})


@route("DELETE", rf"{MODEL}/(?P<kind>tag|branch)/(?P<name>[^/]+)", write=True)
def delete_ref(hub: "HubServer", call: Call, repo_id: str, kind: str, name: str) -> Response:
    repo = hub.repo(call, repo_id)
    refs = repo.tags if kind == "tag" else repo.branches
    if refs.pop(name, None) is None:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")
    return JSONResponse({})


@route("GET", rf"{MODEL}/refs")
def list_refs(hub: "HubServer", call: Call, repo_id: str) -> Response:
    repo = hub.repo(call, repo_id)

    def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

    branches, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
    return JSONResponse({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@route("GET", rf"{MODEL}/tree/{REVISION}(?:/(?P<path>.+))?")
def list_tree(hub: "HubServer", call: Call, repo_id: str, revision: str, path: str) -> Response:
    tree = hub.repo(call, repo_id).at(revision).tree
    prefix = f"{path}/" if path else ""
    files = [name for name in sorted(tree) if name.startswith(prefix)]
    if path and not files:
        raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    below = [name for name in sorted(folders - {"."}) if name.startswith(prefix)]
    items = [tree_folder(name) for name in below] + [tree_file(hub, repo_id, name, tree[name]) for name in files]
    if call.query.get("recursive", "").lower() != "true":
        items = [item for item in items if "/" not in item["path"].removeprefix(prefix)]
    return JSONResponse(items)


def tree_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


def tree_file(hub: "HubServer", repo_id: str, path: str, entry: Entry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.sha256:
        item["lfs"] = lfs_facts("oid", entry.sha256, entry.size)
    if xet_hash := hub.xet_hash(repo_id, path, entry):
        item["xetHash"] = xet_hash
    return item


def lfs_facts(name: str, sha256: str, size: int) -> dict[str, Any]:
    return {name: sha256, "size": size, "pointerSize": len(lfs_pointer(sha256, size))}


@route("GET", rf"{MODEL}(?:/revision/{REVISION})?")
def model_info(hub: "HubServer", call: Call, repo_id: str, revision: str) -> Response:
    repo = hub.repo(call, repo_id)
    head = repo.at(revision or "main")
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in head.tree]
    if call.query.get("blobs", "").lower() == "true":
        for sibling, entry in zip(siblings, head.tree.values(), strict=True):
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.sha256:
                sibling["lfs"] = lfs_facts("sha256", entry.sha256, entry.size)
    facts = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": head.sha, "private": repo.private}
    return JSONResponse(facts | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})


@route("GET HEAD", rf"/{REPO_ID}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: "HubServer", call: Call, repo_id: str, revision: str, path: str) -> Response:
    head = hub.repo(call, repo_id).at(revision)
    entry = head.tree.get(path)
    if entry is None:
        raise HubError(404, "EntryNotFound", f"No {path} in {head.sha}", {"X-Repo-Commit": head.sha})
    headers = {"X-Repo-Commit": head.sha, "ETag": f'"{entry.key}"', "Accept-Ranges": "bytes"}
    if entry.sha256:
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    if xet_hash := hub.xet_hash(repo_id, path, entry):
        token = f"{hub.url}/api/models/{repo_id}/xet-read-token/{head.sha}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": token, "Link": f'<{token}>; rel="xet-auth"'}
    if call.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(entry.size)})
    if change := hub.changes.get((repo_id, path)):
        return Response(change(hub.store.path(entry).read_bytes()), headers=headers)
    return FileResponse(hub.store.path(entry), headers=headers)


class HubServer:
    """A Hub on the loopback address, for as long as the ``with`` block lasts.

    root: an empty folder for what is uploaded. token: the one that may write, and may read private repositories.
    xet: whether the server speaks Xet; without it a client needs ``HF_HUB_DISABLE_XET=1`` to upload large files.
    multipart_over: larger LFS files are sent in parts of this many bytes.

    A new repository has one commit, "initial commit", with a ``.gitattributes``. The store behind Xet is hf_xet's own
    ``local://`` one, which two processes cannot open at the same time: run Xet clients one after the other.
    """

    def __init__(
        self, root: Path, *, token: str = "hf_loopback", xet: bool = True, multipart_over: int = 8 << 20
    ) -> None:
        self.store = Store(root)
        self.token = token
        self.xet = xet
        self.multipart_over = multipart_over
        self.url = ""
        self.log: list[tuple[str, str]] = []
        self.repos: dict[str, Repo] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.changes: dict[tuple[str, str], Callable[[bytes], bytes]] = {}

    def __enter__(self) -> "HubServer":
        config = uvicorn.Config(
            self._serve,
            host="127.0.0.1",
            port=0,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=5,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._uvicorn.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def commits(self, repo_id: str, revision: str = "main") -> list[str]:
        """The messages of the commits that lead to a revision, oldest first."""
        return [commit.message for commit in self.repos[repo_id].history(revision)]

    def files(self, repo_id: str, revision: str = "main") -> list[str]:
        return sorted(self.repos[repo_id].at(revision).tree)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The content as it was uploaded, whatever ``tamper`` does to downloads."""
        return self.store.path(self.repos[repo_id].at(revision).tree[path]).read_bytes()

    def tamper(self, repo_id: str, path: str, change: Callable[[bytes], bytes]) -> None:
        """Send changed bytes from now on, while etag, sha256 and size announced stay those of the true file.

        The file is then offered over HTTP only: Xet names content by its hash, and would not find the changed bytes.
        """
        self.changes[repo_id, path] = change

    def xet_hash(self, repo_id: str, path: str, entry: Entry) -> str | None:
        """The Xet hash to announce, if the file came through Xet and is to be offered so."""
        if not self.xet or not entry.sha256 or (repo_id, path) in self.changes:
            return None
        return self.store.xet_hash(entry.sha256)

    def knows(self, call: Call) -> bool:
        return call.headers.get("authorization") == f"Bearer {self.token}"

    def repo(self, call: Call, repo_id: str) -> Repo:
        """The repository, if there is one that this caller may see."""
        repo = self.repos.get(repo_id)
        if repo is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        if repo.private and not self.knows(call):
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        return repo

    async def _serve(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """One request. Handlers all run on this one thread, so that none sees another's work half done."""
        request = Request(scope, receive)
        path, query, headers = scope["raw_path"].decode(), dict(request.query_params), dict(request.headers)
        call = Call(request.method, path, query, headers, await request.body())
        self.log.append((call.method, unquote(path)))
        try:
            response = self._answer(call)
        except HubError as error:
            response = JSONResponse({"error": str(error)}, status_code=error.status, headers=error.headers)
        await response(scope, receive, send)

    def _answer(self, call: Call) -> Response:
        if "authorization" in call.headers and not self.knows(call):
            raise HubError(401, "Unauthorized", "Invalid credentials in Authorization header")
        for methods, path, write, handler in ROUTES:
            match = path.fullmatch(call.path)
            if match is None or call.method not in methods:
                continue
            if write and not self.knows(call):
                raise HubError(401, "Unauthorized", "Invalid username or password.")
            return handler(self, call, **{name: unquote(group or "") for name, group in match.groupdict().items()})
        raise HubError(404, "NotFound", f"This stand-in has no {call.method} {unquote(call.path)}")
