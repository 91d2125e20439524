#!/usr/bin/env python3
"""Table and plot of the arena: python docs/plot_arena.py experiments/camvid/sweeps/arena.yaml --costs COSTS.json
--output FILE.png.

A run is named "BASE: REFINER". Runs of a base that begins with "frozen" are compared with the network itself: with
their own S_i, or else with the run "baseline", or else with S_i of another run of that base. All others are compared
with the run "BASE: baseline". `docs/measure_arena.py` writes the costs, `docs/seed_reach.py` the oracles.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.errors import UserError
from ovenet.evaluation.curves import plain_text
from ovenet.sweep.definition import Sweep, read_sweep
from ovenet.sweep.results import RunResult, read_result, read_results
from ovenet.sweep.statistics import Difference, VariantScores, compare
from ovenet.sweep.summary import boundary_iou, interval_text, mean_and_spread, percent
from ovenet.utils.cli import require_free, require_plot_file, run_main

ROOT = Path(__file__).resolve().parents[1]
BASELINE, FROZEN = "baseline", "frozen"
THIN = ("pole", "sign symbol", "fence", "pedestrian", "bicyclist")
MIN_SEEDS = 3  # of an interval over seeds
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555")  # of the bases
AXES = {"milliseconds": "ms", "processor_milliseconds": "processor ms", "gmac": "GMAC"}  # of one image
LINE = 0.05  # height of a label in the plot, as a share of the axis


@dataclass(frozen=True)
class Row:
    """One refiner behind one base.

    Attributes:
        base: how the network is trained, such as ``frozen``; "" for runs without a base.
        title: name of the refiner.
        scores: its runs.
        reference: what they are compared with; None for the reference itself.
        cost: cost of the network, see `docs/measure_arena.py`; None if unknown.
        own_cost: cost of the reference's network; None if unknown.
    """

    base: str
    title: str
    scores: VariantScores
    reference: VariantScores | None
    cost: Mapping[str, float] | None = None
    own_cost: Mapping[str, float] | None = None

    @cached_property
    def gain(self) -> Difference | None:
        """The runs less those of the reference."""
        return None if self.reference is None else compare(self.scores, self.reference)


def main() -> None:
    """Reads the results, prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--results", type=Path, nargs="+", metavar="FOLDER", help="of results (default: docs/sweeps/camvid_NAME)"
    )
    parser.add_argument("--costs", type=Path, metavar="FILE", help="from docs/measure_arena.py")
    parser.add_argument("--oracle", type=Path, nargs="+", default=[], metavar="FILE", help="from docs/seed_reach.py")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table here too, as Markdown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the plot: PNG, SVG or PDF; needs --costs")
    parser.add_argument("--against", choices=AXES, default="milliseconds", help="cost of the plot's horizontal axis")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    args = parser.parse_args()
    if args.output:
        require_plot_file(args.output, overwrite=args.overwrite)
    if args.table:
        require_free(args.table, overwrite=args.overwrite)
    sweep = read_sweep(args.sweep)
    costs = read_costs(args.costs) if args.costs else {}
    rows = arena_rows(read_variants(sweep, args.results or [ROOT / f"docs/sweeps/camvid_{sweep.name}"]), costs)
    rows += oracle_rows([read_result(path) for path in args.oracle])
    table = markdown(rows, "milliseconds" if args.against == "gmac" else args.against)
    print(table)
    if args.table:
        args.table.write_text(table + "\n", encoding="utf-8")
    if args.output:
        draw(rows, args.against).savefig(args.output, dpi=110)


