"""Stochastic depth (Huang et al., "Deep Networks with Stochastic Depth", 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drops a residual branch for some samples in training, and scales it up for the others.

    Equal to torchvision's with mode ``row``; importing torchvision takes longer than importing torch.

    Args:
        p: probability of dropping the branch for a sample, in ``[0, 1)``.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Output of the branch, ``(B, ...)``."""
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty((len(x), *[1] * (x.ndim - 1))).bernoulli_(1.0 - self.p)
        return x * kept.div_(1.0 - self.p)

    def extra_repr(self) -> str:
        """For printing."""
        return f"p={self.p}"
