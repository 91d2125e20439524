"""The dataset's classes, the network, its weights, its optimizer and its loss, from a configuration or from names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ovenet.audit import read_suggested_weights
from ovenet.config import check_parts
from ovenet.config.checks import part_settings
from ovenet.config.schema import section
from ovenet.data.catalog import find_dataset
from ovenet.data.info import DatasetInfo
from ovenet.engine.optim import build_optimizer as make_optimizer
from ovenet.engine.settings import OptimizerSettings
from ovenet.errors import UserError
from ovenet.losses import PixelContrast, QueryLoss, SegmentationCriterion, build_losses
from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.models.interfaces import Part
from ovenet.models.norm import set_momentum
from ovenet.models.registry import HEADS
from ovenet.models.settings import NO_SEED
from ovenet.models.weight_files import read_weights
from ovenet.models.weights import MIN_MATCHED, LoadReport, load_offset_branch, load_weights
from ovenet.utils.logging import get_logger

TIMM = "timm"
PARAMETER_GROUPS = {"backbone": "BACKBONE", "neck": "HEAD", "head": "HEAD", "seed": "SEED"}  # keys of TRAIN.LR_MULT
_OFFSET_HEAD = "seed.head."
AUXILIARY_WEIGHT = 0.4  # loss weight of every score map but the final one, as published with OCR


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """The dataset of the configuration.

    Raises:
        UserError: there is no such dataset, or ``DATASET.NUM_CLASSES`` is not its number of classes.
    """
    name, folder = cfg.DATASET.DATASET, Path(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    info = find_dataset(name, folder, num_classes=cfg.DATASET.NUM_CLASSES)
    if info.num_classes != cfg.DATASET.NUM_CLASSES:
        raise UserError(
            f"DATASET.NUM_CLASSES is {cfg.DATASET.NUM_CLASSES}, but {info.name} has {info.num_classes} classes; "
            f"set it to {info.num_classes}"
        )
    return info


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


def model_on_meta(cfg: CfgNode) -> Segmentor:
    """The network on PyTorch's meta device: shapes and attributes, no memory for weights."""
    with torch.device("meta"):
        return build_model(cfg)


def describe_network(cfg: CfgNode) -> str:
    """One line: the number of parameters, and the multiply-adds of a forward pass over one training crop."""
    width, height = cfg.TRAIN.IMAGE_SIZE
    model = model_on_meta(cfg).eval()
    return (
        f"{count_parameters(model) / 1e6:.2f} million parameters, "
        f"{count_multiply_adds(model, height, width) / 1e9:.1f} GMAC for a crop of {width}x{height}"
    )


def create_model(
    backbone: str,
    *,
    num_classes: int = 19,
    head: str = "fcn",
    neck: str | None = None,
    seed: str | None = None,
    pretrained: str | Path | bool | None = None,
    align_corners: bool | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    neck_args: Mapping[str, Any] | None = None,
    head_args: Mapping[str, Any] | None = None,
    seed_args: Mapping[str, Any] | None = None,
) -> Segmentor:
    """A model from names, without a configuration.

        model = ovenet.create_model("convnext_tiny", head="ocr", seed="shared", num_classes=11)

    Args:
        backbone: a name of `ovenet.list_backbones`.
        num_classes: ``K``.
        head: a name of `ovenet.list_heads`.
        neck: a name of `ovenet.list_necks`; None is the head's own.
        seed: source of the offsets, a name of `ovenet.list_seeds`; None is the baseline.
        pretrained: a file of weights, or ``timm`` for timm's; None loads the weights that come with the backbone, if
            any do, and False loads none.
        align_corners: convention of all resizing of maps. None is False for head ``fcn`` on an HRNet, as HRNet and
            OVeNet without OCR were published, and True for all else; networks of mmsegmentation need False.
        backbone_args: arguments of the backbone, see `ovenet.describe`.
        neck_args: arguments of the neck.
        head_args: arguments of the head.
        seed_args: arguments of the seed.

    Raises:
        UserError: a part does not exist, an argument or a file is wrong, or the parts do not go together.
    """
    model = build_segmentor(
        backbone,
        num_classes=num_classes,
        head=head,
        neck=neck,
        seed=seed,
        align_corners=align_corners,
        backbone_args=backbone_args,
        neck_args=neck_args,
        head_args=head_args,
        seed_args=seed_args,
    )
    is_on_meta = next(model.parameters()).is_meta
    if pretrained is not False and not is_on_meta:
        source = TIMM if pretrained is True else str(pretrained or "")
        for report in _initialize_backbone(model, source):
            report.require(MIN_MATCHED)
    return model


