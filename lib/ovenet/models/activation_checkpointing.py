"""Activation checkpointing: memory for time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """Runs a module without keeping its activations; the backward pass computes them again, to the same bits.

    Args:
        module: maps in, maps out; without dropout.
        features: its input.
    """
    if not torch.is_grad_enabled():
        return module(features)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _resting_statistics(module)

    return checkpoint(module, features, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _resting_statistics(module: nn.Module) -> Iterator[None]:
    """While recomputing, BatchNorm updates copies of its running statistics: the batch has been counted already."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    originals = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: buffer.clone() for name, buffer in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers.update(buffers)
