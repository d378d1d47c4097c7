"""Search among vectors: our indexes beside numpy, faiss, usearch and Milvus Lite, in one run.

    python benchmarks/retrieval.py [--sets 50000x512 500000x512 50000x2048] [--index photos.sqlite]
        [--systems ours faiss] [--threads 1 2] [--rounds 2] [--limit 240] [--folder DIR]
        [--out benchmarks/results/retrieval_....md] [--quick]

Each system is built in a process of its own, then opened and asked in others: one for each round and number of threads,
the systems in another order each time. Shown are medians, and latencies of all rounds together. Exact answers come from
float64. What cannot be built within ``--limit`` seconds of CPU is left out, with how far it came. ``--folder`` keeps
what was built, so that an interrupted run goes on. A whole run takes half an hour on two quiet cores; ten minutes with
``--limit 60``, which leaves out the graphs of 500,000. faiss, usearch, pymilvus and milvus-lite come with the group
`bench`; what is missing is left out. ``--index`` adds the features in an index of ours, real ones; some of them become
the queries. For Linux: /proc tells memory, and how busy others keep the cores.

The vectors are made so that their cosines, their zeros and the share of their variance in few directions are like those
of the bundled student's features of photographs: 200 classes, each of 128 numbers, of which an image differs as much as
classes do; a random matrix makes a vector of them, number k weighing k^-0.9; noise and an offset are added, what is
negative becomes zero, and the length one. Each has one of 100 labels by chance. The queries are more of the same.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.index import ANY, Filter, Record, Vectors, index_model, open_index
from zoo.files import written_whole

K = 10
QUERIES = 200  # asked, and as many more to choose how far a graph looks
NEW = 1000  # vectors added, then deleted
LABELS = 100
ONE_SEARCH = 2.0  # seconds that one kind of question lasts at most in a round
EFS = (64, 128, 256, 512)  # candidates that a graph looks at: the fewest that give a recall of GOOD
GOOD = 0.99
MODEL = "benchmark"  # what our indexes take for the model's fingerprint


# ---- vectors ---------------------------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(count: int, dimension: int, *, seed: int) -> np.ndarray:
    """Unit vectors like features, float32 (count, dimension); the first ones are the same for a larger count."""
    fixed = np.random.default_rng([seed, dimension])
    matrix = fixed.standard_normal((128, dimension), np.float32)
    weights = np.arange(1, 129, dtype=np.float32) ** -0.9
    matrix *= (0.7 * weights / np.linalg.norm(weights))[:, None]
    classes = fixed.standard_normal((200, 128), np.float32)
    rows = np.empty((count, dimension), np.float32)
    for start in range(0, count, 10_000):
        here = rows[start : start + 10_000]
        chance = np.random.default_rng([seed, dimension, start])
        inner = classes[chance.integers(200, size=10_000)] + chance.standard_normal((10_000, 128), np.float32)
        noise = chance.standard_normal((10_000, dimension), np.float32)[: len(here)]
        here[:] = unit(np.maximum(inner[: len(here)] @ matrix + 0.05 * noise + 0.5, 0))
    return rows


class Set(NamedTuple):
    """Vectors to search, in a folder: rows.npy (N, D), labels.npy (N,), queries.npy, tuning.npy, new.npy; all unit."""

    name: str
    folder: Path
    rows: int
    dimension: int

    def load(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")


def made_set(name: str, vectors: np.ndarray, folder: Path) -> Set:
    """The last rows become queries and additions; the exact answers are written beside the vectors."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    new = min(NEW, len(vectors) // 4)
    queries = min(QUERIES, len(vectors) // 8)
    count = len(vectors) - new - 2 * queries
    parts = np.split(vectors, [count, count + new, count + new + queries])
    labels = np.random.default_rng(1).integers(LABELS, size=count)
    for part, rows in zip(("rows", "new", "queries", "tuning"), parts, strict=True):
        np.save(folder / f"{part}.npy", rows)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "exact.npy", exact(parts[0], parts[2]))
    np.save(folder / "exact_tuning.npy", exact(parts[0], parts[3]))
    one = np.flatnonzero(labels == 0)
    np.save(folder / "exact_label.npy", one[exact(parts[0][one], parts[2])])
    data = Set(name, folder, count, vectors.shape[1])
    (folder / "whole.json").write_text(json.dumps(data._asdict(), default=str))
    return data


