"""The training loss, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from ovenet.audit import read_suggested_weights
from ovenet.builders.data import dataset_info
from ovenet.config.schema import section
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.losses import PixelContrast, QueryLoss, SegmentationCriterion
from ovenet.losses.settings import LossSettings
from ovenet.models.registry import HEADS
from ovenet.models.settings import NO_SEED
from ovenet.utils.logging import get_logger

AUXILIARY_WEIGHT = 0.4  # loss weight of every score map but the final one, as published with OCR


def build_criterion(cfg: CfgNode) -> SegmentationCriterion:
    """The training loss.

    Raises:
        UserError: the loss needs an embedding that the head does not have, or the head has one without a loss.
    """
    info = dataset_info(cfg)
    num_outputs = HEADS[cfg.MODEL.HEAD.NAME].num_outputs
    default_weights = (AUXILIARY_WEIGHT,) * (num_outputs - 1) + (1.0,)
    return SegmentationCriterion(
        section(cfg, LossSettings),
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        class_weights=class_weights(cfg, info),
        output_weights=cfg.LOSS.BALANCE_WEIGHTS or default_weights,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        contrast=_contrast(cfg),
        contrast_weight=cfg.LOSS.CONTRAST.WEIGHT,
        queries=_queries(cfg),
    )


def _queries(cfg: CfgNode) -> QueryLoss | None:
    head = cfg.MODEL.HEAD.NAME
    if not HEADS[head].has_queries:
        return None
    if cfg.MODEL.SEED.NAME == NO_SEED:
        key = next((name for name in ("USE_OHEM", "TERMS", "BOUNDARY_WEIGHT") if cfg.LOSS[name]), None)
        if key is not None:
            raise UserError(
                f"LOSS.{key} is {cfg.LOSS[key]}, but without a seed the {head} head is trained by its masks and their "
                f"classes alone; leave LOSS.{key} away"
            )
        if class_weights(cfg, dataset_info(cfg)) is not None:
            get_logger().warning("the %s head has no use for class weights; LOSS.CLASS_BALANCE is ignored", head)
    return QueryLoss(cfg.DATASET.NUM_CLASSES, ignore_label=cfg.TRAIN.IGNORE_LABEL)


def _contrast(cfg: CfgNode) -> PixelContrast | None:
    has_embedding = bool(cfg.MODEL.HEAD.get("EMBEDDING"))
    if cfg.LOSS.CONTRAST.WEIGHT > 0 and not has_embedding:
        raise UserError("LOSS.CONTRAST.WEIGHT compares embeddings; set MODEL.HEAD {NAME: conv1x1, EMBEDDING: 256}")
    if has_embedding and cfg.LOSS.CONTRAST.WEIGHT == 0:
        raise UserError("MODEL.HEAD.EMBEDDING would not be trained; set LOSS.CONTRAST.WEIGHT, or EMBEDDING to null")
    if not has_embedding:
        return None
    return PixelContrast(
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        start=cfg.LOSS.CONTRAST.START,
        max_samples=cfg.LOSS.CONTRAST.MAX_SAMPLES,
        max_views=cfg.LOSS.CONTRAST.MAX_VIEWS,
    )


def class_weights(cfg: CfgNode, info: DatasetInfo) -> Sequence[float] | None:
    """Loss weights of the classes, from ``LOSS.CLASS_WEIGHTS`` or as published; None without ``LOSS.CLASS_BALANCE``.

    Raises:
        UserError: the file cannot be read, or describes other classes.
    """
    if not cfg.LOSS.CLASS_BALANCE:
        return None
    if not cfg.LOSS.CLASS_WEIGHTS:
        return info.class_weights
    return read_suggested_weights(Path(cfg.LOSS.CLASS_WEIGHTS), info)
