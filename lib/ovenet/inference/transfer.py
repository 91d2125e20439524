"""Copies between the host and a device, asynchronous on CUDA alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def pinned_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in page-locked memory, from torch's cache of it."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of the same memory; a copy of arrays that torch does not take: read-only or with negative strides."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, in the order of its stream."""
    values = as_tensor(array)
    if device.type != "cuda":
        return values.to(device)
    return pinned_empty(values.shape, values.dtype).copy_(values).to(device, non_blocking=True)


class HostCopies:
    """Copies of tensors to the host, started in the order of the current stream.

    Args:
        tensors: tensors on any device; those on the CPU are not copied.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        tensors = list(tensors)
        self._copies = [x.to("cpu", non_blocking=x.is_cuda) for x in tensors]
        self._event = None
        if any(x.is_cuda for x in tensors):
            self._event = torch.cuda.Event(blocking=True)  # a waiting thread does not occupy a core
            self._event.record()

    def wait(self) -> list[Tensor]:
        """Waits for the copies, and returns them."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
