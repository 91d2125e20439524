#!/usr/bin/env python3
"""All tests that are marked gpu, a process for each file at once, none of them ended by another's failure."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"mark\.gpu\b")
COUNTS = re.compile(r"(\d+)(?:/\d+)?(?: tests?)? (passed|failed|skipped|errors?|xfailed|collected)")
NO_TESTS = 5  # pytest's exit code
CUT_OFF = 124  # as `timeout` has it
GRACE_S = 5  # for a process that is cut off to say what failed so far


def main() -> int:
    """Runs the files, prints what each said and, in the last line, the sums; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=12, metavar="N", help="processes at once (default: 12)")
    parser.add_argument("--seconds", type=float, default=70, metavar="N", help="for all of them (default: 70)")
    parser.add_argument("--collect-only", action="store_true", help="run none: are they there?")
    args = parser.parse_args()
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if MARK.search(path.read_text("utf-8")))
    groups = [group for group in (files[n :: args.jobs] for n in range(args.jobs)) if group]
    end = time.monotonic() + args.seconds
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rfEs", "--tb=short"]
    command += ["--collect-only"] if args.collect_only else ["-v", "--durations=5"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # what is computed on the CPU is small, and there are many processes
    counts: Counter[str] = Counter()
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, group in enumerate(groups):
            log = Path(folder) / f"{number}.log"
            with log.open("w", encoding="utf-8") as file:
                process = subprocess.Popen([*command, *map(str, group)], cwd=ROOT, env=env, stdout=file, stderr=file)
            started.append((process, log))
        for (process, log), group in zip(started, groups, strict=True):
            codes.append(finish(process, end))
            text = log.read_text(encoding="utf-8", errors="replace")
            print(f"== {', '.join(str(path.relative_to(ROOT)) for path in group)}: exit code {codes[-1]}\n{text}")
            for number, what in COUNTS.findall(last_counts(text)):
                counts[what] += int(number)
    sums = ", ".join(f"{number} {what}" for what, number in counts.items()) or "none"
    cut = codes.count(CUT_OFF)
    print(f"{sums}, in {len(files)} files{f'; {cut} process(es) cut off' if cut else ''}")
    bad = [code for code in codes if code not in (0, NO_TESTS)]
    return CUT_OFF if cut else 1 if bad else 0


def finish(process: subprocess.Popen, end: float) -> int:
    """Waits until it is done or the time is over; its exit code."""
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then says what failed
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return CUT_OFF


def last_counts(text: str) -> str:
    """The line in which pytest sums up."""
    return next((line for line in reversed(text.splitlines()) if COUNTS.search(line)), "")


if __name__ == "__main__":
    sys.exit(main())
