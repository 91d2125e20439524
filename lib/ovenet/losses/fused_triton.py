"""Cross-entropy of upsampled scores in two Triton kernels, for CUDA.

Upsampled scores exist only in registers. The first kernel reads the four map pixels around each label pixel and
accumulates the log-sum-exp over the classes. The second kernel computes the gradient of each map pixel from the label
pixels around it, whose probabilities it recomputes. Without atomic additions, gradients are deterministic. Both kernels
take all score maps at once, concatenated along the batch.

Shapes: ``M`` score maps, ``B`` batch, ``K`` classes, ``h w`` map size, ``H W`` label size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovenet.geometry import interpolation_weights
from ovenet.losses.targets import Targets
from ovenet.structures import ScoreKind

_TILE = 512  # classes times columns of a program: 4 for each of 128 threads, which fit into registers
SMALLEST = torch.finfo(torch.float32).tiny
_OLDEST_CAPABILITY = 80
_BLACKWELL = 100  # needs Triton 3.3; older compilers abort the process


def unsupported(capability: int) -> str:
    """Why GPUs of a compute capability, such as 90 for 9.0, are not supported; "" if they are."""
    name = f"GPUs of compute capability {capability / 10}"
    if capability < _OLDEST_CAPABILITY:
        return f"{name} are not supported, only {_OLDEST_CAPABILITY / 10} and above"
    if capability >= _BLACKWELL and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        return f"{name} need Triton 3.3 or above, not {triton.__version__}"
    return ""


@dataclass(frozen=True)
class _Axis:
    """Indices and weights of the upsampling along one axis, in both directions.

    Attributes:
        low: ``(out,)`` int32, index of the map pixel before each label pixel.
        weight: ``(out,)`` float32, weight of the next map pixel.
        first: ``(in + 1,)`` int32; label pixels ``first[i - 1]`` to ``first[i + 1] - 1`` read map pixel ``i``.
        reach: largest number of label pixels that read the same map pixel.
    """

    low: Tensor
    weight: Tensor
    first: Tensor
    reach: int


@cache  # a copy to the device in every step would stall it, and CUDA graphs keep the address of the tables
def _axis(in_size: int, out_size: int, align_corners: bool, device: torch.device) -> _Axis:
    low, weight = interpolation_weights(in_size, out_size, align_corners=align_corners)
    first = torch.searchsorted(low, torch.arange(in_size + 1))  # first label pixel whose map pixel is i or above
    reach = int((first[2:] - first[:-2]).max()) if in_size > 1 else out_size
    return _Axis(low.to(device, torch.int32), weight.to(device, torch.float32), first.to(device, torch.int32), reach)


def _axes(scores: Tensor, targets: Targets, align_corners: bool) -> tuple[_Axis, _Axis]:
    """The axis of rows and the axis of columns."""
    rows, columns = (
        _axis(scores.shape[dim], targets.labels.shape[dim - 1], align_corners, scores.device) for dim in (2, 3)
    )
    return rows, columns


@torch.no_grad()
def pixel_losses(
    scores: Tensor, targets: Targets, kind: ScoreKind, *, align_corners: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of each label pixel, without synchronisation with the device.

    Args:
        scores: ``(M B, K, h, w)`` float32: ``M`` score maps, concatenated along the batch.
        targets: ``(B, H, W)``.
        kind: kind of the scores.
        align_corners: convention of the upsampling.

    Returns:
        The negative log likelihoods ``(M, B, H, W)``, and for logits the log-sum-exp over the classes
        ``(M, B, H, W)``, which `gradient` needs; None for probabilities.
    """
    rows, columns = _axes(scores, targets, align_corners)
    num_images, num_classes, in_height, in_width = scores.shape
    batch, height, width = targets.labels.shape
    nll = scores.new_empty((num_images // batch, batch, height, width))
    log_total = torch.empty_like(nll) if kind == "logits" else None
    block_k, block_x = blocks(num_classes)
    _pixel_loss_kernel[(triton.cdiv(width, block_x), height, num_images)](
        scores,
        targets.labels,
        columns.low,
        columns.weight,
        rows.low,
        rows.weight,
        nll,
        nll if log_total is None else log_total,
        batch,
        num_classes,
        in_height,
        in_width,
        height,
        width,
        *scores.stride(),
        IS_LOGITS=kind == "logits",
        SMALLEST=SMALLEST,
        BLOCK_K=block_k,
        BLOCK_X=block_x,
    )
    return nll, log_total


@torch.no_grad()
def gradient(
    scores: Tensor,
    targets: Targets,
    scale: Tensor,
    log_total: Tensor | None,
    mining: tuple[Tensor, Tensor] | None,
    *,
    align_corners: bool,
) -> Tensor:
    """Gradient of the weighted sums of the pixel losses.

    Args:
        scores, targets, align_corners: see `pixel_losses`.
        scale: ``(M,)`` float32, gradient with respect to the sum of each map.
        log_total: log-sum-exp from `pixel_losses`; None for probabilities.
        mining: for OHEM the probabilities ``(M, B, H, W)`` of the pixels' own classes, and the limits ``(M,)`` below
            which a pixel counts; None for all pixels.

    Returns:
        ``(M B, K, h, w)``, in the memory format of `scores`.
    """
    rows, columns = _axes(scores, targets, align_corners)
    num_images, num_classes, in_height, in_width = scores.shape
    batch, height, width = targets.labels.shape
    result = torch.empty_like(scores)
    block_k, block_j = blocks(num_classes)
    num_blocks_k = triton.cdiv(num_classes, block_k)
    probability, limits = (targets.weights, scale) if mining is None else mining  # not read without mining
    _gradient_kernel[(triton.cdiv(in_width, block_j), in_height, num_images * num_blocks_k)](
        scores,
        targets.labels,
        targets.weights,
        scale,
        targets.weights if log_total is None else log_total,
        probability,
        limits,
        columns.low,
        columns.weight,
        columns.first,
        rows.low,
        rows.weight,
        rows.first,
        result,
        batch,
        num_classes,
        num_blocks_k,
        in_height,
        in_width,
        height,
        width,
        columns.reach,
        *scores.stride(),
        *result.stride(),
        IS_LOGITS=log_total is not None,
        IS_MINED=mining is not None,
        SMALLEST=SMALLEST,
        BLOCK_K=block_k,
        BLOCK_J=block_j,
    )
    return result


def blocks(num_classes: int) -> tuple[int, int]:
    """Number of classes and columns of a program's block: the largest one with little padding of the classes."""
    padded = {block: triton.cdiv(num_classes, block) * block for block in (8, 16, 32)}
    block_k = max(block for block, total in padded.items() if total <= 1.1 * min(padded.values()))
    return block_k, _TILE // block_k


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
    batch,
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
    label = tl.load(labels + (image % batch * height + row) * width + x, mask=in_row, other=0)

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
    weights,
    scale,
    log_total,
    probability,
    limits,
    x_low,
    x_weight,
    x_first,
    y_low,
    y_weight,
    y_first,
    gradient,
    batch,
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
    IS_MINED: tl.constexpr,
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
    factor = tl.load(scale + image // batch)
    limit = tl.load(limits + image // batch)

    total = tl.zeros((BLOCK_K, BLOCK_J), tl.float32)
    for row in range(tl.load(y_first + tl.maximum(i - 1, 0)), tl.load(y_first + i + 1)):
        low_y = tl.load(y_low + row)
        t = tl.load(y_weight + row)
        step_y = tl.where(low_y + 1 < in_height, stride_h, 0)
        is_low_y = (low_y == i).to(tl.float32)
        weight_y = (t + is_low_y * (1.0 - 2.0 * t)) * factor
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
            label_place = (image % batch * height + row) * width + x
            label = tl.load(labels + label_place, mask=reads, other=0)
            # Not tl.where(is_low, 1 - u, u): Triton 3.6 fails to compile that for scores in NCHW order.
            weight_x = u + is_low.to(tl.float32) * (1.0 - 2.0 * u)
            weight = tl.load(weights + label_place, mask=reads, other=0.0) * weight_x * weight_y
            if IS_MINED:
                weight = tl.where(tl.load(probability + place, mask=reads, other=0.0) < limit, weight, 0.0)
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
