"""The seed as an upsampler: offsets and confidence at a finer stride than the scores, guided by the image.

Scores of a stride of 8, 16 or 32 are wrong mostly along the borders of objects, whose place the image shows. A seed
pixel inside the object, found from the image's own edges, has the right scores.

Shapes: ``B`` batch, ``D`` channels of the features, ``H W`` image size, ``h w`` size of the features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear, resize_features, spatial_size
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import Head, Part, SegOutput, initialize_convolutions
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.offset_head import OffsetPrediction
from ovenet.models.seeds.ovenet import Seed
from ovenet.models.segmentor import crop_padding
from ovenet.models.stacked import StackedMaps, as_tensor
from ovenet.structures import Size

_STEM_WIDTH = 16  # channels of the image's features at stride 2; twice as many at the strides below


@SEEDS.register("guided")
class GuidedSeed(Seed):
    """Raises the scores to a finer stride, and samples and fuses them there, by offsets that the image guides.

    Offsets are predicted from the features that the head's classifier reads, raised bilinearly, and from a few
    convolutions of the image. At initialisation the fused scores are the bilinearly raised ones, up to the small random
    offsets. For heads and backbones of a coarse stride, such as vision transformers; other seeds fuse at the head's
    stride.

    Args:
        head: the model's head.
        image_channels: channels of the images.
        output_stride: stride of the fused scores.
        projection: channels that the head's features are projected to.
        align_corners, options: see `Seed`.

    Raises:
        UserError: `projection` is below 1, the head's stride is finer than `output_stride`, or `upsampling` is given,
            which is for seeds at the head's stride.
    """

    def __init__(
        self,
        head: Head,
        *,
        image_channels: int = 3,
        output_stride: Literal[2, 4, 8] = 4,
        projection: int = 64,
        align_corners: bool = True,
        **options: Any,
    ):
        if projection < 1:
            raise UserError(f"MODEL.SEED.PROJECTION is {projection}; expected at least 1")
        if head.stride < output_stride:
            raise UserError(
                f"MODEL.SEED.OUTPUT_STRIDE is {output_stride}, but the head's scores have a stride of {head.stride}; "
                "expected a finer one than theirs"
            )
        if options.get("upsampling", 1) != 1:
            raise UserError("MODEL.SEED.UPSAMPLING is not for the seed guided; set MODEL.SEED.OUTPUT_STRIDE")
        detail = GuidedFeatures(
            head.feature_channels, image_channels, projection, output_stride, align_corners=align_corners
        )
        super().__init__(
            detail.channels, output_stride, image_channels=image_channels, align_corners=align_corners, **options
        )
        self.head_stride = head.stride
        self.detail = detail

    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor:
        """See `Seed.features`."""
        return decoded.features

    def upsample(self, decoded: SegOutput, images: Tensor) -> SegOutput:
        """See `Seed.upsample`.

        Raises:
            UserError: the head predicts embeddings, which are not upsampled.
        """
        if decoded.embedding is not None:
            raise UserError("MODEL.SEED.NAME guided does not go with MODEL.HEAD.EMBEDDING; leave one of them away")
        height, width = ((n + self.stride - 1) // self.stride for n in images.shape[-2:])
        scores = (resize_bilinear(x, (height, width), align_corners=self.align_corners) for x in decoded.scores)
        return replace(decoded, scores=tuple(scores))

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """See `Seed.predict`."""
        coarse = crop_padding(as_tensor(features), images, self.head_stride)
        fine = self.detail(coarse, images, spatial_size(decoded.scores[-1]))
        return super().predict(fine, decoded, images)


class GuidedFeatures(Part):
    """Coarse features, projected and raised bilinearly, beside convolutions of the image at the finer stride.

    Args:
        in_channels: ``D``.
        image_channels: channels of the images.
        projection: channels that the coarse features are projected to.
        stride: stride of the output, a power of 2.
        align_corners: convention of the resizing.

    Attributes:
        channels: channels of the output.
    """

    def __init__(self, in_channels: int, image_channels: int, projection: int, stride: int, *, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        num_halvings = stride.bit_length() - 1
        width = 2 * _STEM_WIDTH
        halvings = [conv_bn(image_channels, _STEM_WIDTH, stride=2)]
        halvings += [conv_bn(_STEM_WIDTH if i == 0 else width, width, stride=2) for i in range(num_halvings - 1)]
        self.stem = nn.Sequential(*halvings, conv_bn(_STEM_WIDTH if num_halvings == 1 else width, width))
        self.reduce = conv_bn(in_channels, projection, kernel=1)
        self.channels = projection + width
        initialize_convolutions(self)

    def forward(self, features: Tensor, images: Tensor, size: Size) -> Tensor:
        """Features ``(B, D, h, w)`` and images ``(B, image_channels, H, W)`` to a map ``(B, channels, *size)``.

        Args:
            size: the images' size over the stride, rounded up.
        """
        coarse = resize_features(self.reduce(features), size, align_corners=self.align_corners)
        return torch.cat((coarse, self.stem(images)), dim=1)