def read_costs(path: Path) -> dict[str, Mapping[str, float]]:
    """Costs by the name of the run.

    Raises:
        UserError: the file is not one of `docs/measure_arena.py`.
    """
    try:
        return {name: {key: float(cost[key]) for key in ("parameters", *AXES)} for name, cost in _runs(path).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of docs/measure_arena.py ({error!r})") from error


def _runs(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


def read_variants(sweep: Sweep, folders: Sequence[Path]) -> dict[str, tuple[RunResult, ...]]:
    """Runs of each variant in the order of their seeds; of several results of one run that of the first folder.

    Raises:
        UserError: there is no result.
    """
    found: dict[tuple[str, int], RunResult] = {}
    for folder in folders:
        for result in read_results(folder, sweep.runs):
            found.setdefault((result.name, result.seed), result)
    if not found:
        raise UserError(f"no run of {sweep.name} has a result in {', '.join(map(str, folders))}")
    names = dict.fromkeys(run.name for run in sweep.runs)
    by_name = {
        name: sorted((r for (own, _), r in found.items() if own == name), key=lambda r: r.seed) for name in names
    }
    return {name: tuple(runs) for name, runs in by_name.items() if runs}


def arena_rows(variants: Mapping[str, tuple[RunResult, ...]], costs: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Rows of the table, base by base; the baseline of a base comes first."""
    rows = []
    for base in dict.fromkeys(_split(name)[0] for name in variants):
        members = {name: _split(name)[1] for name in variants if _split(name)[0] == base}
        name_of_reference, reference = _reference(base, variants)
        cost = costs.get(name_of_reference, costs.get(f"{base}: {BASELINE}"))
        if reference is not None:
            rows.append(Row(base, BASELINE, reference, None, cost, cost))
        for name, title in members.items():
            if name != name_of_reference:
                runs = variants[name]
                own = VariantScores(runs, "initial") if _is_frozen(base) and "initial" in runs[0].scores else reference
                rows.append(Row(base, title, VariantScores(runs), own, costs.get(name), cost))
    return rows


def _split(name: str) -> tuple[str, str]:
    """Base and refiner of a run's name."""
    base, _, title = name.rpartition(": ")
    return base, title


def _is_frozen(base: str) -> bool:
    return base.startswith(FROZEN)


def _reference(base: str, variants: Mapping[str, tuple[RunResult, ...]]) -> tuple[str, VariantScores | None]:
    """Name of the run that a base is compared with, and its scores; None without one."""
    names = [f"{base}: {BASELINE}" if base else BASELINE, *([BASELINE] if _is_frozen(base) else [])]
    for name in names:
        if name in variants:
            return name, VariantScores(variants[name])
    for name, runs in variants.items():
        if _is_frozen(base) and _split(name)[0] == base and "initial" in runs[0].scores:
            return "", VariantScores(runs, "initial")
    return "", None


def oracle_rows(results: Sequence[RunResult]) -> list[Row]:
    """A row for each limit τ: the frozen network with the best seeds within it."""
    runs = tuple(sorted(results, key=lambda r: r.seed))
    kinds = [kind for kind in (runs[0].scores if runs else ()) if kind.startswith("oracle")]
    own = VariantScores(runs, "initial")
    return [Row(FROZEN, kind.replace("oracle", "oracle seed", 1), VariantScores(runs, kind), own) for kind in kinds]


def markdown(rows: Sequence[Row], time: str = "milliseconds") -> str:
    """The table; IoU in percent, gains in points, thin classes with their gain, and a time of the costs."""
    class_names = rows[0].scores.runs[0].class_names
    thin = [name for name in THIN if name in class_names]
    titles = ["", "runs", "mIoU", "gain", "95 % over seeds", "95 % over images", "Boundary IoU"]
    titles += [*thin, "parameters added", "GMAC", AXES[time]]
    lines = []
    for base in dict.fromkeys(row.base for row in rows):
        lines += ["", f"| {base}{titles[0]} | {' | '.join(titles[1:])} |", f"|---|{'--:|' * (len(titles) - 1)}"]
        lines += [_line(row, [class_names.index(name) for name in thin], time) for row in rows if row.base == base]
    return "\n".join(lines[1:])


def _line(row: Row, thin: Sequence[int], time: str) -> str:
    gain, number = row.gain, len(row.scores.runs)
    cells = [row.title, str(number), mean_and_spread(row.scores.scores("mean_iou"))]
    if gain is None:
        cells += ["", "", ""]
    else:
        cells += [f"{100 * gain.mean:+.2f}", interval_text(gain.interval_over_seeds), interval_text(gain.interval)]
    cells.append(boundary_iou(row.scores))
    mean = row.scores.class_iou().mean(axis=0)
    for index in thin:
        change = "" if gain is None else f" ({100 * gain.class_iou[:, index].mean():+.2f})"
        cells.append(percent(mean[index]) + change)
    if row.cost is None:
        cells += ["", "", ""]
    else:
        added = "" if row.own_cost is None else f"{row.cost['parameters'] - row.own_cost['parameters']:+,.0f}"
        cells += [added, f"{row.cost['gmac']:.2f}", f"{row.cost[time]:.1f}"]
    return f"| {' | '.join(cells)} |"


def draw(rows: Sequence[Row], against: str) -> Figure:
    """A panel for each base: gain against cost.

    Raises:
        UserError: the cost of a network is unknown.
    """
    unknown = [f"{row.base}: {row.title}" for row in rows if row.cost is None and not row.title.startswith("oracle")]
    shown = [row for row in rows if row.gain is not None and row.cost is not None]
    if unknown or not shown:
        raise UserError(f"no cost is known of {', '.join(unknown) or 'any run'}; give --costs")
    bases = list(dict.fromkeys(row.base for row in shown))
    figure = Figure(figsize=(1.5 + 6.2 * len(bases), 6), layout="constrained")
    panels = figure.subplots(1, len(bases), squeeze=False, sharex=True, sharey=True)[0]
    low, high = _limits(shown)
    for ax, base, color in zip(panels, bases, COLORS * len(bases), strict=False):
        own = [row for row in shown if row.base == base]
        ax.set_ylim(low, high)
        ax.axhline(0, color="black", linewidth=1)
        if own[0].own_cost is not None:
            ax.plot(own[0].own_cost[against], 0, "s", color="black", markersize=6)
            ax.annotate(BASELINE, (own[0].own_cost[against], 0), (0, -12), textcoords="offset points", ha="center")
        for row in own:
            _mark(ax, row, against, color)
        _name(ax, own, against)
        ax.set_title(plain_text(base))
        ax.set_xlabel(f"{AXES[against]} of one image")
        ax.grid(color="#dddddd")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    panels[0].set_ylabel("gain in points of mIoU")
    figure.supxlabel("thick: 95 % interval over images; thin: over seeds; dots: seeds", fontsize="small")
    return figure


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the vertical axis: all seeds and all intervals over images."""
    values = [0.0]
    for row in rows:
        assert row.gain is not None
        values += [*row.gain.by_seed, *row.gain.interval]
    low, high = 100 * min(values), 100 * max(values)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _mark(ax: Axes, row: Row, against: str, color: str) -> None:
    gain, cost = row.gain, row.cost
    assert gain is not None
    assert cost is not None
    x = cost[against]
    ax.plot([x, x], [100 * bound for bound in gain.interval], color=color, linewidth=4, alpha=0.4)
    if len(gain.seeds) >= MIN_SEEDS:
        ax.plot([x, x], [100 * bound for bound in gain.interval_over_seeds], color=color, linewidth=1)
    ax.plot([x] * len(gain.seeds), 100 * gain.by_seed, ".", color="black", markersize=4, alpha=0.6)
    ax.plot(x, 100 * gain.mean, "o", color=color, markersize=8)


def _name(ax: Axes, rows: Sequence[Row], against: str) -> None:
    """Names at the right of the panel in the order of the gains, each with a line to its point."""
    low, high = ax.get_ylim()
    step = LINE * (high - low)
    named = sorted((100 * row.gain.mean, row.title, row.cost[against]) for row in rows if row.gain and row.cost)
    for (gain, title, x), place in zip(named, spread_out([gain for gain, *_ in named], step, high), strict=True):
        ax.annotate(
            plain_text(f"{title} {gain:+.2f}").replace("-", "−"),
            (x, gain),
            (1.03, place),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize="small",
            annotation_clip=False,
            zorder=0,
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6},
        )


def spread_out(values: Sequence[float], step: float, top: float) -> list[float]:
    """Ascending values moved apart to at least `step`: up as far as that needs, then down as far as `top` needs."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + step) if places else value)
    limit = top
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - step
    return places


if __name__ == "__main__":
    run_main(main)
