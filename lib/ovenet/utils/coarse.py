"""Coarse parallelism: a few large pieces of work, one thread each.

Split finely, as torch does by itself, many small operations are hundreds of parallel regions, and each waits for its
slowest thread. As soon as another process is busy, that is one which is not scheduled.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

MAX_THREADS = 8  # more are limited by memory bandwidth


@contextmanager
def coarse_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch uses, up to `MAX_THREADS`; torch's operations run in one thread each, in the
    pool and outside of it.

    Gradients are recorded in none of them, whatever the caller does: that is a setting of each thread.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take it over
    try:
        with ThreadPoolExecutor(min(num_threads, MAX_THREADS), initializer=_start) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def _start() -> None:
    torch.set_num_threads(1)
    torch.autograd.set_grad_enabled(False)
