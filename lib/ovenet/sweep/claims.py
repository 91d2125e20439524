"""Claims: files by which any number of processes on any machines agree on who makes which run of a sweep.

Each attempt at a run is a file of its own, ``seedN-KEY.ATTEMPT.json``, which is created exclusively. Its owner touches
it again and again. Who has looked at it for a lease without seeing it change, by a clock of its own that never jumps,
creates the next attempt; the owner that finds a next attempt has lost the run. Clocks of machines are never compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovenet.errors import UserError
from ovenet.sweep.definition import Sweep, SweepRun
from ovenet.utils.environment import code_version
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import create_file, require_atomic_creation

RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"
LEASE_S = 60.0
ATTEMPTS = 3
_BEATS = 10  # signs of life in a lease


class GivenUpError(Exception):
    """A run has failed so often that it is not tried again; the message is why it failed last."""


class Claims:
    """The claims on the runs of a sweep.

    Args:
        results: folder of the results.
        sweep: the sweep.
        lease_s: seconds without a sign of life after which others take over what is claimed here.
        attempts: number of failures after which a run is given up.
        last_line: the last line of a run's log, for those whose owner fell silent.
    """

    def __init__(
        self, results: Path, sweep: Sweep, lease_s: float, attempts: int, last_line: Callable[[SweepRun], str]
    ):
        self.poll_s = min(lease_s / _BEATS, 1.0)  # between two looks at what others have claimed
        self._folder, self._attempts, self._last_line = results / "claims", attempts, last_line
        settings = hashlib.sha256("".join(sorted({run.key for run in sweep.runs})).encode()).hexdigest()
        owner, code = f"process {os.getpid()} on {platform.node()}", code_version(Path(__file__).parent)
        self._own = {"owner": owner, "code": code, "lease_s": lease_s, "sweep": sweep.name, "settings": settings[:8]}
        self._numbers: dict[str, int] = {}
        self._forgiven: set[str] = set()
        self._seen: dict[str, tuple[tuple[int, int], float, float]] = {}

    def enter(self, *, joins: bool) -> None:
        """Tries the folder, and compares the sweep with the one that is under way there.

        Args:
            joins: whether the sweep has to be the same; else it may replace one that nobody works at.

        Raises:
            UserError: the folder is read-only, or without atomic creation, or the sweep has other settings there.
        """
        require_atomic_creation(self._folder)
        record, settings = self._folder / f"{self._own['sweep']}.settings", str(self._own["settings"])
        try:
            return create_file(record, settings)
        except FileExistsError:
            if record.read_text(encoding="utf-8") == settings:
                return
        owner = "" if joins else self._owner_with_other_settings()
        if joins or owner:
            remedy = "start it anew without --worker" if joins else "end that one first"
            raise UserError(
                f"{self._folder.parent}: the sweep {self._own['sweep']} was begun there with other settings"
                f"{f' ({owner} works at it)' if owner else ''}; take its file as it was, or another name, or {remedy}"
            )
        record.write_text(settings, encoding="utf-8")

    def forgive(self, run: SweepRun) -> None:
        """Lets a run that has no result be tried again, with as many attempts as a new one."""
        number, content, _ = self._newest(run)
        if content["state"] == RUNNING:  # its owner may be at work; once it is known to be silent
            self._forgiven.add(run.short_key)
        elif content["failures"] or content["state"] == FINISHED:
            self._create(run, number + 1, STOPPED, 0, moves=content["moves"])

    def num_attempts(self, run: SweepRun) -> int:
        """Number of attempts at a run that are known so far."""
        return self._numbers.get(run.short_key, 0)

    def take(self, run: SweepRun) -> Claim | None:
        """Claims a run; None while it is another's.

        Raises:
            GivenUpError: it has failed too often.
            OSError: the folder is not there, or full.
        """
        number, content, touched_ns = self._newest(run)
        state, failures, moves = content["state"], content["failures"], content["moves"]
        if state == FAILED and failures >= self._attempts:
            raise GivenUpError(content["says"])
        if state in (FAILED, STOPPED):
            return self._create(run, number + 1, RUNNING, failures, moves=moves)
        if not self._is_silent(run, (number, touched_ns), content["lease_s"]):
            return None
        if state == FINISHED:  # and its result was deleted
            return self._create(run, number + 1, RUNNING, 0, moves=moves)
        failures = 0 if run.short_key in self._forgiven else failures + 1
        self._forgiven.discard(run.short_key)
        if failures < self._attempts:
            get_logger().warning("%s, seed %d: taken over from %s", run.name, run.seed, content["owner"])
            return self._create(run, number + 1, RUNNING, failures, moves=True)
        says = f"{content['owner']} fell silent; the last line of its log: {self._last_line(run) or 'none'}"
        self._create(run, number + 1, FAILED, failures, says, moves=True)
        return None

    def _newest(self, run: SweepRun) -> tuple[int, dict[str, Any], int]:
        """The newest attempt at a run: its number, what its file says, and when that was touched (only compared)."""
        number = self.num_attempts(run)
        while self._path(run, number + 1).exists():
            number += 1
        self._numbers[run.short_key] = number
        if number == 0:
            return 0, {"state": STOPPED, "failures": 0, "moves": False}, 0
        path = self._path(run, number)
        try:
            with path.open(encoding="utf-8") as file:  # opened first, since NFS then asks its server
                return number, dict(json.load(file)), os.fstat(file.fileno()).st_mtime_ns
        except ValueError as error:
            raise UserError(f"{path}: not a claim ({error}); end all workers and delete it") from error

    def _is_silent(self, run: SweepRun, state: tuple[int, int], lease_s: float) -> bool:
        """Whether an attempt's file has not changed for a lease in which this process has looked all the time."""
        now = time.monotonic()
        seen, since, looked = self._seen.get(run.short_key, (state, now, now))
        if seen != state or now - looked > lease_s / 2:
            since = now
        self._seen[run.short_key] = state, since, now
        return now - since > lease_s

    def _create(
        self, run: SweepRun, number: int, state: str, failures: int, says: str = "", *, moves: bool
    ) -> Claim | None:
        content = {"state": state, "failures": failures, "says": says, "moves": moves, **self._own}
        content["id"] = uuid.uuid4().hex
        path = self._path(run, number)
        try:
            create_file(path, json.dumps(content, indent=2))
        except FileExistsError:
            return None
        self._numbers[run.short_key] = number
        return Claim(run, number, content, path, self._path(run, number + 1))

    def _path(self, run: SweepRun, number: int) -> Path:
        return self._folder / f"{run.short_key}.{number}.json"

    def _owner_with_other_settings(self) -> str:
        """A process that works at a sweep of the same name with other settings, "" if there is none."""
        found = {}
        for path in self._folder.glob("seed*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            is_other = content["sweep"] == self._own["sweep"] and content["settings"] != self._own["settings"]
            if is_other and content["state"] == RUNNING:
                found[path] = path.stat().st_mtime_ns, content
        time.sleep(max((3 * content["lease_s"] / _BEATS for _, content in found.values()), default=0))
        changed = (content for path, (ns, content) in found.items() if path.stat().st_mtime_ns != ns)
        return next((str(content["owner"]) for content in changed), "")


class Claim:
    """An attempt at a run that is this process's; while it is entered, it shows signs of life.

    Attributes:
        run: the run.
        number: number of the attempt, from 1.
        content: what its file says; "moves" is whether a silent owner may still write into the run's folder.
        lost: set when another has taken the run over.
    """

    def __init__(self, run: SweepRun, number: int, content: dict[str, Any], path: Path, following: Path):
        self.run, self.number, self.content = run, number, content
        self.lost = threading.Event()
        self._path, self._following = path, following
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()

    def is_lost(self) -> bool:
        """Looks whether another has taken the run over."""
        if self._following.exists():
            self.lost.set()
        return self.lost.is_set()

    def note(self, state: str, says: str = "") -> None:
        """Writes down how the attempt has ended, unless it is lost; a failed one says why."""
        if self.is_lost():
            return
        failures = self.content["failures"] + (state == FAILED)
        unfinished = self._path.with_name(f".{self.content['id']}.unfinished")
        text = json.dumps({**self.content, "state": state, "says": says, "failures": failures}, indent=2)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self._path)

    def _beat(self) -> None:
        is_told = False
        while not self._ended.wait(self.content["lease_s"] / _BEATS):
            try:
                if self.is_lost():
                    return
                os.utime(self._path)  # needs no room on a full disk
                is_told = False
            except OSError as error:
                if not is_told:
                    get_logger().warning("%s: no sign of life can be shown (%s); going on", self._path, error)
                is_told = True
