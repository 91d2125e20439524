"""Runs the missing runs of a sweep, several at a time."""

from __future__ import annotations

import os
import queue
import re
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch

from ovenet import builders
from ovenet.config import check_parts, load_config
from ovenet.engine.checkpoint import FINAL
from ovenet.engine.interruption import Interruption
from ovenet.errors import UserError
from ovenet.evaluation.curves import read_log
from ovenet.models.cost import count_parameters
from ovenet.predictor import run_folder
from ovenet.sweep.definition import Sweep, SweepRun, run_config, training_overrides, weights_path
from ovenet.sweep.results import result_path, write_result
from ovenet.sweep.worker import Worker
from ovenet.utils.cli import command_environment
from ovenet.utils.environment import num_cores
from ovenet.utils.logging import get_logger
from ovenet.utils.run_lock import run_lock

CONSOLE = "console.log"
_CHECKPOINT_MINUTES = 5
_POLL_S = 0.5
_HEARTBEAT_S = 60.0
_TAIL_BYTES = 4096
_LOG_LINE = re.compile(r"^[\d-]{10} [\d:]{8} [A-Z] (.+)$", re.MULTILINE)


class Interrupted(Exception):
    """The sweep received a request to stop."""


class CommandError(Exception):
    """A command of a run failed; the message is its last line."""


def default_jobs() -> int:
    """Number of runs at a time: the number of GPUs or, without any, of cores that this process may use."""
    return torch.cuda.device_count() or num_cores()


def run_missing(sweep: Sweep, runs: Sequence[SweepRun], folder: Path, *, jobs: int) -> list[str]:
    """Trains and tests the missing runs.

    Each run has its share of the cores as threads (``OMP_NUM_THREADS`` in the environment wins), and the GPUs in turn.
    On a request to stop, trainings save and end; the next call resumes them.

    A run that starts from another's weights waits for it; if those weights are gone, they are trained again.

    Args:
        sweep: sweep that the runs belong to.
        runs: missing runs.
        folder: folder of the JSON file of each run.
        jobs: number of runs at a time.

    Returns:
        A line for each run that failed.

    Raises:
        SystemExit: on a request to stop, with its code.
        UserError: another sweep of that name is running.
    """
    failures: list[str] = []
    runs = _with_starts(sweep, runs)
    ended = {run.key: threading.Event() for run in runs}
    active: dict[str, _Execution] = {}
    workers = [Worker(_environment(slot, jobs)) for slot in range(jobs)]
    free: queue.LifoQueue[Worker] = queue.LifoQueue()  # a worker that has run is started already
    for worker in reversed(workers):
        free.put(worker)
    with run_lock(sweep.output_dir / "sweeps" / sweep.name), Interruption() as interruption:
        stop = threading.Event()

        def execute(number: int, run: SweepRun) -> None:
            if run.start is not None and run.start.key in ended:
                trained = run_config(run.start, sweep)[1] / FINAL  # its test need not be awaited
                while not (stop.is_set() or trained.exists() or ended[run.start.key].wait(_POLL_S)):
                    pass
            if stop.is_set():
                return
            worker = free.get()
            try:
                get_logger().info("%s, seed %d: begins (%d of %d)", run.name, run.seed, number, len(runs))
                active[run.key] = _Execution(sweep, run, folder, worker, stop)
                active[run.key].execute()
            except Interrupted:
                get_logger().info("%s, seed %d: stopped", run.name, run.seed)
            except Exception as error:  # also a fault of the program: the other runs go on
                failures.append(f"{run.name}, seed {run.seed}: {error or type(error).__name__}")
                is_program_fault = not isinstance(error, (UserError, CommandError, OSError))
                get_logger().error("%s", failures[-1], exc_info=is_program_fault)
            finally:
                active.pop(run.key, None)
                free.put(worker)
                ended[run.key].set()

        with ThreadPoolExecutor(jobs) as pool:
            pending = [pool.submit(execute, number, run) for number, run in enumerate(runs, start=1)]
            started = told = time.monotonic()
            while (num_done := sum(future.done() for future in pending)) < len(pending):
                time.sleep(_POLL_S)
                if interruption.received:
                    stop.set()
                if time.monotonic() - told > _HEARTBEAT_S:
                    told = time.monotonic()
                    _tell(num_done, len(pending), told - started, list(active.values()))
        for worker in workers:
            worker.close()
        if interruption.received:
            sys.exit(interruption.exit_code)
    return failures


