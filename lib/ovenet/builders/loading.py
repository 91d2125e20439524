"""Loads trained networks from files of weights and exported files, with the configuration that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import dataset_info, require_rgb, training_corruptions
from ovenet.builders.inference import inference_model, inference_settings, view_settings
from ovenet.builders.models import build_model, metadata_of, prediction_names, without_seed
from ovenet.config import changed_settings, check_parts, load_config, load_config_text
from ovenet.config.schema import affects_test
from ovenet.data.catalog import find_dataset
from ovenet.data.info import DatasetInfo
from ovenet.data.remote import data_root
from ovenet.deployment import FileNetwork, is_exported
from ovenet.deployment.formats import read_about
from ovenet.errors import UserError
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.temperature import FITTED, chosen_temperatures, other_settings
from ovenet.inference.temperature import KEY as TEMPERATURE
from ovenet.models import Segmentor
from ovenet.models.pretrained import pretrained_of
from ovenet.models.settings import NO_SEED
from ovenet.models.weight_files import WITHOUT_SEED, read_checkpoint, weights_of
from ovenet.models.weights import load_weights
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger

_SIZES_SEEN = ("TEST.IMAGE_SIZE", "TEST.BASE_SIZE", "TEST.BASE_BOX")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with its configuration and classes.

    Attributes:
        path: file of the weights, or exported file.
        network: on the CPU; a segmentor in evaluation mode, or the network of an exported file.
        cfg: its configuration.
        info: its classes.
        normalization: of the pixels, as in training.
        training_config: the configuration that a file of weights carries, as YAML; None where it carries none.
        temperatures: what ``TEST.TEMPERATURE`` asks for, by prediction name; empty for none.
    """

    path: Path
    network: Segmentor | FileNetwork
    cfg: CfgNode
    info: DatasetInfo
    normalization: Normalization
    training_config: str | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def model(self) -> Segmentor:
        """The segmentor.

        Raises:
            UserError: the network is that of an exported file.
        """
        if not isinstance(self.network, Segmentor):
            raise UserError(f"{self.path}: an exported file; name the weights that it was made from")
        return self.network

    @property
    def settings(self) -> InferenceSettings:
        """How the ``TEST`` section runs images."""
        settings = inference_settings(self.cfg, self.info, self.normalization)
        settings = replace(settings, temperatures=self.temperatures)
        if isinstance(self.network, Segmentor):
            return settings
        return replace(settings, window_size=self.network.about.size or settings.window_size, output_index=-1)

    def on(self, device: torch.device) -> tuple[nn.Module, torch.device]:
        """The network as it is fastest for inference, see `inference_model`, and its device.

        Args:
            device: for a segmentor; exported files run on the CPU.
        """
        if isinstance(self.network, Segmentor):
            return inference_model(self.network, self.cfg, device), device
        return self.network, torch.device("cpu")


