"""Copies of a training state in host memory, which is reused: the training goes on while they are written."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

_Place = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


class HostCopy:
    """The latest copy of a state; tensors that have stayed in their place are copied into the same memory again.

    From CUDA, they are copied into page-locked memory by a stream of its own. What is launched afterwards waits for it
    on the device, so that nothing is changed that is still to be copied; this process does not wait.

    Args:
        device: where the state's tensors are; some may be on the CPU.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._targets: dict[_Place, Tensor] = {}

    def take(self, state: Any) -> Any:
        """Begins to copy a state; the copy may be read after `wait`, and is overwritten by the next one.

        Args:
            state: dicts, lists and tuples of tensors. Other values are taken as they are, and must not change.
        """
        sources: dict[_Place, Tensor] = {}
        copied = self._replace(state, sources)
        self._targets = {place: self._targets[place] for place in sources}  # of what is gone, the memory is freed
        targets = list(self._targets.values())
        if self._stream is None:
            torch._foreach_copy_(targets, list(sources.values()))
            return copied
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(targets, list(sources.values()), non_blocking=True)
        current.wait_stream(self._stream)
        return copied

    def wait(self) -> None:
        """Waits until the copy is complete; for any thread."""
        if self._stream is not None:
            self._stream.synchronize()

    def _replace(self, value: Any, sources: dict[_Place, Tensor]) -> Any:
        """The value with targets in place of its tensors, which are added to `sources`; tensors of one place share."""
        if isinstance(value, Tensor):
            place = value.data_ptr(), value.shape, value.stride(), value.dtype
            if place in sources:  # tied weights: another tensor of the same memory, as here
                return self._targets[place].detach()
            sources[place] = value
            if place not in self._targets:
                self._targets[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            return self._targets[place]
        if isinstance(value, dict):
            copied = copy(value)  # keeps the class, and torch's attributes of a state dict
            for key, entry in value.items():
                copied[key] = self._replace(entry, sources)
            return copied
        if type(value) in (list, tuple):
            return type(value)([self._replace(entry, sources) for entry in value])
        return value
