"""Normalised pixel coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.structures import Size


def pixel_grid(
    size: Size,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    align_corners: bool = True,
) -> Tensor:
    """Coordinates of every pixel centre.

    Args:
        size: ``(h, w)`` in pixels.
        device: device of the grid.
        dtype: floating-point type of the grid.
        align_corners: whether the centres (True) or the outer edges (False) of the corner pixels are at ±1. With edges
            at ±1, coordinates are exact where a side is a power of two.

    Returns:
        ``(1, 2, h, w)`` in ``(x, y)``; 0 along an axis of one pixel.
    """
    h, w = size
    axis = _axis if align_corners else _axis_between_edges
    y, x = (axis(n, device, dtype) for n in (h, w))
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w))).unsqueeze(0)


def _axis(n: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if n == 1:
        return torch.zeros(1, device=device, dtype=dtype)
    return torch.linspace(-1.0, 1.0, n, device=device, dtype=dtype)


def _axis_between_edges(n: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return (2 * torch.arange(n, device=device, dtype=dtype) + 1) / n - 1
