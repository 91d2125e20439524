"""A light neck for frozen plain vision transformers: a finer map by sub-pixel convolution (Shi et al., "Real-Time
Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", 2016).

A patch's token describes all of its pixels, so it can say what each part of the patch is; a resized map cannot. All
products are at the stride of the patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import Neck, initialize_convolutions
from ovenet.models.necks.simple_fpn import require_one_stride
from ovenet.models.registry import NECKS

_FINEST_STRIDE = 4


@NECKS.register("pixel_shuffle")
class PixelShuffleNeck(Neck):
    """Projects every map to few channels by a 1x1 convolution with BatchNorm and ReLU, concatenates them, and predicts
    several pixels of a finer map from each pixel. At initialisation these are equal (Aitken et al., 2017).

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map, all the same.
        channels: that each map is projected to, and of the finer map.
        upscale_factor: resolution of the finer map, as a multiple of the maps'; None for the largest power of two that
            divides the stride and leaves at least 4.

    Raises:
        UserError: the maps have several strides, or a setting is invalid.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        channels: int = 64,
        upscale_factor: int | None = None,
    ):
        super().__init__()
        stride = require_one_stride("pixel_shuffle", in_strides, "concat")
        factor = _default_factor(stride) if upscale_factor is None else upscale_factor
        if channels < 1:
            raise UserError(f"MODEL.NECK.CHANNELS is {channels}; expected at least 1")
        if factor < 1 or stride % factor:
            raise UserError(
                f"MODEL.NECK.UPSCALE_FACTOR is {factor}; expected a divisor of the stride of the backbone's maps, "
                f"{stride}"
            )
        self.channels, self.strides = (channels,), (stride // factor,)
        self.upscale_factor = factor
        self.projections = nn.ModuleList(conv_bn(c, channels, kernel=1) for c in in_channels)
        self.expand = nn.Conv2d(channels * len(in_channels), channels * factor**2, 1)
        initialize_convolutions(self)
        with torch.no_grad():  # the values of the first of each pixel's parts for all of them
            weight = self.expand.weight.unflatten(0, (channels, factor**2))
            weight.copy_(weight[:, :1].clone().expand_as(weight))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps ``(B, C_r, h, w)`` to one ``(B, channels, upscale_factor * h, upscale_factor * w)``."""
        maps = [projection(x) for projection, x in zip(self.projections, features, strict=True)]
        return [F.pixel_shuffle(self.expand(torch.cat(maps, dim=1)), self.upscale_factor)]


def _default_factor(stride: int) -> int:
    factor = 1
    while stride % (2 * factor) == 0 and stride // (2 * factor) >= _FINEST_STRIDE:
        factor *= 2
    return factor
