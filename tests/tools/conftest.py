"""Running tools as a user does: in this process for speed, or as processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import forking
from tests.drawn_scenes import write_dataset
from tests.four_convolutions import registered, small_settings

from ovenet.utils.cli import run_main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Runs ``tools/<name>.py`` with arguments in this process; gives its exit code and what it printed."""

    def run(name: str, *arguments: object) -> SimpleNamespace:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            run_main(module.main)
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def small():
    """Settings of an OVeNet of four convolutions, for what is true of any network; forks know it too."""
    with registered():
        yield small_settings()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """``DATASET.ROOT`` with a few drawn scenes; tests leave it as it is."""
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root / "synthetic", {"train": 4, "val": 1, "test": 1}, size=(64, 128), seed=0)
    return root


@pytest.fixture
def run_fork():
    """Runs ``script.py`` and arguments from the repository's root in a process that need not import torch again."""

    def run(*command: object, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        return forking.run(command, env=environment)

    return run


@pytest.fixture
def run_ranks():
    """Runs ``script.py`` and arguments as so many processes of one group, forks too; gives each finished process."""

    def run(number: int, *command: object) -> list[subprocess.CompletedProcess]:
        return forking.run_ranks(command, number, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})

    return run


@pytest.fixture
def run_process():
    """Runs a command from the repository's root; gives the finished process."""

    def run(*command: object, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        return subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
        )

    return run
