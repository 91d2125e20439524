"""Precision of computations that 16 bits are too few for."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
