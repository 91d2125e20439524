"""Random streams derived from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_WITH_GENERATOR = ("cuda", "mps", "xpu")


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


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's random generators of the CPU and of a device, by the kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in _WITH_GENERATOR:
        states[device.type] = torch.get_device_module(device).get_rng_state(*_place(device))
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restores what `random_states` returned; leaves the device's generator alone if its state is not there."""
    torch.set_rng_state(states["cpu"])
    if device.type in _WITH_GENERATOR and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], *_place(device))


def _place(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one mps device, which its functions do not take


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random generator of one sample's augmentation, the same in every process and worker."""
    return np.random.default_rng([seed, epoch, index])
