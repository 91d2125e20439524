"""Estimates memory, time and throughput of a training before it starts."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
from yacs.config import CfgNode

from ovenet import build_model, builders, load_config
from ovenet.engine.run_log import WaitingClock
from ovenet.engine.trainer import phase_lengths
from ovenet.errors import UserError
from ovenet.utils.cli import OUT_OF_MEMORY, command_environment, config_parser, ovenet_command
from ovenet.utils.distributed import choose_device
from ovenet.utils.environment import busy_cores, num_cores, peak_memory_bytes

GIB = 2**30
WATCHING_S = 0.5
NOTICEABLE_CORES = 0.25  # of other processes
NOTICEABLE_SHARE = 0.8  # of the measured time; warn if the estimate without other processes is below
KILLED = 9  # the signal by which Linux ends a process when memory runs out
NUM_WARM_UP = 2  # steps that are not timed
BACKWARD_SHARE = 2 / 3  # of the computation of a step
MESSAGE_S = 5e-5  # a small message between hosts, such as BatchNorm's statistics of a layer
Trial = dict[str, float]


def main() -> None:
    """Measures a few real steps in a process of their own; where they do not fit, the changes that do."""
    parser = config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps that are timed (default: 8)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that will train (default: 1)")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of hosts with these processes each (default: 1)"
    )
    parser.add_argument(
        "--link", type=float, default=10.0, metavar="GBIT", help="between hosts, a second (default: 10)"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="that a process may use (default: the device's)")
    parser.add_argument("--trial", action="store_true", help="measure, and print JSON")
    args = parser.parse_args()
    cfg = load_config(args.cfg, args.overrides)
    if args.steps < 1 or args.processes < 1 or args.nodes < 1:
        raise UserError("--steps, --processes and --nodes are at least 1")
    if not 0 < args.link < math.inf:
        raise UserError(f"--link is {args.link}; expected gigabits a second, above 0")
    if args.trial:
        print(json.dumps(measure(cfg, args.steps)))
        return
    print(builders.describe_network(cfg))
    limit = args.memory or device_memory(cfg)
    others = busy_cores(WATCHING_S)
    if others is not None and others > NOTICEABLE_CORES:
        print(f"other processes use {others:.1f} of {num_cores()} cores: what is measured is slower than alone")
    for number, (batch, accumulate, saving) in enumerate(candidates(cfg)):
        change = f"TRAIN.BATCH_SIZE_PER_GPU {batch} TRAIN.ACCUMULATE {accumulate} TRAIN.CHECKPOINT_ACTIVATIONS {saving}"
        trial = run_trial(args.cfg, [*args.overrides, *change.split()], args.steps)
        fits = trial is not None and trial["memory_gib"] <= limit
        used = f"{trial['memory_gib']:.2f} GiB" if trial else "more than there is"
        print(f"{change}: {used} of {limit:.2f} GiB{'' if fits else ', does not fit'}")
        if fits:
            report(cfg, trial, args.processes, batch * accumulate)
            if args.nodes > 1:
                report_hosts(cfg, trial, args.nodes, args.link, args.processes)
            if number:
                print(f"smallest change that fits, with the same effective batch: {change}")
            return
    raise UserError(f"nothing fits into {limit:.2f} GiB; make TRAIN.IMAGE_SIZE smaller, or take a smaller model")


def candidates(cfg: CfgNode) -> Iterator[tuple[int, int, bool]]:
    """Batch, accumulation and activation checkpointing with the same effective batch, the smallest change first."""
    batch, accumulate = cfg.TRAIN.BATCH_SIZE_PER_GPU, cfg.TRAIN.ACCUMULATE
    splits = [(batch // n, accumulate * n) for n in range(1, batch + 1) if batch % n == 0]
    for saving in (False, True) if not cfg.TRAIN.CHECKPOINT_ACTIVATIONS else (True,):
        for size, times in splits:
            yield size, times, saving


def device_memory(cfg: CfgNode) -> float:
    """Memory of the device, or of the machine, in GiB."""
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
    command = [*ovenet_command("plan"), "--trial", "--steps", str(steps), "--cfg", config, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=command_environment())
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"signal {-done.returncode}"
    if done.returncode == -KILLED or last.startswith(f"error: {OUT_OF_MEMORY}"):
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
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory_bytes()
    return {
        "memory_gib": peak / GIB,
        "step_s": statistics.median(seconds),
        "alone_s": alone_seconds(statistics.median(seconds), statistics.median(cpu_seconds), device),
        "waiting_share": clock.waiting_share,
        "gradient_bytes": float(gradient_bytes(model, cfg)),
        "num_messages": float(num_messages(model, device)),
        "steps": float(sum(length for _, length in phase_lengths(phases, cfg.TRAIN.BEGIN_EPOCH, accumulate))),
    }


def gradient_bytes(model: torch.nn.Module, cfg: CfgNode) -> int:
    """Bytes that a process sends for each step; powersgd's depend on the layers' shapes: estimated as a tenth."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return int(trained * {"none": 4, "bf16": 2, "powersgd": 0.4}[cfg.TRAIN.GRADIENT_COMPRESSION])


