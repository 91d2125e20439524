"""Maps of several resolutions stacked at the finest one, and a 1x1 convolution of them that need not stack them.

Bilinear resizing and a 1x1 convolution may change places: the one mixes pixels within each channel by weights of sum 1,
the other channels within each pixel. With the stack ``[up(x_1), ..., up(x_n)]`` and the slices ``W_i`` of the weight,
``W [up(x_1), ..., up(x_n)] + b = sum_i up(W_i x_i) + b``.

Shapes: map ``i`` is ``(B, C_i, h_i, w_i)``, the stack ``(B, C, h_1, w_1)`` with ``C = sum C_i``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import resize_features
from ovenet.models.precision import is_reduced

# Of a coarse map, from which on its own convolution pays: per pixel of the stack it saves C_i C multiply-adds, but adds
# to all C channels a map of their size, which has to be written and read. On a CPU it pays from about 160 on.
MIN_CHANNELS_APART = 256


class StackedMaps:
    """Maps that are stacked when somebody asks for it.

    Args:
        maps: fine to coarse.
        align_corners: convention of the upsampling.
    """

    def __init__(self, maps: Sequence[Tensor], *, align_corners: bool):
        self.maps = tuple(maps)
        self.size = self.maps[0].shape[-2:]
        self.align_corners = align_corners

    def upsampled(self, x: Tensor) -> Tensor:
        """A map at the size of the stack."""
        return resize_features(x, self.size, align_corners=self.align_corners)

    def stacked(self, num_maps: int | None = None) -> Tensor:
        """The stack of the first maps, or of all."""
        parts = [self.upsampled(x) for x in self.maps[:num_maps]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def as_tensor(x: Tensor | StackedMaps) -> Tensor:
    """The map itself, or the stack."""
    return x if isinstance(x, Tensor) else x.stacked()


class StackedConv2d(nn.Conv2d):
    """A 1x1 convolution of a map or of a stack, in which wide coarse maps are convolved before they are upsampled.

    Not in 16 bits: products are cheap there, and partial sums would be rounded once more each. Nor on the meta device,
    where networks are counted: as they were published.

    Args:
        in_channels: of the map or the stack.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor | StackedMaps) -> Tensor:
        """``(B, out_channels, h_1, w_1)``."""
        if isinstance(x, Tensor):
            return super().forward(x)
        wide = [i for i, m in enumerate(x.maps) if i and m.shape[1] >= MIN_CHANNELS_APART]
        if not wide or is_reduced(x.maps[0]) or x.maps[0].is_meta:
            return super().forward(x.stacked())
        num_near = wide[0]
        apart = x.maps[num_near:]
        widths = [sum(m.shape[1] for m in x.maps[:num_near]), *(m.shape[1] for m in apart)]
        near, *others = self.weight.split(widths, dim=1)
        total = F.conv2d(x.stacked(num_near), near, self.bias)
        for m, weight in zip(apart, others, strict=True):
            total += x.upsampled(F.conv2d(m, weight))
        return total
