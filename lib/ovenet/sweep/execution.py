"""Makes the missing runs of a sweep, several at a time, beside other processes that do the same."""

from __future__ import annotations

import os
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from ovenet import builders
from ovenet.config import check_parts, load_config
from ovenet.engine.checkpoint import FINAL
from ovenet.engine.interruption import EXIT_REQUEUE, Interruption
from ovenet.errors import UserError
from ovenet.evaluation.curves import read_log
from ovenet.models.cost import count_parameters
from ovenet.predictor import run_folder
from ovenet.sweep.claims import FAILED, FINISHED, STOPPED, Claim, Claims, GivenUpError
from ovenet.sweep.definition import Sweep, SweepRun, training_folder, training_overrides, weights_path
from ovenet.sweep.results import finished_runs, result_path, write_result
from ovenet.sweep.worker import Worker
from ovenet.utils.cli import command_environment
from ovenet.utils.environment import num_cores
from ovenet.utils.logging import get_logger
from ovenet.utils.run_lock import LOCK
from ovenet.utils.writing import patiently

CONSOLE = "console.log"
_CHECKPOINT_MINUTES = 5
_POLL_S = 0.5
_HEARTBEAT_S = 60.0
_REQUEST_S = 10.0
_TAIL_BYTES = 4096
_ASKED_TO_STOP = (EXIT_REQUEUE, 130, -signal.SIGTERM)  # as a scheduler does with all processes of a job
_LOG_LINE = re.compile(r"^[\d-]{10} [\d:]{8} [A-Z] (.+)$", re.MULTILINE)


class Interrupted(Exception):
    """The sweep received a request to stop, or another has taken the run over."""


class CommandError(Exception):
    """A command of a run failed; the message is its last line."""


def default_jobs() -> int:
    """Number of runs at a time: the number of GPUs or, without any, of cores that this process may use."""
    return torch.cuda.device_count() or num_cores()


def run_missing(
    sweep: Sweep, runs: Sequence[SweepRun], folder: Path, *, jobs: int, claims: Claims, waits: bool = True
) -> list[str]:
    """Trains and tests the missing runs, beside any number of processes on any machines that do the same.

    Each run has its share of the cores as threads (``OMP_NUM_THREADS`` in the environment wins), and the GPUs in turn.
    On a request to stop, trainings save and end; who claims them next resumes them. It ends when all runs have a result
    or are given up.

    A run that starts from another's weights waits for it; if those weights are gone, they are trained again.

    Args:
        sweep: sweep that the runs belong to.
        runs: missing runs.
        folder: folder of the JSON file of each run.
        jobs: number of runs at a time.
        claims: claims in that folder, which have been entered.
        waits: whether it waits for what others make, which it may have to take over.

    Returns:
        A line for each run that is given up.

    Raises:
        SystemExit: on a request to stop, with its code.
        OSError: the folder was away or full for too long.
    """
    board = _Board(sweep, runs, folder, claims)
    with Interruption() as interruption, ThreadPoolExecutor(jobs) as pool:
        slots = [pool.submit(_serve, board, Worker(_environment(slot, jobs)), waits) for slot in range(jobs)]
        started = told = time.monotonic()
        try:
            while not all(slot.done() for slot in slots):
                time.sleep(_POLL_S)
                if interruption.received or any(slot.done() and slot.exception() for slot in slots):
                    board.stop.set()
                if time.monotonic() - told > _HEARTBEAT_S:
                    told = time.monotonic()
                    _tell(board, len(runs), told - started)
        finally:
            board.stop.set()
    for slot in slots:
        slot.result()
    if interruption.received:
        sys.exit(interruption.exit_code)
    return [f"{run.name}, seed {run.seed}: {board.given_up[run.key]}" for run in runs if run.key in board.given_up]


