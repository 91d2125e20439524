"""Tests, from a configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from ovenet.builders.data import TestLoader, shard_loader, test_dataset
from ovenet.builders.inference import load_predictor
from ovenet.builders.models import prediction_names
from ovenet.config import present_settings
from ovenet.data.dataset import ListDataset
from ovenet.engine.interruption import Interruption
from ovenet.engine.run_log import track
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import Evaluation, count_samples, evaluation_from_counts
from ovenet.evaluation.evaluator import ImageCounts, SegEvaluator
from ovenet.evaluation.inference import Prediction, SlidingWindowInferencer
from ovenet.evaluation.partial import FOLDER, PartialEvaluation
from ovenet.evaluation.pictures import predicted_row, prediction_path, save_picture, save_prediction
from ovenet.evaluation.writers import image_record
from ovenet.report.gallery import picture_data, picture_path, picture_sides, save_picture_data, write_records
from ovenet.report.runs import RECORDS
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.behind import Behind
from ovenet.utils.logging import get_logger

NUM_PICTURE_ROWS = 4


class ImageWriter:
    """Writes the requested files of each image in threads, behind the evaluation.

    Args:
        cfg: ``TEST`` says what is wanted.
        dataset: the whole list.
        predictor: for the picture rows.
        folder: of the test.
    """

    def __init__(self, cfg: CfgNode, dataset: ListDataset, predictor: SlidingWindowInferencer, folder: Path):
        self._dataset, self._predictor, self._folder = dataset, predictor, folder
        self.saves_predictions = cfg.TEST.SAVE_PREDICTIONS or not dataset.has_labels
        self.photo_side, self.grid_side = picture_sides(len(dataset)) if cfg.TEST.REPORT else (0, 0)
        self._num_rows_left = NUM_PICTURE_ROWS if distributed.is_main() else 0
        self._behind = Behind()

    def write(self, index: int, sample: Sample, prediction: Prediction) -> None:
        """Sees to one image's files; waits where too many are not written yet.

        Raises:
            OSError: the file system refused one of those before.
        """
        info = self._dataset.info
        if self.saves_predictions:
            folder = self._folder / "predictions"
            self._behind.call(save_prediction, prediction.labels["fused"], sample.name, folder, info)
            if self._num_rows_left:
                self._num_rows_left -= 1
                row = predicted_row(self._predictor, sample, info)
                self._behind.call(save_picture, row, (self._folder / "pictures" / sample.name).with_suffix(".png"))
        if self.grid_side:
            self._behind.call(self._write_picture_data, index, sample, prediction)

    def wait(self) -> None:
        """Returns when all files are written.

        Raises:
            OSError: the file system refused one.
        """
        self._behind.wait()

    def _write_picture_data(self, index: int, sample: Sample, prediction: Prediction) -> None:
        sides = {"photo_side": self.photo_side, "grid_side": self.grid_side}
        data = picture_data(sample, prediction, self._dataset.info.num_classes, **sides)
        save_picture_data(data, picture_path(self._folder, index))

    def has_written(self, index: int) -> bool:
        """Whether the files of an image are there, but for the picture rows, which show a few only."""
        name = self._dataset.pairs[index][0]
        saved = prediction_path(self._folder / "predictions", name).is_file()
        return (saved or not self.saves_predictions) and (
            not self.grid_side or picture_path(self._folder, index).is_file()
        )


@dataclass(frozen=True)
class TestRun:
    """What a test gave.

    Attributes:
        evaluation: the scores.
        saved: whether predictions were saved.
        max_offset: see `Segmentor.max_offset`.
    """

    evaluation: Evaluation
    saved: bool
    max_offset: float | None


def run_test(
    cfg: CfgNode, model_file: Path, folder: Path, settings: Mapping[str, Any], device: torch.device
) -> TestRun:
    """Predicts and counts the whole list on all processes, which share a file system.

    SIGTERM, SIGUSR1 and Ctrl-C end the program after the image at hand; ``TEST.RESUME`` then goes on there.

    Args:
        cfg: the configuration.
        model_file: weights.
        folder: takes ``images.jsonl``, and predictions and pictures as far as ``TEST`` wants them.
        settings: what the counts depend on, see `evaluation_settings`.
        device: of this process.

    Raises:
        UserError: the weights or the list cannot be used, or an interrupted evaluation is there and not to be resumed.
        OSError: the file system refuses.
    """
    dataset = test_dataset(cfg)
    predictor = load_predictor(cfg, model_file, device)
    names = prediction_names(cfg)
    evaluator = SegEvaluator(
        dataset.info, names, ignore_label=cfg.TRAIN.IGNORE_LABEL, detailed=cfg.TEST.DETAILS, device=device
    )
    writer = ImageWriter(cfg, dataset, predictor, folder)
    partial = PartialEvaluation(
        folder / FOLDER,
        settings,
        read_settings=lambda saved: present_settings(saved, settings),
        before_save=writer.wait,
    )
    done = _resume(cfg, partial, writer, len(dataset))
    loader, places = shard_loader(cfg, dataset, done)
    place = iter(places)

    with Interruption() as interruption:

        def on_image(sample: Sample, prediction: Prediction, counts: ImageCounts | None) -> None:
            index = next(place)
            writer.write(index, sample, prediction)
            partial.add(image_record(index, sample, counts, names), evaluator)
            if interruption.received:
                sys.exit(interruption.exit_code)

        try:
            count_samples(predictor, _tracked(cfg, loader), evaluator, on_image=on_image, score_side=writer.grid_side)
        finally:
            writer.wait()
            partial.save(evaluator)
    distributed.barrier()
    if distributed.is_main():
        evaluator.merge(partial.joined)
    evaluator.all_reduce()
    if distributed.is_main():
        write_records(partial.records(), folder / RECORDS)
        partial.remove()
    return TestRun(evaluation_from_counts(evaluator), writer.saves_predictions, predictor.model.max_offset)


def _resume(cfg: CfgNode, partial: PartialEvaluation, writer: ImageWriter, num_images: int) -> set[int]:
    """The places in the list that need not be evaluated again; process 0 keeps what they counted."""
    if partial.exists() and not cfg.TEST.RESUME:
        raise UserError(
            f"{partial.folder}: an interrupted evaluation; TEST.RESUME True goes on with it, or delete that folder"
        )
    distributed.barrier()  # every process has read it before process 0 changes anything
    if cfg.TEST.RESUME and distributed.is_main() and not partial.exists():
        get_logger().info("%s: no interrupted evaluation to go on with; all images are evaluated", partial.folder)
    done: set[int] = partial.join() if distributed.is_main() else set()
    if not all(map(writer.has_written, done)):
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


def _tracked(cfg: CfgNode, loader: TestLoader) -> Iterable[Sample]:
    name = cfg.DATASET.TEST_SET
    return track(loader, name, len(loader), print_freq=cfg.PRINT_FREQ, enabled=distributed.is_main())
