"""Networks and their weights."""

from ovenet.models.freezing import freeze_main_network
from ovenet.models.fusion import SeedFusion
from ovenet.models.segmentor import Segmentor

__all__ = ["SeedFusion", "Segmentor", "freeze_main_network"]
