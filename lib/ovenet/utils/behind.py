"""Background threads, for writing files and the like, with a bounded queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ovenet.utils.environment import num_cores

T = TypeVar("T")
_MAX_THREADS = 4
_WAITING_PER_THREAD = 2


class Behind:
    """Calls functions in background threads, in any order.

    Attributes:
        max_waiting: largest number of unfinished calls; they and their arguments bound the memory.
    """

    def __init__(self) -> None:
        num_threads = min(_MAX_THREADS, num_cores())
        self.max_waiting = _WAITING_PER_THREAD * num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="behind")
        self._waiting: deque[Future[object]] = deque()

    @property
    def num_waiting(self) -> int:
        """Number of calls that are not known to have finished."""
        return len(self._waiting)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Submits a call; waits while too many are unfinished.

        Raises:
            Exception: the error of an earlier call.
        """
        if len(self._waiting) >= self.max_waiting:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *arguments))

    def wait(self) -> None:
        """Waits for all calls.

        Raises:
            Exception: the error of one of them; the others go on.
        """
        while self._waiting:
            self._waiting.popleft().result()


def finish_behind(begun: Iterable[Callable[[], T]], num_ahead: int) -> Iterator[T]:
    """Finishes each piece of work after a number of later pieces have begun.

    Args:
        begun: begins a piece with each item, and yields the function that finishes it.
        num_ahead: number of pieces begun ahead.
    """
    waiting: deque[Callable[[], T]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > num_ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()
