#!/usr/bin/env python3
"""Speed and memory of the plain way against ours, in one run, in turn: python tools/benchmark.py [--check]."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from benchmarks import output, rows
from benchmarks.card import Bench, Record
from benchmarks.card_rows import card_ways
from benchmarks.growth import growth
from benchmarks.inputs import Options
from benchmarks.measure import Case, compare, peak_bytes
from benchmarks.workers import measure_all, serve
from ovenet.engine.interruption import EXIT_REQUEUE
from ovenet.errors import UserError
from ovenet.utils.cli import run_main
from ovenet.utils.distributed import choose_device
from ovenet.utils.writing import write_text

RESULTS, SWITCH_RESULTS, PLOT = "benchmark.json", "benchmark_switches.json", "benchmark_growth.png"
CARD_RESULTS = "benchmark_card.json"
NUM_FAILED = 1


def main() -> None:
    """Measures the rows asked for, prints the table, writes the files."""
    args = parse_arguments()
    options = Options(choose_device(args.device), quick=args.quick)
    if args.serve:
        bench = Bench(options, args.runs, args.output)
        serve({way.title: way for way in card_ways()}, bench, lambda: output.machine(options.device))
        return
    if args.card or (options.device.type == "cuda" and not (args.check or args.switches or args.memory)):
        measure_card(args)
        return
    table = rows.SWITCHES if args.switches else rows.LOSSES if options.device.type == "cuda" else rows.ON_CPU
    unknown = [name for name in args.rows if name not in table]
    if unknown:
        raise UserError(f"--rows {unknown[0]!r}: there is no such row on {args.device}; there are {', '.join(table)}")
    if args.busy < 0:
        raise UserError(f"--busy {args.busy}: expected a number of processes")
    require_runs(args.runs)
    if args.memory:
        with opened(table[args.rows[0]](options)) as case:
            print(peak_bytes(case.ours if args.memory == "ours" else case.plain, options.device))
        return
    chosen = args.rows or [name for name in table if not args.check or name in rows.GUARDED]
    records, problems = [], []
    for name in chosen:
        with opened(table[name](options)) as case:
            print(f"{case.name} …", file=sys.stderr, flush=True)
            with busy_processes(args.busy):
                result = compare(case, args.runs)
        memory = {} if args.no_memory else {side: memory_of(name, side, args) for side in ("plain", "ours")}
        records.append(output.as_record(result, memory))
        problems += violations(case, records[-1], is_busy=args.busy > 0)
    print(
        output.table(records, ("off", "on") if args.switches else ("plain", "ours")), *output.remarks(records), sep="\n"
    )
    if args.check:
        print(*(problems or ["all limits hold"]), sep="\n")
        sys.exit(NUM_FAILED if problems else 0)
    write(args, options, records)


def require_runs(number: int) -> None:
    """Refuses less than two."""
    if number < 2:
        raise UserError(f"--runs {number}: at least 2 are needed for a median and its spread")


def measure_card(args: argparse.Namespace) -> None:
    """Measures the ways of the card's rows, and writes the file after each; see `benchmarks.card`."""
    ways = card_ways()
    unknown = [name for name in args.rows if name not in {way.work for way in ways}]
    if unknown:
        names = ", ".join(dict.fromkeys(way.work for way in ways))
        raise UserError(f"--rows {unknown[0]!r}: there is no such row for a card; there are {names}")
    if args.busy:
        raise UserError("--busy is for the rows of the CPU; leave it out")
    require_runs(args.runs)
    path = args.output / CARD_RESULTS
    content = {"date": "", "command": [], "machine": {}, "rows": []}
    if args.go_on and path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"date": time.strftime("%Y-%m-%d"), "command": ["python", *sys.argv]}
    has_failed = {(row["work"], row["way"]): "failed" in row for row in content["rows"]}
    chosen = [way for way in ways if not args.rows or way.work in args.rows]
    chosen = [way for way in chosen if has_failed.get((way.work, way.name), True)]
    chosen.sort(key=lambda way: (way.work, way.name) in has_failed)  # what failed before comes last
    args.output.mkdir(parents=True, exist_ok=True)

    def note(record: Record) -> None:
        content["machine"] = record.pop("machine", content["machine"])
        same = [row for row in content["rows"] if (row["work"], row["way"]) == (record["work"], record["way"])]
        content["rows"] = [row for row in content["rows"] if row not in same] + [record]
        write_text(path, json.dumps(content, indent=1))

    command = [sys.executable, __file__, "--serve", "--device", args.device, "--runs", str(args.runs)]
    command += ["--quick"] if args.quick else []
    with tempfile.TemporaryDirectory() as results:
        left = measure_all(chosen, [*command, "--output", results], args.seconds, note)
    print(output.card_table(content["rows"]))
    print(*(f"{name}: {value}" for name, value in content["machine"].items()), f"results: {path}", sep="\n")
    print(*(f"not reached: {way.title}" for way in left), sep="\n")
    print(output.card_figure(content["rows"], args.rows, len(left)))
    sys.exit(EXIT_REQUEUE if left else NUM_FAILED if any("failed" in row for row in content["rows"]) else 0)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], metavar="NAME", help="only these (default: all)")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="of each way, in turn (default: 7)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--check", action="store_true", help="fail if a ratio is below its limit; writes nothing")
    parser.add_argument("--switches", action="store_true", help="instead: each setting that saves time, off and on")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"), metavar="FOLDER")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside so many processes that only compute")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--no-growth", action="store_true", help="leave out the plot of how cost grows")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose numbers say nothing: does it run?")
    parser.add_argument("--card", action="store_true", help="the rows for a card, whatever the device")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="N", help="of a card's rows: begin none later (default: all)"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="keep what the file has of a card's rows, measure the rest"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # a process that measures them
    parser.add_argument("--memory", choices=("plain", "ours"), help=argparse.SUPPRESS)  # a process for one number
    return parser.parse_args()


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Background load, like loading processes and other users' jobs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def opened(case: Case | AbstractContextManager[Case]) -> AbstractContextManager[Case]:
    """Rows that need files remove them at the end."""
    return nullcontext(case) if isinstance(case, Case) else case


