"""The training loss: ``κ [L(S_i) + L(S_s)] + L(S_f) + λ L_F``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovenet.geometry import resize_bilinear
from ovenet.losses import functional
from ovenet.structures import LossTerms, OVeNetOutput, ScoreKind


@dataclass(frozen=True)
class OhemSettings:
    """Online hard example mining, see `functional.ohem_cross_entropy`."""

    threshold: float
    min_kept: int


class SegmentationCriterion(nn.Module):
    """Weights and adds the losses of all predictions of a model.

    Args:
        ignore_label: label of the pixels that do not count.
        class_weights: ``K`` factors, or None.
        output_weights: per score map, auxiliary first.
        ohem: mining for the final map; the auxiliary one keeps plain cross-entropy. None for neither.
        initial_and_seed_weight: κ.
        confidence_weight: λ.
        align_corners: convention of the upsampling to label size.
    """

    def __init__(
        self,
        *,
        ignore_label: int,
        class_weights: Sequence[float] | None = None,
        output_weights: Sequence[float] = (1.0,),
        ohem: OhemSettings | None = None,
        initial_and_seed_weight: float = 0.5,
        confidence_weight: float = 1.0,
        align_corners: bool = True,
    ):
        super().__init__()
        self.ignore_label = ignore_label
        self.output_weights = tuple(output_weights)
        self.ohem = ohem
        self.initial_and_seed_weight = initial_and_seed_weight
        self.confidence_weight = confidence_weight
        self.align_corners = align_corners
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: OVeNetOutput, labels: Tensor) -> LossTerms:
        """Loss of one batch.

        Args:
            output: the model's prediction.
            labels: ``(B, H, W)`` int64 train ids.

        Raises:
            ValueError: the model has another number of score maps than there are weights.
        """
        if len(output.fused) != len(self.output_weights):
            raise ValueError(
                f"LOSS.BALANCE_WEIGHTS has {len(self.output_weights)} entries, the model {len(output.fused)} outputs"
            )
        fused = self._semantic(output.fused, labels, output.score_kind)
        if not output.has_seed:
            return LossTerms(fused, {"fused": fused.detach()})
        initial = self._semantic(output.initial, labels, output.score_kind)
        seed = self._semantic(output.seed, labels, output.score_kind)
        confidence = self._confidence(output, labels)
        total = self.initial_and_seed_weight * (initial + seed) + fused + self.confidence_weight * confidence
        terms = {"initial": initial, "seed": seed, "fused": fused, "confidence": confidence}
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    def _semantic(self, maps: Sequence[Tensor], labels: Tensor, kind: ScoreKind) -> Tensor:
        total = labels.new_zeros((), dtype=torch.float32)
        for index, (scores, weight) in enumerate(zip(maps, self.output_weights, strict=True)):
            is_final = index == len(maps) - 1
            total = total + weight * self._output_loss(scores, labels, kind, self.ohem if is_final else None)
        return total

    def _output_loss(self, scores: Tensor, labels: Tensor, kind: ScoreKind, ohem: OhemSettings | None) -> Tensor:
        scores = resize_bilinear(scores, labels.shape[-2:], align_corners=self.align_corners)
        log_probs = functional.log_probabilities(scores, kind)
        weights = None if self.class_weights is None else self.class_weights.to(log_probs.dtype)
        shared = {"ignore_label": self.ignore_label, "class_weights": weights}
        if ohem is None:
            return functional.mean(*functional.cross_entropy(log_probs, labels, **shared))
        kept = functional.ohem_cross_entropy(
            log_probs, labels, threshold=ohem.threshold, min_kept=ohem.min_kept, **shared
        )
        return functional.mean(*kept)

    def _confidence(self, output: OVeNetOutput, labels: Tensor) -> Tensor:
        size = labels.shape[-2:]
        offset = resize_bilinear(output.offset, size, align_corners=self.align_corners)
        confidence = resize_bilinear(output.confidence, size, align_corners=self.align_corners)
        return functional.mean(*functional.confidence_loss(confidence, labels, offset, ignore_label=self.ignore_label))
