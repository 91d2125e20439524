"""The training loss, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from ovenet.builders.data import dataset_info
from ovenet.config.defaults import OCR_NAMES
from ovenet.data.audit import read_suggested_weights
from ovenet.data.info import DatasetInfo
from ovenet.losses import OhemSettings, SegmentationCriterion

AUXILIARY_WEIGHTS = (0.4, 1.0)  # auxiliary and final map, as OCR was published


def build_criterion(cfg: CfgNode) -> SegmentationCriterion:
    """The training loss."""
    info = dataset_info(cfg)
    default_weights = AUXILIARY_WEIGHTS if cfg.MODEL.NAME in OCR_NAMES else (1.0,)
    return SegmentationCriterion(
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        class_weights=class_weights(cfg, info),
        output_weights=cfg.LOSS.BALANCE_WEIGHTS or default_weights,
        ohem=OhemSettings(cfg.LOSS.OHEMTHRES, cfg.LOSS.OHEMKEEP) if cfg.LOSS.USE_OHEM else None,
        initial_and_seed_weight=cfg.LOSS.KAPPA,
        confidence_weight=cfg.LOSS.LAMBDA,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        engine=cfg.LOSS.ENGINE,
    )


def class_weights(cfg: CfgNode, info: DatasetInfo) -> Sequence[float] | None:
    """Loss weights of the classes: those of ``LOSS.CLASS_WEIGHTS``, else the published ones, None for none.

    Raises:
        ValueError: the file cannot be read, or is of other classes.
    """
    if not cfg.LOSS.CLASS_BALANCE:
        return None
    if not cfg.LOSS.CLASS_WEIGHTS:
        return info.class_weights
    return read_suggested_weights(Path(cfg.LOSS.CLASS_WEIGHTS), info)
