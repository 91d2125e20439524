"""Runs of a sweep as tables, as JSON and as a plot. Scores are in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ovenet.evaluation.curves import PREDICTION_COLORS, plain_text
from ovenet.structures import SYMBOLS
from ovenet.sweep.definition import Sweep
from ovenet.sweep.results import RunResult
from ovenet.sweep.statistics import Difference, VariantScores, compare, spread


class Summary:
    """Summary of the finished runs of a sweep.

    Args:
        sweep: sweep with all runs.
        results: results of the finished runs.
    """

    def __init__(self, sweep: Sweep, results: Sequence[RunResult]):
        self.sweep = sweep
        runs: dict[str, list[RunResult]] = {name: [] for name in dict.fromkeys(run.name for run in sweep.runs)}
        for result in results:
            runs[result.name].append(result)
        self.variants = {name: tuple(sorted(r, key=lambda run: run.seed)) for name, r in runs.items() if r}
        finished = {(result.name, result.seed) for result in results}
        self.num_runs = len({run.key for run in sweep.runs})  # grids may share runs
        self.num_missing = len({run.key for run in sweep.runs if (run.name, run.seed) not in finished})
        reference = self.variants.get(sweep.reference)
        self.reference = VariantScores(reference) if reference else None

    @cached_property
    def differences(self) -> dict[str, Difference | None]:
        """S_f of each variant against S_f of the reference; None for the reference, and without a common seed."""
        return {
            name: None
            if self.reference is None or name == self.sweep.reference
            else compare(VariantScores(runs), self.reference)
            for name, runs in self.variants.items()
        }

    @cached_property
    def gains(self) -> dict[str, Difference | None]:
        """S_f of each variant against S_i of the same networks; None for baselines."""
        return {
            name: compare(VariantScores(runs), VariantScores(runs, "initial")) if "initial" in runs[0].scores else None
            for name, runs in self.variants.items()
        }

    def markdown(self) -> str:
        """Tables of means and differences, and of classes."""
        if not self.variants:
            return f"no run of {self.sweep.name} is finished yet"
        lines = [
            "| | runs | parameters | mIoU | pixel accuracy | Boundary IoU "
            f"| mIoU less {self.sweep.reference}'s | S_f less S_i |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, runs in self.variants.items():
            fused = VariantScores(runs)
            lines.append(
                f"| {name} | {len(runs)} | {runs[0].parameters:,} | {mean_and_spread(fused.scores('mean_iou'))} "
                f"| {mean_and_spread(fused.scores('pixel_accuracy'))} | {boundary_iou(fused)} "
                f"| {_signed(self.differences[name])} | {_signed(self.gains[name])} |"
            )
        lines += ["", *self._classes()]
        codes = Counter(run.code for runs in self.variants.values() for run in runs if run.code)
        if len(codes) > 1:
            made_by = "; ".join(f"{code} ({number} of the runs)" for code, number in sorted(codes.items()))
            lines += ["", f"made by {len(codes)} versions of the code: {made_by}"]
        if self.num_missing:
            lines += ["", f"{self.num_missing} of {self.num_runs} runs are missing"]
        return "\n".join(lines)

    def _classes(self) -> list[str]:
        names = list(self.variants)
        lines = [f"| IoU | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
        columns = [VariantScores(runs).class_iou().mean(axis=0) for runs in self.variants.values()]
        for k, title in enumerate(next(iter(self.variants.values()))[0].class_names):
            lines.append(f"| {title} | {' | '.join(percent(column[k]) for column in columns)} |")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The same numbers in ``[0, 1]``, with the scores of each run."""
        return {
            "sweep": self.sweep.name,
            "reference": self.sweep.reference,
            "missing": self.num_missing,
            "variants": {
                name: {
                    "seeds": [run.seed for run in runs],
                    "parameters": runs[0].parameters,
                    "mean_iou": {
                        kind: VariantScores(runs, kind).scores("mean_iou").tolist() for kind in runs[0].scores
                    },
                    "less_reference": _as_dict(self.differences[name]),
                    "fused_less_initial": _as_dict(self.gains[name]),
                }
                for name, runs in self.variants.items()
            },
        }

    def figure(self) -> Figure:
        """Mean IoU of every run: grids as curves, other variants by name, the reference as a dashed line."""
        groups = {run.name: (run.group, run.at) for run in self.sweep.runs}
        grids: dict[str, list[str]] = {}
        for name in self.variants:
            group, at = groups[name]
            if group and at is not None:
                grids.setdefault(group, []).append(name)
        plain = [name for name in self.variants if not any(name in members for members in grids.values())]
        titles = ([None] if plain else []) + list(grids)
        figure = Figure(figsize=(max(4.5 * len(titles), 7), 4.5), layout="constrained")
        axes = figure.subplots(1, max(len(titles), 1), squeeze=False, sharey=True)[0]
        for ax, title in zip(axes, titles, strict=False):
            ax.grid(color="#dddddd")
            if title is None:
                self._plot_names(ax, plain)
            else:
                self._plot_grid(ax, title, [(groups[name][1], name) for name in grids[title]])
        axes[0].set_ylabel("mIoU in %")
        lines = {SYMBOLS[kind]: Line2D([], [], color=color) for kind, color in PREDICTION_COLORS.items()}
        if self.reference is not None:
            for ax in axes:
                line = ax.axhline(100 * self.reference.scores("mean_iou").mean(), color="#555555", linestyle="--")
            lines[plain_text(self.sweep.reference)] = line
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), fontsize="small")
        return figure

    def _plot_names(self, ax: Any, names: Sequence[str]) -> None:
        for place, name in enumerate(names):
            runs = self.variants[name]
            for index, kind in enumerate(runs[0].scores):
                values = 100 * VariantScores(runs, kind).scores("mean_iou")
                x = place + 0.2 * (index - (len(runs[0].scores) - 1) / 2)
                color = PREDICTION_COLORS[kind]
                ax.plot(np.full(len(values), x), values, ".", color=color, alpha=0.6)
                ax.plot([x - 0.07, x + 0.07], [values.mean()] * 2, color=color, linewidth=2)
        ax.set_xticks(range(len(names)), [plain_text(fill(name, 16)) for name in names], rotation=30, ha="right")

    def _plot_grid(self, ax: Any, title: str, members: Sequence[tuple[float | None, str]]) -> None:
        places = sorted((at, name) for at, name in members if at is not None)
        kinds = list(self.variants[places[0][1]][0].scores)
        for kind in kinds:
            means = [100 * VariantScores(self.variants[name], kind).scores("mean_iou") for _, name in places]
            color = PREDICTION_COLORS[kind]
            ax.plot([at for at, _ in places], [m.mean() for m in means], "-", color=color, linewidth=2)
            for (at, _), values in zip(places, means, strict=True):
                ax.plot(np.full(len(values), at), values, ".", color=color, alpha=0.6)
        ax.set_xlabel(plain_text(title))


