"""Scores a model: an experiment (--cfg FILE), a run's folder, weights or a model's name, alone or under torchrun."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from ovenet import builders, load_config
from ovenet.builders.inference import view_settings
from ovenet.builders.loading import TrainedModel
from ovenet.commands import corrupted_tests
from ovenet.config import check_parts
from ovenet.deployment import RUNTIMES
from ovenet.evaluation.evaluate import Evaluation
from ovenet.evaluation.writers import evaluation_as_dict, format_evaluation, write_json
from ovenet.predictor import run_folder
from ovenet.predictor.run_folder import SETTINGS
from ovenet.predictor.sources import find_weights, is_shared, name_of
from ovenet.report.page import REPORT, write_report
from ovenet.report.runs import RESULTS
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser, typed_command
from ovenet.utils.logging import configure_logging
from ovenet.utils.run_lock import run_lock
from ovenet.utils.writing import write_text


def main() -> None:
    """Reads the config, predicts, scores, writes."""
    parser = config_parser(__doc__, required=False)
    parser.add_argument("--runtime", choices=RUNTIMES, help="TEST.RUNTIME: runtime of the network; default: torch")
    corrupted_tests.add_arguments(parser)
    args = parser.parse_intermixed_args()
    plan = corrupted_tests.read_plan(args)
    if args.runtime:
        args.overrides += ["TEST.RUNTIME", args.runtime]
    if not args.cfg and not args.overrides:
        parser.error("name an experiment file (--cfg FILE), a run's folder, a file of weights or a model")
    configure_logging(is_main=distributed.is_launch_main())
    evaluate(args.cfg, args.overrides, plan)


def evaluate(config_file: str | None, overrides: list[str], plan: corrupted_tests.Plan | None = None) -> None:
    """Scores the model of an experiment or, without a file, the one that the first of `overrides` names.

    Args:
        config_file: the experiment's file.
        overrides: ``KEY VALUE …``, after the model if there is no file.
        plan: corruptions that are tested too.
    """
    if config_file:
        cfg = load_config(config_file, overrides)
        check_parts(cfg)
        run_dir = run_folder.run_directory(cfg, config_file)
        trained, model_file = None, run_folder.find_model_file(cfg, run_dir)
    else:
        trained = builders.load_model(find_weights(overrides[0]), overrides=overrides[1:])
        cfg, model_file = trained.cfg, trained.path
        run_dir = Path(cfg.OUTPUT_DIR) / name_of(model_file) if is_shared(model_file) else model_file.parent
    device = distributed.choose_device(cfg.DEVICE)
    with distributed.process_group(device, timeout_s=cfg.DIST_TIMEOUT):
        dataset = builders.test_dataset(cfg)
        if plan is not None:
            corrupted_tests.check_plan(plan, cfg, dataset)
        is_saved = cfg.TEST.SAVE_PREDICTIONS or not dataset.has_labels
        settings = run_folder.evaluation_settings(cfg, model_file, dataset.list_path)
        folder = distributed.broadcast(run_folder.test_folder(cfg, run_dir, model_file, settings))
        with run_lock(folder) if distributed.is_main() else nullcontext():
            trained = trained or builders.load_model(model_file, cfg)
            if plan is not None:
                corrupted_tests.run_corruptions(plan, trained, dataset, folder, settings, device, save_results)
                if distributed.is_main() and cfg.TEST.REPORT:
                    report(folder)
                return
            evaluation = builders.run_test(trained, folder, settings, device)
            if distributed.is_main():
                write_results(trained, evaluation, folder, settings, is_saved=is_saved)


def write_results(
    trained: TrainedModel, evaluation: Evaluation, folder: Path, settings: dict[str, Any], *, is_saved: bool
) -> None:
    """Prints the table and the folders of saved predictions, and writes the JSON file and the report."""
    cfg = trained.cfg
    if evaluation.overall["fused"].num_pixels:
        print(format_evaluation(evaluation))
        save_results(trained, evaluation, folder, settings)
        print(f"results:     {folder / RESULTS}")
        if cfg.TEST.REPORT:
            report(folder)
    else:
        print(f"{cfg.DATASET.TEST_SET} has no labelled pixel: nothing to score")
    if is_saved:
        print(f"predictions: {folder / 'predictions' / 'ids'}")
        print(f"in colour:   {folder / 'predictions' / 'color'}")
        print(f"pictures:    {folder / 'pictures'} (image, label, predictions, errors, offsets, confidence)")


def save_results(trained: TrainedModel, evaluation: Evaluation, folder: Path, settings: dict[str, Any]) -> None:
    """Writes the scores and the configuration of a test."""
    cfg = trained.cfg
    content = {
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "settings": {
            "model_file": str(trained.path),
            "list": cfg.DATASET.TEST_SET,
            **view_settings(cfg),
            "temperatures": {name: trained.temperatures[name] for name in evaluation.overall}
            if trained.temperatures
            else None,
            **({"corruption": cfg.TEST.CORRUPTION, "severity": cfg.TEST.SEVERITY} if cfg.TEST.CORRUPTION else {}),
        },
        SETTINGS: settings,
        "max_offset": trained.network.max_offset,
        **evaluation_as_dict(evaluation, builders.dataset_info(cfg)),
    }
    write_json(content, folder / RESULTS)
    write_text(folder / "config.yaml", cfg.dump())


def report(folder: Path) -> None:
    """Writes the report of a test and says where it is."""
    note = write_report([folder], folder / REPORT, command=typed_command())
    print(f"report:      {folder / REPORT} ({note})")
