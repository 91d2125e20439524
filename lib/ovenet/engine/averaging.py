"""Averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights and buffers, which starts at the first update.

    torch's own update handles tensors one by one and copies a count to the device, which waits; here all tensors of a
    type are updated together, and nothing waits.

    Args:
        model: the model; its tensors must stay the same ones.
        decay: share of the average that an update keeps.
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
        """Includes the current model; keeps the average if `is_bad`, a boolean scalar on the device, is true."""
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
        """Restores what ``state_dict()`` returned; without it the average starts at the model.

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
