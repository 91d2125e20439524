"""Mix Transformer, the encoder of SegFormer (Xie et al., "SegFormer: Simple and Efficient Design for Semantic
Segmentation with Transformers", 2021).

Shapes: ``N = h * w`` tokens, ``C`` channels; tokens are ``(B, N, C)``, maps ``(B, C, h, w)``.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, linspace, nn

from ovenet.geometry import spatial_size
from ovenet.models.interfaces import Backbone, PublishedNames, initialize_transformer
from ovenet.models.registry import BACKBONES
from ovenet.models.stochastic_depth import StochasticDepth
from ovenet.structures import Size

NUM_HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # downsampling of keys and values along each axis
FFN_RATIO = 4
NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)


def to_tokens(x: Tensor) -> Tensor:
    """``(B, C, h, w)`` to ``(B, N, C)``."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """``(B, N, C)`` to ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).unflatten(2, size)


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and LayerNorm over the channels."""

    def __init__(self, in_channels: int, channels: int, *, kernel: int, stride: int):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Map to tokens, and the size ``(h, w)`` of the token grid."""
        x = self.projection(x)
        return self.norm(to_tokens(x)), spatial_size(x)


class ReducedAttention(nn.Module):
    """Self-attention with keys and values downsampled by `reduction` along each axis."""

    def __init__(self, channels: int, num_heads: int, reduction: int):
        super().__init__()
        self.reduction = reduction
        self.attn = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """``(B, N, C)`` to the same shape."""
        others = tokens
        if self.reduction > 1:
            x = to_map(tokens, size)
            missing = [max(0, self.reduction - n) for n in size]  # in maps smaller than one downsampled pixel
            if any(missing):
                x = F.pad(x, (0, missing[1], 0, missing[0]))
            others = self.norm(to_tokens(self.sr(x)))
        return self.attn(tokens, others, others, need_weights=False)[0]


class MixFFN(nn.Module):
    """Feed-forward layer with a depthwise 3x3 convolution, which encodes positions."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = channels * FFN_RATIO
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """``(B, N, C)`` to the same shape."""
        return to_tokens(self.layers(to_map(tokens, size)))


class Block(nn.Module):
    """Attention and feed-forward layer, each with LayerNorm before and stochastic depth."""

    def __init__(self, channels: int, num_heads: int, reduction: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = ReducedAttention(channels, num_heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = MixFFN(channels)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """``(B, N, C)`` to the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.ffn(self.norm2(tokens), size))


class Stage(nn.Module):
    """Patch embedding, blocks, LayerNorm."""

    def __init__(self, index: int, in_channels: int, channels: int, drop_paths: list[float]):
        super().__init__()
        kernel, stride = (7, 4) if index == 0 else (3, 2)
        self.embed = PatchEmbedding(in_channels, channels, kernel=kernel, stride=stride)
        self.blocks = nn.ModuleList(Block(channels, NUM_HEADS[index], REDUCTIONS[index], rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map to the next coarser map."""
        tokens, size = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens, size)
        return to_map(self.norm(tokens), size)


class MixTransformer(Backbone):
    """MiT.

    Args:
        width: channels per attention head: 32 in B0, 64 in the others.
        depths: number of blocks of each stage.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        in_channels: channels of the images.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"(?:backbone\.)?layers\.(\d)\.0\.", r"stages.\1.embed."),
                (r"(?:backbone\.)?layers\.(\d)\.1\.(\d+)\.ffn\.layers\.4\.", r"stages.\1.blocks.\2.ffn.layers.3."),
                (r"(?:backbone\.)?layers\.(\d)\.1\.", r"stages.\1.blocks."),
                (r"(?:backbone\.)?layers\.(\d)\.2\.", r"stages.\1.norm."),
            ),
        ),
    )
    layer_groups: ClassVar = {
        "stem": r"stages\.0\.embed\.",
        "blocks": [
            (r"stages\.(\d)\.embed\.", (0,)),  # with the first block of its stage, as timm does in ConvNeXt
            (r"stages\.(\d)\.blocks\.(\d+)\.", None),
            (r"stages\.(\d)\.norm\.", (99999,)),
        ],
    }

    def __init__(self, width: int, depths: tuple[int, ...], *, drop_path_rate: float = 0.1, in_channels: int = 3):
        super().__init__()
        self.channels = tuple(width * n for n in NUM_HEADS)
        self.strides = STRIDES
        rates = linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.in_channels = in_channels
        before = (in_channels, *self.channels)
        firsts = [sum(depths[:i]) for i in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(i, before[i], self.channels[i], rates[first : first + depth])
            for i, (first, depth) in enumerate(zip(firsts, depths, strict=True))
        )
        initialize_transformer(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features, x = [], images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


DEPTHS = ((2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 18, 3), (3, 8, 27, 3), (3, 6, 40, 3))


def _mit_variant(number: int, *, drop_path_rate: float = 0.1, in_channels: int = 3) -> MixTransformer:
    """MiT-B0 to B5; arguments as in `MixTransformer`."""
    width = 32 if number == 0 else 64
    return MixTransformer(width, DEPTHS[number], drop_path_rate=drop_path_rate, in_channels=in_channels)


for _number in range(len(DEPTHS)):
    BACKBONES.register(f"mit_b{_number}")(partial(_mit_variant, _number))
