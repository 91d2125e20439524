"""Coarse parallelism: a few large pieces of work, one thread each.

Torch splits each operation: many small operations are hundreds of parallel regions, and each waits for its slowest
thread, which is one that is not scheduled as soon as another process is busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

MAX_THREADS = 8  # beyond that, memory bandwidth is the limit


@contextmanager
def coarse_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch uses, up to `MAX_THREADS`; operations run in one thread each, inside and
    outside of the pool.

    The threads record no gradients, whatever the caller's setting, which is per thread.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads inherit it
    try:
        with ThreadPoolExecutor(min(num_threads, MAX_THREADS), initializer=_start) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def _start() -> None:
    torch.set_num_threads(1)
    torch.autograd.set_grad_enabled(False)
