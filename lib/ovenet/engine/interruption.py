"""Requests to stop: a scheduler's signal before it takes the machine away, a closed terminal, Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from ovenet.utils.logging import get_logger
from ovenet.utils.stop_signals import STOP_SIGNALS

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again; schedulers can be told to requeue on it
_AGAIN_S = 0.05


class Interruption:
    """Context manager that remembers the first request, so that the current step can be finished and saved.

    A second Ctrl-C raises KeyboardInterrupt at once. A SIGHUP that is ignored already (nohup) stays ignored.

    Args:
        at_once: end the process at the first request, while there is nothing to save yet.

    Attributes:
        received: the latest request; None before the first.
        at_once: as the argument; may be changed at any time.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.at_once = at_once
        self._previous: dict[signal.Signals, Any] = {}
        self._telling: threading.Thread | None = None
        self._previous_hook = sys.unraisablehook

    def __enter__(self) -> Interruption:
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        for number in STOP_SIGNALS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._previous_hook
        if self._telling is not None:
            self._telling.join()

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 130 after Ctrl-C, else the one to requeue on."""
        return 130 if self.received == signal.SIGINT else EXIT_REQUEUE

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        is_first, self.received = self.received is None, signal.Signals(number)
        if self.at_once:
            if is_first:
                get_logger().warning("%s: nothing is to be saved yet", self.received.name)
            sys.exit(self.exit_code)
        if is_first:  # schedulers and launchers send it more than once
            again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            # By another thread: this one may be writing a line right now, and may not begin another inside it.
            arguments = ("%s: saving after this step%s", self.received.name, again)
            self._telling = threading.Thread(target=get_logger().warning, args=arguments)
            self._telling.start()

    def _unraisable(self, fault: Any) -> None:
        """Python swallows exceptions in finalisers and weakref callbacks: the request is sent again after them."""
        if self.received is None or not isinstance(fault.exc_value, (SystemExit, KeyboardInterrupt)):
            return self._previous_hook(fault)
        again = threading.Timer(_AGAIN_S, self._send_again, [self.received])
        again.daemon = True
        again.start()

    def _send_again(self, number: signal.Signals) -> None:
        if signal.getsignal(number) != self._note:
            return
        main = threading.main_thread().ident
        if main is not None and hasattr(signal, "pthread_kill"):  # wakes a main thread that sleeps; not on Windows
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)
