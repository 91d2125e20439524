"""Training, from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.cost import log_step_cost
from ovenet.builders.data import (
    TestLoader,
    build_train_loader,
    check_data,
    dataset_info,
    shard_loader,
    validation_dataset,
)
from ovenet.builders.inference import inference_settings
from ovenet.builders.losses import build_criterion
from ovenet.builders.models import (
    build_model,
    check_frozen_parts,
    initialize_model,
    metadata_of,
    prediction_names,
    without_seed,
)
from ovenet.builders.optimizers import build_optimizer
from ovenet.config.schema import section
from ovenet.data.info import DatasetInfo
from ovenet.data.loaders import TrainLoader
from ovenet.data.samplers import TrainSampler
from ovenet.engine.checkpoint import CheckpointStore
from ovenet.engine.optim import build_schedule
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.settings import CheckpointSettings, RunSettings, ScheduleSettings, StepSettings
from ovenet.engine.step import TrainStep
from ovenet.engine.trainer import Hook, Trainer, TrainSettings
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import evaluate
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.pictures import predicted_row
from ovenet.models import Segmentor
from ovenet.models.block_compilation import compiler_problem
from ovenet.models.segmentor import to_sync_batchnorm
from ovenet.models.settings import PARTS
from ovenet.structures import EvalResult, Normalization
from ovenet.utils import distributed
from ovenet.utils.environment import allow_tf32, warn_of_emulation
from ovenet.utils.seeding import seed_everything


def build_phases(cfg: CfgNode, normalization: Normalization | None = None) -> list[Phase]:
    """One phase of ``TRAIN.ITERATIONS``, or one up to ``TRAIN.END_EPOCH`` and, if asked for, one of extra epochs."""
    end_epoch = cfg.TRAIN.END_EPOCH
    phases = [
        Phase(*_train_loader(cfg, "TRAIN_SET", cfg.DATASET.TRAIN_SET, normalization), end_epoch, cfg.TRAIN.ITERATIONS)
    ]
    if cfg.TRAIN.EXTRA_EPOCH:  # config checks: not together with ITERATIONS
        extra = _train_loader(cfg, "EXTRA_TRAIN_SET", cfg.DATASET.EXTRA_TRAIN_SET, normalization)
        phases.append(Phase(*extra, end_epoch + cfg.TRAIN.EXTRA_EPOCH))
    return phases


def _train_loader(
    cfg: CfgNode, key: str, list_file: str, normalization: Normalization | None
) -> tuple[TrainLoader, TrainSampler]:
    """Batches of ``DATASET.<key>``, which is `list_file`: at least one iteration an epoch.

    Raises:
        UserError: an epoch has fewer batches than ``TRAIN.ACCUMULATE``.
    """
    accumulate = cfg.TRAIN.ACCUMULATE
    loader, sampler = build_train_loader(cfg, list_file, normalization)
    if len(loader) < accumulate:
        raise UserError(
            f"TRAIN.ACCUMULATE is {accumulate}, but an epoch of DATASET.{key} {list_file} has {len(loader)} "
            "batch(es); set it to at most that"
        )
    return loader, sampler


def build_train_step(model: Segmentor, cfg: CfgNode, device: torch.device, lengths: Sequence[int]) -> TrainStep:
    """The training step, with optimizer, schedule and loss.

    Args:
        model: on `device`, with its initial weights.
        cfg: the configuration.
        device: device of this process.
        lengths: iterations of each phase, see `Timeline.lengths`; the schedule has the same length.
    """
    warn_of_emulation("TRAIN.PRECISION", cfg.TRAIN.PRECISION, device)
    optimizer = build_optimizer(model, cfg)
    main, *extra = lengths
    schedule = build_schedule(optimizer, section(cfg, ScheduleSettings), main, sum(extra))
    criterion, settings = build_criterion(cfg).to(device), section(cfg, StepSettings)
    return TrainStep(model, criterion, optimizer, schedule, device, settings, resting_parts=_resting_parts(model, cfg))


def _resting_parts(model: Segmentor, cfg: CfgNode) -> tuple[str, ...]:
    """Parts named by ``TRAIN.FREEZE_LAYERS``, as `Segmentor.rest` takes them.

    Raises:
        UserError: an entry names no part of the model and no module of its backbone.
    """
    parts = []
    for entry in filter(None, (entry.strip() for entry in cfg.TRAIN.FREEZE_LAYERS.split(","))):
        place = entry if entry.split(".")[0] in PARTS else f"backbone.{entry}"
        try:
            model.part(place)
        except UserError as error:
            raise UserError(f"TRAIN.FREEZE_LAYERS: {entry!r}: {error}") from None
        parts.append(place)
    return tuple(parts)


def check_device(cfg: CfgNode, device: torch.device) -> None:
    """Refuses settings that a device cannot do, which would fail in the first step.

    Raises:
        UserError: the loss kernels are not for this device, or torch does not compile for it.
    """
    if cfg.LOSS.BACKEND == "triton" and device.type != "cuda":
        raise UserError(f"LOSS.BACKEND is triton, which needs CUDA, but the device is {device.type}; set it to auto")
    if cfg.TRAIN.COMPILE not in ("none", "blocks") and device.type in ("mps", "xpu"):
        problem = compiler_problem(device)
        if problem:
            raise UserError(f"TRAIN.COMPILE is {cfg.TRAIN.COMPILE}, which fails on {device.type} ({problem}); set none")


def set_up_cuda(cfg: CfgNode) -> None:
    """Applies the CUDA settings to this process; before its first convolution."""
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    allow_tf32(cfg.TRAIN.TF32)


def build_trainer(
    cfg: CfgNode, run_dir: Path, log_dir: Path, device: torch.device, hooks: Sequence[Hook] = ()
) -> Trainer:
    """The trainer of a run, with all its parts.

    Args:
        cfg: the configuration.
        run_dir: folder of checkpoints and logs.
        log_dir: folder of TensorBoard files.
        device: device of this process.
        hooks: see `Trainer`.

    Raises:
        UserError: the data or the initial weights do not fit the configuration.
    """
    check_device(cfg, device)
    set_up_cuda(cfg)
    seed_everything(cfg.SEED)
    info = dataset_info(cfg)
    model = build_model(cfg)
    timeline = Timeline(tuple(build_phases(cfg, model.normalization)), cfg.TRAIN.BEGIN_EPOCH, cfg.TRAIN.ACCUMULATE)
    test_set = validation_dataset(cfg)
    test_loader, _ = shard_loader(cfg, test_set)
    if not test_set.has_labels:
        raise UserError(f"{test_set.list_path}: validation needs `image label` on every line; set DATASET.TEST_SET")
    if distributed.is_main():
        check_data(cfg, (*(phase.crops.dataset for phase in timeline.phases), test_set))
    model = model.to(device).to(memory_format=torch.channels_last)
    reports = initialize_model(model, cfg)
    if not (cfg.TRAIN.RESUME and CheckpointStore(run_dir, cfg.TRAIN.KEEP_CHECKPOINTS).exists()):
        check_frozen_parts(model, cfg, reports)
    if distributed.world_size() > 1 and device.type != "cpu" and cfg.TRAIN.SYNC_BN:
        model = to_sync_batchnorm(model)
    seed_everything(cfg.SEED, rank=distributed.rank())  # from here on, dropout differs between processes
    inference = inference_settings(cfg, info, model.normalization, single_scale=True)
    predictor = SlidingWindowInferencer(model, inference, device)
    step = build_train_step(model, cfg, device, timeline.lengths)
    settings = TrainSettings(
        run_dir=run_dir,
        log_dir=log_dir,
        metadata=metadata_of(cfg, info, model.normalization),
        run=section(cfg, RunSettings),
        checkpoints=section(cfg, CheckpointSettings),
        peak_images_per_second=log_step_cost(cfg, device),
        metadata_without_seed=_metadata_without_seed(cfg, info, model),
    )
    return Trainer(
        step,
        timeline,
        evaluate=partial(_validate, cfg, inference, test_loader, info, device),
        draw_picture=lambda: predicted_row(predictor, test_set[0], test_set.info),
        settings=settings,
        hooks=hooks,
    )


def _validate(
    cfg: CfgNode,
    inference: InferenceSettings,
    loader: TestLoader,
    info: DatasetInfo,
    device: torch.device,
    model: nn.Module,
    is_stop_requested: Callable[[], bool],
) -> dict[str, EvalResult]:
    """Scores a model on the validation split, as far as this rank gets before a request to stop."""
    predictor = SlidingWindowInferencer(model, inference, device)
    samples = takewhile(lambda _: not is_stop_requested(), loader)
    return evaluate(predictor, samples, info, prediction_names(cfg), ignore_label=cfg.TRAIN.IGNORE_LABEL).overall


def _metadata_without_seed(cfg: CfgNode, info: DatasetInfo, model: Segmentor) -> dict[str, Any] | None:
    """`metadata_of` the network without its seed, where ``TRAIN.BEST`` may save that; else None."""
    if cfg.TRAIN.BEST != "any" or "initial" not in prediction_names(cfg):
        return None
    return metadata_of(without_seed(cfg), info, model.normalization)
