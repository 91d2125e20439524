"""Training, from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

import torch
from yacs.config import CfgNode

from ovenet.builders.data import build_train_loader, check_data, shard_loader, validation_dataset
from ovenet.builders.inference import build_predictor
from ovenet.builders.models import (
    build_criterion,
    build_model,
    build_optimizer,
    check_frozen_parts,
    dataset_info,
    initialize_model,
    model_on_meta,
    prediction_names,
)
from ovenet.config.schema import section
from ovenet.engine.checkpoint import CheckpointStore
from ovenet.engine.optim import build_schedule
from ovenet.engine.settings import CheckpointSettings, RunSettings, ScheduleSettings, StepSettings
from ovenet.engine.step import TrainStep
from ovenet.engine.trainer import Phase, Trainer, TrainSettings, phase_lengths
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import evaluate
from ovenet.evaluation.pictures import predicted_row
from ovenet.models import Segmentor
from ovenet.models.cost import PassesCost, count_passes
from ovenet.models.segmentor import GROUPS, synchronized
from ovenet.structures import EvalResult, Normalization
from ovenet.utils import distributed
from ovenet.utils.environment import allow_tf32, peak_flops, warn_of_emulation
from ovenet.utils.logging import get_logger
from ovenet.utils.seeding import seed_everything


def build_phases(cfg: CfgNode, normalization: Normalization | None = None) -> list[Phase]:
    """The training of ``TRAIN.ITERATIONS``, or up to ``TRAIN.END_EPOCH`` and the extra epochs after it, if any."""
    loader, sampler = build_train_loader(cfg, None, normalization)
    if len(loader) < cfg.TRAIN.ACCUMULATE:
        raise UserError(
            f"TRAIN.ACCUMULATE is {cfg.TRAIN.ACCUMULATE}, but an epoch of {cfg.DATASET.TRAIN_SET} has {len(loader)} "
            "batches; set it to at most that"
        )
    if cfg.TRAIN.ITERATIONS:
        return [Phase(loader, sampler, cfg.TRAIN.END_EPOCH, cfg.TRAIN.ITERATIONS)]
    phases = [Phase(loader, sampler, cfg.TRAIN.END_EPOCH)]
    if cfg.TRAIN.EXTRA_EPOCH:
        extra = build_train_loader(cfg, cfg.DATASET.EXTRA_TRAIN_SET, normalization)
        phases.append(Phase(*extra, cfg.TRAIN.END_EPOCH + cfg.TRAIN.EXTRA_EPOCH))
    return phases


def count_step(cfg: CfgNode) -> PassesCost:
    """What the network's passes of one training step cost a process, counted on the meta device in seconds."""
    width, height = cfg.TRAIN.IMAGE_SIZE
    cost = count_passes(model_on_meta(cfg).train(), cfg.TRAIN.BATCH_SIZE_PER_GPU, height, width)
    return PassesCost(
        flops=cfg.TRAIN.ACCUMULATE * cost.flops, num_operations=cfg.TRAIN.ACCUMULATE * cost.num_operations
    )


def peak_images_per_second(cfg: CfgNode, cost: PassesCost, device_name: str) -> float | None:
    """What the processes' cards could train at their dense bfloat16 peak; None for a card whose peak is not known.

    Args:
        cfg: the configuration.
        cost: of a step, from `count_step`.
        device_name: of the cards.
    """
    peak = peak_flops(device_name)
    if peak is None:
        return None
    per_step = cfg.TRAIN.ACCUMULATE * cfg.TRAIN.BATCH_SIZE_PER_GPU
    return distributed.world_size() * per_step * peak / cost.flops


def _told_peak(cfg: CfgNode, device: torch.device) -> float | None:
    """`peak_images_per_second` of this run's cards, having said what a step is; None without a card."""
    if device.type != "cuda":
        return None
    try:
        cost = count_step(cfg)
    except Exception as error:  # some operation that the meta device lacks: no reason to end the run
        get_logger().warning("what a step costs is not known: %s", " ".join(str(error).split())[:200])
        return None
    launch = "launched one by one" if cfg.TRAIN.CUDA_GRAPH == "off" else "as one CUDA graph where that can be"
    get_logger().info(
        "a step's passes are %d operations of the network, %.2f TFLOP, %s",
        cost.num_operations,
        cost.flops / 1e12,
        launch,
    )
    return peak_images_per_second(cfg, cost, torch.cuda.get_device_name(device))


