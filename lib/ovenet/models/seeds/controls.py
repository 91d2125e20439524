"""Controls: parts with the cost of a seed but without seed pixels, so that an experiment shows what the seed adds.

`AddedNeck` has the parameters of `NeckSeed`, but adds its features to the head's input. `ControlSeed` has the
parameters and losses of an OVeNet, but takes the second scores from elsewhere than the predicted offsets.
`CorrectedSeed` predicts a correction of the pixel's own scores in place of offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import at_least_float32, resize_bilinear, spatial_size
from ovenet.models.heads.fcn import last_conv, reset_predictor
from ovenet.models.interfaces import Neck, SegOutput, initialize_convolutions
from ovenet.models.necks import ConcatNeck
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import NECKS, SEEDS
from ovenet.models.seeds.fusion import SeedFusion
from ovenet.models.seeds.offset_head import OFFSET_WEIGHT_STD, OffsetPrediction
from ovenet.models.seeds.ovenet import NeckSeed
from ovenet.models.segmentor import crop_padding
from ovenet.models.stacked import StackedMaps

Source = Literal["own", "random", "mean3", "mean7"]
_EVALUATION_RANDOM_STATE = 0  # of the generator that draws offsets in evaluation


@NECKS.register("concat_added")
class AddedNeck(Neck):
    """The sum of two concat necks, the second one followed by a 1x1 convolution.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map.
        projection: see `ConcatNeck`.
        align_corners: convention of the upsampling.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        projection: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__()
        self.main, self.extra = (
            ConcatNeck(in_channels, in_strides, projection=projection, align_corners=align_corners) for _ in range(2)
        )
        self.channels, self.strides = self.main.channels, self.main.strides
        width = self.channels[0]
        self.layers = nn.Sequential(nn.Conv2d(width, width, 1), BatchNorm2d(width), nn.ReLU(inplace=True))
        initialize_convolutions(self.layers)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps, fine to coarse, to one map."""
        return [self.main(features)[0] + self.layers(self.extra(features)[0])]


@SEEDS.register("control")
class ControlSeed(NeckSeed):
    """`NeckSeed` whose second scores do not come from its predicted offsets.

    Args:
        in_channels, in_strides: see `NeckSeed`.
        source: source of the second scores: ``own``, the pixel itself (zero offsets); ``random``, a random pixel within
            ±max_offset, a new one for each training step and the same ones for every test image; ``mean3`` or
            ``mean7``, the mean over the pixel's 3x3 or 7x7 neighbourhood.
        options: see `NeckSeed`.
    """

    has_offsets = False

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int], *, source: Source, **options: Any):
        super().__init__(in_channels, in_strides, **options)
        self.source = source
        if source in ("mean3", "mean7"):
            self.fusion = _MeanFusion(int(source[-1]), self.fusion)

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """See `Seed.predict`."""
        prediction = super().predict(features, decoded, images)
        offset = torch.zeros_like(prediction.offset)
        if self.source == "random":
            offset = (2 * self._uniform_like(offset) - 1) * self.head.max_offset
        return prediction._replace(offset=offset)

    def _uniform_like(self, x: Tensor) -> Tensor:
        """Uniform random numbers in ``[0, 1)``; in evaluation the same on every device."""
        if self.training:
            return torch.rand_like(x)
        generator = torch.Generator().manual_seed(_EVALUATION_RANDOM_STATE)
        return torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)


class _MeanFusion(SeedFusion):
    """Uses the mean score over a window, cropped at the border, as the score at the seed."""

    def __init__(self, window: int, usual: SeedFusion):
        super().__init__(
            fuse_logits=usual.fuse_logits,
            num_passes=usual.num_passes,
            correct_first=usual.correct_first,
        )
        self.window = window

    def fetch(self, scores: Tensor, position: Tensor) -> Tensor:
        """See `SeedFusion.fetch`."""
        return F.avg_pool2d(scores, self.window, stride=1, padding=self.window // 2, count_include_pad=False)


@SEEDS.register("corrected")
class CorrectedSeed(NeckSeed):
    """`NeckSeed` whose last convolution predicts a correction of the pixel's own scores in place of offsets.

    Args:
        in_channels, in_strides, projection: see `NeckSeed`.
        num_classes: ``K``.
        max_offset: unused; shown in reports only.
        align_corners: see `Seed`.
    """

    has_offsets = False

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        num_classes: int,
        projection: int | None = 64,
        max_offset: float = 0.5,
        align_corners: bool = True,
    ):
        super().__init__(
            in_channels,
            in_strides,
            num_classes=num_classes,
            projection=projection,
            max_offset=max_offset,
            align_corners=align_corners,
        )
        predictor = nn.Conv2d(last_conv(self.head.layers).in_channels, num_classes + 1, 1)
        reset_predictor(predictor, OFFSET_WEIGHT_STD)
        self.head.layers[-1] = predictor

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """See `Seed.predict`."""
        raw = at_least_float32(crop_padding(self.head.layers(features), images, self.stride))
        raw = resize_bilinear(raw, spatial_size(decoded.scores[-1]), align_corners=self.align_corners)
        offset = torch.zeros_like(raw[:, :2])
        return OffsetPrediction(offset, raw[:, -1:].sigmoid(), correction=raw[:, :-1])
