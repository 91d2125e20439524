"""Context modules, which add global context to the coarsest map of a pyramid.

Each takes all maps of a backbone, fine to coarse, and returns one map ``(B, D, h, w)`` of the coarsest one's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import at_least_float32, average_pool, resize_features, spatial_size
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import initialize_convolutions
from ovenet.models.norm import BatchNorm2d

TEMPERATURE = 0.05  # temperature of the pairwise attention in the disentangled non-local block


class Projection(nn.Module):
    """No context: the coarsest map, projected to the pyramid's channels.

    Args:
        in_channels: channels of each map of the backbone.
        channels: ``D``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.reduce = conv_bn(in_channels[-1], channels, kernel=1)
        initialize_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        return self.reduce(features[-1])


class ChannelAttention(nn.Module):
    """Channel attention (Fu et al., "Dual Attention Network", 2019); the identity at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        channels = x.flatten(2)
        similarity = at_least_float32(channels @ channels.transpose(1, 2))
        weights = (similarity.amax(dim=2, keepdim=True) - similarity).softmax(dim=2)  # smallest for the most similar
        return x + self.scale * (weights.to(channels.dtype) @ channels).view_as(x)


class DisentangledNonLocal(nn.Module):
    """Non-local attention with separate pairwise and unary terms (Yin et al., "Disentangled Non-Local Neural Networks",
    2020); the identity at initialisation.

    Args:
        channels: ``D``.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.unary = nn.Conv2d(channels, 1, 1)
        self.project = conv_bn(inner, channels, kernel=1, relu=False)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        initialize_convolutions(self.project)
        norm = self.project[-1]
        assert isinstance(norm, BatchNorm2d)
        nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape, without a pixels-by-pixels matrix if torch has such a kernel for the device."""
        query, key, value = (_pixels(layer(x)) for layer in (self.query, self.key, self.value))
        query, key = (q - q.mean(dim=1, keepdim=True) for q in (query, key))
        scale = 1 / (math.sqrt(query.shape[2]) * TEMPERATURE)
        pairs = _attention(query, key, value, scale)
        unary = at_least_float32(self.unary(x).flatten(2)).softmax(dim=2).to(value.dtype)  # (B, 1, N)
        context = (pairs + unary @ value).transpose(1, 2)
        return x + self.project(context.unflatten(2, x.shape[-2:]))


class ContextualRefinement(nn.Module):
    """CRM (see `ovenet.models.necks.fpn` for the source): all maps at the coarsest one's size; channel attention,
    projection, disentangled non-local attention.

    Args:
        in_channels: channels of each map of the backbone.
        channels: ``D``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.attend_channels = ChannelAttention()
        self.reduce = conv_bn(sum(in_channels), channels, kernel=1)
        self.attend_pixels = DisentangledNonLocal(channels)
        self.smooth = conv_bn(channels, channels)
        initialize_convolutions(self.reduce)
        initialize_convolutions(self.smooth)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        size = spatial_size(features[-1])
        pooled = torch.cat([average_pool(x, size) for x in features], dim=1)
        return self.smooth(self.attend_pixels(self.reduce(self.attend_channels(pooled))))


class PyramidPooling(nn.Module):
    """PPM (Zhao et al., "Pyramid Scene Parsing Network", 2017): means over 1, 4, 9 and 36 regions of the image.

    Args:
        in_channels: channels of each map of the backbone; the last map is read.
        channels: ``D``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(_AveragePool(side), *conv_bn(in_channels[-1], channels, kernel=1)) for side in (1, 2, 3, 6)
        )
        self.mix = conv_bn(in_channels[-1] + 4 * channels, channels)
        initialize_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        x = features[-1]
        pooled = [resize_features(pool(x), spatial_size(x), align_corners=False) for pool in self.pools]
        return self.mix(torch.cat((x, *pooled), dim=1))


class _AveragePool(nn.Module):
    """Means over ``side * side`` regions of a map."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, (self.side, self.side))


