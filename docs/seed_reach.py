#!/usr/bin/env python3
"""How many wrong pixels could a seed mend? python docs/seed_reach.py WEIGHTS --root data/.

A seed can mend a wrong pixel where a pixel of its class that is predicted rightly lies within its reach. Of a model
with a seed the pixels' own prediction S_i is looked at.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.builders.data import list_dataset
from ovenet.builders.loading import load_model
from ovenet.predictor.predictor import Predictor
from ovenet.predictor.sources import find_weights
from ovenet.utils.cli import run_main

LIMITS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the offsets per axis; the image spans 2


def wrong_and_within_reach(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, limits: Sequence[float] = LIMITS
) -> np.ndarray:
    """Pixels by class: labelled, of them wrong, and of these with a right one of the class within each limit.

    Args:
        labels: ``(H, W)``; labels outside the classes are not counted.
        predicted: ``(H, W)``.
        num_classes: ``K``.
        limits: of the offsets per axis, in units of half the image.

    Returns:
        ``(K, 2 + len(limits))`` counts.
    """
    height, width = labels.shape
    counts = np.zeros((num_classes, 2 + len(limits)), dtype=np.int64)
    for index in range(num_classes):
        own = labels == index
        wrong, right = own & (predicted != index), (own & (predicted == index)).astype(np.uint8)
        counts[index, :2] = own.sum(), wrong.sum()
        for column, limit in enumerate(limits):
            x, y = (int(limit * (side - 1) / 2) for side in (width, height))
            near = cv2.dilate(right, np.ones((2 * y + 1, 2 * x + 1), np.uint8))
            counts[index, 2 + column] = (wrong & (near > 0)).sum()
    return counts


def main() -> None:
    """Predicts the list and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--root", default="data/", help="DATASET.ROOT")
    parser.add_argument("--list", default="list/camvid/val.lst", help="relative to it")
    args = parser.parse_args()
    path = find_weights(args.weights)
    dataset = list_dataset(load_model(path, overrides=["DATASET.ROOT", args.root]).cfg, args.list)
    predictor = Predictor.from_checkpoint(path)
    counts = np.zeros((predictor.info.num_classes, 2 + len(LIMITS)), dtype=np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]
        labels = predictor.predict(sample.image).labels
        own = labels.get("initial", labels["fused"]).numpy()
        counts += wrong_and_within_reach(sample.labels, own, len(counts))
    print(f"{'':16}{'wrong':>8}" + "".join(f"{f'τ = {limit:g}':>9}" for limit in LIMITS))
    for name, row in zip((*predictor.info.class_names, "all"), (*counts, counts.sum(axis=0)), strict=True):
        shares = [row[1] / max(row[0], 1), *(row[2:] / max(row[1], 1))]
        print(f"{name:16}{100 * shares[0]:8.1f}" + "".join(f"{100 * share:9.1f}" for share in shares[1:]))


if __name__ == "__main__":
    run_main(main)
