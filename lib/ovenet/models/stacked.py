"""Concatenation of maps at the finest resolution, and a 1x1 convolution that avoids it.

Bilinear resizing, which mixes pixels within a channel by weights of sum 1, and a 1x1 convolution, which mixes channels
within a pixel, commute. With ``W_i`` the weight's slice for map ``i``, ``W [up(x_1), ..., up(x_n)] + b`` equals
``sum_i up(W_i x_i) + b``.

Shapes: map ``i`` is ``(B, C_i, h_i, w_i)``, the stack ``(B, C, h_1, w_1)`` with ``C = sum C_i``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import resize_features, spatial_size
from ovenet.models.precision import is_reduced

# Channels of a coarse map from which a convolution of its own is faster: it saves C_i C multiply-adds per pixel of the
# stack, but writes and reads one more map of C channels. On a CPU it is faster from about 160 channels.
MIN_CHANNELS_APART = 256


class StackedMaps:
    """Maps that are stacked on demand.

    Args:
        maps: fine to coarse.
        align_corners: convention of the upsampling.
    """

    def __init__(self, maps: Sequence[Tensor], *, align_corners: bool):
        self.maps = tuple(maps)
        self.size = spatial_size(self.maps[0])
        self.align_corners = align_corners

    def upsample(self, x: Tensor) -> Tensor:
        """A map resized to the size of the stack."""
        return resize_features(x, self.size, align_corners=self.align_corners)

    def stack(self, num_maps: int | None = None) -> Tensor:
        """The stack of the first `num_maps` maps; None for all."""
        parts = [self.upsample(x) for x in self.maps[:num_maps]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def as_tensor(x: Tensor | StackedMaps) -> Tensor:
    """A map as it is, maps as their stack."""
    return x if isinstance(x, Tensor) else x.stack()


class StackedConv2d(nn.Conv2d):
    """A 1x1 convolution of a map or a stack that convolves wide coarse maps before it upsamples them.

    In 16 bits the stack is convolved as a whole: products are cheap there, and each partial sum would be rounded once
    more. So it is on the meta device, where a network's cost is counted as published.

    Args:
        in_channels: channels of the map or the stack.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor | StackedMaps) -> Tensor:
        """``(B, out_channels, h_1, w_1)``."""
        if isinstance(x, Tensor):
            return super().forward(x)
        wide = [i for i, m in enumerate(x.maps) if i and m.shape[1] >= MIN_CHANNELS_APART]
        if not wide or is_reduced(x.maps[0]) or x.maps[0].is_meta:
            return super().forward(x.stack())
        num_near = wide[0]
        apart = x.maps[num_near:]
        widths = [sum(m.shape[1] for m in x.maps[:num_near]), *(m.shape[1] for m in apart)]
        near, *others = self.weight.split(widths, dim=1)
        total = F.conv2d(x.stack(num_near), near, self.bias)
        for m, weight in zip(apart, others, strict=True):
            total += x.upsample(F.conv2d(m, weight))
        return total