def _tell(num_done: int, num_runs: int, seconds: float, active: Sequence[_Execution]) -> None:
    """Logs how far a sweep and its present runs are."""
    left = timedelta(seconds=round(seconds / num_done * (num_runs - num_done))) if num_done else None
    get_logger().info("%d of %d runs are done%s", num_done, num_runs, f", about {left} left" if left else "")
    for execution in active:
        if line := execution.last_line():
            get_logger().info("  %s: %s", execution, line)


def _with_starts(sweep: Sweep, runs: Sequence[SweepRun]) -> list[SweepRun]:
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


class _Execution:
    """One run, from training to its JSON file."""

    def __init__(self, sweep: Sweep, run: SweepRun, folder: Path, worker: Worker, stop: threading.Event):
        self._sweep, self._run, self._folder = sweep, run, folder
        self._worker, self._stop = worker, stop
        self._console: Path | None = None

    def __str__(self) -> str:
        return f"{self._run.name}, seed {self._run.seed}"

    def last_line(self) -> str:
        """The last line of the run's log, without its time; "" if there is none."""
        if self._console is None or not self._console.is_file():
            return ""
        with self._console.open("rb") as file:
            file.seek(max(0, self._console.stat().st_size - _TAIL_BYTES))
            lines = _LOG_LINE.findall(file.read().decode("utf-8", errors="replace"))
        return str(lines[-1]) if lines else ""

    def execute(self) -> None:
        sweep, run = self._sweep, self._run
        if run.start is not None and not weights_path(run.start, sweep).exists():
            raise UserError(f"it starts from {run.start.name}, seed {run.start.seed}, which has failed")
        cfg, run_dir = run_config(run, sweep)
        overrides = training_overrides(run, sweep)
        path = result_path(self._folder, run)
        test_cfg = load_config(run.config_file, [*overrides, *sweep.test])
        check_parts(test_cfg)
        tested_on = builders.test_dataset(test_cfg)
        if not tested_on.has_labels:
            raise UserError(f"{tested_on.list_path}: a sweep needs `image label` on every line of what TEST names")
        if not cfg.TRAIN.CHECKPOINT_EVERY and not cfg.TRAIN.CHECKPOINT_MINUTES:
            overrides += ["TRAIN.CHECKPOINT_MINUTES", str(_CHECKPOINT_MINUTES)]
        model_file = weights_path(run, sweep)
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
        parameters = count_parameters(trained.model)
        write_result(path, run, sweep, tested, parameters=parameters, speed=_images_per_second(run_dir))
        get_logger().info("%s, seed %d: done", run.name, run.seed)

    def _call(self, run_dir: Path, command: str, *arguments: str) -> None:
        """Runs a command to its end.

        Raises:
            Interrupted: the sweep received a request to stop.
            CommandError: the command failed.
        """
        console = self._console = run_dir / CONSOLE
        console.parent.mkdir(parents=True, exist_ok=True)
        code = self._worker.run(command, arguments, console, self._stop.is_set)
        if self._stop.is_set():
            raise Interrupted
        if code:
            lines = [line for line in console.read_text(encoding="utf-8", errors="replace").splitlines() if line]
            last = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
            raise CommandError(f"{last} (see {console})")


def _images_per_second(run_dir: Path) -> float:
    """Median throughput of the training, from its log."""
    points = read_log(run_dir / "log.jsonl")
    return statistics.median(point["images_per_second"] for point in points if point.get("images_per_second"))
