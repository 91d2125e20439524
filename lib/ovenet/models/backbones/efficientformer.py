"""EfficientFormerV2 (Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", 2023), the encoder of
OffSeg: convolutions in all stages, and attention in the coarse ones.

Unlike the published network it accepts images of any size: the tables of attention biases belong to one image size and
are resized for others. Maps are ``(B, C, h, w)``.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, linspace, nn

from ovenet.errors import UserError
from ovenet.geometry import spatial_size
from ovenet.models.backbones.conv_attention import PatchEmbedding
from ovenet.models.interfaces import Backbone, PublishedNames, initialize_transformer
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import BACKBONES
from ovenet.models.stochastic_depth import StochasticDepth
from ovenet.structures import Size

STRIDES = (4, 8, 16, 32)
NUM_HEADS = 8
LAYER_SCALE = 1e-5

BiasMode = Literal["spatial", "official"]


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups),
        BatchNorm2d(out_channels),
    )


class RelativeBias(nn.Module):
    """Attention bias that depends on the vertical and horizontal distance between query and key.

    Args:
        side: height and width, in keys, of the maps that the table belongs to.
        query_step: distance between neighbouring queries, in keys.
        mode: resizing for maps of other sizes. ``spatial`` resizes the table of distances; ``official`` resizes the
            queries-by-keys matrix, as the published code does, which mixes the end of a row with the start of the next.
    """

    def __init__(self, side: int, *, query_step: int, mode: BiasMode):
        super().__init__()
        self.side, self.query_step, self.mode = side, query_step, mode
        self.table = nn.Parameter(torch.zeros(NUM_HEADS, side * side))

    def forward(self, keys: Size) -> Tensor:
        """Biases ``(heads, queries, keys)`` for a map of ``(h, w)`` keys."""
        table, made_for = self.table.unflatten(1, (self.side, self.side)), (self.side, self.side)
        if self.mode == "official":
            matrix = self._matrix(table, made_for)
            if keys == made_for:
                return matrix
            size = [h * w for h, w in ([-(-n // self.query_step) for n in keys], keys)]
            return F.interpolate(matrix[None], size=size, mode="bicubic")[0]
        if keys != made_for:
            table = F.interpolate(table[None], size=keys, mode="bilinear", align_corners=True)[0]
        return self._matrix(table, keys)

    def _matrix(self, table: Tensor, keys: Size) -> Tensor:
        """The table ``(heads, h, w)`` looked up for every query and key."""
        rows, columns = (
            (
                torch.arange(0, n, self.query_step, device=table.device)[:, None] - torch.arange(n, device=table.device)
            ).abs()
            for n in keys
        )
        looked_up = table[:, rows[:, None, :, None], columns[None, :, None, :]]  # (heads, qh, qw, kh, kw)
        return looked_up.flatten(3, 4).flatten(1, 2)


class Attention(nn.Module):
    """Self-attention over all pixels that mixes its heads before and after the softmax ("talking heads").

    Args:
        channels: channels of the map.
        side: see `RelativeBias`.
        is_halved: whether to attend at half the resolution.
        mode: see `RelativeBias`.
    """

    def __init__(self, channels: int, side: int, *, is_halved: bool, mode: BiasMode):
        super().__init__()
        key_width, value_width = 32 * NUM_HEADS, 128 * NUM_HEADS
        self.stride_conv = _conv_bn(channels, channels, 3, stride=2, groups=channels) if is_halved else None
        self.q = _conv_bn(channels, key_width)
        self.k = _conv_bn(channels, key_width)
        self.v = _conv_bn(channels, value_width)
        self.v_local = _conv_bn(value_width, value_width, 3, groups=value_width)
        self.talking_head1 = nn.Conv2d(NUM_HEADS, NUM_HEADS, 1)
        self.talking_head2 = nn.Conv2d(NUM_HEADS, NUM_HEADS, 1)
        self.bias = RelativeBias(side, query_step=1, mode=mode)
        self.proj = nn.Sequential(nn.GELU(), *_conv_bn(value_width, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        size = spatial_size(x)
        value = self.v(x)
        scores = _scores(self.q(x), self.k(x)) + self.bias(size)
        weights = self.talking_head2(self.talking_head1(scores).softmax(dim=-1))
        out = _weighted_sum(weights, value).unflatten(2, size) + self.v_local(value)
        if self.stride_conv is not None:
            out = F.interpolate(out, scale_factor=2.0, mode="bilinear")
        return self.proj(out)


class LocalGlobalQuery(nn.Module):
    """Queries at every second row and column: the pixel plus a depthwise 3x3 convolution."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.proj = _conv_bn(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, width, h / 2, w / 2)``."""
        return self.proj(self.local(x) + x[..., ::2, ::2])