def kept_set(folder: Path) -> Set | None:
    """As an earlier run left it."""
    if not (folder / "whole.json").exists():
        return None
    return set_of(json.loads((folder / "whole.json").read_text()) | {"folder": folder})


def set_of(fields: dict[str, Any]) -> Set:
    return Set(**(fields | {"folder": Path(fields["folder"])}))


def exact(rows: np.ndarray, queries: np.ndarray, k: int = K) -> np.ndarray:
    """The rows of the ``k`` highest products with each query (Q, D) in float64, best first, int64 (Q, k)."""
    best = np.empty((len(queries), 0))
    places = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), 20_000):
        scores = queries.astype(np.float64) @ rows[start : start + 20_000].astype(np.float64).T
        best = np.concatenate([best, scores], 1)
        places = np.concatenate([places, np.tile(np.arange(start, start + scores.shape[1]), (len(queries), 1))], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
    return places


def recall(found: list[list[int]], right: np.ndarray) -> float:
    """The share of the right rows that was found; ``right`` (Q, k), more queries than were asked do not count."""
    hits = [len(set(some) & set(row.tolist())) for some, row in zip(found, right, strict=False)]  # fewer asked
    return sum(hits) / max(1, sum(len(row) for row in right[: len(found)]))


# ---- systems: each is built by one process and opened by others ------------------------------------------------------


class System:
    """What is asked of every system. Rows bear their number; ``query`` is (D,), float32, of length one."""

    library = ""  # the module that must be there
    exact = True
    filters = True  # can search among the rows of one label
    deletes = True
    batched = False  # ``many`` is one call

    def __init__(self, data: Set, folder: Path, threads: int, choice: str) -> None:
        self.data, self.folder, self.threads, self.choice = data, folder, threads, choice

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        """Write ``folder``; how many rows are in, now and then."""
        raise NotImplementedError  # each system has its own

    def open(self) -> None:
        raise NotImplementedError  # each system has its own

    def search(self, query: np.ndarray) -> list[int]:
        raise NotImplementedError  # each system has its own

    def many(self, queries: np.ndarray) -> object:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.search, queries))

    def prepare(self) -> None:
        """What a program would do once before it filters."""

    def filtered(self, query: np.ndarray) -> list[int]:
        """Among the rows of label 0."""
        raise NotImplementedError  # each system has its own

    def add(self, rows: np.ndarray) -> None:
        raise NotImplementedError  # each system has its own

    def delete(self, rows: range) -> None:
        raise NotImplementedError  # each system has its own

    def save(self) -> None:
        """What it takes until additions are on disk; nothing where they are already."""

    def processes(self) -> list[int]:
        """Whose memory and time are counted."""
        return [os.getpid()]

    def close(self) -> None:
        pass

    def stop(self) -> None:
        """Ends what was started, whatever happened."""


class Numpy(System):
    """The least work for an exact answer: one product of a matrix in memory with the query, then a partition."""

    batched = True

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        np.save(self.folder / "rows.npy", rows)
        yield len(rows)

    def open(self) -> None:
        self.matrix = np.load(self.folder / "rows.npy")

    def _best(self, scores: np.ndarray) -> list[int]:
        some = np.argpartition(scores, -K)[-K:]
        return some[np.argsort(-scores[some])].tolist()

    def search(self, query: np.ndarray) -> list[int]:
        return self._best(self.matrix @ query)

    def many(self, queries: np.ndarray) -> object:
        scores = queries @ self.matrix.T
        return np.argpartition(scores, -K, axis=1)[:, -K:]

    def prepare(self) -> None:
        self.places = np.flatnonzero(self.data.load("labels") == 0)

    def filtered(self, query: np.ndarray) -> list[int]:
        return self.places[self._best(self.matrix[self.places] @ query)].tolist()

    def add(self, rows: np.ndarray) -> None:
        self.matrix = np.concatenate([self.matrix, rows])

    def delete(self, rows: range) -> None:
        self.matrix = np.delete(self.matrix, rows, axis=0)

    def save(self) -> None:
        np.save(self.folder / "changed.npy", self.matrix)

    def bytes_read(self) -> Callable[[], object]:
        """Reads every byte of the matrix once and does nothing else: what the memory allows."""
        flat = self.matrix[: self.data.rows].reshape(-1)
        half = len(flat) // 2
        return lambda: flat[:half] @ flat[half : 2 * half]  # in one thread, however many there are


