"""Cross-entropy of upsampled scores in two Triton kernels, for CUDA.

Upsampled scores exist in registers alone. The first kernel reads the four map pixels around each label pixel and folds
their classes into the logarithm of the sum of exponentials. The second one is laid out by map pixels: each gathers the
gradient from the label pixels around it, whose probabilities it computes again. Nothing is added atomically, so that
gradients repeat to the bit.

Shapes: ``B`` batch, ``K`` classes, ``h w`` map, ``H W`` labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovenet.geometry import interpolation_weights
from ovenet.losses.functional import ohem_limit
from ovenet.losses.targets import OhemSettings, PixelLoss, Targets
from ovenet.structures import ScoreKind

_BLOCK_X = 64  # label columns of a program of the first kernel
_BLOCK_J = 32  # map columns of a program of the second kernel
_MAX_BLOCK_K = 32  # classes that a program holds at a time


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
    """See `ovenet.losses.upsampled.Backend`; never waits for the device. Scores are float32."""
    height, width = targets.labels.shape[1:]
    rows = _Axis.of(scores.shape[2], height, align_corners, scores.device)
    columns = _Axis.of(scores.shape[3], width, align_corners, scores.device)
    nll, log_total = _pixel_loss(scores, targets, rows, columns, kind)
    limit, factor = None, targets.weights
    if ohem is not None:
        limit = ohem_limit(nll, targets, threshold=ohem.threshold, min_kept=ohem.min_kept)
        factor = factor * ((-nll).exp() < limit)
    gradient = _gradient(scores, targets, factor, log_total, rows, columns, kind) if with_gradient else None
    return PixelLoss(nll, limit), gradient


@dataclass(frozen=True)
class _Axis:
    """One axis of the upsampling, from both sides.

    Attributes:
        low: ``(out,)`` int32, the map pixel before each label pixel.
        weight: ``(out,)`` float32 of the map pixel after that one.
        first: ``(in + 1,)`` int32; label pixels from ``first[i - 1]`` to before ``first[i + 1]`` read map pixel ``i``.
        reach: the largest number of label pixels that read one map pixel.
    """

    low: Tensor
    weight: Tensor
    first: Tensor
    reach: int

    @classmethod
    def of(cls, in_size: int, out_size: int, align_corners: bool, device: torch.device) -> _Axis:
        low, weight = interpolation_weights(in_size, out_size, align_corners=align_corners)
        first = torch.searchsorted(low, torch.arange(in_size + 1))  # label pixels whose map pixel is i or a later one
        reach = int((first[2:] - first[:-2]).max()) if in_size > 1 else out_size
        return cls(
            low.to(device, torch.int32, non_blocking=True),
            weight.to(device, torch.float32, non_blocking=True),
            first.to(device, torch.int32, non_blocking=True),
            reach,
        )


def _pixel_loss(
    scores: Tensor, targets: Targets, rows: _Axis, columns: _Axis, kind: ScoreKind
) -> tuple[Tensor, Tensor]:
    """Negative log likelihood and logarithm of the sum of exponentials (0 for probabilities), each ``(B, H, W)``."""
    batch, num_classes, in_height, in_width = scores.shape
    height, width = targets.labels.shape[1:]
    nll, log_total = torch.empty_like(targets.weights), torch.empty_like(targets.weights)
    _pixel_loss_kernel[(triton.cdiv(width, _BLOCK_X), height, batch)](
        scores,
        targets.labels,
        columns.low,
        columns.weight,
        rows.low,
        rows.weight,
        nll,
        log_total,
        num_classes,
        in_height,
        in_width,
        height,
        width,
        *scores.stride(),
        IS_LOGITS=kind == "logits",
        SMALLEST=torch.finfo(torch.float32).tiny,
        BLOCK_K=_block_k(num_classes),
        BLOCK_X=_BLOCK_X,
    )
    return nll, log_total


def _gradient(
    scores: Tensor, targets: Targets, factor: Tensor, log_total: Tensor, rows: _Axis, columns: _Axis, kind: ScoreKind
) -> Tensor:
    """Gradient ``(B, K, h, w)`` of the pixels' losses times their factors."""
    batch, num_classes, in_height, in_width = scores.shape
    height, width = targets.labels.shape[1:]
    gradient = torch.empty_like(scores)
    block_k = _block_k(num_classes)
    num_blocks_k = triton.cdiv(num_classes, block_k)
    _gradient_kernel[(triton.cdiv(in_width, _BLOCK_J), in_height, batch * num_blocks_k)](
        scores,
        targets.labels,
        factor,
        log_total,
        columns.low,
        columns.weight,
        columns.first,
        rows.low,
        rows.weight,
        rows.first,
        gradient,
        num_classes,
        num_blocks_k,
        in_height,
        in_width,
        height,
        width,
        columns.reach,
        *scores.stride(),
        *gradient.stride(),
        IS_LOGITS=kind == "logits",
        SMALLEST=torch.finfo(torch.float32).tiny,
        BLOCK_K=block_k,
        BLOCK_J=_BLOCK_J,
    )
    return gradient


def _block_k(num_classes: int) -> int:
    return min(_MAX_BLOCK_K, triton.next_power_of_2(num_classes))


@triton.jit
def _load_lerped(image, offset, step, is_there, t):
    """Scores at `offset`, and those `step` further on, mixed by the weight `t` of the latter."""
    above = tl.load(image + offset, mask=is_there, other=0.0)
    below = tl.load(image + offset + step, mask=is_there, other=0.0)
    return above * (1.0 - t) + below * t  # not above + difference · t, which loses small probabilities


