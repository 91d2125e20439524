"""Activation checkpointing: less memory for more computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(module: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """Runs a module without keeping its activations; the backward pass recomputes them, bit for bit.

    Args:
        module: a module from maps to maps, without dropout.
        features: its input.
    """
    if not torch.is_grad_enabled():
        return module(features)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _unchanged_statistics(module)

    return checkpoint(module, features, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Lets BatchNorm update copies of its running statistics: the recomputed batch is already in the originals."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    originals = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: b.clone() for name, b in norm._buffers.items() if b is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers.update(buffers)
