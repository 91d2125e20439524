#!/usr/bin/env python3
"""What TF32 and bf16 change in a trained model's mIoU: the same test in float32, TF32 and bf16."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

from ovenet import builders
from ovenet.builders.loading import load_model, predictor_for_test
from ovenet.evaluation.evaluate import evaluate
from ovenet.predictor.sources import find_weights
from ovenet.utils.cli import run_main
from ovenet.utils.distributed import choose_device

PRECISIONS = {
    "float32": ("TEST.PRECISION", "fp32", "TEST.TF32", "False"),
    "TF32": ("TEST.PRECISION", "fp32", "TEST.TF32", "True"),
    "bf16": ("TEST.PRECISION", "bf16", "TEST.TF32", "True"),
}


def main() -> None:
    """Tests three times; prints the mIoU of every precision in one line, the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="trained weights, or the name of a bundled model")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings of the test")
    args = parser.parse_args()
    scores, seconds = {}, {}
    for name, precision in PRECISIONS.items():
        trained = load_model(find_weights(args.model), overrides=[*args.overrides, *precision])
        cfg = trained.cfg
        predictor = predictor_for_test(trained, choose_device(cfg.DEVICE))
        loader, dataset = builders.build_test_loader(cfg)
        started = time.perf_counter()
        result = evaluate(
            predictor, loader, dataset.info, builders.prediction_names(cfg), ignore_label=cfg.TRAIN.IGNORE_LABEL
        )
        seconds[name] = time.perf_counter() - started
        scores[name] = {which: 100 * score.mean_iou for which, score in result.overall.items()}
        print(f"{name}: {scores[name]}", flush=True)
    print(json.dumps({"model": args.model, "images": len(dataset), "miou": scores, "seconds": seconds}))
    figures = ", ".join(f"{name} {score['fused']:.3f}" for name, score in scores.items())
    print(f"mIoU of {args.model} on {len(dataset)} images of {cfg.DATASET.TEST_SET}: {figures}")


if __name__ == "__main__":
    run_main(main)
