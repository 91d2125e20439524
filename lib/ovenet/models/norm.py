"""BatchNorm with one operation less."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, without counting its batches: a launch of its own for each layer and step, a fifth of a network's.

    `num_batches_tracked` keeps its place in files and the value that it was loaded with. Only a norm whose momentum is
    None reads it.

    Args:
        channels: of the maps.
    """

    momentum: float

    def __init__(self, channels: int):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, h, w)``, by the batch's statistics while training, else by the running ones."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Sets the share of a batch in the running statistics of every BatchNorm.

    Args:
        model: changed in place.
        momentum: in ``(0, 1]``.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
