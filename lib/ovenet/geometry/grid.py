"""Normalised pixel coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_grid(
    size: tuple[int, int], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Coordinates of every pixel centre, the corner pixels' centres at ±1 (``align_corners=True``).

    Args:
        size: ``(h, w)`` in pixels.
        device: where the grid lies.
        dtype: a floating type.

    Returns:
        ``(1, 2, h, w)`` in ``(x, y)``. An axis of one pixel has the coordinate 0.
    """
    h, w = size
    y, x = (_axis(n, device, dtype) for n in (h, w))
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w))).unsqueeze(0)


def _axis(n: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if n == 1:
        return torch.zeros(1, device=device, dtype=dtype)
    return torch.linspace(-1.0, 1.0, n, device=device, dtype=dtype)
