"""Losses. `ovenet.losses.registry` finds those of ``LOSS.TERMS`` by name."""

from typing import TYPE_CHECKING

from ovenet.lazy import lazy_names

if TYPE_CHECKING:
    from ovenet.losses.contrast import PixelContrast
    from ovenet.losses.criterion import SegmentationCriterion
    from ovenet.losses.queries import QueryLoss
    from ovenet.losses.registry import LOSSES
    from ovenet.losses.targets import OhemSettings
    from ovenet.losses.terms import WeightedLoss, build_losses, list_losses

__all__ = [
    "LOSSES",
    "OhemSettings",
    "PixelContrast",
    "QueryLoss",
    "SegmentationCriterion",
    "WeightedLoss",
    "build_losses",
    "list_losses",
]
__getattr__ = lazy_names(
    __name__,
    {
        "LOSSES": "registry",
        "OhemSettings": "targets",
        "PixelContrast": "contrast",
        "QueryLoss": "queries",
        "SegmentationCriterion": "criterion",
        "WeightedLoss": "terms",
        "build_losses": "terms",
        "list_losses": "terms",
    },
)
