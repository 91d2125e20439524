"""What happens to a run in the wild: real processes, really killed. Nothing may be lost, and no bit may differ."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.conftest import tiny_settings
from tests.forking import Forked
from tests.four_convolutions import small_settings

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TIMEOUT_S = 120


@pytest.fixture
def run(tiny_data, tmp_path, write_config):
    """A function that starts ``tools/train.py`` on 3 iterations an epoch; returns the process.

    With a launcher, or ``()`` for one process that goes on with what a launcher began, it trains a network that fresh
    interpreters know too.
    """

    def start(output, *overrides, launcher=None, script="tools/train.py", **variables):
        settings = small_settings() if launcher is None else tiny_settings()
        settings["DATASET"]["ROOT"] = str(tiny_data)
        settings["PRINT_FREQ"] = 1
        settings["TRAIN"] |= {"RESUME": True, "CHECKPOINT_EVERY": 1, "EVAL_INTERVAL": 50, "LR": 0.02, "EMA": 0.9}
        command = [script, "--cfg", write_config(settings, "tiny.yaml"), "OUTPUT_DIR", output, *overrides]
        if not launcher:
            return Forked(command, env=ENVIRONMENT | variables, stderr=subprocess.STDOUT, start_new_session=True)
        return subprocess.Popen(
            [sys.executable, *launcher, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    return start


def finish(process):
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out


def wait_for(process, text):
    """Reads the process's lines until one contains a text; returns them."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def folder(output):
    return output / "camvid" / "tiny"


def weights(output, name="final_state.pth"):
    return torch.load(folder(output) / name, weights_only=True)["model"]


def assert_same_bits(first, second):
    for name in ("final_state.pth", "checkpoint.pth"):
        ours, theirs = weights(first, name), weights(second, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    states = [torch.load(folder(o) / "checkpoint.pth", weights_only=True) for o in (first, second)]
    for key in ("ema", "optimizer"):
        flat = [torch.cat([v.flatten().double() for v in _tensors(state[key])]) for state in states]
        assert torch.equal(*flat), key
    assert states[0]["iteration"] == states[1]["iteration"]
    assert states[0]["best"] == states[1]["best"]


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in values for tensor in _tensors(part)]


def killed_and_resumed(run, tmp_path, *, kills, epochs):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    end = ("TRAIN.END_EPOCH", epochs, "WORKERS", 1)
    code, out = finish(run(whole, *end))
    assert code == 0, out
    rng = random.Random(0)
    for _ in range(kills):
        process = run(cut, *end)
        wait_for(process, "iteration 1/3")
        while not (folder(cut) / "checkpoint.pth").exists():  # on a busy machine it is written late
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.15))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = torch.load(folder(cut) / "checkpoint.pth", weights_only=True)["iteration"]
    assert 0 < before < 3 * epochs  # else nothing was cut
    code, out = finish(run(cut, *end))
    assert code == 0, out
    assert "resumed from" in out
    assert_same_bits(whole, cut)
    points = [json.loads(line) for line in (folder(cut) / "log.jsonl").read_text().splitlines()]
    iterations = [point["iteration"] for point in points if point["kind"] == "train"]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] == 3 * epochs


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(run, tmp_path):
    killed_and_resumed(run, tmp_path, kills=1, epochs=10)


DYING = """
import os, signal, threading
from ovenet.commands import train
from ovenet.engine import checkpoint
from ovenet.utils.cli import run_main

place, number = os.environ["DIES_AT"], int(os.environ["DIES_IN"])
module = checkpoint if place == "seal" else os
function, calls = getattr(module, place), []

def dying(*arguments):
    if threading.current_thread().name.startswith("checkpoint"):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)

setattr(module, place, dying)
run_main(train.main)
"""


def test_kills_while_a_checkpoint_is_written_in_the_background(run, tmp_path):
    """Before its checksum, before the one before it gets its other name, and before it gets its own."""
    whole, cut, script = tmp_path / "whole", tmp_path / "cut", tmp_path / "dying.py"
    script.write_text(DYING)
    end = ("TRAIN.END_EPOCH", 2)
    assert finish(run(whole, *end))[0] == 0
    for place, number in (("seal", 2), ("link", 2), ("replace", 2)):
        code, out = finish(run(cut, *end, script=script, DIES_AT=place, DIES_IN=str(number)))
        assert code == -signal.SIGKILL, out
        assert torch.load(folder(cut) / "checkpoint.pth", weights_only=True)["iteration"] in (1, 2)
    code, out = finish(run(cut, *end))
    assert code == 0, out
    assert_same_bits(whole, cut)


