"""``ovenet test --corruptions``: the same test on clean and on corrupted images, one after the other."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from ovenet import builders
from ovenet.builders.loading import TrainedModel, corruptions_in_training, predictor_for_test
from ovenet.data.corruption_kinds import SEVERITIES, kinds_of
from ovenet.data.corruptions import library_versions, prepare_corruptions
from ovenet.data.dataset import ListDataset
from ovenet.errors import UserError
from ovenet.evaluation.corruptions import CorruptionScores, format_corruptions
from ovenet.evaluation.evaluate import Evaluation
from ovenet.evaluation.partial import FOLDER
from ovenet.evaluation.writers import write_json
from ovenet.predictor import run_folder
from ovenet.report.corruptions import EXAMPLES, example_pictures
from ovenet.report.runs import CORRUPTIONS, RESULTS
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger

SaveResults = Callable[[TrainedModel, Evaluation, Path, dict[str, Any]], Any]
_Test = tuple[str, int]  # kind and severity; the kind is "" for the clean images


@dataclass(frozen=True)
class Plan:
    """Which corruptions are tested.

    Attributes:
        kinds: in fixed order.
        severities: in rising order.
        details: also score edges, segments and seeds of the corrupted images.
    """

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    details: bool

    @property
    def tests(self) -> list[_Test]:
        """The clean test, then one for each kind and severity."""
        return [("", 0), *product(self.kinds, self.severities)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--corruptions`` and ``--severities``."""
    parser.add_argument(
        "--corruptions",
        metavar="KINDS",
        help="test clean and corrupted images: all, common, noise, blur, weather, digital, or names, with commas",
    )
    parser.add_argument("--severities", metavar="LIST", help="of --corruptions, such as 1,3,5; default: all five")


def read_plan(args: argparse.Namespace) -> Plan | None:
    """The plan of the command line; None without ``--corruptions``.

    Raises:
        UserError: a kind or a severity does not exist.
    """
    if args.corruptions is None:
        if args.severities is not None:
            raise UserError("--severities: only with --corruptions; a single test takes TEST.SEVERITY")
        return None
    kinds = kinds_of(filter(None, args.corruptions.split(",")), "--corruptions")
    if not kinds:
        raise UserError("--corruptions: names no kind; expected all, common, weather, or names such as fog,rain")
    known = {str(severity): severity for severity in SEVERITIES}
    texts = list(known) if args.severities is None else args.severities.split(",")
    unknown = [text for text in texts if text.strip() not in known]
    if unknown:
        raise UserError(f"--severities: {unknown[0]!r} is no severity; expected numbers from 1 to 5, such as 1,3,5")
    overrides = list(map(str, args.overrides))
    return Plan(kinds, tuple(sorted({known[text.strip()] for text in texts})), "TEST.DETAILS" in overrides)


def check_plan(plan: Plan, cfg: CfgNode, dataset: ListDataset) -> None:
    """Refuses what cannot be tested, before the model is loaded.

    Raises:
        UserError: ``TEST.CORRUPTION`` is set too, there is nothing to score, or a library is missing.
    """
    if cfg.TEST.CORRUPTION:
        raise UserError(f"TEST.CORRUPTION is {cfg.TEST.CORRUPTION!r}; leave it out with --corruptions, which sets it")
    if not dataset.has_labels:
        raise UserError(f"{dataset.list_path}: lines without a label, and --corruptions compares scores")
    prepare_corruptions(plan.kinds)


def run_corruptions(
    plan: Plan,
    trained: TrainedModel,
    dataset: ListDataset,
    folder: Path,
    settings: dict[str, Any],
    device: torch.device,
    save_results: SaveResults,
) -> None:
    """Runs the tests that are not there yet on all ranks, and writes ``corruptions.json`` after each.

    Args:
        plan: what to test.
        trained: the model and its configuration.
        dataset: of the clean test.
        folder: of the clean test.
        settings: of the clean test, from `run_folder.evaluation_settings`.
        device: of this process.
        save_results: writes the results of one test into its folder, on rank 0.
    """
    predictor = predictor_for_test(trained, device)
    tests = [_prepared(plan, trained, folder, settings, test) for test in plan.tests]
    left = sum(not test.is_done for test in tests)
    _say("%d tests: clean, and %d corruptions at severities %s; %d are done already", len(tests), len(plan.kinds),
         ",".join(map(str, plan.severities)), len(tests) - left)  # fmt: skip
    if known := [kind for kind in plan.kinds if kind in corruptions_in_training(trained)]:
        get_logger().warning(
            "%s was trained with %s; those scores are no measure of robustness to the unseen",
            trained.path,
            ", ".join(known),
        )
    seconds: list[float] = []
    try:
        for number, test in enumerate(tests, start=1):
            if not test.is_done:
                started = time.perf_counter()
                model = replace(trained, cfg=test.cfg)
                evaluation = builders.run_test(model, test.folder, test.settings, device, predictor)
                if distributed.is_main():
                    save_results(model, evaluation, test.folder, test.settings)
                seconds.append(time.perf_counter() - started)
                left -= 1
            if distributed.is_main():
                done = _write_summary(plan, trained, folder, tests[:number])
                _say_progress(test, done, number, len(tests), left, seconds)
    except (SystemExit, KeyboardInterrupt):
        _say("stopped; what is finished is kept in %s, and the same command goes on", folder)
        raise
    if distributed.is_main():
        write_json(example_pictures(dataset, plan.kinds), folder / EXAMPLES)
        print(format_corruptions(done))
        print(f"corruptions: {folder / CORRUPTIONS}")


