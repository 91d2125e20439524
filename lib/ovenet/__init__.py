"""OVeNet: semantic segmentation with offset vectors to seed pixels."""

from ovenet.builders import build_criterion, build_model, load_checkpoint
from ovenet.builders.models import create_model
from ovenet.builders.predictor import Predictor
from ovenet.config import load_config
from ovenet.errors import UserError
from ovenet.losses import list_losses
from ovenet.models import list_backbones, list_heads, list_necks, list_seeds
from ovenet.models.factory import describe
from ovenet.structures import OVeNetOutput

__all__ = [
    "OVeNetOutput",
    "Predictor",
    "UserError",
    "build_criterion",
    "build_model",
    "create_model",
    "describe",
    "list_backbones",
    "list_heads",
    "list_losses",
    "list_necks",
    "list_seeds",
    "load_checkpoint",
    "load_config",
]
