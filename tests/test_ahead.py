"""Threads that work ahead: order, how far ahead, and Ctrl-C that waits for a moment when no lock is held."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from zoo.ahead import in_order, interrupts_held


def test_results_come_in_order_and_no_further_ahead_than_asked() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    results = in_order(work, range(100), threads=3, ahead=7)
    for item in range(50):
        assert next(results) == item * item
        assert len(begun) <= item + 1 + 7
    results.close()
    assert len(begun) <= 58
    assert list(in_order(work, [], threads=2, ahead=3)) == []


def test_what_is_raised_there_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // item, [1, 0, 1], threads=2, ahead=1))


def test_an_interrupt_waits_for_its_moment() -> None:
    results = in_order(lambda item: item, range(100), threads=2, ahead=2)
    assert next(results) == 0
    os.kill(os.getpid(), signal.SIGINT)  # nothing is raised here
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_waits_for_nothing() -> None:
    reached = []
    with suppress(KeyboardInterrupt), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


def test_an_interrupt_during_the_last_result_is_not_lost() -> None:
    results = in_order(lambda item: item, [1, 2], threads=1, ahead=2)
    assert [next(results), next(results)] == [1, 2]
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_who_handles_interrupts_goes_on_to() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts_held() as look:
            os.kill(os.getpid(), signal.SIGINT)
            look()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    elsewhere = threading.Thread(target=lambda: list(in_order(seen.append, [1, 2], threads=1, ahead=1)))
    elsewhere.start()
    elsewhere.join()
    assert seen == [signal.SIGINT, 1, 2]
