"""From a configuration to parts. With `ovenet.config`, `ovenet.predictor` and the commands, all that reads keys."""

from ovenet.builders.cost import count_step, peak_images_per_second
from ovenet.builders.data import (
    TestLoader,
    audit,
    build_test_loader,
    build_train_loader,
    check_data,
    list_dataset,
    test_dataset,
    train_dataset,
)
from ovenet.builders.inference import build_predictor
from ovenet.builders.loading import load_model, load_predictor
from ovenet.builders.models import (
    build_criterion,
    build_model,
    build_optimizer,
    class_weights,
    dataset_info,
    describe_network,
    initialize_model,
    prediction_names,
)
from ovenet.builders.testing import run_test
from ovenet.builders.training import (
    build_phases,
    build_train_step,
    build_trainer,
    set_up_cuda,
)
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
