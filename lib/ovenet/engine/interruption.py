"""Requests to stop: what schedulers send before they take a machine away, and Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from ovenet.utils.logging import get_logger

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again; schedulers can be told to requeue on it
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """Remembers the first request while it is active, so that the step at hand can be finished and saved.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What the process should end with: 130 after Ctrl-C, else the code to requeue on."""
        return 130 if self.received == signal.SIGINT else EXIT_REQUEUE

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
        get_logger().warning("%s: saving after this step%s", self.received.name, again)
