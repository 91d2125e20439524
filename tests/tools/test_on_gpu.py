"""tools/on_gpu.sh without a GPU: does every part of it run, and is each independent of the others?"""

import json
import os
import subprocess
import sys

import pytest
from tests.tools.conftest import ROOT


def run(out, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, "DATA": "/nowhere", **variables}
    command = ["bash", "tools/on_gpu.sh", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_the_dry_run_runs_every_part(tmp_path):
    done = run(tmp_path / "out", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    parts = [line.split(":")[0] for line in (out / "summary.txt").read_text().splitlines()[:-1]]
    expected = ["data", "environment", "tests", "resume_whole", "resume_cut", "resume_bits", "benchmark", "runs"]
    assert [part for part in parts if part != "card"] == expected
    assert "0 part(s) failed" in (out / "summary.txt").read_text()
    summary = json.loads((out / "results/summary.json").read_text())
    assert list(summary["variants"]) == ["HRNet-W48", "OVeNet-HRNet-W48"]
    assert (out / "benchmark/benchmark.json").exists()
    assert "tensors have the same bits; others: []" in (out / "resume_bits.log").read_text()
    assert not list(out.rglob("*.pth"))


@pytest.mark.slow
def test_a_part_that_fails_ends_no_other(tmp_path):
    """An interpreter that fails at everything but the sweep."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$1" in tools/prepare_data.py) exec {sys.executable} "$@";; esac\nexit 3\n')
    python.chmod(0o755)
    done = run(tmp_path / "out", "--tiny", PYTHON=str(python))
    assert done.returncode == 1
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()
    assert sum("exit code 3" in line for line in lines) == 7
    assert lines[-1].startswith("7 part(s) failed")


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    done = run(tmp_path, "--tiny")
    assert done.returncode == 2
    assert "has files in it already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
