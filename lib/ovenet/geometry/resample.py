"""Fetching scores, offsets and labels at seed pixels.

Positions are ``(B, 2, h, w)`` in ``(x, y)``, normalised so that the centres of the corner pixels lie at ±1. Unless told
otherwise everything samples with ``align_corners=True``, the convention of the grid: a zero offset is the identity.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry.grid import pixel_grid


def seed_position(offset: Tensor) -> Tensor:
    """Where each pixel's seed lies: the pixel's own position plus its offset, kept inside the image.

    Args:
        offset: ``(B, 2, h, w)`` normalised ``(x, y)``.

    Returns:
        ``(B, 2, h, w)`` in ``[-1, 1]``.
    """
    grid = pixel_grid(offset.shape[-2:], device=offset.device, dtype=offset.dtype)
    return (grid + offset).clamp(-1.0, 1.0)


def sample_bilinear(
    values: Tensor,
    position: Tensor,
    *,
    padding_mode: Literal["border", "zeros"] = "border",
    align_corners: bool = True,
) -> Tensor:
    """Bilinear values at the given positions, computed in the positions' precision.

    Args:
        values: ``(B, C, h, w)``.
        position: ``(B, 2, h', w')`` normalised ``(x, y)``, float32 or float64; NaN samples the centre, since torch's
            CPU kernel reads and writes outside its memory there.
        padding_mode: what lies outside the image, see `torch.nn.functional.grid_sample`.
        align_corners: whether the centres of the corner pixels lie at ±1, or their outer edges.

    Returns:
        ``(B, C, h', w')`` of the positions' type.
    """
    grid = position.nan_to_num(nan=0.0).permute(0, 2, 3, 1)
    return F.grid_sample(
        values.to(position.dtype), grid, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners
    )


def refine_offset(offset: Tensor, num_steps: int) -> Tensor:
    """Extends each offset by the one at its seed, `num_steps` times: ``o ← o + o(seed)`` (paper, iterative refinement).

    Args:
        offset: ``(B, 2, h, w)`` normalised ``(x, y)``.
        num_steps: 0 returns the offset as it is.

    Returns:
        ``(B, 2, h, w)``; may point outside the image, `seed_position` clamps it.
    """
    for _ in range(num_steps):
        offset = offset + sample_bilinear(offset, seed_position(offset), padding_mode="zeros")
    return offset


def lookup_labels(labels: Tensor, position: Tensor) -> Tensor:
    """The label of the pixel nearest to each position.

    Args:
        labels: ``(B, H, W)`` integers.
        position: ``(B, 2, H', W')`` normalised ``(x, y)``; positions outside ``[-1, 1]`` take the border's label.

    Returns:
        ``(B, H', W')`` of the labels' type.
    """
    height, width = labels.shape[-2:]
    x, y = ((position[:, axis] + 1) * ((n - 1) / 2) for axis, n in ((0, width), (1, height)))
    column = x.round().long().clamp_(0, width - 1)
    row = y.round().long().clamp_(0, height - 1)
    index = (row * width + column).flatten(1)
    return labels.flatten(1).gather(1, index).view(index.shape[0], *position.shape[-2:])
