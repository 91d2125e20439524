"""Cross-entropy of scores that are upsampled to label size: one interface, three backends.

``plain`` follows the formula literally and is the reference for the others; ``blocked`` and ``triton`` never hold a
score map at label size, and compute the gradient together with the loss.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear
from ovenet.losses import blocked, functional
from ovenet.losses.targets import OhemSettings, PixelLoss, Targets
from ovenet.structures import ScoreKind

BackendName = Literal["auto", "plain", "blocked", "triton"]
_SELF_TEST_TOLERANCE = 1e-4


class Backend(Protocol):
    """Loss and gradient of one score map, without autograd."""

    def __call__(
        self,
        scores: Tensor,
        targets: Targets,
        kind: ScoreKind,
        ohem: OhemSettings | None,
        *,
        align_corners: bool,
        with_gradient: bool,
    ) -> tuple[PixelLoss, Tensor | None]:
        """Loss of the upsampled scores.

        Args:
            scores: ``(B, K, h, w)`` float32 or float64.
            targets: of label size.
            kind: what the scores are.
            ohem: mine hard pixels.
            align_corners: convention of the upsampling.
            with_gradient: compute it.

        Returns:
            The loss of every pixel, and the gradient ``(B, K, h, w)`` of its weighted sum over the pixels that count.
        """


def upsampled_cross_entropy(
    scores: Tensor,
    targets: Targets,
    kind: ScoreKind,
    *,
    ohem: OhemSettings | None = None,
    align_corners: bool = True,
    backend: BackendName = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of scores at label size.

    Args:
        scores: ``(B, K, h, w)`` logits or probabilities; half precision is computed in float32.
        targets: ``(B, H, W)``.
        kind: what the scores are.
        ohem: mine hard pixels; None for all pixels.
        align_corners: convention of the upsampling.
        backend: ``auto`` is ``triton`` on CUDA where it works, else ``blocked``.

    Returns:
        The weighted sum over the pixels that count, and what to divide it by: the sum of their weights or, with mining,
        their number.

    Raises:
        UserError: ``triton`` is asked for without a CUDA device.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if backend == "plain":
        loss = _plain_loss(scores, targets, kind, ohem, align_corners)
        return _summed(loss, targets)
    return _Fused.apply(scores, targets, kind, ohem, align_corners, _backend(backend, scores))


def _plain_loss(
    scores: Tensor, targets: Targets, kind: ScoreKind, ohem: OhemSettings | None, align_corners: bool
) -> PixelLoss:
    resized = resize_bilinear(scores, targets.labels.shape[-2:], align_corners=align_corners)
    nll = functional.negative_log_likelihood(functional.log_probabilities(resized, kind), targets)
    if ohem is None:
        return PixelLoss(nll, None)
    return PixelLoss(nll, functional.ohem_limit(nll, targets, threshold=ohem.threshold, min_kept=ohem.min_kept))


def _summed(loss: PixelLoss, targets: Targets) -> tuple[Tensor, Tensor]:
    if loss.limit is None:
        return functional.cross_entropy(loss.nll, targets)
    return functional.ohem_cross_entropy(loss.nll, targets, loss.limit)


class _Fused(torch.autograd.Function):
    """Hands a backend's gradient to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Targets,
        kind: ScoreKind,
        ohem: OhemSettings | None,
        align_corners: bool,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        loss, gradient = backend(
            scores, targets, kind, ohem, align_corners=align_corners, with_gradient=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        total, weight = _summed(loss, targets)
        ctx.mark_non_differentiable(weight)
        return total, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None, None, None, None, None


def _backend(name: BackendName, scores: Tensor) -> Backend:
    if name == "triton" or (name == "auto" and scores.is_cuda and scores.dtype == torch.float32):
        if name == "triton" and not scores.is_cuda:
            raise UserError("LOSS.BACKEND is triton, but the scores are not on a CUDA device; set it to auto")
        if name == "triton" or _triton_works(scores.device):
            from ovenet.losses import fused_triton

            return fused_triton.loss_and_gradient
    return blocked.loss_and_gradient


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether the kernels compile here and agree with the blocked backend; if not, says so once."""
    try:
        from ovenet.losses import fused_triton

        generator = torch.Generator(device).manual_seed(0)
        scores = torch.randn((1, 5, 6, 7), device=device, generator=generator)
        labels = torch.randint(0, 5, (1, 21, 26), device=device, generator=generator)
        arguments = (scores, Targets.from_labels(labels, ignore_label=4), "logits", None)
        (own, own_gradient), (loss, gradient) = (
            backend(*arguments, align_corners=True, with_gradient=True)
            for backend in (fused_triton.loss_and_gradient, blocked.loss_and_gradient)
        )
        close = {"rtol": _SELF_TEST_TOLERANCE, "atol": _SELF_TEST_TOLERANCE}
        works = torch.allclose(own.nll, loss.nll, **close) and torch.allclose(own_gradient, gradient, **close)
        problem = "its results differ"
    except Exception as error:  # a compiler that is missing or too old raises anything
        works, problem = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not works:
        warnings.warn(f"the loss does without Triton ({problem}); LOSS.BACKEND blocked is used", stacklevel=2)
    return works