@dataclass(frozen=True)
class _PreparedTest:
    """One test of a plan: kind and severity, configuration, settings and folder, and whether it is finished."""

    kind: str
    severity: int
    cfg: CfgNode
    settings: dict[str, Any]
    folder: Path
    is_done: bool


def _prepared(plan: Plan, trained: TrainedModel, clean: Path, settings: dict[str, Any], test: _Test) -> _PreparedTest:
    """A test with its configuration: it goes on where it was interrupted, and only the clean one is reported."""
    kind, severity = test
    cfg = trained.cfg.clone()
    cfg.defrost()
    folder = clean
    if kind:
        details = cfg.TEST.DETAILS and plan.details
        cfg.TEST.CORRUPTION, cfg.TEST.SEVERITY, cfg.TEST.DETAILS, cfg.TEST.REPORT = kind, severity, details, False
        settings = settings | {
            "TEST.CORRUPTION": kind, "TEST.SEVERITY": severity, "TEST.DETAILS": details,
        }  # fmt: skip
        folder = distributed.broadcast(run_folder.corrupted_test_folder(clean, kind, severity, settings))
    has_pictures = not cfg.TEST.REPORT or (folder / "gallery").is_dir()
    has_predictions = not cfg.TEST.SAVE_PREDICTIONS or (folder / "predictions").is_dir()
    is_begun = any((folder / FOLDER).glob("[!.]*.pth"))  # perhaps once more, for pictures that results do not need
    is_done = (folder / RESULTS).is_file() and has_pictures and has_predictions and not is_begun
    is_done, cfg.TEST.RESUME = distributed.broadcast((is_done, is_begun))
    cfg.freeze()
    return _PreparedTest(kind, severity, cfg, settings, folder, is_done)


def _write_summary(plan: Plan, trained: TrainedModel, folder: Path, tests: list[_PreparedTest]) -> dict[str, Any]:
    """Writes ``corruptions.json`` from the results of the tests so far, and returns its content."""
    found = [_mean_iou(test.folder) for test in tests]
    corrupted: dict[str, dict[int, dict[str, float]]] = {}
    for test, scores in zip(tests[1:], found[1:], strict=True):
        corrupted.setdefault(test.kind, {})[test.severity] = scores
    content = {
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "list": trained.cfg.DATASET.TEST_SET,
        "num_samples": trained.cfg.TEST.NUM_SAMPLES,
        "model_file": str(trained.path),
        "trained_with": list(corruptions_in_training(trained)),
        "versions": library_versions(),
        "is_complete": len(tests) == len(plan.tests),
        **CorruptionScores(found[0], corrupted, plan.severities).as_dict(),
    }
    write_json(content, folder / CORRUPTIONS)
    return content


def _mean_iou(folder: Path) -> dict[str, float]:
    """mIoU by prediction, from the results of a test."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["results"]
    means = {name: scores["mean_iou"] for name, scores in results.items()}
    if None in means.values():
        raise UserError(f"{folder / RESULTS}: no labelled pixel, so that there is nothing to compare")
    return means


def _say_progress(
    test: _PreparedTest, done: dict[str, Any], number: int, num_tests: int, left: int, seconds: list[float]
) -> None:
    """The score of a test that was run, and the time that the others will take."""
    if test.is_done:
        return
    scores = done["scores"][test.kind][str(test.severity)] if test.kind else done["clean"]
    name = f"{test.kind}, severity {test.severity}" if test.kind else "clean"
    eta = timedelta(seconds=round(left * sum(seconds) / len(seconds)))
    _say("test %d/%d: %s, mIoU %.2f %%; %d tests to go, about %s", number, num_tests, name, 100 * scores["fused"],
         left, eta)  # fmt: skip


def _say(message: str, *arguments: object) -> None:
    get_logger().info(message, *arguments)
