"""From a configuration to parts. Beside `ovenet.config` and the tools, the only readers of config keys."""

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
from ovenet.builders.inference import build_predictor, load_predictor
from ovenet.builders.losses import build_criterion, class_weights
from ovenet.builders.models import (
    build_model,
    build_optimizer,
    describe_network,
    initialize_model,
    load_checkpoint,
    prediction_names,
)
from ovenet.builders.runs import (
    evaluation_settings,
    find_model_file,
    inference_name,
    log_directory,
    open_run,
    run_directory,
    test_folder,
)
from ovenet.builders.testing import run_test
from ovenet.builders.training import build_phases, build_train_step, build_trainer

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
    "dataset_info",
    "describe_network",
    "evaluation_settings",
    "find_model_file",
    "inference_name",
    "initialize_model",
    "list_dataset",
    "load_checkpoint",
    "load_predictor",
    "log_directory",
    "open_run",
    "prediction_names",
    "run_directory",
    "run_test",
    "test_dataset",
    "test_folder",
    "train_dataset",
]
