"""Sweeps of real trainings whose workers are killed at random: no run is lost, none is made twice.

The figures of docs/scaling.md:

    OVENET_PROOF="200 runs, 8 workers, a kill every 5 s" pytest -m slow tests/tools/test_sweep_proof.py
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.conftest import tiny_settings
from tests.drawn_scenes import write_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SIZE = os.environ.get("OVENET_PROOF", "24 runs, 3 workers, a kill every 15 s")
NUM_RUNS, NUM_WORKERS, KILL_EVERY_S = (int(number) for number in re.findall(r"\d+", SIZE))
ATTEMPTS = 100  # of a run, so that none is given up: here owners die by chance
LEASE_S = 10
TIMEOUT_S = 40 * NUM_RUNS + 300


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep file: two networks with so many seeds, one iteration each, on drawn scenes."""
    folder = tmp_path_factory.mktemp("study")
    write_dataset(folder / "data/synthetic", {"train": 2, "val": 1, "test": 1}, size=(32, 64), seed=0)
    settings = tiny_settings("seg_hrnet", 0)
    extra = settings["MODEL"].pop("EXTRA")
    settings["MODEL"] = {"NAME": "seg_hrnet", "EXTRA": {f"STAGE{n}": extra[f"STAGE{n}"] for n in (1, 2, 3, 4)}}
    lists = {"TRAIN_SET": "list/synthetic/train.lst", "TEST_SET": "list/synthetic/val.lst"}
    settings["DATASET"] = {"DATASET": "synthetic", "NUM_CLASSES": 7, "ROOT": str(folder / "data"), **lists}
    settings["TRAIN"] |= {"IMAGE_SIZE": [32, 32], "BASE_SIZE": 64, "END_EPOCH": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    runs = {"plain": {}, "with a seed": {"MODEL.SEED.NAME": "neck", "MODEL.SEED.PROJECTION": 4}}
    content = {"CFG": "tiny.yaml", "SEEDS": list(range(NUM_RUNS // 2)), "RUNS": runs}
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def alone(study):
    """The table of one worker that nobody disturbs."""
    return summary(study, "alone", "--jobs", "1")


def command(study, name, *options):
    start = [sys.executable, "-m", "ovenet", "sweep", str(study), "--results", str(study.parent / name)]
    return [*start, *options, "OUTPUT_DIR", str(study.parent / f"out_{name}")]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def summary(study, name, *options):
    """Ends a sweep, and gives its table as JSON."""
    subprocess.run(command(study, name, *options), env=environment(), check=True, timeout=TIMEOUT_S)
    return (study.parent / name / "summary.json").read_bytes()


OPTIONS = ["--lease", str(LEASE_S), "--attempts", str(ATTEMPTS)]


def start_worker(study, name, **streams):
    return subprocess.Popen(command(study, name, "--worker", "--jobs", "1", *OPTIONS), env=environment(), **streams)


def results(study, name):
    return sorted((study.parent / name).glob("*-seed*-*.json"))


def check(study, name, alone):
    """The table is that of one worker to the bit; every run has one result, of one claim that says so."""
    assert len(results(study, name)) == NUM_RUNS
    made_by = [json.loads(path.read_text())["made_by"]["id"] for path in results(study, name)]
    claims = [json.loads(path.read_text()) for path in (study.parent / name / "claims").glob("seed*.json")]
    finished = [claim["id"] for claim in claims if claim["state"] == "finished"]
    assert len(set(made_by)) == NUM_RUNS
    assert set(finished) <= set(made_by)  # an owner may be killed between its result and its claim
    assert len(finished) == len(set(finished))
    assert summary(study, name) == alone
    return f"{len(claims)} attempts, {len(finished)} of them finished"


def test_workers_that_are_killed_and_join_make_the_table_of_one(study, alone):
    chance, started, num_killed = random.Random(0), time.monotonic(), 0
    workers = [start_worker(study, "many") for _ in range(NUM_WORKERS)]
    next_kill = time.monotonic() + KILL_EVERY_S
    while any(worker.poll() is None for worker in workers):
        assert time.monotonic() - started < TIMEOUT_S
        time.sleep(0.2)
        if time.monotonic() > next_kill and len(results(study, "many")) < NUM_RUNS:
            victim = chance.choice([worker for worker in workers if worker.poll() is None])
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            workers.remove(victim)
            workers.append(start_worker(study, "many"))
            num_killed, next_kill = num_killed + 1, time.monotonic() + KILL_EVERY_S
    seconds = time.monotonic() - started
    assert {worker.returncode for worker in workers} == {0}
    assert num_killed
    said = check(study, "many", alone)
    print(f"\n{SIZE}: {num_killed} killed in {seconds:.0f} s, {said}")


def test_a_worker_that_stalls_past_its_lease_writes_nothing(study, alone):
    """Its training goes on meanwhile; that of the one who takes the run over is in another folder."""
    stalled = start_worker(study, "stalled", stderr=subprocess.PIPE, text=True)
    for line in stalled.stderr:
        if "begins" in line:
            break
    time.sleep(1)  # within its first training, which waits for its process's imports
    stalled.send_signal(signal.SIGSTOP)
    other = start_worker(study, "stalled")
    until = time.monotonic() + TIMEOUT_S
    while len(results(study, "stalled")) < NUM_RUNS and time.monotonic() < until:
        time.sleep(0.2)
    stalled.send_signal(signal.SIGCONT)
    _, said = stalled.communicate(timeout=TIMEOUT_S)
    assert (stalled.returncode, other.wait(TIMEOUT_S)) == (0, 0)
    assert said.count("is another's by now, nothing is written") == 1
    check(study, "stalled", alone)


def test_a_node_of_ray_dies(study, alone, monkeypatch):
    """Two nodes on this machine, each with half of the workers; one is removed in the middle."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    each = max(NUM_WORKERS // 2, 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "lib"))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": each})
    try:
        node = cluster.add_node(num_cpus=each)
        options = ["--launcher", "ray", "--workers", str(2 * each), "--launcher-option", "num_cpus=1", *OPTIONS]
        driver = subprocess.Popen(
            command(study, "ray", *options), env={**environment(), "RAY_ADDRESS": cluster.address}
        )
        started = time.monotonic()
        while len(results(study, "ray")) < NUM_RUNS // 3:
            assert driver.poll() is None
            assert time.monotonic() - started < TIMEOUT_S
            time.sleep(0.2)
        left = NUM_RUNS - len(results(study, "ray"))
        cluster.remove_node(node, allow_graceful=False)
        assert driver.wait(TIMEOUT_S) == 0
        seconds = time.monotonic() - started
    finally:
        cluster.shutdown()
    said = check(study, "ray", alone)
    print(f"\n{NUM_RUNS} runs, {2 * each} workers, a node lost with {left} runs left: {seconds:.0f} s, {said}")
