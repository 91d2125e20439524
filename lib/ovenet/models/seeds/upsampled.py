"""Learned upsamplers of scores, published as upsamplers of features: DySample, CARAFE and FreqFusion.

Each takes the final scores of a head to a finer resolution, by one or two steps. Auxiliary scores stay as they are.

Shapes: ``B`` batch, ``K`` classes, ``D`` channels of the features, ``H W`` image size, ``h w`` score map size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import (
    FREQ_FUSION,
    at_least_float32,
    pixel_grid,
    reassemble,
    resize_features,
    spatial_size,
    warp,
)
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.interfaces import Head, SegOutput, initialize_convolutions
from ovenet.models.necks.freqfusion import NORM_WIDTH, FreqFusion, initialize_fusions
from ovenet.models.necks.upsamplers import CARAFE, DySample
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.refiner import Refiner
from ovenet.models.segmentor import crop_padding
from ovenet.structures import OVeNetOutput, Size

Scale = Literal[2, 4]
STEM_WIDTH = 16  # channels of the image's features


class UpsampledScores(Refiner):
    """Doubles the resolution of the final scores once or twice.

    With `align_corners`, pixels are taken from where that convention has them: by the published convention, in which
    they are the quarters of a coarse pixel, objects near the border would move inward by up to a quarter of one.

    Args:
        head: the model's head.
        scale: factor of the resolution; 4 is two steps, of which the second reads the features resized bilinearly.
        align_corners: convention of resizing scores.

    Attributes:
        steps: one module per step, from subclasses.

    Raises:
        UserError: the head's loss does not read its scores.
    """

    name: ClassVar[str]
    steps: nn.ModuleList

    def __init__(self, head: Head, scale: Scale, align_corners: bool):
        super().__init__()
        if head.has_queries:
            raise UserError(
                f"MODEL.SEED.NAME is {self.name}, which learns from the loss of the scores, but the head is supervised "
                "by its masks; use another head, or a seed such as shared or neck"
            )
        self.stride, self.align_corners = head.stride, align_corners
        self.num_steps = scale // 2

    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor:
        """See `Refiner.features`: the features that the head's classifier reads."""
        return decoded.features

    def forward(self, features: Tensor, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """See `Refiner.forward`.

        Raises:
            UserError: the head predicts embeddings, which are not upsampled.
        """
        if decoded.embedding is not None:
            raise UserError(
                f"MODEL.SEED.NAME {self.name} does not go with MODEL.HEAD.EMBEDDING; leave one of them away"
            )
        *auxiliary, scores = decoded.scores
        features = crop_padding(features, images, self.stride)
        scores = at_least_float32(scores)
        for step in self.steps:
            features = resize_features(features, spatial_size(scores), align_corners=self.align_corners)
            scores = self.upsample(step, scores, features, images)
        return OVeNetOutput(decoded.scores, (), (*auxiliary, scores), score_kind=decoded.score_kind)

    @abstractmethod
    def upsample(self, step: nn.Module, scores: Tensor, features: Tensor, images: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` to ``(B, K, 2h, 2w)``.

        Args:
            step: of `steps`.
            scores: in at least float32.
            features: ``(B, D, h, w)``.
            images: ``(B, C, H, W)``, normalised.
        """

    def placed(self, upsampled: Tensor, displacement: Tensor | None = None) -> Tensor:
        """Samples upsampled scores, whose pixels are the quarters of coarse ones, where `align_corners` has its pixels.

        Args:
            upsampled: ``(B, K, 2h, 2w)``.
            displacement: ``(B, 2 G, 2h, 2w)`` to add, in pixels of the coarse map; None for zero.
        """
        if self.align_corners:
            between = _from_quarters_to_corners(spatial_size(upsampled), upsampled)
            if displacement is None:
                displacement = between.expand(upsampled.shape[0], -1, -1, -1)
            else:
                displacement = displacement + between.repeat(1, displacement.shape[1] // 2, 1, 1)
        if displacement is None:
            return upsampled
        return warp(upsampled, displacement, FREQ_FUSION, num_groups=displacement.shape[1] // 2)


@SEEDS.register("dysample")
class DySampleScores(UpsampledScores):
    """Scores sampled at predicted offsets (`ovenet.models.necks.upsamplers.DySample`), bilinear at initialisation.

    Offsets are predicted from scores and features together. The groups are of classes, in their order.

    Args:
        head: the model's head.
        num_classes: ``K``.
        scale: factor of the resolution.
        num_groups: groups of classes, each with its own offsets.
        dynamic_scope: predict the factor of the offsets too, which is 0.25 otherwise.
        align_corners: see `UpsampledScores`.

    Raises:
        UserError: `num_groups` is below 1.
    """

    name = "dysample"

    def __init__(
        self,
        head: Head,
        num_classes: int,
        *,
        scale: Scale = 2,
        num_groups: int = 4,
        dynamic_scope: bool = False,
        align_corners: bool = True,
    ):
        super().__init__(head, scale, align_corners)
        if num_groups < 1:
            raise UserError(f"MODEL.SEED.NUM_GROUPS is {num_groups}; expected at least 1")
        self.steps = nn.ModuleList(
            DySample(
                num_classes + head.feature_channels,
                num_groups=num_groups,
                dynamic_scope=dynamic_scope,
                align_corners=align_corners,
            )
            for _ in range(self.num_steps)
        )

    def upsample(self, step: nn.Module, scores: Tensor, features: Tensor, images: Tensor) -> Tensor:
        """See `UpsampledScores.upsample`."""
        assert isinstance(step, DySample)
        return step.upsample(scores, torch.cat((scores, features), dim=1))


@SEEDS.register("carafe")
class CARAFEScores(UpsampledScores):
    """Scores averaged with predicted weights (`ovenet.models.necks.upsamplers.CARAFE`): at initialisation a blur.

    Weights are predicted from the features.

    Args:
        head: the model's head.
        scale: factor of the resolution.
        compressed_channels: channels that the features are projected to before weights are predicted.
        kernel_size: side of the square of pixels that is averaged.
        align_corners: see `UpsampledScores`.

    Raises:
        UserError: `compressed_channels` is below 1.
    """

    name = "carafe"

    def __init__(
        self,
        head: Head,
        *,
        scale: Scale = 2,
        compressed_channels: int = 64,
        kernel_size: Literal[3, 5, 7] = 5,
        align_corners: bool = True,
    ):
        super().__init__(head, scale, align_corners)
        if compressed_channels < 1:
            raise UserError(f"MODEL.SEED.COMPRESSED_CHANNELS is {compressed_channels}; expected at least 1")
        self.steps = nn.ModuleList(
            CARAFE(head.feature_channels, compressed_channels=compressed_channels, kernel_size=kernel_size)
            for _ in range(self.num_steps)
        )

    def upsample(self, step: nn.Module, scores: Tensor, features: Tensor, images: Tensor) -> Tensor:
        """See `UpsampledScores.upsample`."""
        assert isinstance(step, CARAFE)
        return self.placed(step.upsample(scores, features))


@SEEDS.register("freqfusion")
class FreqFusionScores(UpsampledScores):
    """Scores upsampled as the coarse map of `ovenet.models.necks.freqfusion.FreqFusion`: averaged with predicted
    weights, and then sampled at predicted offsets.

    Weights and offsets are predicted from the features as coarse map and convolutions of the image as fine map. The
    sharpened fine map is not used, since it has no scores. Groups are of classes, in their order.

    Args:
        head: the model's head.
        image_channels: channels of the images.
        scale: factor of the resolution.
        compressed_channels: channels that both maps are projected to.
        align_corners: see `UpsampledScores`.

    Raises:
        UserError: `compressed_channels` is not a multiple of 8.
    """

    name = "freqfusion"

    def __init__(
        self,
        head: Head,
        *,
        image_channels: int = 3,
        scale: Scale = 2,
        compressed_channels: int = 64,
        align_corners: bool = True,
    ):
        super().__init__(head, scale, align_corners)
        if compressed_channels < 1 or compressed_channels % NORM_WIDTH:
            raise UserError(
                f"MODEL.SEED.COMPRESSED_CHANNELS is {compressed_channels}; expected a multiple of {NORM_WIDTH}"
            )
        fusions = [FreqFusion(STEM_WIDTH, head.feature_channels, compressed_channels) for _ in range(self.num_steps)]
        initialize_fusions(fusions)
        self.steps = nn.ModuleList(
            _FusionStep(fusion, image_channels, head.stride // 2**number)
            for number, fusion in enumerate(fusions, start=1)
        )

    def upsample(self, step: nn.Module, scores: Tensor, features: Tensor, images: Tensor) -> Tensor:
        """See `UpsampledScores.upsample`."""
        assert isinstance(step, _FusionStep)
        height, width = spatial_size(scores)
        fine = resize_features(step.stem(images), (2 * height, 2 * width), align_corners=self.align_corners)
        low_pass, _, displacement = step.fusion.predict(fine, features)
        upsampled = reassemble(scores, at_least_float32(low_pass), scale=2)
        return self.placed(upsampled, step.fusion.displacement(displacement))


class _FusionStep(nn.Module):
    """Convolutions of the image at a stride, and the fusion with the coarse map."""

    def __init__(self, fusion: FreqFusion, image_channels: int, stride: int):
        super().__init__()
        num_halvings = stride.bit_length() - 1
        layers = [conv_bn(image_channels, STEM_WIDTH, stride=min(2, stride))]
        layers += [conv_bn(STEM_WIDTH, STEM_WIDTH, stride=2) for _ in range(1, num_halvings)]
        self.stem = nn.Sequential(*layers)
        self.fusion = fusion
        initialize_convolutions(self.stem)


def _from_quarters_to_corners(size: Size, like: Tensor) -> Tensor:
    """Displacements from the quarters of coarse pixels to where ``align_corners=True`` has the pixels of a finer map.

    Args:
        size: ``(2h, 2w)``.
        like: a tensor of the dtype and on the device of the result.

    Returns:
        ``(1, 2, 2h, 2w)``, ``(x, y)`` in pixels of the coarse map, within ±0.25.
    """
    grids = [pixel_grid(size, device=like.device, dtype=like.dtype, align_corners=corners) for corners in (True, False)]
    parts = []
    for axis, length in enumerate(reversed(size)):
        corners, edges = (grid[:, axis : axis + 1] for grid in grids)
        n = length // 2
        parts.append(((n - 1) * corners - n * edges) / 2)
    return torch.cat(parts, dim=1)
