"""Offset learning (Zhang et al., "Revisiting Efficient Semantic Segmentation: Learning Offsets for Better Spatial
and Class Feature Alignment", 2025): classes and pixels move towards each other before they are compared.

``A = W E^T`` is the affinity of class embeddings ``W`` and pixel features ``E``. Each class moves by the projected mean
of its pixels, ``W' = W + P_c(softmax_pixels(A) E)``, each pixel by the projected mean of its classes,
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
from ovenet.geometry import at_least_float32
from ovenet.models.heads.fcn import CLASSIFIER_WEIGHT_STD, reset_predictor
from ovenet.models.interfaces import Head, Part, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.registry import HEADS

NUM_GROUPS = 32  # groups of the GroupNorm before the classifier
INITIAL_STD = 0.02
BLOCK_SCORES = 2**22  # entries per block of a pixels-by-classes matrix


class Offsets(Part):
    """Moves the vectors of classes (or queries) and of pixels towards each other.

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
        """Moves both; each offset is computed from the other's original vectors.

        Args:
            classes: ``(B, K, C)``.
            pixels: ``(B, N, C)``.

        Returns:
            ``(B, K, C)`` and ``(B, N, C)``.
        """
        affinity = _affinity(classes, pixels)
        of_classes = self.of_classes(affinity.softmax(dim=1).transpose(1, 2) @ pixels)
        of_pixels = affinity.softmax(dim=2) @ self.of_pixels(classes)  # projects the classes, of which there are fewer
        return classes + of_classes, pixels + of_pixels

    def products(self, classes: Tensor, pixels: Tensor) -> list[Tensor]:
        """Scores ``E' W'^T`` of the moved pixels for the moved classes, in blocks of pixels.

        Computed without ``E'``: ``E' W'^T = E W'^T + softmax_classes(A)^T (P_f(W) W'^T)``, where the product in
        parentheses is only ``K x K``. ``A`` and the scores are the only pixels-by-classes matrices held in full.

        Args:
            classes: ``(B, K, C)``.
            pixels: ``(B, N, C)``.

        Returns:
            Blocks ``(B, n, K)`` of ``n`` pixels, ``N`` in total.
        """
        block_size = max(1, BLOCK_SCORES // (len(pixels) * classes.shape[1]))
        # A trace would fix the number of blocks.
        blocks = [pixels] if torch.jit.is_tracing() else pixels.split(block_size, dim=1)
        tables = [_affinity(classes, block) for block in blocks]
        moved = classes + self.of_classes(_mean_pixels(tables, blocks))
        # Not self.of_pixels(classes): torch's FLOP counter fails on a parameter as the input of a module.
        by_share = F.linear(classes, self.of_pixels.weight) @ moved.transpose(1, 2)  # (B, K, K)
        return [
            block @ moved.transpose(1, 2) + table.softmax(dim=2) @ by_share
            for table, block in zip(tables, blocks, strict=True)
        ]


def _affinity(classes: Tensor, pixels: Tensor) -> Tensor:
    """``A`` as ``(B, N, K)``, in at least float32 for its softmaxes."""
    return at_least_float32(pixels @ classes.transpose(1, 2))


class OffsetLearning(Part):
    """A classifier with offset learning, in place of a 1x1 convolution.

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
    """Mean pixel feature of each class ``(B, K, C)``, weighted by a softmax over all pixels.

    The mean of each block is weighted by the block's part of the softmax denominator.
    """
    means = torch.stack([t.softmax(dim=1).transpose(1, 2) @ b for t, b in zip(tables, blocks, strict=True)])
    shares = torch.stack([table.logsumexp(dim=1) for table in tables]).softmax(dim=0)
    return (means * shares[..., None].to(means.dtype)).sum(dim=0)


ClassifierKind = Literal["conv1x1", "offset_learning"]


def make_classifier(kind: ClassifierKind, channels: int, num_classes: int) -> nn.Module:
    """A classifier of features ``(B, C, h, w)`` to scores ``(B, K, h, w)``."""
    if kind == "offset_learning":
        return OffsetLearning(channels, num_classes)
    convolution = nn.Conv2d(channels, num_classes, 1)
    reset_predictor(convolution, CLASSIFIER_WEIGHT_STD)
    return convolution


@HEADS.register("offset_learning")
class OffsetLearningHead(Head):
    """OffSeg's head, published with the neck ``freqfusion``: a 1x1 convolution and a classifier with offset learning.

    Args:
        in_channels: channels of each map; the last map is read.
        in_strides: stride of each map.
        num_classes: ``K``.
        channels: ``C``, a multiple of 32.
        classifier: offset learning, or a 1x1 convolution for comparison.

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
            raise UserError(f"MODEL.HEAD.CHANNELS is {channels}; expected a multiple of {NUM_GROUPS}")
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
