"""Terms of the semantic loss, by name. Each is a sum and a weight to divide it by.

A new one is a class here or in a module that `ovenet.losses.registry` names, registered under its name; ``LOSS.TERMS``
sets its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, resize_bilinear, spatial_size
from ovenet.losses import functional
from ovenet.losses.registry import LOSSES
from ovenet.losses.settings import LossSettings
from ovenet.losses.targets import OhemSettings, Targets
from ovenet.losses.upsampled import BackendName, upsampled_cross_entropy
from ovenet.structures import ScoreKind

Average = Literal["valid", "all"]


class ScoreLoss(Protocol):
    """Loss of one score map."""

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """The loss as a sum and a weight to divide it by, both scalars; a sum of 0 with a gradient if nothing counts.

        Args:
            scores: ``(B, K, h, w)``, at the network's resolution.
            targets: ``(B, H, W)``.
            kind: kind of the scores.
            is_final: whether this is the final map, not an auxiliary one.
        """


def losses_of_maps(
    loss: ScoreLoss, maps: Sequence[Tensor], targets: Targets, kind: ScoreKind, is_final: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Losses of ``M`` score maps; cross-entropy computes them in one pass. Arguments as in `ScoreLoss`.

    Returns:
        The sums and the weights to divide them by, each ``(M,)``.
    """
    if isinstance(loss, _UpsampledCrossEntropy):
        return loss.of_maps(maps, targets, kind, is_final)
    parts = [loss(scores, targets, kind, is_final=final) for scores, final in zip(maps, is_final, strict=True)]
    totals, weights = zip(*parts, strict=True)
    return torch.stack(totals), torch.stack(weights)


@dataclass(frozen=True)
class WeightedLoss:
    """A term of the semantic loss.

    Attributes:
        name: name of the loss, for logs.
        loss: the loss of one score map.
        weight: factor of the loss in the sum of the terms.
    """

    name: str
    loss: ScoreLoss
    weight: float = 1.0


