"""How images are run through a network, from a configuration."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import dataset_info
from ovenet.data.info import LONG_SIDE, DatasetInfo
from ovenet.deployment import ConvertedNetwork, choose_runtime
from ovenet.inference.forward import AUTOCAST
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.models import Segmentor
from ovenet.models.cast_weights import cast_weights
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger

_OWN_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile


def build_predictor(
    model: nn.Module, cfg: CfgNode, device: torch.device, *, single_scale: bool = False
) -> SlidingWindowInferencer:
    """Inference as the ``TEST`` section describes it.

    Args:
        model: on `device`.
        cfg: the configuration.
        device: of this process.
        single_scale: leave out ``TEST.SCALE_LIST``, ``TEST.FLIP_TEST``, ``TEST.PROTOCOL`` and sums of exponentials, as
            validation during training does, and ``TEST.CUDA_GRAPH``: a model in training may get other weights, of
            which a graph would know nothing.
    """
    normalization = cast(Normalization, model.normalization)
    settings = inference_settings(cfg, dataset_info(cfg), normalization, single_scale=single_scale)
    return SlidingWindowInferencer(model, settings, device)


def inference_settings(
    cfg: CfgNode, info: DatasetInfo, normalization: Normalization, *, single_scale: bool = False
) -> InferenceSettings:
    """What the ``TEST`` section, the dataset and the model say about inference."""
    width, height = cfg.TEST.IMAGE_SIZE
    rule, first_rule = info.evaluation, None
    protocol = "default" if single_scale else cfg.TEST.PROTOCOL
    if protocol != "default" and rule.resize != "long_side":
        rule, first_rule = LONG_SIDE, rule
    elif protocol == "ovenet":
        get_logger().warning(
            "TEST.PROTOCOL ovenet changes nothing on %s: the long side is scaled to TEST.BASE_SIZE anyway", info.name
        )
    return InferenceSettings(
        base_size=cfg.TEST.BASE_SIZE or None,
        window_size=(height, width),
        scales=(1.0,) if single_scale else tuple(float(s) for s in cfg.TEST.SCALE_LIST),
        flip=cfg.TEST.FLIP_TEST and not single_scale,
        score="softmax" if single_scale and cfg.TEST.SCORE == "exp" else cfg.TEST.SCORE,
        output_index=cfg.TEST.OUTPUT_INDEX,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        batch_size=cfg.TEST.BATCH_SIZE_PER_GPU,
        precision=cfg.TEST.PRECISION,
        rule=rule,
        flip_pairs=info.flip_pairs,
        normalization=normalization,
        tf32=cfg.TEST.TF32,
        cuda_graph=not single_scale and cfg.TEST.CUDA_GRAPH == "auto" and cfg.TEST.COMPILE not in _OWN_GRAPHS,
        base_box=tuple(cfg.TEST.BASE_BOX) or None,
        stride=tuple(reversed(cfg.TEST.STRIDE)) or None,
        first_rule=first_rule,
        padded_windows=protocol == "hrnet",
    )


def view_settings(cfg: CfgNode) -> dict[str, Any]:
    """What is averaged into a score, as results and temperature files name it."""
    test = cfg.TEST
    return {
        "scales": list(test.SCALE_LIST),
        "flip": test.FLIP_TEST,
        "protocol": test.PROTOCOL,
        "score": test.SCORE,
    }


def inference_model(model: Segmentor, cfg: CfgNode, device: torch.device) -> nn.Module:
    """A trained model as it is fastest for inference, on its device, or in the runtime of ``TEST.RUNTIME``.

    Raises:
        UserError: the runtime is not installed, or does not do what ``TEST`` asks for.
    """
    runtime = choose_runtime(cfg.TEST.RUNTIME, device)
    model = fuse_conv_bn(model) if cfg.TEST.FUSE_CONV_BN else model
    if runtime != "torch":
        return ConvertedNetwork(model, runtime, output_index=cfg.TEST.OUTPUT_INDEX, precision=cfg.TEST.PRECISION)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    if device.type == "cuda" and cfg.TEST.PRECISION in AUTOCAST:
        cast_weights(model, AUTOCAST[cfg.TEST.PRECISION])
    if device.type == "cuda" and cfg.TEST.CUDA_GRAPH == "auto" and cfg.TEST.COMPILE in _OWN_GRAPHS:
        get_logger().info("TEST.CUDA_GRAPH: off, as TEST.COMPILE %s makes graphs of its own", cfg.TEST.COMPILE)
    return model if cfg.TEST.COMPILE == "none" else cast(nn.Module, torch.compile(model, mode=cfg.TEST.COMPILE))