def initialize_model(model: Segmentor, cfg: CfgNode) -> list[LoadReport]:
    """Loads the weights that training starts from: ``MODEL.BACKBONE.PRETRAINED`` and ``MODEL.SEED.PRETRAINED``.

    Raises:
        UserError: a file cannot be read safely, or has less than 95 % of the tensors that it should initialise.
    """
    reports = _initialize_backbone(model, cfg.MODEL.BACKBONE.PRETRAINED, "MODEL.BACKBONE.PRETRAINED ")
    if path := cfg.MODEL.SEED.PRETRAINED:
        reports.append(load_offset_branch(model, read_weights(path), f"MODEL.SEED.PRETRAINED {path}"))
    for report in reports:
        get_logger().info("%s", report)
        report.require(MIN_MATCHED, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
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


def _initialize_backbone(model: Segmentor, source: str, key: str = "") -> list[LoadReport]:
    """Loads weights from a file, from timm or, without a source, from the package that comes with the backbone."""
    if source == TIMM:
        from ovenet.models.backbones.timm import timm_weights  # timm takes a second to import

        name = model.backbone.timm_name
        if name is None:
            raise UserError(f"{key or 'pretrained '}is timm, but timm does not have this backbone; name a file")
        state: Mapping[str, Tensor] | None = timm_weights(name)
        source = f"{key}timm's {name}"
    elif source:
        state = read_weights(source)
        source = key + source
    else:
        state = model.backbone.bundled_weights()
        source = "the weights that come with the backbone"
    return [] if state is None else [load_weights(model, state, source, whole=False)]


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; ``TRAIN.LR_MULT`` holds the learning rate factors of the parts.

    With ``TRAIN.PARAM_GROUPS`` official, parameters are grouped as in OffSeg, by substrings of their names: those with
    ``head`` in it, such as EfficientFormerV2's talking heads, have the head's learning rate, and of the others those
    with ``norm`` in it have no weight decay.
    """
    settings = section(cfg, OptimizerSettings)
    is_official = settings.param_groups == "official"

    def lr_factor(name: str) -> float:
        if name.startswith(_OFFSET_HEAD) and cfg.TRAIN.LR_MULT.OFFSET_HEAD:
            return cfg.TRAIN.LR_MULT.OFFSET_HEAD
        group = PARAMETER_GROUPS[name.split(".")[0]]
        return cfg.TRAIN.LR_MULT["HEAD" if is_official and "head" in name and group == "BACKBONE" else group]

    undecayed = _undecayed(model) if settings.no_decay_on_norm else set()

    def has_decay(name: str, parameter: nn.Parameter) -> bool:
        if is_official:
            return not name.startswith("backbone.") or "head" in name or "norm" not in name
        return name not in undecayed and (parameter.ndim > 1 or not settings.no_decay_on_norm)

    return make_optimizer(model, settings, cfg.TRAIN.LR, lr_factor=lr_factor, has_decay=has_decay)


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that their parts exclude from weight decay."""
    return {
        f"{place}.{name}"
        for place, part in model.named_modules()
        if isinstance(part, Part)
        for name, _ in part.named_parameters()
        if any(re.fullmatch(pattern, name) for pattern in part.undecayed)
    }


def prediction_names(cfg: CfgNode) -> tuple[str, ...]:
    """Names of the model's predictions, see `OVeNetOutput.predictions`."""
    return ("fused",) if cfg.MODEL.SEED.NAME == NO_SEED else ("initial", "seed", "fused")


def build_criterion(cfg: CfgNode) -> SegmentationCriterion:
    """The training loss.

    Raises:
        UserError: the loss needs an embedding that the head does not have, or the head has one without a loss.
    """
    info = dataset_info(cfg)
    num_outputs = HEADS[cfg.MODEL.HEAD.NAME].num_outputs
    default_weights = (AUXILIARY_WEIGHT,) * (num_outputs - 1) + (1.0,)
    return SegmentationCriterion(
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        class_weights=class_weights(cfg, info),
        output_weights=cfg.LOSS.BALANCE_WEIGHTS or default_weights,
        losses=build_losses(
            _terms(cfg), align_corners=cfg.MODEL.ALIGN_CORNERS, backend=cfg.LOSS.BACKEND, average=cfg.LOSS.AVERAGE
        ),
        initial_and_seed_weight=cfg.LOSS.KAPPA,
        confidence_weight=cfg.LOSS.LAMBDA,
        confidence_target=cfg.LOSS.CONFIDENCE_TARGET,
        offset_weight=cfg.LOSS.OFFSET,
        offset_target=cfg.LOSS.OFFSET_TARGET,
        fusion_warmup=cfg.LOSS.FUSION_WARMUP,
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
        key = "USE_OHEM" if cfg.LOSS.USE_OHEM else "TERMS" if cfg.LOSS.TERMS else None
        if key is not None:
            raise UserError(
                f"LOSS.{key} is {cfg.LOSS[key]}, but without a seed the {head} head is trained by its masks and their "
                f"classes alone; leave LOSS.{key} away"
            )
        if class_weights(cfg, dataset_info(cfg)) is not None:
            get_logger().warning("the %s head has no use for class weights; LOSS.CLASS_BALANCE is ignored", head)
    if cfg.LOSS.FUSION_WARMUP:
        raise UserError(
            f"LOSS.FUSION_WARMUP is {cfg.LOSS.FUSION_WARMUP}, but the {head} head has no loss of the initial scores to "
            "begin with; set 0"
        )
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


def _terms(cfg: CfgNode) -> list[dict[str, Any]]:
    """``LOSS.TERMS``, or the terms that the published keys stand for."""
    if cfg.LOSS.TERMS:
        return cfg.LOSS.TERMS
    if cfg.LOSS.USE_OHEM:
        return [{"NAME": "ohem", "THRESHOLD": cfg.LOSS.OHEMTHRES, "MIN_KEPT": cfg.LOSS.OHEMKEEP}]
    return [{"NAME": "cross_entropy"}]


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
