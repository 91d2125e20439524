"""The network and its initial weights, from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from yacs.config import CfgNode

from ovenet.config import check_parts, load_config_text
from ovenet.config.checks import part_settings
from ovenet.config.schema import VERSION
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.inference.settings import InferenceKeys
from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.models.factory import initialize_backbone
from ovenet.models.norm import set_momentum
from ovenet.models.pretrained import weights_path
from ovenet.models.registry import SEEDS
from ovenet.models.settings import NO_SEED, PARTS
from ovenet.models.weight_files import read_weights
from ovenet.models.weights import MIN_MATCHED, LoadReport, load_offset_branch
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger
from ovenet.utils.meta import meta_device

OWN_CLASSES = "classes"  # name of the dataset of a model whose classes were given in Python
_DEFAULT_WINDOW = InferenceKeys().image_size  # (width, height)


def build_model(cfg: CfgNode) -> Segmentor:
    """The network of the configuration, randomly initialised; `initialize_model` loads weights into it.

    Raises:
        UserError: a part or an argument of one does not exist, or parts do not go together.
    """
    check_parts(cfg)
    nodes = cfg.MODEL
    model = build_segmentor(
        nodes.BACKBONE.NAME,
        num_classes=cfg.DATASET.NUM_CLASSES,
        head=nodes.HEAD.NAME,
        neck=nodes.NECK.NAME or None,
        seed=None if nodes.SEED.NAME == NO_SEED else nodes.SEED.NAME,
        align_corners=nodes.ALIGN_CORNERS,
        backbone_args=part_settings(nodes.BACKBONE),
        neck_args=part_settings(nodes.NECK),
        head_args=part_settings(nodes.HEAD),
        seed_args=part_settings(nodes.SEED),
        checkpoint_activations=cfg.TRAIN.CHECKPOINT_ACTIVATIONS,
    )
    if nodes.BN_MOMENTUM:
        set_momentum(model, nodes.BN_MOMENTUM)
    if nodes.FROZEN:
        model.freeze(nodes.FROZEN)
    return model


def model_config(model: Segmentor) -> CfgNode:
    """The configuration of a model that was built by names: `build_model` gives the same network.

    Images are run at their own size; all that is not of the network has its default.

    Raises:
        UserError: the model was composed from parts in another way.
    """
    recipe = model.recipe
    if recipe is None:
        raise UserError(
            "this model was composed from its parts, which a file cannot name; build it with ovenet.create_model, and "
            "register own parts by name (docs/extending.md)"
        )
    names = {**recipe, "neck": recipe["neck"] or "", "seed": recipe["seed"] or NO_SEED}
    parts = {
        part.upper(): {
            "NAME": names[part],
            **{key.upper(): _plain(value) for key, value in recipe[f"{part}_args"].items()},
        }
        for part in PARTS
    }
    width, height = reversed(model.backbone.fixed_size or tuple(reversed(_DEFAULT_WINDOW)))
    content = {
        "VERSION": VERSION,
        "MODEL": {"ALIGN_CORNERS": recipe["align_corners"], **parts},
        "DATASET": {"DATASET": OWN_CLASSES, "NUM_CLASSES": recipe["num_classes"]},
        "TEST": {"BASE_SIZE": 0, "IMAGE_SIZE": [width, height]},
    }
    return load_config_text(yaml.safe_dump(content), "the model")


def metadata_of(cfg: CfgNode, info: DatasetInfo, normalization: Normalization) -> dict[str, Any]:
    """What a file of weights carries, so that it can be used without the config file and the dataset's description."""
    return {
        "config": cfg.dump(),
        "dataset": info.name,
        "class_names": list(info.class_names),
        "palette": [list(color) for color in info.palette],
        "dataset_info": info.as_dict(),
        "normalization": asdict(normalization),
    }


def _plain(value: Any) -> Any:
    """A part's argument as YAML has it."""
    if isinstance(value, Mapping):
        return {str(key).upper(): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def model_on_meta(cfg: CfgNode) -> Segmentor:
    """The network on PyTorch's meta device: shapes and attributes, no memory for weights."""
    with meta_device():
        return build_model(cfg)


def describe_network(cfg: CfgNode) -> str:
    """One line: the number of parameters, and the multiply-adds of a forward pass over one training crop."""
    width, height = cfg.TRAIN.IMAGE_SIZE
    model = model_on_meta(cfg).eval()
    return (
        f"{count_parameters(model) / 1e6:.2f} million parameters, "
        f"{count_multiply_adds(model, height, width) / 1e9:.1f} GMAC for a crop of {width}x{height}"
    )


def initialize_model(model: Segmentor, cfg: CfgNode) -> list[LoadReport]:
    """Loads the weights that training starts from: ``MODEL.BACKBONE.PRETRAINED`` and ``MODEL.SEED.PRETRAINED``.

    Raises:
        UserError: a file cannot be read safely, or has less than 95 % of the tensors that it should initialise.
    """
    reports = initialize_backbone(model, cfg.MODEL.BACKBONE.PRETRAINED, "MODEL.BACKBONE.PRETRAINED ")
    if path := cfg.MODEL.SEED.PRETRAINED:
        reports.append(load_offset_branch(model, read_weights(weights_path(path)), f"MODEL.SEED.PRETRAINED {path}"))
    for report in reports:
        get_logger().info("%s", report)
        report.require(MIN_MATCHED, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
        if report.mismatched:
            left_out = sorted({entry.split(":")[0].rpartition(".")[0] for entry in report.mismatched})
            get_logger().info("%s: all but %s, which are drawn at random", report.source, ", ".join(left_out))
    return reports


def check_frozen_parts(model: Segmentor, cfg: CfgNode, reports: Sequence[LoadReport]) -> None:
    """Checks that frozen parts have weights from a file; not for resumed runs, whose checkpoint has them.

    Args:
        model: the network that will be trained.
        cfg: the configuration.
        reports: from `initialize_model`.

    Raises:
        UserError: the whole backbone is frozen and randomly initialised; other parts are warned of.
    """
    loaded = [name for report in reports for name in report.loaded]
    for part in cfg.MODEL.FROZEN:
        if not any(True for _ in model.part(part).parameters()) or any(name.startswith(f"{part}.") for name in loaded):
            continue
        why = (
            f"MODEL.FROZEN (MODEL.FREEZED_PAR in published files) is {cfg.MODEL.FROZEN}, and no weights are loaded "
            f"into {part}"
        )
        what = "MODEL.BACKBONE.PRETRAINED (MODEL.PRETRAINED in published files)"
        if part == "backbone":
            raise UserError(f"{why}: what is trained would use the features of a random network; set {what}")
        get_logger().warning("%s: %s stays as it was drawn at random; %s may name a file that has it", why, part, what)


def prediction_names(cfg: CfgNode) -> tuple[str, ...]:
    """Names of the model's predictions, see `OVeNetOutput.predictions`."""
    name = cfg.MODEL.SEED.NAME
    has_seed = name != NO_SEED and SEEDS[name].has_seed
    return ("initial", "seed", "fused") if has_seed else ("fused",)
