"""Lists, samples, batches and the cache of decoded images, from a configuration."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import cv2
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from yacs.config import CfgNode

from ovenet.builders.models import dataset_info, normalization
from ovenet.data.cache import DecodedCache
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.files import read_list
from ovenet.data.info import DatasetInfo
from ovenet.data.layouts import patterns_of_test
from ovenet.data.prepare import PUBLISHED_LISTS, Preparation, list_path, prepare_dataset
from ovenet.data.samplers import TrainSampler, evaluation_shard, spread
from ovenet.data.transforms import TrainTransform, collate
from ovenet.dataset_tools.audit import Finding, ListReport, audit_list, findings_between, format_finding, missing_files
from ovenet.engine.interruption import end_helpers_at_exit, ignore_requests
from ovenet.errors import UserError
from ovenet.structures import Batch, Sample
from ovenet.utils import distributed
from ovenet.utils.environment import num_cores
from ovenet.utils.logging import get_logger

TestLoader = DataLoader[Sample]
SHARED_MEMORY = Path("/dev/shm")
_BATCHES_AHEAD = 2  # of each loading process, torch's own number


def list_dataset(cfg: CfgNode, list_file: str, num_samples: int = 0) -> ListDataset:
    """The samples of a list; one that `prepare_dataset` knows how to write is written when it is missing.

    Args:
        cfg: the configuration.
        list_file: ``DATASET.TRAIN_SET`` or ``DATASET.TEST_SET``.
        num_samples: use only the first N lines; 0 is all.

    Raises:
        UserError: the list is missing, empty or malformed, or the dataset's folder is not as published.
    """
    name, info, root = cfg.DATASET.DATASET, dataset_info(cfg), Path(cfg.DATASET.ROOT)
    path = root / list_file if Path(list_file).suffix else list_path(root, name, list_file)
    folder = next((root / one for one in (info.name, name) if (root / one).is_dir()), None)
    if path.parent == root / "list" / name:
        path = _own_list(path, root, info, folder)
    is_written = path.parent == root / "list" / info.name
    if distributed.is_main() and is_written and folder and not path.exists():
        _log_preparation(prepare_dataset(name, root, only_missing=True))
    distributed.barrier()
    if is_written and not path.exists():
        raise UserError(f"{path}: there is no such list file{_way_to_list(path, info, folder)}")
    return ListDataset(root, path, info, ignore_label=cfg.TRAIN.IGNORE_LABEL, num_samples=num_samples)


def _own_list(path: Path, root: Path, info: DatasetInfo, folder: Path | None) -> Path:
    """The list that stands here for one that the public code calls otherwise; the same one for all others."""
    list_name = PUBLISHED_LISTS.get(path.stem)
    if path.exists() and not (list_name and folder and not _has_images_of(path, folder)):
        return path
    own = list_path(root, info.name, list_name or path.stem)
    if own == path or not (list_name or own.parent != path.parent):
        return path
    get_logger().info("%s: %s; reading %s", path, "names no files of here" if path.exists() else "is not there", own)
    return own


def _has_images_of(path: Path, folder: Path) -> bool:
    try:
        return (folder / read_list(path)[0][0]).exists()
    except UserError:
        return False


def _way_to_list(path: Path, info: DatasetInfo, folder: Path | None) -> str:
    """What to do about a list that the preparation of a dataset has not written."""
    root = path.parents[2]
    if folder is None:
        return (
            f", and no folder {root / info.name}; {f'unpack {info.archives} there and ' if info.archives else ''}run "
            f"`python tools/prepare_data.py {info.name} --root {root}`"
        )
    has = f"; {info.name} has {', '.join(sorted(one.stem for one in path.parent.glob('*.lst')))}"
    if path.stem.split("_")[0] == "test" and patterns_of_test(info):
        return f"{has}; put the test images into {folder}, like {' or '.join(patterns_of_test(info))}"
    return f"{has}; set DATASET.TRAIN_SET or DATASET.TEST_SET to one"


def _log_preparation(preparation: Preparation) -> None:
    for line in preparation.lines:
        get_logger().info("%s", line)
    for remark in preparation.remarks:
        get_logger().warning("%s", remark)


def audit(
    cfg: CfgNode, dataset: ListDataset, *, num_pairs: int = 0, decode_images: bool = False, show_progress: bool = False
) -> ListReport:
    """Checks a list's files, see `ovenet.dataset_tools.audit`.

    Args:
        cfg: the configuration.
        dataset: the list.
        num_pairs: how many to check, evenly spread; 0 is all.
        decode_images: read the images' pixels too.
        show_progress: a bar, on a terminal.
    """
    chosen = spread(len(dataset), num_pairs or len(dataset))
    name, started = dataset.list_path.stem, time.perf_counter()
    with tqdm(
        total=len(chosen),
        desc=name,
        unit="pair",
        disable=not (show_progress and sys.stderr.isatty()),
        dynamic_ncols=True,
    ) as bar:
        report = audit_list(
            name,
            dataset.folder,
            [dataset.pairs[i] for i in chosen],
            dataset.decoder.info,
            num_threads=max(1, cfg.WORKERS),
            decode_images=decode_images,
            if_missing=_renewal(cfg, dataset),
            on_pair=bar.update,
        )
    seconds = time.perf_counter() - started
    get_logger().info(
        "%s: %d of %d pairs checked in %.1f s, %.0f a second",
        dataset.list_path,
        len(chosen),
        len(dataset),
        seconds,
        len(chosen) / seconds,
    )
    return report


def check_data(cfg: CfgNode, datasets: Sequence[ListDataset]) -> None:
    """The short form of an audit, before the first step: all files exist, and ``DATASET.AUDIT`` pairs are sound.

    Args:
        cfg: the configuration.
        datasets: of training and validation, all of them labelled.

    Raises:
        UserError: training would be wrong; names the first file and the fix.
    """
    if not cfg.DATASET.AUDIT:
        return
    reports = [_check_list(cfg, dataset) for dataset in datasets]
    is_whole = sum(report.num_pairs for report in reports) == sum(map(len, datasets))
    together = findings_between(reports, datasets[0].decoder.info, is_whole=is_whole)
    _refuse_errors(together, datasets[0].folder, reports)
    for finding in together:
        get_logger().warning("%s", format_finding(finding, " and ".join(report.name for report in reports)))


def _check_list(cfg: CfgNode, dataset: ListDataset) -> ListReport:
    missing = missing_files(dataset.folder, dataset.pairs)
    if missing:
        raise UserError(
            f"{dataset.folder / missing[0]}: the file does not exist, like {len(missing) - 1} more of "
            f"{dataset.list_path}; unpack the data again, or {_renewal(cfg, dataset) or 'correct the list'}"
        )
    report = audit(cfg, dataset, num_pairs=cfg.DATASET.AUDIT, decode_images=True)
    _refuse_errors(report.findings, dataset.folder, [report])
    for finding in report.findings:
        if finding.kind != "absent class":  # a few pairs do not show every class
            get_logger().warning("%s", format_finding(finding, report.name))
    return report


def _refuse_errors(findings: Sequence[Finding], folder: Path, reports: Sequence[ListReport]) -> None:
    for finding in findings:
        if finding.is_error:
            looked_at = sum(report.num_pairs for report in reports)
            raise UserError(
                f"{folder / finding.paths[0]}: {finding.kind}: {finding.message} "
                f"({len(finding.paths)} of {looked_at} pairs looked at; tools/audit_data.py shows all)"
            )


def _renewal(cfg: CfgNode, dataset: ListDataset) -> str:
    """What to do where files of a list were removed; "" for lists that `prepare_dataset` has not written."""
    name = dataset.info.name
    if dataset.list_path.parent != Path(cfg.DATASET.ROOT) / "list" / name:
        return ""
    root = "" if Path(cfg.DATASET.ROOT) == Path("data") else f" --root {cfg.DATASET.ROOT}"
    return f"run `ovenet prepare {name}{root}`, which writes the lists anew"


def train_dataset(cfg: CfgNode, list_file: str | None = None) -> AugmentedDataset:
    """Augmented crops of a list; None is ``DATASET.TRAIN_SET``.

    Raises:
        UserError: the list is unusable.
    """
    dataset = list_dataset(cfg, list_file or cfg.DATASET.TRAIN_SET, cfg.TRAIN.NUM_SAMPLES)
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
        flip_table=dataset.info.flip_table() if dataset.info.flip_pairs else None,
        pad_color=normalization(cfg).pad_color,
        scale_range=tuple(cfg.TRAIN.SCALE_RANGE) or None,
        base_box=tuple(cfg.TRAIN.BASE_BOX) or None,
        cat_max_ratio=cfg.TRAIN.CAT_MAX_RATIO,
        photometric=cfg.TRAIN.PHOTOMETRIC_DISTORTION,
    )
    return AugmentedDataset(dataset, transform, seed=cfg.SEED, skip_broken=cfg.DATASET.SKIP_BROKEN)


def build_train_loader(cfg: CfgNode, list_file: str | None = None) -> tuple[DataLoader[Batch], TrainSampler]:
    """Batches of augmented crops of a list for this process; None is ``DATASET.TRAIN_SET``.

    Raises:
        UserError: the list is unusable, or shorter than one batch of all processes.
    """
    dataset = train_dataset(cfg, list_file)
    batch_size, world_size = cfg.TRAIN.BATCH_SIZE_PER_GPU, distributed.world_size()
    if cfg.WORKERS:
        _require_shared_memory(cfg)
    if len(dataset) < batch_size * world_size:
        raise UserError(
            f"{dataset.dataset.list_path} has {len(dataset)} samples, fewer than one batch of {batch_size} x "
            f"{world_size} processes; lower TRAIN.BATCH_SIZE_PER_GPU"
        )
    attach_cache(cfg, dataset.dataset)
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


def _require_shared_memory(cfg: CfgNode) -> None:
    """Loading processes hand batches over in shared memory; one that finds none waits for ever, or is killed.

    Raises:
        UserError: there is no room for the batches that they read ahead.
    """
    width, height = cfg.TRAIN.IMAGE_SIZE
    batch_bytes = cfg.TRAIN.BATCH_SIZE_PER_GPU * width * height * (3 + torch.int16.itemsize)
    processes = distributed.local_world_size()
    needed = processes * _BATCHES_AHEAD * min(cfg.WORKERS, num_cores()) * batch_bytes
    free = _shared_memory_bytes()
    if free is not None and free < needed:
        raise UserError(
            f"{SHARED_MEMORY}: {free / 1e6:.2f} MB are free, and {processes} process(es) with {cfg.WORKERS} loading "
            f"processes each need {needed / 1e6:.1f} MB for their batches; set WORKERS 0, or give the container "
            "more (--shm-size)"
        )


def _shared_memory_bytes() -> int | None:
    """What is free; None where there is no such folder."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def test_dataset(cfg: CfgNode) -> ListDataset:
    """``DATASET.TEST_SET``, of which ``TEST.NUM_SAMPLES`` may take a part."""
    return list_dataset(cfg, cfg.DATASET.TEST_SET, cfg.TEST.NUM_SAMPLES)


