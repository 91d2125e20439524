"""Starts workers of a sweep on the engines that people have: SLURM and local processes by submitit, and Ray.

A launcher only starts ``ovenet sweep FILE … --worker`` so many times; claims do the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from ovenet.commands import main
from ovenet.errors import UserError, one_line
from ovenet.utils.cli import command_environment

EXTRAS = {"slurm": "submitit", "local": "submitit", "ray": "ray"}  # package by launcher


@dataclass(frozen=True)
class Task:
    """One worker, for the process that an engine has started; it is pickled.

    Args:
        arguments: arguments of ``ovenet sweep``.
        directory: directory that its paths are relative to.
    """

    arguments: tuple[str, ...]
    directory: str

    def __call__(self) -> int:
        """Works until nothing is left, and returns the exit code."""
        os.chdir(self.directory)
        sys.argv = ["ovenet", "sweep", *self.arguments]
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        return 0

    def checkpoint(self) -> Any:
        """What submitit queues when a job's time is up."""
        return import_module("submitit").helpers.DelayedSubmission(self)


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE …`` as a table, values as in YAML.

    Raises:
        UserError: one is not of this form.
    """
    options = {}
    for text in texts:
        key, sign, value = text.partition("=")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not key.isidentifier() or not sign:
            raise UserError(f"--launcher-option is {text!r}; expected KEY=VALUE, such as slurm_partition=gpu")
    return options


def launch(
    launcher: str, arguments: Sequence[str], num_workers: int, options: Mapping[str, Any], name: str, folder: Path
) -> bool:
    """Starts workers, and waits for them, other than for those of SLURM.

    Args:
        launcher: ``slurm``, ``local`` or ``ray``.
        arguments: arguments of ``ovenet sweep`` for each worker.
        num_workers: number of workers.
        options: parameters of submitit's AutoExecutor, or of a remote function of Ray.
        name: name of the jobs.
        folder: folder of the logs of submitit.

    Returns:
        Whether they have ended.

    Raises:
        UserError: the engine is not installed, not reached, or refuses an option.
    """
    try:
        engine = import_module(EXTRAS[launcher])
    except ImportError as error:
        extra = "ray" if launcher == "ray" else "slurm"
        raise UserError(f'--launcher {launcher} needs {EXTRAS[launcher]}: pip install -e ".[{extra}]"') from error
    task = Task(tuple(arguments), os.getcwd())
    try:
        if launcher == "ray":
            return _on_ray(engine, task, num_workers, options)
        executor = engine.AutoExecutor(folder, cluster=launcher)
        executor.update_parameters(**{"name": name, **options})
        with executor.batch():
            jobs = [executor.submit(task) for _ in range(num_workers)]
        if launcher == "local":
            _ = [job.result() for job in jobs]
            return True
    except UserError:
        raise
    except Exception as error:  # each engine has its own
        raise UserError(f"--launcher {launcher}: {one_line(error, 500)}") from error
    print(f"{num_workers} workers are the array {jobs[0].job_id.partition('_')[0]} of SLURM; their logs: {folder}")
    return False


def _on_ray(ray: Any, task: Task, num_workers: int, options: Mapping[str, Any]) -> bool:
    """Runs the workers on the cluster of ``RAY_ADDRESS``, else on this machine; one that dies is started again."""
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": command_environment()["PYTHONPATH"]}})
    usual = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    work = ray.remote(**{"max_retries": -1, **({} if {"num_gpus", "num_cpus"} & options.keys() else usual), **options})(
        Task.__call__
    )
    ray.get([work.remote(task) for _ in range(num_workers)])
    return True
