"""The Triton kernels under autograd: checked when a shape is first seen, replaced where they fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovenet.losses import blocked, functional
from ovenet.losses.targets import OhemSettings, Targets
from ovenet.structures import ScoreKind
from ovenet.utils.logging import get_logger

_TOLERANCE = 1e-4  # of the largest value, between the kernels and the blocked loss
Shape = tuple[Any, ...]
_checked: set[Shape] = set()
_failed: set[Shape] = set()


def fused_cross_entropy(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    *,
    ohem: OhemSettings | None,
    num_plain: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor] | None:
    """Cross-entropy of the upsampled score maps of several predictions at once; never waits for the device.

    A shape's first loss and gradient are compared with those of the blocked loss. Where a kernel fails, then or later,
    the log says so once for a shape, and the blocked loss takes its place.

    Args:
        scores: ``(M B, K, h, w)`` float32, the images of one map after those of another.
        targets: ``(B, H, W)``.
        kind: what the scores are.
        ohem: mine hard pixels; None for all pixels.
        num_plain: number of the first maps, of which all pixels count whatever `ohem` says.
        align_corners: convention of the upsampling.

    Returns:
        The weighted sums over the pixels that count, and what to divide them by, each ``(M,)``; None where the kernels
        fail for this shape.
    """
    shape = (scores.device, *scores.shape, *scores.stride(), *targets.labels.shape, kind, ohem is None, align_corners)
    if shape in _failed:
        return None
    try:
        if shape not in _checked:
            _check(
                scores.detach().nan_to_num(0.0, 0.0, 0.0),
                targets,
                kind,
                is_mined=ohem is not None,
                align_corners=align_corners,
            )
            _checked.add(shape)
        return _Fused.apply(scores, targets, kind, ohem, num_plain, align_corners, shape)
    except Exception as error:  # a compiler that is missing or too old raises anything
        _give_up(shape, error)
        return None


def _give_up(shape: Shape, error: Exception) -> None:
    """Does without the kernels for this shape from now on, and says so.

    Raises:
        Exception: the same, while a CUDA graph is captured: then it may be the capture that has failed, not a kernel,
            and the step is done again without it.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise error
    _failed.add(shape)
    _, _, num_classes, in_height, in_width, *rest = shape
    height, width = rest[5:7]
    get_logger().warning(
        "the fused loss kernels fail for %d classes, %dx%d to %dx%d (%s: %s): the blocked loss takes their place for "
        "this shape, with the same result; LOSS.BACKEND blocked does without them",
        num_classes, in_height, in_width, height, width, type(error).__name__, " ".join(str(error).split())[:200],
    )  # fmt: skip


def _check(scores: Tensor, targets: Targets, kind: ScoreKind, *, is_mined: bool, align_corners: bool) -> None:
    """Compares the kernels with the blocked loss.

    Raises:
        RuntimeError: they differ, or are not for this GPU.
    """
    from ovenet.losses import fused_triton

    if scores.is_cuda:
        major, minor = torch.cuda.get_device_capability(scores.device)
        if problem := fused_triton.unsupported(10 * major + minor):
            raise RuntimeError(problem)
    nll, log_total = fused_triton.pixel_losses(scores, targets, kind, align_corners=align_corners)
    ones = nll.new_ones(len(nll))
    mining = ((-nll).exp(), ones * torch.inf) if is_mined else None  # all pixels count: no limit lies between the two
    gradient = fused_triton.gradient(scores, targets, ones, log_total, mining, align_corners=align_corners)
    gradients = gradient.split(len(targets.labels))
    for own, maps, own_gradient in zip(nll, scores.split(len(targets.labels)), gradients, strict=True):
        loss, expected = blocked.loss_and_gradient(
            maps, targets, kind, None, align_corners=align_corners, with_gradient=True
        )
        for mine, other in ((own, loss.nll), (own_gradient, expected)):
            if not (mine - other).abs().max() <= _TOLERANCE * other.abs().max():  # NaN differs too
                raise RuntimeError("its results differ from those of the blocked loss")


class _Fused(torch.autograd.Function):
    """Loss in the forward pass, gradient in the backward pass, already scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Targets,
        kind: ScoreKind,
        ohem: OhemSettings | None,
        num_plain: int,
        align_corners: bool,
        shape: Shape,
    ) -> tuple[Tensor, Tensor]:
        from ovenet.losses import fused_triton

        nll, log_total = fused_triton.pixel_losses(scores, targets, kind, align_corners=align_corners)
        total, weight = functional.cross_entropy(nll, targets)
        weight = weight.expand(len(nll))
        mining: tuple[Tensor, ...] = ()
        if ohem is not None:
            mined = nll[num_plain:]
            limits = functional.ohem_limit(mined, targets, threshold=ohem.threshold, min_kept=ohem.min_kept)
            hard_total, num_hard = functional.ohem_cross_entropy(mined, targets, limits)
            total = torch.cat((total[:num_plain], hard_total))
            weight = torch.cat((weight[:num_plain], num_hard))
            mining = ((-nll).exp(), torch.cat((limits.new_full((num_plain,), torch.inf), limits)))
        ctx.save_for_backward(scores, log_total, *mining)
        ctx.rest = targets, kind, align_corners, shape
        ctx.mark_non_differentiable(weight)
        return total, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scores, log_total, *mining = ctx.saved_tensors
        targets, kind, align_corners, shape = ctx.rest
        try:
            from ovenet.losses import fused_triton

            gradient = fused_triton.gradient(
                scores, targets, grad_total.contiguous(), log_total, tuple(mining) or None, align_corners=align_corners
            )
        except Exception as error:  # as in the forward pass
            _give_up(shape, error)
            limits = mining[1] if mining else [None] * len(grad_total)
            gradient = _blocked_gradient(scores, targets, kind, grad_total, limits, align_corners)
        return gradient, *[None] * 6


def _blocked_gradient(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    scale: Tensor,
    limits: Sequence[Tensor | None],
    align_corners: bool,
) -> Tensor:
    parts = [
        factor * blocked.gradient(maps, targets, kind, limit, align_corners=align_corners)
        for maps, factor, limit in zip(scores.split(len(targets.labels)), scale, limits, strict=True)
    ]
    return torch.cat(parts)