class Ours(System):
    """Through ``app.index``; pictures without thumbnails."""

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        self.index = self._index()
        for start in range(0, len(rows), 1024):
            some = rows[start : start + 1024]
            self.index.add([_record(start + n, row, str(labels[start + n])) for n, row in enumerate(some)])
            yield start + len(some)
        self.settle()
        yield len(rows)
        self.index.close()

    def settle(self) -> None:
        pass

    def _index(self) -> Any:
        vectors: Vectors = "fp32" if self.choice == "fp32" else "fp16"
        return open_index(self.folder / "i.sqlite", model=MODEL, dimension=self.data.dimension, vectors=vectors)

    def open(self) -> None:
        self.index = self._index()

    def search(self, query: np.ndarray, where: Filter = ANY) -> list[int]:
        return [int(hit.id, 16) for hit in self.index.search(query, K, where=where, thumbnails=False)]

    def filtered(self, query: np.ndarray) -> list[int]:
        return self.search(query, Filter(labels=("0",)))

    def add(self, rows: np.ndarray) -> None:
        self.index.add([_record(self.data.rows + number, row, "new") for number, row in enumerate(rows)])

    def delete(self, rows: range) -> None:
        self.index.delete([_id(number) for number in rows])

    def close(self) -> None:
        self.index.close()


def _id(number: int) -> str:
    return f"{number:064x}"


def _record(number: int, row: np.ndarray, label: str) -> Record:
    return Record(_id(number), f"/photos/{number % 97:02}/{number:07}.jpg", label, b"", row)


class Milvus(Ours):
    """Milvus Lite's server on loopback, through our own index."""

    library = "milvus_lite"

    def __init__(self, data: Set, folder: Path, threads: int, choice: str) -> None:
        super().__init__(data, folder, threads, choice)
        self.exact = choice == "FLAT"
        self.server: subprocess.Popen[bytes] | None = None

    def _index(self) -> Any:
        port = _free_port()
        program = Path(sys.executable).parent / "milvus-lite"
        command = [
            str(program),
            "server",
            "--data-dir",
            str(self.folder / "data"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        log = (self.folder / "log").open("ab")
        self.server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        uri = f"http://127.0.0.1:{port}/benchmark?index={self.choice}"
        while True:
            try:
                return open_index(uri, model=MODEL, dimension=self.data.dimension)
            except ValueError as error:
                if self.server.poll() is not None or "cannot be reached" not in str(error):
                    raise
                time.sleep(0.05)

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        try:
            yield from super().build(rows, labels)
        finally:
            self.stop()

    def settle(self) -> None:
        """Rows that are not flushed lie in a table in memory, which every search copies: seconds. The search
        index is written after flush has returned; a server that ends meanwhile leaves a file that cannot be opened."""
        self.index._client.flush("benchmark")
        before = -1.0
        while (now := cpu_seconds(self.processes())) > before + 0.1:
            before = now
            time.sleep(2)

    def processes(self) -> list[int]:
        if self.server is None:
            return []
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children")
        return [self.server.pid, *map(int, children.read_text().split())] if children.exists() else []

    def stop(self) -> None:
        if self.server is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.server.pid, sign)
                    self.server.wait(15)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue

    def close(self) -> None:
        super().close()
        self.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Faiss(System):
    """Inner products; flat, or a graph with 32 links."""

    library = "faiss"
    batched = True

    def __init__(self, data: Set, folder: Path, threads: int, choice: str) -> None:
        super().__init__(data, folder, threads, choice)
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(threads)
        self.exact = self.deletes = choice == "flat"
        self.path = str(folder / "i.faiss")

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        width = self.data.dimension
        if self.exact:
            index = self.faiss.IndexIDMap2(self.faiss.IndexFlatIP(width))
        else:
            index = self.faiss.IndexHNSWFlat(width, 32, self.faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(rows), 5000):
            some = rows[start : start + 5000]
            if self.exact:
                index.add_with_ids(some, np.arange(start, start + len(some)))
            else:
                index.add(some)
            yield start + len(some)
        self.faiss.write_index(index, self.path)
        if not self.exact:
            self.index = index
            chosen = _fewest(self.data, self._look)
            (self.folder / "ef").write_text(str(chosen))

    def _look(self, ef: int, queries: np.ndarray) -> list[list[int]]:
        return self.index.search(queries, K, params=self.faiss.SearchParametersHNSW(efSearch=ef))[1].tolist()

    def open(self) -> None:
        self.index = self.faiss.read_index(self.path)
        if self.exact:
            self.how = None
        else:
            self.ef = int((self.folder / "ef").read_text())
            self.how = self.faiss.SearchParametersHNSW(efSearch=self.ef)

    def search(self, query: np.ndarray) -> list[int]:
        return self.many(query[None])[0].tolist()

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K, params=self.how)[1]

    def prepare(self) -> None:
        bits = np.packbits(self.data.load("labels") == 0, bitorder="little")
        chosen = self.faiss.IDSelectorBitmap(bits)
        if self.exact:
            self.among = self.faiss.SearchParameters(sel=chosen)
        else:
            self.among = self.faiss.SearchParametersHNSW(sel=chosen, efSearch=self.ef)

    def filtered(self, query: np.ndarray) -> list[int]:
        return [row for row in self.index.search(query[None], K, params=self.among)[1][0].tolist() if row >= 0]

    def add(self, rows: np.ndarray) -> None:
        if self.exact:
            self.index.add_with_ids(rows, np.arange(self.data.rows, self.data.rows + len(rows)))
        else:
            self.index.add(rows)

    def delete(self, rows: range) -> None:
        self.index.remove_ids(np.array(rows))

    def save(self) -> None:
        self.faiss.write_index(self.index, f"{self.path}.changed")


