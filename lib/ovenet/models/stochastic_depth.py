"""Stochastic depth (Huang et al., "Deep Networks with Stochastic Depth", 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for some samples while training, and scales it up for the others.

    The same numbers as those of torchvision with mode ``row``, whose import takes longer than torch's own.

    Args:
        p: share of the samples, in ``[0, 1)``.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The branch's result, ``(B, ...)``."""
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty((len(x), *[1] * (x.ndim - 1))).bernoulli_(1.0 - self.p)
        return x * kept.div_(1.0 - self.p)

    def extra_repr(self) -> str:
        """For printing."""
        return f"p={self.p}"
