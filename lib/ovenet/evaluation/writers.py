"""Results as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovenet.structures import EvalResult

_MAX_NAMES = 12
# The paper's symbols for what a model predicts.
SYMBOLS = {"initial": "S_i", "seed": "S_s", "fused": "S_f"}


def format_table(
    results: Mapping[str, EvalResult], by_condition: Mapping[str, Mapping[str, EvalResult]] | None = None
) -> str:
    """Per-class IoU of all predictions side by side, and the means below, in percent.

    Args:
        results: scores by prediction name, all of the same classes.
        by_condition: the same of parts of the split, whose mIoU gets a line each.
    """
    first = next(iter(results.values()))
    by_condition = by_condition or {}
    width = max(len(name) for name in (*first.class_names, "mean accuracy", *(f"mIoU, {c}" for c in by_condition)))
    header = f"{'IoU in %':<{width}}" + "".join(f"{SYMBOLS[name]:>9}" for name in results)
    rows = [
        (name, [result.iou[k] for result in results.values()])
        for k, name in enumerate(first.class_names)
        if name not in first.absent
    ]
    summary = [
        ("mIoU", [r.mean_iou for r in results.values()]),
        ("pixel accuracy", [r.pixel_accuracy for r in results.values()]),
        ("mean accuracy", [r.mean_accuracy for r in results.values()]),
        *((f"mIoU, {name}", [r.mean_iou for r in part.values()]) for name, part in by_condition.items()),
    ]
    line = "-" * len(header)
    lines = [header, line, *(_row(*row, width) for row in rows), line, *(_row(*row, width) for row in summary)]
    if first.absent:
        names = ", ".join(first.absent[:_MAX_NAMES])
        more = f" and {len(first.absent) - _MAX_NAMES} more" if len(first.absent) > _MAX_NAMES else ""
        lines.append(f"not in the labels and left out of the means: {names}{more}")
    return "\n".join(lines)


def _row(name: str, values: Sequence[float], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{100 * value:9.2f}" for value in values)


def results_as_dict(results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """Scores as plain numbers in ``[0, 1]``, None where a class has no labelled pixel."""
    return {
        name: {
            "mean_iou": _plain(r.mean_iou),
            "pixel_accuracy": _plain(r.pixel_accuracy),
            "mean_accuracy": _plain(r.mean_accuracy),
            "num_pixels": r.num_pixels,
            "absent": list(r.absent),
            "iou": {c: _plain(v) for c, v in zip(r.class_names, r.iou, strict=True)},
            "accuracy": {c: _plain(v) for c, v in zip(r.class_names, r.accuracy, strict=True)},
        }
        for name, r in results.items()
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes an indented JSON file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
