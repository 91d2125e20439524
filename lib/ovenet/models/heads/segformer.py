"""The decoder of SegFormer (Xie et al., 2021): all maps are projected, upsampled, concatenated and mixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovenet.geometry import resize_features, spatial_size
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.heads.offset_learning import ClassifierKind, make_classifier
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.registry import HEADS


@HEADS.register("segformer")
class SegFormerHead(Head):
    """SegFormer's MLP head as in mmsegmentation: 1x1 convolutions with BatchNorm and ReLU.

    Args:
        in_channels: channels of each map; all maps are read.
        in_strides: stride of each map.
        num_classes: ``K``.
        channels: hidden channels.
        dropout: probability of dropping a channel before the classifier ``conv1x1``.
        classifier: a 1x1 convolution, or OffSeg's offset learning at half the resolution.
        align_corners: convention of the upsampling.
    """

    default_neck = "none"
    first_read = 0
    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.convs\.(\d)\.conv\.", r"projections.\1.0."),
                (r"decode_head\.convs\.(\d)\.bn\.", r"projections.\1.1."),
                (r"decode_head\.fusion_conv\.conv\.", "mix.0."),
                (r"decode_head\.fusion_conv\.bn\.", "mix.1."),
                (r"decode_head\.conv_seg\.", "classifier."),
            ),
        ),
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        classifier: ClassifierKind = "conv1x1",
        align_corners: bool = False,
    ):
        super().__init__()
        is_pooled = classifier == "offset_learning"
        self.feature_channels, self.stride = channels, in_strides[0] * (2 if is_pooled else 1)
        self.align_corners = align_corners
        self.projections = nn.ModuleList(conv_bn(c, channels, kernel=1) for c in in_channels)
        self.mix = conv_bn(channels * len(in_channels), channels, kernel=1)
        initialize_convolutions(self)
        self.pool = nn.MaxPool2d(2) if is_pooled else nn.Identity()
        self.dropout = nn.Dropout2d(dropout) if classifier == "conv1x1" else nn.Identity()
        self.classifier = make_classifier(classifier, channels, num_classes)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        size = spatial_size(features[0])
        maps = [
            resize_features(projection(x), size, align_corners=self.align_corners)
            for projection, x in zip(self.projections, features, strict=True)
        ]
        mixed = self.pool(self.mix(torch.cat(maps, dim=1)))
        return SegOutput((self.classifier(self.dropout(mixed)),), mixed)
