"""Writes one HTML page that compares evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovenet.report.page import REPORT, write_report
from ovenet.report.runs import find_evaluation
from ovenet.utils.cli import require_free, typed_command


def main() -> None:
    """Finds the evaluations and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run, or of one of its tests"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"default: {REPORT} in the folder of the only evaluation"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    args = parser.parse_args()
    folders = [find_evaluation(run) for run in args.runs]
    if args.output is None and len(folders) > 1:
        parser.error("several runs: name the report with --output FILE")
    path = args.output or folders[0] / REPORT
    if args.output:
        require_free(path, overwrite=args.overwrite)
    for folder in folders:
        print(f"evaluation:  {folder}")
    note = write_report(folders, path, command=typed_command())
    print(f"report:      {path} ({path.stat().st_size / 1e6:.1f} MB; {note})")
