"""Cost of a training step, from a configuration."""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from ovenet.builders.models import model_on_meta
from ovenet.errors import one_line
from ovenet.models.cost import PassesCost, count_passes
from ovenet.utils import distributed
from ovenet.utils.environment import peak_flops
from ovenet.utils.logging import get_logger


def count_step(cfg: CfgNode) -> PassesCost:
    """Cost of the network's passes in one training step of one process, counted on the meta device."""
    width, height = cfg.TRAIN.IMAGE_SIZE
    cost = count_passes(model_on_meta(cfg).train(), cfg.TRAIN.BATCH_SIZE_PER_GPU, height, width)
    num_batches = cfg.TRAIN.ACCUMULATE
    return PassesCost(flops=num_batches * cost.flops, num_operations=num_batches * cost.num_operations)


def peak_images_per_second(cfg: CfgNode, cost: PassesCost, device_name: str) -> float | None:
    """Training speed of all processes if their cards ran at their dense bfloat16 peak; None if that peak is unknown.

    Args:
        cfg: the configuration.
        cost: cost of a step, from `count_step`.
        device_name: model name of the cards.
    """
    peak = peak_flops(device_name)
    if peak is None:
        return None
    per_step = cfg.TRAIN.ACCUMULATE * cfg.TRAIN.BATCH_SIZE_PER_GPU
    return distributed.world_size() * per_step * peak / cost.flops


def log_step_cost(cfg: CfgNode, device: torch.device) -> float | None:
    """Logs the cost of a step; returns `peak_images_per_second` of this run's cards. None without a card."""
    if device.type != "cuda":
        return None
    try:
        cost = count_step(cfg)
    except Exception as error:  # an operation that the meta device lacks is no reason to end the run
        get_logger().warning("the cost of a step cannot be counted: %s", one_line(error))
        return None
    launch = "launched one by one" if cfg.TRAIN.CUDA_GRAPH == "off" else "as one CUDA graph where that can be"
    get_logger().info(
        "a step's passes are %d operations of the network, %.2f TFLOP, %s",
        cost.num_operations,
        cost.flops / 1e12,
        launch,
    )
    return peak_images_per_second(cfg, cost, torch.cuda.get_device_name(device))