def build_train_step(model: Segmentor, cfg: CfgNode, device: torch.device, phases: Sequence[Phase]) -> TrainStep:
    """What an iteration does.

    Args:
        model: on `device`, with the weights that training starts from.
        cfg: the configuration.
        device: of this process.
        phases: from `build_phases`; the schedule has their length.
    """
    warn_of_emulation("TRAIN.PRECISION", cfg.TRAIN.PRECISION, device)
    lengths = [length for _, length in phase_lengths(phases, cfg.TRAIN.BEGIN_EPOCH, cfg.TRAIN.ACCUMULATE)]
    optimizer = build_optimizer(model, cfg)
    schedule = build_schedule(
        optimizer,
        lengths[0],
        warmup=cfg.TRAIN.WARMUP,
        num_extra=sum(lengths[1:]),
        extra=cfg.TRAIN.EXTRA_LR / cfg.TRAIN.LR,
        lr_min=cfg.TRAIN.LR_MIN,
        power=cfg.TRAIN.LR_POWER,
    )
    return TrainStep(
        model,
        build_criterion(cfg).to(device),
        optimizer,
        schedule,
        device,
        section(cfg, StepSettings),
        resting_parts=_resting_parts(model, cfg),
    )


def _resting_parts(model: Segmentor, cfg: CfgNode) -> tuple[str, ...]:
    """Parts that ``TRAIN.FREEZE_LAYERS`` names, as `Segmentor.rest` knows them.

    Raises:
        UserError: an entry names no part of the model and no module of its backbone.
    """
    parts = []
    for entry in filter(None, (entry.strip() for entry in cfg.TRAIN.FREEZE_LAYERS.split(","))):
        place = entry if entry.split(".")[0] in GROUPS else f"backbone.{entry}"
        try:
            model.part(place)
        except UserError as error:
            raise UserError(f"TRAIN.FREEZE_LAYERS: {entry!r}: {error}") from None
        parts.append(place)
    return tuple(parts)


def set_up_cuda(cfg: CfgNode) -> None:
    """Sets how this process trains on CUDA; before its first convolution."""
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    allow_tf32(cfg.TRAIN.TF32)


def build_trainer(cfg: CfgNode, run_dir: Path, log_dir: Path, device: torch.device) -> Trainer:
    """Builds every part and joins them."""
    set_up_cuda(cfg)
    seed_everything(cfg.SEED)
    info = dataset_info(cfg)
    model = build_model(cfg)
    phases = build_phases(cfg, model.normalization)
    test_set = validation_dataset(cfg)
    test_loader, _ = shard_loader(cfg, test_set)
    if not test_set.has_labels:
        raise UserError(f"{test_set.list_path}: validation needs `image label` on every line; set DATASET.TEST_SET")
    if distributed.is_main():
        check_data(cfg, (*(phase.loader.dataset.dataset for phase in phases), test_set))
    model = model.to(device, memory_format=torch.channels_last)
    reports = initialize_model(model, cfg)
    if not (cfg.TRAIN.RESUME and CheckpointStore(run_dir, cfg.TRAIN.KEEP_CHECKPOINTS).exists()):
        check_frozen_parts(model, cfg, reports)
    if distributed.world_size() > 1 and device.type == "cuda" and cfg.TRAIN.SYNC_BN:
        model = synchronized(model)
    seed_everything(cfg.SEED, rank=distributed.rank())  # from here on, dropout differs between processes
    predictor = build_predictor(model, cfg, device, single_scale=True)
    names = prediction_names(cfg)

    def score(model: torch.nn.Module, stop: Callable[[], bool]) -> dict[str, EvalResult]:
        scorer = build_predictor(model, cfg, device, single_scale=True)
        samples = takewhile(lambda _: not stop(), test_loader)
        return evaluate(scorer, samples, info, names, ignore_label=cfg.TRAIN.IGNORE_LABEL).overall

    return Trainer(
        build_train_step(model, cfg, device, phases),
        phases,
        evaluate=score,
        draw_picture=lambda: predicted_row(predictor, test_set[0], test_set.info),
        settings=TrainSettings(
            run_dir=run_dir,
            log_dir=log_dir,
            run=section(cfg, RunSettings),
            schedule=section(cfg, ScheduleSettings),
            step=section(cfg, StepSettings),
            checkpoints=section(cfg, CheckpointSettings),
            peak_images_per_second=_told_peak(cfg, device),
            metadata={
                "config": cfg.dump(),
                "dataset": info.name,
                "class_names": list(info.class_names),
                "palette": [list(c) for c in info.palette],
                "dataset_info": info.as_dict(),
                "normalization": asdict(model.normalization),
            },
        ),
    )
