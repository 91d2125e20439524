"""Class probabilities from scores of any kind, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.structures import ScoreKind


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def probabilities(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Class probabilities, in float32 at least.

    Args:
        scores: ``(B, K, ...)``.
        kind: kind of the scores; unnormalized scores must be at least 0.

    Returns:
        The same shape; the sum over the classes is 1, or 0 where all unnormalized scores are 0.
    """
    scores = at_least_float32(scores)
    if kind == "logits":
        return scores.softmax(dim=1)
    if kind == "probabilities":
        return scores
    return scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
