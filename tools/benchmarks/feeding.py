"""Crops a second by loading processes: files decoded for each crop against the cache of decoded images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.inputs import Options, drawn_scenes
from benchmarks.measure import Case
from ovenet import builders, load_config
from ovenet.structures import Batch
from ovenet.utils.environment import num_cores

_CONFIG = Path(__file__).parents[2] / "experiments" / "cityscapes" / "ovenet_w48.yaml"
_BATCH = 4
_NUM_SCENES = 16
_NUM_PROCESSES = (1, 2, 4, 8, 16)


@contextmanager
def feeding_case(options: Options, num_workers: int) -> Iterator[Case]:
    """An epoch of training crops of drawn scenes, as a training loads them, from files and from the cache.

    Each scene is listed several times, so that an epoch is long beside its beginning. Files and cache are in the
    system's memory: what a disk costs comes on top.

    Args:
        options: sizes.
        num_workers: loading processes.
    """
    repeats = 1 if options.quick else max(1, 2 * num_workers)
    height, width = options.size(1024, 2048)
    with drawn_scenes(4 if options.quick else _NUM_SCENES, (height, width)) as (root, pairs):
        (root / "train.lst").write_text("".join(f"{a}\t{b}\n" for a, b in pairs * repeats), encoding="utf-8")
        crop = options.size(512, 1024)
        settings = ["DATASET.ROOT", str(root), "DATASET.TRAIN_SET", "train.lst", "WORKERS", str(num_workers)]
        settings += ["TRAIN.IMAGE_SIZE", f"{crop[1]},{crop[0]}", "TRAIN.BASE_SIZE", str(width)]
        settings += ["TRAIN.BATCH_SIZE_PER_GPU", str(_BATCH), "DATASET.CACHE_DIR", str(root / "cache")]

        def loader(cache: str) -> DataLoader[Batch]:
            return builders.build_train_loader(load_config(_CONFIG, [*settings, "DATASET.CACHE", cache]))[0]

        decoded, cached = loader("none"), loader("disk")

        def epoch(batches: DataLoader[Batch]) -> tuple[Any, int]:
            count, first = 0, None
            for batch in batches:
                first = batch if first is None else first
                count += len(batch.names)
            return first, count

        def same(a: tuple[Batch, int], b: tuple[Batch, int]) -> None:
            assert a[1] == b[1] == len(pairs) * repeats
            for name in ("images", "labels", "changes"):
                assert torch.equal(getattr(a[0], name), getattr(b[0], name))

        yield Case(
            f"crops by {num_workers} loading process(es), Cityscapes, the cache against decoding",
            plain=lambda: epoch(decoded),
            ours=lambda: epoch(cached),
            same=same,
            num_images=len(pairs) * repeats,
        )


FEEDING: dict[str, Callable[[Options], Any]] = {  # as far as there are cores
    f"crops by loading processes {number}": partial(feeding_case, num_workers=number)
    for number in _NUM_PROCESSES
    if number <= num_cores()
}
