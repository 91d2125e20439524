#!/usr/bin/env python3
"""Scores a model, saves predictions: python tools/test.py --cfg FILE [KEY VALUE ...], alone or under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch
from torch import Tensor
from yacs.config import CfgNode

from ovenet import builders, load_config
from ovenet.data.info import DatasetInfo
from ovenet.engine.progress import track
from ovenet.evaluation.evaluate import Evaluation, evaluate
from ovenet.evaluation.inference import Predictor
from ovenet.evaluation.pictures import picture_row, save_picture, save_prediction
from ovenet.evaluation.writers import format_table, results_as_dict, write_json
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser, run_main
from ovenet.utils.logging import configure_logging

NUM_PICTURE_ROWS = 4


def main() -> None:
    """Reads the config, loads the weights, predicts, scores, writes."""
    args = config_parser(__doc__).parse_args()
    configure_logging(is_main=distributed.is_launch_main())
    cfg = load_config(args.cfg, args.overrides)
    model_file = builders.find_model_file(cfg, builders.run_directory(cfg, args.cfg))
    device = distributed.choose_device(cfg.DEVICE)
    with distributed.process_group(device):
        test(cfg, model_file, results_directory(cfg, args.cfg, model_file), device)


def test(cfg: CfgNode, model_file: Path, folder: Path, device: torch.device) -> None:
    """Runs the whole split and writes ``results.json`` and the predictions into `folder`."""
    info = builders.dataset_info(cfg)
    loader, dataset = builders.build_test_loader(cfg)
    predictor = builders.load_predictor(cfg, model_file, device)
    saves = cfg.TEST.SAVE_PREDICTIONS or not dataset.has_labels
    evaluation = evaluate(
        predictor,
        track(loader, cfg.DATASET.TEST_SET, len(loader), print_freq=cfg.PRINT_FREQ, enabled=distributed.is_main()),
        info,
        builders.prediction_names(cfg),
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        on_prediction=prediction_saver(cfg, predictor, folder, info) if saves else None,
    )
    if distributed.is_main():
        report(cfg, evaluation, model_file, folder, saved=saves)


def results_directory(cfg: CfgNode, config_file: str, model_file: Path) -> Path:
    """``<run>/test/<list>_<weights>_<scales>[_flip]``: tests that differ do not overwrite each other."""
    name = f"{Path(cfg.DATASET.TEST_SET).stem}_{builders.inference_name(cfg, model_file)}"
    return builders.run_directory(cfg, config_file) / "test" / name


def prediction_saver(
    cfg: CfgNode, predictor: Predictor, folder: Path, info: DatasetInfo
) -> Callable[[Sample, dict[str, Tensor]], None]:
    """Saves the fused prediction of each sample, and picture rows of the first ones."""
    num_rows_left = NUM_PICTURE_ROWS if distributed.is_main() else 0

    def save(sample: Sample, predicted: dict[str, Tensor]) -> None:
        nonlocal num_rows_left
        save_prediction(predicted["fused"], sample.name, folder / "predictions", info)
        if num_rows_left:
            num_rows_left -= 1
            output = predictor.predict_output(sample.image)
            row = picture_row(
                sample,
                output,
                info,
                max_offset=cfg.MODEL.EXTRA.OFFSET_THRESHOLD,
                align_corners=cfg.MODEL.ALIGN_CORNERS,
            )
            save_picture(row, (folder / "pictures" / sample.name).with_suffix(".png"))

    return save


def report(cfg: CfgNode, evaluation: Evaluation, model_file: Path, folder: Path, *, saved: bool) -> None:
    """Prints the table and writes the JSON file."""
    if evaluation.overall["fused"].num_pixels:
        print(format_table(evaluation.overall, evaluation.by_condition))
        settings = {
            "model_file": str(model_file),
            "list": cfg.DATASET.TEST_SET,
            "scales": list(cfg.TEST.SCALE_LIST),
            "flip": cfg.TEST.FLIP_TEST,
            "score": cfg.TEST.SCORE,
        }
        content = {"settings": settings, "results": results_as_dict(evaluation.overall)}
        if evaluation.by_condition:
            content["conditions"] = {name: results_as_dict(part) for name, part in evaluation.by_condition.items()}
        write_json(content, folder / "results.json")
        (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        print(f"results:     {folder / 'results.json'}")
    else:
        print(f"{cfg.DATASET.TEST_SET} has no labelled pixel: nothing to score")
    if saved:
        print(f"predictions: {folder / 'predictions' / 'ids'}")
        print(f"in colour:   {folder / 'predictions' / 'color'}")
        print(f"pictures:    {folder / 'pictures'} (image, label, predictions, offsets, confidence)")


if __name__ == "__main__":
    run_main(main)
