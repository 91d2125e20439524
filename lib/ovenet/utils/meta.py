"""Networks on PyTorch's meta device, where tensors have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def meta_device() -> Iterator[None]:
    """Builds networks on the meta device, as ``with torch.device("meta")`` does, without initialising their weights.

    Most of the time of building a network there would go into draws of values that the tensors do not have.
    """
    with torch.device("meta"), _NoInitialization():
        yield


class _NoInitialization(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`, and random draws in place."""

    DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS or getattr(func, "__module__", "") == torch.nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
