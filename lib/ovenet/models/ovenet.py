"""OVeNet: a segmentor whose scores are fetched at seed pixels too. It goes with any backbone, neck and head.

The seed is a part of its own. Its kinds differ in where the features come from that the offsets are read off:
a second copy of the backbone's last stages (`fork`, as published), the head's own features (`shared`), or a neck of its
own on the backbone's maps (`neck`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear
from ovenet.models.fusion import ConfidenceGate, SeedFusion
from ovenet.models.heads.offset import FinerFeatures, OffsetHead, OffsetPrediction
from ovenet.models.interfaces import Backbone, ForkableBackbone, Head, Neck, Part, SegOutput
from ovenet.models.necks import ConcatNeck
from ovenet.models.registry import SEEDS
from ovenet.models.segmentor import Segmentor, cropped
from ovenet.models.stacked import StackedMaps, as_tensor
from ovenet.structures import OVeNetOutput


class Seed(Part):
    """Offsets, confidence and the fusion; the kinds below say which features they come from.

    Args:
        in_channels: of those features.
        stride: of those features, nominal.
        num_classes: ``K``.
        max_offset: τ, the longest offset per axis in normalised units; the image spans 2.
        num_refinements: times that each offset is prolonged by the offset at its seed.
        fuse_logits: fuse logits (True) or probabilities (False).
        align_corners: convention of bringing offsets to the size of the scores.
        initial_confidence: what training begins with.
        num_seeds: seeds per pixel, whose scores are averaged with weights that are predicted too; the paper has one.
        confidence_sees_scores: correct the confidence by what pixel and seed predict, see `ConfidenceGate`.
        upsampling: factor on the resolution of the scores at which offsets are predicted and scores fused.
        correction: predict a correction of the scores beside the offsets, added to what is fetched from the seed.

    Attributes:
        fork_stage: the stage of the backbone from which on the seed has its own; 0 for none.
        has_offsets: whether the second scores come from where predicted offsets say; not those of controls.

    Raises:
        UserError: a setting is out of its range.
    """

    fork_stage: int = 0
    has_offsets: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        stride: int,
        *,
        num_classes: int,
        max_offset: float = 0.5,
        num_refinements: int = 0,
        fuse_logits: bool = True,
        align_corners: bool = True,
        initial_confidence: float = 0.5,
        num_seeds: int = 1,
        confidence_sees_scores: bool = False,
        upsampling: int = 1,
        correction: bool = False,
    ):
        super().__init__()
        for name, value, fits, expected in (
            ("MAX_OFFSET", max_offset, max_offset > 0, "more than 0 (the image spans 2)"),
            ("NUM_REFINEMENTS", num_refinements, num_refinements >= 0, "at least 0"),
            ("INITIAL_CONFIDENCE", initial_confidence, 0 < initial_confidence < 1, "a number between 0 and 1"),
            ("NUM_SEEDS", num_seeds, num_seeds >= 1, "at least 1"),
            ("UPSAMPLING", upsampling, upsampling >= 1, "at least 1"),
        ):
            if not fits:
                raise UserError(f"{name} of the seed is {value}; expected {expected}")
        self.stride = stride
        self.align_corners = align_corners
        self.upsampling = upsampling
        self.finer = FinerFeatures(in_channels, align_corners=align_corners) if upsampling > 1 else None
        self.head = OffsetHead(
            in_channels if self.finer is None else self.finer.channels,
            max_offset=max_offset,
            initial_confidence=initial_confidence,
            num_seeds=num_seeds,
            num_corrected=num_classes if correction else 0,
        )
        gate = ConfidenceGate(num_classes) if confidence_sees_scores else None
        self.fusion = SeedFusion(num_refinements=num_refinements, fuse_logits=fuse_logits, gate=gate)

    @abstractmethod
    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor | StackedMaps:
        """What the offset head reads.

        Args:
            maps: the backbone's; of a fork, those before `fork_stage`.
            decoded: the head's prediction.
        """

    def forward(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """Seed scores and fused scores.

        Args:
            features: see `features`.
            decoded: the head's prediction.
            images: of the batch, normalised and not padded.
        """
        decoded = self.upsampled(decoded)
        prediction = self.predict(features, decoded, images)
        output = self.fusion(decoded.scores, *prediction, kind=decoded.score_kind)
        return replace(output, embedding=decoded.embedding, queries=decoded.queries)

    def upsampled(self, decoded: SegOutput) -> SegOutput:
        """The head's prediction at the resolution at which it is fused.

        Raises:
            UserError: `upsampling` is not 1 and the head gives embeddings, which stay behind.
        """
        if self.upsampling == 1:
            return decoded
        if decoded.embedding is not None:
            raise UserError("MODEL.SEED.UPSAMPLING does not go with MODEL.HEAD.EMBEDDING; leave one of them away")
        size = [self.upsampling * n for n in decoded.scores[-1].shape[-2:]]
        return replace(
            decoded, scores=tuple(resize_bilinear(x, size, align_corners=self.align_corners) for x in decoded.scores)
        )

    def predict(self, features: Tensor | StackedMaps, decoded: SegOutput, images: Tensor) -> OffsetPrediction:
        """Offsets and confidence at the size of the scores; arguments as for `forward`."""
        size = decoded.scores[-1].shape[-2:]
        if self.finer is None:
            prediction = self.head(features).map(lambda x: cropped(x, images, self.stride))
        else:
            prediction = self.head(self.finer(cropped(as_tensor(features), images, self.stride), images, size))
        # Normalised units need no rescaling.
        return prediction.map(lambda x: resize_bilinear(x, size, align_corners=self.align_corners))


@SEEDS.register("fork")
class ForkedSeed(Seed):
    """Offsets from a second copy of the backbone's last stages, the offset branch of the paper.

    Args:
        backbone: one that can be forked.
        stage: the first stage that exists twice.
        stages: other settings of the copied stages, see `ForkableBackbone.make_tail`; None for the usual ones.
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
                f"the backbone ({type(backbone).__name__}) has no stages that a fork could copy, only HRNet and ResNet "
                "have; use the seed shared or neck"
            )
        tail = backbone.make_tail(stage, stages)
        neck = ConcatNeck(tail.channels, tail.strides, align_corners=align_corners, stacks=False)
        super().__init__(
            neck.channels[-1],
            neck.strides[-1],
            align_corners=align_corners,
            **options,
        )
        self.fork_stage = stage
        self.tail, self.neck = tail, neck

    def features(self, maps: list[Tensor], decoded: SegOutput) -> StackedMaps:
        """See `Seed.features`."""
        return self.neck(self.tail(maps))[-1]


