"""Turning mixed precision off, and asking whether it is on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context without autocast: operations compute in the precision of their inputs."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()  # devices without autocast, such as meta
    return torch.autocast(device.type, enabled=False)


def is_reduced(x: Tensor) -> bool:
    """Whether a convolution of the map gives less than float32, because of autocast or of the map's dtype."""
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return autocast or x.dtype.itemsize < torch.float32.itemsize
