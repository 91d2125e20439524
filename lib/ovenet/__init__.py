"""OVeNet: semantic segmentation with offset vectors to seed pixels."""

from ovenet.builders import build_criterion, build_model, load_checkpoint
from ovenet.builders.predictor import Predictor
from ovenet.config import load_config
from ovenet.structures import OVeNetOutput

__all__ = ["OVeNetOutput", "Predictor", "build_criterion", "build_model", "load_checkpoint", "load_config"]