class AttentionDownsample(nn.Module):
    """Downsampling by attention: each pixel of the coarser map attends to all pixels of the finer map.

    Args:
        in_channels: channels of the finer map.
        out_channels: channels of the coarser map.
        side: see `RelativeBias`.
        mode: see `RelativeBias`.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int, *, mode: BiasMode):
        super().__init__()
        key_width, value_width = 16 * NUM_HEADS, 64 * NUM_HEADS
        self.q = LocalGlobalQuery(in_channels, key_width)
        self.k = _conv_bn(in_channels, key_width)
        self.v = _conv_bn(in_channels, value_width)
        self.v_local = _conv_bn(value_width, value_width, 3, stride=2, groups=value_width)
        self.bias = RelativeBias(side, query_step=2, mode=mode)
        self.proj = nn.Sequential(nn.GELU(), *_conv_bn(value_width, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C', h / 2, w / 2)``."""
        value = self.v(x)
        local = self.v_local(value)
        weights = (_scores(self.q(x), self.k(x)) + self.bias(spatial_size(x))).softmax(dim=-1)
        return self.proj(_weighted_sum(weights, value).unflatten(2, local.shape[-2:]) + local)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products ``(B, heads, queries, keys)`` of two maps."""
    query, key = (x.flatten(2).unflatten(1, (NUM_HEADS, -1)) for x in (query, key))
    return query.transpose(2, 3) @ key * key.shape[2] ** -0.5


def _weighted_sum(weights: Tensor, value: Tensor) -> Tensor:
    """Sums ``(B, C, queries)`` of the values, weighted by ``(B, heads, queries, keys)``."""
    value = value.flatten(2).unflatten(1, (NUM_HEADS, -1))
    return (value @ weights.transpose(2, 3)).flatten(1, 2)


class LastDownsample(nn.Module):
    """The sum of a convolution of stride 2 with BatchNorm and `AttentionDownsample`."""

    def __init__(self, in_channels: int, out_channels: int, side: int, *, mode: BiasMode):
        super().__init__()
        self.attn = AttentionDownsample(in_channels, out_channels, side, mode=mode)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map to the next coarser map."""
        return self.attn(x) + self.bn(self.conv(x))


class ConvMLP(nn.Module):
    """1x1 convolution, depthwise 3x3 convolution, 1x1 convolution, each with BatchNorm."""

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        hidden = channels * ratio
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm1 = BatchNorm2d(hidden)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mid_norm = BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.norm2 = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        x = F.gelu(self.norm1(self.fc1(x)))
        x = F.gelu(self.mid_norm(self.mid(x)))
        return self.norm2(self.fc2(x))


class Block(nn.Module):
    """Attention, if any, and MLP, each with a scale per channel and stochastic depth."""

    def __init__(self, channels: int, ratio: int, attention: Attention | None, drop_path: float):
        super().__init__()
        self.token_mixer = attention
        if attention is not None:
            self.layer_scale_1 = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))
        self.mlp = ConvMLP(channels, ratio)
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        if self.token_mixer is not None:
            x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(x))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(x))


