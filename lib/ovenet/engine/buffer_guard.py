"""Restoring buffers after a bad step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BufferGuard:
    """Copies buffers, mainly BatchNorm's statistics, and restores them if a step turns out bad.

    Args:
        module: the module; its buffers must stay the same tensors.
    """

    def __init__(self, module: nn.Module):
        # As integers of the same bits: times 0 they are 0 even where the statistics are not finite.
        by_width: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            dtype = _SAME_WIDTH[buffer.element_size()]
            by_width.setdefault(dtype, []).append(buffer.detach().view(dtype))
        self._groups = [(buffers, [torch.empty_like(b) for b in buffers]) for buffers in by_width.values()]

    def snapshot(self) -> None:
        """Copies all buffers."""
        for buffers, copies in self._groups:
            torch._foreach_copy_(copies, buffers)

    def rollback_if(self, is_bad: Tensor) -> None:
        """Restores the copies if `is_bad`, a boolean scalar on the device, is true; never waits for it."""
        for buffers, copies in self._groups:
            bad = is_bad.to(buffers[0].dtype)
            torch._foreach_mul_(buffers, 1 - bad)
            torch._foreach_mul_(copies, bad)
            torch._foreach_add_(buffers, copies)
