"""Controls: parts with everything that a seed has except the seed itself, so that an experiment can tell what helped.

`AddedNeck` has the parameters of a seed with a neck of its own, and adds their features to the head's instead of
fetching scores. `ControlSeed` has the parameters and the losses of an OVeNet, and takes the second scores from
elsewhere. `CorrectedSeed` adds predicted scores to the pixel's own, which is what a finished network could be given
instead of a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import resize_bilinear
from ovenet.models.fusion import SeedFusion
from ovenet.models.heads.fcn import reset_predictor
from ovenet.models.heads.offset import OFFSET_WEIGHT_STD, OffsetPrediction
from ovenet.models.interfaces import Neck, SegOutput, initialize_convolutions
from ovenet.models.necks import ConcatNeck
from ovenet.models.norm import BatchNorm2d
from ovenet.models.ovenet import NeckSeed
from ovenet.models.registry import NECKS, SEEDS
from ovenet.models.segmentor import cropped
from ovenet.models.stacked import StackedMaps

Source = Literal["own", "random", "mean3", "mean7"]
_EVALUATION_SEED = 0


@NECKS.register("concat_added")
class AddedNeck(Neck):
    """Two concat necks; the second one's features are added to the first one's after a 1x1 convolution.

    Args:
        in_channels: channels per map.
        in_strides: strides per map.
        projection: width to which each neck brings every map, see `ConcatNeck`.
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
        """Maps, fine to coarse, to one."""
        return [self.main(features)[0] + self.layers(self.extra(features)[0])]


@SEEDS.register("control")
class ControlSeed(NeckSeed):
    """The seed `neck`, whose second scores come from elsewhere than its offsets say.

    Args:
        in_channels, in_strides: see `NeckSeed`.
        source: ``own``, the pixel itself (offsets of zero); ``random``, a pixel within ±max_offset, drawn anew for
            every training step and the same for every image of a test; ``mean3`` or ``mean7``, the mean over the
            pixel's neighbourhood of that size.
        options: see `NeckSeed`.
    """

    has_offsets = False

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        source: Source,
        **options: Any,
    ):
        super().__init__(in_channels, in_strides, **options)
        self.source = source
        if source in ("mean3", "mean7"):
            self.fusion = _MeanFusion(int(source[-1]), self.fusion)

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """See `Seed.predict`."""
        prediction = super().predict(features, decoded, images)
        offset = torch.zeros_like(prediction.offset)
        if self.source == "random":
            offset = (2 * self._drawn_like(offset) - 1) * self.head.max_offset
        return prediction._replace(offset=offset)

    def _drawn_like(self, x: Tensor) -> Tensor:
        """Uniform in ``[0, 1)``; for a test the same on every device."""
        if self.training:
            return torch.rand_like(x)
        generator = torch.Generator().manual_seed(_EVALUATION_SEED)
        return torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)


class _MeanFusion(SeedFusion):
    """Takes the mean over a window, cut off at the border, for the score at the seed."""

    def __init__(self, window: int, usual: SeedFusion):
        super().__init__(fuse_logits=usual.fuse_logits, gate=usual.gate)
        self.window = window

    def fetch(self, scores: Tensor, position: Tensor) -> Tensor:
        """See `SeedFusion.fetch`."""
        return F.avg_pool2d(scores, self.window, stride=1, padding=self.window // 2, count_include_pad=False)


@SEEDS.register("corrected")
class CorrectedSeed(NeckSeed):
    """The seed `neck`, whose second scores are the pixel's own plus a correction that is read off the same features.

    The last convolution gives the correction and the confidence, instead of offsets and the confidence.

    Args:
        in_channels, in_strides, projection: see `NeckSeed`.
        num_classes: ``K``.
        max_offset: has no effect; what reports call the limit.
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
        self.head.layers[-1] = nn.Conv2d(self.head.layers[-1].in_channels, num_classes + 1, 1)
        reset_predictor(self.head.layers[-1], OFFSET_WEIGHT_STD)

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """See `Seed.predict`."""
        raw = cropped(self.head.layers(features), images, self.stride)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        raw = resize_bilinear(raw, decoded.scores[-1].shape[-2:], align_corners=self.align_corners)
        offset = torch.zeros_like(raw[:, :2])
        return OffsetPrediction(offset, raw[:, -1:].sigmoid(), correction=raw[:, :-1])
