"""Detailed tables of a sweep: scores and gains by seed and class, edges and seed pixels. In percent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ovenet.structures import SYMBOLS
from ovenet.sweep.statistics import Difference, VariantScores
from ovenet.sweep.summary import Summary, interval_text, mean_and_spread, percent

_DISTANCES = (1, 4, 16)  # pixels from a label's edge
_LENGTHS = (1, 8)  # pixels from a pixel to its seed


def details_markdown(summary: Summary) -> str:
    """Tables of a summary's variants; edges and seed pixels only of runs tested with details."""
    tables = (_by_seed(summary), _by_seed_gains(summary), _class_gains(summary), _edges(summary), _seeds(summary))
    return "\n\n".join("\n".join(table) for table in tables if len(table) > 2)


def _predictions(summary: Summary) -> Iterator[tuple[str, VariantScores]]:
    """All predictions with their titles: S_i, S_s and S_f of each variant."""
    for name, runs in summary.variants.items():
        kinds = list(runs[0].scores)
        for kind in kinds:
            yield (f"{name}, {SYMBOLS[kind]}" if len(kinds) > 1 else name), VariantScores(runs, kind)


def _all_seeds(summary: Summary) -> list[int]:
    return sorted({run.seed for runs in summary.variants.values() for run in runs})


def _by_seed(summary: Summary) -> list[str]:
    seeds = _all_seeds(summary)
    lines = _header(["mIoU", *(f"seed {seed}" for seed in seeds)])
    for title, prediction in _predictions(summary):
        values = dict(zip(prediction.seeds, prediction.scores("mean_iou"), strict=True))
        cells = [percent(values[seed]) if seed in values else "" for seed in seeds]
        lines.append(_row([title, *cells]))
    return lines


def _gains(summary: Summary) -> dict[str, Difference]:
    """All comparisons, by title."""
    gains: dict[str, Difference] = {}
    for name in summary.variants:
        gain, difference = summary.gains[name], summary.differences[name]
        if gain is not None:
            gains[f"{name}, S_f less S_i"] = gain
        if difference is not None:
            gains[f"{name} less {summary.sweep.reference}"] = difference
    return gains


def _by_seed_gains(summary: Summary) -> list[str]:
    seeds = _all_seeds(summary)
    lines = _header(["mIoU", "mean", "95 % over seeds", "95 % over images", *(f"seed {seed}" for seed in seeds)])
    for title, gain in _gains(summary).items():
        values = dict(zip(gain.seeds, gain.by_seed, strict=True))
        intervals = interval_text(gain.interval_over_seeds), interval_text(gain.interval)
        cells = [f"{100 * values[seed]:+.2f}" if seed in values else "" for seed in seeds]
        lines.append(_row([title, f"{100 * gain.mean:+.2f}", *intervals, *cells]))
    return lines


def _class_gains(summary: Summary) -> list[str]:
    columns = _gains(summary)
    lines = _header(["IoU", *columns])
    if columns:
        for k, title in enumerate(next(iter(summary.variants.values()))[0].class_names):
            cells = [mean_and_spread(column.class_iou[:, k], sign="+") for column in columns.values()]
            lines.append(_row([title, *cells]))
    return lines


def _edges(summary: Summary) -> list[str]:
    lines = _header(
        [
            "",
            "Boundary IoU, width 0.5 / 1 / 2 %",
            f"mIoU of the pixels up to {' / '.join(map(str, _DISTANCES))} px from an edge",
            "mean recall of small / medium / large segments",
        ]
    )
    for title, prediction in _predictions(summary):
        if all(run.details for run in prediction.runs):
            rows = [_edge_scores(run.details, prediction.kind) for run in prediction.runs]
            means = (np.array(values, dtype=np.float64).mean(axis=0) for values in zip(*rows, strict=True))
            lines.append(_row([title, *(" / ".join(percent(value) for value in cell) for cell in means)]))
    return lines


def _edge_scores(details: Any, kind: str) -> tuple[list[float], ...]:
    edges = details["edges"]
    near = [edges["trimap_iou"][kind][edges["distances_px"].index(d)] for d in _DISTANCES]
    return details["boundaries"]["mean_iou"][kind], near, details["segments"]["mean_recall"][kind]


def _seeds(summary: Summary) -> list[str]:
    columns: dict[str, Callable[[Any], float | None]] = {
        "seeds on their pixel's class": lambda s: s["right_class"],
        "where S_i is wrong": lambda s: s["right_class_where_wrong"],
        "wrong pixels that S_f corrects": lambda s: s["corrected"]["fused"],
        "right pixels that S_f breaks": lambda s: s["broken"]["fused"],
    }
    for length in _LENGTHS:
        columns[f"offsets up to {length} px"] = partial(_share_up_to, length=length)
    lines = _header(["%", *columns])
    for name, runs in summary.variants.items():
        seeds = [run.details["seeds"] for run in runs if run.details and run.details.get("seeds")]
        if seeds:
            lines.append(_row([name, *(_range([read(s) for s in seeds]) for read in columns.values())]))
    return lines


def _share_up_to(seeds: Any, length: int) -> float | None:
    pixels = seeds["length_pixels"]
    return sum(pixels[: seeds["lengths_px"].index(length) + 1]) / sum(pixels) if any(pixels) else None


def _range(shares: Sequence[float | None]) -> str:
    """Smallest to largest share, without None."""
    known = [share for share in shares if share is not None]
    if not known:
        return "–"
    low, high = (f"{100 * share:.1f}" for share in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), f"|---|{'--:|' * (len(cells) - 1)}"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
