"""The simplest heads: two convolutions (HRNet), and one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import HEADS
from ovenet.models.stacked import StackedConv2d, StackedMaps

CLASSIFIER_WEIGHT_STD = 0.01  # scores start near zero: all classes are about equally likely


@HEADS.register("fcn")
class FCNHead(Head):
    """HRNet's head: 1x1 convolution, BatchNorm, ReLU, and a convolution to the class scores.

    Args:
        in_channels: channels of each map; the last map is read.
        in_strides: stride of each map.
        num_classes: ``K``.
        final_kernel: kernel size of the last convolution.
    """

    reads_stacks: ClassVar[bool] = True
    published = (
        PublishedNames("hrnet", ((r"last_layer\.", "layers."),)),
        PublishedNames("ovenet", ((r"head\.layers\.", "layers."),)),  # also inside another head
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        final_kernel: Literal[1, 3] = 1,
    ):
        super().__init__()
        self.feature_channels, self.stride = in_channels[-1], in_strides[-1]
        self.layers = projection(self.feature_channels, num_classes, final_kernel)
        initialize_convolutions(self)
        reset_predictor(last_conv(self.layers), CLASSIFIER_WEIGHT_STD)

    def forward(self, features: list[Tensor] | list[StackedMaps]) -> SegOutput:
        """See `Head.forward`."""
        hidden = self.layers[:-1](features[-1])
        return SegOutput((self.layers[-1](hidden),), hidden)


@HEADS.register("conv1x1")
class ConvHead(Head):
    """One 1x1 convolution to the class scores.

    Args:
        in_channels: channels of each map; the last map is read.
        in_strides: stride of each map.
        num_classes: ``K``.
        dropout: probability of dropping an input channel.
        batch_norm: normalise the map first, as the linear heads of DINOv2 (Oquab et al., 2023) and DINOv3 do.
        embedding: channels of the pixel embedding for `ovenet.losses.PixelContrast`, predicted only in training; None
            for no embedding.

    Raises:
        UserError: `embedding` is below 1.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        embedding: int | None = None,
    ):
        super().__init__()
        self.feature_channels, self.stride = in_channels[-1], in_strides[-1]
        self.norm = BatchNorm2d(self.feature_channels) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(self.feature_channels, num_classes, 1)
        reset_predictor(self.classifier, CLASSIFIER_WEIGHT_STD)
        if embedding is not None and embedding < 1:
            raise UserError(f"MODEL.HEAD.EMBEDDING is {embedding}; expected at least 1, or null for no embedding")
        self.embedding = None if embedding is None else nn.Conv2d(self.feature_channels, embedding, 1)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        x = self.norm(features[-1])
        scores, embedding = self.classifier(self.dropout(x)), None
        if self.embedding is not None and self.is_learning:
            embedding = F.normalize(at_least_float32(self.embedding(x)), dim=1)
        return SegOutput((scores,), x, embedding)


def projection(in_channels: int, out_channels: int, final_kernel: int = 1) -> nn.Sequential:
    """The two convolutions of every head of the published HRNet models; accepts `StackedMaps` too."""
    return nn.Sequential(
        StackedConv2d(in_channels, in_channels),
        BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, final_kernel, padding=final_kernel // 2),
    )


def last_conv(layers: nn.Sequential) -> nn.Conv2d:
    """The convolution at the end of a sequence."""
    last = layers[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def reset_predictor(conv: nn.Conv2d, std: float) -> None:
    """Initialises the last convolution of a head: small normal weights, zero bias."""
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
