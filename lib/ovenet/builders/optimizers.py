"""The optimizer, from a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.config.schema import section
from ovenet.engine.optim import build_optimizer as make_optimizer
from ovenet.engine.settings import OptimizerSettings
from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Part

_OFFSET_HEAD = "seed.head."


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; ``TRAIN.LR_MULT`` holds the learning rate factors of the parts.

    With ``TRAIN.PARAM_GROUPS`` official, parameters are grouped as in OffSeg, by substrings of their names: those with
    ``head`` in it, such as EfficientFormerV2's talking heads, have the head's learning rate, and of the others those
    with ``norm`` in it have no weight decay.

    Raises:
        UserError: ``TRAIN.LR_LAYER_DECAY`` is below 1, and the layers of the backbone have no order.
    """
    settings = section(cfg, OptimizerSettings)
    is_official = settings.param_groups == "official"
    layers = _layers_above(model, settings.lr_layer_decay) if settings.lr_layer_decay < 1 else {}

    def lr_factor(name: str) -> float:
        if name.startswith(_OFFSET_HEAD) and cfg.TRAIN.LR_MULT.OFFSET_HEAD:
            return cfg.TRAIN.LR_MULT.OFFSET_HEAD
        part, _, inner = name.partition(".")
        is_head = part == "neck" or (is_official and part == "backbone" and "head" in name)
        factor = cfg.TRAIN.LR_MULT["HEAD" if is_head else part.upper()]
        return factor * settings.lr_layer_decay ** layers[inner] if part == "backbone" and layers else factor

    undecayed = _undecayed(model) if settings.no_decay_on_norm else set()

    def has_decay(name: str, parameter: nn.Parameter) -> bool:
        if is_official:
            return not name.startswith("backbone.") or "head" in name or "norm" not in name
        return name not in undecayed and (parameter.ndim > 1 or not settings.no_decay_on_norm)

    return make_optimizer(model, settings, cfg.TRAIN.LR, lr_factor=lr_factor, has_decay=has_decay)


def _layers_above(model: nn.Module, decay: float) -> Mapping[str, int]:
    """How many layers lie above each parameter of the backbone, see `Backbone.layers_above`."""
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    layers = backbone.layers_above()
    if not layers:
        name = backbone.timm_name or type(backbone).__name__
        raise UserError(
            f"TRAIN.LR_LAYER_DECAY is {decay}, but the layers of the backbone {name} have no known order; expected "
            "1.0; TRAIN.LR_MULT.BACKBONE is a factor for all of them"
        )
    return layers


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that their parts exclude from weight decay."""
    return {
        f"{place}.{name}"
        for place, part in model.named_modules()
        if isinstance(part, Part)
        for name, _ in part.named_parameters()
        if any(re.fullmatch(pattern, name) for pattern in part.undecayed)
    }
