"""Refines saved predictions of any network by the borders and directions of a SegFix model (MODEL.SEED.NAME segfix).

The predictions are those that a test of the same list writes with TEST.SAVE_PREDICTIONS True.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovenet import builders
from ovenet.builders.loading import predictor_for_test
from ovenet.data.dataset import ListDataset
from ovenet.data.info import DatasetInfo
from ovenet.data.masks import read_mask
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.writers import evaluation_as_dict, format_evaluation, write_json
from ovenet.geometry import lookup_labels, seed_position
from ovenet.inference.inferencer import Prediction, SlidingWindowInferencer
from ovenet.inference.pictures import prediction_path, save_prediction
from ovenet.models.seeds.segfix import SegFixSeed
from ovenet.predictor.sources import find_weights
from ovenet.report.runs import RESULTS
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.progress import track
from ovenet.utils.writing import unfinished_folder

_NO_CLASS = -1


def main() -> None:
    """Refines one prediction after the other, and scores them before and after."""
    args = build_parser().parse_args()
    trained = builders.load_model(find_weights(args.weights), overrides=args.set)
    if not isinstance(getattr(trained.model, "seed", None), SegFixSeed):
        raise UserError(f"{trained.path}: MODEL.SEED.NAME is {trained.cfg.MODEL.SEED.NAME}; expected segfix")
    loader, dataset = builders.build_test_loader(trained.cfg)
    saved = args.predictions.parent if args.predictions.name == "ids" else args.predictions
    require_complete(saved, dataset)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output}: exists already; name another folder with --output")
    predictor = predictor_for_test(trained, distributed.choose_device(trained.cfg.DEVICE))
    evaluator = SegEvaluator(
        dataset.info,
        ("initial", "fused"),
        ignore_label=trained.cfg.TRAIN.IGNORE_LABEL,
        detailed=trained.cfg.TEST.DETAILS,
        device=torch.device("cpu"),
    )
    with unfinished_folder(args.output) as folder:
        for sample in track(loader, "refine", len(loader), print_freq=trained.cfg.PRINT_FREQ):
            before = read_prediction(prediction_path(saved, sample.name), sample, dataset.info)
            after = refine(before, sample, predictor)
            save_prediction(after, sample.name, folder, dataset.info)
            if sample.labels is not None:
                evaluator.add(sample.labels, Prediction({"initial": before, "fused": after}), sample.name)
        evaluation = evaluation_from_counts(evaluator)
        if evaluation.overall["fused"].num_pixels:
            print("S_i: the saved predictions, S_f: refined")
            print(format_evaluation(evaluation))
            write_json(evaluation_as_dict(evaluation, dataset.info), folder / RESULTS)
            print(f"results:     {args.output / RESULTS}")
        if args.output.exists():
            args.output.rmdir()  # empty, see above
        folder.rename(args.output)
    print(f"predictions: {args.output / 'ids'}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run's folder, or weights of a SegFix model")
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="folder predictions of a test")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder of the refined ones")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="settings, such as DEVICE cpu"
    )
    return parser


def require_complete(saved: Path, dataset: ListDataset) -> None:
    """Refuses a folder that lacks predictions of the list.

    Raises:
        UserError: at least one is missing.
    """
    missing = [path for name, _ in dataset.pairs if not (path := prediction_path(saved, name)).is_file()]
    if missing:
        raise UserError(
            f"{missing[0]}: no such prediction ({len(missing)} of {len(dataset)} missing); test {dataset.list_path} "
            "with TEST.SAVE_PREDICTIONS True, and name the folder predictions that it writes"
        )


def read_prediction(path: Path, sample: Sample, info: DatasetInfo) -> Tensor:
    """The train ids ``(H, W)`` of a file that `save_prediction` wrote for a sample.

    Raises:
        UserError: the file cannot be read, is of another size, or holds other ids.
    """
    ids, size = read_mask(path).samples, sample.image.shape[:2]
    if ids.shape != size:
        raise UserError(f"{path}: {ids.shape[1]}x{ids.shape[0]} pixels, but its image has {size[1]}x{size[0]}")
    table = np.full(256, _NO_CLASS, np.int16)
    table[info.label_id_table()] = np.arange(info.num_classes)
    train_ids = table[np.clip(ids, 0, 255).astype(np.uint8)]
    if (train_ids == _NO_CLASS).any():
        raise UserError(f"{path}: holds the id {ids[train_ids == _NO_CLASS][0]}, which is no class of {info.name}")
    return torch.from_numpy(train_ids)


def refine(labels: Tensor, sample: Sample, predictor: SlidingWindowInferencer) -> Tensor:
    """Predicted train ids ``(H, W)``, each that of the pixel which the model's offset leads to."""
    offset = predictor.predict(sample.image, names=("fused",), seeds=True).offset
    assert offset is not None
    return lookup_labels(labels[None], seed_position(offset.cpu()[None]))[0]