def load_model(
    path: str | Path,
    config: str | Path | CfgNode | None = None,
    overrides: Sequence[str] = (),
    *,
    runtime: str | None = None,
) -> TrainedModel:
    """The network of a file of weights, or of an exported file.

    Args:
        path: the file.
        config: its configuration or experiment file; None takes what the file carries, or the experiment of a published
            file (see `ovenet.models.pretrained`), which is known by its name.
        overrides: ``KEY VALUE …`` that win over the configuration.
        runtime: of an exported file; None takes ``TEST.RUNTIME`` if that is not ``torch``, and both None and ``auto``
            mean the runtime that the file is made for.

    Raises:
        UserError: the file cannot be read safely, carries no configuration, or does not fit the configuration.
    """
    path = Path(path)
    if is_exported(path):
        return _load_exported(path, config, overrides, runtime)
    content = read_checkpoint(path)
    carried = content["config"] if isinstance(content.get("config"), str) else None
    if config is None and carried is None and (published := pretrained_of(path)):
        config = published.experiment
        overrides = [*(text for setting in published.settings.items() for text in setting), *overrides]
    cfg = _configuration(config, carried, path, overrides)
    if content.get(WITHOUT_SEED) and cfg.MODEL.SEED.NAME != NO_SEED:
        get_logger().info("%s: the network without its seed, since S_i was better (TRAIN.BEST)", path)
        cfg = without_seed(cfg)
    info = _carried_info(content, cfg, path) if config is None else dataset_info(cfg)
    model = build_model(cfg)
    report = load_weights(model, weights_of(content, path), str(path), whole=True)
    get_logger().info("%s", report)
    report.require(1.0, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
    normalization = _carried_normalization(content, path) or model.normalization
    if len(normalization.mean) != model.backbone.in_channels:
        raise UserError(
            f"{path}: its normalization is for {len(normalization.mean)} channels, and its network takes images with "
            f"{model.backbone.in_channels}; save the weights again"
        )
    model.backbone.normalization = normalization
    model.metadata = metadata_of(cfg, info, normalization)
    temperatures = _temperatures(cfg, path, content.get(TEMPERATURE))
    return TrainedModel(path, model.eval(), cfg, info, normalization, carried, temperatures)


def _load_exported(
    path: Path, config: str | Path | CfgNode | None, overrides: Sequence[str], runtime: str | None
) -> TrainedModel:
    about = read_about(path)
    cfg = _configuration(config, about.config, path, overrides)
    check_parts(cfg)
    if runtime is None and cfg.TEST.RUNTIME != "torch":
        runtime = cfg.TEST.RUNTIME
    network = FileNetwork(path, None if runtime == "auto" else runtime, precision=cfg.TEST.PRECISION)
    temperatures = _temperatures(cfg, path, about.temperature)
    info = DatasetInfo.from_dict(about.dataset_info)
    return TrainedModel(path, network, cfg, info, about.normalization, temperatures=temperatures)


def _temperatures(cfg: CfgNode, path: Path, carried: Any) -> dict[str, float]:
    """What ``TEST.TEMPERATURE`` asks for; warns of temperatures that were fitted for other averages of scores."""
    temperatures = chosen_temperatures(cfg.TEST.TEMPERATURE, path, carried)
    if cfg.TEST.TEMPERATURE == FITTED and (names := other_settings(path, view_settings(cfg))):
        get_logger().warning(
            "%s: its temperatures were fitted with other %s; fit them again: ovenet calibrate --overwrite",
            path,
            ", ".join(names),
        )
    return temperatures


def _configuration(
    config: str | Path | CfgNode | None, carried: str | None, path: Path, overrides: Sequence[str]
) -> CfgNode:
    if isinstance(config, CfgNode):
        return load_config_text(config.dump(), "the configuration", overrides) if overrides else config
    if config is not None:
        return load_config(config, overrides)
    if carried is None:
        raise UserError(f"{path}: holds weights but no configuration; name its experiment file (--cfg FILE)")
    return load_config_text(carried, str(path), overrides)


def _carried_normalization(content: Mapping[str, Any], path: Path) -> Normalization | None:
    """How pixels were normalised in training; None for files that do not say."""
    if "normalization" not in content:
        return None
    carried = content["normalization"]
    try:
        normalization = Normalization(tuple(carried["mean"]), tuple(carried["std"]), carried["channel_order"])
        is_whole = len(normalization.mean) == len(normalization.std) >= 1 and min(normalization.std) > 0
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its normalization is damaged ({error!r}); save the weights again") from error
    if not is_whole:
        raise UserError(
            f"{path}: its normalization is {carried}; expected a mean for each channel, and deviations above 0"
        )
    return normalization


def _carried_info(content: Mapping[str, Any], cfg: CfgNode, path: Path) -> DatasetInfo:
    """The classes that a checkpoint carries, or the catalog's for files written before checkpoints carried them."""
    if "dataset_info" in content:
        try:
            return DatasetInfo.from_dict(content["dataset_info"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: its dataset_info is damaged ({error!r}); name the experiment file (--cfg FILE)"
            ) from error
    folder = data_root(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    return find_dataset(cfg.DATASET.DATASET, folder, num_classes=cfg.DATASET.NUM_CLASSES)


def corruptions_in_training(trained: TrainedModel) -> tuple[str, ...]:
    """The kinds of corruption that weights were trained with, as far as the file says."""
    text = trained.training_config
    return training_corruptions(load_config_text(text, str(trained.path)) if text else trained.cfg)


def predictor_for_test(trained: TrainedModel, device: torch.device) -> SlidingWindowInferencer:
    """Inference on the dataset of the configuration, which need not be the one that the file carries.

    Raises:
        UserError: an exported file lacks scores that a test counts.
    """
    cfg, network = trained.cfg, trained.network
    if isinstance(network, FileNetwork):
        missing = [name for name in prediction_names(cfg) if name not in network.about.tensors]
        if missing:
            raise UserError(
                f"{trained.path}: gives no {missing[0]} scores, which a test counts; export them too (--tensors)"
            )
    if trained.training_config and (changes := settings_unlike_training(trained.training_config, cfg)):
        get_logger().warning(
            "%s was trained with other settings: %s; the new ones hold, and scores may be worse for it",
            trained.path,
            "; ".join(changes),
        )
    if (kind := cfg.TEST.CORRUPTION) and kind in corruptions_in_training(trained):
        get_logger().warning(
            "TEST.CORRUPTION %s: %s was trained with it; its score is no measure of robustness to the unseen",
            kind,
            trained.path,
        )
    require_rgb(trained.normalization)
    settings = replace(trained, info=dataset_info(cfg)).settings
    model, device = trained.on(device)
    return SlidingWindowInferencer(model, settings, device)


def load_predictor(cfg: CfgNode, model_file: Path, device: torch.device) -> SlidingWindowInferencer:
    """Inference with trained weights, see `load_model` and `predictor_for_test`."""
    return predictor_for_test(load_model(model_file, cfg), device)


def settings_unlike_training(text: str, cfg: CfgNode) -> list[str]:
    """Settings of the network and of its input's size that differ from those that weights were trained with.

    Args:
        text: the configuration that the weights carry.
        cfg: the present one.

    Returns:
        ``KEY was OLD, is NEW``.
    """
    changes = changed_settings(text, cfg)
    return [
        change
        for key, change in changes.items()
        if key in _SIZES_SEEN or (key.startswith("MODEL.") and affects_test(key))
    ]
