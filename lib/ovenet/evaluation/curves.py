"""Curves of several runs, side by side; runs that differ only in their seed are averaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ovenet.errors import UserError
from ovenet.fields import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; S_i, S_s and S_f have theirs in all plots.
PREDICTION_COLORS = {"initial": "#0072B2", "seed": "#E69F00", "fused": "#009E73"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plain_text(text: str) -> str:
    """Escapes a name for matplotlib, which reads text between two dollars as a formula."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Curve:
    """One quantity of one run.

    Attributes:
        name: the run's folder, or the group's name.
        iterations: ``(N,)`` iterations at which it was logged.
        values: ``(N,)``.
        settings: settings that the result depends on, without the seed: equal for runs that differ only in the seed.
        seed: ``SEED`` of the run; None if its configuration is not known.
    """

    name: str
    iterations: np.ndarray
    values: np.ndarray
    settings: str
    seed: int | None = None


def read_curve(run: Path, metric: str, affects_training: Callable[[str], bool]) -> Curve:
    """One quantity from a run's ``log.jsonl``.

    Args:
        run: folder of the run.
        metric: ``<kind>/<name>``, as in TensorBoard; mIoU comes in percent, as in the log.
        affects_training: whether the result depends on a setting, by its full key.

    Raises:
        UserError: there is no log, or no such metric in it; names those that exist.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: there is no such log; expected the folder of a run")
    kind, _, name = metric.partition("/")
    iterations: list[int] = []
    values: list[float] = []
    known: set[str] = set()
    for point in read_log(path):
        known |= {f"{point['kind']}/{key}" for key in point if key not in ("kind", "iteration", "epoch", "time")}
        if point["kind"] == kind and point.get(name) is not None:
            iterations.append(point["iteration"])
            values.append(point[name])
    if not values:
        raise UserError(f"{path}: nothing called {metric}; there are {', '.join(sorted(known)) or 'no points'}")
    scale = 100.0 if is_percent(metric) else 1.0
    scaled = scale * np.array(values, dtype=np.float64)
    settings, seed = _settings(run / "config.yaml", affects_training)
    return Curve(str(run), np.array(iterations), scaled, settings, seed)


def is_percent(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return "mean_iou" in metric


def short_names(runs: Sequence[Path]) -> list[str]:
    """Each path without the parts that all share; the whole paths where these names are not distinct."""
    parts = [Path(run).parts for run in runs]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    names = ["/".join(part for part in path if part not in shared) for path in parts]
    return names if all(names) and len(set(names)) == len(names) else [str(run) for run in runs]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The points of a run's ``log.jsonl``: ``kind``, ``iteration`` and values by name.

    Lines that are incomplete or not of this program are left out.
    """
    points = []
    for line in path.read_bytes().split(b"\n"):
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and isinstance(point.get("kind"), str) and type(point.get("iteration")) is int:
            points.append({key: value for key, value in point.items() if key == "kind" or _is_value(value)})
    return points


def _is_value(value: object) -> bool:
    """Whether this is a number, or None, which stands for one that was not finite."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _settings(path: Path, affects_training: Callable[[str], bool]) -> tuple[str, int | None]:
    """The settings that the result depends on, and the seed."""
    if not path.is_file():
        return "", None
    try:
        settings = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the configuration of a run ({type(error).__name__}); remove it") from error
    seed = settings.get("SEED")
    chosen = yaml.safe_dump({key: value for key, value in settings.items() if affects_training(key)})
    # A run of a sweep may start from the weights of another one of its seed, whose folder has the seed in its name.
    chosen = re.sub(rf"-seed{seed}-[0-9a-f]+(?=/)", "-seed", chosen)
    return chosen, seed if type(seed) is int and seed >= 0 else None


def group_curves(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Groups runs that differ only in the seed, under the common start of their names, else the first name."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.settings or curve.name, []).append(curve)
    names = [_shared_name([curve.name for curve in members]) for members in groups.values()]
    if len(set(names)) < len(names):
        names = [members[0].name for members in groups.values()]
    return dict(zip(names, groups.values(), strict=True))


def _shared_name(names: Sequence[str]) -> str:
    """``OVeNet`` for ``OVeNet-seed2-f9a31b98`` and ``OVeNet-seed3-bfbfc4cf``; the first name if they share none."""
    if len(names) == 1:
        return names[0]
    positions = zip(*names, strict=False)
    shared = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, positions))
    return re.sub(r"[-_/ ]*(seed)?[-_/ ]*$", "", shared) or names[0]


def format_curves(groups: Mapping[str, Sequence[Curve]], metric: str, *, lowest: bool = False) -> str:
    """Last and best value of each group: the mean over its runs and, for several, their sample standard deviation."""
    best = np.min if lowest else np.max
    width = max(len("run"), *(len(name) for name in groups))
    lines = [_title(metric), f"{'run':<{width}}  runs  iterations          last                best"]
    for name, curves in groups.items():
        last = [curve.values[-1] for curve in curves]
        tops = [best(curve.values) for curve in curves]
        iterations = max(curve.iterations[-1] for curve in curves)
        lines.append(
            f"{name:<{width}}{len(curves):6d}{iterations:12d}{_spread(last, metric):>20}{_spread(tops, metric):>20}"
        )
    return "\n".join(lines)


def _title(metric: str) -> str:
    return f"{metric}, %" if is_percent(metric) else metric


def _spread(values: Sequence[float], metric: str) -> str:
    digits = 2 if is_percent(metric) else 4
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def plot_curves(groups: Mapping[str, Sequence[Curve]], metric: str) -> Figure:
    """All curves in one plot; groups of several runs as their mean, and each run as a thin line."""
    from matplotlib.figure import Figure  # takes half a second, which training and testing do without

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(title=plain_text(_title(metric)), xlabel="iteration")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd")
    for index, (name, curves) in enumerate(groups.items()):
        color = COLORS[index % len(COLORS)]
        several = len(curves) > 1
        for curve in curves:
            label = None if several else plain_text(name)
            axes.plot(curve.iterations, curve.values, ".-", color=color, linewidth=0.7 if several else 1.5, label=label)
        if several:
            label = plain_text(f"{name} ({len(curves)} runs)")
            axes.plot(*zip(*_mean_curve(curves), strict=True), color=color, linewidth=2.5, label=label)
    figure.legend(loc="outside lower center", fontsize="small")
    return figure


def _mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean over runs at the iterations of the first, as far as all of them go."""
    end = min(curve.iterations[-1] for curve in curves)
    at = curves[0].iterations[curves[0].iterations <= end]
    values = np.mean([np.interp(at, curve.iterations, curve.values) for curve in curves], axis=0)
    return list(zip(at.tolist(), values.tolist(), strict=True))