@pytest.mark.slow
def test_five_kills(run, tmp_path):
    killed_and_resumed(run, tmp_path, kills=5, epochs=60)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_request_to_stop_saves_and_leaves(run, tmp_path, number, code):
    end = ("TRAIN.END_EPOCH", 400, "TRAIN.CHECKPOINT_EVERY", 0)
    process = run(tmp_path / "a", *end)
    wait_for(process, "iteration 1/3")
    process.send_signal(number)
    returned, out = finish(process)
    assert returned == code, out
    assert f"{number.name}: saving" in out
    assert "Traceback" not in out
    state = torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)
    assert re.search(rf"stopped .* {state['iteration']};.* TRAIN\.RESUME", out)


def assert_nothing_is_left(process):
    """No process of the group has outlived the run."""
    for _ in range(100):  # loading processes look after their parent every few seconds
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left behind")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_request_to_the_whole_group_saves_and_leaves(run, tmp_path, number):
    """As SLURM, `timeout` and a terminal send it: to the loading processes too."""
    end = ("TRAIN.END_EPOCH", 400, "TRAIN.CHECKPOINT_EVERY", 0, "WORKERS", 2)
    process = run(tmp_path / "a", *end)
    wait_for(process, "epoch 2/400, iteration 1/3")
    os.killpg(process.pid, number)
    code, out = finish(process)
    assert code == 75, out
    assert out.count(f"{number.name}: saving") == 1
    assert "Traceback" not in out
    state = torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)
    assert re.search(rf"stopped .* {state['iteration']};.* TRAIN\.RESUME", out)
    assert_nothing_is_left(process)


def test_a_request_at_start_up_ends_at_once(run, tmp_path):
    process = run(tmp_path / "a", "TRAIN.END_EPOCH", 400, "WORKERS", 1)
    wait_for(process, "pairs checked")
    os.killpg(process.pid, signal.SIGTERM)
    code, out = finish(process)
    assert code == 75, out
    assert "Traceback" not in out
    assert_nothing_is_left(process)


