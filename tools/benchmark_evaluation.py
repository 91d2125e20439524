#!/usr/bin/env python3
"""What TEST.DETAILS costs, and the class probabilities in it: the same images with and without, interleaved."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch

from ovenet import build_model, builders, load_config
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser, run_main

NUM_WARM_UP = 2


def main() -> None:
    """Prints medians and quartiles of each, and the added cost."""
    parser = config_parser(__doc__)
    parser.add_argument("--images", type=int, default=20, metavar="N", help="of the test list (default: 20)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time, of all threads: for a machine that others use"
    )
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    cfg = load_config(args.cfg, args.overrides)
    device = distributed.choose_device(cfg.DEVICE)
    if cfg.TEST.MODEL_FILE:
        predictor = builders.load_predictor(cfg, Path(cfg.TEST.MODEL_FILE), device)
    else:
        predictor = builders.build_predictor(build_model(cfg).to(device), cfg, device)
    _, dataset = builders.build_test_loader(cfg)
    options = {"ignore_label": cfg.TRAIN.IGNORE_LABEL, "device": device}
    names = builders.prediction_names(cfg)
    evaluators = {
        detailed: SegEvaluator(dataset.info, names, detailed=detailed, **options) for detailed in (False, True)
    }
    variants = {"without details": (False, False), "but probabilities": (True, False), "all details": (True, True)}

    def seconds(sample: Sample, *, detailed: bool, probabilities: bool) -> float:
        started = clock()
        classes = evaluators[True].class_counts(sample.labels, predictor.device) if probabilities else None
        prediction = predictor.predict(sample.image, seeds=detailed, on_band=classes.add if classes else None)
        evaluators[detailed].add(sample.labels, prediction, sample.name, classes)
        return clock() - started

    spent: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(args.images + NUM_WARM_UP):
        sample = dataset[number % len(dataset)]
        for name in list(variants) if number % 2 else reversed(variants):
            detailed, probabilities = variants[name]
            spent[name].append(seconds(sample, detailed=detailed, probabilities=probabilities))
    for name, values in spent.items():
        low, middle, high = (1000 * q for q in statistics.quantiles(values[NUM_WARM_UP:], n=4))
        print(f"{name:20}{middle:9.1f} ms an image (quartiles {low:.1f} to {high:.1f})")
    for text, more, less in (
        ("details add", "all details", "without details"),
        ("of it probabilities", "all details", "but probabilities"),
    ):
        ratios = [b / a for a, b in zip(spent[less][NUM_WARM_UP:], spent[more][NUM_WARM_UP:], strict=True)]
        print(f"{text:20}{100 * (statistics.median(ratios) - 1):9.1f} % (median of {len(ratios)} images)")
    height, width = sample.image.shape[:2]
    print(f"{width}x{height}, {dataset.info.num_classes} classes, {device.type}, torch {torch.__version__}")


if __name__ == "__main__":
    run_main(main)
