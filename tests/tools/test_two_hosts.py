"""Two hosts: two network namespaces with a virtual link between them, and torchrun in each. Needs root."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_settings

from benchmarks.hosts import Hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip"),
        reason="network namespaces need root and ip (iproute2)",
    ),
]
TIMEOUT_S = 120


@pytest.fixture
def hosts():
    try:
        both = Hosts(f"ov{os.getpid()}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield both
    both.remove()


@pytest.fixture
def arguments(tiny_data, write_config):
    """``--cfg FILE`` of a tiny OVeNet on three iterations an epoch of one process each."""
    settings = tiny_settings()
    settings["DATASET"]["ROOT"] = str(tiny_data)
    settings["TRAIN"] |= {"BATCH_SIZE_PER_GPU": 1, "RESUME": True, "LR": 0.02, "EVAL_INTERVAL": 50}
    return ("--cfg", write_config(settings, "tiny.yaml"))


def finish(process):
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out


def on_both(hosts, tool, *arguments, own=((), ())):
    processes = [hosts.start(number, tool, *arguments, *own[number]) for number in (0, 1)]
    return [finish(process) for process in processes]


def weights(output: Path) -> dict:
    return torch.load(output / "camvid/tiny/final_state.pth", weights_only=True)["model"]


def wait_for(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


def test_training_and_testing_equal_one_host(hosts, arguments, run_process, tmp_path):
    """To the bit; lists and cache are made on each host, whose folders here are their own."""
    caches = [("DATASET.CACHE", "disk", "DATASET.CACHE_DIR", tmp_path / f"cache{n}") for n in (0, 1)]
    ended = on_both(hosts, "train", *arguments, "OUTPUT_DIR", tmp_path / "two", own=caches)
    assert [code for code, _ in ended] == [0, 0], ended
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    one = run_process(*launch, "tools/train.py", *arguments, "OUTPUT_DIR", tmp_path / "one")
    assert one.returncode == 0, one.stdout + one.stderr
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    entries = [sorted(p.name for p in (tmp_path / f"cache{n}").rglob("*.npy")) for n in (0, 1)]
    assert len(entries[0]) == 12
    assert entries[0] == entries[1]  # each host has a whole cache of its own

    tested = on_both(hosts, "test", *arguments, "OUTPUT_DIR", tmp_path / "two")
    assert [code for code, _ in tested] == [0, 0], tested
    assert run_process(sys.executable, "tools/test.py", *arguments, "OUTPUT_DIR", tmp_path / "one").returncode == 0
    scores = [
        json.loads(next((tmp_path / name).rglob("results.json")).read_text())["results"] for name in ("one", "two")
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("how", ["dies", "falls silent"])
def test_a_host_that_is_lost_is_told_and_one_host_goes_on(hosts, arguments, run_process, tmp_path, how):
    long = ("OUTPUT_DIR", tmp_path / "out", "TRAIN.END_EPOCH", 400, "TRAIN.CHECKPOINT_EVERY", 5, "PRINT_FREQ", 1)
    processes = [hosts.start(number, "train", *arguments, *long, "DIST_TIMEOUT", 10) for number in (0, 1)]
    wait_for(processes[0], "epoch 4/")
    lost_at = time.monotonic()
    if how == "dies":
        hosts.kill(1)
    else:
        hosts.cut()
    code, out = finish(processes[0])
    assert time.monotonic() - lost_at < 60
    assert code != 0
    assert re.search(r"process 0 of 2 lost .*DIST_TIMEOUT", out), out
    if how != "dies":
        code, out = finish(processes[1])
        assert code != 0
        assert re.search(r"process 1 of 2 lost .*DIST_TIMEOUT", out), out

    end = ("TRAIN.END_EPOCH", 8, "OUTPUT_DIR", tmp_path / "out", "TRAIN.BATCH_SIZE_PER_GPU", 2)
    resumed = run_process(sys.executable, "tools/train.py", *arguments, *end)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"2 process\(es\).*\b1\b", resumed.stderr)
    assert (tmp_path / "out/camvid/tiny/final_state.pth").exists()
