"""Cross-entropy of upsampled scores that never holds a score map at label size, on any device.

Upsampled scores, their softmax and their gradient exist for one block of rows at a time, which stays in the CPU's
cache; the block's gradient is added to that of the map at once. The order of all sums is fixed: gradients are
deterministic.

Shapes: ``B`` batch, ``K`` classes, ``h w`` map size, ``H W`` label size, ``R`` rows of a block.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from ovenet.geometry import add_resized_rows_gradient, resize_rows, spatial_size
from ovenet.losses.functional import ohem_limit
from ovenet.losses.targets import OhemSettings, PixelLoss, Targets
from ovenet.structures import ScoreKind
from ovenet.utils.coarse import coarse_threads

_MIN_PARALLEL_ELEMENTS = 2**20  # number of upsampled scores from which several threads are faster
_BLOCK_ELEMENTS = 2**26  # scores of a block
_CPU_BLOCK_ELEMENTS = 2**19  # 2 MB, which fit into a CPU's cache


@torch.no_grad()
def loss_and_gradient(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    ohem: OhemSettings | None,
    *,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[PixelLoss, Tensor | None]:
    """Loss and gradient of one score map, without autograd.

    With OHEM, the first pass assumes that the limit is the threshold, as it almost always is early in training. If too
    few pixels are below it, a second pass follows.

    Args:
        scores: ``(B, K, h, w)`` float32 or float64.
        targets: ``(B, H, W)``.
        kind: kind of the scores.
        ohem: settings of OHEM; None for all pixels.
        align_corners: convention of the upsampling.
        with_gradient: whether to compute the gradient.

    Returns:
        The loss of each pixel, and the gradient ``(B, K, h, w)`` of their weighted sum, over the hard pixels with OHEM.
    """
    limit: Tensor | float | None = None if ohem is None else ohem.threshold
    nll, gradient = _sweep(scores, targets, kind, align_corners=align_corners, limit=limit, with_gradient=with_gradient)
    if ohem is not None:
        num_hard = (((-nll).exp() < ohem.threshold) & targets.valid).sum()
        if num_hard <= ohem.min_kept:
            limit = ohem_limit(nll, targets, threshold=ohem.threshold, min_kept=ohem.min_kept)
            if with_gradient and limit > ohem.threshold:
                _, gradient = _sweep(
                    scores, targets, kind, align_corners=align_corners, limit=limit, with_gradient=True
                )
    return PixelLoss(nll, limit), gradient


def gradient(scores: Tensor, targets: Targets, kind: ScoreKind, limit: Tensor | None, *, align_corners: bool) -> Tensor:
    """Gradient of `loss_and_gradient` for a known limit.

    Args:
        scores: ``(B, K, h, w)``.
        targets: ``(B, H, W)``.
        kind: kind of the scores.
        limit: probability below which a pixel counts; None for all pixels.
        align_corners: convention of the upsampling.
    """
    _, result = _sweep(scores, targets, kind, align_corners=align_corners, limit=limit, with_gradient=True)
    assert result is not None
    return result


def _sweep(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    *,
    align_corners: bool,
    limit: Tensor | float | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """One pass over all pixels: negative log likelihoods, and the gradient of their sum over pixels below the limit.

    Threads on the CPU compute parts of images, always the same parts, so that the order of all sums is fixed.
    """
    num_classes, size = scores.shape[1], spatial_size(targets.labels)
    height, width = size
    nll = torch.empty_like(targets.weights)
    by_row = scores.permute(0, 2, 1, 3).contiguous()  # (B, h, K, w)
    block_loss = _logits_block if kind == "logits" else _probabilities_block
    is_cpu = scores.device.type == "cpu"
    num_rows = max(1, (_CPU_BLOCK_ELEMENTS if is_cpu else _BLOCK_ELEMENTS) // (num_classes * width))

    def sweep_part(part: tuple[int, range]) -> Tensor | None:
        image, part_rows = part
        gradient = torch.zeros_like(by_row[image]) if with_gradient else None
        for first in range(part_rows.start, part_rows.stop, num_rows):
            rows = range(first, min(first + num_rows, part_rows.stop))
            here = (image, slice(rows.start, rows.stop))
            values = resize_rows(by_row[image], size, rows, align_corners=align_corners)  # (R, K, W)
            if spatial_size(scores) == size:
                values = values.clone()
            labels = targets.labels[here].unsqueeze(1)
            nll[here] = block_loss(values, labels, targets.weights[here], limit, with_gradient=with_gradient)
            if gradient is not None:
                add_resized_rows_gradient(values, gradient, height, rows, align_corners=align_corners)
        return gradient

    is_small = not is_cpu or targets.labels.numel() * num_classes < _MIN_PARALLEL_ELEMENTS
    middle = height if is_small else height // 2
    parts = [(i, rows) for i in range(len(scores)) for rows in (range(middle), range(middle, height)) if rows]
    with nullcontext() if is_small else coarse_threads() as pool:
        gradients = list((pool.map if pool else map)(sweep_part, parts))
    if not with_gradient:
        return nll, None
    total = torch.zeros_like(by_row)
    for (image, _), gradient in zip(parts, gradients, strict=True):
        assert gradient is not None
        total[image] += gradient
    return nll, torch.empty_like(scores).copy_(total.permute(0, 2, 1, 3))


def _logits_block(
    values: Tensor, labels: Tensor, weights: Tensor, limit: Tensor | float | None, *, with_gradient: bool
) -> Tensor:
    """Negative log likelihoods ``(R, W)``; overwrites the logits ``(R, K, W)`` with the gradient."""
    values -= values.amax(dim=1, keepdim=True)
    true = values.gather(1, labels).squeeze(1)
    exponentials = values.mul_(math.log2(math.e)).exp2_()  # exp2 is almost twice as fast as exp on the CPU
    total = exponentials.sum(dim=1)
    nll = total.log() - true
    if with_gradient:
        factor = _kept_weights(nll, weights, limit)
        values.mul_((factor / total).unsqueeze(1))
        values.scatter_add_(1, labels, -factor.unsqueeze(1))
    return nll


def _probabilities_block(
    values: Tensor, labels: Tensor, weights: Tensor, limit: Tensor | float | None, *, with_gradient: bool
) -> Tensor:
    """`_logits_block` for probabilities, where only the probability of the pixel's own class matters."""
    smallest = torch.finfo(values.dtype).tiny
    true = values.gather(1, labels).squeeze(1)
    floored = true.clamp_min(smallest)
    nll = -floored.log()
    if with_gradient:
        factor = _kept_weights(nll, weights, limit) * (true >= smallest)
        values.zero_().scatter_(1, labels, -(factor / floored).unsqueeze(1))
    return nll


def _kept_weights(nll: Tensor, weights: Tensor, limit: Tensor | float | None) -> Tensor:
    return weights if limit is None else weights * ((-nll).exp() < limit)
