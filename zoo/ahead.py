"""Work done by threads ahead of who asks for it: pictures read while a model looks at those before them."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Iterator[_Result]:
    """``function`` of each item, in their order; meanwhile ``threads`` work on the next ``ahead`` items.

    Ctrl-C ends it between two results. What the function raises is raised here.
    """
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    with interrupts_held() as look:
        try:
            for item in items:
                look()
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                look()
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C raises KeyboardInterrupt at the next call of what is yielded, or at the end; a second anywhere.

    Raised anywhere it can leave the lock of a pool of threads taken, and then one waits for the pool's end for ever. In
    a thread that gets no signals, and where somebody else handles Ctrl-C, nothing changes.
    """
    asked: list[int] = []

    def look() -> None:
        if asked:
            raise KeyboardInterrupt

    def hold(number: int, frame: FrameType | None) -> None:
        look()
        asked.append(number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield look
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield look
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    look()
