"""Offset learning on one screen (Zhang et al., "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better
Spatial and Class Feature Alignment", 2025): classes and pixels move towards each other before they are compared.

With class embeddings ``W`` and pixels ``E``, ``A = W E^T`` says how much they have to do with each other. Each class
moves by what its pixels look like, ``W' = W + P_c(softmax_pixels(A) E)``, each pixel by what its classes look like,
``E' = E + P_f(softmax_classes(A)^T W)``, and the scores are ``LayerNorm_classes(E' W'^T)``.

Shapes: ``K`` classes or queries, ``N = h * w`` pixels, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.heads.fcn import CLASSIFIER_WEIGHT_STD, reset_predictor
from ovenet.models.interfaces import Head, Part, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.registry import HEADS

NUM_GROUPS = 32  # of the GroupNorm before the classifier
INITIAL_STD = 0.02


class Offsets(Part):
    """Moves vectors of classes, or of queries, and pixels towards each other.

    Args:
        channels: ``C``.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.offset_learning\.cls_offset_proj\.", "of_classes."),
                (r"decode_head\.offset_learning\.feat_offset_proj\.", "of_pixels."),
            ),
        ),
    )

    def __init__(self, channels: int):
        super().__init__()
        self.of_classes = nn.Linear(channels, channels, bias=False)
        self.of_pixels = nn.Linear(channels, channels, bias=False)
        for projection in (self.of_classes, self.of_pixels):
            nn.init.trunc_normal_(projection.weight, std=INITIAL_STD)

    def forward(self, classes: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Moves both; neither waits for the other to have moved.

        Both products are attention without scaling, whose kernels take softmaxes in float32 at least, and hold no table
        of classes by pixels.

        Args:
            classes: ``(B, K, C)``.
            pixels: ``(B, N, C)``.

        Returns:
            ``(B, K, C)`` and ``(B, N, C)``.
        """
        class_context = _attention(classes, pixels, pixels)
        pixel_offset = _attention(pixels, classes, self.of_pixels(classes))  # projected before: classes are fewer
        return classes + self.of_classes(class_context), pixels + pixel_offset


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query key^T) value``, each ``(B, n, C)``."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


class OffsetLearning(Part):
    """A classifier by offset learning, in place of a 1x1 convolution.

    Args:
        channels: ``C``.
        num_classes: ``K``.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.offset_learning\.cls_repr$", "classes"),
                (r"decode_head\.offset_learning\.mask_norm\.", "norm."),
            ),
            unused=(r"decode_head\.conv_seg\.(weight|bias)",),
        ),
    )

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.classes = nn.Parameter(torch.empty(1, num_classes, channels))
        self.offsets = Offsets(channels)
        self.norm = nn.LayerNorm(num_classes)
        nn.init.trunc_normal_(self.classes, std=INITIAL_STD)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` to scores ``(B, K, h, w)``."""
        pixels = features.flatten(2).transpose(1, 2).contiguous()  # as the kernels want them
        classes, pixels = self.offsets(self.classes.expand(len(pixels), -1, -1), pixels)
        scores = self.norm(pixels @ classes.transpose(1, 2))  # (B, N, K)
        return scores.transpose(1, 2).unflatten(2, features.shape[-2:])


ClassifierKind = Literal["conv1x1", "offset_learning"]


def make_classifier(kind: ClassifierKind, channels: int, num_classes: int) -> nn.Module:
    """What turns features ``(B, C, h, w)`` into scores ``(B, K, h, w)``: a 1x1 convolution or offset learning."""
    if kind == "offset_learning":
        return OffsetLearning(channels, num_classes)
    convolution = nn.Conv2d(channels, num_classes, 1)
    reset_predictor(convolution, CLASSIFIER_WEIGHT_STD)
    return convolution


@HEADS.register("offset_learning")
class OffsetLearningHead(Head):
    """OffSeg's head (there with the neck ``freqfusion``): the last map is mixed by a 1x1 convolution and classified by
    offset learning.

    Args:
        in_channels: channels per map.
        in_strides: strides per map.
        num_classes: ``K``.
        channels: ``C``, a multiple of 32.

    Raises:
        UserError: `channels` is no multiple of 32.
    """

    published = (
        PublishedNames(
            "mmseg",
            ((r"decode_head\.align\.conv\.", "align.0."), (r"decode_head\.align\.gn\.", "align.1.")),
        ),
    )

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int], num_classes: int, *, channels: int = 256):
        super().__init__()
        if channels < 1 or channels % NUM_GROUPS:
            raise UserError(f"the offset_learning head has {channels} channels; expected a multiple of {NUM_GROUPS}")
        self.feature_channels, self.stride = channels, in_strides[-1]
        self.align = nn.Sequential(
            nn.Conv2d(in_channels[-1], channels, 1, bias=False),
            nn.GroupNorm(NUM_GROUPS, channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = OffsetLearning(channels, num_classes)
        initialize_convolutions(self.align)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        aligned = self.align(features[-1])
        return SegOutput((self.classifier(aligned),), aligned)
