"""Loss sums and counts from tensors.

Every function returns a sum and the weight to divide it by, so that callers can add up parts before they divide.
Shapes: scores ``(B, K, H, W)`` at label size, labels ``(B, H, W)`` int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry import lookup_labels, sample_bilinear, seed_position
from ovenet.losses.targets import Targets
from ovenet.structures import ScoreKind

_BLUR = 5  # pixels of the offsets' map
SEARCH_RADIUS = 8  # likewise; how far a right pixel may lie from a wrong one
_SMALLEST_SHARE = 1e-3
_UNLABELLED, _WRONG = -(2**20), -(2**20) - 1  # below all labels and marks
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


def negative_log_likelihood(log_probs: Tensor, targets: Targets) -> Tensor:
    """Negative log likelihood of each pixel's own class.

    Args:
        log_probs: ``(B, K, H, W)``.
        targets: of the same size.

    Returns:
        ``(B, H, W)``; that of class 0 where a pixel is ignored.
    """
    return -log_probs.gather(1, targets.labels.unsqueeze(1)).squeeze(1)


def cross_entropy(nll: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the valid pixels.

    Args:
        nll: ``(..., B, H, W)``, see `negative_log_likelihood`.
        targets: of the same size.

    Returns:
        The weighted sums ``(...)``, and the sum of the weights; both 0 where every pixel is ignored.
    """
    return (nll * targets.weights).flatten(-3).sum(-1), targets.weights.sum()


def ohem_cross_entropy(nll: Tensor, targets: Targets, limit: Tensor | float) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the hard pixels: those whose probability is below the limit.

    Args:
        nll: ``(..., B, H, W)``, see `negative_log_likelihood`.
        targets: of the same size.
        limit: ``(...)``, see `ohem_limit`.

    Returns:
        The weighted sums over the hard pixels, and their numbers, each ``(...)``.
    """
    if isinstance(limit, Tensor):
        limit = limit[..., None, None, None]
    hard = targets.valid & ((-nll.detach()).exp() < limit)
    return (nll * targets.weights * hard).flatten(-3).sum(-1), hard.flatten(-3).sum(-1).to(nll.dtype)


def ohem_limit(nll: Tensor, targets: Targets, *, threshold: float, min_kept: int) -> Tensor:
    """The probability below which a pixel is hard: online hard example mining as in HRNet.

    That is ``max(threshold, p)``, with ``p`` the `min_kept`-th smallest probability of a pixel's own class, counted
    from 0 (the largest one if there are fewer). Found without waiting for the device.

    Args:
        nll: ``(..., B, H, W)``.
        targets: of the same size.
        threshold: a probability (``LOSS.OHEMTHRES``).
        min_kept: a number of pixels of the whole batch (``LOSS.OHEMKEEP``).
    """
    probability = (-nll.detach()).exp()
    rank = min(min_kept, targets.labels.numel() - 1)
    candidates = torch.where(targets.valid, probability, torch.inf).flatten(-3)
    if nll.is_cuda:  # torch selects in one row on a single block of the card, but sorts on all of it
        selected = candidates.sort(dim=-1).values[..., rank]
    else:
        selected = candidates.kthvalue(rank + 1, dim=-1).values
    largest = torch.where(targets.valid, probability, 0.0).flatten(-3).amax(-1)
    return torch.minimum(selected, largest).clamp_min(threshold)


def confidence_target(labels: Tensor, offset: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Target of the confidence: 1 where the seed pixel has the pixel's own label.

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
    return binary_cross_entropy(confidence.squeeze(1), target, valid)


def binary_cross_entropy(confidence: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of ``(B, H, W)`` numbers in ``[0, 1]`` against a target of truth values.

    Returns:
        The sum over the valid pixels, and their number.
    """
    # Not F.binary_cross_entropy: it stops the program at NaN (on CUDA for good), where a step is to be skipped.
    likelihood = torch.where(target, confidence, 1.0 - confidence).clamp_min(SMALLEST_LIKELIHOOD)
    losses = -likelihood.log()
    return (losses * valid).sum(), valid.sum().to(losses.dtype)


