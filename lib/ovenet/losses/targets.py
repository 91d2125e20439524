"""Targets per pixel, computed once for all score maps of a batch, and the loss per pixel of one map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Classes and weights of the pixels.

    Attributes:
        labels: ``(B, H, W)`` int64, 0 where the pixel is ignored.
        valid: ``(B, H, W)`` whether it counts.
        weights: ``(B, H, W)`` weight of the pixel's class, 0 where the pixel is ignored.
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
            labels: ``(B, H, W)`` int64 train ids.
            ignore_label: marks the ignored pixels.
            class_weights: ``(K,)``, or None for equal ones.
            dtype: of the weights; that of the scores.
        """
        valid = labels != ignore_label
        known = labels.masked_fill(~valid, 0)
        weights = valid.to(dtype)
        if class_weights is not None:
            weights = weights * class_weights.to(dtype)[known]
        return cls(known, valid, weights)


@dataclass(frozen=True)
class OhemSettings:
    """Online hard example mining, see `ovenet.losses.functional.ohem_limit`."""

    threshold: float
    min_kept: int


@dataclass(frozen=True)
class PixelLoss:
    """The loss of every pixel under one score map.

    Attributes:
        nll: ``(B, H, W)`` negative logarithm of the probability of the pixel's own class.
        limit: probability below which a pixel is hard; None without mining.
    """

    nll: Tensor
    limit: Tensor | float | None
