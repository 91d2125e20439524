#!/usr/bin/env python3
"""Training steps on two hosts over a slow link, or with a slow host, beside a model of them. Needs root.

Example: python tools/benchmark_link.py --rates 100 1000 --held 0.2 0.5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="*", default=[100, 1000], metavar="MBIT", help="of the link")
    parser.add_argument("--compressions", nargs="+", default=["none", "bf16"], choices=("none", "bf16", "powersgd"))
    parser.add_argument(
        "--held", type=float, nargs="*", default=[], metavar="SHARE", help="shares of the time that one host is held"
    )
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
        print("| one host is held | measured, s | model, s |")
        print("|---|--:|--:|")
        for held in args.held:
            measured = measure(folder, args.steps, UNLIMITED, "none", held)
            slowed = Workload(alone, 0.0, 4 * size, 0, straggler=1 / (1 - held))
            model = step_time(slowed, hosts=2, per_host=1, link_gbit=UNLIMITED / 1000)
            print(f"| {held:.0%} of the time | {measured:.2f} | {model.total_s:.2f} |", flush=True)


def measure(folder: Path, steps: int, megabits: float, compression: str, held: float = 0.0) -> float:
    """Median seconds of a step, the first ones left out.

    Args:
        folder: folder with the data.
        steps: number of steps.
        megabits: bandwidth of the link, in Mbit/s.
        compression: ``TRAIN.GRADIENT_COMPRESSION``.
        held: share of the time that the processes of one host are stopped.
    """
    hosts, output = Hosts(f"bl{os.getpid()}"), Path(tempfile.mkdtemp(dir=folder))
    is_over = threading.Event()
    try:
        hosts.limit(megabits)
        arguments = (
            "--cfg", CONFIG, "DATASET.ROOT", folder / "data", "OUTPUT_DIR", output, "DEVICE", "cpu", "WORKERS", 0,
            "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.IMAGE_SIZE", "64,64", "TRAIN.END_EPOCH", 1, "PRINT_FREQ", 1,
            "TRAIN.GRADIENT_COMPRESSION", compression, "DATASET.AUDIT", 0, "TEST.BASE_SIZE", 64, "TRAIN.BASE_SIZE", 64,
        )  # fmt: skip
        processes = [hosts.start(number, "train", *arguments) for number in (0, 1)]
        if held:
            threading.Thread(target=hosts.slow_down, args=(1, held, is_over), daemon=True).start()
        for process in processes:
            out, _ = process.communicate(timeout=500)
            if process.returncode:
                raise UserError(f"the training failed: {out.strip().splitlines()[-1]}")
    finally:
        is_over.set()
        hosts.remove()
    lines = [json.loads(line) for line in next(output.rglob("log.jsonl")).read_text(encoding="utf-8").splitlines()]
    times = [line["time"] for line in lines if line["kind"] == "train"][NUM_WARM_UP:]
    return statistics.median(after - before for before, after in pairwise(times))


if __name__ == "__main__":
    run_main(main)
