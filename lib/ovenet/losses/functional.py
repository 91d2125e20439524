"""Losses as functions of tensors. Each returns a sum and a weight; the loss is their quotient, see `mean`.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size, ``h w`` score map size. Labels are int64 class ids. Offsets and
positions are ``(x, y)`` in normalised units: the image spans ``[-1, 1]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry import at_least_float32, lookup_labels, sample_bilinear, seed_position, spatial_size
from ovenet.losses.targets import Targets
from ovenet.structures import ScoreKind, Size

_BLUR = 5  # width of the blur in pixels of the offset map
SEARCH_RADIUS = 8  # largest distance from a wrong to a correct pixel, in pixels of the offset map
_SMALLEST_FRACTION = 1e-3
_UNLABELLED, _WRONG = -(2**20), -(2**20) - 1  # below all labels
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
    if nll.is_cuda:  # kthvalue of one row uses a single block of the GPU, sort uses all
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


def offset_loss(offset: Tensor, labels: Tensor, *, num_classes: int, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Loss of the offsets that moves seeds into regions of the pixel's own class.

    It is the negative logarithm of the fraction of the pixel's class around its seed. Class fractions are computed at
    the size of the offset map and blurred, so that the gradient reaches over several pixels.

    Args:
        offset: ``(B, 2, h, w)``.
        labels: ``(B, H, W)``.
        num_classes: ``K``.
        ignore_label: label of ignored pixels.

    Returns:
        The sum over the labelled pixels, and their number.
    """
    size = spatial_size(offset)
    valid = labels != ignore_label
    one_hot = F.one_hot(labels.masked_fill(~valid, 0), num_classes).movedim(-1, 1).to(offset.dtype)
    mass = F.adaptive_avg_pool2d(one_hot * valid.unsqueeze(1), size)
    for _ in range(2):
        mass = F.avg_pool2d(mass, _BLUR, stride=1, padding=_BLUR // 2)
    sampled = sample_bilinear(mass, seed_position(offset))
    total = sampled.sum(dim=1)
    own = _resized_labels(labels, size)
    counts = (own != ignore_label) & (total > 0)
    fraction = sampled.gather(1, own.masked_fill(own == ignore_label, 0).unsqueeze(1)).squeeze(1)
    fraction = fraction / torch.where(counts, total, torch.ones_like(total))
    losses = -fraction.clamp_min(_SMALLEST_FRACTION).log()
    return (losses * counts).sum(), counts.sum().to(losses.dtype)


def right_pixel_loss(offset: Tensor, scores: Tensor, labels: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Distance from the seed of a wrong pixel to the nearest correctly predicted pixel of the same class.

    Args:
        offset: ``(B, 2, h, w)``.
        scores: the pixels' own scores ``(B, K, h, w)``; they receive no gradient.
        labels: ``(B, H, W)``, resized to the offset map.
        ignore_label: label of ignored pixels.

    Returns:
        The sum of the distances ``|x| + |y|``, in pixels of the offset map, over the wrong pixels with such a pixel
        nearby (see `nearest_right_pixel`), and the number of these.
    """
    height, width = spatial_size(offset)
    labels = _resized_labels(labels, (height, width))
    right = (scores.argmax(dim=1) == labels) & (labels != ignore_label)
    target, found = nearest_right_pixel(labels, right, ignore_label=ignore_label)
    counts = found & ~right
    x, y = (offset[:, axis] * (max(n - 1, 1) / 2) for axis, n in ((0, width), (1, height)))
    distance = (x - target[:, 0]).abs() + (y - target[:, 1]).abs()
    return (distance * counts).sum(), counts.sum().to(distance.dtype)


def nearest_right_pixel(labels: Tensor, right: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Displacement to the nearest correctly predicted pixel of the same class, within `SEARCH_RADIUS`.

    Args:
        labels: ``(B, h, w)``.
        right: ``(B, h, w)`` bool, whether the pixel is predicted correctly.
        ignore_label: label of ignored pixels, for which none is found.

    Returns:
        Integer displacements ``(B, 2, h, w)`` in ``(x, y)`` pixels, 0 for correct pixels, and ``(B, h, w)`` bool,
        whether there is such a pixel.
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


def _resized_labels(labels: Tensor, size: Size) -> Tensor:
    return F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).long()
