"""Optimizers and the learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

POLY_POWER = 0.9


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    lr_factor: Callable[[str], float] = lambda parameter: 1.0,
    decay_on_norm: bool = True,
) -> torch.optim.Optimizer:
    """A fused optimizer of the parameters that are not frozen, in one group per learning rate.

    Args:
        model: whose parameters.
        name: ``sgd`` or ``adamw``.
        lr: initial learning rate.
        momentum: sgd only.
        weight_decay: on all of them, see `decay_on_norm`.
        nesterov: sgd only.
        lr_factor: factor on `lr` for a parameter, by its name.
        decay_on_norm: False spares what has one dimension: biases, and the scales and shifts of BatchNorm.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if decay_on_norm or parameter.ndim > 1 else 0.0
            groups.setdefault((lr_factor(parameter_name), decay), []).append(parameter)
    parameters = [
        {"params": group, "lr": lr * factor, "weight_decay": decay} for (factor, decay), group in sorted(groups.items())
    ]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )
    if momentum:  # a skipped first step would leave them uninitialised
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, num_iterations: int, *, warmup: int = 0, num_extra: int = 0, extra: float = 1.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """``lr · (1 - it / num_iterations)^0.9``, stepped once per iteration.

    Args:
        optimizer: whose learning rates.
        num_iterations: after which the rate is 0.
        warmup: iterations that rise to it linearly.
        num_extra: iterations after those, which begin anew and fall the same way.
        extra: factor on the learning rate at their beginning.
    """

    # Not PolynomialLR: that one derives each rate from the last, and a resumed run of another length would drift.
    def factor(iteration: int) -> float:
        if num_extra and iteration >= num_iterations:
            return extra * max(0.0, 1.0 - (iteration - num_iterations) / num_extra) ** POLY_POWER
        rising = min(1.0, (iteration + 1) / (warmup + 1))
        return rising * max(0.0, 1.0 - iteration / num_iterations) ** POLY_POWER

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    optimizer_state: Mapping[str, Any],
    schedule_state: Mapping[str, Any],
) -> None:
    """Restores momenta and the position in the schedule, but keeps the learning rate and the other settings.

    Args:
        optimizer: freshly built, changed in place.
        schedule: of this optimizer, freshly built, changed in place.
        optimizer_state: from ``optimizer.state_dict()``.
        schedule_state: from ``schedule.state_dict()``.

    Raises:
        ValueError: the states are of other parameters.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    base_lrs = list(schedule.base_lrs)
    optimizer.load_state_dict(dict(optimizer_state))
    schedule.load_state_dict(dict(schedule_state))
    schedule.base_lrs = base_lrs
    for group, own, base_lr, factor in zip(
        optimizer.param_groups, settings, base_lrs, schedule.lr_lambdas, strict=True
    ):
        group.update(own)
        group["lr"] = base_lr * factor(schedule.last_epoch)
