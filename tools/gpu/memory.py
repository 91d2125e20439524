#!/usr/bin/env python3
"""The memory that `ovenet plan` foresees against what the training then takes, in TF32 and bf16."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

import torch

from ovenet.commands.plan import run_trial
from ovenet.commands.train import train
from ovenet.engine.interruption import Interruption
from ovenet.utils.cli import run_main
from ovenet.utils.environment import peak_device_memory, peak_memory_bytes

GIB = 2**30
PRECISIONS = {"bf16": ("TRAIN.PRECISION", "bf16"), "TF32": ("TRAIN.PRECISION", "fp32", "TRAIN.TF32", "True")}
NUM_FAILED = 1


def main() -> None:
    """Prints a line for each precision, and all in the last one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="takes the runs")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="of the trial (default: 8)")
    parser.add_argument("--only", choices=PRECISIONS, help="measure one (default: all)")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # a process for one training
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings")
    args = parser.parse_args()
    if args.train:
        print(json.dumps(trained(args.cfg, args.overrides)))
        return
    figures, failed = [], False
    for name, precision in PRECISIONS.items():
        if args.only not in (None, name):
            continue
        overrides = [*args.overrides, *precision]
        trial = run_trial(args.cfg, overrides, args.steps)
        command = [sys.executable, __file__, "--train", "--cfg", args.cfg, "--work", str(args.work), *overrides]
        done = subprocess.run([*command, "OUTPUT_DIR", str(args.work / name)], stdout=subprocess.PIPE, text=True)
        failed |= trial is None or done.returncode != 0
        took = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        planned = "out of memory"
        if trial is not None:
            planned = f"{trial['memory_gib']:.2f} GiB ({trial['reserved_gib']:.2f} reserved)"
        parts = ", ".join(f"{value / GIB:.2f} {what}" for what, value in took.items())
        figures.append(f"{name}: plan {planned}, training {parts or f'failed with code {done.returncode}'}")
        print(figures[-1], flush=True)
    print("; ".join(figures))
    sys.exit(NUM_FAILED if failed else 0)


def trained(config: str, overrides: list[str]) -> dict[str, float]:
    """Trains in this process; peaks in bytes."""
    with Interruption(at_once=True) as interruption:
        train(config, overrides, interruption)
    if not torch.cuda.is_initialized():
        return {"in the process": peak_memory_bytes()}
    return {"in use": peak_device_memory(torch.device("cuda")), "reserved": torch.cuda.max_memory_reserved()}


if __name__ == "__main__":
    run_main(main)