class _Board:
    """What is left to do, for the threads of this process.

    Attributes:
        stop: ends what runs.
        active: runs that this process makes right now, by key.
        given_up: why runs are not tried again, by key.
    """

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun], folder: Path, claims: Claims):
        self.sweep, self.folder, self.claims = sweep, folder, claims
        self.stop = threading.Event()
        self.active: dict[str, SweepRun] = {}
        self.given_up: dict[str, str] = {}
        self._left = {run.key: run for run in with_starts(sweep, runs)}
        self._lock = threading.Lock()
        self._is_told = False

    @property
    def num_left(self) -> int:
        """Number of runs without a result that are not given up."""
        return len(self._left)

    def take(self) -> Claim | None:
        """Claims the next run, first those that nobody has tried; None if all are others' or wait for others."""
        with self._lock:
            self._strike_out(finished_runs(self.folder))
            for run in sorted(self._left.values(), key=self.claims.num_attempts):
                claim = None
                try:
                    claim = self.claims.take(run) if self._may_begin(run) else None
                except GivenUpError as error:
                    self.given_up[run.key] = str(error)
                    get_logger().error("%s, seed %d: given up: %s", run.name, run.seed, error)
                if claim is None:
                    continue
                self._strike_out(finished_runs(self.folder))
                if run.key in self._left:
                    self.active[run.key] = run
                    return claim
                claim.note(STOPPED)  # finished by another between both looks
            self._strike_out(set())
        return None

    def tell_of_others(self) -> None:
        """Logs once that it waits for other processes, which may have been killed."""
        left = dict(self._left)
        of_others = [run for key, run in left.items() if key not in self.active]
        num_others = sum(run.start is None or run.start.key not in left for run in of_others)
        if num_others and not self._is_told:
            self._is_told = True
            get_logger().info(
                "waiting for %d run(s) of other processes; what shows no sign of life is taken over (--lease)",
                num_others,
            )

    def _strike_out(self, finished: set[str]) -> None:
        """Takes what is finished or given up off the list; weights that others start from have to be there."""
        needed = {run.start.key for run in self._left.values() if run.start is not None}
        for key, run in list(self._left.items()):
            is_there = key not in needed or weights_path(run, self.sweep).exists()
            if key in self.given_up or (run.short_key in finished and is_there):
                del self._left[key]

    def _may_begin(self, run: SweepRun) -> bool:
        """Whether the weights that a run starts from are there.

        Raises:
            GivenUpError: they will not be.
        """
        if run.start is None:
            return True
        if run.start.key in self._left:  # its test need not be awaited
            return (training_folder(run.start, self.sweep) / FINAL).exists()
        if not weights_path(run.start, self.sweep).exists():
            raise GivenUpError(f"it starts from {run.start.name}, seed {run.start.seed}, which has failed")
        return True


def _serve(board: _Board, worker: Worker, waits: bool) -> None:
    """Makes one run after another until nothing is left, or nothing to begin with unless it `waits`."""
    try:
        while board.num_left and not board.stop.is_set():
            claim = patiently(board.take, board.stop)
            if claim is None:
                if not (waits or board.active):
                    return
                board.tell_of_others()
                board.stop.wait(board.claims.poll_s)
                continue
            with claim:
                _attempt(board, claim, worker)
    finally:
        worker.close()


def _attempt(board: _Board, claim: Claim, worker: Worker) -> None:
    """Makes a run, and notes in its claim how that has ended."""
    run = claim.run
    number = f", attempt {claim.number}" if claim.number > 1 else ""
    get_logger().info("%s, seed %d: begins (%d left)%s", run.name, run.seed, board.num_left, number)
    state, says = STOPPED, ""
    try:
        _Execution(board, claim, worker).execute()
        state = FINISHED
        get_logger().info("%s, seed %d: done", run.name, run.seed)
    except Interrupted:
        why = "is another's by now, nothing is written" if claim.lost.is_set() else "stopped"
        get_logger().info("%s, seed %d: %s", run.name, run.seed, why)
    except Exception as error:  # also a fault of the program: the other runs go on
        state, says = FAILED, str(error) or type(error).__name__
        is_program_fault = not isinstance(error, (UserError, CommandError, OSError))
        get_logger().error("%s, seed %d: %s", run.name, run.seed, says, exc_info=is_program_fault)
    finally:
        del board.active[run.key]
    patiently(lambda: claim.note(state, says), board.stop)


def _tell(board: _Board, num_runs: int, seconds: float) -> None:
    """Logs how far a sweep and this process's present runs are."""
    num_done = num_runs - board.num_left
    left = timedelta(seconds=round(seconds / num_done * board.num_left)) if num_done > 0 else None
    get_logger().info("%d of %d runs are done%s", num_done, num_runs, f", about {left} left" if left else "")
    for run in list(board.active.values()):
        if line := last_line(run, board.sweep):
            get_logger().info("  %s, seed %d: %s", run.name, run.seed, line)


def with_starts(sweep: Sweep, runs: Sequence[SweepRun]) -> list[SweepRun]:
    """The runs, after those that they start from and whose weights are not there."""
    added: dict[str, SweepRun] = {}
    for run in runs:
        start = run.start
        while start is not None and not weights_path(start, sweep).exists():
            if all(start.key != other.key for other in runs):
                added[start.key] = start
            start = start.start
    return [*reversed(added.values()), *runs]


