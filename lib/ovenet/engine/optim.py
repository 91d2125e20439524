"""Optimizers and the learning rate schedule."""

from __future__ import annotations

import torch
from torch import nn

POLY_POWER = 0.9


def build_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are not frozen.

    Args:
        model: whose parameters.
        name: ``sgd`` or ``adamw``.
        lr: initial learning rate.
        momentum: sgd only.
        weight_decay: on all of them.
        nesterov: sgd only.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, num_iterations: int) -> torch.optim.lr_scheduler.LRScheduler:
    """``lr · (1 - it / num_iterations)^0.9``, stepped once per iteration."""
    # Not PolynomialLR: that one derives each rate from the last, and a resumed run of another length would drift.
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: max(0.0, 1.0 - iteration / num_iterations) ** POLY_POWER
    )
