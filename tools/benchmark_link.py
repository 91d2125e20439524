#!/usr/bin/env python3
"""Training steps on two hosts over a slow link, beside a model of them: python tools/benchmark_link.py. Needs root."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from benchmarks.hosts import ROOT, Hosts
from ovenet import build_model, load_config
from ovenet.engine.scaling import Workload, step_time
from ovenet.errors import UserError
from ovenet.synthetic.scenes import write_dataset
from ovenet.utils.cli import run_main

CONFIG = ROOT / "experiments/synthetic/ovenet_hrnet_w18_small_v2.yaml"
NUM_WARM_UP = 3
UNLIMITED = 1e5  # megabits a second


def main() -> None:
    """Measures every rate with every compression, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 1000], metavar="MBIT", help="of the link")
    parser.add_argument("--compressions", nargs="+", default=["none", "bf16"], choices=("none", "bf16", "powersgd"))
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="of each training (default: 12)")
    args = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("tc"):
        raise UserError("hosts are network namespaces here, which needs root, ip and tc (iproute2)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = {"train": 4 * args.steps, "val": 2, "test": 1}
        list(write_dataset(folder / "data/synthetic", counts, size=(64, 64), seed=0))
        alone = measure(folder, args.steps, UNLIMITED, "none")
        print(f"{alone:.3f} s a step without a limit, two processes")
        print("| link | gradients | measured, s | model, s | on the link, s |")
        print("|---|---|--:|--:|--:|")
        size = sum(p.numel() for p in build_model(load_config(CONFIG)).parameters())
        for rate in args.rates:
            for compression in args.compressions:
                measured = measure(folder, args.steps, rate, compression)
                sent = size * (2 if compression == "bf16" else 4)
                model = step_time(Workload(alone, 0.0, sent, 0), hosts=2, per_host=1, link_gbit=rate / 1000)
                print(
                    f"| {rate:g} Mbit/s | {compression}, {sent / 1e6:.1f} MB | {measured:.2f} | {model.total_s:.2f} "
                    f"| {model.link_s:.2f} |",
                    flush=True,
                )


def measure(folder: Path, steps: int, megabits: float, compression: str) -> float:
    """Seconds a step, the median after the first ones."""
    hosts, output = Hosts(f"bl{os.getpid()}"), Path(tempfile.mkdtemp(dir=folder))
    try:
        hosts.limit(megabits)
        arguments = (
            "--cfg", CONFIG, "DATASET.ROOT", folder / "data", "OUTPUT_DIR", output, "DEVICE", "cpu", "WORKERS", 0,
            "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.IMAGE_SIZE", "64,64", "TRAIN.END_EPOCH", 1, "PRINT_FREQ", 1,
            "TRAIN.GRADIENT_COMPRESSION", compression, "DATASET.AUDIT", 0, "TEST.BASE_SIZE", 64, "TRAIN.BASE_SIZE", 64,
        )  # fmt: skip
        processes = [hosts.start(number, "train", *arguments) for number in (0, 1)]
        for process in processes:
            out, _ = process.communicate(timeout=500)
            if process.returncode:
                raise UserError(f"the training failed: {out.strip().splitlines()[-1]}")
    finally:
        hosts.remove()
    lines = [json.loads(line) for line in next(output.rglob("log.jsonl")).read_text(encoding="utf-8").splitlines()]
    times = [line["time"] for line in lines if line["kind"] == "train"][NUM_WARM_UP:]
    return statistics.median(after - before for before, after in pairwise(times))


if __name__ == "__main__":
    run_main(main)
