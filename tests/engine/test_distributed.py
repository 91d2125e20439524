"""Two real processes (gloo): what one of them meets must not part or hang them."""

import gc
import math
import os
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests import forking
from tests.engine.test_trainer import make_trainer
from tests.recorded_graph import RecordedGraph

from ovenet.config import load_config
from ovenet.engine import parallel
from ovenet.engine.passes import Passes
from ovenet.engine.run_log import Meter
from ovenet.losses import QueryLoss
from ovenet.structures import Batch, QueryOutput
from ovenet.utils import distributed

# Processes that a fresh interpreter forks, which has imported torch and ovenet.
mp.get_context("forkserver").set_forkserver_preload(["torch._dynamo", "cv2", "tests.engine.test_trainer"])


def start_two(function, arguments) -> None:
    """Runs ``function(rank, *arguments)`` in two processes to its end."""
    paths = os.pathsep.join([str(forking.ROOT), str(forking.ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    with patch.dict(os.environ, PYTHONPATH=paths):  # for the interpreter that forks, which imports before it has a path
        mp.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def free_port() -> int:
    """A port of this host that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _steps_with_a_bad_one(rank, port, config, run_dir, results):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    trainer = make_trainer(load_config(config), run_dir)
    trainer.model.train()
    outcomes, saves = [], []
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 11, (2, 32, 32), generator=generator)
        criterion = trainer.step.criterion
        settings = criterion.settings
        if step == 1 and rank == 1:
            criterion.settings = replace(
                settings, lambda_=float("nan")
            )  # this process alone has a loss that is not finite
        due = step == 2 and rank == 1  # this process's clock alone
        result = trainer.step([Batch(images, labels, ("a", "b"))], save=due)
        outcomes.append(result.loss is not None)
        saves.append(result.flags.save)
        criterion.settings = settings
    total = sum(p.detach().double().abs().sum() for p in trainer.model.parameters())
    torch.save({"outcomes": outcomes, "saves": saves, "total": total}, f"{results}/{rank}.pth")
    dist.barrier()


def test_a_bad_loss_on_one_process_skips_the_step_on_both(tmp_path, write_config, tiny_cfg):
    cfg = tiny_cfg("TRAIN.LR", 0.05)
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    port = free_port()
    start_two(_steps_with_a_bad_one, (port, config, tmp_path / "run", tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first["outcomes"] == second["outcomes"] == [True, False, True]
    assert first["saves"] == second["saves"] == [False, False, True]
    assert first["total"] == second["total"]


def _loss_curve(rank, world_size, port, config, run_dir, results):
    """20 steps on 8 crops an epoch, batches of 4 over all processes; BatchNorm with fixed statistics."""
    torch.set_num_threads(1)
    parallel._POWERSGD_START = 5  # of 20
    if world_size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    trainer = make_trainer(
        load_config(config), run_dir, end_epoch=10, batch_size=4 // world_size, rank=rank, world_size=world_size
    )
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # statistics of one batch, the same everywhere
        trainer.model.train()(torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    trainer.model.eval()
    if getattr(trainer.model.head, "embedding", None) is not None:
        trainer.model.head.train()  # which has no BatchNorm: embeddings are predicted while training
    losses, names, terms = [], [], []
    for epoch in range(10):
        trainer.phase.sampler.epoch = epoch
        for batch in trainer.phase.loader:
            meter = Meter()
            meter.add(trainer.step([batch]).loss, 1)
            terms.append(meter.summary())
            losses.append(terms[-1]["loss"])
            names.append(sorted(batch.images.double().mean(dim=(1, 2, 3)).tolist()))
    total = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.save(
        {"losses": losses, "samples": names, "weights": total, "terms": terms}, f"{results}/{world_size}_{rank}.pth"
    )
    if world_size > 1:
        dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "atol"), [("bf16", 5e-3), ("powersgd", 0.2)])
def test_compressed_gradients_train_alike(tmp_path, tiny_cfg, compression, atol):
    config = tmp_path / "config.yaml"
    port = free_port()
    curves = {}
    for name in ("none", compression):
        config.write_text(tiny_cfg("TRAIN.LR", 0.0004, "TRAIN.GRADIENT_COMPRESSION", name).dump())
        start_two(_loss_curve, (2, port, config, tmp_path / name, tmp_path))
        first, second = (torch.load(tmp_path / f"2_{rank}.pth") for rank in (0, 1))
        assert torch.equal(first["weights"], second["weights"])
        curves[name] = first["losses"]
    assert curves[compression][-1] < 0.75 * curves[compression][0]
    assert curves[compression] != curves["none"]  # something was compressed
    np.testing.assert_allclose(curves[compression], curves["none"], atol=atol * curves["none"][0], rtol=0)


CONTRAST = ("MODEL.HEAD.NAME", "conv1x1", "MODEL.HEAD.EMBEDDING", 8, "LOSS.CONTRAST.WEIGHT", 0.1)


@pytest.mark.slow
def test_of_a_contrasts_terms_only_the_sampled_one_depends_on_the_processes(tmp_path, tiny_cfg):
    config = tmp_path / "config.yaml"
    options = (*CONTRAST, "LOSS.CONTRAST.START", 0, "LOSS.CONTRAST.MAX_VIEWS", 2, "TRAIN.LR", 1e-12)
    config.write_text(tiny_cfg(*options).dump())
    port = free_port()
    threads = torch.get_num_threads()
    _loss_curve(0, 1, port, config, tmp_path / "run", tmp_path)
    torch.set_num_threads(threads)
    start_two(_loss_curve, (2, port, config, tmp_path / "run", tmp_path))
    one, two = (torch.load(tmp_path / f"{name}.pth")["terms"] for name in ("1_0", "2_0"))
    for name in ("initial", "seed", "fused", "confidence"):
        np.testing.assert_allclose(
            [t[f"loss_{name}"] for t in two], [t[f"loss_{name}"] for t in one], atol=1e-5, rtol=0
        )
    assert all(t["loss_contrast"] > 0 for t in (*one, *two))
    assert [t["loss_contrast"] for t in one] != [t["loss_contrast"] for t in two]


@pytest.mark.parametrize(
    "options", [(), pytest.param((*CONTRAST, "LOSS.CONTRAST.START", 1000), marks=pytest.mark.slow)]
)
def test_two_processes_with_half_the_batch_give_the_curve_of_one(tmp_path, write_config, tiny_cfg, options):
    """With a contrast that has not begun too: no parameter is unused. A higher rate makes large what rounding does."""
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg("TRAIN.LR", 0.0001, *options).dump())
    port = free_port()
    threads = torch.get_num_threads()
    _loss_curve(0, 1, port, config, tmp_path / "run", tmp_path)
    torch.set_num_threads(threads)
    start_two(_loss_curve, (2, port, config, tmp_path / "run", tmp_path))
    one, first, second = (torch.load(tmp_path / f"{name}.pth") for name in ("1_0", "2_0", "2_1"))
    assert len(one["losses"]) == 20
    assert one["losses"][-1] < 0.95 * one["losses"][0]  # something was learned
    for mine, a, b in zip(one["samples"], first["samples"], second["samples"], strict=True):
        assert mine == sorted(a + b)
    np.testing.assert_allclose(first["losses"], one["losses"], atol=1e-5, rtol=0)
    assert first["losses"] == second["losses"]  # what is logged is the mean of both
    torch.testing.assert_close(first["weights"], one["weights"], atol=1e-5, rtol=0)
    assert torch.equal(first["weights"], second["weights"])


def _mask_term(rank, port, results):
    """Process 0 sees a mask, process 1 three; a mask that does not know costs log 2 at every point."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    labels = torch.arange(3).repeat(16, 4)[None] if rank == 1 else torch.zeros(1, 16, 12, dtype=torch.int64)
    queries = QueryOutput((torch.zeros(1, 4, 4),), (torch.zeros(1, 4, 16, 12),))
    with distributed.process_group(torch.device("cpu"), timeout_s=60):
        value = QueryLoss(3, ignore_label=255, num_points=16)(queries, labels)["mask"].item()
    Path(results, f"{rank}.txt").write_text(str(value))


@pytest.mark.slow
def test_masks_of_all_processes_count_alike(tmp_path):
    start_two(_mask_term, (free_port(), tmp_path))
    terms = [float((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    average = 2  # masks per process
    assert terms == pytest.approx([5 * math.log(2) * 1 / average, 5 * math.log(2) * 3 / average])


def _wait_for_a_late_one(rank, port, results):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    message = ""
    try:
        with distributed.process_group(torch.device("cpu"), timeout_s=3), distributed.activity("iteration 7"):
            if rank == 1:
                time.sleep(8)
            distributed.all_reduce_sum(torch.ones(1))
    except ValueError as error:
        message = str(error)
    Path(results, f"{rank}.txt").write_text(message)
    os._exit(0)  # as tools end then: gloo may abort a process that takes its leave


@pytest.mark.slow
def test_a_process_that_does_not_come_is_reported_by_the_one_that_waits(tmp_path):
    port = free_port()
    start_two(_wait_for_a_late_one, (port, tmp_path))
    message = (tmp_path / "0.txt").read_text()
    assert message.startswith("process 0 of 2 ")
    assert "iteration 7" in message
    assert "DIST_TIMEOUT" in message


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "2"},
            ["process 0 of 2 ", "MASTER_PORT="],
            marks=pytest.mark.slow,
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            ["process 1 of 2 ", "within 3 s", "RANK"],
        ),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ["RANK=2 of WORLD_SIZE=2"]),
        ({"RANK": "first", "WORLD_SIZE": "2"}, ["RANK=first", "expected an integer"]),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": ""}, ["MASTER_PORT=not set"], marks=pytest.mark.slow
        ),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "taken"}, ["did not meet", "port"], marks=pytest.mark.slow
        ),
    ],
)
def test_processes_that_do_not_meet_say_why_on_one_line(tmp_path, environment, parts):
    """A missing peer, rank 1 without rank 0, a wrong RANK, a port in use: in real processes."""
    with socket.socket() as taken, socket.socket() as free:
        for each in (taken, free):
            each.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(free.getsockname()[1])
        free.close()
        if environment.get("MASTER_PORT") == "taken":
            port = str(taken.getsockname()[1])
        settings = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment} | {
            "MASTER_PORT": port
        }
        if environment.get("MASTER_PORT") == "":
            del settings["MASTER_PORT"]
        script = tmp_path / "script.py"
        script.write_text(
            "import torch; from ovenet.utils import cli, distributed\n"
            "def main():\n"
            "    with distributed.process_group(torch.device('cpu'), timeout_s=3): pass\n"
            "cli.run_main(main)"
        )
        done = forking.run([script], env=settings, timeout=100)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in line