def validation_dataset(cfg: CfgNode) -> ListDataset:
    """What training is validated on: `test_dataset`, of which ``TRAIN.EVAL_NUM_SAMPLES`` may take a part."""
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
    """This process's share of what is left of a list, one sample at a time, and the samples' places in the list.

    Args:
        cfg: the configuration.
        dataset: the whole list.
        done: places that are left out.
    """
    left = [index for index in range(len(dataset)) if index not in done]
    shard = [left[i] for i in evaluation_shard(len(left), rank=distributed.rank(), world_size=distributed.world_size())]
    options = _worker_options(cfg.WORKERS, keep=False)
    return DataLoader(Subset(dataset, shard), batch_size=None, collate_fn=_as_it_is, **options), shard


def _as_it_is(sample: Sample) -> Sample:
    return sample


def _worker_options(num_workers: int, *, keep: bool) -> dict[str, Any]:
    if num_workers == 0:
        return {"num_workers": 0}
    end_helpers_at_exit()
    num_workers = min(num_workers, _usable_workers(num_workers))
    return {"num_workers": num_workers, "persistent_workers": keep, "worker_init_fn": _start_worker}


@cache
def _usable_workers(wanted: int) -> int:
    """As many as there are cores to run them; says once where that is less than wanted."""
    usable = num_cores()
    if wanted > usable:
        get_logger().warning("WORKERS is %d, but there are only %d cores; using %d workers", wanted, usable, usable)
    return usable


