#!/usr/bin/env python3
"""OVeNet against its baseline, from scratch, all seeds at once; a sweep that is cut short goes on the next time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CUT_OFF = 124  # as `timeout` has it
GRACE_S = 15  # for trainings to save
BASELINE, OVENET = "baseline", "OVeNet"


def main() -> int:
    """Runs what is missing, packs the results, and sums up in the last line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment with a seed")
    parser.add_argument("--list", required=True, metavar="LIST", help="what is tested on")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of both (default: 3)")
    parser.add_argument("--no-baseline", action="store_true", help="OVeNet alone")
    parser.add_argument("--seconds", type=float, default=100, metavar="N", help="for all (default: 100)")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="takes the runs")
    parser.add_argument("--pack", type=Path, required=True, metavar="FILE.tar.gz", help="results, earlier ones too")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings of all trainings")
    args = parser.parse_args()
    results = args.work / "results"
    results.mkdir(parents=True, exist_ok=True)
    if args.pack.exists():
        with tarfile.open(args.pack) as archive:
            archive.extractall(args.work, filter="data")
    variants = {BASELINE: {"MODEL.SEED.NAME": "none"}, OVENET: {}}
    if args.no_baseline:
        del variants[BASELINE]
    num_runs = args.seeds * len(variants)
    definition = args.work / "sweep.yaml"
    content = {
        "CFG": str(ROOT / args.cfg),
        "SEEDS": list(range(args.seeds)),
        "TEST": {"DATASET.TEST_SET": args.list},
        "RUNS": variants,
    }
    definition.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "tools/sweep.py", str(definition), "--results", str(results)]
    command += ["--jobs", str(num_runs), *args.overrides, "OUTPUT_DIR", str(args.work / "output")]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(args.seconds)
    except subprocess.TimeoutExpired:
        code = CUT_OFF
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    with tarfile.open(args.pack, "w:gz") as archive:
        archive.add(results, "results")
    if code:
        for log in sorted((args.work / "output").rglob("*.log")):  # how far each one came
            print(f"{log}: {(log.read_text('utf-8', errors='replace').splitlines() or [''])[-1]}")
    print(summed_up(results, num_runs))
    return code


def summed_up(results: Path, num_runs: int) -> str:
    """Runs that are done, and mean mIoU of both."""
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*-seed*.json"))]
    parts = [f"{len(runs)} of {num_runs} runs"]
    for name in (BASELINE, OVENET):
        scores = [100 * run["scores"]["fused"]["mean_iou"] for run in runs if run["run"] == name]
        if scores:
            parts.append(f"{name} mIoU {sum(scores) / len(scores):.2f} over {len(scores)} seeds")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
