"""Builds the parts from a configuration.

Keys are read here, in `ovenet.config`, `ovenet.predictor`, `ovenet.sweep` and the commands, and nowhere else.
"""

from ovenet.builders.cost import count_step, peak_images_per_second
from ovenet.builders.data import (
    TestLoader,
    audit,
    build_test_loader,
    build_train_loader,
    check_data,
    dataset_info,
    list_dataset,
    test_dataset,
    train_dataset,
)
from ovenet.builders.inference import build_predictor
from ovenet.builders.loading import load_model, load_predictor
from ovenet.builders.losses import build_criterion, class_weights
from ovenet.builders.models import build_model, describe_network, initialize_model, prediction_names
from ovenet.builders.optimizers import build_optimizer
from ovenet.builders.testing import run_test
from ovenet.builders.training import (
    build_phases,
    build_train_step,
    build_trainer,
    set_up_cuda,
)
from ovenet.models.factory import create_model
from ovenet.models.weight_files import load_checkpoint

__all__ = [
    "TestLoader",
    "audit",
    "build_criterion",
    "build_model",
    "build_optimizer",
    "build_phases",
    "build_predictor",
    "build_test_loader",
    "build_train_loader",
    "build_train_step",
    "build_trainer",
    "check_data",
    "class_weights",
    "count_step",
    "create_model",
    "dataset_info",
    "describe_network",
    "initialize_model",
    "list_dataset",
    "load_checkpoint",
    "load_model",
    "load_predictor",
    "peak_images_per_second",
    "prediction_names",
    "run_test",
    "set_up_cuda",
    "test_dataset",
    "train_dataset",
]