@SEEDS.register("shared")
class SharedSeed(Seed):
    """Offsets from the features that the head's classifier reads.

    Args:
        head: the segmentor's.
        options: see `Seed`.
    """

    def __init__(
        self,
        head: Head,
        **options: Any,
    ):
        super().__init__(head.feature_channels, head.stride, **options)

    def features(self, maps: list[Tensor], decoded: SegOutput) -> Tensor:
        """See `Seed.features`."""
        return decoded.features


@SEEDS.register("neck")
class NeckSeed(Seed):
    """Offsets from a neck of their own on the backbone's maps.

    Args:
        in_channels: channels per map of the backbone.
        in_strides: strides per map.
        projection: width to which the neck brings every map before it stacks them; None leaves them as they are.
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
        super().__init__(
            neck.channels[-1],
            neck.strides[-1],
            align_corners=align_corners,
            **options,
        )
        self.neck = neck

    def features(self, maps: list[Tensor], decoded: SegOutput) -> StackedMaps:
        """See `Seed.features`."""
        return self.neck(maps)[-1]


class OVeNet(Segmentor):
    """A segmentor and a seed.

    Args:
        backbone, neck, head: see `Segmentor`.
        seed: built for this backbone and this head.
    """

    def __init__(self, backbone: Backbone, neck: Neck, head: Head, seed: Seed):
        super().__init__(backbone, neck, head)
        self.seed = seed

    @property
    def max_offset(self) -> float:
        """See `Segmentor.max_offset`."""
        return self.seed.head.max_offset

    def forward(self, images: Tensor) -> OVeNetOutput:
        """See `Segmentor.forward`."""
        pixels = self.padded(images)
        if stage := self.seed.fork_stage:
            before = self.backbone.run([pixels], 0, stage - 1)
            maps = self.backbone.run(before, stage - 1, self.backbone.num_stages)
        else:
            before = maps = self.backbone(pixels)
        decoded = self.decode(maps, images)
        return self.seed(self.seed.features(before, decoded), decoded, images)
