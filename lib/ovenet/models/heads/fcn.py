"""The simplest heads: HRNet's two convolutions, and a single one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import HEADS
from ovenet.models.stacked import StackedConv2d, StackedMaps

CLASSIFIER_WEIGHT_STD = 0.01  # scores start near zero, all classes about equally likely


@HEADS.register("fcn")
class FCNHead(Head):
    """Convolution, BatchNorm, ReLU, and a convolution to the class scores, as HRNet has it.

    Args:
        in_channels: channels per map; the last map is read.
        in_strides: strides per map.
        num_classes: ``K``.
        final_kernel: size of the last convolution.
    """

    reads_stacks: ClassVar[bool] = True
    published = (
        PublishedNames("hrnet", ((r"last_layer\.", "layers."),)),
        PublishedNames("ovenet", ((r"head\.layers\.", "layers."),)),  # also when another head contains it
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
        reset_predictor(self.layers[-1], CLASSIFIER_WEIGHT_STD)

    def forward(self, features: list[Tensor] | list[StackedMaps]) -> SegOutput:
        """See `Head.forward`."""
        hidden = self.layers[:-1](features[-1])
        return SegOutput((self.layers[-1](hidden),), hidden)


@HEADS.register("conv1x1")
class ConvHead(Head):
    """One 1x1 convolution to the class scores.

    Args:
        in_channels: channels per map; the last map is read.
        in_strides: strides per map.
        num_classes: ``K``.
        dropout: of whole channels before it.
        embedding: width of an embedding of the pixels, for `ovenet.losses.PixelContrast`; predicted while training
            alone. None for none.

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
        embedding: int | None = None,
    ):
        super().__init__()
        self.feature_channels, self.stride = in_channels[-1], in_strides[-1]
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(self.feature_channels, num_classes, 1)
        reset_predictor(self.classifier, CLASSIFIER_WEIGHT_STD)
        if embedding is not None and embedding < 1:
            raise UserError(f"EMBEDDING of the conv1x1 head is {embedding}; expected at least 1, or null for none")
        self.embedding = None if embedding is None else nn.Conv2d(self.feature_channels, embedding, 1)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        scores, embedding = self.classifier(self.dropout(features[-1])), None
        if self.embedding is not None and self.is_learning:
            embedding = self.embedding(features[-1])
            embedding = F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)
        return SegOutput((scores,), features[-1], embedding)


def projection(in_channels: int, out_channels: int, final_kernel: int = 1) -> nn.Sequential:
    """The two convolutions that begin or end every head of the published HRNet models; takes `StackedMaps` too."""
    return nn.Sequential(
        StackedConv2d(in_channels, in_channels),
        BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, final_kernel, padding=final_kernel // 2),
    )


def reset_predictor(conv: nn.Conv2d, std: float) -> None:
    """Small normal weights and a zero bias, for a convolution whose output is a prediction."""
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
