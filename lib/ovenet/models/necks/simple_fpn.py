"""The simple feature pyramid of ViTDet: maps of several strides from one (Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection", 2022, section 3; detectron2's ``SimpleFeaturePyramid``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.interfaces import Neck
from ovenet.models.registry import NECKS
from ovenet.models.stacked import StackedMaps

_EPS = 1e-6  # of detectron2's LayerNorm
_FACTORS = (4.0, 2.0, 1.0, 0.5)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of the channels of each pixel of a map ``(B, C, h, w)``."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@NECKS.register("simple_fpn")
class SimpleFPNNeck(Neck):
    """Makes a pyramid of the last map of a plain vision transformer, initialised as by torch.

    Args:
        in_channels: channels of each map; the last map is read.
        in_strides: stride of each map, all the same.
        channels: of each map of the pyramid.
        scale_factors: resolution of each map of the pyramid, as a multiple of the last map's: some of 4, 2, 1 and 0.5,
            fine to coarse.
        align_corners: convention of the upsampling of `joined` maps.
        joined: concatenate the maps at the finest stride, as the neck ``concat`` does, for heads that read one map.
        stacks: return joined maps as one (True), or as `StackedMaps` for heads that read these (False).

    Raises:
        UserError: the maps have several strides, or a setting is invalid.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        channels: int = 256,
        scale_factors: Sequence[float] = _FACTORS,
        align_corners: bool = True,
        joined: bool = False,
        stacks: bool = True,
    ):
        super().__init__()
        stride = require_one_stride("simple_fpn", in_strides, "fpn")
        if channels < 1:
            raise UserError(f"MODEL.NECK.CHANNELS is {channels}; expected at least 1")
        if not scale_factors or list(scale_factors) != [f for f in _FACTORS if f in scale_factors]:
            raise UserError(
                f"MODEL.NECK.SCALE_FACTORS is {list(scale_factors)}; expected some of 4, 2, 1 and 0.5, in this order"
            )
        if any(stride % factor for factor in scale_factors):
            whole = [int(f) if f >= 1 else f for f in scale_factors if not stride % f]
            raise UserError(
                f"MODEL.NECK.SCALE_FACTORS is {list(scale_factors)}, but the stride of the backbone's maps, {stride}, "
                f"is no multiple of {scale_factors[0]:g}; set {whole}"
            )
        self.pyramid = nn.ModuleList(_level(in_channels[-1], channels, factor) for factor in scale_factors)
        self.joined, self.stacks, self.align_corners = joined, stacks, align_corners
        self.channels = (channels * len(scale_factors),) if joined else (channels,) * len(scale_factors)
        self.strides = tuple(int(stride / factor) for factor in scale_factors)[: len(self.channels)]

    def forward(self, features: list[Tensor]) -> list[Any]:
        """Maps ``(B, C, h, w)``, of which the last is read, to ``(B, channels, factor * h, factor * w)`` each, or to
        one map or stack of these.
        """
        maps = [level(features[-1]) for level in self.pyramid]
        if not self.joined:
            return maps
        stack = StackedMaps(maps, align_corners=self.align_corners)
        return [stack.stack()] if self.stacks else [stack]


def _level(in_channels: int, channels: int, factor: float) -> nn.Sequential:
    """One map of the pyramid: resampled, a 1x1 and a 3x3 convolution, each with layer normalisation."""
    layers: list[nn.Module] = []
    if factor == 4:
        layers += [nn.ConvTranspose2d(in_channels, in_channels // 2, 2, 2), LayerNorm2d(in_channels // 2), nn.GELU()]
        layers += [nn.ConvTranspose2d(in_channels // 2, in_channels // 4, 2, 2)]
        in_channels //= 4
    elif factor == 2:
        layers += [nn.ConvTranspose2d(in_channels, in_channels // 2, 2, 2)]
        in_channels //= 2
    elif factor == 0.5:
        layers += [nn.MaxPool2d(2, ceil_mode=True)]  # detectron2's images have an even number of patches
    layers += [nn.Conv2d(in_channels, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


def require_one_stride(neck: str, in_strides: Sequence[int], other: str) -> int:
    """The stride of all maps.

    Args:
        neck: name of the neck, for the message.
        in_strides: stride of each map.
        other: name of the neck to use instead.

    Raises:
        UserError: there are several.
    """
    if len(set(in_strides)) > 1:
        raise UserError(
            f"the neck {neck} is for plain vision transformers, whose maps have one stride, but the backbone's strides "
            f"are {', '.join(map(str, in_strides))}; set MODEL.NECK.NAME {other}"
        )
    return in_strides[0]
