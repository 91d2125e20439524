"""A feature pyramid with exchangeable upsampling and context modules. The SRM/CRM network is one combination ("Semantic
and Contextual Refinement", arXiv 2412.08671; it has no public code, docs/models.md lists the choices made here).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import Neck, initialize_convolutions
from ovenet.models.necks.contexts import CONTEXTS, ContextName
from ovenet.models.necks.upsamplers import DOUBLING, UPSAMPLERS, UpsamplerName
from ovenet.models.registry import NECKS


@NECKS.register("fpn")
class FPNNeck(Neck):
    """Merges the maps from coarse to fine, and returns the finest one.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map.
        channels: ``D``, channels of the pyramid; SRM/CRM has 128 on light backbones, 256 on others.
        upsampler: upsampling of a coarse map to the next finer one, see `ovenet.models.necks.upsamplers`.
        context: module for the coarsest map, see `ovenet.models.necks.contexts`.

    Raises:
        UserError: `channels` is below 8 or odd, or the upsampler does not go with the strides.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        channels: int = 128,
        upsampler: UpsamplerName = "bilinear",
        context: ContextName = "none",
    ):
        super().__init__()
        if channels < 8 or channels % 2:
            raise UserError(f"MODEL.NECK.CHANNELS is {channels}; expected an even number, at least 8")
        if upsampler in DOUBLING and any(coarse != 2 * fine for fine, coarse in pairwise(in_strides)):
            raise UserError(
                f"MODEL.NECK.UPSAMPLER is {upsampler}, which needs maps whose strides double, but the backbone's "
                f"strides are {', '.join(map(str, in_strides))}; use bilinear, or MODEL.BACKBONE.OUTPUT_STRIDE 32 "
                "where the backbone has it"
            )
        self.channels, self.strides = (channels,), (in_strides[0],)
        self.context = CONTEXTS[context](in_channels, channels)
        finer = range(len(in_channels) - 1)
        self.laterals = nn.ModuleList(conv_bn(in_channels[i], channels, kernel=1) for i in finer)
        self.upsamplers = nn.ModuleList(UPSAMPLERS[upsampler](channels) for _ in finer)
        self.smooth = nn.ModuleList(conv_bn(channels, channels) for _ in finer)
        for part in (self.laterals, self.smooth):
            initialize_convolutions(part)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps ``(B, C_r, h_r, w_r)``, fine to coarse, to one ``(B, D, h_0, w_0)``."""
        joined = self.context(features)
        for level in reversed(range(len(self.laterals))):
            fine, raised = self.upsamplers[level](self.laterals[level](features[level]), joined)
            joined = self.smooth[level](fine + raised)
        return [joined]
