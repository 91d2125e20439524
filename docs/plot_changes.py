#!/usr/bin/env python3
"""Draws where seeds help or hurt: python docs/plot_changes.py WEIGHTS --root data/ --output docs/camvid_changes.png."""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.builders.data import list_dataset
from ovenet.builders.loading import load_model
from ovenet.data.sheets import colorize
from ovenet.inference.pictures import OUTCOMES, colorize_offset, error_map
from ovenet.predictor.predictor import Predictor
from ovenet.predictor.sources import find_weights
from ovenet.utils.cli import require_plot_file, run_main

TILE, BAR, GAP = (240, 180), 20, 6


def main() -> None:
    """Predicts the test list, and draws its largest gain and its largest loss of pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--root", default="data/", help="DATASET.ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    require_plot_file(args.output, overwrite=args.overwrite)
    path = find_weights(args.weights)
    cfg = load_model(path, overrides=["DATASET.ROOT", args.root]).cfg
    dataset = list_dataset(cfg, "list/camvid/test.lst")
    predictor = Predictor.from_checkpoint(path)
    gains = []
    for index in range(len(dataset)):
        sample = dataset[index]
        labels = predictor.predict(sample.image).labels
        initial, fused = (labels[name].numpy() == sample.labels for name in ("initial", "fused"))
        gains.append(int((fused & ~initial).sum()) - int((initial & ~fused).sum()))
    rows = [(f"most corrected: {dataset.pairs[i][0]}", i) for i in [int(np.argmax(gains))]]
    rows += [(f"most broken: {dataset.pairs[i][0]}", i) for i in [int(np.argmin(gains))]]
    draw([(title, gains[i], dataset[i]) for title, i in rows], predictor).save(args.output, optimize=True)


def draw(rows: list, predictor: Predictor) -> Image.Image:
    """A row of tiles for each image, and a legend."""
    titles = ("S_i", "S_s", "S_f", "offsets", "confidence", "what the seeds changed")
    width = len(titles) * (TILE[0] + GAP) - GAP
    canvas = Image.new("RGB", (width, len(rows) * (TILE[1] + 2 * BAR) + 2 * BAR), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, (title, gain, sample) in enumerate(rows):
        top = row * (TILE[1] + 2 * BAR)
        pen.text((0, top), f"{title}, {gain:+,} pixels right", fill="black", font=font)
        prediction = predictor.predict(sample.image, seeds=True)
        maps = {name: values.numpy() for name, values in prediction.labels.items()}
        tiles = [colorize(maps[name], predictor.info) for name in ("initial", "seed", "fused")]
        tiles.append(colorize_offset(prediction.offset, predictor.max_offset).permute(1, 2, 0).numpy())
        tiles.append(np.repeat((255 * prediction.confidence[0].numpy()).astype(np.uint8)[..., None], 3, axis=2))
        errors = error_map(torch.from_numpy(sample.labels), prediction.labels, predictor.info.num_classes)
        tiles.append(errors.permute(1, 2, 0).numpy())
        for column, tile in enumerate(tiles):
            left = column * (TILE[0] + GAP)
            pen.text((left, top + BAR), titles[column], fill="black", font=font)
            canvas.paste(
                Image.fromarray(cv2.resize(tile, TILE, interpolation=cv2.INTER_NEAREST)), (left, top + 2 * BAR)
            )
    left = 0
    for name, color in OUTCOMES.items():
        pen.rectangle((left, canvas.height - 16, left + 12, canvas.height - 4), fill=color, outline="black")
        pen.text((left + 18, canvas.height - 18), name, fill="black", font=font)
        left += 40 + int(font.getlength(name))
    return canvas


if __name__ == "__main__":
    run_main(main)
