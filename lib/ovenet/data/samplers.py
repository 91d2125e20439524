"""Samplers: the samples of each process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[tuple[int, int]]):
    """This rank's share of each epoch, as ``(epoch, index)``; shares are equal, the remainder is dropped.

    Args:
        num_samples: size of the whole dataset.
        rank: of this process.
        world_size: number of processes.
        seed: of the run.
        shuffle: new order every epoch.

    Attributes:
        epoch: the current epoch.
        start: number of its samples that all ranks together have already used.
    """

    def __init__(self, num_samples: int, *, rank: int, world_size: int, seed: int, shuffle: bool = True):
        self.num_samples = num_samples
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        order = order[self.start :]
        order = order[: len(order) // self.world_size * self.world_size]
        return iter([(self.epoch, int(index)) for index in order[self.rank :: self.world_size]])


def evaluation_shard(num_samples: int, *, rank: int, world_size: int) -> range:
    """Indices that this rank evaluates: every sample on exactly one rank."""
    return range(rank, num_samples, world_size)


def spread(num_items: int, num_chosen: int) -> list[int]:
    """Up to `num_chosen` indices, evenly spread over ``range(num_items)``."""
    return sorted({round(i) for i in np.linspace(0, num_items - 1, min(num_items, num_chosen))})
