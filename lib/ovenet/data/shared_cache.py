"""The cache of decoded files as the processes of a machine build it, share it and remove it."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import time
from pathlib import Path
from typing import TextIO

from ovenet.data.cache import DecodedCache
from ovenet.data.dataset import ListDataset
from ovenet.data.remote import is_remote
from ovenet.errors import UserError
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.progress import progress

SHARED_MEMORY = Path("/dev/shm")


def attach_cache(
    dataset: ListDataset,
    kind: str,
    cache_dir: str = "",
    *,
    limit_gb: float = 0.0,
    num_threads: int,
    is_mapped: bool = True,
) -> None:
    """Gives a list its cache of decoded files, which all processes of a machine build together.

    Where the files lie at an address, nothing is built: what is read goes into the cache.

    Args:
        dataset: changed in place.
        kind: ``none``; ``disk``; or ``ram``, in shared memory, removed when the last run that uses it ends.
        cache_dir: folder of the caches on disk; "" is ``cache`` beside the dataset's folder.
        limit_gb: most that all caches in that folder may take, in 10^9 bytes; 0 is no bound.
        num_threads: threads that decode, per process.
        is_mapped: see `DecodedCache`.

    Raises:
        UserError: there is not enough space, no shared memory, or no folder for files of an address.
        OSError: an entry cannot be written.
    """
    if kind == "none":
        return
    if kind == "disk" and not cache_dir and is_remote(dataset.folder):
        raise UserError(
            "DATASET.CACHE disk: DATASET.ROOT is an address; set DATASET.CACHE_DIR to a folder of this machine"
        )
    parent = _shared_folder() if kind == "ram" else Path(cache_dir or dataset.folder.parent / "cache")
    limit = round(limit_gb * 1e9) if limit_gb else None
    cache = DecodedCache(parent, dataset.folder, dataset.info, dataset.decoder.ignore_label, limit_bytes=limit)
    cache.is_mapped = is_mapped
    if kind == "ram" and distributed.local_rank() == 0:
        _remove_at_exit(cache.folder)
    with distributed.activity("building the cache"):
        _build(dataset, cache, f"DATASET.CACHE {kind}", num_threads)
        distributed.barrier()
    dataset.cache = cache


@functools.cache
def _remove_at_exit(folder: Path) -> None:
    """Once for all lists that share the folder: what one holds, another would not remove."""
    atexit.register(_remove_if_unused, folder, _use(folder))


def _use(folder: Path) -> TextIO:
    """Locks a folder as used by this run until the process ends; several runs may share it."""
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


def _shared_folder() -> Path:
    if not SHARED_MEMORY.is_dir():
        raise UserError(f"DATASET.CACHE is ram, but this system has no {SHARED_MEMORY}; set it to disk")
    return SHARED_MEMORY / f"ovenet-{os.getuid()}"


def _build(dataset: ListDataset, cache: DecodedCache, setting: str, num_threads: int) -> None:
    started = time.perf_counter()
    plan = cache.plan(dataset.pairs, num_threads=num_threads)
    cache.remove_outdated([dataset.pairs[number] for number in plan.missing])
    room = cache.room()
    if plan.missing:
        cache.require_space(plan.num_bytes if room is None else min(plan.num_bytes, room), setting)
    distributed.barrier()  # every process has checked before the first writes; other machines may lack other entries
    if not plan.missing:
        get_logger().info("%s: all %d pairs of %s are there", cache.folder, len(dataset), dataset.list_path)
        return
    if room is not None:
        get_logger().info("%s: DATASET.CACHE_GB leaves room for %.3g GB", cache.folder, room / 1e9)
    if cache.fills:
        there = len(dataset) - len(plan.missing)
        get_logger().info("%s: %d of %d pairs are there, others are added as read", cache.folder, there, len(dataset))
        return
    get_logger().info(
        "%s: decoding %d of %d pairs, %.1f GB", cache.folder, len(plan.missing), len(dataset), plan.num_bytes / 1e9
    )
    share = plan.missing[distributed.local_rank() :: distributed.local_world_size()]
    with progress("cache", len(share), enabled=distributed.is_main()) as advance:
        problems = cache.build(dataset.pairs, dataset.read_files, share, num_threads=num_threads, on_pair=advance)
    for problem in problems:
        get_logger().warning("not in the cache: %s", problem)
    get_logger().info("%s: built in %.0f s", cache.folder, time.perf_counter() - started)
