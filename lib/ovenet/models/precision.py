"""Mixed precision: whether there is one, and full precision where it would lose too much."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Computes in the precision of the given tensors. Devices without autocast, such as meta, always do."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_reduced(x: Tensor) -> bool:
    """Whether a convolution of the map gives less than float32, by autocast or by its own type."""
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return autocast or x.dtype.itemsize < torch.float32.itemsize
