"""The training loss of an OVeNet: ``κ [L(S_i) + L(S_s)] + L(S_f) + λ L_F``.

``L`` is the semantic loss of the initial scores ``S_i``, the seed's scores ``S_s`` and the fused scores ``S_f``: a
weighted sum of terms from `ovenet.losses.terms`, by default cross-entropy. ``L_F`` is the loss of the confidence. The
loss of a baseline is ``L(S_f)``. For heads with queries, the loss of their masks and classes replaces ``κ L(S_i)`` or,
in a baseline, ``L(S_f)``. Losses of the offsets and of pixel embeddings are optional. Borders and directions
have losses of their own, and the scores that they refine are trained as those of a baseline.
Predictions at points add their cross-entropy.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size, ``h w`` score map size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import lookup_labels, probabilities, resize_bilinear, spatial_size
from ovenet.losses import functional
from ovenet.losses.contrast import PixelContrast
from ovenet.losses.directions import direction_losses, interior_loss
from ovenet.losses.queries import QueryLoss
from ovenet.losses.settings import LossSettings
from ovenet.losses.targets import Targets
from ovenet.losses.terms import build_losses, losses_of_maps, settings_of_terms
from ovenet.structures import LossTerms, OVeNetOutput, PointOutput, ScoreKind

_DEFAULT = LossSettings()


class SegmentationCriterion(nn.Module):
    """Computes the loss of a model's prediction.

    Args:
        settings: terms and weights; the weights of maps and classes come as `output_weights` and `class_weights`.
        ignore_label: label of ignored pixels.
        class_weights: ``K`` weights; None for equal weights.
        output_weights: weight of each score map, auxiliary first, final last.
        align_corners: convention of the upsampling to label size.
        contrast: loss of the pixel embeddings; None for none.
        contrast_weight: its weight.
        queries: loss of masks and their classes; None for heads without queries.

    Raises:
        UserError: a term does not exist, or an argument of one is invalid.
    """

    class_weights: Tensor | None
    output_weights: Tensor

    def __init__(
        self,
        settings: LossSettings = _DEFAULT,
        *,
        ignore_label: int,
        class_weights: Sequence[float] | None = None,
        output_weights: Sequence[float] = (1.0,),
        align_corners: bool = True,
        contrast: PixelContrast | None = None,
        contrast_weight: float = 0.1,
        queries: QueryLoss | None = None,
    ):
        super().__init__()
        self.settings, self.ignore_label, self.align_corners = settings, ignore_label, align_corners
        self.queries = queries
        self.contrast, self.contrast_weight = contrast, contrast_weight
        self.losses = build_losses(
            settings_of_terms(settings), align_corners=align_corners, backend=settings.backend, average=settings.average
        )
        self.register_buffer("output_weights", torch.tensor(tuple(output_weights)), persistent=False)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def static_from_iteration(self) -> int:
        """First iteration from which the loss no longer changes with the iteration."""
        return 0 if self.contrast is None else self.contrast.start

    def forward(self, output: OVeNetOutput, labels: Tensor, *, iteration: int | None = None) -> LossTerms:
        """Loss of one batch.

        Args:
            output: the model's prediction.
            labels: ``(B, H, W)`` integer class ids.
            iteration: number of finished iterations; None for at least `static_from_iteration`.

        Raises:
            UserError: the model's number of score maps is not that of `output_weights`.
        """
        if len(output.fused) != len(self.output_weights):
            raise UserError(
                f"LOSS.BALANCE_WEIGHTS has {len(self.output_weights)} entries, but the model has {len(output.fused)} "
                "score maps; set one weight for each"
            )
        labels = labels.long()
        dtype = torch.promote_types(output.fused[-1].dtype, torch.float32)
        targets = Targets.from_labels(
            labels,
            ignore_label=self.ignore_label,
            class_weights=self.class_weights,
            dtype=dtype,
            boundary_weight=self.settings.boundary_weight,
            boundary_width=self.settings.boundary_width,
        )
        terms = self._query_terms(output, labels)
        total = sum(terms.values(), targets.weights.new_zeros(()))
        predictions = self._supervised_scores(output)
        terms |= self._semantic_terms(predictions, targets, output.score_kind)
        if output.has_seed:
            terms["confidence"] = self._confidence_loss(output, targets, labels)
            total = total + terms["fused"]
            total = total + self.settings.kappa * sum(terms[name] for name in predictions if name != "fused")
            total = total + self.settings.lambda_ * terms["confidence"]
            if self.settings.interior:
                terms["offset"] = self._interior_loss(output, labels)
                total = total + self.settings.interior * terms["offset"]
        elif "fused" in terms:
            total = total + terms["fused"]
        if output.directions is not None:
            learned = direction_losses(
                output.directions, labels, ignore_label=self.ignore_label, align_corners=self.align_corners
            )
            terms |= learned
            total = total + sum(learned.values())
        if output.points is not None:
            terms["points"] = self._point_loss(output.points, labels)
            total = total + terms["points"]
        if self.contrast is not None and output.embedding is not None:
            terms["contrast"] = self.contrast(output.embedding, output.fused[-1], labels, iteration=iteration)
            total = total + self.contrast_weight * terms["contrast"]
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    def _query_terms(self, output: OVeNetOutput, labels: Tensor) -> dict[str, Tensor]:
        """Losses of the query masks and their classes; empty for heads without queries."""
        if self.queries is None:
            return {}
        assert output.queries is not None, "heads predict queries only in training"
        return self.queries(output.queries, labels)

    def _supervised_scores(self, output: OVeNetOutput) -> dict[str, tuple[Tensor, ...]]:
        """Score maps supervised by ``L``, by prediction."""
        if not output.has_seed:
            return {} if self.queries is not None else {"fused": output.fused}
        initial = {} if self.queries is not None else {"initial": output.initial}
        return {"fused": output.fused, **initial, "seed": output.seed}

    def _semantic_terms(
        self, predictions: Mapping[str, Sequence[Tensor]], targets: Targets, kind: ScoreKind
    ) -> dict[str, Tensor]:
        """``L`` of each prediction; each term is computed for all score maps at once."""
        maps = [scores for prediction in predictions.values() for scores in prediction]
        if not maps:
            return {}
        if kind == "unnormalized":
            maps, kind = [probabilities(scores, kind) for scores in maps], "probabilities"
        num_outputs = len(self.output_weights)
        is_final = [index % num_outputs == num_outputs - 1 for index in range(len(maps))]
        by_map = targets.weights.new_zeros(len(maps))
        for term in self.losses:
            by_map = by_map + term.weight * functional.mean(*losses_of_maps(term.loss, maps, targets, kind, is_final))
        by_prediction = (by_map.view(-1, num_outputs) * self.output_weights).sum(dim=1)
        return dict(zip(predictions, by_prediction.unbind(), strict=True))

    def _confidence_loss(self, output: OVeNetOutput, targets: Targets, labels: Tensor) -> Tensor:
        """``L_F``."""
        assert output.confidence is not None
        assert output.offset is not None
        confidence = self._at_label_size(output.confidence, labels)
        if self.settings.confidence_target == "better_scores":
            index = targets.labels.unsqueeze(1)
            with torch.no_grad():
                own, seed = (
                    probabilities(self._at_label_size(maps[-1], labels), output.score_kind).gather(1, index)
                    for maps in (output.initial, output.seed)
                )
            target = (seed > own).squeeze(1)
            return functional.mean(*functional.binary_cross_entropy(confidence.squeeze(1), target, targets.valid))
        offset = self._at_label_size(output.offset, labels)
        return functional.mean(*functional.confidence_loss(confidence, labels, offset, ignore_label=self.ignore_label))

    def _interior_loss(self, output: OVeNetOutput, labels: Tensor) -> Tensor:
        """Loss of offsets that do not lead to the interior of the pixel's class."""
        assert output.offset is not None
        offset = self._at_label_size(output.offset, labels)
        return functional.mean(*interior_loss(offset, labels, ignore_label=self.ignore_label))

    def _point_loss(self, points: PointOutput, labels: Tensor) -> Tensor:
        """Cross-entropy at the points, each with the label of its nearest pixel."""
        labels = lookup_labels(labels, points.position.unsqueeze(-1), align_corners=self.align_corners)
        targets = Targets.from_labels(
            labels, ignore_label=self.ignore_label, class_weights=self.class_weights, dtype=points.logits.dtype
        )
        log_probs = functional.log_probabilities(points.logits.unsqueeze(-1), "logits")
        nll = functional.negative_log_likelihood(log_probs, targets)
        return functional.mean(*functional.cross_entropy(nll, targets))

    def _at_label_size(self, values: Tensor, labels: Tensor) -> Tensor:
        return resize_bilinear(values, spatial_size(labels), align_corners=self.align_corners)
