"""The index for more than one machine: the same pictures and the same answers, kept by a Milvus server."""

import base64
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from app.index import (
    ANY,
    DELETED,
    UPLOADED,
    FileState,
    Filter,
    Hit,
    Item,
    Record,
    below,
    checked_text,
    folder_of,
    other_model,
    unit_query,
    unit_rows,
)
from export.embeddings import normalise

FORMAT = "simclrv2-gallery-2"
TOKEN = "SIMCLR_MILVUS_TOKEN"  # the environment variable that holds "user:password" or an API key
PORT = 19530
PATIENCE = 60  # seconds for any one request
MOST = 16_384  # hits that a server gives at once

_ROWS = 64  # rows with vector and thumbnail in one request: servers take 4 MB or more
_KEYS = 500  # keys in one expression
_PART = 1000  # rows read at a time, about
_TEXT = {"path": 4096, "label": 1024, "image": 256, "problem": 2048}  # bytes
_THUMBNAIL = 65_535  # bytes in base64, the longest text there is
_EF = 64  # candidates of a search in an HNSW graph, at least
_INDEXES: dict[str, dict[str, int]] = {"FLAT": {}, "HNSW": {"M": 32, "efConstruction": 256}}

# No text of a user's ever enters an expression: what is asked for are hashes, stored beside the texts.


def _key(text: str) -> str:
    """What stands for a text in expressions; 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _place(folder: str) -> str:
    """What stands for a folder: hashes of its parts, so that what lies below it begins alike."""
    return "".join(f"{_key(part)[:16]}." for part in folder.rstrip("/").split("/"))


def _one_of(field: str, keys: Iterable[str]) -> str:
    return f"{field} in [" + ", ".join(f'"{key}"' for key in keys) + "]"


def _expression(where: Filter) -> str:
    parts = []
    if where.labels:
        parts.append(_one_of("label_key", map(_key, dict.fromkeys(where.labels))))
    if where.folder:
        parts.append(f'place like "{_place(below(where.folder))}%"')
    return " and ".join(parts)


class _Address(NamedTuple):
    server: str  # scheme, host and port
    collection: str
    kind: str  # "" = as it is, FLAT for a new one

    def __str__(self) -> str:
        return f"{self.server}/{self.collection}"


def _address(uri: str) -> _Address:
    parts = urlsplit(uri)
    try:
        port = parts.port or PORT
    except ValueError:
        raise ValueError(f"{uri}: the port is no number from 1 to 65535.") from None
    if parts.username or parts.password:
        raise ValueError(f"An index's address holds no password; put it into the environment variable {TOKEN}.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{uri}: no address of a Milvus server; write http://host:{PORT}/collection.")
    name = parts.path.strip("/") or "simclr"
    if not (name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit() and len(name) <= 200):
        raise ValueError(f"{uri}: {name!r} cannot name a collection; use letters, digits and _, a letter first.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    index = options.pop("index", "").upper()
    if options or (index and index not in _INDEXES):
        raise ValueError(f"{uri}: the only option is index, one of {', '.join(_INDEXES)}.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return _Address(f"{parts.scheme}://{host}:{port}", name, index)


def _connected(address: _Address) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise ValueError(f"{address}: needs pymilvus; install it with: pip install 'simclrv2[milvus]'") from None
    with _told(address):
        return MilvusClient(address.server, token=os.environ.get(TOKEN, ""), timeout=10)


@contextmanager
def _told(address: _Address) -> Iterator[None]:
    """The server's errors, in one line."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = " ".join(str(error.message or error).split())
        if "connect" in reason.lower() or "unavailable" in reason.lower():
            raise ValueError(f"{address}: the server cannot be reached; does it run? ({reason[:200]})") from None
        if "auth" in reason.lower():
            raise ValueError(f"{address}: the server wants another password; set {TOKEN}. ({reason[:200]})") from None
        raise ValueError(f"{address}: the server refused ({reason[:300]}).") from None


