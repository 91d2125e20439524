"""Networks and their weights. `ovenet.models.registry` finds the parts by name."""

from typing import TYPE_CHECKING

from ovenet.lazy import lazy_names

if TYPE_CHECKING:
    from ovenet.models.factory import build_segmentor, list_backbones, list_heads, list_necks, list_seeds
    from ovenet.models.seeds.fusion import SeedFusion
    from ovenet.models.seeds.ovenet import OVeNet
    from ovenet.models.segmentor import Segmentor

__all__ = [
    "OVeNet",
    "SeedFusion",
    "Segmentor",
    "build_segmentor",
    "list_backbones",
    "list_heads",
    "list_necks",
    "list_seeds",
]
__getattr__ = lazy_names(
    __name__,
    {
        "OVeNet": "seeds.ovenet",
        "SeedFusion": "seeds.fusion",
        "Segmentor": "segmentor",
        "build_segmentor": "factory",
        "list_backbones": "factory",
        "list_heads": "factory",
        "list_necks": "factory",
        "list_seeds": "factory",
    },
)
