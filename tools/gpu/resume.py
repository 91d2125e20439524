#!/usr/bin/env python3
"""Whether a training that is cut off and gone on with ends with the bits of a whole one."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 75
SAME = (
    "CUDNN.DETERMINISTIC", "True", "CUDNN.BENCHMARK", "False", "WORKERS", "0", "MODEL.HEAD.NAME", "ocr",
    "LOSS.USE_OHEM", "True", "LOSS.OHEMKEEP", "10000", "TRAIN.EMA", "0.9",
)  # fmt: skip


def main() -> int:
    """Trains, compares, and says in the last line how many tensors are the same; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="takes the runs")
    parser.add_argument(
        "--again", action="store_true", help="a second whole one beside it: does training repeat at all?"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings of all trainings")
    args = parser.parse_args()

    def start(name: str, *overrides: str) -> subprocess.Popen:
        command = [sys.executable, "tools/train.py", "--cfg", args.cfg, *args.overrides, *SAME]
        return subprocess.Popen([*command, "OUTPUT_DIR", str(args.work / name), *overrides], cwd=ROOT)

    cut = start("cut", "TRAIN.CHECKPOINT_EVERY", "1")
    names = ("whole", "again") if args.again else ("whole",)
    whole = [start(name) for name in names]
    while not list((args.work / "cut").rglob("checkpoint.pth")) and cut.poll() is None:
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    code = cut.wait()
    resumed = start("cut", "TRAIN.RESUME", "True").wait() if code == INTERRUPTED else code
    others = [process.wait() for process in whole]
    if code != INTERRUPTED or resumed or any(others):
        print(f"a training failed: exit codes {code} (cut off, {INTERRUPTED} expected), {resumed} (resumed), {others}")
        return 1
    states = {name: final_state(args.work / name) for name in ("cut", *names)}
    other = {name: differing(states["whole"], states[name]) for name in ("cut", *names[1:])}
    count = len(states["whole"])
    print(*(f"{name}: other bits in {names}" for name, names in other.items() if names), sep="\n")
    same = {name: f"{count - len(names)} of {count}" for name, names in other.items()}
    second = f"; a second whole run: {same['again']}" if args.again else ""
    print(f"resumed: {same['cut']} tensors have the whole run's bits{second}")
    return bool(other["cut"]) and not other.get("again")  # nobody can demand what two whole runs do not have


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and statistics at the end of a run."""
    path = next(folder.rglob("final_state.pth"))
    return torch.load(path, weights_only=True, map_location="cpu")["model"]


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same to the bit."""
    return [name for name in a if not torch.equal(a[name], b[name])]


if __name__ == "__main__":
    sys.exit(main())
