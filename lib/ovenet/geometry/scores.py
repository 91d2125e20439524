"""Class probabilities from scores of any kind."""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.geometry.precision import at_least_float32
from ovenet.structures import ScoreKind


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
