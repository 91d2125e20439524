"""Losses."""

from ovenet.losses.criterion import SegmentationCriterion
from ovenet.losses.targets import OhemSettings

__all__ = ["OhemSettings", "SegmentationCriterion"]