def num_messages(model: torch.nn.Module, device: torch.device) -> int:
    """Of BatchNorm, which is synchronised on GPUs: one forward and one backward for each layer."""
    layers = sum(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return 2 * layers if device.type == "cuda" else 0


def alone_seconds(wall: float, cpu: float, device: torch.device) -> float:
    """What a step would take without other processes: its threads would never wait for a core.

    Args:
        wall: seconds that it took.
        cpu: seconds that its threads worked in them.
        device: what a GPU does is not measured by `cpu`.
    """
    return wall if device.type == "cuda" else min(wall, cpu / min(torch.get_num_threads(), num_cores()))


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


def report_hosts(cfg: CfgNode, trial: Trial, hosts: int, link_gbit: float, processes: int) -> None:
    """Prints the estimated step on several hosts and its bottleneck; see docs/scaling.md."""
    is_data_bound = trial["waiting_share"] > WaitingClock.BOUND
    input_s = trial["step_s"] / max(1e-9, 1 - trial["waiting_share"]) if is_data_bound else 0.0
    workload = Workload(trial["step_s"], input_s, trial["gradient_bytes"], int(trial["num_messages"]))
    times = step_time(workload, hosts=hosts, link_gbit=link_gbit)
    one = step_time(workload, hosts=1, link_gbit=link_gbit)
    num_steps = trial["steps"] / (hosts * processes)
    share = one.total_s / times.total_s
    print(
        f"a model of {hosts} hosts with {processes} process(es) each over {link_gbit:g} Gbit/s: "
        f"{times.total_s:.3f} s a step, {share:.0%} of the speed of {hosts} times one host; the gradients, "
        f"{trial['gradient_bytes'] / 1e6:.1f} MB, take {times.link_s:.3f} s on the link, {times.exposed_s:.3f} s of "
        f"them not hidden; the limit is {times.limit}"
    )
    eta, compression = timedelta(seconds=round(times.total_s * num_steps)), cfg.TRAIN.GRADIENT_COMPRESSION
    print(f"ETA of all {num_steps:.0f} steps there: {eta} (TRAIN.GRADIENT_COMPRESSION {compression})")


@dataclass(frozen=True)
class Workload:
    """The work of one process in a step.

    Attributes:
        compute_s: seconds of a step alone, input not counted.
        input_s: seconds that the input of a step takes, which goes on beside it.
        gradient_bytes: that a process sends for each step before anything is divided among processes.
        num_messages: small messages of synchronised BatchNorm, one after the other.
    """

    compute_s: float
    input_s: float
    gradient_bytes: float
    num_messages: int


@dataclass(frozen=True)
class StepTime:
    """Where the time of a step goes, in seconds.

    Attributes:
        compute_s: of the workload.
        link_s: that gradients take on the link.
        exposed_s: of these, what the backward pass does not hide.
        messages_s: of synchronised BatchNorm.
        input_s: of the workload.
    """

    compute_s: float
    link_s: float
    exposed_s: float
    messages_s: float
    input_s: float

    @property
    def total_s(self) -> float:
        """Of a step."""
        return max(self.compute_s + self.exposed_s + self.messages_s, self.input_s)

    @property
    def limit(self) -> str:
        """The bottleneck."""
        if self.input_s >= self.total_s:
            return "the input"
        extra = {"the link": self.exposed_s, "BatchNorm's messages": self.messages_s, "the computation": self.compute_s}
        return max(extra, key=lambda name: extra[name])


def step_time(workload: Workload, *, hosts: int, link_gbit: float) -> StepTime:
    """Models a step on several hosts, to be looked at before they are rented; docs/scaling.md checks the model.

    Computation and input are measured on one process; gradients are averaged in a ring, each host's link carrying
    ``2 (n - 1) / n`` times their bytes each way for `n` hosts, while the backward pass still runs.

    Args:
        workload: of one process.
        hosts: number of them.
        link_gbit: gigabits a second between two hosts, each way.
    """
    sent = 2 * (hosts - 1) / hosts * workload.gradient_bytes
    link_s = 8 * sent / (link_gbit * 1e9)
    hidden_s = min(BACKWARD_SHARE * workload.compute_s, link_s * (1 - _last_bucket(workload)))
    messages_s = workload.num_messages * MESSAGE_S if hosts > 1 else 0.0
    return StepTime(workload.compute_s, link_s, link_s - hidden_s, messages_s, workload.input_s)


def _last_bucket(workload: Workload) -> float:
    """Share of the gradients that is ready only when the backward pass is over: DDP's last bucket of 25 MiB."""
    return min(1.0, 25 * 2**20 / max(workload.gradient_bytes, 1.0))
