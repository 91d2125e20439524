"""SegFix: boundary pixels take the scores of a pixel towards the interior of their class.

Yuan et al., "SegFix: Model-Agnostic Boundary Refinement for Segmentation", ECCV 2020, behind any network. What the
paper leaves open is as in the released code (openseg-group/openseg.pytorch).

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size, ``h w`` size of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ovenet.geometry import at_least_float32, resize_bilinear, sample_bilinear, seed_position, spatial_size
from ovenet.models.heads.fcn import last_conv, reset_predictor
from ovenet.models.interfaces import SegOutput, initialize_convolutions
from ovenet.models.necks import ConcatNeck
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.refiner import Refiner, require_settings
from ovenet.models.segmentor import crop_padding
from ovenet.models.stacked import StackedConv2d, StackedMaps
from ovenet.structures import NUM_DIRECTIONS, DirectionOutput, OVeNetOutput, Size

_LOGIT_WEIGHT_STD = 0.01  # at first a border is as likely as none, and so are all directions
_SIDE = 480  # image side that `max_offset` is said for


@SEEDS.register("segfix")
class SegFixSeed(Refiner):
    """Predicts which pixels are near a border and the direction away from it, and samples the scores there.

    In training it returns the scores unrefined, and the borders and directions to be trained: its decisions have no
    gradient. In evaluation it refines the final scores at the image's resolution, as published; auxiliary ones stay.

    Args:
        in_channels: channels of each map of the backbone.
        in_strides: stride of each map.
        projection: channels that the neck projects each map to before it concatenates them, as in `NeckSeed`; None for
            no projection, as published on HRNet.
        channels: hidden channels of each branch.
        scale: factor of the offsets: length of a step to the side, in pixels of the image. Steps are to one of the 8
            neighbours, so that a diagonal one is longer by √2.
        align_corners: convention of the upsampling.

    Raises:
        UserError: a setting is out of range.
    """

    has_seed = True
    vectors: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        projection: int | None = 64,
        channels: int = 256,
        scale: float = 2.0,
        align_corners: bool = True,
    ):
        super().__init__()
        require_settings(
            ("CHANNELS", channels, channels >= 1, "at least 1"),
            ("SCALE", scale, 0 < scale < math.inf, "more than 0 (pixels)"),
        )
        self.scale, self.align_corners = scale, align_corners
        neck = ConcatNeck(in_channels, in_strides, projection=projection, align_corners=align_corners, stacks=False)
        self.neck, self.stride = neck, neck.strides[-1]
        self.boundary, self.direction = (
            _branch(neck.channels[-1], channels, predicted) for predicted in (1, NUM_DIRECTIONS)
        )
        angles = torch.arange(NUM_DIRECTIONS) * (math.tau / NUM_DIRECTIONS)
        neighbours = torch.stack((angles.cos(), angles.sin()), dim=1).round()
        self.register_buffer("vectors", neighbours, persistent=False)

    @property
    def max_offset(self) -> float:
        """The offset in an image of 480 pixels, for pictures; it is shorter in larger images."""
        return 2 * self.scale / (_SIDE - 1)

    def features(self, maps: list[Tensor], decoded: SegOutput) -> StackedMaps:
        """See `Refiner.features`."""
        return self.neck(maps)[-1]

    def forward(self, features: StackedMaps, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """See `Refiner.forward`."""
        boundary, direction = (
            at_least_float32(crop_padding(branch(features), images, self.stride))
            for branch in (self.boundary, self.direction)
        )
        directions = DirectionOutput(boundary, direction)
        plain = OVeNetOutput(
            initial=decoded.scores,
            seed=(),
            fused=decoded.scores,
            score_kind=decoded.score_kind,
            embedding=decoded.embedding,
            queries=decoded.queries,
            directions=directions,
        )
        if self.training:
            return plain
        size = spatial_size(images)
        *others, final = decoded.scores
        final = resize_bilinear(at_least_float32(final), size, align_corners=self.align_corners)
        offset, near = self.decide(directions, size)
        refined = (*others, sample_bilinear(final, seed_position(offset)))
        return replace(plain, initial=(*others, final), seed=refined, fused=refined, offset=offset, confidence=near)

    def decide(self, directions: DirectionOutput, size: Size) -> tuple[Tensor, Tensor]:
        """Offsets ``(B, 2, H, W)`` in normalised units, and whether a pixel has one ``(B, 1, H, W)``, 0 or 1.

        Args:
            directions: predictions of the two branches.
            size: size ``(H, W)`` of the image.
        """
        probability = resize_bilinear(directions.boundary.sigmoid(), size, align_corners=self.align_corners)
        near = (probability > 0.5).to(probability.dtype)
        logits = resize_bilinear(directions.direction, size, align_corners=self.align_corners)
        steps = self.vectors.to(near.dtype)[logits.argmax(dim=1)].permute(0, 3, 1, 2) * near
        x, y = (2 * self.scale / (n - 1 + (n == 1)) for n in (size[1], size[0]))  # in a trace, max gives a constant
        return torch.cat((steps[:, :1] * x, steps[:, 1:] * y), dim=1), near


def _branch(in_channels: int, channels: int, predicted: int) -> nn.Sequential:
    """1x1 convolution, BatchNorm, ReLU, and a 1x1 convolution without bias, as released."""
    branch = nn.Sequential(
        StackedConv2d(in_channels, channels),
        BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, predicted, 1, bias=False),
    )
    initialize_convolutions(branch)
    reset_predictor(last_conv(branch), _LOGIT_WEIGHT_STD)
    return branch