class Usearch(System):
    """A graph with usearch's own settings, but for the candidates."""

    library = "usearch"
    exact = False
    filters = False
    batched = True

    def _new(self) -> Any:
        from usearch.index import Index

        return Index(ndim=self.data.dimension, metric="ip", dtype=self.choice)

    def build(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[int]:
        self.index = self._new()
        for start in range(0, len(rows), 1000):
            some = rows[start : start + 1000]
            self.index.add(np.arange(start, start + len(some)), some, threads=self.threads)
            yield start + len(some)
        self.index.save(self.folder / "i.usearch")
        (self.folder / "ef").write_text(str(_fewest(self.data, self._look)))

    def _look(self, ef: int, queries: np.ndarray) -> list[list[int]]:
        self.index.expansion_search = ef
        return self.index.search(queries, K, threads=self.threads).keys.tolist()

    def open(self) -> None:
        self.index = self._new()
        self.index.load(self.folder / "i.usearch")
        self.index.expansion_search = int((self.folder / "ef").read_text())

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query, K, threads=1).keys.tolist()

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K, threads=self.threads)

    def add(self, rows: np.ndarray) -> None:
        self.index.add(np.arange(self.data.rows, self.data.rows + len(rows)), rows, threads=self.threads)

    def delete(self, rows: range) -> None:
        self.index.remove(np.array(rows))

    def save(self) -> None:
        self.index.save(self.folder / "i.changed")


def _fewest(data: Set, look: Callable[[int, np.ndarray], list[list[int]]]) -> int:
    """The fewest candidates with a recall of GOOD on queries of their own, or the most there are."""
    right, queries = data.load("exact_tuning"), data.load("tuning")
    return next((ef for ef in EFS if recall(look(ef, queries), right) >= GOOD), EFS[-1])


SYSTEMS: dict[str, tuple[type[System], str]] = {
    "numpy": (Numpy, ""),
    "ours fp16": (Ours, "fp16"),
    "ours fp32": (Ours, "fp32"),
    "faiss flat": (Faiss, "flat"),
    "faiss HNSW32": (Faiss, "HNSW"),
    "usearch f32": (Usearch, "f32"),
    "usearch f16": (Usearch, "f16"),
    "Milvus Lite FLAT": (Milvus, "FLAT"),
    "Milvus Lite HNSW": (Milvus, "HNSW"),
}


# ---- what the processes do -------------------------------------------------------------------------------------------


def memory(processes: list[int]) -> tuple[float, float]:
    """Megabytes resident now, and at most so far."""
    total = [0.0, 0.0]
    for process in processes:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                total[name == "VmHWM"] += int(value.split()[0]) * 1024 / 1e6
    return total[0], total[1]


