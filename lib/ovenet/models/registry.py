"""The parts of a network by name."""

from __future__ import annotations

from ovenet.registry import Builder, Registry


def _timm_builder(name: str) -> Builder | None:
    from ovenet.models.backbones.timm import find_timm_backbone  # timm takes a second to import

    return find_timm_backbone(name)


BACKBONES = Registry("backbone", _timm_builder)
NECKS = Registry("neck")
HEADS = Registry("head")
SEEDS = Registry("seed")