def _start_worker(_: int) -> None:
    ignore_requests()
    cv2.setNumThreads(0)  # the worker processes already share the machine's cores


def attach_cache(cfg: CfgNode, dataset: ListDataset) -> None:
    """Gives a list the cache that ``DATASET.CACHE`` asks for; the processes of a machine build it together.

    Raises:
        UserError: there is not enough space, or no shared memory.
        OSError: an entry cannot be written.
    """
    if cfg.DATASET.CACHE == "none":
        return
    cache = DecodedCache(_parent(cfg), dataset.folder, dataset.info, cfg.TRAIN.IGNORE_LABEL)
    if cfg.DATASET.CACHE == "ram" and distributed.local_rank() == 0:
        atexit.register(_remove_if_unused, cache.folder, _use(cache.folder))
    with distributed.activity("building the cache"):
        _build(cfg, dataset, cache)
        distributed.barrier()
    dataset.cache = cache


def _use(folder: Path) -> TextIO:
    """Marks a folder as used by this run until the process ends; several runs may share it."""
    import fcntl  # not on Windows, which has no shared memory of this kind either

    folder.parent.mkdir(parents=True, exist_ok=True)
    file = (folder.parent / f".{folder.name}.users").open("a", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_SH)  # waits for one that is just removing the folder
    return file


