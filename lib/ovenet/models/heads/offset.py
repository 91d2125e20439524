"""The offset head of OVeNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovenet.models.heads.plain import projection, reset_predictor

OFFSET_WEIGHT_STD = 0.001  # offsets start near zero: the seed of a pixel is the pixel itself


class OffsetHead(nn.Module):
    """Offsets to seed pixels and the confidence in them (OVeNet paper, method section).

    Args:
        in_channels: channels of the features.
        max_offset: τ, the longest offset per axis in normalised units (the image spans 2).
    """

    def __init__(self, in_channels: int, *, max_offset: float = 0.5):
        super().__init__()
        self.max_offset = max_offset
        self.layers = projection(in_channels, 3)

    def reset_prediction(self) -> None:
        """Initialises the last convolution so that training starts from offsets near zero, confidence one half."""
        reset_predictor(self.layers[-1], OFFSET_WEIGHT_STD)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts in float32 at least, whatever precision the features have: sampling positions need it.

        Args:
            features: ``(B, in_channels, h, w)``.

        Returns:
            The offset ``(B, 2, h, w)`` in normalised ``(x, y)``, within ±max_offset, and the confidence
            ``(B, 1, h, w)`` in ``[0, 1]``.
        """
        raw = self.layers(features)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return self.max_offset * torch.tanh(raw[:, :2]), torch.sigmoid(raw[:, 2:])
