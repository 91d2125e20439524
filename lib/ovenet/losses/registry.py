"""The losses of ``LOSS.TERMS`` by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ovenet.registry import Registry

if TYPE_CHECKING:
    from ovenet.losses.terms import ScoreLoss

# The modules register losses when they are imported.
LOSSES: Registry[Callable[..., ScoreLoss]] = Registry(
    "loss", ("ovenet.losses.terms",), provided=("align_corners", "backend", "average")
)
