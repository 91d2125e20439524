"""Losses as functions of tensors. Each returns a sum and a weight; the loss is their quotient, see `mean`.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size, ``h w`` score map size. Labels are int64 class ids. Offsets and
positions are ``(x, y)`` in normalised units: the image spans ``[-1, 1]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.geometry import at_least_float32, lookup_labels, seed_position
from ovenet.losses.targets import Targets
from ovenet.structures import ScoreKind

SMALLEST_LIKELIHOOD = 1e-12  # bounds the confidence loss of a pixel by 27.6


def mean(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``; where the weight is 0, the total, a zero with a gradient."""
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def log_probabilities(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Logarithm of the class probabilities, in at least float32.

    Args:
        scores: ``(B, K, H, W)`` logits or probabilities.
        kind: kind of the scores.
    """
    scores = at_least_float32(scores)
    if kind == "logits":
        return scores.log_softmax(dim=1)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()  # avoids log(0) after underflow


def negative_log_likelihood(log_probs: Tensor, targets: Targets) -> Tensor:
    """Negative log likelihood of each pixel's own class.

    Args:
        log_probs: ``(B, K, H, W)``.
        targets: ``(B, H, W)``.

    Returns:
        ``(B, H, W)``; at ignored pixels that of class 0.
    """
    return -log_probs.gather(1, targets.labels.unsqueeze(1)).squeeze(1)


def cross_entropy(nll: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the valid pixels.

    Args:
        nll: ``(..., B, H, W)``, see `negative_log_likelihood`.
        targets: ``(B, H, W)``.

    Returns:
        The weighted sums ``(...)``, and the sum of the weights; both 0 if all pixels are ignored.
    """
    return (nll * targets.weights).flatten(-3).sum(-1), targets.weights.sum()


def ohem_cross_entropy(nll: Tensor, targets: Targets, limit: Tensor | float) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the hard pixels, those with a probability of their own class below the limit.

    Args:
        nll: ``(..., B, H, W)``, see `negative_log_likelihood`.
        targets: ``(B, H, W)``.
        limit: ``(...)``, see `ohem_limit`.

    Returns:
        The weighted sums over the hard pixels, and the numbers of hard pixels, each ``(...)``.
    """
    if isinstance(limit, Tensor):
        limit = limit[..., None, None, None]
    hard = targets.valid & ((-nll.detach()).exp() < limit)
    return (nll * targets.weights * hard).flatten(-3).sum(-1), hard.flatten(-3).sum(-1).to(nll.dtype)


def ohem_limit(nll: Tensor, targets: Targets, *, threshold: float, min_kept: int) -> Tensor:
    """Probability below which a pixel is hard, in online hard example mining as in HRNet.

    It is ``max(threshold, p)``, where ``p`` is the `min_kept`-th smallest probability of a pixel's own class, counted
    from 0, or the largest one if there are fewer pixels. Computed without synchronisation with the device.

    Args:
        nll: ``(..., B, H, W)``, see `negative_log_likelihood`.
        targets: ``(B, H, W)``.
        threshold: probability (``LOSS.OHEMTHRES``).
        min_kept: number of pixels in the batch (``LOSS.OHEMKEEP``).
    """
    probability = (-nll.detach()).exp()
    rank = min(min_kept, targets.labels.numel() - 1)
    candidates = torch.where(targets.valid, probability, torch.inf).flatten(-3)
    if nll.device.type != "cpu":  # kthvalue of one row uses a single block of the GPU, sort uses all
        selected = candidates.sort(dim=-1).values[..., rank]
    else:
        selected = candidates.kthvalue(rank + 1, dim=-1).values
    largest = torch.where(targets.valid, probability, 0.0).flatten(-3).amax(-1)
    return torch.minimum(selected, largest).clamp_min(threshold)


def confidence_target(labels: Tensor, offset: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Target of the confidence: whether the seed has the pixel's own label.

    Args:
        labels: ``(B, H, W)``.
        offset: ``(B, 2, H, W)``.
        ignore_label: label of ignored pixels.

    Returns:
        The target, and where it is defined: at labelled pixels with a labelled seed. Each ``(B, H, W)`` bool.
    """
    seed_labels = lookup_labels(labels, seed_position(offset))
    valid = (labels != ignore_label) & (seed_labels != ignore_label)
    return seed_labels == labels, valid


def confidence_loss(confidence: Tensor, labels: Tensor, offset: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the confidence against `confidence_target`.

    Args:
        confidence: ``(B, 1, H, W)`` in ``[0, 1]``.
        labels: ``(B, H, W)``.
        offset: ``(B, 2, H, W)``; receives no gradient.
        ignore_label: label of ignored pixels.

    Returns:
        The sum over the pixels where the target is defined, and their number.
    """
    target, valid = confidence_target(labels, offset.detach(), ignore_label=ignore_label)
    return binary_cross_entropy(confidence.squeeze(1), target, valid)


def binary_cross_entropy(confidence: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the confidence against a target.

    Args:
        confidence: ``(B, H, W)`` in ``[0, 1]``.
        target: ``(B, H, W)`` bool.
        valid: ``(B, H, W)`` bool, pixels that count.

    Returns:
        The sum over the valid pixels, and their number.
    """
    # Not F.binary_cross_entropy, whose assertion fails at NaN and leaves CUDA unusable: a step with NaN is skipped.
    likelihood = torch.where(target, confidence, 1.0 - confidence).clamp_min(SMALLEST_LIKELIHOOD)
    losses = -likelihood.log()
    return (losses * valid).sum(), valid.sum().to(losses.dtype)
