"""Training targets of each pixel, shared by all score maps of a batch, and the loss of each pixel.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Class and weight of each pixel.

    Attributes:
        labels: ``(B, H, W)`` int64 class ids; 0 at ignored pixels.
        valid: ``(B, H, W)`` bool; False at ignored pixels.
        weights: ``(B, H, W)`` weight of the pixel, that of its class times that of its place; 0 at ignored pixels.
    """

    labels: Tensor
    valid: Tensor
    weights: Tensor

    @classmethod
    def from_labels(
        cls,
        labels: Tensor,
        *,
        ignore_label: int,
        class_weights: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        boundary_weight: float = 0.0,
        boundary_width: int = 4,
    ) -> Targets:
        """Targets of a batch.

        Args:
            labels: ``(B, H, W)`` int64 class ids.
            ignore_label: label of ignored pixels.
            class_weights: ``(K,)``; None for equal weights.
            dtype: dtype of the weights, that of the scores.
            boundary_weight: pixels near a border of labels have ``1 + boundary_weight`` times the weight.
            boundary_width: largest distance of such a pixel from another class, see `near_border`.
        """
        valid = labels != ignore_label
        known = labels.masked_fill(~valid, 0)
        weights = valid.to(dtype)
        if class_weights is not None:
            weights = weights * class_weights.to(dtype)[known]
        if boundary_weight:
            weights = weights * (1 + boundary_weight * near_border(known, valid, boundary_width).to(dtype))
        return cls(known, valid, weights)


def near_border(labels: Tensor, valid: Tensor, width: int) -> Tensor:
    """Whether there are two classes within a distance of each pixel.

    Args:
        labels: ``(B, H, W)`` int64 class ids.
        valid: ``(B, H, W)`` bool; other pixels have no class, and neither has the outside of the image.
        width: distance in pixels, at least 1; within it are all pixels whose row and column differ by at most as much.

    Returns:
        ``(B, H, W)`` bool, computed without synchronisation with the device.
    """
    signed = torch.stack((labels, -labels), dim=1).float().masked_fill(~valid.unsqueeze(1), -torch.inf)
    for vertical, horizontal in ((width, 0), (0, width)):
        window = (2 * vertical + 1, 2 * horizontal + 1)
        signed = F.max_pool2d(signed, window, stride=1, padding=(vertical, horizontal))
    return signed.sum(dim=1) > 0  # the largest id less the smallest one; -inf without any class


@dataclass(frozen=True)
class OhemSettings:
    """Settings of online hard example mining (OHEM), see `ovenet.losses.functional.ohem_limit`."""

    threshold: float
    min_kept: int


@dataclass(frozen=True)
class PixelLoss:
    """Loss of each pixel for one score map.

    Attributes:
        nll: ``(B, H, W)`` negative log likelihood of the pixel's own class.
        limit: probability below which a pixel is hard; None without OHEM.
    """

    nll: Tensor
    limit: Tensor | float | None
