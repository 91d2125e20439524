"""The network, its weights and its optimizer, from a configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.config.defaults import OCR_NAMES
from ovenet.engine.checkpoint import read_checkpoint, weights_of
from ovenet.engine.optim import build_optimizer as make_optimizer
from ovenet.models import SeedFusion, Segmentor, freeze_main_network
from ovenet.models.backbones import HRNet, StageSpec
from ovenet.models.heads import OCRHead, OffsetHead, PlainHead
from ovenet.models.necks import ConcatNeck
from ovenet.models.weights import MIN_MATCHED, LoadReport, load_offset_branch, load_weights, published_name
from ovenet.utils.logging import get_logger


def build_model(cfg: CfgNode) -> Segmentor:
    """The network that the config describes, at its random start; see `initialize_model` for weights from files."""
    extra = cfg.MODEL.EXTRA
    align_corners = cfg.MODEL.ALIGN_CORNERS
    branch = extra.OFFSET_BRANCH
    backbone = HRNet(
        [_stage_spec(extra[f"STAGE{n}"]) for n in (1, 2, 3, 4)],
        offset_stage=branch,
        offset_stages={n: _stage_spec(extra[f"STAGE{n}_2"]) for n in (2, 3, 4)},
        align_corners=align_corners,
        recompute=cfg.TRAIN.CHECKPOINT_ACTIVATIONS,
    )
    neck = ConcatNeck(backbone.out_channels, align_corners=align_corners)
    head = _build_head(cfg, neck.out_channels)
    if not branch:
        return Segmentor(backbone, neck, head)
    offset_neck = ConcatNeck(backbone.offset_channels, align_corners=align_corners)
    offset_head = OffsetHead(offset_neck.out_channels, max_offset=extra.OFFSET_THRESHOLD)
    fusion = SeedFusion(num_refinements=extra.ITERATIVE_REFINEMENT, fuse_logits=extra.LOGITS)
    model = Segmentor(backbone, neck, head, offset_neck=offset_neck, offset_head=offset_head, fusion=fusion)
    if cfg.MODEL.FREEZED_PAR:
        freeze_main_network(model)
    return model


def _stage_spec(node: CfgNode) -> StageSpec:
    return StageSpec(node.NUM_MODULES, tuple(node.NUM_BLOCKS), tuple(node.NUM_CHANNELS), node.BLOCK)


def _build_head(cfg: CfgNode, in_channels: int) -> nn.Module:
    num_classes, kernel = cfg.DATASET.NUM_CLASSES, cfg.MODEL.EXTRA.FINAL_CONV_KERNEL
    if cfg.MODEL.NAME not in OCR_NAMES:
        return PlainHead(in_channels, num_classes, final_kernel=kernel)
    ocr = cfg.MODEL.OCR
    return OCRHead(
        in_channels,
        num_classes,
        mid_channels=ocr.MID_CHANNELS,
        key_channels=ocr.KEY_CHANNELS,
        dropout=ocr.DROPOUT,
        final_kernel=kernel,
    )


def load_checkpoint(model: Segmentor, path: str | Path, *, allow_partial: bool = False) -> LoadReport:
    """Loads all weights of a trained model, a published one or one trained here.

    Args:
        model: changed in place.
        path: the file.
        allow_partial: accept a file that lacks some of them.

    Raises:
        ValueError: the file cannot be read safely, or does not hold every tensor of the model.
    """
    report = load_weights(model, weights_of(read_checkpoint(path), path), str(path), whole=True)
    report.require(1.0, allow_partial=allow_partial)
    return report


def initialize_model(model: Segmentor, cfg: CfgNode) -> list[LoadReport]:
    """Loads the weights that training starts from: ``MODEL.PRETRAINED`` and ``MODEL.OFFSET_PRETRAINED``.

    Raises:
        ValueError: a file cannot be read safely, or matches less than 95 % of what it should initialise.
    """
    reports = []
    if path := cfg.MODEL.PRETRAINED:
        reports.append(load_weights(model, weights_of(read_checkpoint(path), path), path, whole=False))
    if path := cfg.MODEL.OFFSET_PRETRAINED:
        reports.append(load_offset_branch(model, weights_of(read_checkpoint(path), path), path))
    for report in reports:
        get_logger().info("%s", report)
        report.require(MIN_MATCHED, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
    return reports


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained."""
    has_ocr = cfg.MODEL.NAME in OCR_NAMES

    def lr_factor(name: str) -> float:
        published = published_name(name, has_ocr=has_ocr)
        return cfg.TRAIN.NONBACKBONE_MULT if any(word in published for word in cfg.TRAIN.NONBACKBONE_KEYWORDS) else 1.0

    return make_optimizer(
        model,
        cfg.TRAIN.OPTIMIZER,
        lr=cfg.TRAIN.LR,
        momentum=cfg.TRAIN.MOMENTUM,
        weight_decay=cfg.TRAIN.WD,
        nesterov=cfg.TRAIN.NESTEROV,
        lr_factor=lr_factor,
        decay_on_norm=not cfg.TRAIN.NO_DECAY_ON_NORM,
    )


def prediction_names(cfg: CfgNode) -> tuple[str, ...]:
    """What the model predicts, see `OVeNetOutput.predictions`."""
    return ("initial", "seed", "fused") if cfg.MODEL.EXTRA.OFFSET_BRANCH else ("fused",)
