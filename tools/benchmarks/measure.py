"""Measures two implementations of the same work, and the machine's limits."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ovenet.errors import UserError
from ovenet.utils.environment import tf32

_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


@dataclass(frozen=True)
class Case:
    """The same work in two ways.

    Attributes:
        name: of the row.
        plain: what public code does.
        ours: what this project does.
        same: raises AssertionError unless the results of both are the same.
        flops: floating-point operations that the work needs at least.
        num_bytes: that have to be read and written at least.
        num_images: per call; 0 where images per second say nothing.
        min_ratio: of the times, for ``--check``; 0 for no limit.
        max_memory: share of the plain way's memory, for ``--check``; 0 for no limit.
        split: seconds of a call of `ours` that a part of it took, by name; read after each call.
        device: where it runs.
    """

    name: str
    plain: Callable[[], Any]
    ours: Callable[[], Any]
    same: Callable[[Any, Any], None]
    flops: float = 0.0
    num_bytes: float = 0.0
    num_images: int = 0
    min_ratio: float = 0.0
    max_memory: float = 0.0
    split: dict[str, float] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Result:
    """Seconds of each run; the runs of both ways alternate."""

    case: Case
    plain_s: list[float]
    ours_s: list[float]
    splits: list[dict[str, float]]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the median over neighbouring runs."""
        return statistics.median(a / b for a, b in zip(self.plain_s, self.ours_s, strict=True))

    @property
    def limit_s(self) -> float:
        """The machine's limit, by arithmetic or memory bandwidth."""
        device = self.case.device
        return limit_s(self.case.flops, self.case.num_bytes, device)


def compare(case: Case, runs: int) -> Result:
    """Runs both ways once to warm up and compares their results, then `runs` times in turn."""
    case.same(case.plain(), case.ours())
    plain_s, ours_s, splits = [], [], []
    for number in range(runs):
        sides = [(case.plain, plain_s), (case.ours, ours_s)]
        for run, seconds in sides if number % 2 else reversed(sides):
            seconds.append(seconds_of(run, case.device))
        splits.append(dict(case.split))
    return Result(case, plain_s, ours_s, splits)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> float:
    """Memory above what is there already; meaningful once in a process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    _kept = run()
    return float(_status("VmHWM") - before)


def limit_s(flops: float, num_bytes: float, device: torch.device, precision: str = "fp32") -> float:
    """Seconds that the machine needs at least, by arithmetic or memory bandwidth."""
    return max(flops / matrix_rate(device, precision), num_bytes / copy_rate(device))


@cache
def matrix_rate(device: torch.device, precision: str = "fp32") -> float:
    """Floating-point operations a second of a large product in fp32, tf32 or bf16."""
    side = _MATRIX_SIDE[device.type]
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    with tf32(precision == "tf32"):
        return 2 * side**3 / min(seconds_of(lambda: a @ a, device) for _ in range(5))


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, those read and those written, of a large copy."""
    source = torch.ones(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / min(seconds_of(lambda: target.copy_(source), device) for _ in range(5))


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call, until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    _result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise UserError(f"/proc/self/status has no {name}; memory is measured on Linux alone")
