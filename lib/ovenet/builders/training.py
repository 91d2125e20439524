"""The parts of the training loop, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import build_train_loader
from ovenet.builders.losses import build_criterion
from ovenet.builders.models import build_optimizer
from ovenet.config.defaults import OCR_NAMES
from ovenet.engine.optim import build_schedule
from ovenet.engine.step import StepSettings, TrainStep
from ovenet.engine.trainer import Phase
from ovenet.models.weights import published_name


def build_phases(cfg: CfgNode) -> list[Phase]:
    """The training up to ``TRAIN.END_EPOCH``, and the extra epochs after it, if there are any."""
    phases = [Phase(*build_train_loader(cfg), cfg.TRAIN.END_EPOCH)]
    if cfg.TRAIN.EXTRA_EPOCH:
        extra = build_train_loader(cfg, cfg.DATASET.EXTRA_TRAIN_SET)
        phases.append(Phase(*extra, cfg.TRAIN.END_EPOCH + cfg.TRAIN.EXTRA_EPOCH))
    return phases


def build_train_step(model: nn.Module, cfg: CfgNode, device: torch.device, phases: Sequence[Phase]) -> TrainStep:
    """What an iteration does.

    Args:
        model: on `device`, with the weights that training starts from.
        cfg: the configuration.
        device: of this process.
        phases: from `build_phases`; the schedule has their length.
    """
    epochs = (cfg.TRAIN.END_EPOCH - cfg.TRAIN.BEGIN_EPOCH, cfg.TRAIN.EXTRA_EPOCH)
    lengths = [len(phase.loader) // cfg.TRAIN.ACCUMULATE * n for phase, n in zip(phases, epochs, strict=False)]
    optimizer = build_optimizer(model, cfg)
    settings = StepSettings(
        precision=cfg.TRAIN.PRECISION,
        clip_grad_norm=cfg.TRAIN.CLIP_GRAD_NORM,
        ema_decay=cfg.TRAIN.EMA,
        frozen=_frozen(model, cfg),
        compile_mode=None if cfg.TRAIN.COMPILE == "none" else cfg.TRAIN.COMPILE,
    )
    schedule = build_schedule(
        optimizer,
        lengths[0],
        warmup=cfg.TRAIN.WARMUP,
        num_extra=sum(lengths[1:]),
        extra=cfg.TRAIN.EXTRA_LR / cfg.TRAIN.LR,
    )
    return TrainStep(model, build_criterion(cfg).to(device), optimizer, schedule, device, settings)


def _frozen(model: nn.Module, cfg: CfgNode) -> frozenset[str]:
    """Parameters that ``TRAIN.FREEZE_LAYERS`` names.

    Raises:
        ValueError: a part of it names none.
    """
    has_ocr = cfg.MODEL.NAME in OCR_NAMES
    published = {name: published_name(name, has_ocr=has_ocr) for name, _ in model.named_parameters()}
    frozen: set[str] = set()
    for part in filter(None, (part.strip() for part in cfg.TRAIN.FREEZE_LAYERS.split(","))):
        matching = {name for name, public in published.items() if part in public}
        if not matching:
            raise ValueError(f"TRAIN.FREEZE_LAYERS: no published parameter name of this model contains {part!r}")
        frozen |= matching
    return frozenset(frozen)
