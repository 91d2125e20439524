#!/usr/bin/env python3
"""What the safety of training costs: a bare loop against the trainer's, in one run, interleaved."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch

from ovenet import build_criterion, build_model, builders, load_config
from ovenet.data.transforms import normalize_images
from ovenet.engine.progress import Meter
from ovenet.engine.run_log import RunLog
from ovenet.engine.trainer import Phase
from ovenet.structures import Batch
from ovenet.utils import distributed
from ovenet.utils.cli import run_main

CONFIG = Path(__file__).resolve().parents[1] / "experiments/synthetic/ovenet_hrnet_w18_small_v2.yaml"


def main() -> None:
    """Prints medians and spread of both, and the overhead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="of each kind (default: 30)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="crops of 512x256 pixels (default: 2)")
    args = parser.parse_args()
    cfg = load_config(CONFIG)
    device = distributed.choose_device(cfg.DEVICE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, 256, 512), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 19, (args.batch, 256, 512), generator=generator)
    batch = Batch(images, labels, tuple(map(str, range(args.batch))))
    step = builders.build_train_step(
        build_model(cfg).to(device, memory_format=torch.channels_last).train(),
        cfg,
        device,
        [Phase(range(1000), None, 1)],
    )
    criterion = build_criterion(cfg).to(device)

    def bare() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        output = step.model(normalize_images(batch.images.to(device)))
        criterion(output, batch.labels.to(device)).total.backward()
        step.optimizer.step()
        step.schedule.step()

    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder), Path(folder), iteration=0) as log:
        meter = Meter()

        def trained(number: int) -> None:
            nonlocal meter
            with distributed.activity(f"iteration {number}"):
                loss = step([batch]).loss
            meter.add(loss, args.batch)
            if number % cfg.PRINT_FREQ == 0:
                log.scalars("train", meter.summary(), iteration=number, epoch=0)
                meter = Meter()

        seconds: dict[str, list[float]] = {"bare loop": [], "trainer": []}
        for number in range(args.steps + 2):
            kinds = [("bare loop", bare), ("trainer", lambda number=number: trained(number))]
            for name, run in kinds if number % 2 else reversed(kinds):
                started = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= 2:
                    seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:10} {1000 * middle:8.1f} ms a step (quartiles {1000 * low:.1f} to {1000 * high:.1f})")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"overhead   {100 * (statistics.median(ratios) - 1):8.1f} % (median of {len(ratios)} neighbouring pairs)")
    alone = 1000 * added_work(step.model)
    print(f"the added work alone: {alone:.1f} ms (copies of the buffers, gradient norm, its check)")
    print(f"{args.batch} crops of 512x256, HRNet-W18-small-v2 OVeNet, {device.type}, torch {torch.__version__}")


def added_work(model: torch.nn.Module) -> float:
    """Median seconds of what the trainer does more than the bare loop, by itself."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        _copies = [buffer.clone() for buffer in model.buffers()]
        torch.isfinite(torch.nn.utils.get_total_norm(gradients)).tolist()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    run_main(main)
