"""Optimizers and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ovenet.engine.settings import OptimizerSettings, ScheduleSettings
from ovenet.errors import UserError


def build_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    lr: float,
    *,
    lr_factor: Callable[[str], float],
    has_decay: Callable[[str, nn.Parameter], bool],
) -> torch.optim.Optimizer:
    """A fused optimizer of the parameters that are not frozen, in one group per learning rate and weight decay.

    Args:
        model: the network.
        settings: kind of optimizer, momentum and weight decay.
        lr: initial learning rate.
        lr_factor: factor on `lr` for a parameter, by its name.
        has_decay: whether a parameter, by its name, has weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.wd if has_decay(parameter_name, parameter) else 0.0
            groups.setdefault((lr_factor(parameter_name), decay), []).append(parameter)
    parameters = [
        {"params": group, "lr": lr * factor, "weight_decay": decay} for (factor, decay), group in sorted(groups.items())
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=settings.wd, fused=True)
    optimizer = torch.optim.SGD(
        parameters,
        lr,
        momentum=settings.momentum,
        weight_decay=settings.wd,
        nesterov=settings.nesterov,
        fused=True,
    )
    if settings.momentum:  # a skipped first step would leave them uninitialised
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings, num_iterations: int, num_extra: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """``(lr - lr_min) · fall(it / num_iterations) + lr_min``, stepped once per iteration.

    ``fall(t)`` is ``(1 - t)^lr_power`` for the schedule poly, and ``(1 + cos(π t)) / 2`` for cosine (Loshchilov and
    Hutter, "SGDR", 2017, without restarts).

    In the extra epochs, `extra_lr` and ``lr_min · extra_lr / lr`` take the place of `lr` and `lr_min`.

    Args:
        optimizer: its parameter groups have learning rates of their own in place of `lr`, and the same `lr_min`.
        settings: of the schedule.
        num_iterations: iterations before the extra epochs; in the first `warmup` ones the rate rises linearly to the
            formula.
        num_extra: iterations of the extra epochs.
    """
    extra = settings.extra_lr / settings.lr

    # Not PolynomialLR: that one derives each rate from the last, and a resumed run of another length would drift.
    def fall(done: int, length: int, least: float) -> float:
        left = max(0.0, 1.0 - done / length)
        share = left**settings.lr_power if settings.lr_schedule == "poly" else (1.0 - math.cos(math.pi * left)) / 2
        return (1.0 - least) * share + least

    def factor(least: float, iteration: int) -> float:
        if num_extra and iteration >= num_iterations:
            return extra * fall(iteration - num_iterations, num_extra, least)
        rising = min(1.0, (iteration + 1) / (settings.warmup + 1))
        return rising * fall(iteration, num_iterations, least)

    factors: list[Callable[[int], float]] = [
        partial(factor, min(1.0, settings.lr_min / group["lr"])) for group in optimizer.param_groups
    ]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def set_iteration(schedule: torch.optim.lr_scheduler.LambdaLR, iteration: int) -> None:
    """Sets the learning rates to their values after `iteration` iterations of the schedule."""
    schedule.last_epoch = iteration
    rates = [base * factor(iteration) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def restore_optimizer(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], saved_names: Sequence[str], names: Sequence[str]
) -> None:
    """Restores momenta by the parameters' names, and keeps the present learning rates and other settings.

    Args:
        optimizer: freshly built, changed in place.
        saved: from ``optimizer.state_dict()``.
        saved_names: names of the saved parameters, in the order of their groups.
        names: names of the optimizer's own parameters, in the order of its groups.

    Raises:
        UserError: the state belongs to other parameters or another kind of optimizer, or has no parameter groups.
    """
    if not saved["param_groups"]:
        raise UserError("its optimizer has no parameter groups")
    places = {name: index for index, name in enumerate(saved_names)}
    other = places.keys() ^ set(names)
    if other:
        raise UserError(f"{len(other)} parameters were trained only then or are trained only now, such as {min(other)}")
    states = {index: saved["state"].get(places[name]) for index, name in enumerate(names)}
    own = optimizer.state_dict()
    kinds = {_kind(state) for state in (*states.values(), *own["state"].values()) if state}
    if len(kinds) > 1 or (isinstance(optimizer, torch.optim.AdamW) and "sgd" in kinds):
        raise UserError("its momenta are of another optimizer (TRAIN.OPTIMIZER)")
    own["state"] = {index: state for index, state in states.items() if state}
    optimizer.load_state_dict(own)


def _kind(state: Mapping[str, Any]) -> str:
    return "adamw" if "exp_avg" in state else "sgd"