class _RefusedOnOne:
    """A capture that fails on process 1, and would go well on process 0."""

    def __init__(self, device):
        pass

    def capture(self, function):
        if dist.get_rank() == 1:
            raise RuntimeError("out of memory")
        return [], []

    def replay(self):
        raise AssertionError("process 1 has no graph")


class _BrokenInBackward(RecordedGraph):
    """A capture that fails within the backward pass, when torch has begun to count the gradients that are there."""

    parameter = None

    def capture(self, function):
        def fail(gradient):
            raise RuntimeError("out of memory")

        handle = self.parameter.register_hook(fail)
        try:
            return super().capture(function)
        finally:
            handle.remove()


def _steps_with_a_refused_capture(rank, port, config, run_dir, results, new_graph):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    step = make_trainer(load_config(config), run_dir).step
    del step.passes
    gc.collect()  # the hooks of its DistributedDataParallel end with it
    step.passes = Passes(step.model, step.criterion, step.scaler, step.device, step.settings, new_graph)
    step.passes.graphed.num_warmup = 2
    new_graph.parameter = next(step.model.parameters())  # the last one that gets its gradient
    step.model.train()
    losses = []
    for number in range(5):
        generator = torch.Generator().manual_seed(10 * number + rank)
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 11, (2, 32, 32), generator=generator)
        losses.append(step([Batch(images, labels, ("a", "b"))]).loss.total.item())
    total = sum(p.detach().double().abs().sum() for p in step.model.parameters())
    torch.save({"losses": losses, "total": total, "graphs": step.passes.graphed.num_graphs}, f"{results}/{rank}.pth")
    dist.barrier()


@pytest.mark.parametrize("new_graph", [_RefusedOnOne, _BrokenInBackward])
def test_a_capture_that_fails_on_one_process_is_used_by_none(tmp_path, tiny_cfg, new_graph):
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg("TRAIN.LR", 0.05).dump())
    start_two(_steps_with_a_refused_capture, (free_port(), config, tmp_path / "run", tmp_path, new_graph))
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first["graphs"] == second["graphs"] == 0
    assert first["total"] == second["total"]
    assert all(map(math.isfinite, first["losses"] + second["losses"]))
    assert len(first["losses"]) == 5
