"""OVeNet: a segmentor with a seed, which samples the scores at seed pixels. Works with any backbone, neck and head.

A seed predicts offsets and their confidence from features, and fuses the scores. The three seeds here differ in their
features: a second copy of the backbone's last stages (``fork``, the paper), the features of the head's classifier
(``shared``), or a neck on the backbone's maps (``neck``). `ovenet.models.seeds.controls` has two for comparison.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ovenet.errors import UserError
from ovenet.geometry import probabilities, resize_bilinear, resize_features, spatial_size
from ovenet.models.interfaces import Backbone, ForkableBackbone, Head, Neck, SegOutput
from ovenet.models.necks import ConcatNeck
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.fusion import SeedFusion
from ovenet.models.seeds.offset_head import FinerFeatures, OffsetHead, OffsetPrediction
from ovenet.models.seeds.refiner import Refiner, require_settings
from ovenet.models.segmentor import Segmentor, crop_padding
from ovenet.models.stacked import StackedMaps, as_tensor
from ovenet.structures import OVeNetOutput

_EMBEDDING_WIDTH = 16  # channels of the embedding that weighs several seeds


class Seed(Refiner):
    """Offset head and fusion. Subclasses choose the features that the offsets are predicted from.

    Args:
        in_channels: channels of the features.
        stride: nominal stride of the features.
        num_classes: ``K``.
        image_channels: channels of the images.
        max_offset: τ, the largest offset along each axis, in normalised units: the image spans 2.
        num_refinements: number of refinement steps ``o ← o + o(p + o)`` of the offsets.
        fuse_logits: fuse logits (True) or probabilities (False).
        align_corners: convention of resizing offsets to the size of the scores.
        initial_confidence: confidence at initialisation.
        num_seeds: seeds per pixel; their scores are averaged with predicted weights. The paper has one.
        upsampling: fuse at this multiple of the scores' resolution.
        correction: predict a correction too, which is added to the scores sampled at the seed.
        correct_first: add the correction to the scores before they are sampled and fused; pixel and seed are corrected.
        num_passes: number of times that the scores are sampled and fused, see `SeedFusion`.
        seed_weights: weights of several seeds: ``predicted``, or from ``features``, see `agreement`.
        sees_scores: offsets, confidence and correction see the class probabilities of the head's final map.

    Raises:
        UserError: a setting is out of range.
    """

    has_seed: ClassVar[bool] = True
    has_fusion: ClassVar[bool] = True
    has_offsets: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        stride: int,
        *,
        num_classes: int,
        image_channels: int = 3,
        max_offset: float = 0.5,
        num_refinements: int = 0,
        fuse_logits: bool = True,
        align_corners: bool = True,
        initial_confidence: float = 0.5,
        num_seeds: int = 1,
        upsampling: int = 1,
        correction: bool = False,
        correct_first: bool = False,
        num_passes: int = 1,
        seed_weights: Literal["predicted", "features"] = "predicted",
        sees_scores: bool = False,
    ):
        super().__init__()
        require_settings(
            ("MAX_OFFSET", max_offset, max_offset > 0, "more than 0 (the image spans 2)"),
            ("NUM_REFINEMENTS", num_refinements, num_refinements >= 0, "at least 0"),
            ("INITIAL_CONFIDENCE", initial_confidence, 0 < initial_confidence < 1, "a number between 0 and 1"),
            ("NUM_SEEDS", num_seeds, num_seeds >= 1, "at least 1"),
            ("UPSAMPLING", upsampling, upsampling >= 1, "at least 1"),
            ("CORRECT_FIRST", correct_first, correction or not correct_first, "False without CORRECTION"),
            ("NUM_PASSES", num_passes, num_passes >= 1, "at least 1"),
            ("SEED_WEIGHTS", seed_weights, seed_weights == "predicted" or num_seeds > 1, "predicted with NUM_SEEDS 1"),
        )
        self.stride = stride
        self.align_corners = align_corners
        self.upsampling = upsampling
        self.finer = None
        if upsampling > 1:
            self.finer = FinerFeatures(in_channels, image_channels, align_corners=align_corners)
        self.sees_scores = sees_scores
        num_features = in_channels if self.finer is None else self.finer.channels
        self.head = OffsetHead(
            num_features + (num_classes if sees_scores else 0),
            max_offset=max_offset,
            initial_confidence=initial_confidence,
            num_seeds=num_seeds,
            num_corrected=num_classes if correction else 0,
            num_embedded=_EMBEDDING_WIDTH if seed_weights == "features" else 0,
        )
        self.fusion = SeedFusion(
            num_refinements=num_refinements,
            fuse_logits=fuse_logits,
            num_passes=num_passes,
            correct_first=correct_first,
        )

    @property
    def max_offset(self) -> float:
        """See `Refiner.max_offset`."""
        return self.head.max_offset

    @abstractmethod
    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor | StackedMaps:
        """Features that the offset head reads.

        Args:
            maps: from `run_backbone`.
            decoded: the head's prediction.
        """

    def forward(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """Samples the scores at the seeds and fuses them.

        Args:
            features: output of `features`.
            decoded: the head's prediction.
            images: ``(B, C, H, W)``, normalised, without padding.
        """
        decoded = self.upsample(decoded, images)
        prediction = self.predict(features, decoded, images)
        output = self.fusion(decoded.scores, *prediction, kind=decoded.score_kind)
        return replace(output, embedding=decoded.embedding, queries=decoded.queries)

    def upsample(self, decoded: SegOutput, images: Tensor) -> SegOutput:
        """The head's prediction at the resolution of the fusion; images as in `forward`.

        Raises:
            UserError: `upsampling` is above 1 and the head predicts embeddings, which are not upsampled.
        """
        if self.upsampling == 1:
            return decoded
        if decoded.embedding is not None:
            raise UserError("MODEL.SEED.UPSAMPLING does not go with MODEL.HEAD.EMBEDDING; leave one of them away")
        height, width = (self.upsampling * n for n in decoded.scores[-1].shape[-2:])
        scores = (resize_bilinear(x, (height, width), align_corners=self.align_corners) for x in decoded.scores)
        return replace(decoded, scores=tuple(scores))

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """Offsets and confidence at the size of the scores; arguments as in `forward`."""
        size = spatial_size(decoded.scores[-1])
        if self.finer is None and not self.sees_scores:
            prediction = self.head(features).map(lambda x: crop_padding(x, images, self.stride))
        else:
            maps = crop_padding(as_tensor(features), images, self.stride)
            if self.finer is not None:
                maps = self.finer(maps, images, size)
            if self.sees_scores:
                own = probabilities(decoded.scores[-1].detach(), decoded.score_kind).to(maps.dtype)
                maps = torch.cat((resize_features(maps, size, align_corners=self.align_corners), own), dim=1)
            prediction = self.head(maps)
        # Offsets are in normalised units, so that resizing the map does not change their scale.
        return prediction.map(lambda x: resize_bilinear(x, size, align_corners=self.align_corners))


@SEEDS.register("fork")
class ForkedSeed(Seed):
    """Offsets from a second copy of the backbone's last stages, the offset branch of the paper.

    Args:
        backbone: the model's backbone.
        stage: number of the first copied stage.
        stages: settings of the copied stages, see `ForkableBackbone.make_tail`; None for the default.
        align_corners, options: see `Seed`.

    Raises:
        UserError: the backbone cannot be forked, or not at that stage.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        stage: int = 4,
        stages: Sequence[Mapping[str, Any]] | None = None,
        align_corners: bool = True,
        **options: Any,
    ):
        if not isinstance(backbone, ForkableBackbone):
            raise UserError(
                f"MODEL.SEED.NAME is fork, but {type(backbone).__name__} cannot be forked, only HRNet and ResNet can; "
                "use the seed shared or neck"
            )
        tail = backbone.make_tail(stage, stages)
        neck = ConcatNeck(tail.channels, tail.strides, align_corners=align_corners, stacks=False)
        super().__init__(neck.channels[-1], neck.strides[-1], align_corners=align_corners, **options)
        self.stage = stage
        self.tail, self.neck = tail, neck

    def run_backbone(self, backbone: Backbone, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """See `Seed.run_backbone`; the seed reads the maps before its first copied stage."""
        assert isinstance(backbone, ForkableBackbone)
        shared = backbone.run([pixels], 0, self.stage - 1)
        return backbone.run(shared, self.stage - 1, backbone.num_stages), shared

    def features(self, maps: list[Tensor], decoded: SegOutput) -> StackedMaps:
        """See `Seed.features`."""
        return self.neck(self.tail(maps))[-1]


@SEEDS.register("shared")
class SharedSeed(Seed):
    """Offsets from the features that the head's classifier reads.

    Args:
        head: the model's head.
        options: see `Seed`.
    """

    def __init__(self, head: Head, **options: Any):
        super().__init__(head.feature_channels, head.stride, **options)

    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor:
        """See `Seed.features`."""
        return decoded.features


@SEEDS.register("neck")
class NeckSeed(Seed):
    """Offsets from a second neck on the backbone's maps.

    Args:
        in_channels: channels of each map of the backbone.
        in_strides: stride of each map.
        projection: channels that the neck projects each map to before it concatenates them; None for no projection.
        align_corners, options: see `Seed`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        projection: int | None = 64,
        align_corners: bool = True,
        **options: Any,
    ):
        neck = ConcatNeck(in_channels, in_strides, projection=projection, align_corners=align_corners, stacks=False)
        super().__init__(neck.channels[-1], neck.strides[-1], align_corners=align_corners, **options)
        self.neck = neck

    def features(self, maps: list[Tensor], decoded: SegOutput) -> StackedMaps:
        """See `Seed.features`."""
        return self.neck(maps)[-1]


class OVeNet(Segmentor):
    """A segmentor with a seed, or with another refiner in its place.

    Args:
        backbone, neck, head: see `Segmentor`.
        seed: a refiner built for this backbone and this head.
    """

    def __init__(self, backbone: Backbone, neck: Neck, head: Head, seed: Refiner):
        super().__init__(backbone, neck, head)
        self.seed = seed

    @property
    def max_offset(self) -> float | None:
        """See `Segmentor.max_offset`."""
        return self.seed.max_offset

    def forward(self, images: Tensor) -> OVeNetOutput:
        """See `Segmentor.forward`."""
        maps, seed_maps = self.seed.run_backbone(self.backbone, self.pad(images))
        decoded = self.decode(maps, images)
        return self.seed(self.seed.features(seed_maps, decoded), decoded, images)
