#!/usr/bin/env python3
"""Says beforehand what a training costs: python tools/plan.py --cfg FILE [KEY VALUE ...]."""

from __future__ import annotations

import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch
from yacs.config import CfgNode

from ovenet import build_model, builders, load_config
from ovenet.engine.progress import WaitingClock
from ovenet.engine.trainer import phase_lengths
from ovenet.errors import UserError
from ovenet.utils.cli import OUT_OF_MEMORY, config_parser, run_main
from ovenet.utils.distributed import choose_device
from ovenet.utils.environment import busy_cores, num_cores

GIB = 2**30
WATCHING_S = 0.5
NOTICEABLE_CORES = 0.25  # of other processes
NOTICEABLE_SHARE = 0.8  # of the measured time that the model's own is below
NUM_WARM_UP = 2  # steps that are not timed
Trial = dict[str, float]


def main() -> None:
    """Measures a few real steps in a process of their own; where they do not fit, the changes that do."""
    parser = config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps that are timed (default: 8)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that will train (default: 1)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="that a process may use (default: the device's)")
    parser.add_argument("--trial", action="store_true", help="measure, and print JSON")
    args = parser.parse_args()
    cfg = load_config(args.cfg, args.overrides)
    if args.steps < 1 or args.processes < 1:
        raise UserError("--steps and --processes are at least 1")
    if args.trial:
        print(json.dumps(measure(cfg, args.steps)))
        return
    limit = args.memory or device_memory(cfg)
    others = busy_cores(WATCHING_S)
    if others is not None and others > NOTICEABLE_CORES:
        print(f"other processes use {others:.1f} of {num_cores()} cores: what is measured is slower than alone")
    for number, (batch, accumulate, recompute) in enumerate(candidates(cfg)):
        change = (
            f"TRAIN.BATCH_SIZE_PER_GPU {batch} TRAIN.ACCUMULATE {accumulate} TRAIN.CHECKPOINT_ACTIVATIONS {recompute}"
        )
        trial = run_trial(args.cfg, [*args.overrides, *change.split()], args.steps)
        fits = trial is not None and trial["memory_gib"] <= limit
        used = f"{trial['memory_gib']:.2f} GiB" if trial else "more than there is"
        print(f"{change}: {used} of {limit:.2f} GiB{'' if fits else ', does not fit'}")
        if fits:
            report(cfg, trial, args.processes, batch * accumulate)
            if number:
                print(f"smallest change that fits, with the same effective batch: {change}")
            return
    raise UserError(f"nothing fits into {limit:.2f} GiB; make TRAIN.IMAGE_SIZE smaller, or take a smaller model")


def candidates(cfg: CfgNode) -> Iterator[tuple[int, int, bool]]:
    """Batch, accumulation and recomputation with the same effective batch, the smallest change first."""
    batch, accumulate = cfg.TRAIN.BATCH_SIZE_PER_GPU, cfg.TRAIN.ACCUMULATE
    splits = [(batch // n, accumulate * n) for n in range(1, batch + 1) if batch % n == 0]
    for recompute in (False, True) if not cfg.TRAIN.CHECKPOINT_ACTIVATIONS else (True,):
        for size, times in splits:
            yield size, times, recompute


def device_memory(cfg: CfgNode) -> float:
    """GiB of the device, or of the machine."""
    device = choose_device(cfg.DEVICE)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal")) * 1024 / GIB


def run_trial(config: str, overrides: list[str], steps: int) -> Trial | None:
    """Measures in another process; None if its memory did not suffice.

    Raises:
        UserError: it failed for another reason.
    """
    command = [sys.executable, __file__, "--trial", "--steps", str(steps), "--cfg", config, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"signal {-done.returncode}"
    if done.returncode == -signal.SIGKILL or last.startswith(f"error: {OUT_OF_MEMORY}"):
        return None
    raise UserError(f"the trial failed: {last.removeprefix('error: ')}")


def measure(cfg: CfgNode, steps: int) -> Trial:
    """Peak memory, seconds per step, and the share of waiting for data."""
    device = choose_device(cfg.DEVICE)
    model = build_model(cfg).to(device, memory_format=torch.channels_last)
    phases = builders.build_phases(cfg)
    step = builders.build_train_step(model, cfg, device, phases)
    model.train()
    loader, accumulate = phases[0].loader, cfg.TRAIN.ACCUMULATE
    batches = iter(loader)
    groups = iter(lambda: list(islice(batches, accumulate)), [])
    for group in islice(groups, NUM_WARM_UP):
        step(group)
    clock, seconds, cpu_seconds = WaitingClock(), [], []
    for group in clock.watch(islice(groups, steps)):
        started, cpu_started = time.perf_counter(), time.process_time()
        _ = step(group).loss  # waits for the device
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    if not seconds:
        raise UserError(f"the training list gives {len(loader) // accumulate} steps an epoch; --steps needs more")
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 1024 * max_rss()
    return {
        "memory_gib": peak / GIB,
        "step_s": statistics.median(seconds),
        "alone_s": alone_seconds(statistics.median(seconds), statistics.median(cpu_seconds), device),
        "waiting_share": clock.waiting_share,
        "steps": float(sum(length for _, length in phase_lengths(phases, cfg.TRAIN.BEGIN_EPOCH, accumulate))),
    }


def alone_seconds(wall: float, cpu: float, device: torch.device) -> float:
    """What a step would take without other processes: its threads would never wait for a core.

    Args:
        wall: seconds that it took.
        cpu: seconds that its threads worked in them.
        device: what a GPU does is not measured by `cpu`.
    """
    return wall if device.type == "cuda" else min(wall, cpu / min(torch.get_num_threads(), num_cores()))


def max_rss() -> int:
    """KiB that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(cfg: CfgNode, trial: Trial, processes: int, batch: int) -> None:
    """Prints time, speed, the verdict and the time of the whole schedule, without its validations."""
    per_step = trial["step_s"] / max(1e-9, 1 - trial["waiting_share"])
    bound = "data-bound: raise WORKERS" if trial["waiting_share"] > WaitingClock.BOUND else "compute-bound"
    eta = timedelta(seconds=round(per_step * trial["steps"] / processes))
    if trial["alone_s"] < NOTICEABLE_SHARE * trial["step_s"]:
        print(
            f"{trial['alone_s']:.3f} s a step is what the model costs: without other processes, or with fewer threads"
        )
    print(f"{trial['step_s']:.3f} s a step, {batch * processes / per_step:.1f} images/s on {processes} process(es)")
    print(f"{trial['waiting_share']:.0%} of the time waiting for data: {bound}")
    print(f"ETA of all {trial['steps'] / processes:.0f} steps, validation not counted: {eta}")


if __name__ == "__main__":
    run_main(main)
