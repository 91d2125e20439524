"""Loaders of training batches and of samples to evaluate, and their worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import cache
from typing import Any, TypeAlias

import cv2
import torch
from torch.utils.data import DataLoader, Subset

from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.samplers import TrainSampler, evaluation_shard
from ovenet.data.settings import LoaderSettings, WorkerSettings
from ovenet.data.shared_cache import SHARED_MEMORY
from ovenet.data.transforms import collate
from ovenet.errors import UserError
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.environment import num_cores
from ovenet.utils.logging import get_logger
from ovenet.utils.stop_signals import ignore_stop_signals, kill_workers_at_exit

TestLoader = DataLoader[Sample]
TrainLoader: TypeAlias = DataLoader[Any]  # of `Batch`; torch takes the items of the dataset for those of the loader
_BATCHES_AHEAD = 2  # of each worker, PyTorch's default


def train_loader(
    dataset: AugmentedDataset, settings: LoaderSettings, workers: WorkerSettings, *, crop_pixels: int, seed: int
) -> tuple[TrainLoader, TrainSampler]:
    """Batches of augmented crops for this process.

    Args:
        dataset: the crops.
        settings: batch size and order.
        workers: processes that load.
        crop_pixels: pixels of a crop.
        seed: seed of the order.

    Raises:
        UserError: the list is shorter than one batch of all processes, or shared memory does not suffice.
    """
    batch_size, world_size = settings.batch_size_per_gpu, distributed.world_size()
    if workers.workers:
        _require_shared_memory(batch_size * crop_pixels * (3 + torch.int16.itemsize), workers.workers)
    if len(dataset) < batch_size * world_size:
        raise UserError(
            f"{dataset.dataset.list_path} has {len(dataset)} samples, fewer than one batch of {batch_size} x "
            f"{world_size} processes; lower TRAIN.BATCH_SIZE_PER_GPU"
        )
    sampler = TrainSampler(
        len(dataset), rank=distributed.rank(), world_size=world_size, seed=seed, shuffle=settings.shuffle
    )
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
        pin_memory=workers.pin_memory and torch.cuda.is_available(),
        **_worker_options(workers.workers, keep=True),
    )
    return loader, sampler


def evaluation_loader(
    dataset: ListDataset, workers: WorkerSettings, done: Collection[int] = ()
) -> tuple[TestLoader, list[int]]:
    """This process's share of the rest of a list, one sample at a time, and the indices of these samples.

    Args:
        dataset: the whole list.
        workers: processes that load.
        done: indices to leave out.
    """
    left = [index for index in range(len(dataset)) if index not in done]
    shard = [left[i] for i in evaluation_shard(len(left), rank=distributed.rank(), world_size=distributed.world_size())]
    options = _worker_options(workers.workers, keep=False)
    return DataLoader(Subset(dataset, shard), batch_size=None, collate_fn=_unchanged, **options), shard


def _require_shared_memory(batch_bytes: int, num_workers: int) -> None:
    """Workers pass batches on in shared memory; one that finds none waits for ever, or is killed.

    Raises:
        UserError: there is no room for the batches that they read ahead.
    """
    processes = distributed.local_world_size()
    needed = processes * _BATCHES_AHEAD * min(num_workers, num_cores()) * batch_bytes
    free = _shared_memory_bytes()
    if free is not None and free < needed:
        raise UserError(
            f"{SHARED_MEMORY}: {free / 1e6:.2f} MB are free, and {processes} process(es) with {num_workers} loading "
            f"processes each need {needed / 1e6:.1f} MB for their batches; set WORKERS 0, or give the container "
            "more (--shm-size)"
        )


def _shared_memory_bytes() -> int | None:
    """Free bytes of shared memory; None where there is no such folder."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def _unchanged(sample: Any) -> Any:
    return sample


def _worker_options(num_workers: int, *, keep: bool) -> dict[str, Any]:
    if num_workers == 0:
        return {"num_workers": 0}
    kill_workers_at_exit()
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
    ignore_stop_signals()
    cv2.setNumThreads(0)  # the worker processes already share the machine's cores