@triton.jit
def _pixel_loss_kernel(
    scores,
    labels,
    x_low,
    x_weight,
    y_low,
    y_weight,
    nll,
    log_total,
    num_classes,
    in_height,
    in_width,
    height,
    width,
    stride_b,
    stride_k,
    stride_h,
    stride_w,
    IS_LOGITS: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    in_row = x < width
    place = (image * height + row) * width + x
    label = tl.load(labels + place, mask=in_row, other=0)

    low_y = tl.load(y_low + row)
    t = tl.load(y_weight + row)
    step_y = tl.where(low_y + 1 < in_height, stride_h, 0)
    low_x = tl.load(x_low + x, mask=in_row, other=0)
    u = tl.load(x_weight + x, mask=in_row, other=0.0)
    step_x = tl.where(low_x + 1 < in_width, stride_w, 0)
    base = scores + image * stride_b + low_y * stride_h

    largest = tl.full((BLOCK_X,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_X,), tl.float32)
    true = tl.zeros((BLOCK_X,), tl.float32)
    for first_class in range(0, num_classes, BLOCK_K):
        k = first_class + tl.arange(0, BLOCK_K)
        is_there = (k < num_classes)[:, None] & in_row[None, :]
        offset = k[:, None] * stride_k + (low_x * stride_w)[None, :]
        left = _load_lerped(base, offset, step_y, is_there, t)
        right = _load_lerped(base, offset + step_x[None, :], step_y, is_there, t)
        value = left * (1.0 - u)[None, :] + right * u[None, :]
        true += tl.sum(tl.where(k[:, None] == label[None, :], value, 0.0), axis=0)
        if IS_LOGITS:
            value = tl.where(is_there, value, -float("inf"))
            new_largest = tl.maximum(largest, tl.max(value, axis=0))
            new_largest = tl.where(in_row, new_largest, 0.0)
            total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(value - new_largest[None, :]), axis=0)
            largest = new_largest
    if IS_LOGITS:
        sum_log = largest + tl.log(tl.where(in_row, total, 1.0))
        tl.store(nll + place, sum_log - true, mask=in_row)
        tl.store(log_total + place, sum_log, mask=in_row)
    else:
        tl.store(nll + place, -tl.log(tl.where(true < SMALLEST, SMALLEST, true)), mask=in_row)


@triton.jit
def _gradient_kernel(
    scores,
    labels,
    factor,
    log_total,
    x_low,
    x_weight,
    x_first,
    y_low,
    y_weight,
    y_first,
    gradient,
    num_classes,
    num_blocks_k,
    in_height,
    in_width,
    height,
    width,
    reach_x,
    stride_b,
    stride_k,
    stride_h,
    stride_w,
    out_stride_b,
    out_stride_k,
    out_stride_h,
    out_stride_w,
    IS_LOGITS: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    image = (tl.program_id(2) // num_blocks_k).to(tl.int64)
    k = (tl.program_id(2) % num_blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    i = tl.program_id(1)
    j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    in_row = j < in_width
    is_there = (k < num_classes)[:, None] & in_row[None, :]
    offset = k[:, None] * stride_k + (j * stride_w)[None, :]
    to_left = tl.where(j > 0, -stride_w, 0)
    to_right = tl.where(j + 1 < in_width, stride_w, 0)
    first_x = tl.load(x_first + tl.maximum(j - 1, 0), mask=in_row, other=0)
    end_x = tl.load(x_first + tl.minimum(j + 1, in_width), mask=in_row, other=0)

    total = tl.zeros((BLOCK_K, BLOCK_J), tl.float32)
    for row in range(tl.load(y_first + tl.maximum(i - 1, 0)), tl.load(y_first + i + 1)):
        low_y = tl.load(y_low + row)
        t = tl.load(y_weight + row)
        step_y = tl.where(low_y + 1 < in_height, stride_h, 0)
        weight_y = tl.where(low_y == i, 1.0 - t, t)
        base = scores + image * stride_b + low_y * stride_h
        left = _load_lerped(base, offset + to_left[None, :], step_y, is_there, t)
        middle = _load_lerped(base, offset, step_y, is_there, t)
        right = _load_lerped(base, offset + to_right[None, :], step_y, is_there, t)
        for number in range(0, reach_x):
            x = first_x + number
            reads = x < end_x
            low_x = tl.load(x_low + x, mask=reads, other=0)
            u = tl.load(x_weight + x, mask=reads, other=0.0)
            is_low = low_x == j
            place = (image * height + row) * width + x
            label = tl.load(labels + place, mask=reads, other=0)
            weight = tl.load(factor + place, mask=reads, other=0.0) * tl.where(is_low, 1.0 - u, u) * weight_y
            before = tl.where(is_low[None, :], middle, left)
            after = tl.where(is_low[None, :], right, middle)
            value = before * (1.0 - u)[None, :] + after * u[None, :]
            is_true = k[:, None] == label[None, :]
            if IS_LOGITS:
                sum_log = tl.load(log_total + place, mask=reads, other=0.0)
                slope = tl.exp(tl.where(reads[None, :], value - sum_log[None, :], 0.0)) - tl.where(is_true, 1.0, 0.0)
            else:
                usable = is_true & (value >= SMALLEST)
                slope = tl.where(usable, -1.0 / tl.where(usable, value, 1.0), 0.0)
            total += slope * weight[None, :]
    out = image * out_stride_b + k[:, None] * out_stride_k + i * out_stride_h + (j * out_stride_w)[None, :]
    tl.store(gradient + out, total, mask=is_there)
