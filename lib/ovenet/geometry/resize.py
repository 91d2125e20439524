"""Resizing of score maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_bilinear(values: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear resize, the identity where the size is right already.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.
        align_corners: True puts the centres of the corner pixels onto each other (networks published with OCR).

    Returns:
        ``(B, C, H, W)``.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)
