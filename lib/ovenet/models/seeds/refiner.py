"""The interface of the part behind ``MODEL.SEED``: it improves the scores of a head, by seed pixels or otherwise.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size, ``h w`` score map size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Part, SegOutput
from ovenet.structures import OVeNetOutput


class Refiner(Part):
    """Improves the scores of a head. `ovenet.models.seeds.ovenet.Seed` does so by seed pixels.

    A refiner without seed pixels returns an output without offset, whose `fused` scores are the refined ones. Training
    supervises these alone, and those that the refiner adds to the output's auxiliary predictions.

    Attributes:
        has_seed: whether a test scores the initial scores and those at a seed pixel too, not the refined ones alone.
        has_fusion: whether training fuses those scores too, by a confidence that is supervised.
        has_offsets: whether offsets are predicted that can be supervised.
    """

    has_seed: ClassVar[bool] = False
    has_fusion: ClassVar[bool] = False
    has_offsets: ClassVar[bool] = False

    @property
    def max_offset(self) -> float | None:
        """τ, the largest offset along each axis in normalised units; None for refiners without offsets."""
        return None

    def run_backbone(self, backbone: Backbone, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps that the neck of the model reads, and those that `features` reads."""
        maps = backbone(pixels)
        return maps, maps

    @abstractmethod
    def features(self, maps: list[Tensor], decoded: SegOutput) -> Any:
        """What `forward` reads of the network.

        Args:
            maps: from `run_backbone`; maps of padded images.
            decoded: the head's prediction.
        """

    @abstractmethod
    def forward(self, features: Any, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """Refines the scores.

        Args:
            features: output of `features`.
            decoded: the head's prediction.
            images: ``(B, C, H, W)``, normalised, without padding.
        """


def require_settings(*checks: tuple[str, object, object, str]) -> None:
    """Checks the settings of a refiner.

    Args:
        checks: key below ``MODEL.SEED``, value, whether it is in range, and what is expected.

    Raises:
        UserError: a value is out of range; names the first.
    """
    for name, value, fits, expected in checks:
        if not fits:
            raise UserError(f"MODEL.SEED.{name} is {value}; expected {expected}")
