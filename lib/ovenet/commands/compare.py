"""Compares runs by their log.jsonl."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ovenet.config.schema import affects_training
from ovenet.evaluation.curves import (
    Curve,
    format_curves,
    group_curves,
    is_percent,
    plot_curves,
    read_curve,
    short_names,
)
from ovenet.evaluation.seeds_needed import format_seeds_needed
from ovenet.utils.cli import require_plot_file

MIOU_POINTS = 0.5


def main() -> None:
    """Prints a table of the last and best values, and writes a plot of the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--metric", default="val/mean_iou_fused", help="kind/name in log.jsonl (default: %(default)s)")
    parser.add_argument("--seeds", action="store_true", help="runs whose configs differ by SEED alone are one line")
    parser.add_argument("--lowest", action="store_true", help="the best value is the lowest, as for losses")
    parser.add_argument(
        "--difference",
        type=positive_number,
        metavar="D",
        help=f"tell how many seeds this difference takes (default for mIoU: {MIOU_POINTS} points, else none)",
    )
    parser.add_argument("--output", type=Path, help="picture of the curves to write: PNG, SVG or PDF")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    args = parser.parse_args()
    if args.output:
        require_plot_file(args.output, overwrite=args.overwrite)
    curves: Sequence[Curve] = [
        replace(read_curve(run, args.metric, affects_training), name=name)
        for run, name in zip(args.runs, short_names(args.runs), strict=True)
    ]
    by_seed = group_curves(curves)
    groups = by_seed if args.seeds else {curve.name: [curve] for curve in curves}
    print(format_curves(groups, args.metric, lowest=args.lowest))
    difference = args.difference or (MIOU_POINTS if is_percent(args.metric) else None)
    if difference:
        print(format_seeds_needed(by_seed, args.metric, difference))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot_curves(groups, args.metric).savefig(args.output, dpi=110)
        print(f"curves: {args.output}")


def positive_number(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, in the unit of the metric, such as 0.5")
    return value
