"""The parts of a network by name. Looking one up imports the modules that register them, and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ovenet.registry import Registry

if TYPE_CHECKING:
    from ovenet.models.interfaces import Backbone, Head, Neck
    from ovenet.models.ovenet import Seed

_MAPS = ("in_channels", "in_strides", "align_corners")
PROVIDED: dict[str, tuple[str, ...]] = {  # arguments that the model sets itself, by kind of part
    "backbone": ("align_corners", "checkpoint_activations", "timm_name"),
    "neck": (*_MAPS, "stacks"),
    "head": (*_MAPS, "num_classes"),
    "seed": (*_MAPS, "num_classes", "backbone", "head"),
}


def _timm_builder(name: str) -> Callable[..., Backbone] | None:
    from ovenet.models.backbones.timm import find_timm_backbone  # timm takes a second to import

    return find_timm_backbone(name)


BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone", ("ovenet.models.backbones",), _timm_builder)
NECKS: Registry[type[Neck]] = Registry("neck", ("ovenet.models.necks", "ovenet.models.controls"))
HEADS: Registry[type[Head]] = Registry("head", ("ovenet.models.heads",))
SEEDS: Registry[type[Seed]] = Registry("seed", ("ovenet.models.ovenet", "ovenet.models.controls"))
