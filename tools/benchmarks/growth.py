"""How the cost grows with pixels, classes, batch and processes."""

from __future__ import annotations

import os
import socket
import statistics
import time
from dataclasses import asdict, dataclass

import torch
import torch.multiprocessing as mp

from benchmarks.cases import loss_case
from benchmarks.inputs import Options
from benchmarks.measure import compare
from benchmarks.networks import EXPERIMENTS, RANDOM, SMALL
from ovenet import build_model, builders, load_config
from ovenet.structures import Batch
from ovenet.utils import distributed

_SIZES = ((128, 256), (256, 512), (384, 768), (512, 1024))
_CLASSES = (10, 19, 60, 150)
_BATCHES = (1, 2, 4)
_PROCESSES = (1, 2)
_STEPS = 6


@dataclass(frozen=True)
class Point:
    """Seconds of the loss (both ways) or of a training step (ours) at one size.

    Attributes:
        axis: what is varied.
        value: how much of it.
        plain_s: None where the plain way was not run.
        ours_s: the same for ours.
    """

    axis: str
    value: int
    plain_s: float | None
    ours_s: float


def growth(options: Options, runs: int) -> list[dict[str, object]]:
    """All points of the plot."""
    points = [_loss("pixels", h * w, options, runs, 19, (h, w), 1) for h, w in _SIZES]
    points += [_loss("classes", k, options, runs, k, (256, 512), 1) for k in _CLASSES]
    points += [_loss("batch", n, options, runs, 19, (256, 512), n) for n in _BATCHES]
    if options.device.type == "cpu":
        points += [Point("processes", n, None, _step_seconds(n)) for n in _PROCESSES]
    return [asdict(point) for point in points]


def _loss(
    axis: str, value: int, options: Options, runs: int, num_classes: int, size: tuple[int, int], batch: int
) -> Point:
    result = compare(loss_case(options, axis, num_classes, size, batch=batch), runs)
    return Point(axis, value, statistics.median(result.plain_s), statistics.median(result.ours_s))


def _step_seconds(num_processes: int) -> float:
    """Seconds of a training step of one 256x128 crop per process, each with one thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    answers = context.Queue()
    mp.spawn(_train, (num_processes, port, answers), nprocs=num_processes)
    return max(answers.get() for _ in range(num_processes))


def _train(rank: int, num_processes: int, port: int, answers: mp.Queue) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(num_processes), LOCAL_RANK="0"
    )
    cfg = load_config(EXPERIMENTS / SMALL, list(RANDOM))
    device = torch.device("cpu")
    with distributed.process_group(device):
        model = build_model(cfg).to(memory_format=torch.channels_last).train()
        step = builders.build_train_step(model, cfg, device, [10**6])
        images = torch.randint(0, 256, (2, 128, 256, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = Batch(images, torch.randint(0, 19, (2, 128, 256)).to(torch.int16), ("a", "b"))
        seconds = []
        for _ in range(_STEPS + 1):
            started = time.perf_counter()
            _loss_terms = step([batch]).loss
            seconds.append(time.perf_counter() - started)
        answers.put(statistics.median(seconds[1:]))
