#!/usr/bin/env python3
"""Draws the method on a drawn scene: python docs/plot_method.py --root data/ --output docs/method.png.

The scenes are those of the demo (``ovenet prepare synthetic --train 120 --val 24 --test 4``), the weights come along.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.builders.data import list_dataset
from ovenet.builders.loading import load_model
from ovenet.data.sheets import colorize
from ovenet.predictor.predictor import Predictor
from ovenet.predictor.sources import find_weights
from ovenet.utils.cli import require_plot_file, run_main

WINDOW = (72, 108)  # height and width of the part that is shown enlarged
NUM_ARROWS = 22
SHORTEST_PX, APART_PX = 3.0, 5.0  # of the arrows that are drawn
MOST_WRONG = 0.12  # share of the window that S_i may have wrong: a border to be mended, not a failure
WRONG = (0.85, 0.0, 0.0, 1.0)


def main() -> None:
    """Finds the window in which seeds correct most, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data/", help="DATASET.ROOT, with the demo's scenes")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    require_plot_file(args.output, overwrite=args.overwrite)
    path = find_weights("scenes-lite0")
    dataset = list_dataset(load_model(path, overrides=["DATASET.ROOT", args.root]).cfg, "list/synthetic/val.lst")
    predictor = Predictor.from_checkpoint(path)
    best = max((gain(predictor, dataset[index], index) for index in range(len(dataset))), key=lambda found: found[0])
    _, index, top, left = best
    draw(predictor, dataset[index], top, left).savefig(args.output, dpi=130)


def gain(predictor: Predictor, sample, index: int) -> tuple[int, int, int, int]:
    """Most pixels that seeds correct in a window of a sample, less those that they break; and where."""
    labels = predictor.predict(sample.image).labels
    before, after = (labels[name].numpy() == sample.labels for name in ("initial", "fused"))
    valid = sample.labels < len(predictor.info.class_names)
    corrected = _window_sums(after.astype(int) - before)
    corrected[_window_sums(~before & valid) > MOST_WRONG * WINDOW[0] * WINDOW[1]] = 0
    corrected[_window_sums(~valid) > 0] = 0
    top, left = np.unravel_index(corrected.argmax(), corrected.shape)
    return int(corrected.max()), index, int(top), int(left)


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sums over every window, by the row and column that it begins at."""
    sums = np.pad(values.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = WINDOW
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def draw(predictor: Predictor, sample, top: int, left: int) -> plt.Figure:
    """The scene, and a part of it: wrong pixels, arrows to their seeds, and what comes of them."""
    prediction = predictor.predict(sample.image, seeds=True)
    rows, columns = slice(top, top + WINDOW[0]), slice(left, left + WINDOW[1])
    true = sample.labels
    maps = {name: values.numpy() for name, values in prediction.labels.items()}
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.75), layout="constrained", width_ratios=[2 * 72 / 108, 1, 1, 1])
    titles = (
        "A scene",
        "$S_i$: wrong pixels in red",
        "Each looks up its seed: offset $o$",
        "$S_f$: fused with the seed's scores",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xticks=[], yticks=[])
        axis.title.set_fontsize(11)
    axes[0].imshow(sample.image)
    axes[0].add_patch(Rectangle((left, top), WINDOW[1], WINDOW[0], fill=False, edgecolor="red", linewidth=1.5))
    valid = true < len(predictor.info.class_names)
    for axis, name in ((axes[1], "initial"), (axes[3], "fused")):
        axis.imshow(colorize(maps[name], predictor.info)[rows, columns])
        wrong = ((maps[name] != true) & valid)[rows, columns]
        axis.imshow(np.where(wrong[..., None], WRONG, (0, 0, 0, 0)))
        axis.set_xlabel(f"{100 * wrong.mean():.1f} % wrong")
    axes[2].imshow(sample.image[rows, columns], alpha=0.6)
    is_corrected = (maps["initial"] != true) & (maps["fused"] == true) & valid
    height, width = true.shape
    offsets = prediction.offset.numpy() * np.array([(width - 1) / 2, (height - 1) / 2])[:, None, None]
    for y, x in spread_out(is_corrected[rows, columns] & (np.hypot(*offsets)[rows, columns] > SHORTEST_PX)):
        dx, dy = offsets[:, top + y, left + x]
        color = np.array(predictor.info.palette[true[top + y, left + x]]) / 255
        for shade, line in (("white", 3.0), (color, 1.6)):
            style = {
                "arrowstyle": "->",
                "color": shade,
                "linewidth": line,
                "mutation_scale": 9,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axes[2].annotate("", (x + dx, y + dy), (x, y), arrowprops=style)
        axes[2].plot(x, y, "o", color=WRONG, markersize=3.5)
    axes[2].set(xlim=(-0.5, WINDOW[1] - 0.5), ylim=(WINDOW[0] - 0.5, -0.5))
    axes[2].set_xlabel("arrows in the colour of the pixel's true class")
    return figure


def spread_out(mask: np.ndarray) -> list[tuple[int, int]]:
    """Some pixels of a mask that are not too near to each other."""
    chosen: list[tuple[int, int]] = []
    for y, x in np.random.default_rng(0).permutation(np.argwhere(mask)):
        if all(np.hypot(y - v, x - u) >= APART_PX for v, u in chosen):
            chosen.append((int(y), int(x)))
    return chosen[:NUM_ARROWS]


if __name__ == "__main__":
    run_main(main)