class AggregatedPyramidPooling(nn.Module):
    """DAPPM (Hong et al., "Deep Dual-Resolution Networks", 2021): pooling of increasing size, each result refined with
    the one before.

    Args:
        in_channels: channels of each map of the backbone; the last map is read.
        channels: ``D``, also the channels of every branch.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        width = in_channels[-1]
        pools = (
            nn.Identity(),
            *(nn.AvgPool2d(2 * stride + 1, stride=stride, padding=stride) for stride in (2, 4, 8)),
            nn.AdaptiveAvgPool2d(1),
        )
        self.branches = nn.ModuleList(nn.Sequential(pool, *_normed_conv(width, channels, 1)) for pool in pools)
        self.refine = nn.ModuleList(_normed_conv(channels, channels, 3) for _ in pools[1:])
        self.mix = _normed_conv(len(pools) * channels, channels, 1)
        self.shortcut = _normed_conv(width, channels, 1)
        initialize_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        x = features[-1]
        scales = [self.branches[0](x)]
        for branch, refine in zip(self.branches[1:], self.refine, strict=True):
            wider = resize_features(branch(x), spatial_size(x), align_corners=False)
            scales.append(refine(wider + scales[-1]))
        return self.mix(torch.cat(scales, dim=1)) + self.shortcut(x)


def _normed_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """BatchNorm, ReLU, convolution."""
    return nn.Sequential(
        BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
    )


class _SelfAttention(nn.Module):
    """Queries, keys and values of the pixels, and a learned scale of the result; the identity at initialisation."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))
        initialize_convolutions(self)


class PositionAttention(_SelfAttention):
    """Every pixel attends to all pixels (Fu et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        query, key, value = (_pixels(layer(x)) for layer in (self.query, self.key, self.value))
        attended = _attention(query, key, value, 1.0)
        return x + self.scale * attended.transpose(1, 2).unflatten(2, x.shape[-2:])


class CrissCrossAttention(_SelfAttention):
    """Every pixel attends to its row and its column (Huang et al., "CCNet: Criss-Cross Attention", 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        height, width = x.shape[-2:]
        by_column = at_least_float32(torch.einsum("bcyx,bcvx->byxv", query, key))
        by_row = at_least_float32(torch.einsum("bcyx,bcyu->byxu", query, key))
        rows = torch.arange(height, device=x.device)
        itself = (rows[:, None] == rows)[:, None]  # a pixel is counted in its row only
        weights = torch.cat((by_column.masked_fill(itself, -math.inf), by_row), dim=3).softmax(dim=3).to(value.dtype)
        column, row = weights.split((height, width), dim=3)
        attended = torch.einsum("byxv,bcvx->bcyx", column, value) + torch.einsum("byxu,bcyu->bcyx", row, value)
        return x + self.scale * attended


class CrissCrossContext(nn.Module):
    """CCAM: criss-cross attention twice, so that every pixel attends to the whole image.

    Args:
        in_channels: channels of each map of the backbone; the last map is read.
        channels: ``D``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.reduce = conv_bn(in_channels[-1], channels)
        self.attend = CrissCrossAttention(channels)
        self.smooth = conv_bn(channels, channels)
        for part in (self.reduce, self.smooth):
            initialize_convolutions(part)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        return self.smooth(self.attend(self.attend(self.reduce(features[-1]))))


class DualAttention(nn.Module):
    """DAM: the sum of position attention and channel attention.

    Args:
        in_channels: channels of each map of the backbone; the last map is read.
        channels: ``D``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()

        def branch(attention: nn.Module) -> nn.Sequential:
            before, after = conv_bn(in_channels[-1], channels), conv_bn(channels, channels)
            for part in (before, after):
                initialize_convolutions(part)
            return nn.Sequential(before, attention, after)

        self.by_position, self.by_channel = branch(PositionAttention(channels)), branch(ChannelAttention())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """All maps to one map."""
        return self.by_position(features[-1]) + self.by_channel(features[-1])


def _pixels(x: Tensor) -> Tensor:
    """``(B, C, h, w)`` to ``(B, N, C)``, contiguous for the attention kernels."""
    return x.flatten(2).transpose(1, 2).contiguous()


ContextName = Literal["none", "crm", "ppm", "dappm", "ccam", "dam"]
CONTEXTS: dict[str, Callable[..., nn.Module]] = {
    "none": Projection,
    "crm": ContextualRefinement,
    "ppm": PyramidPooling,
    "dappm": AggregatedPyramidPooling,
    "ccam": CrissCrossContext,
    "dam": DualAttention,
}


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`F.scaled_dot_product_attention` of ``(B, N, C)`` with one head, whose dimension exporters need."""
    query, key, value = (x.unsqueeze(1) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)
