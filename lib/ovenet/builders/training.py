"""The parts of the training loop, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from yacs.config import CfgNode

from ovenet.builders.data import build_train_loader
from ovenet.builders.losses import build_criterion
from ovenet.builders.models import build_optimizer
from ovenet.engine.optim import build_schedule
from ovenet.engine.step import StepSettings, TrainStep
from ovenet.engine.trainer import Phase, phase_lengths
from ovenet.errors import UserError
from ovenet.models import Segmentor
from ovenet.models.segmentor import GROUPS


def build_phases(cfg: CfgNode) -> list[Phase]:
    """The training of ``TRAIN.ITERATIONS``, or up to ``TRAIN.END_EPOCH`` and the extra epochs after it, if any."""
    loader, sampler = build_train_loader(cfg)
    if cfg.TRAIN.ITERATIONS:
        return [Phase(loader, sampler, cfg.TRAIN.END_EPOCH, cfg.TRAIN.ITERATIONS)]
    phases = [Phase(loader, sampler, cfg.TRAIN.END_EPOCH)]
    if cfg.TRAIN.EXTRA_EPOCH:
        extra = build_train_loader(cfg, cfg.DATASET.EXTRA_TRAIN_SET)
        phases.append(Phase(*extra, cfg.TRAIN.END_EPOCH + cfg.TRAIN.EXTRA_EPOCH))
    return phases


def build_train_step(model: Segmentor, cfg: CfgNode, device: torch.device, phases: Sequence[Phase]) -> TrainStep:
    """What an iteration does.

    Args:
        model: on `device`, with the weights that training starts from.
        cfg: the configuration.
        device: of this process.
        phases: from `build_phases`; the schedule has their length.
    """
    lengths = [length for _, length in phase_lengths(phases, cfg.TRAIN.BEGIN_EPOCH, cfg.TRAIN.ACCUMULATE)]
    optimizer = build_optimizer(model, cfg)
    settings = StepSettings(
        precision=cfg.TRAIN.PRECISION,
        clip_grad_norm=cfg.TRAIN.CLIP_GRAD_NORM,
        ema_decay=cfg.TRAIN.EMA,
        frozen=_frozen(model, cfg),
        compile_mode=None if cfg.TRAIN.COMPILE == "none" else cfg.TRAIN.COMPILE,
        normalization=model.normalization,
    )
    schedule = build_schedule(
        optimizer,
        lengths[0],
        warmup=cfg.TRAIN.WARMUP,
        num_extra=sum(lengths[1:]),
        extra=cfg.TRAIN.EXTRA_LR / cfg.TRAIN.LR,
        lr_min=cfg.TRAIN.LR_MIN,
        power=cfg.TRAIN.LR_POWER,
    )
    return TrainStep(model, build_criterion(cfg).to(device), optimizer, schedule, device, settings)


def _frozen(model: Segmentor, cfg: CfgNode) -> frozenset[str]:
    """Parameters that ``TRAIN.FREEZE_LAYERS`` names.

    Raises:
        UserError: an entry names no part of the model and no module of its backbone.
    """
    frozen: set[str] = set()
    for entry in filter(None, (entry.strip() for entry in cfg.TRAIN.FREEZE_LAYERS.split(","))):
        inside = f"backbone.{entry}"
        try:
            place = entry if entry.split(".")[0] in GROUPS else inside
            frozen |= {f"{place}.{name}" for name, _ in model.part(place).named_parameters()}
        except UserError as error:
            raise UserError(f"TRAIN.FREEZE_LAYERS: {entry!r}: {error}") from None
    return frozenset(frozen)
