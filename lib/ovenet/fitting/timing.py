"""How long a step and the prediction of a photo take, and how many steps a time budget has."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice

import torch
from yacs.config import CfgNode

from ovenet import builders
from ovenet.builders.data import validation_dataset
from ovenet.builders.inference import inference_settings
from ovenet.builders.models import prediction_names
from ovenet.evaluation.evaluate import evaluate
from ovenet.inference.inferencer import SlidingWindowInferencer

_NUM_WARM_UP = 6  # steps in which algorithms are chosen and graphs captured
_CPU_NUM_WARM_UP = 1
_NUM_TIMED = 3
_START_S = 5.0  # from the first line to the first step, and from the last step to the last line
_MARGIN = 0.8  # share of the time that is planned: steps slow down on a warm machine
_VALIDATION_SHARE = 0.2
_NUM_SCORED = 2  # the trained and the averaged weights
_NUM_VALIDATIONS = (2, 12)
_MAX_STEPS = 8000
_MAX_PASSES = 400  # of the training list


@dataclass(frozen=True)
class Times:
    """Measured seconds.

    Attributes:
        step_s: from one training step to the next, with the wait for its crops.
        photo_s: of reading, predicting and scoring a photo.
    """

    step_s: float
    photo_s: float


def measure(cfg: CfgNode, device: torch.device) -> Times:
    """Times a few steps and a photo of the validation list, on a network that is thrown away."""
    builders.set_up_cuda(cfg)
    model = builders.build_model(cfg).to(device).to(memory_format=torch.channels_last)
    loader = builders.build_phases(cfg, model.normalization)[0].loader
    num_warm_up = _CPU_NUM_WARM_UP if device.type == "cpu" else _NUM_WARM_UP
    step = builders.build_train_step(model, cfg, device, [_NUM_TIMED + _NUM_WARM_UP])
    model.train()
    ends = [time.perf_counter()]
    for batch in islice(loader, num_warm_up + _NUM_TIMED):
        _ = step([batch]).loss  # waits for the device
        ends.append(time.perf_counter())
    timed = ends[min(num_warm_up, len(ends) - 2) :]  # a short list has fewer batches
    step_s = (timed[-1] - timed[0]) / (len(timed) - 1)
    model.eval()
    dataset = validation_dataset(cfg)
    predictor = SlidingWindowInferencer(
        model, inference_settings(cfg, dataset.info, model.normalization, single_scale=True), device
    )
    started = time.perf_counter()
    evaluate(predictor, [dataset[0]], dataset.info, prediction_names(cfg), ignore_label=cfg.TRAIN.IGNORE_LABEL)
    return Times(step_s, time.perf_counter() - started)


@dataclass(frozen=True)
class Plan:
    """A training that fits into a time budget.

    Attributes:
        num_steps: iterations.
        num_validations: of the whole validation list.
    """

    num_steps: int
    num_validations: int


def plan_training(times: Times, seconds: float, *, num_train: int, num_val: int, batch_size: int) -> Plan:
    """As many steps as a time budget has, at least one.

    Args:
        times: from `measure`.
        seconds: of the budget that are left.
        num_train: photos to train on.
        num_val: photos of a validation.
        batch_size: crops of a step.
    """
    validation_s = _NUM_SCORED * num_val * times.photo_s
    budget = _MARGIN * seconds - total_seconds(times, 0, 0, num_val=num_val)
    few, many = _NUM_VALIDATIONS
    num_validations = max(few, min(many, int(_VALIDATION_SHARE * budget / validation_s)))
    num_steps = int((budget - num_validations * validation_s) / times.step_s)
    return Plan(max(1, min(num_steps, _MAX_STEPS, math.ceil(_MAX_PASSES * num_train / batch_size))), num_validations)


def total_seconds(times: Times, num_steps: int, num_validations: int, *, num_val: int) -> float:
    """Seconds of a training with its validations, and of the test and the report after it."""
    predictions = _NUM_SCORED * (num_validations + 1) * num_val  # the test draws pictures too
    return num_steps * times.step_s + predictions * times.photo_s + _START_S
