"""From a configuration to parts. Beside `ovenet.config` and the tools, the only reader of config keys."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from yacs.config import CfgNode

from ovenet.config.defaults import OCR_NAMES
from ovenet.data.audit import (
    ListReport,
    audit_list,
    format_finding,
    missing_files,
    read_suggested_weights,
    spread,
)
from ovenet.data.catalog import find_dataset
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.info import DatasetInfo
from ovenet.data.prepare import Preparation, list_path, prepare_dataset
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
        class_weights=class_weights(cfg, info),
        output_weights=cfg.LOSS.BALANCE_WEIGHTS or default_weights,
        ohem=OhemSettings(cfg.LOSS.OHEMTHRES, cfg.LOSS.OHEMKEEP) if cfg.LOSS.USE_OHEM else None,
        initial_and_seed_weight=cfg.LOSS.KAPPA,
        confidence_weight=cfg.LOSS.LAMBDA,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
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


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """The catalog's entry.

    Raises:
        ValueError: there is none, or the config has another number of classes.
    """
    name, folder = cfg.DATASET.DATASET, Path(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    info = find_dataset(name, folder, num_classes=cfg.DATASET.NUM_CLASSES)
    if info.num_classes != cfg.DATASET.NUM_CLASSES:
        raise ValueError(
            f"DATASET.NUM_CLASSES is {cfg.DATASET.NUM_CLASSES}, but {info.name} has {info.num_classes} classes; "
            f"set it to {info.num_classes}"
        )
    return info


def train_dataset(cfg: CfgNode) -> AugmentedDataset:
    """Augmented crops of the training list.

    Raises:
        ValueError: the list is unusable.
    """
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET, cfg.TRAIN.NUM_SAMPLES)
    width, height = cfg.TRAIN.IMAGE_SIZE
    transform = TrainTransform(
        crop_size=(height, width),
        base_size=cfg.TRAIN.BASE_SIZE,
        scale_steps=cfg.TRAIN.SCALE_FACTOR if cfg.TRAIN.MULTI_SCALE else None,
        flip=cfg.TRAIN.FLIP,
        brightness_shift=cfg.TRAIN.RANDOM_BRIGHTNESS_SHIFT_VALUE if cfg.TRAIN.RANDOM_BRIGHTNESS else 0,
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        rare_class_crops=cfg.TRAIN.RARE_CLASS_CROPS,
        stretch=dataset.info.evaluation.resize == "stretch",
        mirrored_table=dataset.info.mirrored_table() if dataset.info.mirrored_classes else None,
    )
    return AugmentedDataset(dataset, transform, seed=cfg.SEED)


def build_train_loader(cfg: CfgNode) -> tuple[DataLoader[Batch], TrainSampler]:
    """Batches of augmented crops for this process.

    Raises:
        ValueError: the list is unusable, or shorter than one batch of all processes.
    """
    dataset = train_dataset(cfg)
    batch_size, world_size = cfg.TRAIN.BATCH_SIZE_PER_GPU, distributed.world_size()
    if len(dataset) < batch_size * world_size:
        raise ValueError(
            f"{dataset.dataset.list_path} has {len(dataset)} samples, fewer than one batch of {batch_size} x "
            f"{world_size} processes; lower TRAIN.BATCH_SIZE_PER_GPU"
        )
    sampler = TrainSampler(
        len(dataset), rank=distributed.rank(), world_size=world_size, seed=cfg.SEED, shuffle=cfg.TRAIN.SHUFFLE
    )
    loader = DataLoader(
        dataset,
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
    dataset = list_dataset(cfg, cfg.DATASET.TEST_SET, cfg.TEST.NUM_SAMPLES)
    shard = evaluation_shard(len(dataset), rank=distributed.rank(), world_size=distributed.world_size())
    options = _worker_options(cfg.WORKERS, keep=False)
    return DataLoader(Subset(dataset, shard), batch_size=None, collate_fn=_as_it_is, **options), dataset


def list_dataset(cfg: CfgNode, list_file: str, num_samples: int = 0) -> ListDataset:
    """The samples of a list; one that `prepare_dataset` knows how to write is written when it is missing.

    Args:
        cfg: the configuration.
        list_file: ``DATASET.TRAIN_SET`` or ``DATASET.TEST_SET``.
        num_samples: use the first so many lines; 0 is all.

    Raises:
        ValueError: the list is missing, empty or malformed, or the dataset's folder is not as published.
    """
    info, root = dataset_info(cfg), Path(cfg.DATASET.ROOT)
    path = root / list_file if Path(list_file).suffix else list_path(root, info.name, list_file)
    is_missing = not path.exists()
    distributed.barrier()  # every process has looked before the first one writes
    if is_missing and path.parent == root / "list" / info.name and (root / info.name).is_dir():
        if distributed.is_main():
            _log_preparation(prepare_dataset(info.name, root, only_missing=True), path.parent)
        distributed.barrier()
    return ListDataset(root, path, info, ignore_label=cfg.TRAIN.IGNORE_LABEL, num_samples=num_samples)


def audit(
    cfg: CfgNode, dataset: ListDataset, *, num_pairs: int = 0, decode_images: bool = False, show_progress: bool = False
) -> ListReport:
    """Checks a list's files, see `ovenet.data.audit`.

    Args:
        cfg: the configuration.
        dataset: the list.
        num_pairs: check so many, evenly spread; 0 is all.
        decode_images: read the images' pixels too.
        show_progress: a bar, on a terminal.
    """
    chosen = spread(len(dataset), num_pairs or len(dataset))
    name = dataset.list_path.stem
    with tqdm(
        total=len(chosen),
        desc=name,
        unit="pair",
        disable=not (show_progress and sys.stderr.isatty()),
        dynamic_ncols=True,
    ) as bar:
        return audit_list(
            name,
            dataset.folder,
            [dataset.pairs[i] for i in chosen],
            dataset.info,
            num_threads=max(1, cfg.WORKERS),
            decode_images=decode_images,
            on_pair=bar.update,
        )


def check_training_data(cfg: CfgNode, dataset: ListDataset) -> None:
    """The short form of an audit, before the first step: all files exist, and ``DATASET.AUDIT`` pairs are sound.

    Raises:
        ValueError: training would be wrong; names the first file and the fix.
    """
    if not cfg.DATASET.AUDIT:
        return
    missing = missing_files(dataset.folder, dataset.pairs)
    if missing:
        raise ValueError(
            f"{dataset.folder / missing[0]}: the file does not exist, like {len(missing) - 1} more of "
            f"{dataset.list_path}; unpack the data again, or correct the list"
        )
    report = audit(cfg, dataset, num_pairs=cfg.DATASET.AUDIT)
    for finding in report.findings:
        if finding.is_error:
            raise ValueError(
                f"{dataset.folder / finding.paths[0]}: {finding.kind}: {finding.message} "
                f"({len(finding.paths)} of {report.num_pairs} pairs looked at; tools/audit_data.py shows all)"
            )
        if finding.kind != "absent class":  # a few pairs need not show every class
            get_logger().warning("%s", format_finding(finding, report.name))
    get_logger().info("%s: %d of %d pairs checked", dataset.list_path, report.num_pairs, len(dataset))


def _log_preparation(preparation: Preparation, folder: Path) -> None:
    for name, num_lines in preparation.num_lines.items():
        get_logger().info("%s: %d lines", folder / f"{name}.lst", num_lines)
    for remark in preparation.remarks:
        get_logger().warning("%s", remark)


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
    info = dataset_info(cfg)
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
        rule=info.evaluation,
        mirrored_classes=info.mirrored_classes,
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
