"""One way of moving maps by a field of displacements, in the four conventions of the systems that do so.

They differ in the units of the displacement, in where the corners of a map lie, and in what lies outside of it:

| system | units | corners | outside |
|---|---|---|---|
| OVeNet (`OVENET`) | normalised: the image spans 2 | centres of corner pixels at ±1 | the border; clamped |
| SRM (`SRM`) | pixels of the field | edges of the corner pixels at ±1 | the border |
| flow alignment, FAM (`FLOW_ALIGNMENT`) | half a normalised unit is the field's size | centres at ±1 | zeros |
| FreqFusion (`FREQ_FUSION`) | two pixels of the field | edges at ±1 | the border |

Shapes: ``B`` batch, ``C`` channels, ``h w`` of the map, ``H W`` of the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ovenet.geometry.grid import pixel_grid
from ovenet.geometry.resample import sample_bilinear


@dataclass(frozen=True)
class WarpConvention:
    """Units and sampling convention of a displacement field.

    Attributes:
        units: ``normalised``; ``pixels``, which are `pixel_size` pixels of the field each; or ``sizes``, of which the
            field's width and height are a half in normalised units.
        align_corners: whether the centres (True) or the edges (False) of the corner pixels lie at ±1.
        padding_mode: what lies outside the map.
        clamp: keep positions within ±1.
        pixel_size: see `units`.
    """

    units: Literal["normalised", "pixels", "sizes"]
    align_corners: bool
    padding_mode: Literal["border", "zeros"] = "border"
    clamp: bool = False
    pixel_size: float = 1.0


OVENET = WarpConvention("normalised", align_corners=True, clamp=True)
SRM = WarpConvention("pixels", align_corners=False)
FLOW_ALIGNMENT = WarpConvention("sizes", align_corners=True, padding_mode="zeros")
FREQ_FUSION = WarpConvention("pixels", align_corners=False, pixel_size=2.0)


def warp(values: Tensor, displacement: Tensor, convention: WarpConvention, *, num_groups: int = 1) -> Tensor:
    """Bilinear values at every pixel of the field plus its displacement, in float32 at least.

    Args:
        values: ``(B, C, h, w)``.
        displacement: ``(B, 2 G, H, W)``: ``(x, y)`` of each group of channels in turn.
        convention: what its numbers mean.
        num_groups: ``G``; the number of groups that the channels are split into, each with a field of its own.

    Returns:
        ``(B, C, H, W)``. A displacement of zero is the identity where both have one size.
    """
    batch, size = values.shape[0], displacement.shape[-2:]  # a trace would take len() for fixed
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    fields = displacement.to(values.dtype).unflatten(1, (num_groups, 2)).flatten(0, 1)  # (B G, 2, H, W)
    grid = pixel_grid(size, device=values.device, dtype=values.dtype, align_corners=convention.align_corners)
    position = grid + normalised_displacement(fields, convention)
    if convention.clamp:
        position = position.clamp(-1.0, 1.0)
    grouped = values.unflatten(1, (num_groups, -1)).flatten(0, 1)  # (B G, C / G, h, w)
    moved = sample_bilinear(
        grouped, position, padding_mode=convention.padding_mode, align_corners=convention.align_corners
    )
    return moved.unflatten(0, (batch, num_groups)).flatten(1, 2)


def normalised_displacement(displacement: Tensor, convention: WarpConvention) -> Tensor:
    """Displacements ``(B, 2, H, W)`` in ``(x, y)`` of a convention, in units of which the image spans 2."""
    if convention.units == "normalised":
        return displacement
    scales = _scales(convention, displacement.shape[-2:])
    # By axis: a tensor of the two numbers would be copied from the host.
    return torch.cat([x * scale for x, scale in zip(displacement.split(1, dim=1), scales, strict=True)], dim=1)


def _scales(convention: WarpConvention, size: tuple[int, int]) -> list[float]:
    """Normalised units per unit of the displacement, pixels or sizes, in ``(x, y)``."""
    if convention.units == "sizes":
        return [1.0 / n for n in reversed(size)]
    spans = [max(1, n - 1) if convention.align_corners else n for n in reversed(size)]
    return [2.0 * convention.pixel_size / n for n in spans]
