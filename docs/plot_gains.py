#!/usr/bin/env python3
"""Draws what the seed gains on CamVid, from the sweeps' JSON files: python docs/plot_gains.py --output FILE.png."""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.errors import UserError
from ovenet.sweep.definition import read_sweep
from ovenet.sweep.results import read_results
from ovenet.sweep.statistics import Difference, VariantScores, compare
from ovenet.sweep.summary import interval_text
from ovenet.utils.cli import require_plot_file, run_main

ROOT = Path(__file__).resolve().parents[1]
CORRECTED, BOTH = "corrected scores, no seed", "seed and correction"
FINISHED = [  # of a network at rest, S_i is the baseline
    ("seed", "seed", "initial", "a seed, less the network alone"),
    (CORRECTED, CORRECTED, "initial", "a correction of the scores, less the network alone"),
    (BOTH, BOTH, "initial", "seed and correction, less the network alone"),
    (BOTH, CORRECTED, "fused", "seed and correction, less the correction"),
]
TOGETHER = [
    ("OVeNet", "OVeNet", "initial", "OVeNet, S_f less S_i"),
    ("OVeNet", "baseline", "fused", "OVeNet, less the baseline"),
    ("OVeNet", "features added, no seed", "fused", "OVeNet, less added features of the same size"),
]
GROUPS = {  # title: sweep; what is compared with what, and with which prediction of it
    "Trained on for as long again, test split": (
        "trained_on",
        [
            ("OVeNet", "baseline", "fused", "OVeNet, less the baseline trained on"),
            ("OVeNet", CORRECTED, "fused", "OVeNet, less corrected scores of the same size"),
            (CORRECTED, "baseline", "fused", "corrected scores, less the baseline trained on"),
            ("OVeNet", "OVeNet", "initial", "OVeNet, S_f less S_i"),
        ],
    ),
    "Trained together, 48 epochs, test split": (
        "comparison_long",
        [
            *TOGETHER,
            ("OVeNet", CORRECTED, "fused", "OVeNet, less corrected scores of the same size"),
        ],
    ),
    "Trained together, 24 epochs, test split": (
        "comparison",
        [
            *TOGETHER,
            ("OVeNet", "seed is the pixel itself", "fused", "OVeNet, less the same with pixels as their own seeds"),
        ],
    ),
    "The same behind the OCR head, test split": ("comparison_ocr", TOGETHER),
    "Added to finished networks, test split": ("frozen_full", FINISHED),
    "Added to finished networks, validation split": ("frozen_remedies", FINISHED),
}
MIN_SEEDS = 3  # of an interval
MARGIN = 0.3  # points of mIoU beside the outermost seeds


def main() -> None:
    """Reads the results and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    require_plot_file(args.output, overwrite=args.overwrite)
    groups = {title: read_gains(name, rows) for title, (name, rows) in GROUPS.items()}
    draw(groups).savefig(args.output, dpi=110)


def read_gains(name: str, rows: list[tuple[str, str, str, str]]) -> dict[str, Difference]:
    """The differences of a sweep, under their titles.

    Raises:
        UserError: a variant has no result.
    """
    sweep = read_sweep(ROOT / "experiments/camvid/sweeps" / f"{name}.yaml")
    results = read_results(ROOT / "docs/sweeps" / f"camvid_{name}", sweep.runs)

    def prediction(variant: str, kind: str) -> VariantScores:
        return VariantScores(tuple(sorted((r for r in results if r.name == variant), key=lambda r: r.seed)), kind)

    gains = {}
    for variant, other, kind, title in rows:
        gain = compare(prediction(variant, "fused"), prediction(other, kind))
        if gain is None:
            raise UserError(f"{name}: there is no seed that {variant!r} and {other!r} both have")
        gains[title] = gain
    return gains


def draw(groups: dict[str, dict[str, Difference]]) -> Figure:
    """A row for each difference: its seeds as dots, their mean, and as a line its 95 % interval over seeds.

    The axis shows all seeds; where an interval goes on beyond it, an arrow says so.
    """
    num_rows = sum(len(gains) + 1.4 for gains in groups.values())
    figure = Figure(figsize=(11, 0.31 * num_rows + 0.8), layout="constrained")
    ax = figure.subplots()
    seeds = [100 * seed for gains in groups.values() for gain in gains.values() for seed in gain.by_seed]
    ends = min(seeds) - MARGIN, max(seeds) + MARGIN
    place, places, titles = 0.0, [], []
    for group, gains in groups.items():
        places.append(place)
        titles.append(group)
        place += 1
        for title, gain in gains.items():
            ax.plot(100 * gain.by_seed, [place] * len(gain.seeds), ".", color="black", markersize=5, alpha=0.6)
            color, text = "#777777", f"{100 * gain.mean:+.2f}"
            if len(gain.seeds) >= MIN_SEEDS:
                bounds = gain.interval_over_seeds
                color = "#0072B2" if bounds[0] > 0 else color
                ax.plot([100 * bound for bound in bounds], [place, place], color=color, linewidth=2)
                for bound, end, arrow in zip(bounds, ends, "<>", strict=True):
                    if not ends[0] <= 100 * bound <= ends[1]:
                        ax.plot(end, place, arrow, color=color, markersize=7, clip_on=False)
                text += f" {interval_text(bounds)}"
            ax.plot(100 * gain.mean, place, "D", color=color, markersize=7)
            text = f"{text}, {len(gain.seeds)} seeds".replace("-", "−")
            ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
            places.append(place)
            titles.append(title)
            place += 1
        place += 0.4
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(places, titles)
    for label in ax.get_yticklabels():
        label.set_weight("bold" if label.get_text() in groups else "normal")
    ax.set_xlim(ends)
    ax.set_ylim(place - 0.4, -0.6)
    ax.grid(axis="x", color="#dddddd")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("points of mIoU; dots: seeds; diamonds and lines: mean and 95 % interval, blue above 0")
    return figure


if __name__ == "__main__":
    run_main(main)
