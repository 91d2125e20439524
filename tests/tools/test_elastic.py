"""Machines that leave a training and join it: real launchers and processes, over gloo on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tests.conftest import tiny_settings
from tests.drawn_scenes import write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
NUM_SAMPLES, NUM_EPOCHS, SEED, LR, CHECKPOINT_EVERY = 43, 12, 304, 0.02, 4
NOTING = """
import json, os, time
from ovenet.commands import train
from ovenet.engine.trainer import Trainer
from ovenet.utils import distributed
from ovenet.utils.cli import run_main

start_step = Trainer._start_step

def start_and_note(self, batches, interruption):
    started = start_step(self, batches, interruption)
    names = [name for batch in batches for name in batch.names]
    group = [os.environ["MASTER_PORT"], distributed.world_size()]
    note = [time.time(), self.state.iteration, self.state.epoch, *group, distributed.rank(), names]
    with open(os.path.join(os.environ["NOTES"], f"{os.getpid()}.jsonl"), "a") as file:
        file.write(json.dumps(note) + "\\n")
    return started

Trainer._start_step = start_and_note
run_main(train.main)
"""


class Note(NamedTuple):
    """A step of one process; the port tells the groups of processes apart."""

    time_s: float
    iteration: int
    epoch: int
    port: str
    size: int
    rank: int
    names: list


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lose(agent):
    """Ends a launcher and its processes at once, as a machine without power does."""
    workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for pid in (agent.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)


class Study:
    """A training of drawn scenes in a folder, and the samples of each of its steps."""

    def __init__(self, folder, config, *overrides):
        self.folder, self.port = folder, free_port()
        self.notes_dir = folder / "notes"
        self.notes_dir.mkdir(parents=True)
        self.script = folder / "train.py"
        self.script.write_text(NOTING)
        self.arguments = ["--cfg", config, "OUTPUT_DIR", folder / "output", *overrides]
        self.agents = []

    @property
    def run_dir(self):
        return self.folder / "output/synthetic/tiny"

    def start(self, *launcher):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NOTES": str(self.notes_dir)}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a machine that joins waits for ever
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, self.script, *self.arguments]
        with (self.folder / f"agent{len(self.agents)}.log").open("w") as log:
            agent = subprocess.Popen(
                [*map(str, command)], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.agents.append(agent)
        return agent

    def join(self):
        """Starts one more elastic launcher of this training."""
        return self.start(
            "--nnodes=1:4", "--nproc-per-node=1", "--max-restarts=30", "--rdzv-backend=c10d", "--rdzv-id=test",
            f"--rdzv-endpoint=127.0.0.1:{self.port}", "--local-addr=127.0.0.1", "--rdzv-conf=last_call_timeout=8",
        )  # fmt: skip

    def notes(self):
        """The steps that were begun, in their order."""
        lines = [line for path in self.notes_dir.iterdir() for line in path.read_text().splitlines(keepends=True)]
        return sorted(Note(*json.loads(line)) for line in lines if line.endswith("\n"))

    def wait_for(self, is_enough, *, after=0.0):
        """Waits until the notes since a time are enough; returns them."""
        deadline = time.time() + TIMEOUT_S
        while time.time() < deadline:
            notes = [note for note in self.notes() if note.time_s > after]
            if is_enough(notes):
                return notes
            time.sleep(0.05)
        raise AssertionError(self.logs())

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("agent*.log")))

    def by_hand(self, segments):
        """Trains each segment ``(number of processes, last iteration)`` from the checkpoint after the one before."""
        for size, last in segments[:-1]:
            agent = self.start("--standalone", f"--nproc-per-node={size}")
            # The second step after it: then its checkpoint is on the disk, for which the next one waited.
            self.wait_for(lambda notes, last=last: any(note.iteration > last + 1 for note in notes))
            lose(agent)
            agent.wait()
            saved = {torch.load(path)["iteration"]: path for path in self.run_dir.glob("checkpoint*.pth")}
            saved.pop(last).rename(self.run_dir / "kept.pth")
            for path in saved.values():
                path.unlink()
            (self.run_dir / "kept.pth").rename(self.run_dir / "checkpoint.pth")
            shutil.rmtree(self.notes_dir)
            self.notes_dir.mkdir()
        agent = self.start("--standalone", f"--nproc-per-node={segments[-1][0]}")
        assert agent.wait(TIMEOUT_S) == 0, self.logs()

    def end(self):
        for agent in self.agents:
            if agent.poll() is None:
                lose(agent)
            agent.wait()


@pytest.fixture
def study(tmp_path, write_config):
    settings = tiny_settings()
    settings["DATASET"] = {"ROOT": str(tmp_path / "data"), "DATASET": "synthetic", "NUM_CLASSES": 7}
    settings["DATASET"] |= {"TRAIN_SET": "list/synthetic/train.lst", "TEST_SET": "list/synthetic/val.lst"}
    settings |= {"SEED": SEED, "PRINT_FREQ": 1, "DIST_TIMEOUT": 60}
    settings["TRAIN"] |= {"BATCH_SIZE_PER_GPU": 1, "END_EPOCH": NUM_EPOCHS, "LR": LR, "EMA": 0.9, "EVAL_INTERVAL": 50}
    settings["TRAIN"] |= {"CHECKPOINT_EVERY": CHECKPOINT_EVERY}
    write_dataset(tmp_path / "data/synthetic", {"train": NUM_SAMPLES, "val": 2, "test": 1}, size=(64, 64), seed=0)
    config = write_config(settings, "tiny.yaml")
    begun = []

    def begin(name, *overrides):
        begun.append(Study(tmp_path / name, config, *overrides))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def has_steps(size, number):
    return lambda notes: len({note.iteration for note in notes if note.size == size}) >= number


def lasting(notes):
    """The steps that count, by iteration and in the order of ranks: of one that was repeated, the latest."""
    ports = {note.iteration: note.port for note in notes}
    steps = {iteration: [] for iteration in sorted(ports)}
    for note in sorted(notes, key=lambda note: note.rank):
        if note.port == ports[note.iteration]:
            steps[note.iteration].append(note)
    assert all([note.rank for note in step] == [*range(step[0].size)] for step in steps.values())
    return steps


def iteration_after(steps, epoch):
    return 1 + max(iteration for iteration, step in steps.items() if step[0].epoch == epoch)


def assert_samples_and_rates(steps, names, log):
    """Every epoch takes its own order of samples from the first on, each once; the rate is that of the epoch's rest."""
    rates = {point["iteration"]: point["lr"] for point in log if point["kind"] == "train"}
    assert [*steps] == [*range(1, len(steps) + 1)] == sorted(rates)
    for epoch in range(NUM_EPOCHS):
        order = [names[i] for i in np.random.default_rng([SEED, epoch]).permutation(NUM_SAMPLES)]
        taken = []
        for iteration, step in steps.items():
            if step[0].epoch == epoch:
                size = step[0].size
                left = (NUM_SAMPLES - len(taken)) // size
                share = 1 - ((epoch + 1) * (NUM_SAMPLES // size) - left) / (NUM_EPOCHS * (NUM_SAMPLES // size))
                assert rates[iteration] == pytest.approx(LR * share**0.9, abs=1e-9)
                taken += [name for note in step for name in note.names]
        assert taken == order[: len(taken)]
        following = steps.get(iteration_after(steps, epoch))
        # Those that fill no step of the processes that have ended the epoch, which may have taken none of it.
        assert NUM_SAMPLES - len(taken) < max(size, following[0].size if following else 0)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in values for tensor in tensors(part)]


def test_four_machines_two_and_four_again(study):
    """Two of four are lost and two come: no sample is used twice or left out, and the bits are those made by hand."""
    elastic = study("elastic", "TRAIN.RESUME", "False")
    first = elastic.join()
    time.sleep(2)
    others = [elastic.join() for _ in range(3)]
    elastic.wait_for(has_steps(4, 14))
    lost_at = time.time()
    for agent in others[:2]:
        lose(agent)
    elastic.wait_for(has_steps(2, 20), after=lost_at)
    others += [elastic.join() for _ in range(2)]
    for agent in (first, *others[2:]):
        assert agent.wait(2 * TIMEOUT_S) == 0, elastic.logs()
    notes = elastic.notes()
    steps = lasting(notes)
    log = [json.loads(line) for line in (elastic.run_dir / "log.jsonl").read_text().splitlines()]
    lines = (elastic.folder.parent / "data/list/synthetic/train.lst").read_text().splitlines()
    assert_samples_and_rates(steps, [line.split()[0] for line in lines], log)

    ports = list(dict.fromkeys(step[0].port for step in steps.values()))
    segments = [[(i, step[0].size) for i, step in steps.items() if step[0].port == port] for port in ports]
    assert [segment[0][1] for segment in segments] == [4, 2, 4]
    ends = [(segment[0][1], segment[-1][0]) for segment in segments]
    num_repeated = [max(n.iteration for n in notes if n.port == p) - e for p, (_, e) in zip(ports, ends, strict=True)]
    assert num_repeated[0] <= CHECKPOINT_EVERY + 1  # the step that failed was begun
    assert num_repeated[1:] == [0, 0]
    begun = [min(n.time_s for n in notes if n.port == port) for port in ports]
    ended = [max(n.time_s for n in notes if n.port == port) for port in ports]
    print(
        f"{num_repeated[0]} steps repeated; 4 to 2 in {begun[1] - lost_at:.1f} s, 2 to 4 in {begun[2] - ended[1]:.1f} s"
    )

    hand = study("hand", "TRAIN.RESUME", True, "TRAIN.CHECKPOINT_EVERY", 1, "TRAIN.KEEP_CHECKPOINTS", 1000)
    hand.by_hand(ends)
    for name in ("checkpoint.pth", "final_state.pth", "final_ema.pth"):
        ours, theirs = torch.load(elastic.run_dir / name), torch.load(hand.run_dir / name)
        for part in {"model", "ema", "optimizer"} & ours.keys():
            assert all(map(torch.equal, tensors(ours[part]), tensors(theirs[part]))), (name, part)
