"""Copies between the host and a card for which neither waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def pinned_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of page-locked memory, of which torch keeps a stock."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory, or a copy of what torch does not take: read-only or backward."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, in the order of its stream."""
    values = as_tensor(array)
    if device.type != "cuda":
        return values.to(device)
    return pinned_empty(values.shape, values.dtype).copy_(values).to(device, non_blocking=True)


class HostCopies:
    """Tensors on their way to the host, from where they are when what was launched before is done.

    Args:
        tensors: on any device; those on the CPU stay what they are.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        tensors = list(tensors)
        self._copies = [x.to("cpu", non_blocking=True) for x in tensors]
        self._event = None
        if any(x.is_cuda for x in tensors):
            self._event = torch.cuda.Event(blocking=True)  # a thread that waits leaves the others their core
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The copies, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
