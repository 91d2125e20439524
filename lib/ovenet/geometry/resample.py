"""Sampling of scores, offsets and labels at seed pixels.

Positions are ``(B, 2, h, w)`` in ``(x, y)``, normalised so that the centres of the corner pixels are at ±1. The default
everywhere is ``align_corners=True``, the convention of the grid: sampling at a zero offset is the identity.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry.grid import pixel_grid
from ovenet.geometry.resize import spatial_size


def seed_position(offset: Tensor) -> Tensor:
    """Position of each pixel's seed: the pixel's own position plus its offset, clamped to the image.

    Args:
        offset: ``(B, 2, h, w)`` normalised ``(x, y)``.

    Returns:
        ``(B, 2, h, w)`` in ``[-1, 1]``.
    """
    grid = pixel_grid(spatial_size(offset), device=offset.device, dtype=offset.dtype)
    return (grid + offset).clamp(-1.0, 1.0)


def sample_bilinear(
    values: Tensor,
    position: Tensor,
    *,
    padding_mode: Literal["border", "zeros"] = "border",
    align_corners: bool = True,
) -> Tensor:
    """Bilinear samples at the given positions, computed in the precision of the positions.

    Args:
        values: ``(B, C, h, w)``.
        position: ``(B, 2, h', w')`` normalised ``(x, y)``, float32 or float64. NaN samples the centre: torch's CPU
            kernel would access memory out of bounds.
        padding_mode: values outside the image, see `torch.nn.functional.grid_sample`.
        align_corners: whether the centres (True) or the outer edges (False) of the corner pixels are at ±1.

    Returns:
        ``(B, C, h', w')`` in the dtype of the positions.
    """
    grid = position.nan_to_num(nan=0.0).permute(0, 2, 3, 1)
    return F.grid_sample(
        values.to(position.dtype), grid, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners
    )


def refine_offset(offset: Tensor, num_steps: int) -> Tensor:
    """Adds to each offset the offset at its seed, `num_steps` times: ``o ← o + o(p + o)`` (iterative refinement).

    Args:
        offset: ``(B, 2, h, w)`` normalised ``(x, y)``.
        num_steps: number of refinements; 0 returns the offset unchanged.

    Returns:
        ``(B, 2, h, w)``; may point outside the image, `seed_position` clamps it.
    """
    for _ in range(num_steps):
        offset = offset + sample_bilinear(offset, seed_position(offset), padding_mode="zeros")
    return offset


def lookup_labels(labels: Tensor, position: Tensor, *, align_corners: bool = True) -> Tensor:
    """The label of the pixel nearest to each position.

    Args:
        labels: ``(B, H, W)`` integers.
        position: ``(B, 2, H', W')`` normalised ``(x, y)``; positions outside ``[-1, 1]`` get the label at the border.
        align_corners: see `sample_bilinear`.

    Returns:
        ``(B, H', W')`` in the dtype of the labels.
    """
    height, width = labels.shape[-2:]
    if align_corners:
        x, y = ((position[:, axis] + 1) * ((n - 1) / 2) for axis, n in ((0, width), (1, height)))
    else:
        x, y = ((position[:, axis] + 1) * (n / 2) - 0.5 for axis, n in ((0, width), (1, height)))
    column = x.round().long().clamp_(0, width - 1)
    row = y.round().long().clamp_(0, height - 1)
    index = (row * width + column).flatten(1)
    return labels.flatten(1).gather(1, index).view(index.shape[0], *position.shape[-2:])
