"""The parts of a network by name. Looking one up imports the modules that register them, and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ovenet.models.settings import PARTS
from ovenet.registry import Registry

if TYPE_CHECKING:
    from ovenet.models.interfaces import Backbone, Head, Neck
    from ovenet.models.seeds.refiner import Refiner

_REFINERS = (
    "ovenet",
    "controls",
    "crf",
    "guided",
    "point_rend",
    "segfix",
    "upsampled",
)  # modules of ovenet.models.seeds
_MAPS = ("in_channels", "in_strides", "align_corners")


def _timm_builder(name: str) -> Callable[..., Backbone] | None:
    from ovenet.models.backbones.timm import find_timm_backbone  # timm takes a second to import

    return find_timm_backbone(name)


BACKBONES: Registry[Callable[..., Backbone]] = Registry(
    "backbone",
    ("ovenet.models.backbones",),
    provided=("align_corners", "checkpoint_activations", "timm_name"),
    fallback=_timm_builder,
)
NECKS: Registry[type[Neck]] = Registry(
    "neck", ("ovenet.models.necks", "ovenet.models.seeds.controls"), provided=(*_MAPS, "joined", "stacks")
)
HEADS: Registry[type[Head]] = Registry("head", ("ovenet.models.heads",), provided=(*_MAPS, "num_classes"))
SEEDS: Registry[type[Refiner]] = Registry(
    "seed",
    tuple(f"ovenet.models.seeds.{name}" for name in _REFINERS),
    provided=(*_MAPS, "image_channels", "num_classes", "backbone", "head"),
)
REGISTRIES: dict[str, Registry[Any]] = dict(zip(PARTS, (BACKBONES, NECKS, HEADS, SEEDS), strict=True))
