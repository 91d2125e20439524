#!/usr/bin/env python3
"""Draws training loss and validation mIoU of runs from their train.log; needs matplotlib.

python docs/plot_curves.py RUN_DIR [RUN_DIR ...] --out FILE.png
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOSS = re.compile(r"epoch (\d+)/\d+, iteration (\d+)/(\d+): .*\bfused ([\d.]+)")
SCORE = re.compile(r"epoch (\d+): mIoU (.*) \(best")


def main() -> None:
    """Reads the logs and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for run in args.runs:
        text = (run / "train.log").read_text()
        points = [(int(e) - 1 + int(i) / int(n), float(loss)) for e, i, n, loss in LOSS.findall(text)]
        left.plot(*zip(*points, strict=True), label=run.name, linewidth=1)
        series: dict[str, list[tuple[int, float]]] = {}
        for epoch, scores in SCORE.findall(text):
            for name, value in re.findall(r"(\w+) ([\d.]+)", scores):
                series.setdefault(name, []).append((int(epoch), 100 * float(value)))
        for name, values in series.items():
            right.plot(*zip(*values, strict=True), marker="o", markersize=3, label=f"{run.name}, {name}")
    left.set(xlabel="epoch", ylabel="cross-entropy of S_f, training crops")
    right.set(xlabel="epoch", ylabel="mIoU in %, validation, one scale")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
