"""Opens likely label errors of a test on a local page with a brush, and saves corrected masks beside the originals."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

from ovenet import builders
from ovenet.app.review_server import ReviewAnswers, ReviewServer
from ovenet.builders.loading import predictor_for_test
from ovenet.config import check_parts, load_config
from ovenet.errors import UserError
from ovenet.evaluation.label_quality import PREDICTION
from ovenet.inference.inferencer import Prediction, SlidingWindowInferencer
from ovenet.predictor import run_folder
from ovenet.report.review import RECORD, Review
from ovenet.report.runs import TestedRun, find_evaluation, read_run
from ovenet.utils import distributed
from ovenet.utils.run_lock import run_lock


def main() -> None:
    """Serves the page until Ctrl-C."""
    parser = build_parser()
    args = parser.parse_intermixed_args()
    if args.images < 1:
        raise UserError(f"--images is {args.images}; expected 1 or more")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port is {args.port}; expected 0 to 65535")
    if args.cfg:
        cfg = load_config(args.cfg)
        run_dir = run_folder.run_directory(cfg, args.cfg)
        overrides = [args.run, *args.overrides] if args.run else []
    elif args.run:
        run_dir, overrides = Path(args.run), args.overrides
    else:
        parser.error("name the folder of a run or of a test, or an experiment file (--cfg FILE)")
    run = read_run(find_evaluation(run_dir), run_dir.name)
    review = open_review(run, overrides, output=args.output, number=args.images)
    with run_lock(review.folder):
        review.begin()
        most = max(height * width for height, width in (record["size"] for record in run.records))
        page = partial(review.page, shlex.join(["ovenet", "review", *sys.argv[1:]]))
        with ReviewServer(ReviewAnswers(len(review), page, review.image, review.save), args.port, most) as server:
            print(f"corrected:   {review.folder} ({RECORD} says what changed)")
            print(f"list:        DATASET.TEST_SET {review.list_file.absolute()}")
            print(f"page:        {server.address} (Ctrl-C ends it)", flush=True)
            server.serve_forever()


def open_review(run: TestedRun, overrides: list[str], *, output: Path | None, number: int) -> Review:
    """The review of a test, with its model loaded.

    Args:
        run: the test.
        overrides: ``KEY VALUE …`` that win over its configuration, such as where the data lies now.
        output, number: see `Review`.

    Raises:
        UserError: the test's files, weights, list or labels are not as they were; see `Review`.
    """
    config = run.folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config}: the test's configuration is missing; test again")
    cfg = load_config(config, overrides)
    check_parts(cfg)
    device = distributed.choose_device(cfg.DEVICE)

    @cache
    def predictor() -> SlidingWindowInferencer:
        return predictor_for_test(builders.load_model(Path(run.results["settings"]["model_file"]), cfg), device)

    def predict(image: np.ndarray) -> Prediction:
        return predictor().predict(image, names=(PREDICTION,), probability=True)

    review = Review(run, builders.test_dataset(cfg), predict, output=output, number=number)
    predictor()  # errors of loading appear now
    return review


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN_OR_TEST", help="folder of a run, or of one of its tests")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that win over those of the test")
    parser.add_argument("--cfg", metavar="FILE", help="experiment whose run is meant")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="of the corrected masks, inside the dataset's folder (default: <labels folder>_corrected)",
    )
    parser.add_argument("--images", type=int, default=50, metavar="N", help="likeliest errors to open (default: 50)")
    parser.add_argument("--port", type=int, default=7861, help="default: 7861; 0 for a free one")
    return parser
