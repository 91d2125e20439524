"""Curves of several runs, side by side; runs that differ by their seed are summed up by mean and spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

_SIZE = (900, 500)  # of a plot, width and height in pixels
_MARGIN = (70, 30, 20, 60)  # left, top, right, bottom
# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0))


@dataclass(frozen=True)
class Curve:
    """One quantity of one run.

    Attributes:
        name: the run's folder, or the group's name.
        iterations: at which it was written.
        values: of the same length.
        settings: the run's configuration without its seed and its folders, to find runs that differ by the seed alone.
    """

    name: str
    iterations: np.ndarray
    values: np.ndarray
    settings: str


def read_curve(run: Path, metric: str) -> Curve:
    """One quantity from a run's ``log.jsonl``.

    Args:
        run: folder of the run.
        metric: ``<kind>/<name>``, as in TensorBoard.

    Raises:
        ValueError: there is no log, or nothing of that name in it; names what there is.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such log; expected the folder of a run")
    kind, _, name = metric.partition("/")
    points, known = [], set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue  # a line that is being written
        known |= {f"{point['kind']}/{key}" for key in point if key not in ("kind", "iteration", "epoch", "time")}
        if point["kind"] == kind and point.get(name) is not None:
            points.append((point["iteration"], point[name]))
    if not points:
        raise ValueError(f"{path}: nothing called {metric}; there are {', '.join(sorted(known)) or 'no points'}")
    iterations, values = zip(*points, strict=True)
    return Curve(str(run), np.array(iterations), np.array(values, dtype=np.float64), _settings(run / "config.yaml"))


def _settings(path: Path) -> str:
    if not path.is_file():
        return ""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("SEED", "OUTPUT_DIR", "LOG_DIR"):
        settings.pop(key, None)
    settings.get("TRAIN", {}).pop("RESUME", None)
    return yaml.safe_dump(settings)


def group_curves(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Runs whose settings differ by the seed alone, under the first one's name."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.settings or curve.name, []).append(curve)
    return {members[0].name: members for members in groups.values()}


def format_curves(groups: Mapping[str, Sequence[Curve]], metric: str, *, lowest: bool = False) -> str:
    """Last and best value of each group: the mean over its runs and, for several, their sample standard deviation."""
    best = np.min if lowest else np.max
    width = max(len("run"), *(len(name) for name in groups))
    lines = [f"{metric}", f"{'run':<{width}}  runs  iterations          last                best"]
    for name, curves in groups.items():
        last = [curve.values[-1] for curve in curves]
        tops = [best(curve.values) for curve in curves]
        iterations = max(curve.iterations[-1] for curve in curves)
        lines.append(f"{name:<{width}}{len(curves):6d}{iterations:12d}{_spread(last):>20}{_spread(tops):>20}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def plot_curves(groups: Mapping[str, Sequence[Curve]], metric: str) -> np.ndarray:
    """All curves in one picture; of a group with several runs the mean, and each run thinly.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    left, top, right, bottom = _MARGIN
    width, height = _SIZE
    picture = Image.new("RGB", (width, height + 20 * len(groups)), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    every = [curve for curves in groups.values() for curve in curves]
    x_max = max(curve.iterations.max() for curve in every)
    low, high = min(c.values.min() for c in every), max(c.values.max() for c in every)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - right) * x / x_max,
            top + (height - top - bottom) * (1 - (y - low) / (high - low)),
        )

    for share in np.linspace(0, 1, 6):
        value = low + share * (high - low)
        _, y = place(0, value)
        draw.line((left, y, width - right, y), fill=(220, 220, 220))
        draw.text((8, y - 8), f"{value:.3g}", (60, 60, 60), font=font)
        x, _ = place(share * x_max, low)
        draw.text((x - 12, height - bottom + 6), f"{share * x_max:.0f}", (60, 60, 60), font=font)
    draw.text((left, 6), metric, (0, 0, 0), font=font)
    draw.text((width - right - 60, height - bottom + 24), "iteration", (60, 60, 60), font=font)
    for index, (name, curves) in enumerate(groups.items()):
        color = _COLORS[index % len(_COLORS)]
        for curve in curves:
            points = [place(x, y) for x, y in zip(curve.iterations, curve.values, strict=True)]
            draw.line(points * 2 if len(points) == 1 else points, fill=color, width=1 if len(curves) > 1 else 2)
        if len(curves) > 1:
            mean = _mean_curve(curves)
            draw.line([place(x, y) for x, y in mean], fill=color, width=3)
        y = height + 20 * index
        draw.line((left, y + 8, left + 24, y + 8), fill=color, width=3)
        draw.text((left + 32, y), f"{name} ({len(curves)} runs)" if len(curves) > 1 else name, (0, 0, 0), font=font)
    return np.asarray(picture)


def _mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean over runs at the iterations of the first, as far as all of them go."""
    end = min(curve.iterations[-1] for curve in curves)
    at = curves[0].iterations[curves[0].iterations <= end]
    values = np.mean([np.interp(at, curve.iterations, curve.values) for curve in curves], axis=0)
    return list(zip(at.tolist(), values.tolist(), strict=True))
