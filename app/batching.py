"""The pictures of many askers, answered in batches: as many as wait, none held back for company."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np


class Busy(RuntimeError):  # noqa: N818
    """Too many pictures wait already; nothing was done for this one. Ask again in a moment."""


class Batcher:
    """Answers single pictures by running them in batches; safe to call from many threads.

    ``run`` takes a batch (N, ...) and returns an array whose first dimension is N, or a named tuple of such arrays
    and Nones, such as ``export.runtime.OnnxModel`` does. While it runs, what comes in is gathered: under load batches
    grow to ``most``; a lone picture is run at once, alone. At most ``waiting`` pictures wait for their turn.
    ``threads``: batches at work at the same time.

    An error reaches those whose pictures raise it: a batch that fails is run again picture by picture.
    """

    def __init__(
        self, run: Callable[[np.ndarray], Any], *, most: int = 16, waiting: int = 64, threads: int = 1
    ) -> None:
        if min(most, waiting, threads) < 1:
            raise ValueError(f"most={most}, waiting={waiting}, threads={threads}: all must be at least 1.")
        self._run, self._most, self._waiting = run, most, waiting
        self._changed = threading.Condition()
        self._queue: deque[tuple[np.ndarray, Future[Any]]] = deque()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True, name="batcher") for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, pixels: np.ndarray) -> Any:
        """The answer to one prepared picture: the row of each array that ``run`` returns, as a copy of its own.

        Raises Busy at once when ``waiting`` pictures wait, RuntimeError after ``close``, and what ``run`` raises.
        """
        answer: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("This batcher is closed.")
            if len(self._queue) >= self._waiting:
                raise Busy(f"{len(self._queue)} pictures wait already; ask again in a moment.")
            self._queue.append((pixels, answer))
            self._changed.notify()
        return answer.result()

    def close(self) -> None:
        """Finish the batches at work; those that still wait get a RuntimeError."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for _, answer in left:
            answer.set_exception(RuntimeError("This batcher is closed."))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                batch = self._taken()
            self._answer(batch)

    def _taken(self) -> list[tuple[np.ndarray, "Future[Any]"]]:
        """The first in the queue, and those behind it that are of its shape and type."""
        kind = _kind(self._queue[0][0])
        batch: list[tuple[np.ndarray, Future[Any]]] = []
        rest: list[tuple[np.ndarray, Future[Any]]] = []
        while self._queue and len(batch) < self._most:
            item = self._queue.popleft()
            (batch if _kind(item[0]) == kind else rest).append(item)
        self._queue.extendleft(reversed(rest))
        return batch

    def _answer(self, batch: list[tuple[np.ndarray, "Future[Any]"]]) -> None:
        try:
            rows = _rows(self._run(np.stack([pixels for pixels, _ in batch])), len(batch))
        except BaseException as error:  # whatever it is, the thread stays: others wait for it
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for item in batch:
                    self._answer([item])
            return
        for (_, answer), row in zip(batch, rows, strict=True):
            answer.set_result(row)


def _kind(pixels: np.ndarray) -> tuple[Any, ...]:
    return pixels.shape, pixels.dtype


def _rows(output: Any, count: int) -> list[Any]:
    several = hasattr(output, "_make")  # a named tuple
    arrays = [array for array in (output if several else (output,)) if array is not None]
    if any(len(array) != count for array in arrays):
        raise RuntimeError(f"A batch of {count} pictures was answered by arrays of {[len(array) for array in arrays]}.")
    if not several:
        return [output[row].copy() for row in range(count)]
    return [output._make(None if array is None else array[row].copy() for array in output) for row in range(count)]
