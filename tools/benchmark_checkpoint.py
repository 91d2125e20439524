#!/usr/bin/env python3
"""What checkpoints cost the steps around them: python tools/benchmark_checkpoint.py --cfg FILE [KEY VALUE …]."""

from __future__ import annotations

import gc
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
NUM_PLAIN = 10  # steps before each checkpoint


def main() -> None:
    """Measures steps before, at and after checkpoints, and prints a table."""
    parser = config_parser(__doc__)
    parser.add_argument("--checkpoints", type=int, default=4, metavar="N", help="at least 2 (default: 4)")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.cfg, args.overrides)
    device = choose_device(cfg.DEVICE)
    step, batch, small = build_step(cfg, device), random_batch(cfg), torch.ones(8)

    def train() -> None:
        step([batch]).flags  # noqa: B018  # waits for the device

    def launch() -> None:  # a training step of seconds would hide what a checkpoint costs
        for _ in range(NUM_LAUNCHES):
            small.add_(1.0)

    print("| step, ms | with a first checkpoint | with another | while one is written | longest | written in, s | MB |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        function = launch if device.type == "cpu" else train
        cells = measure(function, step, Path(folder), args.checkpoints)
    print("| " + " | ".join(f"{cell:,.0f}" if cell >= 10 else f"{cell:.1f}" for cell in cells) + " |")


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


def measure(function: Callable[[], None], step: TrainStep, folder: Path, num_checkpoints: int) -> list[float]:
    """Cells of the table."""
    loader = DataLoader([0], batch_size=1)
    sampler = TrainSampler(1, rank=0, world_size=1, seed=0)
    state = TrainState(Timeline((Phase(loader, sampler, 1),), 0, 1))
    checkpoints = Checkpointer(step, state, folder, {"config": ""}, CheckpointSettings(keep_checkpoints=1))
    path = folder / CHECKPOINT

    def version() -> int:
        return path.stat().st_ino if path.exists() else 0

    def timed(save: bool = False) -> float:
        started = time.perf_counter()
        function()
        if save:
            checkpoints.save()
        return 1000 * (time.perf_counter() - started)

    plain, saving, writing, written = [], [], [], []
    gc.freeze()  # as `Trainer.fit` does
    for _ in range(num_checkpoints):
        plain += [timed() for _ in range(NUM_PLAIN)]
        before, started = version(), time.perf_counter()
        saving.append(timed(save=True))
        while version() == before:
            writing.append(timed())
        written.append(time.perf_counter() - started)
    medians = [statistics.median(times or [0.0]) for times in (plain, saving[1:], writing, written)]
    cells = [medians[0], saving[0], *medians[1:3], max(writing, default=0.0)]
    return [*cells, medians[3], path.stat().st_size / 1e6]


if __name__ == "__main__":
    run_main(main)
