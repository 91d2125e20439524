"""The optimizer, from a configuration."""

from __future__ import annotations

import re

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.config.schema import section
from ovenet.engine.optim import build_optimizer as make_optimizer
from ovenet.engine.settings import OptimizerSettings
from ovenet.models.interfaces import Part

_OFFSET_HEAD = "seed.head."


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; ``TRAIN.LR_MULT`` holds the learning rate factors of the parts.

    With ``TRAIN.PARAM_GROUPS`` official, parameters are grouped as in OffSeg, by substrings of their names: those with
    ``head`` in it, such as EfficientFormerV2's talking heads, have the head's learning rate, and of the others those
    with ``norm`` in it have no weight decay.
    """
    settings = section(cfg, OptimizerSettings)
    is_official = settings.param_groups == "official"

    def lr_factor(name: str) -> float:
        if name.startswith(_OFFSET_HEAD) and cfg.TRAIN.LR_MULT.OFFSET_HEAD:
            return cfg.TRAIN.LR_MULT.OFFSET_HEAD
        part = name.split(".")[0]
        is_head = part == "neck" or (is_official and part == "backbone" and "head" in name)
        return cfg.TRAIN.LR_MULT["HEAD" if is_head else part.upper()]

    undecayed = _undecayed(model) if settings.no_decay_on_norm else set()

    def has_decay(name: str, parameter: nn.Parameter) -> bool:
        if is_official:
            return not name.startswith("backbone.") or "head" in name or "norm" not in name
        return name not in undecayed and (parameter.ndim > 1 or not settings.no_decay_on_norm)

    return make_optimizer(model, settings, cfg.TRAIN.LR, lr_factor=lr_factor, has_decay=has_decay)


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that their parts exclude from weight decay."""
    return {
        f"{place}.{name}"
        for place, part in model.named_modules()
        if isinstance(part, Part)
        for name, _ in part.named_parameters()
        if any(re.fullmatch(pattern, name) for pattern in part.undecayed)
    }