def offset_loss(offset: Tensor, labels: Tensor, *, num_classes: int, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Share of the seeds' neighbourhood outside the pixels' own classes; its gradient draws seeds towards the class.

    The labels are brought to the size of the offsets as shares of the classes, blurred so that an offset feels a border
    that lies some pixels away.

    Args:
        offset: ``(B, 2, h, w)``, normalised ``(x, y)``.
        labels: ``(B, H, W)``.
        num_classes: ``K``.
        ignore_label: marks pixels without a label.

    Returns:
        The sum of the negative logarithms of the shares over the pixels that have a class, and their number.
    """
    size = offset.shape[-2:]
    valid = labels != ignore_label
    one_hot = F.one_hot(labels.masked_fill(~valid, 0), num_classes).movedim(-1, 1).to(offset.dtype)
    mass = F.adaptive_avg_pool2d(one_hot * valid.unsqueeze(1), size)
    for _ in range(2):
        mass = F.avg_pool2d(mass, _BLUR, stride=1, padding=_BLUR // 2)
    shares = sample_bilinear(mass, seed_position(offset))
    total = shares.sum(dim=1)
    own = _resized_labels(labels, size)
    counts = (own != ignore_label) & (total > 0)
    share = shares.gather(1, own.masked_fill(own == ignore_label, 0).unsqueeze(1)).squeeze(1)
    share = share / torch.where(counts, total, torch.ones_like(total))
    losses = -share.clamp_min(_SMALLEST_SHARE).log()
    return (losses * counts).sum(), counts.sum().to(losses.dtype)


def right_pixel_loss(offset: Tensor, scores: Tensor, labels: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Distance from the seeds of wrong pixels to the nearest pixel of their class that is predicted rightly.

    Args:
        offset: ``(B, 2, h, w)``, normalised ``(x, y)``.
        scores: ``(B, K, h, w)`` of the pixels themselves; receive no gradient.
        labels: ``(B, H, W)``, brought to the size of the offsets.
        ignore_label: marks pixels without a label.

    Returns:
        The sum of the distances ``|x| + |y|`` in pixels of the offsets' map, over the wrong pixels that have such a
        pixel nearby (see `nearest_right_pixel`), and their number.
    """
    height, width = offset.shape[-2:]
    labels = _resized_labels(labels, (height, width))
    right = (scores.argmax(dim=1) == labels) & (labels != ignore_label)
    target, found = nearest_right_pixel(labels, right, ignore_label=ignore_label)
    counts = found & ~right
    pixels = ((offset[:, 0], width), (offset[:, 1], height))
    distance = sum((x * (max(n - 1, 1) / 2) - t).abs() for (x, n), t in zip(pixels, target.unbind(1), strict=True))
    return (distance * counts).sum(), counts.sum().to(distance.dtype)


def nearest_right_pixel(labels: Tensor, right: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """The way to the nearest pixel of the same class that is predicted rightly, no further than `SEARCH_RADIUS`.

    Args:
        labels: ``(B, h, w)``.
        right: ``(B, h, w)`` whether the pixel is predicted rightly.
        ignore_label: marks pixels without a label, which have no such pixel.

    Returns:
        ``(x, y)`` in pixels as integers, ``(B, 2, h, w)``, 0 for right pixels; and ``(B, h, w)``, whether there is one.
    """
    reach = range(-SEARCH_RADIUS, SEARCH_RADIUS + 1)
    steps = [(x * x + y * y, x, y) for x in reach for y in reach if x * x + y * y <= SEARCH_RADIUS**2]
    wanted = labels.masked_fill(labels == ignore_label, _UNLABELLED)
    offered = F.pad(labels.masked_fill(~right, _WRONG), (SEARCH_RADIUS,) * 4, value=_WRONG)
    height, width = labels.shape[-2:]
    target = torch.zeros_like(labels).unsqueeze(1).repeat(1, 2, 1, 1)
    found = torch.zeros_like(right)
    for _, x, y in sorted(steps):
        there = offered[:, SEARCH_RADIUS + y :, SEARCH_RADIUS + x :][:, :height, :width]
        new = (there == wanted) & ~found
        target[:, 0].masked_fill_(new, x)
        target[:, 1].masked_fill_(new, y)
        found |= new
    return target, found


def _resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(labels.unsqueeze(1).float(), tuple(size), mode="nearest-exact").squeeze(1).long()
