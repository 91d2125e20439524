"""BatchNorm with one operation fewer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d without the batch counter, which costs a kernel per layer and step, a fifth of a network's.

    `num_batches_tracked` stays in state dicts, with the value that was loaded. BatchNorm reads it only if its momentum
    is None.

    Args:
        channels: number of channels.
    """

    momentum: float

    def __init__(self, channels: int):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``(B, channels, h, w)`` by the batch's statistics in training, by the running ones otherwise."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Sets the momentum of every BatchNorm.

    Args:
        model: changed in place.
        momentum: weight of a batch in the running statistics, in ``(0, 1]``.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
