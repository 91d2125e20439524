"""Losses."""

from ovenet.losses.contrast import PixelContrast
from ovenet.losses.criterion import SegmentationCriterion
from ovenet.losses.queries import QueryLoss
from ovenet.losses.targets import OhemSettings
from ovenet.losses.terms import LOSSES, WeightedLoss, build_losses, list_losses

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
