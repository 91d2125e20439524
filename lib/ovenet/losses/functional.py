"""Loss sums and counts from tensors.

Every function returns a sum and the weight to divide it by, so that callers can add up parts before they divide.
Shapes: scores ``(B, K, H, W)`` at label size, labels ``(B, H, W)`` int64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry import lookup_labels, seed_position
from ovenet.structures import ScoreKind

SMALLEST_LIKELIHOOD = 1e-12  # bounds the confidence loss of a pixel at 27.6


def mean(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``, and zero with a gradient where nothing was counted."""
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def log_probabilities(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Logarithm of the class probabilities, in float32 at least.

    Args:
        scores: ``(B, K, H, W)`` logits or probabilities.
        kind: which of the two.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if kind == "logits":
        return scores.log_softmax(dim=1)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()  # the floor only keeps underflow from log(0)


def cross_entropy(
    log_probs: Tensor, labels: Tensor, *, ignore_label: int, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the valid pixels.

    Args:
        log_probs: ``(B, K, H, W)``.
        labels: ``(B, H, W)``.
        ignore_label: pixels to leave out.
        class_weights: ``(K,)``, or None for equal ones.

    Returns:
        The weighted sum, and the sum of the weights; both 0 where every pixel is ignored.
    """
    total = F.nll_loss(log_probs, labels, weight=class_weights, ignore_index=ignore_label, reduction="sum")
    valid = labels != ignore_label
    if class_weights is None:
        return total, valid.sum().to(total.dtype)
    return total, class_weights[labels[valid]].sum().to(total.dtype)


def ohem_cross_entropy(
    log_probs: Tensor,
    labels: Tensor,
    *,
    ignore_label: int,
    threshold: float,
    min_kept: int,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the hard pixels: online hard example mining as HRNet does it.

    A pixel is kept if the probability of its true class is below ``max(threshold, p)``, with ``p`` the
    `min_kept`-th smallest such probability, counted from 0 (the largest one if there are fewer).

    Args:
        log_probs: ``(B, K, H, W)``.
        labels: ``(B, H, W)``.
        ignore_label: pixels to leave out.
        threshold: a probability (``LOSS.OHEMTHRES``).
        min_kept: a number of pixels of the whole batch (``LOSS.OHEMKEEP``).
        class_weights: ``(K,)``, or None for equal ones.

    Returns:
        The weighted sum over the kept pixels, and their number.
    """
    valid = labels != ignore_label
    safe_labels = labels.masked_fill(~valid, 0)
    log_true = log_probs.gather(1, safe_labels.unsqueeze(1)).squeeze(1)[valid]  # (num_valid,)
    if log_true.numel() == 0:
        return log_probs.sum() * 0.0, log_probs.new_zeros(())
    probability = log_true.detach().exp()
    rank = min(min_kept, probability.numel() - 1)
    limit = probability.kthvalue(rank + 1).values.clamp_min(threshold)
    kept = probability < limit
    losses = -log_true
    if class_weights is not None:
        losses = losses * class_weights[labels[valid]]
    return (losses * kept).sum(), kept.sum().to(losses.dtype)


def confidence_target(labels: Tensor, offset: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """What the confidence should be: 1 where the seed pixel has the pixel's own label.

    Args:
        labels: ``(B, H, W)``.
        offset: ``(B, 2, H, W)`` at label size, normalised ``(x, y)``.
        ignore_label: marks pixels without a label.

    Returns:
        The target ``(B, H, W)`` bool, and where it is defined: both the pixel and its seed are labelled.
    """
    seed_labels = lookup_labels(labels, seed_position(offset))
    valid = (labels != ignore_label) & (seed_labels != ignore_label)
    return seed_labels == labels, valid


def confidence_loss(confidence: Tensor, labels: Tensor, offset: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the confidence against `confidence_target`.

    Args:
        confidence: ``(B, 1, H, W)`` in ``[0, 1]``, at label size.
        labels: ``(B, H, W)``.
        offset: ``(B, 2, H, W)`` at label size; receives no gradient.
        ignore_label: marks pixels without a label.

    Returns:
        The sum over the pixels where the target is defined, and their number.
    """
    target, valid = confidence_target(labels, offset.detach(), ignore_label=ignore_label)
    confidence = confidence.squeeze(1)
    # Not F.binary_cross_entropy: it stops the program at NaN (on CUDA for good), where a step is to be skipped.
    likelihood = torch.where(target, confidence, 1.0 - confidence).clamp_min(SMALLEST_LIKELIHOOD)
    losses = -likelihood.log()
    return (losses * valid).sum(), valid.sum().to(losses.dtype)
