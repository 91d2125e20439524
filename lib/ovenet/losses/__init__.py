"""Losses."""

from ovenet.losses.criterion import OhemSettings, SegmentationCriterion

__all__ = ["OhemSettings", "SegmentationCriterion"]
