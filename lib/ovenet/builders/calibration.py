"""Temperatures of class probabilities, from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from yacs.config import CfgNode

from ovenet.builders.data import shard_loader, test_dataset
from ovenet.builders.loading import TrainedModel, predictor_for_test
from ovenet.builders.models import prediction_names
from ovenet.data.dataset import ListDataset
from ovenet.errors import UserError
from ovenet.evaluation.class_calibration import ClassCalibration, class_calibration
from ovenet.evaluation.class_counts import ImageClassCounts, empty_tables
from ovenet.evaluation.temperature_fit import END_TEMPERATURES, TemperatureCounts, best_temperature
from ovenet.inference.inferencer import ClassBand, SlidingWindowInferencer
from ovenet.inference.transfer import to_device
from ovenet.structures import SYMBOLS
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.progress import track


@dataclass(frozen=True)
class FittedTemperatures:
    """Temperatures that were fitted, and what they change, by prediction name.

    Attributes:
        temperatures: the temperatures.
        before: calibration at temperature 1.
        after: calibration at these temperatures.
        num_images: number of images.
        num_pixels: number of labelled pixels that were counted.
    """

    temperatures: dict[str, float]
    before: dict[str, ClassCalibration]
    after: dict[str, ClassCalibration]
    num_images: int
    num_pixels: int


def fit_temperatures(trained: TrainedModel, device: torch.device) -> FittedTemperatures:
    """Fits the temperatures of a model on ``DATASET.TEST_SET``, on all ranks; predicts the images twice.

    Raises:
        UserError: the list cannot be used, or has no labelled pixel.
    """
    cfg = trained.cfg
    dataset = test_dataset(cfg)
    if not dataset.has_labels:
        raise UserError(f"{dataset.list_path}: a temperature is fitted to labels, which this list has none of")
    if cfg.DATASET.TEST_SET == cfg.DATASET.TRAIN_SET:
        get_logger().warning(
            "%s: the network was trained on this list and is too sure there; fit on the validation list "
            "(DATASET.TEST_SET)",
            cfg.DATASET.TEST_SET,
        )
    names = prediction_names(cfg)
    predictor = predictor_for_test(replace(trained, temperatures={}), device)
    fit = TemperatureCounts(names, predictor.device)
    before = _calibration(predictor, cfg, dataset, names, device, fit)
    whole = distributed.all_reduce_tables({"sums": fit.sums, "pixels": fit.num_pixels.view(1)}, device)
    num_pixels = int(whole["pixels"])
    if not num_pixels:
        raise UserError(f"{dataset.list_path}: no labelled pixel to fit a temperature to")
    grids = whole["sums"].cpu().double().numpy() / num_pixels
    temperatures = {name: best_temperature(grid) for name, grid in zip(names, grids, strict=True)}
    if ends := [name for name, value in temperatures.items() if value in END_TEMPERATURES]:
        get_logger().warning(
            "%s: the best temperature is beyond the range that is searched, which ends there; its probabilities say "
            "little, or the list is too short",
            ", ".join(f"{SYMBOLS[name]} {temperatures[name]:g}" for name in ends),
        )
    after = _calibration(
        predictor_for_test(replace(trained, temperatures=temperatures, training_config=None), device),
        cfg,
        dataset,
        names,
        device,
    )
    return FittedTemperatures(temperatures, before, after, len(dataset), num_pixels)


def _calibration(
    predictor: SlidingWindowInferencer,
    cfg: CfgNode,
    dataset: ListDataset,
    names: tuple[str, ...],
    device: torch.device,
    fit: TemperatureCounts | None = None,
) -> dict[str, ClassCalibration]:
    """Calibration on all ranks' shares of a list; adds to `fit`."""
    num_classes, ignore_label = dataset.info.num_classes, cfg.TRAIN.IGNORE_LABEL
    tables = empty_tables(len(names), num_classes, predictor.device)
    loader, _ = shard_loader(cfg, dataset)
    is_main = distributed.is_main()
    for sample in track(loader, cfg.DATASET.TEST_SET, len(loader), print_freq=cfg.PRINT_FREQ, enabled=is_main):
        if sample.labels is None:
            continue
        counts = ImageClassCounts(sample.labels, names, num_classes, ignore_label=ignore_label, device=predictor.device)
        is_class = (sample.labels != ignore_label) & (sample.labels >= 0) & (sample.labels < num_classes)
        labels = to_device(np.where(is_class, sample.labels, -1).astype(np.int16), predictor.device)
        predictor.predict(sample.image, on_band=_adding(counts, fit, labels))
        for key, table in counts.tables().items():
            tables[key] += table
    arrays = {key: table.cpu().numpy() for key, table in distributed.all_reduce_tables(tables, device).items()}
    return {name: class_calibration({k: x[index] for k, x in arrays.items()}) for index, name in enumerate(names)}


def _adding(
    counts: ImageClassCounts, fit: TemperatureCounts | None, labels: torch.Tensor
) -> Callable[[ClassBand], None]:
    def add(band: ClassBand) -> None:
        counts.add(band)
        if fit is not None:
            fit.add(band, labels)

    return add


def calibration_numbers(scores: Mapping[str, ClassCalibration]) -> dict[str, dict[str, float]]:
    """The four numbers of each prediction."""
    keys = ("nll", "expected_error", "classwise_expected_error", "brier")
    return {name: {key: getattr(one, key) for key in keys} for name, one in scores.items()}
