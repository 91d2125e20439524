"""Cross-entropy of upsampled scores that never holds a score map at label size, on any device.

Bilinear upsampling is separable: a few rows of a map are widened once by a matrix product, and every block of output
rows is a small product of them. Scores, their softmax and their gradient exist for one block at a time, which stays in
the processor's cache, and the gradient is brought down to the map's size at once by the transposed products. The order
of all sums is fixed, so that gradients repeat to the bit.

Shapes: ``B`` batch, ``K`` classes, ``h w`` map, ``H W`` labels, ``R`` rows of a block, ``n`` map rows they read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

from ovenet.geometry import interpolation_matrix, source_rows
from ovenet.losses.functional import ohem_limit
from ovenet.losses.targets import OhemSettings, PixelLoss, Targets
from ovenet.structures import ScoreKind

_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # scores of a block: 4 MB stay in a processor's cache
_CHUNK_COLUMNS = 32  # map columns that are widened together: the interpolation matrix is almost empty elsewhere


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
    """See `ovenet.losses.upsampled.Engine`.

    With mining, the first pass takes the threshold for the limit, which it almost always is early in training; where
    too few pixels are hard, a second pass follows.
    """
    limit = None if ohem is None else ohem.threshold
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


def _sweep(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    *,
    align_corners: bool,
    limit: Tensor | float | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Passes over all pixels once: negative log likelihoods, and the gradient of the sum of those below the limit."""
    num_classes, width = scores.shape[1], targets.labels.shape[2]
    nll = torch.empty_like(targets.weights)
    by_row = scores.permute(0, 2, 1, 3).contiguous()  # (B, h, K, w)
    gradient = torch.zeros_like(by_row) if with_gradient else None
    with _full_precision(scores.device):
        rows = _Rows(scores, targets.labels.shape[1], align_corners)
        columns = _Columns(scores, width, align_corners)
        num_rows = max(1, _BLOCK_ELEMENTS[scores.device.type] // (num_classes * width))
        for image, block in product(range(len(scores)), rows.blocks(num_rows)):
            first, last, vertical = rows.weights(block)
            here = (image, slice(block.start, block.stop))
            wide = columns.widened(by_row[image, first : last + 1])  # (n, K, W)
            values = (vertical @ wide.flatten(1)).view(len(block), num_classes, width)
            labels = targets.labels[here].unsqueeze(1)  # (R, 1, W)
            block_loss = _logits_block if kind == "logits" else _probabilities_block
            nll[here] = block_loss(values, labels, targets.weights[here], limit, with_gradient=with_gradient)
            if gradient is not None:
                narrow = (vertical.t() @ values.flatten(1)).view_as(wide)
                columns.add_narrowed(narrow, gradient[image, first : last + 1])
    if gradient is not None:
        gradient = torch.empty_like(scores).copy_(gradient.permute(0, 2, 1, 3))
    return nll, gradient


def _logits_block(
    values: Tensor, labels: Tensor, weights: Tensor, limit: Tensor | float | None, *, with_gradient: bool
) -> Tensor:
    """Negative log likelihoods ``(R, W)``; leaves the gradient in place of the logits ``(R, K, W)``."""
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
    """The same of probabilities, of which only the pixel's own class matters."""
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


class _Rows:
    """The vertical half of the upsampling, block by block."""

    def __init__(self, scores: Tensor, out_height: int, align_corners: bool):
        self._in_height, self._out_height, self._align_corners = scores.shape[2], out_height, align_corners
        self._matrix = interpolation_matrix(
            self._in_height, out_height, align_corners=align_corners, dtype=scores.dtype, device=scores.device
        )

    def blocks(self, size: int) -> Iterator[range]:
        for start in range(0, self._out_height, size):
            yield range(start, min(start + size, self._out_height))

    def weights(self, block: range) -> tuple[int, int, Tensor]:
        """First and last map row that the block reads, and the weights ``(R, n)``."""
        first, last = source_rows(self._in_height, self._out_height, block, align_corners=self._align_corners)
        return first, last, self._matrix[block.start : block.stop, first : last + 1]


class _Columns:
    """The horizontal half: products with the part of the interpolation matrix that is not empty."""

    def __init__(self, scores: Tensor, out_width: int, align_corners: bool):
        in_width = scores.shape[3]
        self._out_width = out_width
        matrix = interpolation_matrix(
            in_width, out_width, align_corners=align_corners, dtype=scores.dtype, device=scores.device
        ).t()
        size = -(-out_width * _CHUNK_COLUMNS // in_width)
        self._chunks: list[tuple[slice, slice, Tensor]] = []
        for start in range(0, out_width, size):
            out = range(start, min(start + size, out_width))
            first, last = source_rows(in_width, out_width, out, align_corners=align_corners)
            source, target = slice(first, last + 1), slice(out.start, out.stop)
            self._chunks.append((source, target, matrix[source, target].contiguous()))

    def widened(self, rows: Tensor) -> Tensor:
        """``(n, K, w)`` to ``(n, K, W)``."""
        wide = rows.new_empty(*rows.shape[:2], self._out_width)
        for source, target, weights in self._chunks:
            torch.mm(rows.flatten(0, 1)[:, source], weights, out=wide.view(-1, self._out_width)[:, target])
        return wide

    def add_narrowed(self, wide: Tensor, rows: Tensor) -> None:
        """Adds the transposed product of ``(n, K, W)`` to ``(n, K, w)``."""
        for source, target, weights in self._chunks:
            rows.view(-1, rows.shape[2])[:, source].addmm_(wide.flatten(0, 1)[:, target], weights.t())


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No lower precision for the products: 10 bits of a position would be seen in the loss."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
