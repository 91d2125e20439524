"""Estimates memory, time and throughput of a training before it starts."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import torch
from yacs.config import CfgNode

from ovenet import build_model, builders, load_config
from ovenet.builders.models import model_on_meta
from ovenet.config import check_parts
from ovenet.data.cache import DecodedCache
from ovenet.data.dataset import AugmentedDataset
from ovenet.data.samplers import spread
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.run_log import WaitingClock
from ovenet.engine.scaling import Workload, disturbances, remedies, step_time
from ovenet.engine.staging import HostCopy
from ovenet.errors import UserError
from ovenet.structures import Batch
from ovenet.utils.cli import OUT_OF_MEMORY, command_environment, config_parser, ovenet_command
from ovenet.utils.distributed import choose_device
from ovenet.utils.environment import busy_cores, num_cores, peak_device_memory, peak_memory_bytes, release_unused

GIB = 2**30
WATCHING_S = 0.5
NOTICEABLE_CORES = 0.25  # of other processes
NOTICEABLE_SHARE = 0.8  # of the measured time; warn if the estimate without other processes is below
KILLED = 9  # the signal by which Linux ends a process when memory runs out
NUM_WARM_UP = {"cpu": 2, "cuda": 6}  # untimed steps, in which algorithms are chosen and graphs captured
CONTEXT_GIB = 0.5  # of a process on a card beside its tensors: kernels and handles
NUM_SAMPLES = 8  # samples whose loading time is measured
_BYTES = {"none": 4, "bf16": 2, "powersgd": 0.4}  # bytes sent per parameter
Trial = dict[str, float]


def main() -> None:
    """Measures real steps in another process, with smaller and smaller batches until they fit into memory."""
    parser = config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps that are timed (default: 8)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes that will train (default: 1)")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of hosts, with so many processes each (default: 1)"
    )
    parser.add_argument(
        "--link", type=float, default=10.0, metavar="GBIT", help="bandwidth between hosts, in Gbit/s (default: 10)"
    )
    parser.add_argument(
        "--assume",
        type=float,
        metavar="SECONDS",
        help="assume this time for a step on one card, and print the model of --nodes",
    )
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory that a process may use (default: the device's)"
    )
    parser.add_argument("--trial", action="store_true", help="measure, and print JSON")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.cfg, args.overrides)
    check_parts(cfg)
    if args.steps < 1 or args.processes < 1 or args.nodes < 1:
        raise UserError("--steps, --processes and --nodes are at least 1")
    if not 0 < args.link < math.inf:
        raise UserError(f"--link is {args.link}; expected gigabits a second, above 0")
    if args.assume is not None and not 0 < args.assume < math.inf:
        raise UserError(f"--assume is {args.assume}; expected seconds, above 0")
    if args.assume is not None:
        print(assumed_table(cfg, args.assume, args.nodes, args.link, args.processes))
        return
    if args.trial:
        print(json.dumps(measure(cfg, args.steps)))
        return
    device = choose_device(cfg.DEVICE)
    if device.type not in NUM_WARM_UP:
        raise UserError(f"DEVICE is {device.type}; ovenet plan measures the memory of cpu and cuda only")
    print(builders.describe_network(cfg))
    limit = args.memory or device_memory(device)
    others = busy_cores(WATCHING_S)
    if others is not None and others > NOTICEABLE_CORES:
        print(f"other processes use {others:.1f} of {num_cores()} cores: what is measured is slower than alone")
    for number, (batch, accumulate, saving) in enumerate(candidates(cfg)):
        change = f"TRAIN.BATCH_SIZE_PER_GPU {batch} TRAIN.ACCUMULATE {accumulate} TRAIN.CHECKPOINT_ACTIVATIONS {saving}"
        print(f"measuring {args.steps} steps: {change} …", file=sys.stderr, flush=True)
        trial = run_trial(args.cfg, [*args.overrides, *change.split()], args.steps)
        used = f"{trial['memory_gib']:.2f} GiB" if trial else "more than there is"
        if trial and trial["reserved_gib"] > trial["memory_gib"]:
            used += f" ({trial['reserved_gib']:.2f} reserved)"
        fits = trial is not None and trial["reserved_gib"] <= limit
        print(f"{change}: {used} of {limit:.2f} GiB{'' if fits else ', does not fit'}")
        if trial is not None and fits:
            report(cfg, trial, args.processes, batch * accumulate)
            if device.type == "cuda":
                print(use_of_card(cfg, trial["step_s"], torch.cuda.get_device_name(device)))
            report_feeding(cfg, trial, args.processes, batch * accumulate)
            if args.processes == args.nodes == 1:
                print(runs_at_once(trial["reserved_gib"], limit, device.type))
            if args.nodes > 1 or (args.processes > 1 and trial["num_layers"]):
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


def device_memory(device: torch.device) -> float:
    """Memory of the CUDA device or, on the CPU, of the machine, in GiB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal")) * 1024 / GIB


