#!/usr/bin/env python3
"""What checkpoints cost the steps around them: python tools/benchmark_checkpoint.py --cfg FILE [KEY VALUE …]."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from ovenet import build_model, load_config
from ovenet.builders import build_train_step
from ovenet.data.samplers import TrainSampler
from ovenet.engine.checkpoint import CHECKPOINT
from ovenet.engine.checkpointer import Checkpointer
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.settings import CheckpointSettings
from ovenet.engine.step import TrainStep
from ovenet.engine.train_state import TrainState
from ovenet.structures import Batch
from ovenet.utils.cli import config_parser, run_main
from ovenet.utils.distributed import choose_device

NUM_LAUNCHES = 3000  # small operations, about as many as an eager step of HRNet-W48 launches
NUM_WARM_UP = 3


def main() -> None:
    """Measures training steps, and steps of small operations from Python, with a checkpoint after every tenth."""
    parser = config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=33, metavar="N", help="of each kind (default: 33)")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.cfg, args.overrides)
    device = choose_device(cfg.DEVICE)
    step = build_step(cfg, device)
    batch = random_batch(cfg)
    small = torch.ones(8, device=device)

    def train() -> None:
        step([batch]).flags  # noqa: B018  # waits for the device

    def launch() -> None:
        for _ in range(NUM_LAUNCHES):
            small.add_(1.0)
        float(small[0])

    print("| steps | median, ms | longest without a checkpoint | first with one | longest with one | next 3 | MB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, function, steps in (("training", train, args.steps), ("small operations", launch, 10 * args.steps)):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            print(f"| {name} | {measure(function, step, Path(folder), steps)} |", flush=True)


def build_step(cfg: CfgNode, device: torch.device) -> TrainStep:
    """A step of the config's network, with random weights."""
    torch.manual_seed(0)
    model = build_model(cfg).to(device).to(memory_format=torch.channels_last)
    model.train()
    return build_train_step(model, cfg, device, [1000])


def random_batch(cfg: CfgNode) -> Batch:
    """Crops of the config's size."""
    width, height = cfg.TRAIN.IMAGE_SIZE
    size = (cfg.TRAIN.BATCH_SIZE_PER_GPU, height, width)
    images = torch.randint(0, 255, (size[0], 3, height, width), dtype=torch.uint8)
    return Batch(images, torch.randint(0, cfg.DATASET.NUM_CLASSES, size), ("",) * size[0])


def measure(function: Callable[[], None], step: TrainStep, folder: Path, num_steps: int) -> str:
    """Cells of the table: the time of a step and of what is done for a checkpoint after it."""
    loader = DataLoader([0] * num_steps, batch_size=1)
    sampler = TrainSampler(num_steps, rank=0, world_size=1, seed=0)
    state = TrainState(Timeline((Phase(loader, sampler, 1),), 0, 1))
    checkpoints = Checkpointer(step, state, folder, {"config": ""}, CheckpointSettings(keep_checkpoints=1))
    plain, saving = [], []
    every = num_steps // 3
    for number in range(NUM_WARM_UP + num_steps):
        started = time.perf_counter()
        function()
        is_saved = number >= NUM_WARM_UP and (number - NUM_WARM_UP) % every == 1
        if is_saved:
            checkpoints.save()
        if number >= NUM_WARM_UP:
            (saving if is_saved else plain).append(1000 * (time.perf_counter() - started))
    getattr(checkpoints, "wait", lambda: None)()
    median, size = statistics.median(plain), (folder / CHECKPOINT).stat().st_size
    after = [max(plain[n * (every - 1) + 1 : n * (every - 1) + 4]) for n in range(3)]
    numbers = (median, max(plain), saving[0], max(saving[1:]), max(after), size / 1e6)
    return " | ".join(f"{number:,.0f}" for number in numbers)


if __name__ == "__main__":
    run_main(main)
