"""Datasets and loaders, from a configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from yacs.config import CfgNode

from ovenet.audit import ListReport, audit_dataset, check_datasets
from ovenet.builders.models import model_on_meta
from ovenet.config.schema import section
from ovenet.data.catalog import find_dataset
from ovenet.data.corruption_kinds import kinds_of
from ovenet.data.corruptions import Corruption, prepare_corruptions
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.info import DatasetInfo
from ovenet.data.loaders import TestLoader, TrainLoader, evaluation_loader, train_loader
from ovenet.data.remote import data_root, is_remote
from ovenet.data.samplers import TrainSampler
from ovenet.data.settings import CropSettings, LoaderSettings, WorkerSettings
from ovenet.data.shared_cache import attach_cache
from ovenet.data.transforms import TrainTransform
from ovenet.errors import UserError
from ovenet.preparation.listing import open_list
from ovenet.structures import Normalization
from ovenet.utils.logging import get_logger


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """The dataset of the configuration.

    Raises:
        UserError: there is no such dataset, or ``DATASET.NUM_CLASSES`` is not its number of classes.
    """
    name, folder = cfg.DATASET.DATASET, data_root(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    info = find_dataset(name, folder, num_classes=cfg.DATASET.NUM_CLASSES)
    if info.num_classes != cfg.DATASET.NUM_CLASSES:
        raise UserError(
            f"DATASET.NUM_CLASSES is {cfg.DATASET.NUM_CLASSES}, but {info.name} has {info.num_classes} classes; "
            f"set it to {info.num_classes}"
        )
    return info


def list_dataset(cfg: CfgNode, list_file: str, num_samples: int = 0) -> ListDataset:
    """The samples of a list, see `open_list`.

    Args:
        cfg: the configuration.
        list_file: ``DATASET.TRAIN_SET`` or ``DATASET.TEST_SET``.
        num_samples: use only the first N lines; 0 is all.
    """
    return open_list(
        data_root(cfg.DATASET.ROOT),
        cfg.DATASET.DATASET,
        list_file,
        dataset_info(cfg),
        ignore_label=cfg.TRAIN.IGNORE_LABEL,
        num_samples=num_samples,
    )


def audit(cfg: CfgNode, dataset: ListDataset, *, num_pairs: int = 0, decode_images: bool = False) -> ListReport:
    """Checks the files of a list, see `audit_dataset`."""
    return audit_dataset(
        dataset,
        num_threads=max(1, cfg.WORKERS),
        num_pairs=num_pairs,
        decode_images=decode_images,
    )


def check_data(cfg: CfgNode, datasets: Sequence[ListDataset]) -> None:
    """The short audit of ``DATASET.AUDIT`` pairs before training, see `check_datasets`."""
    if cfg.DATASET.AUDIT:
        check_datasets(datasets, num_pairs=cfg.DATASET.AUDIT, num_threads=max(1, cfg.WORKERS))


def train_dataset(
    cfg: CfgNode, list_file: str | None = None, normalization: Normalization | None = None
) -> AugmentedDataset:
    """Augmented crops of a list.

    Args:
        cfg: the configuration.
        list_file: None is ``DATASET.TRAIN_SET``.
        normalization: of the network's pixels, whose mean is the padding colour; None asks the network.

    Raises:
        UserError: the list is unusable, or a library is missing.
    """
    prepare_corruptions(training_corruptions(cfg))
    if normalization is None:
        normalization = model_on_meta(cfg).normalization
    require_rgb(normalization)
    dataset = list_dataset(cfg, list_file or cfg.DATASET.TRAIN_SET, cfg.TRAIN.NUM_SAMPLES)
    transform = TrainTransform(
        section(cfg, CropSettings),
        stretch=dataset.info.evaluation.resize == "stretch",
        flip_table=dataset.info.flip_table() if dataset.info.flip_pairs else None,
        pad_color=normalization.pad_color,
    )
    return AugmentedDataset(
        dataset, transform, seed=cfg.SEED, skip_broken=cfg.DATASET.SKIP_BROKEN, repeats=cfg.TRAIN.REPEATS
    )


def training_corruptions(cfg: CfgNode) -> tuple[str, ...]:
    """The kinds of corruption that a training draws from."""
    return kinds_of(cfg.TRAIN.CORRUPTIONS, "TRAIN.CORRUPTIONS") if cfg.TRAIN.CORRUPTION_PROBABILITY else ()


def require_rgb(normalization: Normalization) -> None:
    """Refuses a network of images with other channels than the three that files are read in.

    Raises:
        UserError: the images have another number of channels.
    """
    if len(normalization.mean) != 3:
        raise UserError(
            f"MODEL.BACKBONE.IN_CHANNELS is {len(normalization.mean)}, and files are read in RGB; arrays with other "
            "channels are trained and predicted from Python (docs/your_own_loop.md)"
        )


def build_train_loader(
    cfg: CfgNode, list_file: str | None = None, normalization: Normalization | None = None
) -> tuple[TrainLoader, TrainSampler]:
    """Batches of augmented crops of a list for this process; arguments as for `train_dataset`.

    Raises:
        UserError: the list is unusable, or shorter than one batch of all processes.
    """
    settings, workers = section(cfg, LoaderSettings), section(cfg, WorkerSettings)
    width, height = cfg.TRAIN.IMAGE_SIZE
    dataset = train_dataset(cfg, list_file, normalization)
    loader = train_loader(dataset, settings, workers, crop_pixels=width * height, seed=cfg.SEED)
    if is_remote(dataset.dataset.folder) and cfg.DATASET.CACHE == "none":
        get_logger().info("DATASET.CACHE is none: every epoch reads all files from %s", cfg.DATASET.ROOT)
    _attach_cache(cfg, dataset.dataset)
    return loader


def _attach_cache(cfg: CfgNode, dataset: ListDataset, *, is_mapped: bool = True) -> None:
    attach_cache(
        dataset,
        cfg.DATASET.CACHE,
        cfg.DATASET.CACHE_DIR,
        limit_gb=cfg.DATASET.CACHE_GB,
        num_threads=max(1, cfg.WORKERS),
        is_mapped=is_mapped,
    )


def test_dataset(cfg: CfgNode) -> ListDataset:
    """The samples of ``DATASET.TEST_SET``, or the first ``TEST.NUM_SAMPLES`` of them, corrupted by ``TEST.CORRUPTION``.

    Raises:
        UserError: the list is unusable, or a library is missing.
    """
    dataset = list_dataset(cfg, cfg.DATASET.TEST_SET, cfg.TEST.NUM_SAMPLES)
    if cfg.TEST.CORRUPTION:
        prepare_corruptions([cfg.TEST.CORRUPTION])
        dataset.corruption = Corruption(cfg.TEST.CORRUPTION, cfg.TEST.SEVERITY)
    return dataset


def validation_dataset(cfg: CfgNode) -> ListDataset:
    """The samples that training is validated on: `test_dataset`, or ``TRAIN.EVAL_NUM_SAMPLES`` of it, not corrupted."""
    limits = [n for n in (cfg.TRAIN.EVAL_NUM_SAMPLES, cfg.TEST.NUM_SAMPLES) if n]
    return list_dataset(cfg, cfg.DATASET.TEST_SET, min(limits, default=0))


def build_test_loader(cfg: CfgNode, list_file: str | None = None) -> tuple[TestLoader, ListDataset]:
    """This process's share of a list, one sample at a time, and the whole list.

    Args:
        cfg: the configuration.
        list_file: None is `test_dataset`.
    """
    dataset = test_dataset(cfg) if list_file is None else list_dataset(cfg, list_file)
    return shard_loader(cfg, dataset)[0], dataset


def shard_loader(cfg: CfgNode, dataset: ListDataset, done: Collection[int] = ()) -> tuple[TestLoader, list[int]]:
    """Loads this rank's share of the samples that are not `done`, see `evaluation_loader`.

    Those of an address are kept in the cache too, as those of training are.
    """
    workers = section(cfg, WorkerSettings)
    if dataset.cache is None and is_remote(dataset.folder):
        _attach_cache(cfg, dataset, is_mapped=False)
    return evaluation_loader(dataset, workers, done)
