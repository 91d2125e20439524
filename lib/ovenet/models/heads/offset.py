"""The offset head of OVeNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovenet.geometry import resize_features
from ovenet.models.heads.fcn import projection, reset_predictor
from ovenet.models.interfaces import Part, PublishedNames, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.precision import without_autocast
from ovenet.models.stacked import StackedMaps

OFFSET_WEIGHT_STD = 0.001  # offsets start near zero: the seed of a pixel is the pixel itself
_SPREAD = 0.1  # several seeds begin on a circle of this radius, before tanh
_FINER_WIDTH, _STEM_WIDTH = 64, 16


class OffsetPrediction(NamedTuple):
    """What an offset head predicts for ``N`` seeds per pixel.

    Attributes:
        offset: ``(B, 2 N, h, w)``, for each seed ``(x, y)`` in normalised units, within ±max_offset.
        confidence: ``(B, 1, h, w)`` in ``[0, 1]``.
        weights: ``(B, N, h, w)`` of the seeds, of sum 1; there are none for a single seed.
        correction: ``(B, K, h, w)``, added to the scores at the seed; None where scores are not corrected.
    """

    offset: Tensor
    confidence: Tensor
    weights: Tensor | None = None
    correction: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> OffsetPrediction:
        """The same with a function applied to each map."""
        return OffsetPrediction(*(None if x is None else function(x) for x in self))


class OffsetHead(Part):
    """Offsets to seed pixels and the confidence in them (OVeNet paper, method section).

    Args:
        in_channels: channels of the features.
        max_offset: τ, the longest offset per axis in normalised units (the image spans 2).
        initial_confidence: what training begins with.
        num_seeds: ``N``, seeds per pixel.
        num_corrected: ``K``, the classes whose scores are corrected; 0 for none.
    """

    published = (
        PublishedNames("hrnet", ((r"(offset_layer|aux_head_offset)\.", "layers."),)),
        PublishedNames("ovenet", ((r"offset_head\.layers\.", "layers."),)),  # version 1 of this project
    )

    def __init__(
        self,
        in_channels: int,
        *,
        max_offset: float = 0.5,
        initial_confidence: float = 0.5,
        num_seeds: int = 1,
        num_corrected: int = 0,
    ):
        super().__init__()
        self.max_offset = max_offset
        self.num_seeds = num_seeds
        self.num_corrected = num_corrected
        num_weights = num_seeds if num_seeds > 1 else 0
        self.layers = projection(in_channels, 2 * num_seeds + 1 + num_weights + num_corrected)
        initialize_convolutions(self)
        reset_predictor(self.layers[-1], OFFSET_WEIGHT_STD)
        with torch.no_grad():
            self.layers[-1].bias[2 * num_seeds] = math.log(initial_confidence / (1 - initial_confidence))
            if num_seeds > 1:  # seeds that start at the same place would never separate
                angles = 2 * math.pi / num_seeds * torch.arange(num_seeds)
                self.layers[-1].bias[: 2 * num_seeds] = _SPREAD * torch.stack((angles.cos(), angles.sin()), 1).flatten()

    def forward(self, features: Tensor | StackedMaps) -> OffsetPrediction:
        """Predicts in float32 at least, whatever precision the features have: sampling positions need it.

        The last convolution runs outside autocast. bfloat16 has 8 bits of mantissa: an offset of 0.3 in it is off by up
        to a third of a pixel of a map that is 512 wide.

        Args:
            features: ``(B, in_channels, h, w)``, or a stack of that size.
        """
        hidden, last = self.layers[:-1](features), self.layers[-1]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with without_autocast(hidden.device):
            raw = torch.nn.functional.conv2d(hidden.to(dtype), last.weight.to(dtype), last.bias.to(dtype))
        n, rest = self.num_seeds, raw[:, 2 * self.num_seeds + 1 :]
        return OffsetPrediction(
            self.max_offset * torch.tanh(raw[:, : 2 * n]),
            torch.sigmoid(raw[:, 2 * n : 2 * n + 1]),
            rest[:, :n].softmax(dim=1) if n > 1 else None,
            rest[:, -self.num_corrected :] if self.num_corrected else None,
        )


class FinerFeatures(Part):
    """Features for offsets at a finer resolution: the coarse ones enlarged, and edges straight from the image.

    Args:
        in_channels: of the coarse features.
        align_corners: convention of the resizing.

    Attributes:
        channels: of what comes out.
    """

    def __init__(self, in_channels: int, *, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.channels = _FINER_WIDTH + _STEM_WIDTH
        self.reduce = _unit(in_channels, _FINER_WIDTH, 1)
        self.stem = _unit(3, _STEM_WIDTH, 3, stride=2)
        initialize_convolutions(self)

    def forward(self, features: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, in_channels, h, w)`` and images ``(B, 3, H, W)`` to maps ``(B, channels, *size)``."""
        maps = (self.reduce(features), self.stem(images))
        return torch.cat([resize_features(x, size, align_corners=self.align_corners) for x in maps], dim=1)


def _unit(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