def cpu_seconds(processes: list[int]) -> float:
    """Of all threads, since each began; of other processes than this in ticks of 10 ms."""
    others = [process for process in processes if process != os.getpid()]
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in others]
    return time.process_time() + sum(int(n) for field in fields for n in field[11:13]) / os.sysconf("SC_CLK_TCK")


def built(system: System, limit: float) -> dict[str, Any]:
    """Builds until ``limit`` seconds of CPU are over, or surely would be."""
    rows, labels = system.data.load("rows"), system.data.load("labels")
    began = time.perf_counter()
    done, cpu = 0, 0.0
    for done in system.build(rows, labels):
        cpu = cpu_seconds(system.processes())
        if done < len(rows) and (cpu > limit or (cpu > limit / 8 and cpu / done * len(rows) > 1.2 * limit)):
            return {"rows": done, "stopped": cpu}
    seconds = time.perf_counter() - began
    if not isinstance(system, Milvus):
        cpu = cpu_seconds(system.processes())
    size = sum(file.stat().st_size for file in system.folder.rglob("*") if file.is_file() and file.name != "log")
    return {"rows": done, "seconds": seconds, "cpu": cpu, "disk": size / 1e6}


def asked(search: Callable[[np.ndarray], list[int]], queries: np.ndarray) -> tuple[list[float], list[list[int]]]:
    """Seconds and answers of one query after another, until ONE_SEARCH is over; the first are not counted."""
    for query in queries[:2]:
        search(query)
    times: list[float] = []
    answers = []
    began = time.perf_counter()
    while time.perf_counter() - began < ONE_SEARCH and len(times) < len(queries):
        start = time.perf_counter()
        answers.append(search(queries[len(times)]))
        times.append(time.perf_counter() - start)
    return times, answers


def rate(system: System, queries: np.ndarray) -> float:
    """Queries a second, all at once; at most about ONE_SEARCH seconds."""
    began, done = time.perf_counter(), 0
    some = queries[: 4 * system.threads]
    while time.perf_counter() - began < ONE_SEARCH / 2:
        before = time.perf_counter()
        system.many(some)
        done += len(some)
        fits = len(some) * ONE_SEARCH / 4 / (time.perf_counter() - before)
        some = queries[: max(len(some), min(len(queries), int(fits)))]
    return done / (time.perf_counter() - began)


def changed(system: System) -> dict[str, float]:
    """Seconds until additions are found and until they are on disk, and until what was deleted is not found."""
    new = system.data.load("new")
    numbers = range(system.data.rows, system.data.rows + len(new))
    began = time.perf_counter()
    system.add(new)
    assert system.search(new[-1])[0] in numbers
    found = {"add": time.perf_counter() - began}
    system.save()
    found["add_disk"] = time.perf_counter() - began
    if system.deletes:
        began = time.perf_counter()
        system.delete(numbers)
        assert not set(system.search(new[-1])) & set(numbers)
        found["delete"] = time.perf_counter() - began
        system.save()
        found["delete_disk"] = time.perf_counter() - began
    return found


def served(system: System, *, change: bool) -> dict[str, Any]:
    """Opens, and asks everything once."""
    queries = system.data.load("queries")
    before = memory(system.processes())[0]
    began = time.perf_counter()
    system.open()
    system.search(queries[0])
    found: dict[str, Any] = {"open": time.perf_counter() - began}
    processes = system.processes()
    found["memory"] = (before, *memory(processes))
    began = cpu_seconds(processes)
    found["times"], answers = asked(system.search, queries)
    found["cpu"] = (cpu_seconds(processes) - began) / (len(answers) + 2)
    found["recall"] = recall(answers, system.data.load("exact"))
    if isinstance(system, Numpy):
        reading = system.bytes_read()
        found["reading"], _ = asked(lambda _: [bool(reading())], queries)
    found["rate"] = rate(system, queries)
    if system.filters:
        system.prepare()
        found["filtered"], answers = asked(system.filtered, queries)
        right = system.data.load("exact_label")
        found["filtered_recall"] = recall(answers, right)
        found["short"] = sum(len(some) < right.shape[1] for some in answers) / len(answers)
    if change:
        found["changes"] = changed(system)
    found["ef"] = next((int(path.read_text()) for path in system.folder.glob("ef")), None)
    system.close()
    return found