def run_trial(config: str, overrides: list[str], steps: int) -> Trial | None:
    """Measures in another process; None if it ran out of memory.

    Raises:
        UserError: the trial failed for another reason.
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
    """Peak memory, seconds per step, and the share of time spent waiting for data."""
    device = choose_device(cfg.DEVICE)
    builders.set_up_cuda(cfg)
    model = build_model(cfg).to(device).to(memory_format=torch.channels_last)
    phases, accumulate = builders.build_phases(cfg, model.normalization), cfg.TRAIN.ACCUMULATE
    timeline = Timeline(tuple(phases), cfg.TRAIN.BEGIN_EPOCH, accumulate)
    step = builders.build_train_step(model, cfg, device, timeline.lengths)
    model.train()
    decoded_s, cached_s = sample_seconds(phases[0].crops, cfg.TRAIN.IGNORE_LABEL)
    batches = (batch for epoch in count() for batch in _epoch(phases[0], epoch))
    groups = iter(lambda: list(islice(batches, accumulate)), [])
    for group in islice(groups, NUM_WARM_UP[device.type]):
        _ = step(group).loss
    release_unused(device)
    clock, seconds, cpu_seconds = WaitingClock(), [], []
    for group in clock.watch(islice(groups, steps)):
        started, cpu_started = time.perf_counter(), time.process_time()
        _ = step(group).loss  # waits for the device
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    _ = HostCopy(device).take({"model": model.state_dict(), **step.state()})  # as for a checkpoint
    used = reserved = peak_memory_bytes()
    if device.type == "cuda":
        used, reserved = peak_device_memory(device), torch.cuda.max_memory_reserved(device)
    is_synchronized = device.type == "cuda" and cfg.TRAIN.SYNC_BN
    return {
        "memory_gib": used / GIB,
        "reserved_gib": reserved / GIB,
        "step_s": statistics.median(seconds),
        "alone_s": alone_seconds(statistics.median(seconds), statistics.median(cpu_seconds), device),
        "waiting_share": clock.waiting_share,
        "decoded_s": decoded_s,
        "cached_s": cached_s,
        "gradient_bytes": float(gradient_bytes(model, cfg)),
        "num_layers": float(accumulate * num_batch_norms(model) if is_synchronized else 0),
        "steps": float(timeline.num_iterations),
    }


def _epoch(phase: Phase, epoch: int) -> Iterator[Batch]:
    phase.sampler.epoch = epoch
    return iter(phase.loader)


def sample_seconds(dataset: AugmentedDataset, ignore_label: int) -> tuple[float, float]:
    """Seconds that one worker needs for a training crop, from encoded files and from a cache of decoded images.

    The files have been read before: a slow disk makes both slower. The cache is a temporary one of a few samples.
    """
    files, indices = dataset.dataset, spread(len(dataset.dataset), NUM_SAMPLES)
    own, num_threads = files.cache, cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in a loading process
    try:
        with TemporaryDirectory() as folder:
            cache = DecodedCache(Path(folder), files.folder, files.info, ignore_label)
            cache.build(files.pairs, files.read_files, indices, num_threads=1)
            files.cache = None
            decoded_s = _seconds_each(dataset, indices)
            files.cache = cache
            return decoded_s, _seconds_each(dataset, indices)
    except OSError as error:
        raise UserError(f"decoded samples find no room ({error}); set TMPDIR to a folder on a larger disk") from error
    finally:
        files.cache = own
        cv2.setNumThreads(num_threads)


def _seconds_each(dataset: AugmentedDataset, indices: Sequence[int]) -> float:
    started = time.perf_counter()
    for index in indices:
        dataset[0, index]
    return (time.perf_counter() - started) / len(indices)


def gradient_bytes(model: torch.nn.Module, cfg: CfgNode) -> int:
    """Bytes that a rank sends in each step; for powersgd, where they depend on the layers, an estimate of a tenth."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return int(trained * _BYTES[cfg.TRAIN.GRADIENT_COMPRESSION])


