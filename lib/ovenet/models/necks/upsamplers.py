"""Upsampling of a coarse map to the next finer one in a feature pyramid.

Each module takes ``fine`` ``(B, D, H, W)`` and ``coarse`` ``(B, D, h, w)``, and returns both at the size of the fine
one; the pyramid adds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ovenet.geometry import FLOW_ALIGNMENT, SRM, at_least_float32, reassemble, resize_features, spatial_size, warp
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.displacement import Displacement
from ovenet.models.interfaces import initialize_convolutions
from ovenet.models.norm import BatchNorm2d

NUM_TAPS = 9


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


UpsamplerName = Literal["bilinear", "srm", "fam", "align_fa"]
UPSAMPLERS: dict[str, Callable[..., nn.Module]] = {
    "bilinear": Bilinear,
    "srm": SemanticRefinement,
    "fam": FlowAlignment,
    "align_fa": FeatureAlignment,
}
