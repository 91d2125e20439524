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
BLOCK_SCORES = 2**22  # numbers per block of a table of pixels by classes


class Offsets(Part):
    """Moves class (or query) vectors and pixel vectors towards each other.

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
        """Moves both, each by the other's original positions.

        Args:
            classes: ``(B, K, C)``.
            pixels: ``(B, N, C)``.

        Returns:
            ``(B, K, C)`` and ``(B, N, C)``.
        """
        affinity = _affinity(classes, pixels)
        of_classes = self.of_classes(affinity.softmax(dim=1).transpose(1, 2) @ pixels)
        of_pixels = affinity.softmax(dim=2) @ self.of_pixels(classes)  # projected before: classes are fewer
        return classes + of_classes, pixels + of_pixels

    def products(self, classes: Tensor, pixels: Tensor) -> list[Tensor]:
        """``E' W'^T``, the scores of moved pixels under moved classes, in blocks of pixels.

        Pixels are not moved one by one: ``E' W'^T = E W'^T + softmax_classes(A)^T (P_f(W) W'^T)``, where the product in
        brackets has but ``K x K`` numbers. Apart from ``A`` and the scores no table of all pixels by classes is held.

        Args:
            classes: ``(B, K, C)``.
            pixels: ``(B, N, C)``.

        Returns:
            Each ``(B, n, K)``, ``N`` pixels in all.
        """
        block_size = max(1, BLOCK_SCORES // (len(pixels) * classes.shape[1]))
        # A trace would have the blocks of the size that it was made for, whatever comes.
        blocks = [pixels] if torch.jit.is_tracing() else pixels.split(block_size, dim=1)
        tables = [_affinity(classes, block) for block in blocks]
        moved = classes + self.of_classes(_mean_pixels(tables, blocks))
        # Not called as a module: torch's FLOP counter does not take a parameter as a module's input.
        by_share = F.linear(classes, self.of_pixels.weight) @ moved.transpose(1, 2)  # (B, K, K)
        return [
            block @ moved.transpose(1, 2) + table.softmax(dim=2) @ by_share
            for table, block in zip(tables, blocks, strict=True)
        ]


def _affinity(classes: Tensor, pixels: Tensor) -> Tensor:
    """``A`` as ``(B, N, K)``, in float32 at least: its softmaxes need it."""
    affinity = pixels @ classes.transpose(1, 2)
    return affinity.to(torch.promote_types(affinity.dtype, torch.float32))


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
        pixels = features.flatten(2).transpose(1, 2)
        classes = self.classes.expand(pixels.shape[0], -1, -1)
        scores = torch.cat([self.norm(block) for block in self.offsets.products(classes, pixels)], dim=1)
        return scores.transpose(1, 2).unflatten(2, features.shape[-2:])


def _mean_pixels(tables: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
    """The mean pixel feature of each class ``(B, K, C)``, weighted by a softmax over all pixels.

    A block's mean is weighted by its share of the softmax denominator.
    """
    means = torch.stack([t.softmax(dim=1).transpose(1, 2) @ b for t, b in zip(tables, blocks, strict=True)])
    shares = torch.stack([table.logsumexp(dim=1) for table in tables]).softmax(dim=0)
    return (means * shares[..., None].to(means.dtype)).sum(dim=0)


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
        classifier: offset learning, or a 1x1 convolution to compare it with.

    Raises:
        UserError: `channels` is no multiple of 32.
    """

    published = (
        PublishedNames(
            "mmseg",
            ((r"decode_head\.align\.conv\.", "align.0."), (r"decode_head\.align\.gn\.", "align.1.")),
        ),
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        classifier: ClassifierKind = "offset_learning",
    ):
        super().__init__()
        if channels < 1 or channels % NUM_GROUPS:
            raise UserError(f"the offset_learning head has {channels} channels; expected a multiple of {NUM_GROUPS}")
        self.feature_channels, self.stride = channels, in_strides[-1]
        self.align = nn.Sequential(
            nn.Conv2d(in_channels[-1], channels, 1, bias=False),
            nn.GroupNorm(NUM_GROUPS, channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = make_classifier(classifier, channels, num_classes)
        initialize_convolutions(self.align)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        aligned = self.align(features[-1])
        return SegOutput((self.classifier(aligned),), aligned)
