"""tools/plan.py: real steps measured in processes of their own."""

import json
import os
import re
import subprocess
import sys

import pytest
from tests.conftest import tiny_settings

from ovenet import build_model, load_config
from ovenet.commands.plan import runs_at_once
from ovenet.utils.environment import num_cores


@pytest.fixture
def config(tiny_data, write_config):
    settings = tiny_settings()
    settings["DATASET"]["ROOT"] = str(tiny_data)
    settings["TRAIN"] |= {"BATCH_SIZE_PER_GPU": 2, "END_EPOCH": 20, "NUM_SAMPLES": 6}
    return write_config(settings, "tiny.yaml")


@pytest.mark.ci
def test_what_a_training_costs_is_told(run_fork, config):
    done = run_fork("tools/plan.py", "--cfg", config, "--steps", 1, "--processes", 2)
    assert done.returncode == 0, done.stderr
    about_others = ("other processes use", "is what the model costs")
    lines = [line for line in done.stdout.splitlines() if not any(text in line for text in about_others)]
    network, first, speed, waiting, eta, feeding, *_ = lines
    parameters = sum(p.numel() for p in build_model(load_config(config)).parameters())
    assert re.fullmatch(rf"{parameters / 1e6:.2f} million parameters, [\d.]+ GMAC for a crop of \d+x\d+", network)
    used, limit = map(float, re.search(r"([\d.]+) of ([\d.]+) GiB|$", first.replace(" GiB of", " of")).groups())
    assert 0.1 < used < limit
    assert "s a step" in speed
    assert "on 2 process(es)" in speed
    assert "waiting for data" in waiting
    decoded, cached = map(int, re.search(r"need (\d+) loading process.*disk or ram (\d+), at", feeding).groups())
    assert decoded >= cached >= 1
    assert f"for each of 2 processes, of this machine's {num_cores()} core(s)" in feeding
    assert eta.startswith("ETA of all 30 steps")  # 3 an epoch, 20 epochs, two processes


def test_how_many_runs_fit_at_once():
    """By hand: 78 / (5.5 + 0.5) is 13, and 24 / 5.5 is 4.4; one run is said to fit even where little is left."""
    assert "13 such runs" in runs_at_once(5.5, 78.0, "cuda")
    assert "--per-gpu 13" in runs_at_once(5.5, 78.0, "cuda")
    assert "--jobs 4" in runs_at_once(5.5, 24.0, "cpu")
    assert "--per-gpu 1;" in runs_at_once(78.0, 78.0, "cuda")


@pytest.mark.gpu
def test_the_memory_of_a_card_is_that_of_a_training(run_process, config, tmp_path):
    """Of a network large enough that the allocator's rounding does not count."""
    settings = ("MODEL.BACKBONE.NAME", "hrnet_w18_small_v2", "TRAIN.IMAGE_SIZE", "512,512", "TRAIN.BASE_SIZE", 512)
    settings += ("TRAIN.END_EPOCH", 8, "TRAIN.EVAL_INTERVAL", 8, "OUTPUT_DIR", tmp_path / "output", "DEVICE", "cuda")
    on_card = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    planned = run_process(
        sys.executable, "tools/plan.py", "--cfg", config, "--steps", 4, "--trial", *settings, **on_card
    )
    assert planned.returncode == 0, planned.stderr
    trial = json.loads(planned.stdout.splitlines()[-1])
    trained = run_process(sys.executable, "tools/train.py", "--cfg", config, *settings, **on_card)
    assert trained.returncode == 0, trained.stderr
    used = re.findall(r"([\d.]+) GiB of the card used at most, ([\d.]+) reserved", trained.stdout + trained.stderr)
    assert trial["memory_gib"] == pytest.approx(float(used[-1][0]), rel=0.1)
    assert trial["reserved_gib"] < trial["memory_gib"] + 2  # what choosing algorithms took was given back


@pytest.mark.slow
def test_what_does_not_fit_is_split_and_then_recomputed(run_process, config):
    done = run_process(sys.executable, "tools/plan.py", "--cfg", config, "--steps", 1, "--memory", 0.01)
    assert done.returncode == 2
    tried = [line for line in done.stdout.splitlines() if "does not fit" in line]
    expected = [(2, 1, False), (1, 2, False), (2, 1, True), (1, 2, True)]
    assert [tuple(re.findall(r"(\d+|True|False)(?= |:)", line)[:3]) for line in tried] == [
        tuple(map(str, row)) for row in expected
    ]
    assert "nothing fits into 0.01 GiB" in done.stderr


@pytest.mark.ci
def test_other_errors_are_not_taken_for_a_lack_of_memory(run_tool, write_config):
    """Such as one about a folder called memory."""
    from tests.conftest import tiny_settings

    settings = tiny_settings()
    settings["DATASET"]["ROOT"] = "/nowhere/memory"
    done = run_tool("plan", "--cfg", write_config(settings))
    assert done.code == 2
    assert "/nowhere/memory" in done.err
    assert "fit" not in done.err


@pytest.mark.slow
def test_what_else_runs_is_told(run_process, config):
    """Measured beside others only, a step of the model looks slower than it is."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * num_cores())]
    try:
        done = run_process(sys.executable, "tools/plan.py", "--cfg", config, "--steps", 3)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.returncode == 0, done.stderr
    used = float(re.search(r"other processes use ([\d.]+) of", done.stdout)[1])
    assert used > 0.5 * num_cores()
    alone, measured = (float(text) for text in re.findall(r"([\d.]+) s a step", done.stdout))
    assert alone < measured


@pytest.mark.slow
def test_several_hosts_are_modelled(run_process, config):
    command = (sys.executable, "tools/plan.py", "--cfg", config, "--steps", 1, "--nodes", 8, "--link", 0.1)
    done = run_process(*command, "TRAIN.GRADIENT_COMPRESSION", "bf16")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("a model of 8 hosts"))
    sent, on_link = (float(text) for text in re.search(r"([\d.]+) MB, take ([\d.]+) s", line).groups())
    assert on_link == pytest.approx(8 * 2 * 7 / 8 * sent * 1e6 / 0.1e9, rel=0.5)  # of what is printed in 0.1 MB
    assert "the limit is " in line
    assert "GRADIENT_COMPRESSION bf16" in done.stdout
