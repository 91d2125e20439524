"""The decoder of SegNeXt (Guo et al., 2022): a lightweight Hamburger, with matrix factorisation for global context
(Geng et al., "Is Attention Better Than Matrix Decomposition?", 2021).

Shapes: ``N = h * w`` pixels, ``C`` channels, ``R`` bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, resize_features, spatial_size
from ovenet.models.heads.offset_learning import NUM_GROUPS, ClassifierKind, make_classifier
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.precision import without_autocast
from ovenet.models.registry import HEADS

BASES_RANDOM_STATE = 0
SMALLEST_DENOMINATOR = 1e-6

Bases = Literal["seeded", "official"]


def factorize(x: Tensor, bases: Tensor, num_steps: int) -> Tensor:
    """Approximates a non-negative matrix by a product of two, with multiplicative updates (Lee and Seung, 1999).

    Args:
        x: ``(B, C, N)``, at least 0.
        bases: initial bases ``(B, C, R)``, of unit length over ``C``.
        num_steps: number of alternating updates of coefficients and bases.

    Returns:
        ``(B, C, N)`` of rank ``R``.
    """
    coefficients = (x.transpose(1, 2) @ bases).softmax(dim=2)  # (B, N, R)

    def updated_coefficients() -> Tensor:
        denominator = coefficients @ (bases.transpose(1, 2) @ bases) + SMALLEST_DENOMINATOR
        return coefficients * (x.transpose(1, 2) @ bases) / denominator

    for _ in range(num_steps):
        coefficients = updated_coefficients()
        denominator = bases @ (coefficients.transpose(1, 2) @ coefficients) + SMALLEST_DENOMINATOR
        bases = bases * (x @ coefficients) / denominator
    return bases @ updated_coefficients().transpose(1, 2)


class MatrixFactorization(nn.Module):
    """Non-negative matrix factorisation of a map.

    Args:
        channels: ``C``.
        rank: ``R``.
        num_train_steps: number of updates in training.
        num_eval_steps: number of updates in evaluation.
        bases: initial bases in evaluation: ``seeded`` uses the same ones every time, so that a prediction depends only
            on its image; ``official`` draws new ones, as the published code does.
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        rank: int = 16,
        num_train_steps: int = 6,
        num_eval_steps: int = 7,
        bases: Bases = "seeded",
    ):
        super().__init__()
        self.rank, self.redraws = rank, bases == "official"
        self.num_train_steps, self.num_eval_steps = num_train_steps, num_eval_steps
        generator = torch.Generator("cpu").manual_seed(BASES_RANDOM_STATE)
        drawn = torch.rand((1, channels, rank), generator=generator, device="cpu")
        self.register_buffer("bases", drawn.to(torch.empty(0).device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, h, w)``, at least 0, to map of the same shape; computed in at least float32."""
        with without_autocast(x.device):
            pixels = at_least_float32(x.flatten(2))
            num_steps = self.num_train_steps if self.training else self.num_eval_steps
            product = factorize(pixels, F.normalize(self._draw(pixels), dim=1), num_steps)
        return product.to(x.dtype).unflatten(2, x.shape[-2:])

    def _draw(self, pixels: Tensor) -> Tensor:
        shape = (*pixels.shape[:2], self.rank)
        if self.training or self.redraws:
            return torch.rand(shape, device=pixels.device, dtype=pixels.dtype)
        return self.bases.to(pixels.dtype).expand(shape)


class ConvGroupNorm(nn.Sequential):
    """1x1 convolution without bias and GroupNorm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(NUM_GROUPS, out_channels))


@HEADS.register("light_ham")
class LightHamHead(Head):
    """SegNeXt's head: concatenates all maps but the finest at the second map's size, and adds global context.

    Args:
        in_channels: channels of each map, at least three maps.
        in_strides: stride of each map.
        num_classes: ``K``.
        channels: hidden channels, a multiple of 32.
        dropout: probability of dropping a channel before the classifier ``conv1x1``.
        classifier: a 1x1 convolution, or OffSeg's offset learning.
        bases: see `MatrixFactorization`.
        align_corners: convention of the upsampling.

    Raises:
        UserError: fewer than three maps, or `channels` is no multiple of 32.
    """

    default_neck = "none"
    first_read = 1
    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.(squeeze|align)\.conv\.", r"\1.0."),
                (r"decode_head\.(squeeze|align)\.gn\.", r"\1.1."),
                (r"decode_head\.hamburger\.ham_in\.conv\.", "before."),
                (r"decode_head\.hamburger\.ham_out\.conv\.", "after.0."),
                (r"decode_head\.hamburger\.ham_out\.gn\.", "after.1."),
                (r"decode_head\.conv_seg\.", "classifier."),
            ),
        ),
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        classifier: ClassifierKind = "conv1x1",
        bases: Bases = "seeded",
        align_corners: bool = False,
    ):
        super().__init__()
        if len(in_channels) < 3:
            raise UserError(
                f"the light_ham head reads at least 3 maps, got {len(in_channels)}; use another head, or the neck none "
                "and a backbone with more maps"
            )
        if channels < 1 or channels % NUM_GROUPS:
            raise UserError(f"MODEL.HEAD.CHANNELS is {channels}; expected a multiple of {NUM_GROUPS}")
        self.feature_channels, self.stride = channels, in_strides[1]
        self.align_corners = align_corners
        self.squeeze = ConvGroupNorm(sum(in_channels[1:]), channels)
        self.before = nn.Conv2d(channels, channels, 1)
        self.context = MatrixFactorization(channels, bases=bases)
        self.after = ConvGroupNorm(channels, channels)
        self.align = ConvGroupNorm(channels, channels)
        initialize_convolutions(self)
        self.dropout = nn.Dropout2d(dropout) if classifier == "conv1x1" else nn.Identity()
        self.classifier = make_classifier(classifier, channels, num_classes)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`; scores have the size of the second map."""
        size = spatial_size(features[1])
        maps = [resize_features(x, size, align_corners=self.align_corners) for x in features[1:]]
        x = F.relu(self.squeeze(torch.cat(maps, dim=1)))
        context = self.after(self.context(F.relu(self.before(x))))
        aligned = F.relu(self.align(F.relu(x + context)))
        return SegOutput((self.classifier(self.dropout(aligned)),), aligned)
