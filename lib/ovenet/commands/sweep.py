"""Runs an experiment with many settings and seeds.

Finished runs are not run again; interrupted ones resume. Any number of machines that share the results may run the same
command at the same time, or join it with --worker. The table has mean ± standard deviation over
the seeds; differences are paired by seed, with their 95 % interval over resampled images in brackets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ovenet.commands.launchers import EXTRAS, launch, read_options
from ovenet.errors import UserError, nearest
from ovenet.evaluation.writers import write_json
from ovenet.sweep.claims import ATTEMPTS, LEASE_S, Claims
from ovenet.sweep.definition import Sweep, SweepRun, read_sweep
from ovenet.sweep.details import details_markdown
from ovenet.sweep.execution import default_jobs, last_line, run_missing, with_starts
from ovenet.sweep.results import read_results, result_path
from ovenet.sweep.summary import Summary
from ovenet.utils.cli import require_plot_file
from ovenet.utils.logging import configure_logging


def main() -> None:
    """Runs the missing runs, and writes the table, the JSON and the plot."""
    args = _parser().parse_intermixed_args()
    configure_logging(is_main=True)
    _check(args)
    options = read_options(args.options)
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
        claims = _claims(args, sweep, missing, folder)
        if args.launcher:
            if not launch(args.launcher, _arguments(args), args.workers, options, sweep.name, folder / "jobs"):
                return
            failures = [f"{run.name}, seed {run.seed}" for run in missing if not result_path(folder, run).is_file()]
        else:
            jobs = args.jobs or (args.per_gpu or 1) * default_jobs()
            failures = run_missing(sweep, missing, folder, jobs=jobs, claims=claims, waits=not args.no_wait)
    if not args.worker:
        _show(args, sweep, folder)
    if failures and args.launcher:
        where = "Ray's logs" if args.launcher == "ray" else f"the logs in {folder / 'jobs'}"
        missed = f"{len(failures)} of {len(missing)} runs have no result; first {failures[0]}"
        raise UserError(f"{missed}; {where} say why; the same command tries them again")
    if failures:
        again = "the same command without --worker tries them again"
        raise UserError(f"{len(failures)} of {len(missing)} runs failed; first {failures[0]}; {again}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="YAML file, see docs/training.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings of all trainings")
    parser.add_argument("--results", type=Path, help="folder of the results (default: OUTPUT_DIR/sweeps/NAME/results)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each GPU, else for each core)")
    parser.add_argument("--per-gpu", type=int, metavar="N", help="runs at a time on each GPU, see ovenet plan")
    parser.add_argument("--worker", action="store_true", help="help with a sweep that is under way, without a table")
    parser.add_argument("--no-wait", action="store_true", help="end when all runs that are left are others'")
    parser.add_argument(
        "--attempts", type=int, default=ATTEMPTS, metavar="N", help=f"failures until a run is given up ({ATTEMPTS})"
    )
    parser.add_argument(
        "--lease", type=float, default=LEASE_S, metavar="SECONDS",
        help=f"silence after which others take over the runs of this process (default: {LEASE_S:g})",
    )  # fmt: skip
    parser.add_argument("--launcher", choices=EXTRAS, help="start workers as jobs of SLURM, as local jobs, or on Ray")
    parser.add_argument("--workers", type=int, metavar="N", help="number of workers that the launcher starts")
    parser.add_argument(
        "--launcher-option", action="append", default=[], metavar="KEY=VALUE", dest="options",
        help="of submitit's AutoExecutor, such as slurm_partition=gpu, or of a Ray task, such as num_gpus=0.5",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="say which runs are missing, and run none")
    parser.add_argument("--details", action="store_true", help="scores and gains by seed and class, edges, seeds too")
    parser.add_argument("--reference", metavar="NAME", help="variant to compare the others with, instead of REFERENCE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the plot here too: PNG, SVG or PDF")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuses options that are out of range or do not go together."""
    for name in ("jobs", "per_gpu", "attempts", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    if not 0 < args.lease < math.inf:
        raise UserError(f"--lease is {args.lease}; expected seconds, above 0")
    if bool(args.launcher) != bool(args.workers) or (args.options and not args.launcher):
        raise UserError("--launcher, --workers and --launcher-option go together: --launcher slurm --workers 16")
    if args.worker and (args.launcher or args.list):
        raise UserError("--worker goes neither with --launcher nor with --list")
    if args.per_gpu and (args.jobs or not (args.launcher or torch.cuda.is_available())):
        raise UserError("--per-gpu needs a GPU, and takes the place of --jobs; without a GPU set --jobs")


def _claims(args: argparse.Namespace, sweep: Sweep, missing: Sequence[SweepRun], folder: Path) -> Claims:
    """The claims of the results, which can be made; without --worker, runs that were given up are tried again."""
    claims = Claims(folder, sweep, args.lease, args.attempts, lambda run: last_line(run, sweep))
    claims.enter(joins=args.worker)
    for run in with_starts(sweep, missing) if not args.worker else ():
        claims.forgive(run)
    return claims


def _arguments(args: argparse.Namespace) -> list[str]:
    """The arguments of a worker that a launcher starts: it makes one run at a time unless it is told otherwise."""
    jobs = ["--per-gpu", str(args.per_gpu)] if args.per_gpu else ["--jobs", str(args.jobs or 1)]
    results = ["--results", str(args.results)] if args.results else []
    limits = ["--attempts", str(args.attempts), "--lease", str(args.lease), *(["--no-wait"] if args.no_wait else [])]
    return [str(args.sweep), *args.overrides, "--worker", *jobs, *results, *limits]


def _show(args: argparse.Namespace, sweep: Sweep, folder: Path) -> None:
    """Prints the table, and writes it, the JSON and the plot."""
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
