"""The cache of decoded files as the processes of a machine build it, share it and remove it."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from pathlib import Path
from typing import TextIO

from ovenet.data.cache import DecodedCache
from ovenet.data.dataset import ListDataset
from ovenet.errors import UserError
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.progress import progress

SHARED_MEMORY = Path("/dev/shm")


def attach_cache(dataset: ListDataset, kind: str, cache_dir: str = "", *, num_threads: int) -> None:
    """Gives a list its cache of decoded files, which all processes of a machine build together.

    Args:
        dataset: changed in place.
        kind: ``none``; ``disk``; or ``ram``, in shared memory, removed when the last run that uses it ends.
        cache_dir: folder of the caches on disk; "" is ``cache`` beside the dataset's folder.
        num_threads: threads that decode, per process.

    Raises:
        UserError: there is not enough space, or no shared memory.
        OSError: an entry cannot be written.
    """
    if kind == "none":
        return
    parent = _shared_folder() if kind == "ram" else Path(cache_dir or dataset.folder.parent / "cache")
    cache = DecodedCache(parent, dataset.folder, dataset.info, dataset.decoder.ignore_label)
    if kind == "ram" and distributed.local_rank() == 0:
        atexit.register(_remove_if_unused, cache.folder, _use(cache.folder))
    with distributed.activity("building the cache"):
        _build(dataset, cache, f"DATASET.CACHE {kind}", num_threads)
        distributed.barrier()
    dataset.cache = cache


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
    if plan.missing:
        cache.require_space(plan.num_bytes, setting)
    distributed.barrier()  # every process has checked before the first writes; other machines may lack other entries
    if not plan.missing:
        get_logger().info("%s: all %d pairs of %s are there", cache.folder, len(dataset), dataset.list_path)
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
