"""Checks of the model's parts against their own signatures: the ones for which parts, and torch, are imported."""

from __future__ import annotations

from yacs.config import CfgNode

from ovenet.config.checks import part_settings, require
from ovenet.errors import UserError
from ovenet.models.registry import BACKBONES, HEADS, REGISTRIES, SEEDS
from ovenet.models.settings import NO_SEED


def check_parts(cfg: CfgNode) -> None:
    """Refuses parts that do not exist, and settings that the chosen parts do not take.

    `load_config` leaves this to whoever builds the parts, so that it imports no torch. Commands call it first.

    Args:
        cfg: from `load_config`.

    Raises:
        UserError: one line that names the key.
    """
    for kind, registry in REGISTRIES.items():
        node, where = cfg.MODEL[kind.upper()], f"MODEL.{kind.upper()}"
        name = node.NAME
        if kind in ("neck", "seed") and name in (NO_SEED, ""):
            continue
        try:
            registry[name]
        except UserError as error:
            raise UserError(f"{where}.NAME is {name!r}: {error}") from None
        registry.check(name, part_settings(node), where)
    backbone, head, seed = (cfg.MODEL[part].NAME for part in ("BACKBONE", "HEAD", "SEED"))
    require(
        not cfg.TRAIN.CHECKPOINT_ACTIVATIONS or BACKBONES.takes(backbone, "checkpoint_activations"),
        "TRAIN.CHECKPOINT_ACTIVATIONS",
        cfg,
        f"False: the backbone {backbone} cannot compute its activations twice",
    )
    require(
        not cfg.LOSS.INTERIOR or (seed != NO_SEED and SEEDS[seed].has_offsets),
        "LOSS.INTERIOR",
        cfg,
        f"0 with MODEL.SEED.NAME {seed}, which predicts no offsets",
    )
    require(
        cfg.LOSS.CONFIDENCE_TARGET == "same_class" or seed == NO_SEED or SEEDS[seed].has_fusion,
        "LOSS.CONFIDENCE_TARGET",
        cfg,
        f"'same_class' with MODEL.SEED.NAME {seed}, which learns no confidence",
    )
    num_outputs = HEADS[head].num_outputs
    require(
        len(cfg.LOSS.BALANCE_WEIGHTS) in (0, num_outputs) and all(weight >= 0 for weight in cfg.LOSS.BALANCE_WEIGHTS),
        "LOSS.BALANCE_WEIGHTS",
        cfg,
        f"{num_outputs} weights of at least 0 for the head {head}, or [] for the usual ones",
    )
    require(
        -num_outputs <= cfg.TEST.OUTPUT_INDEX < num_outputs,
        "TEST.OUTPUT_INDEX",
        cfg,
        f"between {-num_outputs} and {num_outputs - 1} for the head {head}",
    )
