"""The offset head of OVeNet."""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.models.heads.fcn import projection, reset_predictor
from ovenet.models.interfaces import Part, PublishedNames, initialize_convolutions
from ovenet.models.precision import without_autocast

OFFSET_WEIGHT_STD = 0.001  # offsets start near zero: the seed of a pixel is the pixel itself


class OffsetHead(Part):
    """Offsets to seed pixels and the confidence in them (OVeNet paper, method section).

    Args:
        in_channels: channels of the features.
        max_offset: τ, the longest offset per axis in normalised units (the image spans 2).
    """

    published = (
        PublishedNames("hrnet", ((r"(offset_layer|aux_head_offset)\.", "layers."),)),
        PublishedNames("ovenet", ((r"offset_head\.layers\.", "layers."),)),  # version 1 of this project
    )

    def __init__(self, in_channels: int, *, max_offset: float = 0.5):
        super().__init__()
        self.max_offset = max_offset
        self.layers = projection(in_channels, 3)
        initialize_convolutions(self)
        reset_predictor(self.layers[-1], OFFSET_WEIGHT_STD)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts in float32 at least, whatever precision the features have: sampling positions need it.

        The last convolution runs outside autocast. bfloat16 has 8 bits of mantissa: an offset of 0.3 in it is off by up
        to a third of a pixel of a map that is 512 wide.

        Args:
            features: ``(B, in_channels, h, w)``.

        Returns:
            The offset ``(B, 2, h, w)`` in normalised ``(x, y)``, within ±max_offset, and the confidence
            ``(B, 1, h, w)`` in ``[0, 1]``.
        """
        hidden, last = self.layers[:-1](features), self.layers[-1]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with without_autocast(features.device):
            raw = torch.nn.functional.conv2d(hidden.to(dtype), last.weight.to(dtype), last.bias.to(dtype))
        return self.max_offset * torch.tanh(raw[:, :2]), torch.sigmoid(raw[:, 2:])
