"""What a network costs: its parameters and its multiply-adds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Learned values, buffers not counted."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of a forward pass over one image: convolutions and matrix products, as published tables count.

    Half of what torch's FLOP counter says. The image is made on the parameters' device; on the meta device nothing
    is computed.

    Args:
        model: takes images of 3 channels; run as it is, so set it to eval first.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device=device))
    return counter.get_total_flops() // 2