def child(task: dict[str, Any]) -> None:
    """One build or one opening, as the parent says; the answer is the last line of the output."""
    data = set_of(task["data"])
    kind, choice = SYSTEMS[task["system"]]
    if kind.library:
        importlib.import_module({"usearch": "usearch.index", "milvus_lite": "pymilvus"}.get(kind.library, kind.library))
    system = kind(data, Path(task["folder"]), task["threads"], choice)
    try:
        result = built(system, task["limit"]) if task["do"] == "build" else served(system, change=task["change"])
    finally:
        system.stop()
    print(json.dumps(result), flush=True)


def in_process(task: dict[str, Any], patience: float) -> dict[str, Any]:
    """The child's answer, or {"problem": ...}. It and what it started end with it."""
    threads = str(task["threads"])
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", json.dumps(task)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict.fromkeys(names, threads),
    )
    try:
        out, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it stops its server
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return {"problem": f"no answer in {patience:.0f} s"}
    if process.returncode:
        last = errors.strip().splitlines()
        return {"problem": last[-1] if last else f"exit status {process.returncode}"}
    return dict(json.loads(out.strip().splitlines()[-1]))


# ---- tables ----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Of one set: what building gave, and the rounds by (system, threads)."""

    data: Set
    built: dict[str, dict[str, Any]]
    rounds: dict[tuple[str, int], list[dict[str, Any]]]

    def all(self, system: str, threads: int | None = None) -> list[dict[str, Any]]:
        keys = [key for key in self.rounds if key[0] == system and threads in (None, key[1])]
        return [found for key in keys for found in self.rounds[key]]


def middle(values: list[float]) -> float:
    return float(np.median(values)) if values else math.nan


def shown(value: float, unit: float = 1) -> str:
    """Three digits; nothing for what was not measured."""
    if math.isnan(value):
        return ""
    value *= unit
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speeds(found: Found, threads: list[int]) -> Iterator[str]:
    heads = "".join(
        f" p50 ms, {n} thr. | p99 ms | CPU ms | times numpy | queries/s |"
        if n == threads[0]
        else f" p50 ms, {n} thr. | p99 ms | queries/s |"
        for n in threads
    )
    yield f"| system | recall@{K} |{heads}"
    yield "|---|---:|" + "---:|" * (heads.count("|"))
    for system in found.built:
        every = found.all(system)
        if not every:
            continue
        ef = every[0]["ef"]
        row = f"| {system}{f', ef {ef}' if ef else ''} | {middle([one['recall'] for one in every]):.4f} |"
        for count in threads:
            rounds = found.rounds.get((system, count), [])
            times = [seconds for one in rounds for seconds in one["times"]]
            p99 = float(np.percentile(times, 99)) if times else math.nan
            row += f" {shown(middle(times), 1e3)} | {shown(p99, 1e3)} |"
            if count == threads[0]:
                against = found.rounds.get(("numpy", count), [])
                pairs = zip(rounds, against, strict=False)  # a round may have been left out
                ratio = middle([middle(one["times"]) / middle(other["times"]) for one, other in pairs])
                row += f" {shown(middle([one['cpu'] for one in rounds]), 1e3)} | {shown(ratio)} |"
            row += f" {shown(middle([one['rate'] for one in rounds]))} |"
        yield row
    yield from ("", *bandwidth(found))


def quick(values: list[float]) -> float:
    """The fastest tenth: what others on the machine have not disturbed."""
    return float(np.percentile(values, 10)) if values else math.nan


def bandwidth(found: Found) -> Iterator[str]:
    """How near numpy and ours come to reading the matrix once, with one thread; of each the fastest tenth."""
    size = found.data.rows * found.data.dimension * 4
    rounds = found.rounds.get(("numpy", 1), [])
    if rounds:
        reading, search = (quick([s for one in rounds for s in one[what]]) for what in ("reading", "times"))
        ours = quick([s for one in found.rounds.get(("ours fp16", 1), []) for s in one["times"]])
        tail = f", {ours / reading:.2f} that of ours fp16" if not math.isnan(ours) else ""
        yield (
            f"- 1 thread: the {size / 1e6:,.0f} MB of vectors in fp32 are read in {reading * 1e3:.1f} ms "
            f"({size / reading / 1e9:.1f} GB/s); the time of numpy is {search / reading:.2f} of that{tail}"
        )


