"""Tests, from a configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ovenet.builders.data import shard_loader, test_dataset
from ovenet.builders.loading import TrainedModel, predictor_for_test
from ovenet.builders.models import prediction_names
from ovenet.config import present_settings
from ovenet.engine.interruption import Interruption
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import Evaluation, count_samples, evaluation_from_counts
from ovenet.evaluation.evaluator import ImageCounts, SegEvaluator
from ovenet.evaluation.image_scores import ImageWise, image_wise_scores
from ovenet.evaluation.label_quality import LabelThresholds, finish_records
from ovenet.evaluation.partial import FOLDER, PartialEvaluation
from ovenet.evaluation.writers import image_record
from ovenet.inference.inferencer import Prediction, SlidingWindowInferencer
from ovenet.report.gallery import write_records
from ovenet.report.image_files import ImageWriter
from ovenet.report.runs import RECORDS
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.progress import track


def run_test(
    trained: TrainedModel,
    folder: Path,
    settings: Mapping[str, Any],
    device: torch.device,
    predictor: SlidingWindowInferencer | None = None,
) -> Evaluation:
    """Predicts and counts ``DATASET.TEST_SET`` on all ranks, which share a file system.

    SIGTERM, SIGUSR1 and Ctrl-C end the program after the current image; ``TEST.RESUME`` then continues from there.

    Args:
        trained: the model and its configuration.
        folder: receives ``images.jsonl``, and the predictions and pictures that ``TEST`` asks for.
        settings: all that the counts depend on, see `evaluation_settings`.
        device: of this process.
        predictor: the model's, from `predictor_for_test`; None builds it.

    Raises:
        UserError: the list cannot be used, or the folder holds an interrupted evaluation and ``TEST.RESUME`` is False.
        OSError: a file cannot be written.
    """
    cfg = trained.cfg
    dataset = test_dataset(cfg)
    predictor = predictor or predictor_for_test(trained, device)
    names = prediction_names(cfg)
    evaluator = SegEvaluator(
        dataset.info,
        names,
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        detailed=cfg.TEST.DETAILS,
        device=device,
        uncertainty=cfg.TEST.UNCERTAINTY,
    )
    if evaluator.uncertain_names:
        dataset.read_invalid_masks()
    writer = ImageWriter(
        dataset, predictor, folder, save_predictions=cfg.TEST.SAVE_PREDICTIONS, gallery=cfg.TEST.REPORT
    )
    partial = PartialEvaluation(
        folder / FOLDER,
        settings,
        read_settings=lambda saved: present_settings(saved, settings),
        before_save=writer.wait,
    )
    done = _resume(partial, writer, evaluator, len(dataset), resume=cfg.TEST.RESUME)
    loader, places = shard_loader(cfg, dataset, done)
    place = iter(places)
    is_main = distributed.is_main()
    title = f"{cfg.DATASET.TEST_SET}, {dataset.corruption}" if dataset.corruption else cfg.DATASET.TEST_SET
    samples = track(loader, title, len(loader), print_freq=cfg.PRINT_FREQ, enabled=is_main)

    with Interruption() as interruption:

        def on_image(sample: Sample, prediction: Prediction, counts: ImageCounts | None) -> None:
            index = next(place)
            writer.write(index, sample, prediction)
            partial.add(image_record(index, sample, counts, names), evaluator)
            if interruption.received:
                sys.exit(interruption.exit_code)

        try:
            count_samples(predictor, samples, evaluator, on_image=on_image, score_side=writer.grid_side)
        finally:
            writer.wait()
            partial.save(evaluator)
    distributed.barrier()
    if distributed.is_main():
        evaluator.merge(partial.joined)
    evaluator.all_reduce()
    images: ImageWise | None = None
    label_thresholds: LabelThresholds | None = None
    if distributed.is_main():
        records = partial.records()
        label_thresholds = finish_records(records, dataset.info.num_classes)
        write_records(records, folder / RECORDS)
        partial.remove()
        images = image_wise_scores(records, names, dataset.info.num_classes, dataset.info.conditions)
    images, label_thresholds = distributed.broadcast((images, label_thresholds))
    return replace(evaluation_from_counts(evaluator), images=images, label_thresholds=label_thresholds)


def _resume(
    partial: PartialEvaluation, writer: ImageWriter, evaluator: SegEvaluator, num_images: int, *, resume: bool
) -> set[int]:
    """Indices of the list that are evaluated already; rank 0 keeps their counts."""
    if partial.exists() and not resume:
        raise UserError(
            f"{partial.folder}: an interrupted evaluation; TEST.RESUME True goes on with it, or delete that folder"
        )
    distributed.barrier()  # every rank has looked before rank 0 changes anything
    if resume and distributed.is_main() and not partial.exists():
        get_logger().info("%s: no interrupted evaluation to go on with; all images are evaluated", partial.folder)
    done: set[int] = partial.join() if distributed.is_main() else set()
    counts_all = not done or partial.joined.keys() == evaluator.counts.keys()  # an earlier version counted less
    if not counts_all or not all(map(writer.has_written, done)):
        get_logger().warning(
            "%s: the interrupted evaluation did not save all that is wanted now; all images are evaluated again",
            partial.folder,
        )
        partial.discard()
        done = set()
    done = distributed.broadcast(done)
    if done:
        get_logger().info("going on with an interrupted evaluation: %d of %d images are done", len(done), num_images)
    partial.begin(distributed.rank())
    return done
