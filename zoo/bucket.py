"""The authors' public bucket: checkpoints of which only the wanted tensors are fetched, by HTTP range requests."""

import os
import re
from threading import Event
from types import TracebackType

import httpx
import numpy as np

import zoo
from zoo.files import json_object
from zoo.registry import CATEGORIES, Spec
from zoo.tf_checkpoint import MAX_INDEX_BYTES, Checkpoint, newest_of

ENDPOINT = "https://storage.googleapis.com"  # SIMCLR_BUCKET_ENDPOINT names a mirror with the same paths instead
BUCKET = "simclr-checkpoints"
_TRIES = 6  # in a row without a byte, before giving up
_LONGEST_WAIT = 30.0  # seconds between two
_PIECE = 1 << 16
_MAX_PAGES = 100
_MAX_PAGE_BYTES = 16 << 20


class BucketError(OSError):
    """The bucket does not give what was asked for; one line."""


class NotThereError(BucketError):
    """The bucket says that there is no such object."""


class Bucket:
    """A connection to the bucket; a context manager."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get("SIMCLR_BUCKET_ENDPOINT") or ENDPOINT).rstrip("/")
        agent = {"User-Agent": f"simclrv2/{zoo.__version__}", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=10.0, headers=agent)
        self._stopped, self._reached = Event(), False

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def stop(self) -> None:
        """Make requests of other threads end: at once where they wait, else within the ten seconds of a time-out."""
        self._stopped.set()

    def open_checkpoint(self, prefix: str) -> Checkpoint:
        """The checkpoint at ``prefix``; its index is fetched now, tensors when they are asked for.

        Raises BucketError for what cannot be had, CheckpointError for a damaged index.
        """
        index = self.read(f"{prefix}.index", limit=MAX_INDEX_BYTES)
        return Checkpoint(index, lambda number, count: _Object(self, f"{prefix}.data-{number:05d}-of-{count:05d}"))

    def open_published(self, spec: Spec, category: str) -> tuple[Checkpoint, str]:
        """A published checkpoint, and its prefix: by its known step, else by asking the bucket what there is."""
        row = CATEGORIES[category]
        folder = f"simclrv2/{row.folder}/{spec.authors_name}/"
        if row.step is not None:
            try:
                prefix = f"{folder}model.ckpt-{row.step}"
                return self.open_checkpoint(prefix), prefix
            except NotThereError:
                pass
        prefix = self._only_prefix(folder)
        return self.open_checkpoint(prefix), prefix

    def _only_prefix(self, folder: str) -> str:
        found = [name.removesuffix(".index") for name in self.names(folder) if name.endswith(".index")]
        if len(found) > 1:
            newest = newest_of(self.read(f"{folder}checkpoint", limit=1 << 20))
            found = [prefix for prefix in found if prefix.rpartition("/")[2] == newest] or found
        if len(found) != 1:
            names = ", ".join(prefix.removeprefix(folder) for prefix in found[:5]) or "none"
            raise NotThereError(f"{self._url(folder)}: which checkpoint? There are: {names}")
        return found[0]

    def names(self, prefix: str) -> list[str]:
        """Names of objects that start with ``prefix``, in order."""
        found: list[str] = []
        token = ""
        for _ in range(_MAX_PAGES):
            query = {"prefix": prefix, "fields": "items(name),nextPageToken"} | ({"pageToken": token} if token else {})
            url = f"{self.endpoint}/storage/v1/b/{BUCKET}/o?{httpx.QueryParams(query)}"
            try:
                answer = json_object(bytes(self._fetch(url, 0, None, limit=_MAX_PAGE_BYTES)))
                found += [str(item["name"]) for item in answer.get("items", ())]
            except (ValueError, KeyError, TypeError) as error:
                raise BucketError(f"{url}: not a list of objects ({type(error).__name__})") from None
            token = str(answer.get("nextPageToken") or "")
            if not token:
                return found
        raise BucketError(f"{self._url(prefix)}: the list of objects does not end")

    def read(self, path: str, *, limit: int) -> bytes:
        """A whole small object. Raises BucketError if it is larger than ``limit``."""
        return bytes(self._fetch(self._url(path), 0, None, limit=limit))

    def read_range(self, path: str, offset: int, size: int) -> np.ndarray:
        """uint8 (size,) from ``offset``. What a cut connection left out is asked for again, and only that."""
        return np.frombuffer(self._fetch(self._url(path), offset, size, limit=size), np.uint8)

    def size_of(self, path: str) -> int:
        """The size of an object, told by the answer to a request for its first byte.

        Raises BucketError if the server does not know ranges: then only whole files could be had.
        """
        total: list[int] = []
        self._fetch(self._url(path), 0, 1, limit=1, total=total)
        return total[0]

    def _url(self, path: str) -> str:
        return f"{self.endpoint}/{BUCKET}/{path}"

    def _fetch(
        self, url: str, offset: int, size: int | None, *, limit: int, total: list[int] | None = None
    ) -> bytearray:
        """``size`` bytes from ``offset`` (None: the whole object), across as many requests as it takes."""
        data = bytearray()
        failures = 0
        while not self._stopped.is_set():
            begin, wait = len(data), 0.0
            try:
                self._request(url, offset, size, data, limit, total)
                if size is None or len(data) == size:
                    return data
                reason = f"{len(data)} bytes came instead of {size}"
            except _TryAgainError as error:
                reason, wait = str(error), error.wait
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                hopeless = isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL)
                if hopeless and not self._reached:
                    raise BucketError(f"{url}: no connection ({error})") from None
                reason = f"{type(error).__name__} {error}".rstrip()
            if size is None:
                data.clear()
            failures = 0 if len(data) > begin else failures + 1
            if failures >= _TRIES:
                raise BucketError(f"{url}: {reason} (tried {_TRIES} times)")
            if failures:
                self._wait(min(max(wait, 0.25 * 2**failures), _LONGEST_WAIT))
        raise BucketError(f"{url}: stopped")

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _request(
        self, url: str, offset: int, size: int | None, data: bytearray, limit: int, total: list[int] | None
    ) -> None:
        """One request that goes on where ``data`` ends."""
        headers = {"Range": f"bytes={offset + len(data)}-{offset + size - 1}"} if size is not None else {}
        with self._client.stream("GET", url, headers=headers) as answer:
            status, self._reached = answer.status_code, True
            if status == 404:
                raise NotThereError(f"{url}: not there (404)")
            if status == 429 or status >= 500:
                raise _TryAgainError(f"HTTP status {status}", answer.headers.get("Retry-After", ""))
            if size is not None and status == 200:
                raise BucketError(f"{url}: this server cannot send parts of a file; use one that can")
            if status not in (200, 206):
                raise BucketError(f"{url}: HTTP status {status}")
            if size is not None:
                told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
                if told is None or int(told[1]) != offset + len(data):
                    raise _TryAgainError("the answer is not the part that was asked for")
                if total is not None:
                    total[:] = [int(told[2])]
            for piece in answer.iter_bytes(_PIECE):
                if self._stopped.is_set():
                    return
                if len(data) + len(piece) > limit and size is None:
                    raise BucketError(f"{url}: larger than {limit:,} bytes")
                data += piece[: limit - len(data)]
                if len(data) == size:
                    return


class _TryAgainError(Exception):
    """An answer that another request may better."""

    def __init__(self, reason: str, retry_after: str = "") -> None:
        super().__init__(reason)
        self.wait = float(retry_after) if retry_after.isdigit() else 0.0


class _Object:
    """A data file in the bucket."""

    tries = 3

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket, self._path = bucket, path
        self.size = bucket.size_of(path)

    def read(self, offset: int, size: int) -> np.ndarray:
        return self._bucket.read_range(self._path, offset, size) if size else np.empty(0, np.uint8)
