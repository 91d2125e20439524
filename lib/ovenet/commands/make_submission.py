"""Predicts the test split in the format of its server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from ovenet import builders, load_config
from ovenet.config import check_parts
from ovenet.data.dataset import ListDataset
from ovenet.data.files import read_size
from ovenet.data.invalid_masks import mask_name, read_invalid_mask
from ovenet.errors import UserError
from ovenet.evaluation.metrics import confusion_counts, scores_from_counts
from ovenet.evaluation.submission import (
    confidence_names,
    read_confidences,
    read_zip,
    save_confidence_file,
    save_submission_file,
    submission_names,
    validate_zip,
    write_zip,
)
from ovenet.evaluation.uncertainty import (
    UncertaintyCounter,
    UncertaintyScores,
    confidence_levels,
    scored_names,
    uncertainty_scores,
)
from ovenet.evaluation.writers import format_table
from ovenet.inference.inferencer import Prediction
from ovenet.predictor import run_folder
from ovenet.structures import EvalResult, Sample
from ovenet.utils import distributed
from ovenet.utils.behind import Behind, finish_behind
from ovenet.utils.cli import config_parser
from ovenet.utils.logging import configure_logging
from ovenet.utils.progress import track


def main() -> None:
    """Predicts, packs, and checks the zip; or checks an existing one."""
    parser = config_parser(__doc__)
    parser.add_argument("--output", type=Path, metavar="ZIP", help="file to write (default: in the run's folder)")
    parser.add_argument(
        "--dry-run", action="store_true", help="predict DATASET.TEST_SET instead, and score the files in the zip"
    )
    parser.add_argument("--validate", type=Path, metavar="ZIP", help="check a zip of the test split, predict nothing")
    args = parser.parse_intermixed_args()
    configure_logging(is_main=distributed.is_launch_main())
    cfg = load_config(args.cfg, args.overrides)
    check_parts(cfg)
    device = distributed.choose_device(cfg.DEVICE)
    with distributed.process_group(device, timeout_s=cfg.DIST_TIMEOUT):
        list_file = cfg.DATASET.TEST_SET if args.dry_run else "test"
        loader, dataset = builders.build_test_loader(cfg, list_file)
        names = submission_names((image for image, _ in dataset.pairs), dataset.info)
        require_complete(dataset, dry_run=args.dry_run)
        has_confidences = bool(scored_names(cfg.TEST.UNCERTAINTY, builders.prediction_names(cfg)))
        if has_confidences:
            confidence_names(names.values(), dataset.info)
            if args.dry_run:
                dataset.read_invalid_masks()
        path = args.validate
        if path is None:
            model_file = run_folder.find_model_file(cfg, run_folder.run_directory(cfg, args.cfg))
            folder = run_folder.run_directory(cfg, args.cfg) / "submission"
            path = args.output or folder / f"{dataset.list_path.stem}_{run_folder.inference_name(cfg, model_file)}.zip"
            predict(cfg, loader, names, path, model_file, device)
        if distributed.is_main():
            validate_zip(path, image_sizes(dataset, names), dataset.info, confidences=has_confidences)
            num_files = len(names) * (2 if has_confidences else 1)
            print(f"{path}: {num_files} files, complete and valid for {dataset.info.name}")
            if args.dry_run:
                fused = score(path, dataset, names, cfg.TRAIN.IGNORE_LABEL)
                uncertainty = score_uncertainty(path, dataset, names, cfg) if has_confidences else None
                print(format_table({"fused": fused}, uncertainty=uncertainty))


def require_complete(dataset: ListDataset, *, dry_run: bool) -> None:
    """Refuses lists that the server or the scoring would refuse after hours of prediction.

    Raises:
        UserError: the test list does not have the number of images that the server expects, or a dry run has no labels.
    """
    expected = dataset.info.submission.num_files if dataset.info.submission else None
    if not dry_run and expected and len(dataset) != expected:
        raise UserError(
            f"{dataset.list_path}: {len(dataset)} images, but the {dataset.info.name} server expects {expected}; "
            "complete the test split, or use --dry-run"
        )
    if dry_run and not dataset.has_labels:
        raise UserError(f"{dataset.list_path}: --dry-run scores, which needs `image label` on every line")


def predict(
    cfg: CfgNode, loader: builders.TestLoader, names: dict[str, str], path: Path, model_file: Path, device: torch.device
) -> None:
    """Writes the predictions of all ranks, with confidence maps if ``TEST.UNCERTAINTY`` asks for them, and packs them.

    Raises:
        UserError: the zip exists.
    """
    if path.exists():
        raise UserError(f"{path} exists; remove it, or name another file with --output")
    distributed.barrier()  # every rank has looked before the first one writes
    with shared_folder(path) as folder:
        info = builders.dataset_info(cfg)
        predictor = builders.load_predictor(cfg, model_file, device)
        confidence = cfg.TEST.UNCERTAINTY
        maps = confidence_names(names.values(), info) if confidence != "none" else {}

        def begin(sample: Sample) -> Callable[[], tuple[str, Prediction]]:
            copied = predictor.predict(
                sample.image,
                names=("fused",),
                seeds=confidence in ("seed", "product"),
                probability=confidence in ("probability", "product"),
            ).start_copy()
            return lambda: (names[sample.name], copied())

        samples = track(loader, path.stem, len(loader), print_freq=cfg.PRINT_FREQ, enabled=distributed.is_main())
        files = Behind()
        for name, prediction in finish_behind(map(begin, samples), predictor.backend.images_ahead):
            files.call(save_submission_file, prediction.labels["fused"], folder / name, info)
            if maps:
                levels = confidence_levels(prediction, confidence, "fused")
                files.call(save_confidence_file, levels, folder / maps[name], info)
        files.wait()
        distributed.barrier()
        if distributed.is_main():
            write_zip(folder, [*names.values(), *maps.values()], path)


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """A folder beside a file that all ranks write to, removed at the end."""
    name = ""
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)  # this run's own
    folder = Path(distributed.broadcast(name))
    try:
        yield folder
    finally:
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def image_sizes(dataset: ListDataset, names: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Size ``(H, W)`` of each image, by the name of its prediction."""
    upright = dataset.info.upright
    return {name: read_size(dataset.folder / image, upright=upright) for image, name in names.items()}


