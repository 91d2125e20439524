"""The benchmark runs, compares equal work, and finds a ratio that is too low."""

import json
import re

import numpy as np
import pytest


@pytest.mark.ci
def test_rows_are_measured_and_written(run_tool, tmp_path):
    done = run_tool(
        "benchmark", "--quick", "--runs", 2, "--rows", "loss cityscapes ohem", "--no-growth",
        "--output", tmp_path, "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "benchmark.json").read_text())
    (loss,) = content["rows"]
    assert len(loss["plain_s"]) == 2
    assert loss["ratio"] == pytest.approx(np.median(np.divide(loss["plain_s"], loss["ours_s"])))
    assert 0 < loss["limit_s"] < min(loss["ours_s"])
    assert loss["memory_bytes"]["ours"] < loss["memory_bytes"]["plain"]
    assert "| loss with OHEM, Cityscapes |" in done.out
    assert f"torch: {content['machine']['torch']}" in done.out


def test_a_ratio_that_is_too_low_fails_the_check(run_tool, monkeypatch):
    from benchmarks import cases, rows  # the tool's folder is on the path by now

    def slow(options):
        return cases.loss_case(options, "slow", 3, (64, 64), min_ratio=1e6)

    monkeypatch.setitem(rows.ON_CPU, "loss ade20k", slow)
    arguments = ("--quick", "--runs", 2, "--rows", "counts", "loss ade20k", "--no-memory", "--device", "cpu")
    done = run_tool("benchmark", "--check", *arguments)
    assert done.code == 1
    assert done.out.index("| confusion counts") < done.out.index("| slow |")
    assert re.search(r"slow: .*at least 1000000\.0", done.out)


def test_unknown_rows_and_too_few_runs_are_named(run_tool):
    done = run_tool("benchmark", "--rows", "speed", "--device", "cpu")
    assert (done.code, done.out) == (2, "")
    assert re.search(r"--rows 'speed': .* cpu; .*loss ade20k,", done.err)
    assert "at least 2 are needed" in run_tool("benchmark", "--runs", 1).err


@pytest.mark.slow
def test_every_row_runs(run_tool, tmp_path):
    done = run_tool("benchmark", "--quick", "--runs", 2, "--no-memory", "--output", tmp_path, "--device", "cpu")
    assert done.code == 0, done.err
    assert (tmp_path / "benchmark_growth.png").stat().st_size > 10_000
