"""Training targets of each pixel, shared by all score maps of a batch, and the loss of each pixel.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Class and weight of each pixel.

    Attributes:
        labels: ``(B, H, W)`` int64 class ids; 0 at ignored pixels.
        valid: ``(B, H, W)`` bool; False at ignored pixels.
        weights: ``(B, H, W)`` weight of the pixel's class; 0 at ignored pixels.
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
    ) -> Targets:
        """Targets of a batch.

        Args:
            labels: ``(B, H, W)`` int64 class ids.
            ignore_label: label of ignored pixels.
            class_weights: ``(K,)``; None for equal weights.
            dtype: dtype of the weights, that of the scores.
        """
        valid = labels != ignore_label
        known = labels.masked_fill(~valid, 0)
        weights = valid.to(dtype)
        if class_weights is not None:
            weights = weights * class_weights.to(dtype)[known]
        return cls(known, valid, weights)


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