def _as_dict(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "seeds": list(difference.seeds),
        "mean": difference.mean,
        "by_seed": difference.by_seed.tolist(),
        "interval_over_seeds": None if len(difference.seeds) == 1 else list(difference.interval_over_seeds),
        "interval_over_images": list(difference.interval),
    }


def percent(value: float) -> str:
    """A share in percent, and a dash for NaN."""
    return "–" if np.isnan(value) else f"{100 * value:.2f}"


def mean_and_spread(values: np.ndarray, *, sign: str = "") -> str:
    """Mean ± standard deviation in percent; the value of a single run.

    Args:
        values: ``(runs,)`` in ``[-1, 1]``.
        sign: ``+`` shows the sign of gains.
    """
    if np.isnan(values).any():
        return "–"
    deviation = "" if len(values) == 1 else f" ± {100 * spread(values):.2f}"
    return f"{100 * values.mean():{sign}.2f}{deviation}"


def interval_text(interval: tuple[float, float]) -> str:
    """Bounds of a gain in percent, and a dash for NaN."""
    return "–" if np.isnan(interval).any() else f"[{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def boundary_iou(prediction: VariantScores) -> str:
    """Mean ± standard deviation of mean Boundary IoU in percent; empty unless all runs were tested with details."""
    details = [run.details for run in prediction.runs if run.details]
    if len(details) < len(prediction.runs):
        return ""
    values = [one["boundaries"]["mean_iou"][prediction.kind][-1] for one in details]  # None where nothing has a border
    return mean_and_spread(np.array(values, dtype=np.float64))


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{mean_and_spread(difference.by_seed, sign='+')} {interval_text(difference.interval)}"
