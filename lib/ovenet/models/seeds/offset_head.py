"""The offset head of OVeNet.

Shapes: ``B`` batch, ``N`` seeds per pixel, ``K`` classes, ``h w`` size of the features. Offsets are in normalised
units: the image spans 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import at_least_float32, resize_features
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.heads.fcn import last_conv, projection, reset_predictor
from ovenet.models.interfaces import Part, PublishedNames, initialize_convolutions
from ovenet.models.precision import without_autocast
from ovenet.models.stacked import StackedMaps
from ovenet.structures import Size

OFFSET_WEIGHT_STD = 0.001  # offsets start near zero: the seed of a pixel is the pixel itself
_SPREAD = 0.1  # several seeds start on a circle of this radius, before the tanh
_FINER_WIDTH, _STEM_WIDTH = 64, 16


class OffsetPrediction(NamedTuple):
    """Prediction of an offset head.

    Attributes:
        offset: ``(B, 2 N, h, w)``, ``(x, y)`` for each seed in normalised units, within ±max_offset.
        confidence: ``(B, 1, h, w)`` in ``[0, 1]``.
        weights: ``(B, N, h, w)`` weights of the seeds, of sum 1; None for a single seed.
        correction: ``(B, K, h, w)``, added to the scores sampled at the seed; None for no correction.
        embedding: ``(B, D, h, w)``, whose agreement between pixel and seeds gives the weights; None for no embedding.
    """

    offset: Tensor
    confidence: Tensor
    weights: Tensor | None = None
    correction: Tensor | None = None
    embedding: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> OffsetPrediction:
        """Applies a function to each map."""
        offset, confidence = function(self.offset), function(self.confidence)
        rest = (None if x is None else function(x) for x in (self.weights, self.correction, self.embedding))
        return OffsetPrediction(offset, confidence, *rest)


class OffsetHead(Part):
    """Predicts offsets to seed pixels and their confidence (OVeNet paper, method section).

    Args:
        in_channels: channels of the features.
        max_offset: τ, the largest offset along each axis in normalised units.
        initial_confidence: confidence at initialisation.
        num_seeds: ``N``.
        num_corrected: ``K`` to predict a correction of the scores; 0 for no correction.
        num_embedded: ``D`` to predict an embedding in place of the seeds' weights; 0 for no embedding.
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
        num_embedded: int = 0,
    ):
        super().__init__()
        self.max_offset = max_offset
        self.num_seeds = num_seeds
        self.num_corrected = num_corrected
        self.num_embedded = num_embedded
        self.num_weights = num_seeds if num_seeds > 1 and not num_embedded else 0
        first = 2 * num_seeds + 1
        self.layers = projection(in_channels, first + num_embedded + self.num_weights + num_corrected)
        initialize_convolutions(self)
        predictor = last_conv(self.layers)
        reset_predictor(predictor, OFFSET_WEIGHT_STD)
        assert predictor.bias is not None
        with torch.no_grad():
            predictor.bias[2 * num_seeds] = math.log(initial_confidence / (1 - initial_confidence))
            if num_seeds > 1:  # seeds that start at the same position would never separate
                angles = 2 * math.pi / num_seeds * torch.arange(num_seeds)
                predictor.bias[: 2 * num_seeds] = _SPREAD * torch.stack((angles.cos(), angles.sin()), 1).flatten()
            if num_embedded:  # only directions count, and the smaller the weights, the faster they would turn
                nn.init.normal_(predictor.weight[first : first + num_embedded], std=in_channels**-0.5)

    def forward(self, features: Tensor | StackedMaps) -> OffsetPrediction:
        """Predicts in at least float32, whatever precision the features have.

        The last convolution runs outside autocast, since sampling positions need the precision: bfloat16 has 8
        significant bits and rounds an offset of 0.3 by up to 2^-10, a quarter of a pixel of a map 512 pixels wide.

        Args:
            features: ``(B, in_channels, h, w)``, or stacked maps of that size.
        """
        hidden, predictor = at_least_float32(self.layers[:-1](features)), last_conv(self.layers)
        assert predictor.bias is not None
        with without_autocast(hidden.device):
            raw = F.conv2d(hidden, predictor.weight.to(hidden.dtype), predictor.bias.to(hidden.dtype))
        n, rest = self.num_seeds, raw[:, 2 * self.num_seeds + 1 :]
        return OffsetPrediction(
            self.max_offset * torch.tanh(raw[:, : 2 * n]),
            torch.sigmoid(raw[:, 2 * n : 2 * n + 1]),
            rest[:, : self.num_weights].softmax(dim=1) if self.num_weights else None,
            rest[:, -self.num_corrected :] if self.num_corrected else None,
            rest[:, : self.num_embedded] if self.num_embedded else None,
        )


class FinerFeatures(Part):
    """Features at a finer resolution: the upsampled coarse features, and image features that locate edges.

    Args:
        in_channels: channels of the coarse features.
        image_channels: channels of the images.
        align_corners: convention of the resizing.

    Attributes:
        channels: channels of the output.
    """

    def __init__(self, in_channels: int, image_channels: int, *, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.channels = _FINER_WIDTH + _STEM_WIDTH
        self.reduce = conv_bn(in_channels, _FINER_WIDTH, kernel=1)
        self.stem = conv_bn(image_channels, _STEM_WIDTH, stride=2)
        initialize_convolutions(self)

    def forward(self, features: Tensor, images: Tensor, size: Size) -> Tensor:
        """Features ``(B, in_channels, h, w)`` and images ``(B, image_channels, H, W)`` to ``(B, channels, *size)``."""
        maps = (self.reduce(features), self.stem(images))
        return torch.cat([resize_features(x, size, align_corners=self.align_corners) for x in maps], dim=1)
