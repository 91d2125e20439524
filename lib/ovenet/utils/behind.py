"""Work in threads behind the main one, such as writing files, with a bound on what may wait."""

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
    """Calls functions in threads, in no certain order.

    Attributes:
        max_waiting: calls that are not finished; with what they hold, they are what this takes of memory.
    """

    def __init__(self) -> None:
        num_threads = min(_MAX_THREADS, num_cores())
        self.max_waiting = _WAITING_PER_THREAD * num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="behind")
        self._waiting: deque[Future[object]] = deque()

    @property
    def num_waiting(self) -> int:
        """Calls of which the end was not seen yet."""
        return len(self._waiting)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Has a function called; waits where too many calls are not finished.

        Raises:
            Exception: what an earlier call raised.
        """
        if len(self._waiting) >= self.max_waiting:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *arguments))

    def wait(self) -> None:
        """Returns when all calls are finished.

        Raises:
            Exception: what one of them raised; the others go on.
        """
        while self._waiting:
            self._waiting.popleft().result()


def finish_behind(begun: Iterable[Callable[[], T]], num_ahead: int) -> Iterator[T]:
    """Calls what finishes each piece of work when as many more have begun.

    Args:
        begun: begins a piece when the iterator is asked for it.
        num_ahead: how many.
    """
    waiting: deque[Callable[[], T]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > num_ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()
