"""Averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights and buffers, which begins with the first model it is told of.

    torch's own way of updating looks at every tensor for itself and copies a count to the device, which waits; here
    tensors of a type are updated together, and nothing waits.

    Args:
        model: whose tensors; they must stay the same ones.
        decay: share of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for averaged, current in zip(_tensors(self.module), _tensors(model), strict=True):
            own, models = groups.setdefault(current.dtype, ([], []))
            own.append(averaged.detach())
            models.append(current.detach())
        self._groups = tuple(groups.items())
        self._has_begun = False

    def update(self, is_bad: Tensor) -> None:
        """Counts the model as it is now; leaves the average where `is_bad`, a truth value on the device, holds."""
        weight = (1 - self.decay) * ~is_bad
        for dtype, (averaged, current) in self._groups:
            if self._has_begun and dtype.is_floating_point:
                change = torch._foreach_sub(current, averaged)
                torch._foreach_mul_(change, weight)
                torch._foreach_add_(averaged, change)
            else:
                torch._foreach_copy_(averaged, current)
        self._has_begun = True
        self.n_averaged += 1  # lies on the CPU

    def restore(self, state: Mapping[str, Any] | None, model: nn.Module) -> None:
        """Takes over what ``state_dict()`` gave; without it the average begins with the model.

        Raises:
            RuntimeError: the state is of another model.
        """
        if state:
            self.load_state_dict(state)
        else:
            self.module.load_state_dict(model.state_dict())
        self._has_begun = bool(self.n_averaged > 0)


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
