"""Tensors that can be written down in a line, as the published numbers were made with."""

import math

import torch


def wave(shape: tuple[int, ...], step: float, start: float, size: float = 1.0) -> torch.Tensor:
    """``size * sin(step * n + start)``, n counting the elements; float64."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return (size * torch.sin(step * count + start)).reshape(shape)


def tensor(*values: float) -> torch.Tensor:
    """Numbers as float64."""
    return torch.tensor(values, dtype=torch.float64)
