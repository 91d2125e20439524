"""Trained networks, and how images are run through them, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.models import build_model, dataset_info, prediction_names
from ovenet.config import changed_settings, check_parts, load_config_text
from ovenet.config.schema import is_of_the_test
from ovenet.data.info import LONG_SIDE, DatasetInfo
from ovenet.deployment import ConvertedNetwork, FileNetwork, choose_runtime, is_exported
from ovenet.deployment.formats import read_about
from ovenet.engine.checkpoint import read_checkpoint, weights_of
from ovenet.errors import UserError
from ovenet.evaluation.forward import AUTOCAST
from ovenet.evaluation.inference import InferenceSettings, SlidingWindowInferencer
from ovenet.models import Segmentor
from ovenet.models.cast_weights import cast_weights
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.weights import load_weights
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger

_SIZES_SEEN = ("TEST.IMAGE_SIZE", "TEST.BASE_SIZE", "TEST.BASE_BOX")
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
    settings = inference_settings(cfg, dataset_info(cfg), model.normalization, single_scale=single_scale)
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
        base_size=cfg.TEST.BASE_SIZE,
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


def load_predictor(cfg: CfgNode, model_file: Path, device: torch.device) -> SlidingWindowInferencer:
    """Inference with trained weights.

    Raises:
        UserError: see `load_checkpoint`.
    """
    if is_exported(model_file):
        network, settings, _ = exported_model(model_file, None if cfg.TEST.RUNTIME == "torch" else cfg.TEST.RUNTIME)
        missing = [name for name in prediction_names(cfg) if name not in network.about.tensors]
        if missing:
            raise UserError(
                f"{model_file}: gives no {missing[0]} scores, which a test counts; export them too (--tensors)"
            )
        own = inference_settings(cfg, dataset_info(cfg), network.normalization)
        return SlidingWindowInferencer(network, replace(own, window_size=settings.window_size), torch.device("cpu"))
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


def settings_unlike_training(text: str, cfg: CfgNode) -> list[str]:
    """Settings of the network and of its input's size that differ from those that weights were trained with.

    Args:
        text: the configuration that the weights carry.
        cfg: the present one.

    Returns:
        ``KEY was OLD, is NEW``.
    """
    changes = changed_settings(text, cfg)
    return [change for key, change in changes.items() if key in _SIZES_SEEN or _is_of_the_network(key)]


def _is_of_the_network(key: str) -> bool:
    return key.startswith("MODEL.") and is_of_the_test(key)


def inference_model(model: Segmentor, cfg: CfgNode, device: torch.device) -> nn.Module:
    """A trained model as it is fastest for inference, on its device, or in the runtime of ``TEST.RUNTIME``.

    Raises:
        UserError: the runtime is not installed, or does not do what ``TEST`` asks for.
    """
    runtime = choose_runtime(cfg.TEST.RUNTIME, device)
    model = fuse_conv_bn(model) if cfg.TEST.FUSE_CONV_BN else model
    if runtime != "torch":
        return ConvertedNetwork(model, runtime, output_index=cfg.TEST.OUTPUT_INDEX, precision=cfg.TEST.PRECISION)
    model = model.to(device, memory_format=torch.channels_last).eval()
    if device.type == "cuda" and cfg.TEST.PRECISION in AUTOCAST:
        cast_weights(model, AUTOCAST[cfg.TEST.PRECISION])
    if device.type == "cuda" and cfg.TEST.CUDA_GRAPH == "auto" and cfg.TEST.COMPILE in _OWN_GRAPHS:
        get_logger().info("TEST.CUDA_GRAPH: off, as TEST.COMPILE %s makes graphs of its own", cfg.TEST.COMPILE)
    return model if cfg.TEST.COMPILE == "none" else torch.compile(model, mode=cfg.TEST.COMPILE)


def exported_model(
    path: Path, runtime: str | None, overrides: Sequence[str] = ()
) -> tuple[FileNetwork, InferenceSettings, DatasetInfo]:
    """The network of an exported file, how images are run through it, and its classes.

    Args:
        path: the file.
        runtime: None or ``auto`` is what the file is made for.
        overrides: ``KEY VALUE …`` that win over the settings that it carries.

    Raises:
        UserError: the file cannot be read or run so.
    """
    about = read_about(path)
    cfg = load_config_text(about.config, str(path), overrides)
    check_parts(cfg)
    network = FileNetwork(path, None if runtime in (None, "auto") else runtime, precision=cfg.TEST.PRECISION)
    info = DatasetInfo.from_dict(about.dataset_info)
    settings = inference_settings(cfg, info, about.normalization)
    return network, replace(settings, window_size=about.size or settings.window_size, output_index=-1), info
