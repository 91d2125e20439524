"""A process that runs one command after another, so that Python, torch and the GPU are started once for many runs.

`ovenet.commands.worker` is the program of that process.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_POLL_S = 0.5
_GRACE_S = 120  # for a command that is asked to stop to save


class Worker:
    """Runs commands in a process of its own, which it starts with the first one, and again after one that failed.

    Args:
        environment: environment of the process.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(
        self,
        command: str,
        arguments: Sequence[str],
        console: Path,
        is_stopped: Callable[[], bool],
        is_lost: Callable[[], bool] = bool,
    ) -> int:
        """Runs a command to its end and returns its exit code.

        Args:
            command: name of the command.
            arguments: its arguments.
            console: file that its output is appended to.
            is_stopped: whether to end it early; it is asked to, and killed if it takes over two minutes.
            is_lost: whether to kill it at once.
        """
        process = self._started(console)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a process that has ended is noticed below
            process.stdin.write(json.dumps([command, *arguments, str(console)]) + "\n")
            process.stdin.flush()
        while True:
            with contextlib.suppress(queue.Empty):
                reply = self._replies.get(timeout=_POLL_S)
                if reply:
                    if int(reply):
                        self.close()
                    return int(reply)
            if process.poll() is not None:
                self.close()
                return process.returncode
            if is_lost() or is_stopped():
                self.close(grace_s=0 if is_lost() else _GRACE_S)
                return process.returncode

    def close(self, grace_s: float = 10) -> None:
        """Ends the process: asks it to, and kills it after `grace_s` seconds; at once for 0."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if grace_s:
            process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _started(self, console: Path) -> subprocess.Popen[str]:
        if self._process is None:
            with console.open("a", encoding="utf-8") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ovenet.commands.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=self._environment,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the sweep, which passes it on once
                )
            self._replies = queue.SimpleQueue()
            # A thread, since a pipe can be waited for with a limit on some systems only.
            threading.Thread(target=_pass_on, args=(self._process.stdout, self._replies), daemon=True).start()
        return self._process


def _pass_on(lines: Iterator[str], replies: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError):  # the pipe was closed
        for line in lines:
            replies.put(line.strip())