class _UpsampledCrossEntropy:
    """Cross-entropy over all pixels, or over the hard pixels of final maps if `mining` is set."""

    mining: OhemSettings | None = None

    def __init__(self, align_corners: bool, backend: BackendName, average: Average):
        self.align_corners, self.backend, self.average = align_corners, backend, average

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """See `ScoreLoss`."""
        total, weight = self.of_maps((scores,), targets, kind, (is_final,))
        return total[0], weight[0]

    def of_maps(
        self, maps: Sequence[Tensor], targets: Targets, kind: ScoreKind, is_final: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """See `losses_of_maps`."""
        ohem = [self.mining if final else None for final in is_final]
        totals, weights = upsampled_cross_entropy(
            maps, targets, kind, ohem=ohem, align_corners=self.align_corners, backend=self.backend
        )
        if self.average == "valid":
            return totals, weights
        counts = zip(weights.unbind(), ohem, strict=True)
        numel = torch.full_like(weights[0], targets.labels.numel())
        return totals, torch.stack([numel if mined is None else weight for weight, mined in counts])


@LOSSES.register("cross_entropy")
class CrossEntropy(_UpsampledCrossEntropy):
    """Cross-entropy over the valid pixels, weighted by class.

    Args:
        average: ``valid`` divides by the weights of the valid pixels, ``all`` by the number of all pixels including
            ignored ones, as mmsegmentation does.
        align_corners: convention of the upsampling to label size.
        backend: see `upsampled_cross_entropy`.
    """

    def __init__(self, *, average: Average = "valid", align_corners: bool = True, backend: BackendName = "auto"):
        super().__init__(align_corners, backend, average)


@LOSSES.register("ohem")
class OhemCrossEntropy(_UpsampledCrossEntropy):
    """Cross-entropy over the hard pixels of final maps, see `functional.ohem_limit`, and all pixels of auxiliary maps.

    Args:
        threshold: probability below which a pixel is hard.
        min_kept: minimum number of pixels per batch that are kept.
        average: for auxiliary maps, see `CrossEntropy`; HRNet-OCR's code has ``all``.
        align_corners, backend: see `CrossEntropy`.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.9,
        min_kept: int = 100000,
        average: Average = "valid",
        align_corners: bool = True,
        backend: BackendName = "auto",
    ):
        super().__init__(align_corners, backend, average)
        self.mining = OhemSettings(threshold, min_kept)


@LOSSES.register("focal")
class Focal:
    """Focal loss over the valid pixels: cross-entropy weighted by ``(1 - p)^gamma`` (Lin et al., 2017).

    Args:
        gamma: exponent; 0 is cross-entropy.
        align_corners: see `CrossEntropy`.
    """

    def __init__(self, *, gamma: float = 2.0, align_corners: bool = True):
        self.gamma, self.align_corners = gamma, align_corners

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """See `ScoreLoss`."""
        log_probs = upsampled_log_probabilities(scores, targets, kind, align_corners=self.align_corners)
        nll = functional.negative_log_likelihood(log_probs, targets)
        missing = -torch.expm1(-nll)  # 1 - p
        return functional.cross_entropy(missing.clamp_min(0.0) ** self.gamma * nll, targets)


class _RegionLoss:
    """A region-based loss from segmentation_models_pytorch, one number per batch."""

    def __init__(self, name: str, align_corners: bool, **options: Any):
        self.align_corners = align_corners
        self._loss = getattr(_smp_losses(), name)(mode="multiclass", ignore_index=_IGNORED, **options)

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """See `ScoreLoss`."""
        log_probs = upsampled_log_probabilities(scores, targets, kind, align_corners=self.align_corners)
        labels = targets.labels.masked_fill(~targets.valid, _IGNORED)
        total = self._loss(log_probs.float(), labels).sum()  # softmax restores the probabilities
        return total, total.new_ones(())


_IGNORED = -1


@LOSSES.register("dice")
class Dice(_RegionLoss):
    """One minus the Dice score, averaged over the classes; from segmentation_models_pytorch.

    Args:
        smooth: smoothing, added to numerator and denominator.
        align_corners: see `CrossEntropy`.
    """

    def __init__(self, *, smooth: float = 0.0, align_corners: bool = True):
        super().__init__("DiceLoss", align_corners, smooth=smooth)


@LOSSES.register("lovasz")
class Lovasz(_RegionLoss):
    """Lovász-Softmax (Berman et al., 2018), a surrogate of mean IoU; from segmentation_models_pytorch.

    Args:
        per_image: compute the loss for each image and average, rather than for the batch as a whole.
        align_corners: see `CrossEntropy`.
    """

    def __init__(self, *, per_image: bool = False, align_corners: bool = True):
        super().__init__("LovaszLoss", align_corners, per_image=per_image)


def _smp_losses() -> Any:
    try:
        from segmentation_models_pytorch import losses
    except ImportError as error:
        raise UserError(
            'the losses dice and lovasz need segmentation_models_pytorch; install it with: pip install -e ".[losses]"'
        ) from error
    return losses


def upsampled_log_probabilities(scores: Tensor, targets: Targets, kind: ScoreKind, *, align_corners: bool) -> Tensor:
    """Logarithm of the class probabilities at label size ``(B, K, H, W)``, in at least float32."""
    resized = resize_bilinear(at_least_float32(scores), spatial_size(targets.labels), align_corners=align_corners)
    return functional.log_probabilities(resized, kind)


def settings_of_terms(settings: LossSettings) -> tuple[dict[str, Any], ...]:
    """``LOSS.TERMS``, or the term that the published keys stand for."""
    if settings.terms:
        return settings.terms
    if settings.use_ohem:
        return ({"NAME": "ohem", "THRESHOLD": settings.ohemthres, "MIN_KEPT": settings.ohemkeep},)
    return ({"NAME": "cross_entropy"},)


def build_losses(
    terms: list[dict[str, Any]] | tuple[dict[str, Any], ...],
    *,
    align_corners: bool = True,
    backend: str = "auto",
    average: str = "valid",
) -> tuple[WeightedLoss, ...]:
    """Terms of the semantic loss from settings.

    Args:
        terms: dictionaries with ``NAME``, optionally ``WEIGHT``, and arguments of the loss.
        align_corners, backend, average: defaults for the losses that have these arguments.

    Raises:
        UserError: there is no such loss, or an argument is invalid.
    """
    provided = {"align_corners": align_corners, "backend": backend, "average": average}
    built = []
    for index, term in enumerate(terms):
        where = f"LOSS.TERMS[{index}]"
        settings = dict(term)
        name, weight = settings.pop("NAME", None), settings.pop("WEIGHT", 1.0)
        if name is None:
            raise UserError(f"{where} is {term}; expected a NAME, one of {', '.join(LOSSES.names())}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise UserError(f"{where}.WEIGHT is {weight!r}; expected a number of at least 0")
        arguments = LOSSES.check(name, settings, where)
        given = {key: value for key, value in provided.items() if LOSSES.takes(name, key)}
        built.append(WeightedLoss(name, LOSSES[name](**given, **arguments), float(weight)))
    return tuple(built)


def list_losses() -> list[str]:
    """Names of losses for ``LOSS.TERMS``."""
    return LOSSES.names()
