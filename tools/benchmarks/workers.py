"""Ways are measured in other processes: one that hangs, or that the card's error takes along, ends no other.

The plain ways have a process of their own, as ours set what holds for a whole process.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch

from benchmarks.card import Bench, Record, Way

WAY_LIMIT_S = 100.0  # of one way, its compilation included
_IS_OVER = "process_is_over"  # in an answer: the process can measure no more
_MIN_S = 5.0  # with less time left no way is begun


class Worker:
    """A process that measures what it is asked for.

    Args:
        command: starts a program that calls `serve`.
    """

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, title: str, limit_s: float) -> Record:
        """The record of a way.

        Raises:
            TimeoutError: it took longer than `limit_s`.
            EOFError: the process ended before it was done.
        """
        try:
            self._process.stdin.write(title + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            raise TimeoutError
        if not (line := self._process.stdout.readline()):
            raise EOFError
        return json.loads(line)

    def kill(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._end()

    def exit_code(self) -> int:
        """Of a process that has ended by itself; below 0 for a signal."""
        self._end()
        return self._process.returncode

    def _end(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def measure_all(
    ways: Sequence[Way], command: Sequence[str], seconds: float, note: Callable[[Record], None]
) -> list[Way]:
    """Measures ways in their order.

    Args:
        ways: what to measure.
        command: of `Worker`.
        seconds: for all of them.
        note: takes each record at once.

    Returns:
        Those that were not reached.
    """
    end = time.monotonic() + seconds
    workers: dict[bool, Worker] = {}
    try:
        for number, way in enumerate(ways):
            left = end - time.monotonic()
            if left < _MIN_S:
                return list(ways[number:])
            print(f"{way.title} …", file=sys.stderr, flush=True)
            if way.is_plain not in workers:
                workers[way.is_plain] = Worker(command)
            worker = workers[way.is_plain]
            record: Record = {"work": way.work, "way": way.name}
            try:
                record = worker.ask(way.title, min(left, WAY_LIMIT_S))
                is_over = record.pop(_IS_OVER)
            except TimeoutError:
                if left < WAY_LIMIT_S:
                    return list(ways[number:])
                record["failed"], is_over = f"not done after {WAY_LIMIT_S:.0f} s", True
            except EOFError:
                record["failed"], is_over = f"its process ended with code {worker.exit_code()}", True
            note(record)
            if is_over:
                workers.pop(way.is_plain).kill()
    finally:
        for worker in workers.values():
            worker.kill()
    return []


def serve(ways: Mapping[str, Way], bench: Bench, machine: Callable[[], Record]) -> None:
    """Reads titles, a line each, and answers each with its record as JSON, with the machine in it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints, prints to stderr
    for line in sys.stdin:
        record = {**bench.record(ways[line.rstrip("\n")]), "machine": machine()}
        record[_IS_OVER] = not _works(bench.options.device)
        print(json.dumps(record), file=answers, flush=True)


def _works(device: torch.device) -> bool:
    """Whether the device still takes work: after some errors it takes no more from this process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