def _environment(slot: int, jobs: int) -> dict[str, str]:
    threads = max(num_cores() // jobs, 1)
    environment = {"OMP_NUM_THREADS": str(threads), **command_environment()}
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    devices = visible or [str(i) for i in range(torch.cuda.device_count())]
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def last_line(run: SweepRun, sweep: Sweep) -> str:
    """The last line of a run's log, without its time; "" if there is none."""
    console = training_folder(run, sweep) / CONSOLE
    if not console.is_file():
        return ""
    with console.open("rb") as file:
        file.seek(max(0, console.stat().st_size - _TAIL_BYTES))
        lines = _LOG_LINE.findall(file.read().decode("utf-8", errors="replace"))
    return str(lines[-1]) if lines else ""


class _Execution:
    """One run, from training to its JSON file."""

    def __init__(self, board: _Board, claim: Claim, worker: Worker):
        self._sweep, self._run, self._folder, self._stop = board.sweep, claim.run, board.folder, board.stop
        self._claim, self._worker = claim, worker

    def execute(self) -> None:
        sweep, run = self._sweep, self._run
        if self._claim.content["moves"]:
            patiently(self._move_folder, self._stop)
        overrides = training_overrides(run, sweep)
        cfg = load_config(run.config_file, overrides)
        run_dir = run_folder.run_directory(cfg, run.config_file)
        path = result_path(self._folder, run)
        test_cfg = load_config(run.config_file, [*overrides, *sweep.test])
        check_parts(test_cfg)
        tested_on = builders.test_dataset(test_cfg)
        if not tested_on.has_labels:
            raise UserError(f"{tested_on.list_path}: a sweep needs `image label` on every line of what TEST names")
        if not cfg.TRAIN.CHECKPOINT_EVERY and not cfg.TRAIN.CHECKPOINT_MINUTES:
            overrides += ["TRAIN.CHECKPOINT_MINUTES", str(_CHECKPOINT_MINUTES)]
        model_file = run_dir / weights_path(run, sweep).name
        if not (run_dir / FINAL).exists():
            self._call(run_dir, "train", "--cfg", str(run.config_file), *overrides)
        if path.is_file():  # trained again for the runs that start from it
            return
        test = [str(model_file), "OUTPUT_DIR", cfg.OUTPUT_DIR, "DATASET.ROOT", cfg.DATASET.ROOT, "TEST.RESUME", "True"]
        test += ["WORKERS", str(cfg.WORKERS), "DEVICE", cfg.DEVICE, *sweep.test]
        self._call(run_dir, "test", *test)
        trained = builders.load_model(model_file, overrides=test[1:])
        settings = run_folder.evaluation_settings(trained.cfg, model_file, builders.test_dataset(trained.cfg).list_path)
        tested = run_folder.test_folder(trained.cfg, run_dir, model_file, settings)
        parameters, speed = count_parameters(trained.model), _images_per_second(run_dir)
        write = partial(write_result, path, self._claim, sweep, tested, parameters=parameters, speed=speed)
        if self._claim.is_lost():
            raise Interrupted
        try:
            patiently(write, self._stop)
        except FileExistsError as error:
            self._claim.lost.set()
            raise Interrupted from error

    def _move_folder(self) -> None:
        """Gives the run's folder another name: what an owner that fell silent may still write is not in it then."""
        folder = self._run.folder(self._sweep.output_dir, self._sweep.name)
        own = self._run.folder(self._sweep.output_dir, self._sweep.name, self._claim.number)
        if not own.exists():
            with suppress(FileNotFoundError):
                folder.rename(own)
            own.mkdir(parents=True, exist_ok=True)
        for left in (*own.rglob(LOCK), *own.rglob(".*.tmp")):  # which that owner holds, or may be writing
            left.unlink(missing_ok=True)
        self._claim.content["moves"] = False

    def _call(self, run_dir: Path, command: str, *arguments: str) -> None:
        """Runs a command to its end.

        Raises:
            Interrupted: the sweep received a request to stop, or the run is another's by now.
            CommandError: the command failed.
        """
        if self._claim.is_lost():  # since the folder may be the next owner's
            raise Interrupted
        console = run_dir / CONSOLE
        console.parent.mkdir(parents=True, exist_ok=True)
        code = self._worker.run(command, arguments, console, self._stop.is_set, self._claim.lost.is_set)
        if code in _ASKED_TO_STOP:  # as this process is in a moment; else something else has ended the command
            self._stop.wait(_REQUEST_S)
        if self._stop.is_set() or self._claim.is_lost():
            raise Interrupted
        if code:
            lines = [line for line in console.read_text(encoding="utf-8", errors="replace").splitlines() if line]
            last = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
            raise CommandError(f"{last} (see {console})")


def _images_per_second(run_dir: Path) -> float:
    """Median throughput of the training, from its log."""
    points = read_log(run_dir / "log.jsonl")
    return statistics.median(point["images_per_second"] for point in points if point.get("images_per_second"))
