"""What only Milvus does: addresses, a graph's short lists under filters, servers that are not there."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from milvus_servers import client, milvus_server
from test_gallery import Colours, embed, renumbered

from app import milvus_index
from app.index import FileState, Filter, Record, index_model, open_index
from app.milvus_index import MilvusIndex

D = 16
KINDS = [pytest.param(kind, marks=pytest.mark.milvus) for kind in ("milvus-lite", "milvus")]


def test_addresses() -> None:
    for uri, server, name, kind in (
        ("http://127.0.0.1", "http://127.0.0.1:19530", "simclr", ""),
        ("https://host:443/birds", "https://host:443", "birds", ""),
        ("http://[::1]:7/_a9/?index=hnsw", "http://[::1]:7", "_a9", "HNSW"),
    ):
        assert milvus_index._address(uri) == (server, name, kind)
    for uri, reason in (
        ("http://host/a-b", "'a-b' cannot name a collection"),
        ("http://host/a/b", "'a/b' cannot name a collection"),
        ("http://host/9a", "'9a' cannot name a collection"),
        ("http://host:99999/a", "the port is no number"),
        ("http:///a", "no address of a Milvus server"),
        ("ftp://host/a", "no address of a Milvus server"),
        ("http://host/a?index=IVF_PQ", "the only option is index, one of FLAT, HNSW"),
        ("http://host/a?token=b", "the only option is index"),
        ("http://me:secret@host/a", "environment variable SIMCLR_MILVUS_TOKEN"),
    ):
        with pytest.raises(ValueError, match=reason) as told:
            open_index(uri, model="m", dimension=D)
        assert "secret" not in str(told.value)
        assert "\n" not in str(told.value)


def test_without_pymilvus_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/a: needs pymilvus; install it with: pip install"):
        open_index("http://127.0.0.1:9/a", model="m", dimension=D)


def test_expressions_hold_no_text_of_a_users() -> None:
    text = '\' or "x" == "x" \n%_\\'
    expression = milvus_index._expression(Filter(labels=(text, "cat"), folder=f"/{text}/%"))
    assert set(expression) <= set('0123456789abcdef."% []_,') | set("label_key in and place like")
    assert expression.count('"') == 6
    inside, folder = f"/{text}/%/more/", f"/{text}/%"
    assert milvus_index._place(inside).startswith(milvus_index._place(folder))
    assert not milvus_index._place(f"/{text}/%%").startswith(milvus_index._place(folder))


@pytest.mark.milvus
def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed: make test-milvus")
    for use in (lambda uri: open_index(uri, model="m", dimension=D), index_model):
        with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/a: the server cannot be reached") as told:
            use("http://127.0.0.1:9/a")
        assert "\n" not in str(told.value)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def uri(kind: str) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    yield f"{milvus_server(kind)}/{name}"
    with closing(client(kind)) as asked:
        for collection in (name, f"{name}_files"):
            asked.drop_collection(collection)


def pictures(vectors: np.ndarray, rare: set[int]) -> list[Record]:
    return [
        Record(f"id{n}", f"/p/{n % 7}/{n}.jpg", "rare" if n in rare else "usual", b"j%d" % n, vector)
        for n, vector in enumerate(vectors)
    ]


def test_a_graph_gives_no_short_list_under_a_filter(uri: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, D))[rng.integers(0, 30, 3000)] + 0.1 * rng.normal(size=(3000, D))
    query = vectors[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    rare = set(np.argsort(cosines)[:15].tolist())  # few, and far from the query: a graph does not come by
    with closing(open_index(f"{uri}?index=HNSW", model="m", dimension=D)) as index:
        assert isinstance(index, MilvusIndex)
        assert index.add(pictures(vectors, rare)) == 3000
        where = Filter(labels=("rare",))
        with closing(client(kind)) as asked:
            for step in (asked.flush, asked.release_collection, asked.load_collection):  # until then there is no graph
                step(uri.rpartition("/")[2])
        if kind == "milvus-lite":
            assert len(index._nearest(query.astype(np.float32), 10, where, ef=64)) < 10  # the trap
        hits = index.search(query, 10, where=where)
        assert [hit.id for hit in hits] == [f"id{n}" for n in sorted(rare, key=lambda n: -cosines[n])[:10]]
        np.testing.assert_allclose([hit.score for hit in hits], [cosines[int(hit.id[2:])] for hit in hits], atol=1e-3)
        assert len(index.search(query, 20, where=where)) == 15
        nearest = index._nearest
        monkeypatch.setattr(index, "_nearest", lambda *asked, ef: nearest(*asked, ef=64)[:3])  # more does not help
        assert [hit[:3] for hit in index.search(query, 10, where=where)] == [hit[:3] for hit in hits]
        monkeypatch.undo()
        hits = index.search(query, 10)
        assert len({hit.id for hit in hits} & {f"id{n}" for n in np.argsort(-cosines)[:10]}) >= 9
        assert index.facts()["search"].startswith("approximate (HNSW)")
        # many parts: a server's limit alone would cut without order
        assert [item.id for item in index.items(offset=1234, limit=50)] == [f"id{n}" for n in range(1234, 1284)]
        ids, unit = index.vectors()
        assert ids == [f"id{n}" for n in range(3000)]
        np.testing.assert_allclose(unit, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-5)
        assert index.labels() == {"rare": 15, "usual": 2985}
    with closing(open_index(uri, model="m", dimension=D)) as again:  # opened and loaded anew, as it was made
        assert again.facts()["search"].startswith("approximate (HNSW)")
        assert again.search(vectors[5], 1)[0].id == "id5"
    with pytest.raises(ValueError, match="has a HNSW index, not FLAT; leave out the option"):
        open_index(f"{uri}?index=FLAT", model="m", dimension=D)


def test_other_collections_are_left_alone(uri: str, kind: str) -> None:
    name = uri.rpartition("/")[2]
    with closing(client(kind)) as asked:
        asked.create_collection(name, dimension=D)
        for use in (lambda: open_index(uri, model="m", dimension=D), lambda: index_model(uri)):
            with pytest.raises(ValueError, match="no index of pictures"):
                use()
        assert asked.has_collection(name)


def test_what_is_too_long_is_refused_whole(uri: str) -> None:
    with closing(open_index(uri, model="m", dimension=D)) as index:
        good = pictures(np.eye(D), set())
        for bad, reason in (
            (good[1]._replace(label="x" * 1025), "label is longer than 1024 bytes"),
            (good[1]._replace(path="/" + "é" * 2048), "path is longer than 4096 bytes"),
            (good[1]._replace(thumbnail=b"x" * 60_000), "thumbnail of 60000 bytes"),
        ):
            with pytest.raises(ValueError, match=reason):
                index.add([good[0], bad])
        assert index.count() == 0
        longest = good[1]._replace(label="x" * 1024, path="/a" * 2048, thumbnail=os.urandom(49_000))
        assert index.add([longest]) == 1
        hit = index.search(np.ones(D), 1, where=Filter(labels=("x" * 1024,), folder="/a" * 2047))[0]
        assert hit.thumbnail == longest.thumbnail


def test_renumbered_files_keep_their_pictures_and_labels(uri: str, tmp_path: Path) -> None:
    with closing(open_index(uri, model=Colours.fingerprint, dimension=Colours.feature_width)) as index:
        check = renumbered(tmp_path / "many", index)
        assert embed(tmp_path / "many", index).embedded == 1
        check()


def test_stopped_between_pictures_and_files_the_next_call_does_both(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_index(uri, model="m", dimension=D)) as index:
        index.add(pictures(np.eye(D), set()))
        old = {f"/p/{n}/{n}.jpg": FileState(1, 1, f"id{n}", "usual", "") for n in range(3)}
        new = old | {"/p/0/0.jpg": FileState(2, 2, "id9", "usual", ""), "/q/1.jpg": FileState(2, 2, "id1", "usual", "")}
        index.note_files(old)
        call, written = index._call, []

        def stopped(method: str, *arguments: object, **named: object) -> object:
            if method in ("upsert", "delete"):
                if written:
                    raise KeyboardInterrupt
                written.append(method)
            return call(method, *arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(index, "_call", stopped)
            with pytest.raises(KeyboardInterrupt):
                index.note_files(new)
        assert index.files() == old
        index.note_files(new)
        assert index.files() == new
        assert index.get(["id0"]) == []
        assert [item.path for item in index.get(["id1", "id9"])] == ["/p/1/1.jpg", "/p/2/9.jpg"]


def test_acknowledged_is_kept_when_the_client_is_killed(uri: str) -> None:
    code = """
import sys, numpy as np
from app.index import Record, open_index
index = open_index(sys.argv[1], model="m", dimension=4)
for n in range(10000):
    index.add([Record(f"id{n}", f"/{n}.jpg", "", b"", np.ones(4))])
    print(n, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(10)]
    child.kill()
    lines += child.communicate()[0].splitlines(keepends=True)
    acknowledged = {f"id{int(line)}" for line in lines if line.endswith("\n")}
    with closing(open_index(uri, model="m", dimension=4)) as index:
        there = {item.id for item in index.items(limit=10_000)}
        assert acknowledged <= there
        assert len(there) - len(acknowledged) <= 1
        assert len(index.search(np.ones(4), 10_000)) == len(there)
