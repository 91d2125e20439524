"""Upsampling by weights that the network predicts for every pixel (Wang et al., "CARAFE: Content-Aware ReAssembly of
FEatures", 2019), in plain torch."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def reassemble(
    features: Tensor, weights: Tensor, *, scale: int = 1, padding_mode: Literal["constant", "replicate"] = "constant"
) -> Tensor:
    """Every pixel of the result is a weighted sum of the k x k pixels around the one that it lies in.

    One tap of the kernel after the other, so that no copy of the features is made for each of them.

    Args:
        features: ``(B, C, h, w)``.
        weights: ``(B, k * k, scale * h, scale * w)``, for the taps row by row, k odd; the same for all channels.
        scale: pixels of the result per pixel of the features, along each axis.
        padding_mode: what lies outside: zeros, or the pixel at the border.

    Returns:
        ``(B, C, scale * h, scale * w)``, of the weights' type.
    """
    height, width = features.shape[-2:]
    kernel = math.isqrt(weights.shape[1])
    margin = kernel // 2
    padded = F.pad(features.to(weights.dtype), (margin, margin, margin, margin), mode=padding_mode).contiguous()
    taps = F.pixel_unshuffle(weights, scale).unflatten(1, (-1, 1, scale**2)).unbind(1)  # each (B, 1, scale², h, w)
    total = torch.zeros((), dtype=weights.dtype, device=weights.device)
    for (top, left), tap in zip(product(range(kernel), repeat=2), taps, strict=True):
        window = padded[..., top : top + height, left : left + width].unsqueeze(2)
        total = torch.addcmul(total, tap, window)
    return F.pixel_shuffle(total.flatten(1, 2), scale)
