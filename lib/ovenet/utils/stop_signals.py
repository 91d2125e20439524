"""The signals that ask a program to stop, and the worker processes that outlive them."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from functools import cache

_NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")  # Windows lacks two of them
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def ignore_stop_signals() -> None:
    """For worker processes: a signal to the whole process group is meant for the main process, which ends them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def kill_workers_at_exit() -> None:
    """Python ends worker processes by SIGTERM and waits for them; those that ignore it must be killed first."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a crash
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
