"""Inference, from a configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import dataset_info
from ovenet.builders.models import build_model
from ovenet.builders.runs import settings_unlike_training
from ovenet.data.info import DatasetInfo
from ovenet.engine.checkpoint import read_checkpoint, weights_of
from ovenet.evaluation.inference import InferenceSettings, ScorePredictor
from ovenet.models.folding import folded
from ovenet.models.weights import load_weights
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger


def build_predictor(
    model: nn.Module, cfg: CfgNode, device: torch.device, *, single_scale: bool = False
) -> ScorePredictor:
    """Inference as the ``TEST`` section describes it.

    Args:
        model: on `device`.
        cfg: the configuration.
        device: of this process.
        single_scale: leave out ``TEST.SCALE_LIST`` and ``TEST.FLIP_TEST``, as validation during training does.
    """
    settings = inference_settings(cfg, dataset_info(cfg), model.normalization, single_scale=single_scale)
    return ScorePredictor(model, settings, device)


def inference_settings(
    cfg: CfgNode, info: DatasetInfo, normalization: Normalization, *, single_scale: bool = False
) -> InferenceSettings:
    """What the ``TEST`` section, the dataset and the model say about inference."""
    width, height = cfg.TEST.IMAGE_SIZE
    return InferenceSettings(
        base_size=cfg.TEST.BASE_SIZE,
        window_size=(height, width),
        scales=(1.0,) if single_scale else tuple(float(s) for s in cfg.TEST.SCALE_LIST),
        flip=cfg.TEST.FLIP_TEST and not single_scale,
        score=cfg.TEST.SCORE,
        output_index=cfg.TEST.OUTPUT_INDEX,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        batch_size=cfg.TEST.BATCH_SIZE_PER_GPU,
        precision=cfg.TEST.PRECISION,
        rule=info.evaluation,
        mirrored_classes=info.mirrored_classes,
        normalization=normalization,
        tf32=cfg.TEST.TF32,
        base_box=tuple(cfg.TEST.BASE_BOX) or None,
        stride=tuple(reversed(cfg.TEST.STRIDE)) or None,
    )


def load_predictor(cfg: CfgNode, model_file: Path, device: torch.device) -> ScorePredictor:
    """Inference with trained weights.

    Raises:
        UserError: see `load_checkpoint`.
    """
    model = build_model(cfg)
    content = read_checkpoint(model_file)
    report = load_weights(model, weights_of(content, model_file), str(model_file), whole=True)
    get_logger().info("%s", report)
    report.require(1.0, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
    if isinstance(text := content.get("config"), str) and (changes := settings_unlike_training(text, cfg)):
        get_logger().warning(
            "%s was trained with other settings: %s; the new ones hold, and scores may be worse for it",
            model_file,
            "; ".join(changes),
        )
    return build_predictor(inference_model(model, cfg, device), cfg, device)


def inference_model(model: nn.Module, cfg: CfgNode, device: torch.device) -> nn.Module:
    """A trained model as it is fastest for inference, on its device."""
    model = folded(model) if cfg.TEST.FOLD_BATCHNORM else model
    model = model.to(device, memory_format=torch.channels_last).eval()
    return model if cfg.TEST.COMPILE == "none" else torch.compile(model, mode=cfg.TEST.COMPILE)