def score(path: Path, dataset: ListDataset, names: dict[str, str], ignore_label: int) -> EvalResult:
    """Scores the predictions in the zip against the labels."""
    num_classes = dataset.info.num_classes
    counts = torch.zeros((num_classes, num_classes), dtype=torch.int64)
    label_names = [label for _, label in dataset.pairs if label is not None]
    for label_name, predicted in zip(label_names, read_zip(path, names.values(), dataset.info), strict=True):
        labels = torch.from_numpy(dataset.decoder.read(dataset.folder / label_name))
        counts += confusion_counts(torch.from_numpy(predicted), labels, num_classes, ignore_label=ignore_label)
    return scores_from_counts(counts, dataset.info.class_names)


def score_uncertainty(path: Path, dataset: ListDataset, names: dict[str, str], cfg: CfgNode) -> UncertaintyScores:
    """Scores the predictions and confidence maps in the zip against labels and masks of invalid pixels."""
    counter = UncertaintyCounter(dataset.info.num_classes, cfg.TRAIN.IGNORE_LABEL)
    counts = np.zeros((1, 1, *counter.shape), dtype=np.int64)
    predictions = read_zip(path, names.values(), dataset.info)
    confidences = read_confidences(path, names.values(), dataset.info)
    label_names = [label for _, label in dataset.pairs if label is not None]
    for label_name, predicted, levels in zip(label_names, predictions, confidences, strict=True):
        labels = dataset.decoder.read(dataset.folder / label_name)
        invalid = read_invalid_mask(dataset.folder / mask_name(label_name, dataset.info), labels.shape)
        counts += counter.count(labels, invalid, predicted, levels)
    return uncertainty_scores(counts, cfg.TEST.UNCERTAINTY, ("fused",), ())