class EfficientFormerV2(Backbone):
    """EfficientFormerV2.

    Args:
        channels: channels of each stage.
        depths: number of blocks of each stage.
        ratios: MLP ratios of the blocks of stages 3 and 4, one digit per block; 4 in the other stages.
        num_attention: number of blocks with attention, the last ones of stages 3 and 4.
        bias_mode: resizing of attention biases for other image sizes than `resolution`, see `RelativeBias`.
        resolution: height and width of the images that the tables of biases belong to, a multiple of 32; 512 in
            OffSeg's files.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        in_channels: channels of the images.

    Raises:
        UserError: `resolution` is not a multiple of 32.
    """

    size_multiple = 32
    published = (
        PublishedNames(
            "mmseg",
            (
                (r"(?:backbone\.)?patch_embed\.", "patch_embed."),
                (
                    r"(?:backbone\.)?network\.([\d.]+)(token_mixer|attn)\.attention_biases_seg$",
                    r"network.\1\2.bias.table",
                ),
                (r"(?:backbone\.)?network\.([\d.]+)attn\.q\.local\.0\.", r"network.\1attn.q.local."),
                (r"(?:backbone\.)?network\.", "network."),
            ),
            unused=(r"(backbone\.)?network\..*\.attention_bias(es|_idxs(_seg)?)",),
        ),
    )
    layer_groups: ClassVar = {
        "stem": r"patch_embed\.",
        "blocks": [
            *((rf"network\.{place}\.", (place + 1, 0)) for place in (1, 3, 5)),  # with the next stage's first block
            (r"network\.(\d)\.(\d+)\.", None),
        ],
    }

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        ratios: tuple[str, str],
        num_attention: int,
        *,
        bias_mode: BiasMode = "spatial",
        resolution: int = 512,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
    ):
        super().__init__()
        if resolution < 32 or resolution % 32:
            raise UserError(f"MODEL.BACKBONE.RESOLUTION is {resolution}; expected a multiple of 32")
        self.channels, self.strides = channels, STRIDES
        self.in_channels = in_channels
        rates = linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        stem = channels[0] // 2
        self.patch_embed = nn.Sequential(
            *_conv_bn(in_channels, stem, 3, stride=2), nn.GELU(), *_conv_bn(stem, channels[0], 3, stride=2), nn.GELU()
        )

        def stage(index: int) -> nn.Sequential:
            first, depth = sum(depths[:index]), depths[index]
            widths = [4] * depth if index < 2 else [int(ratio) for ratio in ratios[index - 2]]
            side, is_halved = (resolution // 32, index == 2)

            def block(place: int) -> Block:
                attends = index > 1 and place >= depth - num_attention
                attention = Attention(channels[index], side, is_halved=is_halved, mode=bias_mode) if attends else None
                return Block(channels[index], widths[place], attention, rates[first + place])

            return nn.Sequential(*map(block, range(depth)))

        self.network = nn.ModuleList(
            [
                stage(0),
                PatchEmbedding(channels[0], channels[1]),
                stage(1),
                PatchEmbedding(channels[1], channels[2]),
                stage(2),
                LastDownsample(channels[2], channels[3], resolution // 16, mode=bias_mode),
                stage(3),
            ]
        )
        initialize_transformer(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features, x = [], self.patch_embed(images)
        for index, layer in enumerate(self.network):
            x = layer(x)
            if index % 2 == 0:  # a stage; the layers between stages downsample
                features.append(x)
        return features


VARIANTS = {  # channels, depths, MLP ratios of stages 3 and 4, blocks with attention, drop path rate
    "s0": ((32, 48, 96, 176), (2, 2, 6, 4), ("433344", "4334"), 2, 0.0),
    "s1": ((32, 48, 120, 224), (3, 3, 9, 6), ("443333444", "443344"), 2, 0.0),
    "s2": ((32, 64, 144, 288), (4, 4, 12, 8), ("443333334444", "44333344"), 4, 0.02),
    "l": ((40, 80, 192, 384), (5, 5, 15, 10), ("444433333334444", "4443333444"), 6, 0.1),
}


def _variant(
    size: str,
    *,
    bias_mode: BiasMode = "spatial",
    resolution: int = 512,
    drop_path_rate: float | None = None,
    in_channels: int = 3,
) -> EfficientFormerV2:
    """S0, S1, S2 or L; arguments as in `EfficientFormerV2`; a `drop_path_rate` of None is the published one."""
    channels, depths, ratios, num_attention, published_rate = VARIANTS[size]
    return EfficientFormerV2(
        channels,
        depths,
        ratios,
        num_attention,
        bias_mode=bias_mode,
        resolution=resolution,
        drop_path_rate=published_rate if drop_path_rate is None else drop_path_rate,
        in_channels=in_channels,
    )


for _size in VARIANTS:
    BACKBONES.register(f"efficientformerv2_{_size}")(partial(_variant, _size))
