"""OVeNet: semantic segmentation with offset vectors to seed pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovenet.lazy import lazy_names

if TYPE_CHECKING:
    from ovenet.builders import build_criterion, build_model, load_checkpoint
    from ovenet.config import load_config
    from ovenet.errors import UserError
    from ovenet.fitting.fit import fit
    from ovenet.losses import list_losses
    from ovenet.models import list_backbones, list_heads, list_necks, list_seeds
    from ovenet.models.factory import create_model, describe
    from ovenet.predictor.predictor import Predictor, load
    from ovenet.structures import OVeNetOutput

_MODULES = {  # where each public name is, so that `ovenet --help` does not wait for torch
    "OVeNetOutput": "structures",
    "Predictor": "predictor.predictor",
    "UserError": "errors",
    "build_criterion": "builders",
    "build_model": "builders",
    "create_model": "models.factory",
    "describe": "models.factory",
    "fit": "fitting.fit",
    "list_backbones": "models",
    "list_heads": "models",
    "list_losses": "losses",
    "list_necks": "models",
    "list_seeds": "models",
    "load": "predictor.predictor",
    "load_checkpoint": "builders",
    "load_config": "config",
}
__all__ = [
    "OVeNetOutput",
    "Predictor",
    "UserError",
    "__version__",
    "build_criterion",
    "build_model",
    "create_model",
    "describe",
    "fit",
    "list_backbones",
    "list_heads",
    "list_losses",
    "list_necks",
    "list_seeds",
    "load",
    "load_checkpoint",
    "load_config",
]


_find = lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    return import_module("ovenet.version").version() if name == "__version__" else _find(name)


def __dir__() -> list[str]:
    return sorted(__all__)
