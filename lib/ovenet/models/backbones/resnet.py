"""ResNet for segmentation: a stem of three 3x3 convolutions (V1c, He et al., "Bag of Tricks for Image Classification",
2019), and dilation in place of the last strides.

As in mmsegmentation and timm, the first block of a dilated stage has the dilation of the stage before.

Shapes: image ``(B, 3, H, W)``; stage ``n`` of 1 to 4 has ``(B, 256 * 2^(n-1), H / stride, W / stride)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.backbones.blocks import Bottleneck, conv_bn
from ovenet.models.interfaces import ForkableBackbone, PublishedNames, Tail, initialize_convolutions
from ovenet.models.registry import BACKBONES

STEM_CHANNELS = 64
WIDTHS = (64, 128, 256, 512)  # channels of the 3x3 convolutions, by stage
NUM_STAGES = 4

_LAYERS = (r"(layer\d)\.", r"\1.")


class ResNet(ForkableBackbone):
    """ResNetV1c.

    Args:
        num_blocks: number of bottlenecks of each stage.
        output_stride: stride of the last map; 8 and 16 dilate the last stages.
        timm_name: see `Backbone`.
        in_channels: channels of the images.
    """

    published = (
        PublishedNames("mmseg", ((r"(?:backbone\.)?stem\.", "stem."), (r"(?:backbone\.)?(layer\d)\.", r"\1."))),
        PublishedNames(
            "timm",
            (
                (r"conv1\.0\.", "stem.0."),
                (r"conv1\.1\.", "stem.1."),
                (r"conv1\.3\.", "stem.3."),
                (r"conv1\.4\.", "stem.4."),
                (r"conv1\.6\.", "stem.6."),
                (r"bn1\.", "stem.7."),
                _LAYERS,
            ),
            unused=(r"fc\.(weight|bias)",),
        ),
        PublishedNames("torchvision", (_LAYERS,), unused=(r"(conv1|bn1|fc)\..*",)),  # its stem differs
    )
    layer_groups: ClassVar = {"stem": r"stem\.", "blocks": r"layer(\d)\.(\d+)\."}

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int],
        *,
        output_stride: Literal[8, 16, 32] = 32,
        timm_name: str | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        self.num_blocks = num_blocks
        self.timm_name = timm_name
        self.in_channels = in_channels
        self.strides = tuple(min(s, output_stride) for s in (4, 8, 16, 32))
        self.channels = tuple(w * Bottleneck.expansion for w in WIDTHS)
        half = STEM_CHANNELS // 2
        self.stem = nn.Sequential(
            *conv_bn(in_channels, half, stride=2), *conv_bn(half, half), *conv_bn(half, STEM_CHANNELS)
        )  # children 0 to 8, as in mmsegmentation
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for number in range(1, NUM_STAGES + 1):
            self.add_module(f"layer{number}", self._make_layer(number))
        initialize_convolutions(self)

    def _make_layer(self, number: int) -> nn.Sequential:
        before = (4, *self.strides)[number - 1]  # the stem's stride is 4
        stride = self.strides[number - 1] // before
        nominal = 4 * 2 ** (number - 1)  # stride without dilation
        dilation = nominal // self.strides[number - 1]
        first_dilation = dilation if stride > 1 or dilation == 1 else dilation // 2
        width = WIDTHS[number - 1]
        in_channels = STEM_CHANNELS if number == 1 else self.channels[number - 2]
        blocks = [Bottleneck(in_channels, width, stride=stride, dilation=first_dilation)]
        blocks += [
            Bottleneck(self.channels[number - 1], width, dilation=dilation)
            for _ in range(self.num_blocks[number - 1] - 1)
        ]
        return nn.Sequential(*blocks)

    def run(self, features: list[Tensor], start: int, stop: int) -> list[Tensor]:
        """See `ForkableBackbone.run`; each stage adds its map to those of the stages before."""
        x = features[-1]
        if start == 0:
            x, features = self.maxpool(self.stem(x)), []
        for number in range(start + 1, stop + 1):
            x = getattr(self, f"layer{number}")(x)
            features = [*features, x]
        return features

    def make_tail(self, stage: int, stages: Sequence[Mapping[str, Any]] | None = None) -> ResNetTail:
        """See `ForkableBackbone.make_tail`; the copied stages have no settings."""
        if not 2 <= stage <= NUM_STAGES:
            raise UserError(f"MODEL.SEED.STAGE is {stage}; a ResNet can be forked at stage 2, 3 or 4")
        if stages is not None:
            raise UserError("MODEL.SEED.STAGES is set, but the stages of a ResNet have no settings; leave it away")
        layers = {number: self._make_layer(number) for number in range(stage, NUM_STAGES + 1)}
        return ResNetTail(layers, self.channels[stage - 1 :], self.strides[stage - 1 :])


class ResNetTail(Tail):
    """The last stages of a ResNet."""

    def __init__(self, layers: Mapping[int, nn.Module], channels: tuple[int, ...], strides: tuple[int, ...]):
        super().__init__()
        self.channels, self.strides = channels, strides
        for number, layer in layers.items():
            self.add_module(f"layer{number}", layer)
        initialize_convolutions(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See `Tail.forward`."""
        x, maps = features[-1], []
        for layer in self.children():
            x = layer(x)
            maps.append(x)
        return maps


def _resnet_variant(depth: int, *, output_stride: Literal[8, 16, 32] = 8, in_channels: int = 3) -> ResNet:
    """A published ResNetV1c, by default D8 with an output stride of 8; arguments as in `ResNet`."""
    num_blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    return ResNet(num_blocks, output_stride=output_stride, timm_name=f"resnet{depth}c", in_channels=in_channels)


for _depth in (50, 101):
    BACKBONES.register(f"resnet{_depth}_v1c")(partial(_resnet_variant, _depth))