@pytest.mark.slow
def test_a_request_during_validation_loses_nothing(run, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    slow = ("TRAIN.EVAL_INTERVAL", 1, "TRAIN.CHECKPOINT_EVERY", 0, "TRAIN.END_EPOCH", 3, "WORKERS", 1)
    large = ("TEST.BASE_SIZE", 900, "TEST.IMAGE_SIZE", "[900,900]")  # some seconds
    assert finish(run(whole, *slow))[0] == 0
    process = run(cut, *slow, *large)
    wait_for(process, "epoch 1/3: ")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    code, out = finish(process)
    assert code == 75, out
    assert "epoch 1: mIoU" not in out
    state = torch.load(folder(cut) / "checkpoint.pth", weights_only=True)
    assert (state["iteration"], state["is_validation_due"]) == (3, True)
    code, out = finish(run(cut, *slow))
    assert code == 0, out
    assert "epoch 1: mIoU" in out
    assert_same_bits(whole, cut)


def test_a_second_run_in_the_same_folder_is_refused(run, tmp_path):
    end = ("TRAIN.END_EPOCH", 2000, "TRAIN.CHECKPOINT_EVERY", 0)
    first = run(tmp_path / "a", *end)
    wait_for(first, "iteration 1/3")
    code, out = finish(run(tmp_path / "a", *end))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert code == 2
    assert re.search(rf"\(process {first.pid} on {re.escape(socket.gethostname())}\).*OUTPUT_DIR", out)
    assert finish(run(tmp_path / "a", "TRAIN.END_EPOCH", 1))[0] == 0  # the killed one holds nothing


def test_a_damaged_newest_checkpoint_costs_one_interval(run, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(run(whole, "TRAIN.END_EPOCH", 2))[0] == 0
    shutil.copytree(whole, cut)
    newest = folder(cut) / "checkpoint.pth"
    newest.write_bytes(newest.read_bytes()[:-500])
    code, out = finish(run(cut, "TRAIN.END_EPOCH", 2))
    assert code == 0, out
    assert re.search(r"checkpoint\.pth: .*damaged", out)
    assert "checkpoint.1.pth: epoch 2, iteration 5" in out
    assert_same_bits(whole, cut)


def test_a_corrupt_image_stops_the_run_or_is_left_out(run, tmp_path, tiny_data):
    (tiny_data / "camvid/train/4.png").write_bytes((tiny_data / "camvid/train/4.png").read_bytes()[:300])
    stopped = ("DATASET.AUDIT", 0, "TRAIN.END_EPOCH", 2, "WORKERS", 1)
    code, out = finish(run(tmp_path / "a", *stopped))
    assert code == 2
    assert re.search(r"train/4\.png: .*cannot be read", out)
    code, out = finish(run(tmp_path / "b", *stopped, "DATASET.SKIP_BROKEN", True))
    assert code == 0, out
    assert out.count("that is left out: ") == 2  # once an epoch
    assert re.search(r"sample 2 .*left out: .*train/4\.png", out)
    assert re.search(r"train/4\.png: .*cannot be read", out)


def test_a_label_of_the_wrong_size_is_named(run, tmp_path, tiny_data):
    Image.new("L", (60, 48)).save(tiny_data / "camvid/trainannot/4.png")
    code, out = finish(run(tmp_path / "a", "DATASET.AUDIT", 0, "TRAIN.END_EPOCH", 2))
    assert code == 2
    assert re.search(r"trainannot/4\.png: .*60x48", out)


def test_a_killed_loading_process_ends_the_run_with_its_name(run, tmp_path):
    process = run(tmp_path / "a", "TRAIN.END_EPOCH", 2000, "WORKERS", 1)
    wait_for(process, "epoch 2/")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    loading = [int(c) for c in children if b"resource_tracker" not in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert loading
    os.kill(loading[0], signal.SIGKILL)
    code, out = finish(process)
    assert code == 2, out
    assert re.search(rf"killed .*\b{loading[0]}\b.*WORKERS.*TRAIN\.RESUME", out.splitlines()[-1])
    assert torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)["iteration"] > 0


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.slow
def test_one_process_that_fails_ends_the_others(run, tmp_path, tiny_data):
    (tiny_data / "camvid/train/4.png").write_bytes(b"")
    started = time.monotonic()
    process = run(
        tmp_path / "a", "DATASET.AUDIT", 0, "TRAIN.BATCH_SIZE_PER_GPU", 1, "DIST_TIMEOUT", 20, launcher=LAUNCHER
    )
    code, out = finish(process)
    assert code != 0
    assert time.monotonic() - started < 90
    first = next(line for line in out.splitlines() if "error: " in line)
    assert re.search(r"train/4\.png: .*cannot be read", first)


@pytest.mark.slow
def test_a_request_to_a_launcher_and_all_its_processes_saves(run, tmp_path):
    end = ("TRAIN.END_EPOCH", 400, "TRAIN.BATCH_SIZE_PER_GPU", 1, "TRAIN.CHECKPOINT_EVERY", 0, "WORKERS", 1)
    process = run(tmp_path / "a", *end, launcher=LAUNCHER)
    wait_for(process, "epoch 2/400, iteration 1/3")
    os.killpg(process.pid, signal.SIGTERM)
    _, out = finish(process)
    state = torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)
    assert re.search(rf"stopped .* {state['iteration']};.* TRAIN\.RESUME", out)
    assert state["iteration"] > 3


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(run, tmp_path):
    end = ("TRAIN.END_EPOCH", 400, "TRAIN.BATCH_SIZE_PER_GPU", 1)
    process = run(tmp_path / "a", *end, launcher=LAUNCHER)
    wait_for(process, "iteration 1/3")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    trainers = [int(c) for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(trainers[1], signal.SIGUSR1)  # one of them is asked
    _, out = finish(process)
    state = torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)
    assert re.search(rf"stopped .* {state['iteration']};.* TRAIN\.RESUME", out)
    assert len(state["random_states"]) == 2
    code, out = finish(run(tmp_path / "a", *end[2:], "TRAIN.END_EPOCH", state["epoch"] + 1, launcher=()))
    assert code == 0, out
    assert re.search(r"2 process\(es\).*\b1\b", out)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_has_the_rate_of_its_share(run, tmp_path, before, after):
    """Two processes take 3 steps an epoch, one takes 6; eight epochs, then two more on an extra list."""
    settings = ("TRAIN.END_EPOCH", 8, "TRAIN.EXTRA_EPOCH", 2, "TRAIN.EXTRA_LR", 0.01, "TRAIN.BATCH_SIZE_PER_GPU", 1)
    launchers = {1: (), 2: LAUNCHER}
    process = run(tmp_path / "a", *settings, launcher=launchers[before])
    wait_for(process, "epoch 5/10, iteration 1/")
    os.killpg(process.pid, signal.SIGTERM)
    finish(process)
    state = torch.load(folder(tmp_path / "a") / "checkpoint.pth", weights_only=True)
    done, log = state["epoch"], folder(tmp_path / "a") / "log.jsonl"
    assert done in (4, 5)
    begun = len(log.read_text().splitlines())
    code, out = finish(run(tmp_path / "a", *settings, launcher=launchers[after]))
    assert code == 0, out
    per_epoch = 6 // after
    points = [json.loads(line) for line in log.read_text().splitlines()[begun:]]
    rates = [point["lr"] for point in points if point["kind"] == "train"]
    total, extra = 8 * per_epoch, 2 * per_epoch
    expected = [0.02 * (1 - it / total) ** 0.9 for it in range(total)]
    expected += [0.01 * (1 - it / extra) ** 0.9 for it in range(extra)]
    assert rates == pytest.approx(expected[-len(rates) :], abs=1e-9)
    assert len(rates) > 2 * per_epoch
