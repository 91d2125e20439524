"""From a configuration to parts. Beside `ovenet.config` and the tools, the only reader of config keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

from ovenet.config.defaults import OCR_NAMES
from ovenet.data.catalog import DatasetInfo, find_dataset
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.samplers import TrainSampler, evaluation_shard
from ovenet.data.transforms import TrainTransform, collate
from ovenet.engine.checkpoint import read_checkpoint, weights_of
from ovenet.engine.optim import build_optimizer as make_optimizer
from ovenet.evaluation.inference import InferenceSettings, Predictor
from ovenet.losses import OhemSettings, SegmentationCriterion
from ovenet.models import SeedFusion, Segmentor, freeze_main_network
from ovenet.models.backbones import HRNet, StageSpec
from ovenet.models.heads import OCRHead, OffsetHead, PlainHead
from ovenet.models.necks import ConcatNeck
from ovenet.models.weights import MIN_MATCHED, LoadReport, load_offset_branch, load_weights
from ovenet.structures import Batch, Sample
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger

AUXILIARY_WEIGHTS = (0.4, 1.0)  # auxiliary and final map, as OCR was published


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


def build_criterion(cfg: CfgNode) -> SegmentationCriterion:
    """The training loss."""
    info = dataset_info(cfg)
    default_weights = AUXILIARY_WEIGHTS if cfg.MODEL.NAME in OCR_NAMES else (1.0,)
    return SegmentationCriterion(
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        class_weights=info.class_weights if cfg.LOSS.CLASS_BALANCE else None,
        output_weights=cfg.LOSS.BALANCE_WEIGHTS or default_weights,
        ohem=OhemSettings(cfg.LOSS.OHEMTHRES, cfg.LOSS.OHEMKEEP) if cfg.LOSS.USE_OHEM else None,
        initial_and_seed_weight=cfg.LOSS.KAPPA,
        confidence_weight=cfg.LOSS.LAMBDA,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
    )


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """The catalog's entry.

    Raises:
        ValueError: there is none, or the config has another number of classes.
    """
    info = find_dataset(cfg.DATASET.DATASET)
    if info.num_classes != cfg.DATASET.NUM_CLASSES:
        raise ValueError(
            f"DATASET.NUM_CLASSES is {cfg.DATASET.NUM_CLASSES}, but {info.name} has {info.num_classes} classes; "
            f"set it to {info.num_classes}"
        )
    return info


def build_train_loader(cfg: CfgNode) -> tuple[DataLoader[Batch], TrainSampler]:
    """Batches of augmented crops for this process.

    Raises:
        ValueError: the list is unusable, or shorter than one batch of all processes.
    """
    dataset = _list_dataset(cfg, cfg.DATASET.TRAIN_SET, cfg.TRAIN.NUM_SAMPLES)
    width, height = cfg.TRAIN.IMAGE_SIZE
    transform = TrainTransform(
        crop_size=(height, width),
        base_size=cfg.TRAIN.BASE_SIZE,
        scale_steps=cfg.TRAIN.SCALE_FACTOR if cfg.TRAIN.MULTI_SCALE else None,
        flip=cfg.TRAIN.FLIP,
        brightness_shift=cfg.TRAIN.RANDOM_BRIGHTNESS_SHIFT_VALUE if cfg.TRAIN.RANDOM_BRIGHTNESS else 0,
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
    )
    batch_size, world_size = cfg.TRAIN.BATCH_SIZE_PER_GPU, distributed.world_size()
    if len(dataset) < batch_size * world_size:
        raise ValueError(
            f"{dataset.list_path} has {len(dataset)} samples, fewer than one batch of {batch_size} x {world_size} "
            "processes; lower TRAIN.BATCH_SIZE_PER_GPU"
        )
    sampler = TrainSampler(
        len(dataset), rank=distributed.rank(), world_size=world_size, seed=cfg.SEED, shuffle=cfg.TRAIN.SHUFFLE
    )
    loader = DataLoader(
        AugmentedDataset(dataset, transform, seed=cfg.SEED),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
        pin_memory=cfg.PIN_MEMORY and torch.cuda.is_available(),
        **_worker_options(cfg.WORKERS, keep=True),
    )
    return loader, sampler


def build_test_loader(cfg: CfgNode) -> tuple[DataLoader[Sample], ListDataset]:
    """This process's share of the test split, one sample at a time, and the whole split."""
    dataset = _list_dataset(cfg, cfg.DATASET.TEST_SET, cfg.TEST.NUM_SAMPLES)
    shard = evaluation_shard(len(dataset), rank=distributed.rank(), world_size=distributed.world_size())
    options = _worker_options(cfg.WORKERS, keep=False)
    return DataLoader(Subset(dataset, shard), batch_size=None, collate_fn=_as_it_is, **options), dataset


def _list_dataset(cfg: CfgNode, list_file: str, num_samples: int) -> ListDataset:
    return ListDataset(
        Path(cfg.DATASET.ROOT),
        list_file,
        dataset_info(cfg),
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        num_samples=num_samples,
    )


def _as_it_is(sample: Sample) -> Sample:
    return sample


def _worker_options(num_workers: int, *, keep: bool) -> dict[str, Any]:
    if num_workers == 0:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "persistent_workers": keep, "worker_init_fn": _start_worker}


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers share the machine's cores already


def build_predictor(model: nn.Module, cfg: CfgNode, device: torch.device, *, single_scale: bool = False) -> Predictor:
    """Inference as the ``TEST`` section describes it.

    Args:
        model: on `device`.
        cfg: the configuration.
        device: of this process.
        single_scale: leave out ``TEST.SCALE_LIST`` and ``TEST.FLIP_TEST``, as validation during training does.
    """
    width, height = cfg.TEST.IMAGE_SIZE
    settings = InferenceSettings(
        base_size=cfg.TEST.BASE_SIZE,
        window_size=(height, width),
        scales=(1.0,) if single_scale else tuple(float(s) for s in cfg.TEST.SCALE_LIST),
        flip=cfg.TEST.FLIP_TEST and not single_scale,
        score=cfg.TEST.SCORE,
        output_index=cfg.TEST.OUTPUT_INDEX,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        batch_size=cfg.TEST.BATCH_SIZE_PER_GPU,
    )
    return Predictor(model, settings, device)


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained."""
    return make_optimizer(
        model,
        cfg.TRAIN.OPTIMIZER,
        lr=cfg.TRAIN.LR,
        momentum=cfg.TRAIN.MOMENTUM,
        weight_decay=cfg.TRAIN.WD,
        nesterov=cfg.TRAIN.NESTEROV,
    )


def prediction_names(cfg: CfgNode) -> tuple[str, ...]:
    """What the model predicts, see `OVeNetOutput.predictions`."""
    return ("initial", "seed", "fused") if cfg.MODEL.EXTRA.OFFSET_BRANCH else ("fused",)


def run_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """``OUTPUT_DIR/<dataset>/<name of the config file>``."""
    return Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / Path(config_file).stem


def log_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """Where TensorBoard files go."""
    if cfg.LOG_DIR:
        return Path(cfg.LOG_DIR) / cfg.DATASET.DATASET / Path(config_file).stem
    return run_directory(cfg, config_file) / "tensorboard"
