"""Runs an experiment with many settings and seeds.

Finished runs are not run again; interrupted ones resume. The table has mean ± standard deviation over
the seeds; differences are paired by seed, with their 95 % interval over resampled images in brackets.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ovenet.errors import UserError, nearest
from ovenet.evaluation.writers import write_json
from ovenet.sweep.definition import SweepRun, read_sweep
from ovenet.sweep.details import details_markdown
from ovenet.sweep.execution import default_jobs, run_missing
from ovenet.sweep.results import read_results, result_path
from ovenet.sweep.summary import Summary
from ovenet.utils.cli import require_plot_file
from ovenet.utils.logging import configure_logging


def main() -> None:
    """Runs the missing runs, and writes the table, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="YAML file, see docs/training.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings of all trainings")
    parser.add_argument("--results", type=Path, help="folder of the results (default: OUTPUT_DIR/sweeps/NAME/results)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each GPU, else for each core)")
    parser.add_argument("--list", action="store_true", help="say which runs are missing, and run none")
    parser.add_argument("--details", action="store_true", help="scores and gains by seed and class, edges, seeds too")
    parser.add_argument("--reference", metavar="NAME", help="variant to compare the others with, instead of REFERENCE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the plot here too: PNG, SVG or PDF")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    args = parser.parse_intermixed_args()
    configure_logging(is_main=True)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; expected at least 1")
    if args.output:
        require_plot_file(args.output, overwrite=args.overwrite)
    sweep = read_sweep(args.sweep, args.overrides)
    if args.reference:
        names = [run.name for run in sweep.runs]
        if args.reference not in names:
            near = nearest(args.reference, names)
            raise UserError(f"--reference is {args.reference!r}; there is no such run, did you mean {near}?")
        sweep = replace(sweep, reference=args.reference)
    folder = args.results or sweep.output_dir / "sweeps" / sweep.name / "results"
    runs: dict[str, SweepRun] = {}
    for run in sweep.runs:
        runs.setdefault(run.key, run)  # grids may share one
    missing = [run for run in runs.values() if not result_path(folder, run).is_file()]
    failures: list[str] = []
    if args.list:
        for run in missing:
            print(f"missing: {run.name}, seed {run.seed}")
    elif missing:
        jobs = args.jobs or default_jobs()
        failures = run_missing(sweep, missing, folder, jobs=jobs)
    summary = Summary(sweep, read_results(folder, sweep.runs))
    print(summary.markdown())
    if args.details and summary.variants:
        print(f"\n{details_markdown(summary)}")
    if summary.variants and not args.list:
        (folder / "summary.md").write_text(summary.markdown() + "\n", encoding="utf-8")
        write_json(summary.as_dict(), folder / "summary.json")
        summary.figure().savefig(folder / "summary.png", dpi=110)
        print(f"table, JSON and plot: {folder}/summary.*")
    if summary.variants and args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        summary.figure().savefig(args.output, dpi=110)
    if failures:
        raise UserError(f"{len(failures)} of {len(missing)} runs failed; first {failures[0]}")
