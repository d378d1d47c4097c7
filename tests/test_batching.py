"""Batches of many askers: everyone gets the own answer, errors reach those they belong to, queues are bounded."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from test_export import tiny_student

import export
from app.batching import Batcher, Busy
from export.runtime import Output


class Doubled(NamedTuple):
    twice: np.ndarray
    total: np.ndarray
    nothing: np.ndarray | None


def double(batch: np.ndarray) -> Doubled:
    return Doubled(batch * 2, batch.sum(1), None)


@pytest.fixture
def made() -> Iterator[Callable[..., Batcher]]:
    batchers: list[Batcher] = []

    def make(*arguments: object, **options: int) -> Batcher:
        batchers.append(Batcher(*arguments, **options))  # type: ignore[arg-type]
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.close()


def test_everyone_gets_the_own_answer(made: Callable[..., Batcher]) -> None:
    sizes: list[int] = []

    def run(batch: np.ndarray) -> Doubled:
        sizes.append(len(batch))
        time.sleep(0.0005)
        return double(batch)

    for threads in (1, 3):
        sizes.clear()
        batcher = made(run, most=16, waiting=64, threads=threads)
        numbers = np.random.default_rng(0).permutation(5000).astype(np.float64)
        with ThreadPoolExecutor(48) as pool:
            answers = list(pool.map(lambda number, b=batcher: b.submit(np.array([number, number / 7])), numbers))
        for number, answer in zip(numbers, answers, strict=True):
            assert answer.twice.tolist() == [2 * number, 2 * (number / 7)]
            assert answer.total == number + number / 7
            assert answer.nothing is None
        assert sum(sizes) == 5000
        assert 1 < max(sizes) <= 16  # they were gathered, and not too many


def test_as_the_model_answers_one_by_one(
    made: Callable[..., Batcher], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = export.OnnxModel(tiny_student(tmp_path_factory.getbasetemp()), threads=1)
    sizes: list[int] = []

    def run(batch: np.ndarray) -> Output:
        sizes.append(len(batch))
        return model(batch)

    batcher = made(run)
    images = np.random.default_rng(0).random((200, 3, 48, 48), dtype=np.float32)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(batcher.submit, images))
    assert max(sizes) > 1
    for image, answer in zip(images, answers, strict=True):
        alone = model(image[None])
        assert np.abs(answer.features - alone.features[0]).max() <= 1e-5 * np.abs(alone.features).max()
        assert alone.logits is not None
        assert np.abs(answer.logits - alone.logits[0]).max() <= 1e-5 * np.abs(alone.logits).max()
        assert answer.features.base is None  # its own memory, not a part of what others got


def test_a_lone_picture_is_not_held_back(made: Callable[..., Batcher]) -> None:
    batcher = made(lambda batch: batch)
    batcher.submit(np.zeros(3))
    times = []
    for _ in range(50):
        started = time.perf_counter()
        batcher.submit(np.zeros(3))
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.002


def test_a_full_queue_says_so_at_once(made: Callable[..., Batcher]) -> None:
    going, go = threading.Event(), threading.Event()

    def run(batch: np.ndarray) -> np.ndarray:
        going.set()
        go.wait(10)
        return batch

    batcher = made(run, most=2, waiting=3)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.submit, np.array([0]))
        assert going.wait(10)
        others = [pool.submit(batcher.submit, np.array([n])) for n in (1, 2, 3)]
        until = time.monotonic() + 10
        while len(batcher._queue) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        started = time.perf_counter()
        with pytest.raises(Busy, match="3 pictures wait already"):
            batcher.submit(np.array([4]))
        assert time.perf_counter() - started < 0.1
        go.set()
        assert [answer.result(10).item() for answer in (first, *others)] == [0, 1, 2, 3]
    assert batcher.submit(np.array([5])).item() == 5  # there is room again


def test_an_error_reaches_the_one_it_belongs_to(made: Callable[..., Batcher]) -> None:
    gate = threading.Event()

    def run(batch: np.ndarray) -> np.ndarray:
        gate.wait(10)
        if (batch == 13).any():
            raise ValueError("unlucky")
        return batch + 1

    batcher = made(run, most=32)

    def ask(number: int) -> object:
        try:
            return batcher.submit(np.array([number])).item()
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(ask, number) for number in range(30)]
        time.sleep(0.05)
        gate.set()
        found = [answer.result(10) for answer in asked]
    assert found == [number + 1 if number != 13 else "unlucky" for number in range(30)]
    assert batcher.submit(np.array([1])).item() == 2  # the worker lives


def test_pictures_of_different_shape_share_no_batch(made: Callable[..., Batcher]) -> None:
    shapes: set[tuple[int, ...]] = set()

    def run(batch: np.ndarray) -> np.ndarray:
        shapes.add(batch.shape[1:])
        return batch.reshape(len(batch), -1).sum(1)

    batcher = made(run)
    with ThreadPoolExecutor(16) as pool:
        sums = list(pool.map(lambda n: batcher.submit(np.full(1 + n % 3, n)), range(90)))
    assert [found.item() for found in sums] == [n * (1 + n % 3) for n in range(90)]
    assert shapes == {(1,), (2,), (3,)}


def test_a_wrong_number_of_answers_is_an_error(made: Callable[..., Batcher]) -> None:
    batcher = made(lambda batch: batch[:0])
    with pytest.raises(RuntimeError, match="A batch of 1 pictures was answered by arrays of"):
        batcher.submit(np.zeros(2))
    with pytest.raises(ValueError, match="all must be at least 1"):
        Batcher(double, most=0)


def test_closing_answers_those_who_wait(made: Callable[..., Batcher]) -> None:
    going, go = threading.Event(), threading.Event()

    def run(batch: np.ndarray) -> np.ndarray:
        going.set()
        go.wait(10)
        return batch

    batcher = made(run, most=1)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.submit, np.array([1]))
        assert going.wait(10)
        second = pool.submit(batcher.submit, np.array([2]))
        while not batcher._queue:
            time.sleep(0.001)
        closing = pool.submit(batcher.close)
        with pytest.raises(RuntimeError, match="closed"):
            second.result(10)
        go.set()
        assert first.result(10).item() == 1
        closing.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(np.array([3]))
    assert not any(thread.is_alive() for thread in batcher._threads)
