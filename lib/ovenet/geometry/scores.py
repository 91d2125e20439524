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
    return normalised(scores)


def normalised(scores: Tensor) -> Tensor:
    """Scores ``(B, K, ...)`` of at least 0, divided by their sum over the classes; zeros stay zeros."""
    return scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Class probabilities to the power of ``1 / temperature``, normalised: the softmax of ``log(p) / temperature``.

    Args:
        probabilities: ``(B, K, ...)``.
        temperature: above 0; above 1 the probabilities become more equal, below 1 less. Their order stays.

    Returns:
        The same shape; probabilities of 0 stay 0.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    tiny = torch.finfo(probabilities.dtype).tiny
    powers = (probabilities / probabilities.amax(dim=1, keepdim=True).clamp_min(tiny)).pow_(1 / temperature)
    return powers.div_(powers.sum(dim=1, keepdim=True).clamp_min(tiny))