def memory_of(name: str, side: str, args: argparse.Namespace) -> float:
    """Peak bytes of one way above its inputs, in a process of its own."""
    command = [sys.executable, __file__, "--memory", side, "--rows", name, "--device", args.device]
    flags = [f"--{flag}" for flag in ("quick", "switches") if getattr(args, flag)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name}, memory of {side}: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}")
    return float(done.stdout.split()[-1])


def violations(case: Case, record: dict, *, is_busy: bool = False) -> list[str]:
    """Limits of ``--check`` that do not hold; beside other work a third less is expected, and never less than 1."""
    problems = []
    least = max(1.0, case.min_ratio * 2 / 3) if is_busy else case.min_ratio
    if record["ratio"] < least:
        problems.append(f"{case.name}: {record['ratio']:.2f} times as fast, at least {round(least, 2)} is expected")
    if memory := record["memory_bytes"]:
        share = memory["ours"] / max(memory["plain"], 1)
        if case.max_memory and share > case.max_memory:
            problems.append(f"{case.name}: {share:.2f} of the plain memory, at most {case.max_memory} is expected")
    return problems


def write(args: argparse.Namespace, options: Options, records: list[dict]) -> None:
    """JSON and plot."""
    args.output.mkdir(parents=True, exist_ok=True)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "command": ["python", *sys.argv],
        "machine": output.machine(options.device),
        "rows": records,
        "growth": [] if args.no_growth or args.switches else growth(options, args.runs),
    }
    print(*(f"{name}: {value}" for name, value in content["machine"].items()), sep="\n")
    results = args.output / (SWITCH_RESULTS if args.switches else RESULTS)
    results.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"results: {results}")
    if content["growth"]:
        output.plot_growth(content["growth"], args.output / PLOT)
        print(f"growth:  {args.output / PLOT}")


if __name__ == "__main__":
    run_main(main)
