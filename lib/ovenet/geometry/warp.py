"""Warping of maps by a displacement field, in the conventions of four published methods.

Shapes: ``B`` batch, ``C`` channels, ``G`` groups of channels, ``h w`` map size, ``H W`` field size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ovenet.geometry.grid import pixel_grid
from ovenet.geometry.resample import sample_bilinear
from ovenet.geometry.resize import spatial_size
from ovenet.geometry.scores import at_least_float32
from ovenet.structures import Size


@dataclass(frozen=True)
class WarpConvention:
    """Units and sampling convention of a displacement field.

    Attributes:
        units: unit of the displacements: ``normalised``, where the image spans 2; ``pixels``, `pixel_size` pixels of
            the field; or ``sizes``, where ``W`` and ``H`` of the field equal one normalised unit, half the image.
        align_corners: whether the centres (True) or the outer edges (False) of the corner pixels are at ±1.
        padding_mode: values outside the map.
        clamp: whether positions are clamped to ±1.
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
    """Bilinear samples at each pixel's position plus its displacement, in at least float32.

    Args:
        values: ``(B, C, h, w)``.
        displacement: ``(B, 2 G, H, W)``: ``(x, y)`` for each group of channels in turn.
        convention: units and sampling convention of the displacement.
        num_groups: ``G``; the channels are split into as many groups, each with its own field. If ``G`` does not divide
            their number, the first groups have one more.

    Returns:
        ``(B, C, H, W)``. A zero displacement is the identity if map and field have the same size.
    """
    if values.shape[1] % num_groups:
        groups = zip(values.tensor_split(num_groups, dim=1), displacement.split(2, dim=1), strict=True)
        return torch.cat([warp(group, field, convention) for group, field in groups if group.shape[1]], dim=1)
    batch, size = values.shape[0], spatial_size(displacement)  # a trace would fix len(values)
    values = at_least_float32(values)
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
    """Displacements ``(B, 2, H, W)`` in ``(x, y)``, converted so that the image spans 2."""
    if convention.units == "normalised":
        return displacement
    scales = _scales(convention, spatial_size(displacement))
    # Axis by axis: a tensor of the two scales would be copied from the host to the device.
    return torch.cat([x * scale for x, scale in zip(displacement.split(1, dim=1), scales, strict=True)], dim=1)


def _scales(convention: WarpConvention, size: Size) -> list[float]:
    """Normalised units per unit of the displacement, in ``(x, y)``."""
    if convention.units == "sizes":
        return [1.0 / n for n in reversed(size)]
    spans = [max(1, n - 1) if convention.align_corners else n for n in reversed(size)]
    return [2.0 * convention.pixel_size / n for n in spans]
