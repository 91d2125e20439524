"""Progress of long work: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

from ovenet.utils.logging import get_logger

SILENCE_S = 60.0  # without a line, after which one says that the work goes on
T = TypeVar("T")


def tell(line: str) -> None:
    """Writes a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    title: str,
    num_items: int | None,
    *,
    print_freq: int = 0,
    enabled: bool = True,
    tell: Callable[[str], object] | None = None,
) -> Iterator[Callable[[], None]]:
    """Shows how many items are done.

    Args:
        title: of the work.
        num_items: number of items; None if unknown.
        print_freq: items between lines; 0 for a line a minute.
        enabled: False shows nothing.
        tell: writes a line; None for the log.

    Yields:
        A function to call after each item.
    """
    write = tell or get_logger().info
    has_bar = enabled and sys.stderr.isatty()
    started = told = time.perf_counter()
    done = 0

    def advance() -> None:
        nonlocal done, told
        done += 1
        bar.update()
        now = time.perf_counter()
        is_due = done % print_freq == 0 or done == num_items if print_freq else now - told > SILENCE_S
        if enabled and not has_bar and is_due:
            seconds, told = now - started, now
            total, eta = "", ""
            if num_items is not None:
                total = f"/{num_items}"
                eta = f", ETA {timedelta(seconds=round(seconds / done * (num_items - done)))}"
            write(f"{title}: {done}{total}, {seconds / done:.2f} s each{eta}")

    with tqdm(desc=title, total=num_items, disable=not has_bar, dynamic_ncols=True) as bar:
        yield advance


def track(
    items: Iterable[T],
    title: str,
    num_items: int | None,
    *,
    print_freq: int = 0,
    enabled: bool = True,
    tell: Callable[[str], object] | None = None,
) -> Iterator[T]:
    """Yields items and shows how many are done; arguments as in `progress`."""
    with progress(title, num_items, print_freq=print_freq, enabled=enabled, tell=tell) as advance:
        for item in items:
            yield item
            advance()
