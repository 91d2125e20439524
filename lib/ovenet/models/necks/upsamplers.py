"""Upsampling of a coarse map to the next finer one in a feature pyramid.

Each module takes ``fine`` ``(B, D, H, W)`` and ``coarse`` ``(B, D, h, w)``, and returns both at the size of the fine
one; the pyramid adds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import (
    FLOW_ALIGNMENT,
    SRM,
    WarpConvention,
    at_least_float32,
    reassemble,
    resize_features,
    spatial_size,
    warp,
)
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.displacement import Displacement
from ovenet.models.interfaces import initialize_convolutions
from ovenet.models.norm import BatchNorm2d

NUM_TAPS = 9
PREDICTOR_WEIGHT_STD = 0.001  # of DySample's offsets and CARAFE's weights, as published
STATIC_SCOPE, DYNAMIC_SCOPE = 0.25, 0.5  # factor of DySample's offsets; largest factor if it is predicted


class Bilinear(nn.Module):
    """Bilinear interpolation.

    Args:
        channels: ``D``.
    """

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size."""
        return fine, resize_features(coarse, spatial_size(fine), align_corners=False)


class SemanticRefinement(nn.Module):
    """SRM (see `ovenet.models.necks.fpn` for the source): bilinear upsampling, then resampling at refined offsets.

    Offsets are predicted from both maps, and refined by a weighted mean over 3x3 pixels with predicted weights. At
    initialisation all offsets are zero.

    Args:
        channels: ``D``.
        hidden: ``m``, hidden channels; None for half of `channels`.
    """

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or max(1, channels // 2)
        self.mix = conv_bn(2 * channels, hidden, kernel=1)
        self.offset = nn.Conv2d(hidden, 2, 3, padding=1)
        self.mask = nn.Conv2d(hidden, NUM_TAPS, 3, padding=1)
        initialize_convolutions(self.mix)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)
        self.displacement = Displacement("SRM", SRM)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size."""
        upsampled = resize_features(coarse, spatial_size(fine), align_corners=False)
        return fine, warp(upsampled, self.displacement(self.predict(fine, upsampled)), SRM)

    def predict(self, fine: Tensor, upsampled: Tensor) -> Tensor:
        """Refined offsets ``(B, 2, H, W)`` in ``(x, y)``, in pixels of the fine map, in at least float32."""
        mixed = self.mix(torch.cat((fine, upsampled), dim=1))
        offset, mask = self.offset(mixed), self.mask(mixed)
        return reassemble(offset, at_least_float32(mask).softmax(dim=1), padding_mode="replicate")


class FlowAlignment(nn.Module):
    """FAM (Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", 2020): the coarse map warped by a flow that
    is predicted from both maps.

    Args:
        channels: ``D``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce_coarse = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.reduce_fine = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(2 * (channels // 2), 2, 3, padding=1, bias=False)
        self.displacement = Displacement("FAM", FLOW_ALIGNMENT)
        initialize_convolutions(self)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size."""
        upsampled = resize_features(self.reduce_coarse(coarse), spatial_size(fine), align_corners=True)
        flow = self.flow(torch.cat((upsampled, self.reduce_fine(fine)), dim=1))
        return fine, warp(coarse, self.displacement(flow), FLOW_ALIGNMENT)


class FeatureAlignment(nn.Module):
    """AlignFA (Huang et al., "AlignSeg: Feature-Aligned Segmentation Networks", 2021): both maps warped, each by its
    own flow; both flows are zero at initialisation.

    Args:
        channels: ``D``.
    """

    def __init__(self, channels: int):
        super().__init__()
        predictors = [nn.Conv2d(channels, 2, 3, padding=1, bias=False) for _ in range(2)]
        self.flows = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * channels, channels, 1, bias=False),
                BatchNorm2d(channels),
                predictor,
                Displacement(f"AlignFA, {which} map", FLOW_ALIGNMENT),
            )
            for predictor, which in zip(predictors, ("fine", "coarse"), strict=True)
        )
        initialize_convolutions(self)
        for predictor in predictors:
            nn.init.zeros_(predictor.weight)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size."""
        upsampled = resize_features(coarse, spatial_size(fine), align_corners=True)
        both = torch.cat((fine, upsampled), dim=1)
        fine, upsampled = (
            warp(x, flow(both), FLOW_ALIGNMENT) for x, flow in zip((fine, upsampled), self.flows, strict=True)
        )
        return fine, upsampled


class DySample(nn.Module):
    """DySample (Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023): the coarse map sampled at offsets
    that a 1x1 convolution predicts from it. At initialisation all offsets are about zero: bilinear upsampling.

    Offsets are added to the positions of bilinear upsampling, in pixels of the coarse map. This is the paper's "linear
    + pixel shuffle" version: offsets are predicted at the coarse resolution and then rearranged.

    Args:
        channels: channels of the map that offsets are predicted from.
        num_groups: groups of channels, each with its own offsets.
        dynamic_scope: predict the factor of the offsets too, from 0 to 0.5; else it is 0.25.
        align_corners: convention of the positions; False is published.
    """

    def __init__(self, channels: int, *, num_groups: int = 4, dynamic_scope: bool = False, align_corners: bool = False):
        super().__init__()
        self.num_groups = num_groups
        self.offset = nn.Conv2d(channels, 4 * 2 * num_groups, 1)
        nn.init.normal_(self.offset.weight, std=PREDICTOR_WEIGHT_STD)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)
        self.scope = nn.Conv2d(channels, 4 * 2 * num_groups, 1, bias=False) if dynamic_scope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
        self.convention = WarpConvention("pixels", align_corners=align_corners, pixel_size=2.0)
        self.displacement = Displacement("DySample", self.convention)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size, which is twice the coarse one's or a row or column less."""
        return fine, _cropped(self.upsample(coarse, coarse), fine)

    def upsample(self, values: Tensor, guide: Tensor) -> Tensor:
        """Values ``(B, C, h, w)`` to ``(B, C, 2h, 2w)`` in at least float32, at offsets predicted from the guide."""
        return warp(values, self.displacement(self.predict(guide)), self.convention, num_groups=self.num_groups)

    def predict(self, guide: Tensor) -> Tensor:
        """Offsets ``(B, 2 * num_groups, 2h, 2w)``, ``(x, y)`` for each group in turn, from ``(B, channels, h, w)``."""
        offset = at_least_float32(self.offset(guide))
        if self.scope is None:
            offset = STATIC_SCOPE * offset
        else:
            offset = DYNAMIC_SCOPE * at_least_float32(self.scope(guide)).sigmoid() * offset
        return F.pixel_shuffle(offset, 2).unflatten(1, (2, self.num_groups)).transpose(1, 2).flatten(1, 2)


class CARAFE(nn.Module):
    """CARAFE (see `ovenet.geometry.carafe` for the source): each fine pixel is a mean of the pixels around its coarse
    pixel, with weights predicted from the coarse map. At initialisation all weights are about equal.

    Args:
        channels: channels of the map that weights are predicted from.
        compressed_channels: channels that the map is projected to before.
        kernel_size: side of the square of pixels, odd.
    """

    def __init__(self, channels: int, *, compressed_channels: int = 64, kernel_size: int = 5):
        super().__init__()
        self.compress = nn.Conv2d(channels, compressed_channels, 1)
        self.encode = nn.Conv2d(compressed_channels, 4 * kernel_size**2, 3, padding=1)
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=PREDICTOR_WEIGHT_STD)
        for layer in (self.compress, self.encode):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size, which is twice the coarse one's or a row or column less."""
        return fine, _cropped(self.upsample(coarse, coarse), fine)

    def upsample(self, values: Tensor, guide: Tensor) -> Tensor:
        """Values ``(B, C, h, w)`` to ``(B, C, 2h, 2w)`` in at least float32, with weights predicted from the guide."""
        weights = F.pixel_shuffle(self.encode(self.compress(guide)), 2)
        return reassemble(values, at_least_float32(weights).softmax(dim=1), scale=2)


def _cropped(upsampled: Tensor, fine: Tensor) -> Tensor:
    height, width = spatial_size(fine)
    return upsampled[..., :height, :width]


UpsamplerName = Literal["bilinear", "srm", "fam", "align_fa", "dysample", "carafe"]
UPSAMPLERS: dict[str, Callable[..., nn.Module]] = {
    "bilinear": Bilinear,
    "srm": SemanticRefinement,
    "fam": FlowAlignment,
    "align_fa": FeatureAlignment,
    "dysample": DySample,
    "carafe": CARAFE,
}
DOUBLING: tuple[UpsamplerName, ...] = ("dysample", "carafe")  # the fine map has twice the coarse one's resolution