class _Catalogue(NamedTuple):
    """What the server cannot tell at once: the order of adding, and the counts by label and folder."""

    seen: tuple[int, int]  # version and number of pictures when it was read
    keys: list[str]
    labels: dict[str, int]
    folders: dict[str, int]


class MilvusIndex:
    """Pictures in two collections of a Milvus server, ``name`` and ``name_files``; see ``Index`` for the methods.

    Reads are strongly consistent: what has returned is seen by every later call. Search is exact (FLAT) unless the
    address ends in ``?index=HNSW``; a graph that gives fewer pictures than there are under a filter is asked again
    with more candidates, and at last those pictures are compared one by one.

    The server keeps neither order nor counts: ``items``, ``labels`` and ``folders`` read one small row of every picture
    after each change.

    Raises ValueError, in one line, for an address that is none, a server that cannot be reached, a missing pymilvus,
    a collection that is no index or belongs to another model.
    """

    def __init__(self, uri: str, *, model: str, dimension: int, create: bool = True) -> None:
        self._address = _address(uri)
        self.model, self.dimension = model, dimension
        self._images, self._side = self._address.collection, f"{self._address.collection}_files"
        self._lock = threading.Lock()
        self._catalogue: _Catalogue | None = None
        self._client = _connected(self._address)
        try:
            if not self._call("has_collection", self._images):
                if not create:
                    raise ValueError(f"{self._address}: no such index; make it with `simclr index`.")
                self._make()
            stored = _stored_model(self._client, self._address)
            if stored != (model, dimension):
                raise ValueError(other_model(str(self._address), stored, (model, dimension)))
            for name in (self._side, self._images):
                self._call("load_collection", name)
            self.index = str(self._call("describe_index", self._images, "vector").get("index_type", "FLAT"))
            if self._address.kind not in ("", self.index):
                raise ValueError(
                    f"{self._address}: has a {self.index} index, not {self._address.kind}; leave out the option, "
                    "or choose another name for the collection."
                )
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        from pymilvus import DataType

        def make(name: str, width: int, index: str, texts: dict[str, int], numbers: Sequence[str]) -> None:
            about = json.dumps({"format": FORMAT, "model": self.model, "dimension": self.dimension})
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
            schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
            for field, length in texts.items():
                schema.add_field(field, DataType.VARCHAR, max_length=length)
            for field in numbers:
                schema.add_field(field, DataType.INT64)
            params = self._client.prepare_index_params()
            params.add_index(
                "vector", index_name="vector", index_type=index, metric_type="COSINE", params=_INDEXES[index]
            )
            try:
                self._call("create_collection", name, schema=schema, index_params=params, consistency_level="Strong")
            except ValueError:  # another process may have been quicker
                if not self._call("has_collection", name):
                    raise

        text = {field: length for field, length in _TEXT.items() if field != "problem"}
        hashed = {"path_key": 64, "label_key": 64, "place": 65_535}
        # the pictures' collection last: where it is, all is
        make(self._side, 2, "FLAT", _TEXT | {"image_key": 64}, ("size", "modified"))
        self._call("load_collection", self._side)
        about = json.dumps({"format": FORMAT, "model": self.model, "dimension": self.dimension})
        if not self._meta("meta"):
            self._call("upsert", self._side, [_side_row("meta", path=about)])
        make(
            self._images,
            self.dimension,
            self._address.kind or "FLAT",
            text | hashed | {"thumbnail": _THUMBNAIL},
            ["number"],
        )

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        with _told(self._address):
            return getattr(self._client, method)(*arguments, timeout=PATIENCE, **named)

    def close(self) -> None:
        self._client.close()

    # Reading

    def _query(self, collection: str, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        rows = self._call(
            "query", collection, filter=expression, output_fields=list(fields), consistency_level="Strong"
        )
        return [dict(row) for row in rows]

    def _rows(self, keys: Iterable[str], fields: Sequence[str], *, many: int = _KEYS) -> dict[str, dict[str, Any]]:
        """Pictures by their keys."""
        return {row["key"]: row for row in self._by("key", keys, fields, self._images, many=many)}

    def _by(
        self, field: str, keys: Iterable[str], fields: Sequence[str], collection: str, *, many: int = _KEYS
    ) -> list[dict[str, Any]]:
        keys, rows = list(dict.fromkeys(keys)), []
        for start in range(0, len(keys), many):
            rows += self._query(collection, _one_of(field, keys[start : start + many]), ["key", *fields])
        return rows

    def _every(
        self, collection: str, where: Filter, fields: Sequence[str], *, part: int = _PART
    ) -> Iterator[list[dict[str, Any]]]:
        """All rows, in parts by how their keys begin: a server's limit cuts without order, hashes are spread evenly."""
        digits, rows = "0123456789abcdefg", self._count(collection, where)
        width = 0
        while rows > part * 16**width:
            width += 1
        condition = _expression(where)
        for number in range(16**width):
            start = f"{number:0{width}x}" if width else ""
            end = start[:-1] + digits[digits.index(start[-1]) + 1] if start else "g"
            bounds = f'key >= "{start}" and key < "{end}"'
            yield self._query(collection, f"{condition} and {bounds}" if condition else bounds, ["key", *fields])

    def _count(self, collection: str, where: Filter) -> int:
        return int(self._query(collection, _expression(where), ["count(*)"])[0]["count(*)"])

    def _meta(self, key: str) -> dict[str, Any]:
        rows = self._query(self._side, _one_of("key", [key]), ["path", "modified"])
        return rows[0] if rows else {}

    def count(self, where: Filter = ANY) -> int:
        return self._count(self._images, where)

    def version(self) -> int:
        return int(self._meta("version").get("modified", 0))

    def _changed(self) -> None:
        self._call("upsert", self._side, [_side_row("version", modified=max(time.time_ns(), self.version() + 1))])

    def get(self, ids: Sequence[str]) -> list[Item]:
        rows = self._rows(map(_key, ids), ["image", "path", "label"])
        return [_item(rows[key]) for key in map(_key, ids) if key in rows]

    def thumbnail(self, id: str) -> bytes | None:
        rows = self._rows([_key(id)], ["thumbnail"])
        return next((base64.b64decode(row["thumbnail"]) for row in rows.values()), None)

    def items(self, *, offset: int = 0, limit: int = 100, where: Filter = ANY) -> list[Item]:
        if where == ANY:
            keys = self._listed().keys
        else:
            found = [
                (row["number"], row["key"]) for part in self._every(self._images, where, ["number"]) for row in part
            ]
            keys = [key for _, key in sorted(found)]
        keys = keys[max(offset, 0) :][: max(limit, 0)]
        rows = self._rows(keys, ["image", "path", "label"])
        return [_item(rows[key]) for key in keys if key in rows]

    def labels(self) -> dict[str, int]:
        return dict(self._listed().labels)

    def folders(self) -> dict[str, int]:
        return dict(self._listed().folders)

    def _listed(self) -> _Catalogue:
        with self._lock:
            seen = (self.version(), self.count())
            if self._catalogue is None or self._catalogue.seen != seen:
                found, labels, folders = [], Counter[str](), Counter[str]()
                for part in self._every(self._images, ANY, ["number", "label", "path"]):
                    found += [(row["number"], row["key"]) for row in part]
                    labels.update(row["label"] for row in part)
                    folders.update(folder_of(row["path"]) for row in part)
                keys = [key for _, key in sorted(found)]
                self._catalogue = _Catalogue(seen, keys, dict(sorted(labels.items())), dict(sorted(folders.items())))
            return self._catalogue

    def vectors(self) -> tuple[list[str], np.ndarray]:
        rows, parts, width = [], [], max(_ROWS, 1_000_000 // self.dimension)
        for part in self._every(self._images, ANY, ["image", "number", "vector"], part=min(width, _PART)):
            rows += [(row["number"], row["image"]) for row in part]
            parts.append(np.array([row["vector"] for row in part], np.float32).reshape(len(part), self.dimension))
        order = sorted(range(len(rows)), key=rows.__getitem__)
        matrix = np.concatenate(parts)[order]
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix.flags.writeable = False
        return [rows[place][1] for place in order], matrix

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        rows = self._rows(map(_key, ids), ["vector"])
        kept = [np.array(rows[key]["vector"], np.float32) for key in map(_key, ids) if key in rows]
        return normalise(np.stack(kept)) if kept else np.empty((0, self.dimension), np.float32)

    def facts(self) -> dict[str, Any]:
        unreadable = sum(state.problem not in ("", DELETED) for state in self.files().values())
        listed = self._listed()
        how = "exact" if self.index == "FLAT" else f"approximate ({self.index})"
        return {
            "pictures": len(listed.keys),
            "labels": len([label for label in listed.labels if label]),
            "unreadable_files": unreadable,
            "dimension": self.dimension,
            "search": f"{how}, cosine similarity of the features",
            "where": str(self._address),
            "kept_as": "Milvus, vectors in fp32",
            "model": self.model,
        }

    # Search

    def search(self, query: np.ndarray, k: int = 12, *, where: Filter = ANY, thumbnails: bool = True) -> list[Hit]:
        query = unit_query(query, self.dimension)
        k = min(k, MOST)
        if k <= 0:
            return []
        found = self._nearest(query, k, where, ef=max(_EF, 2 * k))
        if len(found) < k and self.index != "FLAT" and len(found) < (there := min(k, self.count(where))):
            found = self._nearest(query, k, where, ef=min(max(4096, 8 * k), 32_768))
            if len(found) < there:
                found = self._one_by_one(query, k, where)
        fields = ["image", "path", "label", *(["thumbnail"] if thumbnails else [])]
        rows = self._rows([key for key, _ in found], fields, many=_ROWS * 4 if thumbnails else _KEYS)
        hits = []
        for key, score in found:
            if key in rows:
                picture = base64.b64decode(rows[key].get("thumbnail", ""))
                hits.append(Hit(*_item(rows[key]), min(max(score, -1.0), 1.0), picture))
        return hits

    def _nearest(self, query: np.ndarray, k: int, where: Filter, *, ef: int) -> list[tuple[str, float]]:
        params = {"metric_type": "COSINE", "params": {"ef": min(ef, 32_768)} if self.index == "HNSW" else {}}
        hits = self._call(
            "search",
            self._images,
            data=[query.tolist()],
            anns_field="vector",
            limit=k,
            filter=_expression(where),
            output_fields=["key"],
            search_params=params,
            consistency_level="Strong",
        )[0]
        return [(hit["entity"]["key"], float(hit["distance"])) for hit in hits]  # COSINE's distance is a similarity

    def _one_by_one(self, query: np.ndarray, k: int, where: Filter) -> list[tuple[str, float]]:
        best: list[tuple[float, int, str]] = []
        width = min(max(_ROWS, 1_000_000 // self.dimension), _PART)
        for part in self._every(self._images, where, ["number", "vector"], part=width):
            if part:
                scores = np.array([row["vector"] for row in part], np.float32) @ query
                best += [(-score, row["number"], row["key"]) for score, row in zip(scores.tolist(), part, strict=True)]
                best = sorted(best)[:k]
        return [(key, -score) for score, _, key in best]

    # Changing

    def add(self, records: Sequence[Record]) -> int:
        vectors = unit_rows(records, self.dimension)
        rows: dict[str, dict[str, Any]] = {}
        first = time.time_ns()
        for number, (record, vector) in enumerate(zip(records, vectors, strict=True)):
            row = _row(record, vector, first + number)
            rows.setdefault(row["key"], row)
        known = self._rows(rows, [])
        new = [row for key, row in rows.items() if key not in known]
        self._upsert(self._images, new)
        if new:
            self._changed()
        return len(new)

    def _upsert(self, collection: str, rows: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(rows), _ROWS):
            self._call("upsert", collection, list(rows[start : start + _ROWS]))

    def _drop(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        for start in range(0, len(keys), _KEYS):
            self._call("delete", self._images, ids=keys[start : start + _KEYS])

    def delete(self, ids: Iterable[str]) -> int:
        keys = list(dict.fromkeys(map(_key, ids)))
        there = self._rows(keys, [])
        held = self._by("image_key", keys, list(_side_row("")), self._side)
        self._upsert(self._side, [row | {"problem": DELETED} for row in held])
        self._drop(there)
        if there:
            self._changed()
        return len(there)

    def set_label(self, ids: Iterable[str], label: str) -> int:
        checked_text(label)
        _fits("label", label, label)
        return self._rewrite(map(_key, ids), lambda row: _named(row["path"], label))

    def _rewrite(self, keys: Iterable[str], new: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        """Other names for pictures; how many of them there are."""
        keys, there, changed = list(dict.fromkeys(keys)), 0, False
        fields = ["vector", "image", "path", "label", "path_key", "label_key", "place", "thumbnail", "number"]
        for start in range(0, len(keys), _ROWS):
            rows = self._rows(keys[start : start + _ROWS], fields)
            there += len(rows)
            written = [row | new(row) for row in rows.values()]
            written = [row for row in written if row != rows[row["key"]]]
            self._upsert(self._images, written)
            changed = changed or bool(written)
        if changed:
            self._changed()
        return there

    # The files the pictures came from

    def files(self) -> dict[str, FileState]:
        fields = ["path", "size", "modified", "image", "label", "problem"]
        rows = [row for part in self._every(self._side, ANY, fields) for row in part]
        return {
            row["path"]: FileState(row["size"], row["modified"], row["image"] or None, row["label"], row["problem"])
            for row in sorted(rows, key=lambda row: str(row["path"]))
        }

    def unnoted(self) -> list[str]:
        noted = {row["key"] for part in self._every(self._side, ANY, []) for row in part}
        rows = (row for part in self._every(self._images, ANY, ["path", "path_key"]) for row in part)
        return [row["path"] for row in rows if row["path_key"] not in noted]

    def note_files(self, states: dict[str, FileState]) -> None:
        rows = []
        for path, state in states.items():
            for field, text in (("path", path), ("label", state.label), ("image", state.id or "")):
                _fits(field, checked_text(text), path)
            problem = state.problem.encode()[: _TEXT["problem"]].decode(errors="ignore")
            rows.append(
                _side_row(
                    _key(path),
                    path=path,
                    size=state.size,
                    modified=state.modified,
                    image=state.id or "",
                    image_key=_key(state.id) if state.id else "",
                    label=state.label,
                    problem=problem,
                )
            )
        self._settle(states)
        self._upsert(self._side, rows)

    def forget_files(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        self._settle(dict.fromkeys(paths))
        keys = list(map(_key, paths))
        for start in range(0, len(keys), _KEYS):
            self._call("delete", self._side, ids=keys[start : start + _KEYS])

    def _held(self, paths: Iterable[str]) -> dict[str, set[str]]:
        """The keys of the pictures that bear these paths or that these files hold, and the labels the files give."""
        keys = list(map(_key, paths))
        held: dict[str, set[str]] = {row["key"]: set() for row in self._by("path_key", keys, [], self._images)}
        for row in self._by("key", keys, ["image_key", "label"], self._side):
            if row["image_key"]:
                held.setdefault(row["image_key"], set()).add(row["label"])
        return held

    def _settle(self, now: Mapping[str, FileState | None]) -> None:
        """What becomes of pictures when files are as ``now`` says, None = forgotten: those whose file is gone take the
        name of another with the same bytes, or go too; those that came through the page take a file's name too, and
        stay without.

        To be called before the files are written: stopped in between, the same files are still to be written.
        """
        before = self._held(now)
        holders: dict[str, dict[str, str]] = {}
        for path, state in now.items():
            if state is not None and state.id and not state.problem:
                holders.setdefault(_key(state.id), {})[path] = state.label
        for key, row in self._rows(holders, ["path"]).items():
            if row["path"].startswith(UPLOADED):
                before.setdefault(key, set())
        for row in self._by("image_key", before, ["image_key", "path", "label", "problem"], self._side):
            if not row["problem"] and row["path"] not in now:
                holders.setdefault(row["image_key"], {})[row["path"]] = row["label"]
        gone, moved = [], {}
        for key, row in self._rows(before, ["path", "label"]).items():
            files, uploaded = holders.get(key, {}), row["path"].startswith(UPLOADED)
            if files and row["path"] not in files:
                path = min(files)
                by_file = not row["label"] if uploaded else row["label"] in before[key]
                moved[key] = _named(path, files[path] if by_file else row["label"])
            elif not files and not uploaded:
                gone.append(key)
        self._rewrite(moved, lambda row: moved[row["key"]])
        self._drop(gone)
        if gone:
            self._changed()


def _item(row: dict[str, Any]) -> Item:
    return Item(row["image"], row["path"], row["label"])


def _fits(field: str, text: str, path: str) -> None:
    if len(text.encode()) > _TEXT[field]:
        raise ValueError(f"{path[:200]}: its {field} is longer than {_TEXT[field]} bytes, too long for Milvus.")


def _named(path: str, label: str) -> dict[str, Any]:
    """A picture's names, and what stands for them in expressions."""
    place = _place(folder_of(path)) if "/" in path else ""
    return {"path": path, "path_key": _key(path), "place": place, "label": label, "label_key": _key(label)}


def _row(record: Record, vector: np.ndarray, number: int) -> dict[str, Any]:
    for field, text in (("path", record.path), ("label", record.label), ("image", record.id)):
        _fits(field, text, record.path)
    thumbnail = base64.b64encode(record.thumbnail).decode()
    if len(thumbnail) > _THUMBNAIL:
        raise ValueError(f"{record.path}: a thumbnail of {len(record.thumbnail)} bytes is too large for Milvus.")
    kept = {"key": _key(record.id), "image": record.id, "vector": vector.tolist(), "number": number}
    return kept | {"thumbnail": thumbnail} | _named(record.path, record.label)


def _side_row(
    key: str,
    *,
    path: str = "",
    size: int = 0,
    modified: int = 0,
    image: str = "",
    image_key: str = "",
    label: str = "",
    problem: str = "",
) -> dict[str, Any]:
    """A row of the second collection: a file, the model or the version; Milvus wants a vector in each."""
    row = {"key": key, "vector": [1.0, 0.0], "path": path, "size": size, "modified": modified}
    return row | {"image": image, "image_key": image_key, "label": label, "problem": problem}


def stored_model(uri: str) -> tuple[str, int]:
    """The model's fingerprint and the width of the vectors of an index. Raises ValueError if there is none."""
    address = _address(uri)
    client = _connected(address)
    try:
        with _told(address):
            return _stored_model(client, address)
    finally:
        client.close()


def _stored_model(client: Any, address: _Address) -> tuple[str, int]:
    """As the second collection says: not every server keeps a collection's description."""
    side = f"{address.collection}_files"
    with _told(address):
        if not client.has_collection(address.collection, timeout=PATIENCE):
            raise ValueError(f"{address}: no such index; make it with `simclr index`.")
        rows = []
        if client.has_collection(side, timeout=PATIENCE):
            client.load_collection(side, timeout=PATIENCE)
            ask = {"filter": _one_of("key", ["meta"]), "output_fields": ["path"], "consistency_level": "Strong"}
            rows = client.query(side, timeout=PATIENCE, **ask)
    try:
        about = json.loads(rows[0]["path"])
        model, dimension, form = str(about["model"]), int(about["dimension"]), about["format"]
    except (IndexError, KeyError, ValueError, TypeError):
        form = None
    if form != FORMAT:
        raise ValueError(f"{address}: the collection is no index of pictures, or of another version; choose another.")
    return model, dimension
