"""Feature extractors."""

from ovenet.models.backbones.hrnet import BackboneFeatures, HRNet, StageSpec

__all__ = ["BackboneFeatures", "HRNet", "StageSpec"]
