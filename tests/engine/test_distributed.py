"""Two real processes (gloo): what one of them meets must not part or hang them."""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.engine.test_trainer import make_trainer

from ovenet.config import load_config
from ovenet.structures import Batch


def _steps_with_a_bad_one(rank, port, config, run_dir, results):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    trainer = make_trainer(load_config(config), run_dir)
    trainer.model.train()
    outcomes = []
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 11, (2, 32, 32), generator=generator)
        criterion = trainer.step.criterion
        scale = criterion.confidence_weight
        if step == 1 and rank == 1:
            criterion.confidence_weight = float("nan")  # this process alone has a loss that is not finite
        outcomes.append(trainer.step([Batch(images, labels, ("a", "b"))]).loss is not None)
        criterion.confidence_weight = scale
    total = sum(p.detach().double().abs().sum() for p in trainer.model.parameters())
    torch.save({"outcomes": outcomes, "total": total}, f"{results}/{rank}.pth")
    dist.barrier()


def test_a_bad_loss_on_one_process_skips_the_step_on_both(tmp_path, write_config, tiny_cfg):
    cfg = tiny_cfg("TRAIN.LR", 0.05)
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_steps_with_a_bad_one, (port, config, tmp_path / "run", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first["outcomes"] == second["outcomes"] == [True, False, True]
    assert first["total"] == second["total"]