def places(found: Found) -> Iterator[str]:
    yield "| system | built, s | CPU s | on disk, MB | open to first answer, s | memory before, MB | after | at most |"
    yield "|---|" + "---:|" * 7
    for system, made in found.built.items():
        every = found.all(system)
        if every:
            memories = [middle([one["memory"][part] for one in every]) for part in range(3)]
            row = (
                made["seconds"],
                made.get("cpu", math.nan),
                made["disk"],
                middle([one["open"] for one in every]),
                *memories,
            )
            yield f"| {system} | " + " | ".join(map(shown, row)) + " |"


def changes(found: Found) -> Iterator[str]:
    yield (
        "| system | filter to 1 %: recall | short lists | p50 ms | add: found after, s | on disk after "
        "| delete: gone after, s | on disk after |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for system in found.built:
        every = found.all(system)
        if not every:
            continue
        kind = SYSTEMS[system][0]
        row = f"| {system} | "
        if kind.filters:
            times = [seconds for one in every for seconds in one["filtered"]]
            row += f"{middle([one['filtered_recall'] for one in every]):.4f} | "
            row += f"{middle([one['short'] for one in every]):.0%} | {shown(middle(times), 1e3)} |"
        else:
            row += "cannot | | |"
        changes = [one["changes"] for one in every if "changes" in one]
        for name in ("add", "add_disk", "delete", "delete_disk"):
            value = middle([one[name] for one in changes if name in one])
            row += f" {shown(value) or 'cannot'} |"
        yield row


def machine() -> str:
    lines = dict(line.partition("\t:")[::2] for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    widest = next((flag for flag in ("avx512f", "avx2") if flag in facts.get("flags", "")), "")
    cache = facts.get("cache size", "?")
    return (
        f"{facts.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores, {widest}, cache {cache}"
    )


def versions() -> str:
    found = []
    for name in ("numpy", "faiss-cpu", "usearch", "pymilvus", "milvus-lite"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def document(results: list[Found], threads: list[int], said: list[str]) -> str:
    facts = [
        machine(),
        f"Python {platform.python_version()}, {versions()}",
        f"the {K} nearest by cosine; graphs look at the fewest of {', '.join(map(str, EFS))} candidates (ef) that give "
        f"a recall of {GOOD} on other queries",
        "CPU: time of all threads for one query; times numpy: p50, of the same round",
        "queries/s: many at once, where the library has such a call (numpy, faiss, usearch), else from as many threads",
        *said,
    ]
    lines = [f"- {fact}" for fact in facts]
    for found in results:
        lines += ["", f"## {found.data.name}: {found.data.rows:,} vectors of {found.data.dimension}", ""]
        lines += [*speeds(found, threads), "", *places(found), "", f"{NEW:,} rows added, then deleted:", ""]
        lines += [*changes(found)]
    return "\n".join(lines)


# ---- the whole -------------------------------------------------------------------------------------------------------


def ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores; what other machines stole counts as busy."""
    values = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return sum(values) - values[3] - values[4], sum(values)


def others_share(since: tuple[int, int], own: float) -> float:
    """How much of the cores others used, given the seconds of CPU that we did."""
    busy, everything = (now - then for now, then in zip(ticks(), since, strict=True))
    return max(0.0, (busy - own * os.sysconf("SC_CLK_TCK")) / max(1, everything))


def measure(data: Set, systems: list[str], options: argparse.Namespace, say: Callable[[str], None]) -> Found:
    found = Found(data, {}, {})
    about = data._asdict() | {"folder": str(data.folder)}

    def run(system: str, do: str, threads: int, **more: Any) -> dict[str, Any]:
        folder = data.folder / system.replace(" ", "_")
        done = folder / "built.json"
        if do == "build":
            if done.exists():
                return dict(json.loads(done.read_text()))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        task = {"data": about, "system": system, "folder": str(folder), "do": do, "threads": threads, **more}
        result = in_process(task, options.limit * 20 + 60)
        if "problem" in result:
            say(f"{data.name}, {system}: left out ({result['problem']}).")
        elif do == "build" and "stopped" not in result:
            done.write_text(json.dumps(result))
        return result

    rounds = [(number, threads) for number in range(options.rounds) for threads in options.threads]
    with tqdm(total=len(systems) * (1 + len(rounds)), desc=data.name, disable=None) as bar:
        for system in systems:
            bar.set_postfix_str(f"{system}, built")
            result = run(system, "build", max(options.threads), limit=options.limit)
            bar.update()
            if "stopped" in result:
                far = f"{result['rows']:,} of {data.rows:,} rows in {result['stopped']:.0f} s"
                say(f"{data.name}, {system}: left out, building takes over {options.limit:.0f} s of CPU ({far}).")
            elif "problem" not in result:
                found.built[system] = result
        for number, (_, threads) in enumerate(rounds):
            order = list(found.built)
            random.Random(number).shuffle(order)
            for system in order:
                bar.set_postfix_str(f"{system}, {threads} threads")
                result = run(system, "serve", threads, limit=options.limit, change=number == len(rounds) - 1)
                bar.update()
                if "problem" not in result:
                    found.rounds.setdefault((system, threads), []).append(result)
    return found


def sets(options: argparse.Namespace, folder: Path) -> Iterator[Set]:
    for name in options.sets:
        count, dimension = map(int, name.split("x"))
        extra = NEW + 2 * QUERIES if count >= 4 * NEW else count
        kept = kept_set(folder / name)
        yield kept or made_set(name, features(count + extra, dimension, seed=0), folder / name)
    if options.index:
        model, dimension = index_model(options.index)
        index = open_index(options.index, model=model, dimension=dimension, create=False)
        vectors = index.vectors()[1]
        index.close()
        order = np.random.default_rng(0).permutation(len(vectors))
        yield made_set("real features", vectors[order], folder / "real")


def chosen(names: list[str] | None, say: Callable[[str], None]) -> list[str]:
    """The systems whose names begin so, and whose libraries are there."""
    for name in names or ():
        if not any(system.startswith(name) for system in SYSTEMS):
            raise ValueError(f"Unknown system {name!r}. Choose from: {', '.join(SYSTEMS)}.")
    systems = [system for system in SYSTEMS if names is None or any(system.startswith(name) for name in names)]
    there = []
    for system in systems:
        library = SYSTEMS[system][0].library
        if library and importlib.util.find_spec(library) is None:
            say(f"{library} is not installed: {system} is left out.")
        else:
            there.append(system)
    return there


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=["50000x512", "500000x512", "50000x2048"], metavar="ROWSxWIDTH")
    parser.add_argument("--index", type=Path, help="also the features in this index of ours")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="beginnings of: " + ", ".join(SYSTEMS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2, help="for each number of threads")
    parser.add_argument("--limit", type=float, default=240, help="seconds of CPU that building may take")
    parser.add_argument("--folder", type=Path, help="keep vectors and built indexes here, and take those there")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too, after each set")
    parser.add_argument("--quick", action="store_true", help="a dry run: 5000x64, one round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(json.loads(options.child))
        return
    if options.quick:
        options.sets, options.rounds = ["5000x64"], 1
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        tqdm.write(line, file=sys.stderr)

    try:
        systems = chosen(options.systems, say)
    except ValueError as error:
        parser.error(str(error))
    results: list[Found] = []
    began, since, own = time.monotonic(), ticks(), sum(os.times()[:4])

    def told() -> str:
        share = others_share(since, sum(os.times()[:4]) - own)
        took = f"{(time.monotonic() - began) / 60:.1f} minutes, load {os.getloadavg()[0]:.1f} at the end"
        return document(results, options.threads, [*said, f"{took}; others used {share:.0%} of the cores"])

    interrupted = False
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for data in sets(options, options.folder or Path(scratch)):
                results.append(measure(data, systems, options, say))
                if options.out:
                    command = shlex.join(["python", "benchmarks/retrieval.py", *(arguments or sys.argv[1:])])
                    cores = len(os.sched_getaffinity(0))
                    head = f"# Search among vectors on {cores} cores, {time.strftime('%Y-%m-%d')}\n\n`{command}`\n\n"
                    with written_whole(options.out) as temporary:
                        temporary.write_text(f"{head}{told()}\n")
        except KeyboardInterrupt:
            interrupted = True
            say("Interrupted: the last set is missing.")
    print(told())
    sys.exit(130 if interrupted else 0)


if __name__ == "__main__":
    main()
