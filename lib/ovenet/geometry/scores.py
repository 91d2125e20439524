"""Class probabilities from scores of any kind."""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.structures import ScoreKind


def probabilities(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Class probabilities, in float32 at least.

    Args:
        scores: ``(B, K, ...)``.
        kind: what they are; unnormalized ones must not be negative.

    Returns:
        The same shape; the sum over the classes is 1, or 0 where unnormalized scores are all 0.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if kind == "logits":
        return scores.softmax(dim=1)
    if kind == "probabilities":
        return scores
    return scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
