"""Networks and their weights. Importing this registers every part."""

from ovenet.models import backbones, controls, heads, necks
from ovenet.models.factory import build_segmentor, list_backbones, list_heads, list_necks, list_seeds
from ovenet.models.fusion import SeedFusion
from ovenet.models.ovenet import OVeNet
from ovenet.models.segmentor import Segmentor

__all__ = [
    "OVeNet",
    "SeedFusion",
    "Segmentor",
    "backbones",
    "build_segmentor",
    "controls",
    "heads",
    "list_backbones",
    "list_heads",
    "list_necks",
    "list_seeds",
    "necks",
]
