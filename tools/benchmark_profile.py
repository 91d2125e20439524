#!/usr/bin/env python3
"""Where the time of a training step goes: kernels, launches, how busy the card is."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.card_rows import BATCH, FLAGSHIP, small
from benchmarks.inputs import Options
from benchmarks.networks import Steps
from benchmarks.trace import as_text, summarize
from ovenet import builders
from ovenet.utils.cli import run_main
from ovenet.utils.distributed import choose_device
from ovenet.utils.writing import write_text


def main() -> None:
    """Profiles a few steps, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", default=FLAGSHIP, metavar="FILE", help="in experiments/ (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="that are watched (default: 5)")
    parser.add_argument("--warm-up", type=int, default=12, metavar="N", help="steps before them (default: 12)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/profile.json"), metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose numbers say nothing: does it run?")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings (TRAIN.PRECISION bf16)")
    args = parser.parse_args()
    options = Options(choose_device(args.device), quick=args.quick)
    steps = Steps.of(options, args.cfg, (*small(options), *args.overrides), BATCH)
    builders.set_up_cuda(steps.cfg)
    step, batches = steps.ours(), steps.batches
    for _ in range(args.warm_up):
        _ = step(batches).loss
    on_card = options.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiler:
        results = [step(batches) for _ in range(args.steps)]
        _ = results[-1].loss  # waits
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    summary = summarize(events, args.steps, on_card=on_card)
    name = torch.cuda.get_device_name() if on_card else "CPU"
    content = {"command": ["python", *sys.argv], "device": name, "torch": torch.__version__, **summary}
    write_text(args.output, json.dumps(content, indent=1))
    print(f"results: {args.output}")
    print(as_text(summary))


if __name__ == "__main__":
    run_main(main)
