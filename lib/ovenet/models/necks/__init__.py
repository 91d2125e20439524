"""Parts that turn a backbone's maps into those that a head reads."""

from ovenet.models.necks.concat import ConcatNeck, IdentityNeck
from ovenet.models.necks.fpn import FPNNeck
from ovenet.models.necks.freqfusion import FreqFusionNeck

__all__ = ["ConcatNeck", "FPNNeck", "FreqFusionNeck", "IdentityNeck"]