def num_batch_norms(model: torch.nn.Module) -> int:
    """Number of BatchNorm layers that synchronise statistics on GPUs; those in frozen parts do not."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return sum(isinstance(module, kind) and module.training for module in model.modules())


def alone_seconds(wall: float, cpu: float, device: torch.device) -> float:
    """Estimated seconds of a step without other processes, when its threads never wait for a core.

    Args:
        wall: wall-clock seconds of the step.
        cpu: CPU seconds of all its threads.
        device: on CUDA the wall-clock time is returned, since `cpu` does not measure the device.
    """
    return wall if device.type == "cuda" else min(wall, cpu / min(torch.get_num_threads(), num_cores()))


def report(cfg: CfgNode, trial: Trial, processes: int, batch: int) -> None:
    """Prints time per step, speed, the bottleneck, and the time of the whole schedule without validation."""
    per_step = trial["step_s"] / max(1e-9, 1 - trial["waiting_share"])
    eta = timedelta(seconds=round(per_step * trial["steps"] / processes))
    if trial["alone_s"] < NOTICEABLE_SHARE * trial["step_s"]:
        print(
            f"{trial['alone_s']:.3f} s a step is what the model costs: without other processes, or with fewer threads"
        )
    print(f"{trial['step_s']:.3f} s a step, {batch * processes / per_step:.1f} images/s on {processes} process(es)")
    print(f"{trial['waiting_share']:.0%} of the time waiting for data: {WaitingClock.verdict(trial['waiting_share'])}")
    print(f"ETA of all {trial['steps'] / processes:.0f} steps, validation not counted: {eta}")


def use_of_card(cfg: CfgNode, step_s: float, device_name: str) -> str:
    """One line: the operations of a step, and the achieved share of the card's peak.

    Args:
        cfg: the configuration.
        step_s: seconds of a step.
        device_name: name of the card.
    """
    cost = builders.count_step(cfg)
    peak = builders.peak_images_per_second(cfg, cost, device_name)
    batch = cfg.TRAIN.BATCH_SIZE_PER_GPU * cfg.TRAIN.ACCUMULATE
    share = f"{batch / step_s / peak:.1%} of the bfloat16 peak" if peak else "the peak is not known"
    return (
        f"a step's passes are {cost.num_operations} operations of the network, {cost.flops / 1e12:.2f} TFLOP; on "
        f"{device_name}: {share}"
    )


def report_feeding(cfg: CfgNode, trial: Trial, processes: int, batch: int) -> None:
    """Prints the number of workers that the measured speed needs, with and without the cache."""
    rate, cores = batch / trial["step_s"], num_cores()
    decoding, cached = (num_workers(rate, trial[name]) for name in ("decoded_s", "cached_s"))
    few = " for this process" if processes == 1 else f" for each of {processes} processes"
    print(
        f"{rate:.1f} images/s need {decoding} loading process(es) (WORKERS {decoding}){few}, of this machine's {cores} "
        f"core(s), at {1e3 * trial['decoded_s']:.1f} ms a crop; with DATASET.CACHE disk or ram {cached}, at "
        f"{1e3 * trial['cached_s']:.1f} ms"
    )
    if cfg.DATASET.CACHE == "none" and cached < decoding > min(cfg.WORKERS, cores // processes):
        print(f"the data will not keep up with WORKERS {cfg.WORKERS}: set DATASET.CACHE disk or ram")


def runs_at_once(reserved_gib: float, limit_gib: float, device_type: str) -> str:
    """One line: how many such runs of a sweep fit into the memory of one GPU or, on the CPU, of this machine.

    Args:
        reserved_gib: memory of one run.
        limit_gib: memory that there is.
        device_type: ``cuda``, or ``cpu``, where `reserved_gib` is the memory of the whole process.
    """
    if device_type == "cuda":
        number = max(1, int(limit_gib / (reserved_gib + CONTEXT_GIB)))
        where, option = "one GPU", f"--per-gpu {number}; {CONTEXT_GIB:g} GiB assumed for CUDA's own in each"
    else:
        number = max(1, int(limit_gib / reserved_gib))
        where, option = "this machine", f"--jobs {number}; it has {num_cores()} core(s)"
    return f"by their memory, {number} such runs of a sweep fit on {where} at a time (ovenet sweep {option})"


def num_workers(rate: float, sample_s: float) -> int:
    """Number of workers that deliver samples at a rate, at least 1.

    Args:
        rate: samples per second.
        sample_s: seconds that one worker needs for a sample.
    """
    return max(1, math.ceil(rate * sample_s))


def report_hosts(cfg: CfgNode, trial: Trial, hosts: int, link_gbit: float, processes: int) -> None:
    """Prints the estimated step on several processes and hosts, and its bottleneck; see docs/scaling.md."""
    is_data_bound = trial["waiting_share"] > WaitingClock.BOUND
    input_s = trial["step_s"] / max(1e-9, 1 - trial["waiting_share"]) if is_data_bound else 0.0
    workload = Workload(trial["step_s"], input_s, trial["gradient_bytes"], trial["num_layers"])
    times = step_time(workload, hosts=hosts, per_host=processes, link_gbit=link_gbit)
    num_steps = trial["steps"] / (hosts * processes)
    print(
        f"a model of {hosts} host(s) with {processes} process(es) each over {link_gbit:g} Gbit/s: "
        f"{times.total_s:.3f} s a step, {times.efficiency:.0%} of the speed of as many that wait for nobody; the "
        f"gradients, {trial['gradient_bytes'] / 1e6:.1f} MB, take {times.link_s:.3f} s on the link, "
        f"{times.exposed_s:.3f} s of them not hidden; BatchNorm's messages take {times.messages_s:.3f} s; the limit is "
        f"{times.limit}"
    )
    eta, compression = timedelta(seconds=round(times.total_s * num_steps)), cfg.TRAIN.GRADIENT_COMPRESSION
    print(f"ETA of all {num_steps:.0f} steps there: {eta} (TRAIN.GRADIENT_COMPRESSION {compression})")


def assumed_table(cfg: CfgNode, step_s: float, hosts: int, link_gbit: float, processes: int) -> str:
    """Markdown table of the modelled step time on several hosts, without and with each remedy.

    Args:
        cfg: the configuration; compression and SYNC_BN are rows of the table.
        step_s: assumed seconds of a step on one card.
        hosts: number of hosts.
        link_gbit: bandwidth between hosts, in Gbit/s.
        processes: processes per host, each with its own card.
    """
    model = model_on_meta(cfg)
    gradients = sum(p.numel() for p in model.parameters() if p.requires_grad) * _BYTES["none"]
    batch = cfg.TRAIN.BATCH_SIZE_PER_GPU * cfg.TRAIN.ACCUMULATE
    rows = [
        f"{hosts * processes} card(s) on {hosts} host(s), {link_gbit:g} Gbit/s, {step_s:g} s a step of batch {batch}, "
        f"{num_batch_norms(model)} BatchNorms, {gradients / 1e6:.0f} MB of gradients; a model, nothing of it measured",
        "",
        "| with | a step, s | gradients not hidden, s | messages, s | images/s | of the ideal | limit |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    start = Workload(step_s, 0.0, gradients, cfg.TRAIN.ACCUMULATE * num_batch_norms(model))
    slowed = disturbances(start, images_per_host=batch * processes)
    for name, workload in {**remedies(start), **slowed}.items():
        times = step_time(workload, hosts=hosts, per_host=processes, link_gbit=link_gbit)
        images = batch * hosts * processes * workload.compute_s / step_s / times.total_s
        rows.append(
            f"| {name} | {times.total_s:.3f} | {times.exposed_s:.3f} | {times.messages_s:.3f} | {images:,.0f} | "
            f"{workload.compute_s / times.total_s:.0%} | {times.limit} |"
        )
    return "\n".join(rows)
