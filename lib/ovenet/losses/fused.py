"""The Triton kernels under autograd: checked once per shape, and replaced by the blocked loss where they fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovenet.errors import one_line
from ovenet.losses import blocked, functional
from ovenet.losses.targets import OhemSettings, Targets
from ovenet.structures import ScoreKind
from ovenet.utils.logging import get_logger

_TOLERANCE = 1e-4  # largest difference from the blocked loss, relative to its largest value
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
    """Cross-entropy of several upsampled score maps at once, without synchronisation with the device.

    The first loss and gradient of a shape are compared with those of the blocked loss. If a kernel fails, then or
    later, one warning per shape is logged, and the blocked loss is used for this shape.

    Args:
        scores: ``(M B, K, h, w)`` float32: ``M`` score maps, concatenated along the batch.
        targets: ``(B, H, W)``.
        kind: kind of the scores.
        ohem: settings of OHEM; None for all pixels.
        num_plain: number of the first maps that are trained on all pixels even with OHEM.
        align_corners: convention of the upsampling.

    Returns:
        The weighted sums and the weights to divide them by, each ``(M,)``; None if the kernels fail for this shape.
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
    except Exception as error:  # a missing or outdated compiler may raise anything
        _give_up(shape, error)
        return None


def _give_up(shape: Shape, error: Exception) -> None:
    """Turns the kernels off for a shape, with a warning.

    Raises:
        Exception: `error`, during the capture of a CUDA graph: the capture may have failed rather than the kernel, and
            the step is repeated without it.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise error
    _failed.add(shape)
    _, _, num_classes, in_height, in_width, *rest = shape
    height, width = rest[5:7]
    get_logger().warning(
        "the Triton loss kernels fail for %d classes, %dx%d to %dx%d (%s: %s); the blocked loss replaces them for this "
        "shape, with the same result; set LOSS.BACKEND blocked to avoid this warning",
        num_classes, in_height, in_width, height, width, type(error).__name__, one_line(error),
    )  # fmt: skip


def _check(scores: Tensor, targets: Targets, kind: ScoreKind, *, is_mined: bool, align_corners: bool) -> None:
    """Compares the kernels with the blocked loss.

    Raises:
        RuntimeError: the results differ, or the GPU is not supported.
    """
    from ovenet.losses import fused_triton

    if scores.is_cuda:
        major, minor = torch.cuda.get_device_capability(scores.device)
        if problem := fused_triton.unsupported(10 * major + minor):
            raise RuntimeError(problem)
    nll, log_total = fused_triton.pixel_losses(scores, targets, kind, align_corners=align_corners)
    ones = nll.new_ones(len(nll))
    mining = ((-nll).exp(), ones * torch.inf) if is_mined else None  # an infinite limit keeps all pixels
    gradient = fused_triton.gradient(scores, targets, ones, log_total, mining, align_corners=align_corners)
    gradients = gradient.split(len(targets.labels))
    for own, maps, own_gradient in zip(nll, scores.split(len(targets.labels)), gradients, strict=True):
        loss, expected = blocked.loss_and_gradient(
            maps, targets, kind, None, align_corners=align_corners, with_gradient=True
        )
        assert expected is not None
        for mine, other in ((own, loss.nll), (own_gradient, expected)):
            if not (mine - other).abs().max() <= _TOLERANCE * other.abs().max():  # NaN differs too
                raise RuntimeError("results differ from those of the blocked loss")


class _Fused(torch.autograd.Function):
    """Loss in the forward pass, scaled gradient in the backward pass."""

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