def _remove_if_unused(folder: Path, users: TextIO) -> None:
    import fcntl

    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another run still reads it, and removes it at its end
    shutil.rmtree(folder, ignore_errors=True)


def _parent(cfg: CfgNode) -> Path:
    if cfg.DATASET.CACHE == "disk":
        return Path(cfg.DATASET.CACHE_DIR or Path(cfg.DATASET.ROOT) / "cache")
    if not SHARED_MEMORY.is_dir():
        raise UserError(f"DATASET.CACHE is ram, but this system has no {SHARED_MEMORY}; set it to disk")
    return SHARED_MEMORY / f"ovenet-{os.getuid()}"


def _build(cfg: CfgNode, dataset: ListDataset, cache: DecodedCache) -> None:
    num_threads, started = max(1, cfg.WORKERS), time.perf_counter()
    plan = cache.plan(dataset.pairs, num_threads=num_threads)
    if plan.missing:
        cache.require_space(plan.num_bytes, f"DATASET.CACHE {cfg.DATASET.CACHE}")
    distributed.barrier()  # every process has checked before the first writes; other machines may lack other entries
    if not plan.missing:
        get_logger().info("%s: all %d pairs of %s are there", cache.folder, len(dataset), dataset.list_path)
        return
    get_logger().info(
        "%s: decoding %d of %d pairs, %.1f GB", cache.folder, len(plan.missing), len(dataset), plan.num_bytes / 1e9
    )
    share = plan.missing[distributed.local_rank() :: distributed.local_world_size()]
    show = distributed.is_main() and sys.stderr.isatty()
    with tqdm(total=len(share), desc="cache", unit="pair", disable=not show, dynamic_ncols=True) as bar:
        problems = cache.build(dataset.pairs, dataset.read_files, share, num_threads=num_threads, on_pair=bar.update)
    for problem in problems:
        get_logger().warning("not in the cache: %s", problem)
    get_logger().info("%s: built in %.0f s", cache.folder, time.perf_counter() - started)
