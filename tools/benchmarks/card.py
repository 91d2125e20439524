"""Measures ways of doing the same work on a card, each of them alone: time, memory, share of what the card can do."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import Options
from benchmarks.measure import copy_rate, limit_s, matrix_rate, seconds_of
from ovenet.utils.environment import peak_device_memory, peak_flops, release_unused

PLAIN = "plain"  # begins the name of the way that the others are compared with, which stands first
MEASURE_S = 6.0  # of a way, warm-up not counted; slow ways have fewer runs for it
_MIN_RUNS = 3
_WARM_UP_RUNS = 3
_MAX_CAUSE = 300  # letters
Record = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One way of doing a piece of work.

    Attributes:
        run: does it; may leave the card at work.
        first: run once before all else; what it returns has to be the same in all ways.
        same: raises AssertionError unless the plain way's result and this one's are the same.
        repeats: of `run` between two times that the clock is read: the card does not wait for it.
        flops: floating-point operations that the work needs at least.
        num_bytes: that have to be read and written at least.
        num_images: of the work; 0 where images per second say nothing.
        precision: of its products: fp32, tf32 or bf16.
        is_model: `flops` are those of a network, whose share of the card's dense bf16 peak is told.
    """

    run: Callable[[], Any]
    first: Callable[[], Any]
    same: Callable[[Any, Any], None]
    repeats: int = 4
    flops: float = 0.0
    num_bytes: float = 0.0
    num_images: int = 0
    precision: str = "fp32"
    is_model: bool = False


@dataclass(frozen=True)
class Way:
    """A line of the table.

    Attributes:
        work: what is done; the name of the row.
        name: how it is done.
        build: makes it ready; what it takes is not measured.
    """

    work: str
    name: str
    build: Callable[[Options], Work]

    @property
    def title(self) -> str:
        return f"{self.work}: {self.name}"

    @property
    def is_plain(self) -> bool:
        return self.name.startswith(PLAIN)


@dataclass
class Bench:
    """Measures ways, one after the other, in one process.

    Attributes:
        options: device and size.
        runs: of each way at most.
        results: folder of the plain ways' results, which the other processes read.
    """

    options: Options
    runs: int
    results: Path

    def record(self, way: Way) -> Record:
        """What was measured, or why it failed."""
        record: Record = {"work": way.work, "way": way.name}
        try:
            self._measure(way, record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a compiler that exits, an allocator that gives up: the other ways go on
            record["failed"] = cause(error)
        self._clean_up()
        return record

    def _measure(self, way: Way, record: Record) -> None:
        device = self.options.device
        for precision in ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32",):
            matrix_rate(device, precision)  # before memory is watched
        copy_rate(device)
        self._clean_up()
        started = time.perf_counter()
        work = way.build(self.options)
        result = _on_cpu(work.first())
        repeats, warm_up = (1, 1) if self.options.quick else (work.repeats, _WARM_UP_RUNS)

        def run() -> None:
            for _ in range(repeats):
                work.run()

        for _ in range(warm_up):
            seconds_of(run, device)
        record["start_s"] = time.perf_counter() - started
        if device.type == "cuda":
            record["start_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
            release_unused(device)  # what choosing algorithms took
        seconds: list[float] = []
        while len(seconds) < self.runs and (len(seconds) < _MIN_RUNS or sum(seconds) * repeats < MEASURE_S):
            seconds.append(seconds_of(run, device) / repeats)
        record |= {
            "seconds": seconds,
            "median_s": statistics.median(seconds),
            "images": work.num_images,
            "limit_s": limit_s(work.flops, work.num_bytes, device, work.precision if device.type == "cuda" else "fp32"),
        }
        if work.is_model:
            record["model_flops"] = work.flops
            if peak := bf16_peak(device):
                record["share_of_peak"] = work.flops / record["median_s"] / peak
        if device.type == "cuda":
            record["allocated_bytes"] = peak_device_memory(device)
            record["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        path = self.results / f"{way.work}.pt"
        if way.is_plain and not path.exists():
            torch.save(result, path)
        elif path.exists():
            work.same(torch.load(path, weights_only=False), result)

    def _clean_up(self) -> None:
        """Frees what a way held, graphs and compiled code too, and lets the peaks of memory begin anew."""
        torch._dynamo.reset()
        gc.collect()
        release_unused(self.options.device)


def bf16_peak(device: torch.device) -> float | None:
    """Dense bf16 products a second, in FLOP/s; None for a card that is not listed, and a CPU."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def cause(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_CAUSE]


def _on_cpu(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach().cpu()
    if isinstance(result, (tuple, list)):
        return type(result)(_on_cpu(part) for part in result)
    return result


def agreement(a: np.ndarray, b: np.ndarray) -> None:
    """Class ids of two ways: a tenth may differ, since a network of random weights has near ties everywhere."""
    share = (a == b).mean()
    assert share > 0.9, f"only {share:.1%} of the pixels have the same class"
