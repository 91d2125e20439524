"""The neck of HRNetV2: all resolutions at the finest one, stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovenet.geometry import resize_bilinear


class ConcatNeck(nn.Module):
    """Upsamples every map to the first one's size and concatenates the channels.

    Args:
        in_channels: channels per map.
        align_corners: convention of the upsampling.
    """

    def __init__(self, in_channels: Sequence[int], *, align_corners: bool = True):
        super().__init__()
        self.out_channels = sum(in_channels)
        self.align_corners = align_corners

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps ``(B, C_r, h_r, w_r)``, fine to coarse, to ``(B, sum C_r, h_0, w_0)``."""
        size = features[0].shape[-2:]
        return torch.cat([resize_bilinear(x, size, align_corners=self.align_corners) for x in features], dim=1)
