"""Networks with attention by large depthwise convolutions: MSCAN, the encoder of SegNeXt (Guo et al., "SegNeXt:
Rethinking Convolutional Attention Design for Semantic Segmentation", 2022), and VAN (Guo et al., "Visual Attention
Network", 2022).

They differ in the stem and in the convolutions of the gate. Maps are ``(B, C, h, w)``.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, linspace, nn

from ovenet.models.interfaces import Backbone, PublishedNames, initialize_transformer
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import BACKBONES
from ovenet.models.stochastic_depth import StochasticDepth

MLP_RATIOS = (8, 8, 4, 4)
STRIDES = (4, 8, 16, 32)
LAYER_SCALE = 0.01


def _depthwise(channels: int, kernel: tuple[int, int], dilation: int = 1) -> nn.Conv2d:
    height, width = (dilation * (k - 1) // 2 for k in kernel)
    return nn.Conv2d(channels, channels, kernel, padding=(height, width), dilation=dilation, groups=channels)


class MultiScaleGate(nn.Module):
    """MSCAN's gate: a 5x5 convolution, then 1xn and nx1 convolutions of 7, 11 and 21 pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = _depthwise(channels, (5, 5))
        for index, length in enumerate((7, 11, 21)):
            self.add_module(f"conv{index}_1", _depthwise(channels, (1, length)))
            self.add_module(f"conv{index}_2", _depthwise(channels, (length, 1)))
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The map multiplied by the output of the convolutions."""
        near = self.conv0(x)
        wide = near
        for index in range(3):
            wide = wide + getattr(self, f"conv{index}_2")(getattr(self, f"conv{index}_1")(near))
        return x * self.conv3(wide)


class LargeKernelGate(nn.Module):
    """VAN's gate: a 21x21 convolution decomposed into 5x5, dilated 7x7 and 1x1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = _depthwise(channels, (5, 5))
        self.conv_spatial = _depthwise(channels, (7, 7), dilation=3)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The map multiplied by the output of the convolutions."""
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class Attention(nn.Module):
    """Projection, GELU, gate, projection, with a shortcut."""

    def __init__(self, channels: int, gate: type[nn.Module]):
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = gate(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        return x + self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x))))


class ConvMLP(nn.Module):
    """1x1 convolution, depthwise 3x3 convolution, GELU, 1x1 convolution."""

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels * ratio, 1)
        self.dwconv = _depthwise(channels * ratio, (3, 3))
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(channels * ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        return self.fc2(self.activation(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP with BatchNorm before, scale per channel and stochastic depth."""

    def __init__(self, channels: int, ratio: int, gate: type[nn.Module], drop_path: float):
        super().__init__()
        self.norm1 = BatchNorm2d(channels)
        self.attn = Attention(channels, gate)
        self.norm2 = BatchNorm2d(channels)
        self.mlp = ConvMLP(channels, ratio)
        self.drop_path = StochasticDepth(drop_path)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Map to map of the same shape."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """A strided convolution and BatchNorm."""

    def __init__(self, in_channels: int, channels: int, *, kernel: int = 3, stride: int = 2):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
        self.norm = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map to coarser map."""
        return self.norm(self.proj(x))


class ConvStem(nn.Module):
    """MSCAN's patch embedding: two convolutions of stride 2."""

    def __init__(self, channels: int, in_channels: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
            BatchNorm2d(channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Image to map of stride 4."""
        return self.proj(x)


class ConvAttentionNet(Backbone):
    """MSCAN or VAN.

    Args:
        stem: patch embedding of stride 4.
        gate: gate of every block.
        channels: channels of each stage.
        depths: number of blocks of each stage.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        norm_eps: epsilon of the LayerNorm after each stage.
        in_channels: channels of the images, which the stem takes.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"(?:backbone\.)?(block\d\.\d+\.mlp\.dwconv)\.dwconv\.", r"\1."),  # the authors' name
                (r"(?:backbone\.)?(patch_embed\d|block\d|norm\d)\.", r"\1."),
            ),
        ),
    )
    layer_groups: ClassVar = {
        "stem": r"patch_embed1\.",
        "blocks": [
            (r"patch_embed(\d)\.", (0,)),  # with the first block of its stage, as timm does in ConvNeXt
            (r"block(\d)\.(\d+)\.", None),
            (r"norm(\d)\.", (99999,)),
        ],
    }

    def __init__(
        self,
        stem: nn.Module,
        gate: type[nn.Module],
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        *,
        drop_path_rate: float,
        norm_eps: float,
        in_channels: int,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.channels, self.strides = channels, STRIDES
        rates = iter(linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for index, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            number = index + 1
            self.add_module(f"patch_embed{number}", stem if index == 0 else PatchEmbedding(channels[index - 1], width))
            blocks = [Block(width, MLP_RATIOS[index], gate, next(rates)) for _ in range(depth)]
            self.add_module(f"block{number}", nn.ModuleList(blocks))
            self.add_module(f"norm{number}", nn.LayerNorm(width, eps=norm_eps))
        initialize_transformer(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features, x = [], images
        for number in range(1, len(self.channels) + 1):
            x = getattr(self, f"patch_embed{number}")(x)
            for block in getattr(self, f"block{number}"):
                x = block(x)
            x = getattr(self, f"norm{number}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            features.append(x)
        return features


_WIDE = (64, 128, 320, 512)
MSCAN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mscan_t": ((32, 64, 160, 256), (3, 3, 5, 2)),
    "mscan_s": (_WIDE, (2, 2, 4, 2)),
    "mscan_b": (_WIDE, (3, 3, 12, 3)),
    "mscan_l": (_WIDE, (3, 5, 27, 3)),
}


def _mscan_variant(variant: str, *, drop_path_rate: float | None = None, in_channels: int = 3) -> ConvAttentionNet:
    """A published MSCAN; a `drop_path_rate` of None is the published one, 0.3 for MSCAN-L and 0.1 for the others."""
    channels, depths = MSCAN[variant]
    rate = (0.3 if variant == "mscan_l" else 0.1) if drop_path_rate is None else drop_path_rate
    return ConvAttentionNet(
        ConvStem(channels[0], in_channels),
        MultiScaleGate,
        channels,
        depths,
        drop_path_rate=rate,
        norm_eps=1e-5,
        in_channels=in_channels,
    )


for _variant in MSCAN:
    BACKBONES.register(_variant)(partial(_mscan_variant, _variant))


@BACKBONES.register("van_s")
def van_s(*, drop_path_rate: float = 0.1, in_channels: int = 3) -> ConvAttentionNet:
    """VAN-Small (VAN-B1); arguments as in `ConvAttentionNet`."""
    stem = PatchEmbedding(in_channels, _WIDE[0], kernel=7, stride=4)
    return ConvAttentionNet(
        stem,
        LargeKernelGate,
        _WIDE,
        (2, 2, 4, 2),
        drop_path_rate=drop_path_rate,
        norm_eps=1e-6,
        in_channels=in_channels,
    )
