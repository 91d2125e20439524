"""Upsampling by weights that the network predicts for every pixel (Wang et al., "CARAFE: Content-Aware ReAssembly of
FEatures", 2019), in plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def reassemble(
    features: Tensor, weights: Tensor, *, scale: int = 1, padding_mode: Literal["constant", "replicate"] = "constant"
) -> Tensor:
    """Upsamples by `scale`: each output pixel is a weighted sum of the k x k pixels around its input pixel.

    The kernel's taps are added one by one, so that the features are never copied once per tap.

    Args:
        features: ``(B, C, h, w)``.
        weights: ``(B, k * k, scale * h, scale * w)``, taps row by row, k odd; shared by all channels.
        scale: output pixels per input pixel along each axis.
        padding_mode: ``constant`` pads with zeros, ``replicate`` with the border pixel.

    Returns:
        ``(B, C, scale * h, scale * w)`` in the dtype of the weights.
    """
    margin = math.isqrt(weights.shape[1]) // 2
    padded = F.pad(features.to(weights.dtype), (margin, margin, margin, margin), mode=padding_mode).contiguous()
    taps = F.pixel_unshuffle(weights, scale).unflatten(1, (-1, 1, scale**2))  # (B, k * k, 1, scale², h, w)
    add_up = _Sum.apply if torch.is_grad_enabled() else _sum
    return F.pixel_shuffle(add_up(padded, taps).flatten(1, 2), scale)


def _sum(padded: Tensor, taps: Tensor) -> Tensor:
    """Sum over the taps of the window that each reads, weighted by it: ``(B, C, scale², h, w)``."""
    total = torch.zeros((), dtype=taps.dtype, device=taps.device)
    for tap, window in zip(taps.unbind(1), _windows(padded, taps), strict=True):
        total = torch.addcmul(total, tap, window.unsqueeze(2))
    return total


def _windows(padded: Tensor, taps: Tensor) -> Iterator[Tensor]:
    """The window of the padded map that each tap reads, a view ``(B, C, h, w)``."""
    side = math.isqrt(taps.shape[1])
    height, width = (n - side + 1 for n in padded.shape[-2:])  # the exporter would fix those of `taps`
    for top, left in product(range(side), repeat=2):
        yield padded[..., top : top + height, left : left + width]


class _Sum(torch.autograd.Function):
    """`_sum` with a gradient accumulated in one map: autograd would allocate a map of zeros for every window."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(padded, taps)
        return _sum(padded, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        padded, taps = ctx.saved_tensors
        of_padded = torch.zeros_like(padded) if ctx.needs_input_grad[0] else None
        if of_padded is not None:
            for tap, window in zip(taps.unbind(1), _windows(of_padded, taps), strict=True):
                if taps.shape[3] == 1:
                    window.addcmul_(tap.squeeze(2), gradient.squeeze(2))
                else:
                    window.add_((tap * gradient).sum(dim=2))
        if not ctx.needs_input_grad[1]:
            return of_padded, None
        of_taps = [(gradient * w.unsqueeze(2)).sum(dim=1, keepdim=True) for w in _windows(padded, taps)]
        return of_padded, torch.stack(of_taps, dim=1)
