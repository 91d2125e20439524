"""Fits the temperature of a model's class probabilities on the validation list, and writes it beside the weights.

WEIGHTS is a run's folder, a file of weights, an exported file, or a bundled model; alone or under torchrun.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ovenet import builders
from ovenet.builders.calibration import FittedTemperatures, calibration_numbers, fit_temperatures
from ovenet.builders.inference import view_settings
from ovenet.builders.loading import TrainedModel
from ovenet.evaluation.writers import write_json
from ovenet.inference.temperature import KEY, NONE, digest, temperature_path
from ovenet.predictor.sources import find_weights
from ovenet.structures import SYMBOLS
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser, require_free
from ovenet.utils.logging import configure_logging
from ovenet.version import version


def main() -> None:
    """Reads the weights, predicts the list twice, writes the temperatures and prints what they change."""
    parser = config_parser(__doc__, required=False)
    parser.add_argument("--overwrite", action="store_true", help="replace temperatures that were fitted before")
    args = parser.parse_intermixed_args()
    if not args.overrides:
        parser.error("name a run's folder or a file of weights")
    configure_logging(is_main=distributed.is_launch_main())
    weights = find_weights(args.overrides[0])
    path = temperature_path(weights)
    require_free(path, overwrite=args.overwrite)
    overrides = [*args.overrides[1:], "TEST.TEMPERATURE", NONE]
    trained = builders.load_model(weights, args.cfg, overrides)
    device = distributed.choose_device(trained.cfg.DEVICE)
    with distributed.process_group(device, timeout_s=trained.cfg.DIST_TIMEOUT):
        fitted = fit_temperatures(trained, device)
        if distributed.is_main():
            write_json(content(trained, fitted), path)
            print_table(fitted)
            print(f"temperature: {path} (used with TEST.TEMPERATURE fitted)")


def content(trained: TrainedModel, fitted: FittedTemperatures) -> dict[str, Any]:
    """What the file says."""
    cfg = trained.cfg
    return {
        "sha256": digest(trained.path),
        KEY: fitted.temperatures,
        "list": cfg.DATASET.TEST_SET,
        "num_images": fitted.num_images,
        "num_pixels": fitted.num_pixels,
        "before": calibration_numbers(fitted.before),
        "after": calibration_numbers(fitted.after),
        "settings": view_settings(cfg),
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": version(),
    }


def print_table(fitted: FittedTemperatures) -> None:
    """Prints temperature, log-likelihood and calibration error of each prediction, before and after."""
    print(f"{'':6}{'T':>8}{'NLL':>10}{'after':>9}{'ECE in %':>11}{'after':>9}")
    for name, temperature in fitted.temperatures.items():
        before, after = fitted.before[name], fitted.after[name]
        errors = f"{100 * before.expected_error:11.2f}{100 * after.expected_error:9.2f}"
        print(f"{SYMBOLS[name]:6}{temperature:8.4f}{before.nll:10.4f}{after.nll:9.4f}{errors}")
