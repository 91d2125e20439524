"""Random streams derived from one seed."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, *, rank: int = 0) -> None:
    """Seeds Python, numpy and torch for this process.

    Args:
        seed: seed of the run; weights initialised right after this call are the same on every rank if `rank` is left
            out.
        rank: rank of the process.
    """
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random generator of one sample's augmentation, the same in every process and worker."""
    return np.random.default_rng([seed, epoch, index])
