"""Tables and pictures of what was measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch

from benchmarks.card import PLAIN, bf16_peak
from benchmarks.card_rows import PUBLISHED, PUBLISHED_SOURCE
from benchmarks.measure import Result, copy_rate, matrix_rate

mpl.use("Agg")
from matplotlib import pyplot as plt

_MIB = 2**20
_GIB = 2**30


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "float32 products, GFLOP/s": round(matrix_rate(device) / 1e9),
        "copying, GB/s": round(copy_rate(device) / 1e9, 1),
        **(_card(device) if device.type == "cuda" else {}),
    }


def _card(device: torch.device) -> dict[str, Any]:
    peak = bf16_peak(device)
    return {
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "memory, GiB": round(torch.cuda.get_device_properties(device).total_memory / _GIB, 1),
        "TF32 products, TFLOP/s": round(matrix_rate(device, "tf32") / 1e12),
        "bf16 products, TFLOP/s": round(matrix_rate(device, "bf16") / 1e12),
        "bf16 peak, TFLOP/s": "not known for this card" if peak is None else peak / 1e12,
    }


def as_record(result: Result, memory: Mapping[str, float]) -> dict[str, Any]:
    """One row for the JSON file; seconds and bytes."""
    return {
        "name": result.case.name,
        "plain_s": result.plain_s,
        "ours_s": result.ours_s,
        "ratio": result.ratio,
        "limit_s": result.limit_s,
        "images": result.case.num_images,
        "memory_bytes": dict(memory),
        "split_s": {name: statistics.median(s[name] for s in result.splits) for name in result.case.split},
    }


def table(records: Sequence[Mapping[str, Any]], sides: tuple[str, str]) -> str:
    """Markdown: medians, quartiles, ratio, memory, and how far the machine's limit is; `sides` name the two ways."""
    a, b = sides
    lines = [
        f"| work | {a}, ms | {b}, ms | times as fast | {a}, MiB | {b}, MiB | share | at best, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        plain, ours = record["memory_bytes"].get("plain"), record["memory_bytes"].get("ours")
        memory = ["", "", ""] if not plain else [f"{plain / _MIB:.0f}", f"{ours / _MIB:.0f}", f"{ours / plain:.2f}"]
        cells = [
            record["name"],
            _spread(record["plain_s"]),
            _spread(record["ours_s"]),
            f"{record['ratio']:.1f}",
            *memory,
            f"{1000 * record['limit_s']:.2g}" if record["limit_s"] < 0.1 else f"{1000 * record['limit_s']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def remarks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images per second, and what the parts of a row took."""
    lines = []
    for record in records:
        if record["images"]:
            rates = [record["images"] / statistics.median(record[side]) for side in ("plain_s", "ours_s")]
            lines.append(f"{record['name']}: {rates[0]:.3g} images/s the plain way, {rates[1]:.3g} ours")
        if split := record["split_s"]:
            parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in split.items())
            share = split["around them"] / split["forward passes"]
            lines.append(f"{record['name']}: {parts}: {share:.1%} on top")
    return lines


def card_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the ways of each row with the public code's, what failed and why."""
    lines = [
        "| work | way | ms | images/s | times plain | times public | GiB in use | GiB reserved | of the bf16 peak "
        "| at best, ms | ready after, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for work in dict.fromkeys(record["work"] for record in records):
        ways = [record for record in records if record["work"] == work]
        plain = next((r["median_s"] for r in ways if r["way"].startswith(PLAIN) and "median_s" in r), None)
        public = PUBLISHED.get(work, ())
        lines += [_card_line(work, record, plain, public[0].seconds if public else None) for record in ways]
        for item in public:
            memory = f"{item.memory_gib:g}" if item.memory_gib else ""
            rate = f"{item.num_images / item.seconds:.1f}"
            lines.append(
                f"| {work} | public code*, {item.way} | {1000 * item.seconds:.0f} | {rate} | | | {memory} | | | | |"
            )
    if any(record["work"] in PUBLISHED for record in records):
        lines += ["", f"\\* {PUBLISHED_SOURCE}"]
    return "\n".join(lines)


def card_figure(records: Sequence[Mapping[str, Any]], rows: Sequence[str], num_left: int) -> str:
    """In a line: how much was measured, and the fastest way of each row."""
    records = [record for record in records if not rows or record["work"] in rows]
    good = [record for record in records if "failed" not in record]
    parts = [f"{len(good)} measured, {len(records) - len(good)} failed, {num_left} not reached"]
    for work in dict.fromkeys(record["work"] for record in good):
        best = min((r for r in good if r["work"] == work), key=lambda record: record["median_s"])
        public = PUBLISHED.get(work)
        beside = f", {public[0].seconds / best['median_s']:.2f} times the public code" if public else ""
        parts.append(f"{work}: {best['way']} {1000 * best['median_s']:.3g} ms{beside}")
    return "; ".join(parts)


def _card_line(work: str, record: Mapping[str, Any], plain: float | None, public: float | None) -> str:
    cells = [work, record["way"]]
    if "median_s" in record:
        middle, rate = record["median_s"], record["images"] and record["images"] / record["median_s"]
        cells += [
            _spread(record["seconds"]),
            f"{rate:.1f}" if rate else "",
            f"{plain / middle:.2f}" if plain else "",
            f"{public / middle:.2f}" if public else "",
            *(f"{record[name] / _GIB:.1f}" if name in record else "" for name in ("allocated_bytes", "reserved_bytes")),
            f"{record['share_of_peak']:.0%}" if "share_of_peak" in record else "",
            f"{1000 * record['limit_s']:.2g}" if record["limit_s"] < 0.1 else f"{1000 * record['limit_s']:.0f}",
            f"{record['start_s']:.0f}",
        ]
    if "failed" in record:
        cells += [f"failed: {record['failed']}".replace("|", "/")]
    return f"| {' | '.join(cells)} |"


def plot_growth(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel for each axis."""
    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = plt.subplots(1, len(axes), figsize=(3.4 * len(axes), 3.6), layout="constrained", squeeze=False)
    labels = {}
    for axis, panel in zip(axes, panels[0], strict=True):
        here = [point for point in points if point["axis"] == axis]
        for side, label, color in (("plain_s", "plain", "#888888"), ("ours_s", "ours", "#0b62a4")):
            pairs = [(p["value"], 1000 * p[side]) for p in here if p[side] is not None]
            if pairs:
                (labels[label],) = panel.plot(*zip(*pairs, strict=True), marker="o", color=color)
        is_step = axis == "processes"
        panel.set(title=f"{'training step' if is_step else 'loss, forward and backward'}, ms", xlabel=axis)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(0, 1.05 * max(1000 * s for p in here for s in (p["plain_s"], p["ours_s"]) if s is not None))
        panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        panel.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _spread(seconds: Sequence[float]) -> str:
    low, middle, high = (1000 * q for q in statistics.quantiles(seconds, n=4))
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
