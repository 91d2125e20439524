"""Cross-entropy of scores upsampled to label size: one function, three backends.

``plain`` follows the formula literally and is the reference; ``blocked`` and ``triton`` never hold a score map at label
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, resize_bilinear, spatial_size
from ovenet.losses import blocked, functional
from ovenet.losses.fused import fused_cross_entropy
from ovenet.losses.targets import OhemSettings, PixelLoss, Targets
from ovenet.structures import ScoreKind

BackendName = Literal["auto", "plain", "blocked", "triton"]


def upsampled_cross_entropy(
    maps: Sequence[Tensor],
    targets: Targets,
    kind: ScoreKind,
    *,
    ohem: Sequence[OhemSettings | None] | None = None,
    align_corners: bool = True,
    backend: BackendName = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of score maps at label size.

    Args:
        maps: ``M`` score maps ``(B, K, h, w)``, logits or probabilities; the loss is computed in at least float32.
        targets: ``(B, H, W)``.
        kind: kind of the scores.
        ohem: settings of OHEM for each map, or None for all pixels; None for all pixels of all maps.
        align_corners: convention of the upsampling.
        backend: ``auto`` is ``triton`` on CUDA where it works, else ``blocked``.

    Returns:
        The weighted sums over the pixels, and the weights to divide them by: the sum of the pixels' weights or, with
        OHEM, the number of hard pixels. Each is ``(M,)``.

    Raises:
        UserError: `backend` is ``triton``, but the scores are not on a CUDA device.
    """
    ohem = [None] * len(maps) if ohem is None else ohem
    maps = [at_least_float32(scores) for scores in maps]
    if backend == "triton" and not maps[0].is_cuda:
        raise UserError("LOSS.BACKEND is triton, but the scores are not on a CUDA device; set it to auto")
    results: list[tuple[Tensor, Tensor] | None] = [None] * len(maps)
    if backend in ("auto", "triton") and _fits_kernels(maps[0]):
        for indices in _alike(maps, ohem):
            fused = _fused_losses([maps[i] for i in indices], targets, kind, [ohem[i] for i in indices], align_corners)
            for i, result in zip(indices, fused, strict=True):
                results[i] = result
    for i, (scores, mining) in enumerate(zip(maps, ohem, strict=True)):
        if results[i] is None and backend == "plain":
            results[i] = _sum(_plain_loss(scores, targets, kind, mining, align_corners), targets)
        elif results[i] is None:
            results[i] = _Blocked.apply(scores, targets, kind, mining, align_corners)
    totals, weights = zip(*results, strict=True)
    return torch.stack(totals), torch.stack(weights)


def _fits_kernels(scores: Tensor) -> bool:
    return scores.is_cuda and scores.dtype == torch.float32


def _alike(maps: Sequence[Tensor], ohem: Sequence[OhemSettings | None]) -> list[list[int]]:
    """Groups of indices of maps with the same size and at most one setting of OHEM, maps without OHEM first."""
    groups: dict[torch.Size, list[int]] = {}
    for index, scores in enumerate(maps):
        groups.setdefault(scores.shape, []).append(index)
    result = []
    for indices in groups.values():
        plain = [i for i in indices if ohem[i] is None]
        for mining in dict.fromkeys(ohem[i] for i in indices if ohem[i] is not None):
            result.append(plain + [i for i in indices if ohem[i] == mining])
            plain = []
        if plain:
            result.append(plain)
    return result


def _fused_losses(
    maps: Sequence[Tensor],
    targets: Targets,
    kind: ScoreKind,
    ohem: Sequence[OhemSettings | None],
    align_corners: bool,
) -> Sequence[tuple[Tensor, Tensor] | None]:
    """The losses of all maps in one pass over the labels; None for each map if the kernels fail."""
    summed = fused_cross_entropy(
        torch.cat(tuple(maps)),
        targets,
        kind,
        ohem=ohem[-1],
        num_plain=sum(mining is None for mining in ohem),
        align_corners=align_corners,
    )
    return [None] * len(maps) if summed is None else list(zip(*summed, strict=True))


def _plain_loss(
    scores: Tensor, targets: Targets, kind: ScoreKind, ohem: OhemSettings | None, align_corners: bool
) -> PixelLoss:
    resized = resize_bilinear(scores, spatial_size(targets.labels), align_corners=align_corners)
    nll = functional.negative_log_likelihood(functional.log_probabilities(resized, kind), targets)
    if ohem is None:
        return PixelLoss(nll, None)
    return PixelLoss(nll, functional.ohem_limit(nll, targets, threshold=ohem.threshold, min_kept=ohem.min_kept))


def _sum(loss: PixelLoss, targets: Targets) -> tuple[Tensor, Tensor]:
    if loss.limit is None:
        return functional.cross_entropy(loss.nll, targets)
    return functional.ohem_cross_entropy(loss.nll, targets, loss.limit)


class _Blocked(torch.autograd.Function):
    """The blocked loss under autograd, with its gradient computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Targets,
        kind: ScoreKind,
        ohem: OhemSettings | None,
        align_corners: bool,
    ) -> tuple[Tensor, Tensor]:
        loss, gradient = blocked.loss_and_gradient(
            scores, targets, kind, ohem, align_corners=align_corners, with_gradient=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        total, weight = _sum(loss, targets)
        ctx.mark_non_differentiable(weight)
        return total, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None, None, None, None
