"""A sweep as a user runs it: real trainings, kills, and what is told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from tests import forking
from tests.conftest import tiny_settings

from ovenet.sweep import execution
from ovenet.sweep.results import read_result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path, tiny_data, write_config):
    """The arguments of ``tools/sweep.py`` for a baseline and an OVeNet with two seeds."""
    settings = tiny_settings("seg_hrnet", 0)
    settings["MODEL"]["EXTRA"].pop("OFFSET_BRANCH")
    settings["DATASET"]["ROOT"], settings["OUTPUT_DIR"] = str(tiny_data), str(tmp_path / "out")
    write_config(settings, "tiny.yaml")
    seed = {"MODEL.SEED.NAME": "neck", "MODEL.SEED.PROJECTION": 4, "SEEDS": [0]}
    path = write_config({"CFG": "tiny.yaml", "SEEDS": [0, 1], "RUNS": {"plain": {}, "with a seed": seed}}, "sweep.yaml")
    return [path, "--results", tmp_path / "results"]


@pytest.fixture
def forked_commands(monkeypatch):
    """The sweep's trainings and tests need not import torch again; those of the slow tests do."""

    def start(command, **options):
        assert command[0] == sys.executable
        return forking.Forked(command[1:], **options)

    monkeypatch.setattr(execution, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@pytest.mark.usefixtures("forked_commands")
def test_it_runs_what_is_missing_and_says_what_came_out(run_tool, sweep, tmp_path):
    done = run_tool("sweep", *sweep, "--jobs", 2)
    assert done.code == 0, done.err
    files = sorted(p.name for p in (tmp_path / "results").glob("*-seed*.json"))
    assert [name.rsplit("-", 1)[0] for name in files] == ["plain-seed0", "plain-seed1", "with_a_seed-seed0"]
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["missing"] == 0
    for path in (tmp_path / "results").glob("*-seed*.json"):
        check_counts(path)
        content = json.loads(path.read_text())
        (tested,) = (tmp_path / "out/sweeps/sweep" / path.stem).rglob("results.json")
        scores = json.loads(tested.read_text())["results"]
        assert content["scores"] == scores  # of the test's own results
        variant = summary["variants"][content["run"]]
        place = variant["seeds"].index(content["seed"])
        assert variant["mean_iou"]["fused"][place] == scores["fused"]["mean_iou"]
    assert summary["variants"]["with a seed"]["less_reference"]["seeds"] == [0]
    assert "| with a seed | 1 |" in done.out
    assert (tmp_path / "results/summary.png").stat().st_size > 5000
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pth")}
    again = run_tool("sweep", *sweep)
    assert again.code == 0
    assert again.out == done.out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pth")}
    renamed = sweep[0].with_name("renamed.yaml")
    renamed.write_text(sweep[0].read_text().replace("with a seed", "OVeNet"))
    plot = tmp_path / "plots/sweep.svg"
    listed = run_tool("sweep", renamed, *sweep[1:], "--list", "--details", "--reference", "OVeNet", "--output", plot)
    assert "missing" not in listed.out
    assert "| mIoU less OVeNet's |" in listed.out
    assert listed.out.count("\n| OVeNet, S_f |") == 2  # by seed, and edges
    assert "S_f" in plot.read_text()
    refused = run_tool("sweep", renamed, *sweep[1:], "--list", "--output", plot)
    assert (refused.code, "add --overwrite" in refused.err) == (2, True)
    unknown = run_tool("sweep", renamed, *sweep[1:], "--list", "--reference", "ovenet")
    problem = "error: --reference is 'ovenet'; there is no such run, did you mean OVeNet?"
    assert (unknown.code, unknown.err.splitlines()[-1]) == (2, problem)
    assert "| OVeNet | 1 |" in listed.out


def check_counts(path):
    """The scores follow from the counts by image."""
    result = read_result(path)
    for kind, scores in result.scores.items():
        counts = result.right[kind], result.predicted[kind], result.labelled
        right, predicted, labelled = (x.sum(axis=0) for x in counts)
        with np.errstate(invalid="ignore"):
            iou = np.where(labelled > 0, right / (labelled + predicted - right), np.nan)
        assert scores["mean_iou"] == pytest.approx(np.nanmean(iou), abs=1e-12)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(run_tool, sweep, tmp_path):
    content = yaml.safe_load(sweep[0].read_text())
    broken = {"DATASET.TRAIN_SET": "list/camvid/nothing.lst", "SEEDS": [0]}
    content["RUNS"] = {"broken": broken, "plain": {"SEEDS": [0]}}
    content["REFERENCE"] = "plain"
    sweep[0].write_text(yaml.safe_dump(content, sort_keys=False))
    done = run_tool("sweep", *sweep)
    assert done.code == 2
    assert re.search(r"1 of 2 runs failed.*broken, seed 0: ", done.err)
    assert "nothing.lst" in done.err
    assert "1 of 2 runs are missing" in done.out
    assert len(list((tmp_path / "results").glob("plain-seed0-*.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_goes_on(sweep, tmp_path, run_tool, number):
    """The results are those of a sweep that nobody ended."""
    command = [sys.executable, ROOT / "tools/sweep.py", *sweep, "--jobs", "1", "TRAIN.END_EPOCH", "30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(c) for c in command], env=environment, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "out/sweeps/sweep"
    until = time.monotonic() + 60
    while not list(folder.rglob("checkpoint.pth")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    if number == signal.SIGKILL:  # its training goes on alone, to its end
        run = next(folder.rglob("checkpoint.pth")).parent
        while not (run / "final_state.pth").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(2)
    assert not list((tmp_path / "results").glob("*seed*.json"))
    assert run_tool("sweep", *sweep, "TRAIN.END_EPOCH", 30).code == 0
    interrupted = scores_in(tmp_path / "results")
    assert len(interrupted) == 3
    other = [*sweep[:1], "--results", tmp_path / "other", "OUTPUT_DIR", tmp_path / "out2", "TRAIN.END_EPOCH", 30]
    assert run_tool("sweep", *other).code == 0
    assert scores_in(tmp_path / "other") == interrupted


def scores_in(folder):
    return {path.name: json.loads(path.read_text())["scores"] for path in folder.glob("*-seed*.json")}


def test_bad_input(run_tool, sweep, tmp_path):
    for arguments, message in (
        ([tmp_path / "no.yaml"], "no.yaml: "),
        ([*sweep, "--jobs", 0], "--jobs is 0; expected at least 1"),
        ([*sweep, "TRAIN.LR"], "KEY VALUE pairs"),
    ):
        done = run_tool("sweep", *arguments)
        assert done.code == 2
        assert message in done.err
    folder = tmp_path / "results"
    assert run_tool("sweep", *sweep, "--list").out.count("missing: ") == 3
    assert not folder.exists()
