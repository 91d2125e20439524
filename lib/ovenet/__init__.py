"""OVeNet: semantic segmentation with offset vectors to seed pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovenet.lazy import lazy_names

if TYPE_CHECKING:
    from ovenet.builders import build_criterion, build_model, load_checkpoint
    from ovenet.builders.own_loop import create_criterion, evaluate
    from ovenet.commands.train import train
    from ovenet.config import load_config
    from ovenet.data.pairs import SegmentationDataset
    from ovenet.data.transforms import eval_transform, train_transform
    from ovenet.errors import UserError
    from ovenet.evaluation.batches import BatchEvaluator
    from ovenet.losses import SegmentationCriterion, list_losses
    from ovenet.models import list_backbones, list_heads, list_necks, list_seeds
    from ovenet.models.factory import create_model, describe
    from ovenet.predictor.predictor import Predictor, from_pretrained, load, save_pretrained
    from ovenet.predictor.sources import list_models
    from ovenet.structures import Normalization, OVeNetOutput

_MODULES = {  # where each public name is, so that `ovenet --help` does not wait for torch
    "BatchEvaluator": "evaluation.batches",
    "Normalization": "structures",
    "OVeNetOutput": "structures",
    "Predictor": "predictor.predictor",
    "SegmentationCriterion": "losses",
    "SegmentationDataset": "data.pairs",
    "UserError": "errors",
    "build_criterion": "builders",
    "build_model": "builders",
    "create_criterion": "builders.own_loop",
    "create_model": "models.factory",
    "describe": "models.factory",
    "eval_transform": "data.transforms",
    "evaluate": "builders.own_loop",
    "from_pretrained": "predictor.predictor",
    "list_backbones": "models",
    "list_heads": "models",
    "list_losses": "losses",
    "list_models": "predictor.sources",
    "list_necks": "models",
    "list_seeds": "models",
    "load": "predictor.predictor",
    "load_checkpoint": "builders",
    "load_config": "config",
    "save_pretrained": "predictor.predictor",
    "train": "commands.train",
    "train_transform": "data.transforms",
}
__all__ = [
    "BatchEvaluator",
    "Normalization",
    "OVeNetOutput",
    "Predictor",
    "SegmentationCriterion",
    "SegmentationDataset",
    "UserError",
    "__version__",
    "build_criterion",
    "build_model",
    "create_criterion",
    "create_model",
    "describe",
    "eval_transform",
    "evaluate",
    "from_pretrained",
    "list_backbones",
    "list_heads",
    "list_losses",
    "list_models",
    "list_necks",
    "list_seeds",
    "load",
    "load_checkpoint",
    "load_config",
    "save_pretrained",
    "train",
    "train_transform",
]


_find = lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    return import_module("ovenet.version").version() if name == "__version__" else _find(name)


def __dir__() -> list[str]:
    return sorted(__all__)
