"""tools/on_gpu.sh without a GPU: does every part of it run, and is each independent of the others?"""

import json
import os
import subprocess
import sys
import tarfile
import time

import pytest
from tests.tools.conftest import ROOT

FIRST = ["environment", "tests", "profile", "speed"]
SECOND = ["resume", "accuracy", "memory", "checkpoint", "sweep", "feeding"]
MAX_FILES = 8


def start(*arguments, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "DATA": "/nowhere", **variables}
    command = ["bash", "tools/on_gpu.sh", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments, **variables):
    process = start(*arguments, **variables)
    out, err = process.communicate(timeout=500)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def interpreter(folder, script):
    """A program in Python's place, so that parts end as a test wants it."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def parts(out):
    """Exit code and key figure by part, without the card's own table, which is there where a driver is."""
    lines = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
    return {name: (code, figure) for name, code, _, figure in lines if name != "card"}


@pytest.mark.slow
def test_the_dry_run_runs_every_part(tmp_path):
    """Both halves at once, each alone in its folder; then the same again, which has nothing left to do."""
    folders = {half: tmp_path / half for half in ("first", "second")}
    started = [start(out, half, "--tiny") for half, out in folders.items()]
    for process in started:
        out, err = process.communicate(timeout=800)
        assert process.returncode == 0, out + err
    first, second = (parts(out) for out in folders.values())
    assert [list(first), list(second)] == [FIRST, SECOND]
    assert {code for code, _ in (*first.values(), *second.values())} == {"0"}
    for out in folders.values():
        files = [path for path in out.rglob("*") if path.is_file()]
        assert len(files) <= MAX_FILES
        assert all(path.parent == out for path in files)
        assert (out / "summary.txt").read_text().splitlines()[-1].startswith("0 part(s) failed or not done")
    assert first["tests"][1].endswith("files")
    assert "collected" in first["tests"][1]
    measured = json.loads((folders["first"] / "benchmark_card.json").read_text())["rows"]
    assert [row["way"] for row in measured] == ["plain", "ours", "plain", "ours"]
    assert json.loads((folders["first"] / "profile.json").read_text())["top"]
    same, total = second["resume"][1].removeprefix("resumed: ").split(" tensors")[0].split(" of ")
    assert same == total
    assert [name in second["accuracy"][1] for name in ("float32", "TF32", "bf16")] == [True] * 3
    assert second["memory"][1].startswith("bf16: plan ")
    assert second["sweep"][1].startswith("1 of 1 runs, OVeNet mIoU")
    assert second["feeding"][1].endswith(" ours")
    with tarfile.open(folders["second"] / "sweep.tar.gz") as archive:
        assert "results/summary.json" in archive.getnames()
    again = run(folders["first"], "first", "--tiny", PYTHON="/bin/false")
    assert again.returncode == 0
    assert again.stdout.count("done already") >= len(FIRST)


def test_a_part_that_fails_ends_no_other(tmp_path):
    python = interpreter(tmp_path, "echo something; echo the last line; exit 3")
    out = tmp_path / "out"
    done = run(out, "--tiny", PYTHON=python)
    assert done.returncode == 1
    assert parts(out) == dict.fromkeys(FIRST + SECOND, ("3", "the last line"))
    assert f"{len(FIRST + SECOND)} part(s) failed or not done" in (out / "summary.txt").read_text()
    assert len(list(out.iterdir())) <= MAX_FILES


def test_the_next_call_does_what_is_not_done(tmp_path):
    """First all but the benchmark fail; then nothing does."""
    out = tmp_path / "out"
    run(out, "first", "--tiny", PYTHON=interpreter(tmp_path, 'case "$1" in *benchmark.py) exit 0;; esac; exit 3'))
    assert [code for code, _ in parts(out).values()] == ["3", "3", "3", "0"]
    done = run(out, "first", "--tiny", PYTHON=interpreter(tmp_path, "echo again"))
    assert done.returncode == 0
    assert "speed: done already" in done.stdout
    assert {name: figure for name, (_, figure) in parts(out).items()} == {
        "environment": "again", "tests": "again", "profile": "again", "speed": ""
    }  # fmt: skip


def test_the_time_of_a_half_is_kept(tmp_path):
    """A part that hangs is ended, and those after it are said to be skipped."""
    python = interpreter(tmp_path, 'case "$1" in *tests.py) exec sleep 60;; esac; echo fine')
    out, started = tmp_path / "out", time.monotonic()
    done = run(out, "first", PYTHON=python, HALF_SECONDS="6")
    assert done.returncode == 1
    assert time.monotonic() - started < 30
    found = parts(out)
    assert found["environment"] == ("0", "fine")
    assert found["tests"][0] == "124"
    assert found["profile"] == found["speed"] == ("-", "skipped, the time was over")


@pytest.mark.parametrize("words", [(), ("out", "third"), ("out", "--small")])
def test_wrong_words_are_refused(words):
    done = run(*words)
    assert done.returncode == 2
    assert "usage: bash tools/on_gpu.sh OUT [first|second] [--tiny]" in done.stderr
    assert not (ROOT / "out").exists()


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    done = run(tmp_path, "--tiny")
    assert done.returncode == 2
    assert f"error: {tmp_path} has other files" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
