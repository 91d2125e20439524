"""A sweep as a user runs it: real trainings, kills, and what is told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tests import forking
from tests.conftest import tiny_settings

from ovenet.models.weight_files import read_weights
from ovenet.sweep import worker
from ovenet.sweep.results import read_result
from ovenet.sweep.worker import Worker
from ovenet.utils.cli import command_environment
from ovenet.utils.run_lock import run_lock

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
def forked_workers(monkeypatch):
    """The sweep's processes need not import torch again; those of the slow tests do."""

    def start(command, *, env, stderr, start_new_session, **_):
        assert command[0] == sys.executable
        read, write = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        with read:
            process = forking.Forked(
                command[1:], env=env, stdin=read, stderr=stderr, start_new_session=start_new_session
            )
        process.stdin = write
        return process

    monkeypatch.setattr(worker, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@pytest.mark.usefixtures("forked_workers")
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


@pytest.mark.usefixtures("forked_workers")
def test_one_process_trains_as_many_do_and_runs_start_from_others(run_tool, run_fork, sweep, tmp_path):
    """Weights to the bit, and a network whose base is gone is trained on from the same base, made again."""
    content = yaml.safe_load(sweep[0].read_text())
    content["SEEDS"] = [1]
    content["RUNS"] = {"base": {}, "on": {"FROM": "base", "MODEL.SEED.NAME": "neck", "MODEL.SEED.PROJECTION": 4}}
    sweep[0].write_text(yaml.safe_dump(content, sort_keys=False))
    assert run_tool("sweep", *sweep, "--jobs", 1).code == 0
    folder = tmp_path / "out/sweeps/sweep"
    weights = {path.parents[2].name: path.read_bytes() for path in folder.rglob("best.pth")}
    assert sorted(name.rsplit("-", 1)[0] for name in weights) == ["base-seed1", "on-seed1"]
    (start,) = folder.glob("base-seed1-*/camvid/tiny/best.pth")
    fresh = ["--cfg", sweep[0].with_name("tiny.yaml"), "SEED", "1", "OUTPUT_DIR", tmp_path / "alone"]
    fresh += ["MODEL.BACKBONE.PRETRAINED", start, "MODEL.SEED.NAME", "neck", "MODEL.SEED.PROJECTION", "4"]
    alone = run_fork("tools/train.py", *fresh)
    assert alone.returncode == 0, alone.stderr
    (together,) = folder.glob("on-seed1-*/camvid/tiny/best.pth")
    states = [read_weights(str(path)) for path in (tmp_path / "alone/camvid/tiny/best.pth", together)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for path in (*folder.glob("base-seed1-*"), *folder.glob("on-seed1-*")):
        shutil.rmtree(path)
    results = {path.name: path.read_bytes() for path in (tmp_path / "results").glob("*-seed*.json")}
    (tmp_path / "results" / next(name for name in results if name.startswith("on-seed1"))).unlink()
    assert run_tool("sweep", *sweep, "--jobs", 2).code == 0
    assert {path.parents[2].name: path.read_bytes() for path in folder.rglob("best.pth")}.keys() == weights.keys()
    for name, before in results.items():
        after = (tmp_path / "results" / name).read_bytes()
        assert after == before or json.loads(after)["scores"] == json.loads(before)["scores"]


def test_a_worker_outlives_its_commands(tmp_path):
    """A failed command ends the process; the next one gets another."""
    worker, console = Worker(command_environment()), tmp_path / "console.log"
    try:
        assert worker.run("config", ["--help"], console, bool) == 0
        first = worker._process.pid
        assert worker.run("config", ["--cfg", "nothing.yaml"], console, bool) == 2
        assert "nothing.yaml" in console.read_text().splitlines()[-1]
        assert worker.run("config", ["--help"], console, bool) == 0
        assert worker._process.pid != first
        assert console.read_text().count("usage: ") == 2
        os.kill(worker._process.pid, signal.SIGKILL)
        assert worker.run("config", ["--help"], console, bool) == -signal.SIGKILL
        assert worker.run("config", ["--help"], console, bool) == 0
    finally:
        worker.close()


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
    command = [sys.executable, ROOT / "tools/sweep.py", *sweep, "--jobs", "1", "--lease", "3", "TRAIN.END_EPOCH", "30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(c) for c in command], env=environment, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "out/sweeps/sweep"
    until = time.monotonic() + 60
    while not list(folder.rglob("checkpoint.pth")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    if number == signal.SIGKILL:  # its training ends with it, else it would write beside the one that takes over
        time.sleep(2)
        with run_lock(next(folder.rglob("checkpoint.pth")).parent):
            pass
    assert not list((tmp_path / "results").glob("*seed*.json"))
    assert run_tool("sweep", *sweep, "TRAIN.END_EPOCH", 30).code == 0
    interrupted = scores_in(tmp_path / "results")
    assert len(interrupted) == 3
    other = [*sweep[:1], "--results", tmp_path / "other", "OUTPUT_DIR", tmp_path / "out2", "TRAIN.END_EPOCH", 30]
    assert run_tool("sweep", *other).code == 0
    assert scores_in(tmp_path / "other") == interrupted


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_workers_that_submitit_starts(sweep, tmp_path, run_tool, launcher):
    """Real jobs; of SLURM where it runs on this machine."""
    pytest.importorskip("submitit")
    if launcher == "slurm" and (not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode):
        pytest.skip("no SLURM here")
    done = run_tool("sweep", *sweep, "--launcher", launcher, "--workers", 2, "--launcher-option", "timeout_min=10")
    assert done.code == 0, done.err
    until = time.monotonic() + 120
    while len(scores_in(tmp_path / "results")) < 3 and time.monotonic() < until:
        time.sleep(0.5)
    assert len(scores_in(tmp_path / "results")) == 3
    assert ("| with a seed | 1 |" in done.out) == (launcher == "local")
    assert len(list((tmp_path / "results/jobs").glob("*_log.err"))) == 2


def scores_in(folder):
    return {path.name: json.loads(path.read_text())["scores"] for path in folder.glob("*-seed*.json")}


def test_bad_input(run_tool, sweep, tmp_path, monkeypatch):
    slurm = ["--launcher", "slurm", "--workers", 2]
    for arguments, message in (
        ([tmp_path / "no.yaml"], "no.yaml: "),
        ([*sweep, "--jobs", 0], "--jobs is 0; expected at least 1"),
        ([*sweep, "--lease", 0], "--lease is 0.0; expected seconds"),
        ([*sweep, "--launcher", "slurm"], "--workers"),
        ([*sweep, *slurm, "--worker"], "--worker goes neither with --launcher"),
        ([*sweep, *slurm, "--launcher-option", "partition"], "'partition'; expected KEY=VALUE"),
        ([*sweep, *slurm, "--launcher-option", "queue=gpu"], "queue"),
        ([*sweep, *slurm], 'needs submitit: pip install -e ".[slurm]"'),
        ([*sweep, "--launcher", "ray", "--workers", 2], 'needs ray: pip install -e ".[ray]"'),
        ([*sweep, "--per-gpu", 4], "--per-gpu needs a GPU"),
        ([*sweep, "TRAIN.LR"], "KEY VALUE pairs"),
    ):
        if "needs" in message:
            monkeypatch.setitem(sys.modules, "ray" if "ray" in message else "submitit", None)
        if arguments[-1] == "queue=gpu":
            pytest.importorskip("submitit")
        done = run_tool("sweep", *arguments)
        assert done.code == 2, arguments
        assert message in done.err.splitlines()[-1]
    folder = tmp_path / "results"
    shutil.rmtree(folder)  # which launchers have tried
    assert run_tool("sweep", *sweep, "--list").out.count("missing: ") == 3
    assert not folder.exists()


def test_a_worker_with_other_settings_is_refused(run_tool, sweep, tmp_path):
    """As one that begins late, and reads a file that was edited since; a sweep started anew may have other settings."""
    (tmp_path / "results/claims").mkdir(parents=True)
    (tmp_path / "results/claims/sweep.settings").write_text("0123abcd")
    done = run_tool("sweep", *sweep, "--worker")
    assert done.code == 2
    assert "results: the sweep sweep was begun there with other settings" in done.err.splitlines()[-1]
