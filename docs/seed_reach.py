#!/usr/bin/env python3
"""How much could a seed mend? python docs/seed_reach.py WEIGHTS --root data/.

A seed can mend a wrong pixel where a pixel of its class that is predicted rightly lies within its reach. The oracle
mends all of these and no other: no choice of seeds within the limit is better. Of a model with a seed the pixels' own
prediction S_i is looked at.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.builders.data import list_dataset
from ovenet.builders.loading import load_model
from ovenet.data.dataset import ListDataset
from ovenet.evaluation.metrics import confusion_counts, scores_from_counts
from ovenet.evaluation.writers import results_as_dict, write_json
from ovenet.models.cost import count_parameters
from ovenet.predictor.predictor import Predictor
from ovenet.predictor.sources import find_weights
from ovenet.structures import SYMBOLS, EvalResult
from ovenet.sweep.results import packed_counts
from ovenet.utils.cli import run_main

LIMITS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the offsets per axis; the image spans 2
ORACLE = "oracle, τ = {:g}"  # the name of its prediction


def reachable(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, limits: Sequence[float] = LIMITS
) -> np.ndarray:
    """Wrong pixels that have a right one of their class within each limit, ``(len(limits), H, W)`` bool.

    Args:
        labels: ``(H, W)``; labels outside the classes are not looked at.
        predicted: ``(H, W)``.
        num_classes: ``K``.
        limits: of the offsets per axis, in units of half the image.
    """
    height, width = labels.shape
    found = np.zeros((len(limits), height, width), dtype=bool)
    for index in range(num_classes):
        own = labels == index
        wrong, right = own & (predicted != index), (own & (predicted == index)).astype(np.uint8)
        for mask, limit in zip(found, limits, strict=True):
            x, y = (int(limit * (side - 1) / 2) for side in (width, height))
            mask |= wrong & (cv2.dilate(right, np.ones((2 * y + 1, 2 * x + 1), np.uint8)) > 0)
    return found


def wrong_and_within_reach(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, found: np.ndarray
) -> np.ndarray:
    """Pixels by class: labelled, of them wrong, and of these within reach, ``(K, 2 + len(found))`` counts.

    Args:
        labels, predicted, num_classes: see `reachable`.
        found: from `reachable`.
    """
    masks = np.stack([np.ones_like(labels, dtype=bool), labels != predicted, *found])
    return np.stack([(masks & (labels == index)).sum(axis=(1, 2)) for index in range(num_classes)])


def main() -> None:
    """Predicts the list, prints tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--root", default="data/", help="DATASET.ROOT")
    parser.add_argument("--list", default="list/camvid/val.lst", help="relative to it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the oracle as a run of a sweep, for plot_arena.py")
    args = parser.parse_args()
    path = find_weights(args.weights)
    loaded = load_model(path, overrides=["DATASET.ROOT", args.root])
    dataset = list_dataset(loaded.cfg, args.list)
    predictor = Predictor.from_checkpoint(path)
    names = predictor.info.class_names
    counts, tables = count(predictor, dataset)
    scores = {name: scores_from_counts(torch.from_numpy(sum(by_image)), names) for name, by_image in tables.items()}
    print(reach_table(counts, names))
    print("\n" + score_table(scores))
    if args.json:
        content = {
            "run": "oracle seed",
            "seed": loaded.cfg.SEED,
            "weights": str(args.weights),
            "list": args.list,
            "parameters": count_parameters(loaded.model),
            "reach": {name: row.tolist() for name, row in zip(names, counts, strict=True)},
            "images": [pair[0] for pair in dataset.pairs],
        }
        write_json(content | as_result(tables, scores), args.json)


def count(predictor: Predictor, dataset: ListDataset) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Counts of `wrong_and_within_reach` over a list, and the confusion matrices of its images by prediction."""
    num_classes = predictor.info.num_classes
    counts = np.zeros((num_classes, 2 + len(LIMITS)), dtype=np.int64)
    tables: dict[str, list[np.ndarray]] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        labels = {name: values.numpy() for name, values in predictor.predict(sample.image).labels.items()}
        own = labels.get("initial", labels["fused"])
        kinds = {"initial": own} | ({"fused": labels["fused"]} if "initial" in labels else {})
        found = reachable(sample.labels, own, num_classes)
        counts += wrong_and_within_reach(sample.labels, own, num_classes, found)
        for limit, mask in zip(LIMITS, found, strict=True):
            kinds[ORACLE.format(limit)] = np.where(mask, sample.labels, own)
        for name, values in kinds.items():
            tables.setdefault(name, []).append(confusion(values, sample.labels, num_classes))
    return counts, tables


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix ``(K, K)``, rows are labels; labels outside the classes are not counted."""
    valid = np.where((labels >= 0) & (labels < num_classes), labels, 255)
    pair = (torch.from_numpy(values.astype(np.int64)) for values in (predicted, valid))
    return confusion_counts(*pair, num_classes, ignore_label=255).numpy()


def reach_table(counts: np.ndarray, class_names: Sequence[str]) -> str:
    """Shares in percent: wrong pixels by class, and those of them within reach."""
    lines = [f"{'':16}{'wrong':>8}" + "".join(f"{f'τ = {limit:g}':>9}" for limit in LIMITS)]
    for name, row in zip((*class_names, "all"), (*counts, counts.sum(axis=0)), strict=True):
        shares = [row[1] / max(row[0], 1), *(row[2:] / max(row[1], 1))]
        lines.append(f"{name:16}{100 * shares[0]:8.1f}" + "".join(f"{100 * share:9.1f}" for share in shares[1:]))
    return "\n".join(lines)


def score_table(scores: Mapping[str, EvalResult]) -> str:
    """mIoU of each prediction, and what it is above S_i, in points."""
    base = scores["initial"].mean_iou
    lines = [f"{'':20}{'mIoU':>8}{'gain':>8}"]
    for name, one in scores.items():
        lines.append(f"{SYMBOLS.get(name, name):20}{100 * one.mean_iou:8.2f}{100 * (one.mean_iou - base):+8.2f}")
    return "\n".join(lines)


def as_result(tables: Mapping[str, Sequence[np.ndarray]], scores: Mapping[str, EvalResult]) -> dict[str, Any]:
    """Scores and counts by image as `ovenet.sweep.results.read_result` reads them.

    Args:
        tables: confusion matrix of each image, by prediction.
        scores: of all images, by prediction.
    """
    stacked = {name: np.stack(by_image) for name, by_image in tables.items()}
    right = {name: table.diagonal(axis1=1, axis2=2) for name, table in stacked.items()}
    predicted = {name: table.sum(axis=1) for name, table in stacked.items()}
    return {
        "classes": list(next(iter(scores.values())).class_names),
        "scores": results_as_dict(scores),
        "details": None,
        "images_per_second": 0.0,
        "counts": packed_counts(stacked["initial"].sum(axis=2), right, predicted),
    }


if __name__ == "__main__":
    run_main(main)
