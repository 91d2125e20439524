"""The neck of HRNetV2: concatenates all maps at the finest resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import Neck, initialize_convolutions
from ovenet.models.registry import NECKS
from ovenet.models.stacked import StackedMaps


@NECKS.register("concat")
class ConcatNeck(Neck):
    """Upsamples every map to the first one's size and concatenates the channels.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map.
        projection: channels that each map is projected to first, by a 1x1 convolution with BatchNorm and ReLU; None for
            no projection.
        align_corners: convention of the upsampling.
        stacks: return the concatenated map (True), or `StackedMaps` for heads that read these (False).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        projection: int | None = None,
        align_corners: bool = True,
        stacks: bool = True,
    ):
        super().__init__()
        widths = in_channels if projection is None else [projection] * len(in_channels)
        self.channels, self.strides = (sum(widths),), (in_strides[0],)
        self.align_corners = align_corners
        self.stacks = stacks
        self.projections = nn.ModuleList(
            nn.Identity() if projection is None else conv_bn(c, projection, kernel=1) for c in in_channels
        )
        initialize_convolutions(self)

    def forward(self, features: list[Tensor]) -> list[Any]:
        """Maps ``(B, C_r, h_r, w_r)``, fine to coarse, to one ``(B, sum C_r, h_0, w_0)`` or `StackedMaps` of that."""
        maps = [projection(x) for projection, x in zip(self.projections, features, strict=True)]
        stack = StackedMaps(maps, align_corners=self.align_corners)
        return [stack.stack()] if self.stacks else [stack]


@NECKS.register("none")
class IdentityNeck(Neck):
    """The identity: heads read the backbone's maps.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map.
    """

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = tuple(in_channels), tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the maps unchanged."""
        return features
