"""Parts that turn a backbone's maps into those that a head reads."""

from ovenet.models.necks.concat import ConcatNeck, IdentityNeck
from ovenet.models.necks.fpn import FPNNeck
from ovenet.models.necks.freqfusion import FreqFusionNeck
from ovenet.models.necks.pixel_shuffle import PixelShuffleNeck
from ovenet.models.necks.simple_fpn import SimpleFPNNeck

__all__ = ["ConcatNeck", "FPNNeck", "FreqFusionNeck", "IdentityNeck", "PixelShuffleNeck", "SimpleFPNNeck"]
