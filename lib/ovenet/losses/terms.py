"""The terms that a semantic loss is made of, by name. Each is a sum and what to divide it by.

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
from ovenet.geometry import resize_bilinear
from ovenet.losses import functional
from ovenet.losses.registry import LOSSES
from ovenet.losses.targets import OhemSettings, Targets
from ovenet.losses.upsampled import BackendName, upsampled_cross_entropy
from ovenet.structures import ScoreKind

Average = Literal["valid", "all"]


class ScoreLoss(Protocol):
    """Loss of one score map."""

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """The loss as a sum and what to divide it by, both scalars; a sum of 0 with a gradient where nothing counts.

        Args:
            scores: ``(B, K, h, w)``, at the network's size.
            targets: ``(B, H, W)``, of label size.
            kind: what the scores are.
            is_final: False for an auxiliary map.
        """


def losses_of_maps(
    loss: ScoreLoss, maps: Sequence[Tensor], targets: Targets, kind: ScoreKind, is_final: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Losses of ``M`` score maps, those of cross-entropy in one pass.

    Returns:
        The sums and what to divide them by, each ``(M,)``.
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
        name: for logs.
        loss: gives a sum and what to divide it by.
        weight: factor.
    """

    name: str
    loss: ScoreLoss
    weight: float = 1.0


class _UpsampledCrossEntropy:
    """Cross-entropy of all pixels or of the hard ones of the final maps; of several maps in one pass."""

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
        average: ``valid`` divides by the weights of the valid pixels; ``all`` by the number of all pixels, ignored ones
            too, as mmsegmentation does.
        align_corners: convention of the upsampling to label size.
        backend: see `upsampled_cross_entropy`.
    """

    def __init__(self, *, average: Average = "valid", align_corners: bool = True, backend: BackendName = "auto"):
        super().__init__(align_corners, backend, average)


@LOSSES.register("ohem")
class OhemCrossEntropy(_UpsampledCrossEntropy):
    """Cross-entropy over the hard pixels of the final map (see `functional.ohem_limit`), over all of an auxiliary one.

    Args:
        threshold: a probability.
        min_kept: a number of pixels of the batch.
        average: of an auxiliary map, see `CrossEntropy`; ``all`` is HRNet-OCR's code.
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
    """Cross-entropy whose easy pixels count less, ``(1 - p)^gamma`` (Lin et al., 2017), over the valid pixels.

    Args:
        gamma: 0 is cross-entropy.
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
    """A loss of regions from segmentation_models_pytorch, which is one number for a batch."""

    def __init__(self, name: str, align_corners: bool, **options: Any):
        self.align_corners = align_corners
        self._loss = getattr(_smp_losses(), name)(mode="multiclass", ignore_index=_IGNORED, **options)

    def __call__(self, scores: Tensor, targets: Targets, kind: ScoreKind, *, is_final: bool) -> tuple[Tensor, Tensor]:
        """See `ScoreLoss`."""
        log_probs = upsampled_log_probabilities(scores, targets, kind, align_corners=self.align_corners)
        labels = targets.labels.masked_fill(~targets.valid, _IGNORED)
        total = self._loss(log_probs.float(), labels).sum()  # their softmax are the probabilities again
        return total, total.new_ones(())


_IGNORED = -1


@LOSSES.register("dice")
class Dice(_RegionLoss):
    """One minus the Dice score, averaged over the classes; of segmentation_models_pytorch.

    Args:
        smooth: added to both areas.
        align_corners: see `CrossEntropy`.
    """

    def __init__(self, *, smooth: float = 0.0, align_corners: bool = True):
        super().__init__("DiceLoss", align_corners, smooth=smooth)


@LOSSES.register("lovasz")
class Lovasz(_RegionLoss):
    """Lovász-Softmax (Berman et al., 2018), a surrogate of mean IoU; of segmentation_models_pytorch.

    Args:
        per_image: average over the images instead of taking the batch as one.
        align_corners: see `CrossEntropy`.
    """

    def __init__(self, *, per_image: bool = False, align_corners: bool = True):
        super().__init__("LovaszLoss", align_corners, per_image=per_image)


def _smp_losses() -> Any:
    try:
        from segmentation_models_pytorch import losses
    except ImportError as error:
        raise UserError(
            "the losses dice and lovasz are those of segmentation_models_pytorch; install it with: "
            'pip install -e ".[losses]"'
        ) from error
    return losses


def upsampled_log_probabilities(scores: Tensor, targets: Targets, kind: ScoreKind, *, align_corners: bool) -> Tensor:
    """Logarithms of the class probabilities at label size ``(B, K, H, W)``, in float32 at least."""
    resized = resize_bilinear(
        scores.to(torch.promote_types(scores.dtype, torch.float32)),
        targets.labels.shape[-2:],
        align_corners=align_corners,
    )
    return functional.log_probabilities(resized, kind)


def build_losses(
    terms: list[dict[str, Any]] | tuple[dict[str, Any], ...],
    *,
    align_corners: bool = True,
    backend: BackendName = "auto",
    average: Average = "valid",
) -> tuple[WeightedLoss, ...]:
    """Terms from tables.

    Args:
        terms: each with a ``NAME``, perhaps a ``WEIGHT``, and arguments of the loss of that name.
        align_corners, backend, average: for those losses that have them.

    Raises:
        UserError: there is no such loss, or it has no such argument.
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
