"""The training loss: ``κ [L(S_i) + L(S_s)] + L(S_f) + λ L_F``, and the contrast of embeddings where a head has them.

Of a head with queries the loss of its masks and classes takes the place of ``κ L(S_i)``, or of ``L(S_f)`` in a model
without a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import probabilities, resize_bilinear
from ovenet.losses import functional
from ovenet.losses.contrast import PixelContrast
from ovenet.losses.queries import QueryLoss
from ovenet.losses.targets import Targets
from ovenet.losses.terms import CrossEntropy, WeightedLoss, losses_of_maps
from ovenet.structures import LossTerms, OVeNetOutput, ScoreKind

ConfidenceTarget = Literal["same_class", "better_scores"]
OffsetTarget = Literal["same_class", "right_pixel"]


class SegmentationCriterion(nn.Module):
    """Weights and adds the losses of all predictions of a model.

    Args:
        ignore_label: label of ignored pixels.
        class_weights: ``K`` factors, or None.
        output_weights: per score map, auxiliary first.
        losses: what `L` is made of, see `ovenet.losses.terms`; None is cross-entropy.
        initial_and_seed_weight: κ.
        confidence_weight: λ.
        confidence_target: what the confidence learns: that the seed has the pixel's class (``same_class``, the paper),
            or that the class is likelier at the seed than at the pixel (``better_scores``).
        offset_weight: of a loss of the offsets themselves; 0 is none, the paper.
        offset_target: where it draws seeds to: into the pixel's class (``same_class``, `functional.offset_loss`), or
            those of wrong pixels to a right one of their class (``right_pixel``, `functional.right_pixel_loss`).
        fusion_warmup: iterations over which the loss of ``S_f`` takes the place of that of ``S_i``; 0 is the paper.
        align_corners: convention of the upsampling to label size.
        contrast: loss of the pixel embeddings; None for none.
        contrast_weight: its factor.
        queries: loss of masks and their classes; None for a head that has none.
    """

    def __init__(
        self,
        *,
        ignore_label: int,
        class_weights: Sequence[float] | None = None,
        output_weights: Sequence[float] = (1.0,),
        losses: Sequence[WeightedLoss] | None = None,
        initial_and_seed_weight: float = 0.5,
        confidence_weight: float = 1.0,
        confidence_target: ConfidenceTarget = "same_class",
        offset_weight: float = 0.0,
        offset_target: OffsetTarget = "same_class",
        fusion_warmup: int = 0,
        align_corners: bool = True,
        contrast: PixelContrast | None = None,
        contrast_weight: float = 0.1,
        queries: QueryLoss | None = None,
    ):
        super().__init__()
        self.queries = queries
        self.contrast, self.contrast_weight = contrast, contrast_weight
        self.ignore_label = ignore_label
        self.output_weights = tuple(output_weights)
        self.register_buffer("_output_weights", torch.tensor(self.output_weights), persistent=False)
        default = WeightedLoss("cross_entropy", CrossEntropy(align_corners=align_corners))
        self.losses = (default,) if losses is None else tuple(losses)
        self.initial_and_seed_weight = initial_and_seed_weight
        self.confidence_weight = confidence_weight
        self.confidence_target: ConfidenceTarget = confidence_target
        self.offset_weight, self.fusion_warmup = offset_weight, fusion_warmup
        self.offset_target: OffsetTarget = offset_target
        self.align_corners = align_corners
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def settles_at(self) -> int:
        """The iteration from which on the loss no longer depends on it."""
        return max(self.fusion_warmup, 0 if self.contrast is None else self.contrast.start)

    def forward(self, output: OVeNetOutput, labels: Tensor, *, iteration: int | None = None) -> LossTerms:
        """Loss of one batch.

        Args:
            output: the model's prediction.
            labels: ``(B, H, W)`` train ids, integers.
            iteration: how many have been trained, for terms that begin later; None for enough.

        Raises:
            UserError: the model has another number of score maps than there are weights.
        """
        if len(output.fused) != len(self.output_weights):
            raise UserError(
                f"LOSS.BALANCE_WEIGHTS has {len(self.output_weights)} entries, the model {len(output.fused)} outputs"
            )
        labels = labels.long()
        dtype = torch.promote_types(output.fused[-1].dtype, torch.float32)
        targets = Targets.from_labels(
            labels, ignore_label=self.ignore_label, class_weights=self.class_weights, dtype=dtype
        )
        terms = {} if self.queries is None else self._of_queries(output, labels)
        total = sum(terms.values(), targets.weights.new_zeros(()))
        predictions = {"fused": output.fused}
        if self.queries is not None and not output.has_seed:
            del predictions["fused"]
        if output.has_seed:
            if self.queries is None:
                predictions["initial"] = output.initial
            predictions["seed"] = output.seed
        terms |= self._semantic(predictions, targets, output.score_kind)
        if output.has_seed:
            terms["confidence"] = self._confidence(output, targets, labels)
            total = total + self._warmed_up(terms, iteration)
            total = total + self.initial_and_seed_weight * sum(terms[name] for name in predictions if name != "fused")
            total = total + self.confidence_weight * terms["confidence"]
            if self.offset_weight:
                terms["offset"] = self._offset(output, labels)
                total = total + self.offset_weight * terms["offset"]
        elif "fused" in terms:
            total = total + terms["fused"]
        if self.contrast is not None and output.embedding is not None:
            terms["contrast"] = self.contrast(output.embedding, output.fused[-1], labels, iteration=iteration)
            total = total + self.contrast_weight * terms["contrast"]
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    def _of_queries(self, output: OVeNetOutput, labels: Tensor) -> dict[str, Tensor]:
        assert output.queries is not None, "a head predicts its queries while training alone"
        return self.queries(output.queries, labels)

    def _semantic(
        self, predictions: Mapping[str, Sequence[Tensor]], targets: Targets, kind: ScoreKind
    ) -> dict[str, Tensor]:
        """Loss of each prediction; their score maps go through a term together."""
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
        by_prediction = (by_map.view(-1, num_outputs) * self._output_weights).sum(dim=1)
        return dict(zip(predictions, by_prediction.unbind(), strict=True))

    def _warmed_up(self, terms: dict[str, Tensor], iteration: int | None) -> Tensor:
        """The loss of ``S_f``, in whose place that of ``S_i`` fades out during the warm-up."""
        if iteration is None or iteration >= self.fusion_warmup or "initial" not in terms:
            return terms["fused"]
        return torch.lerp(terms["initial"], terms["fused"], iteration / self.fusion_warmup)

    def _confidence(self, output: OVeNetOutput, targets: Targets, labels: Tensor) -> Tensor:
        size = labels.shape[-2:]
        confidence = resize_bilinear(output.confidence, size, align_corners=self.align_corners)
        if self.confidence_target == "better_scores":
            index = targets.labels.unsqueeze(1)
            with torch.no_grad():
                own, seed = (
                    probabilities(
                        resize_bilinear(x[-1], size, align_corners=self.align_corners), output.score_kind
                    ).gather(1, index)
                    for x in (output.initial, output.seed)
                )
            target = (seed > own).squeeze(1)
            return functional.mean(*functional.binary_cross_entropy(confidence.squeeze(1), target, targets.valid))
        offset = resize_bilinear(output.offset, size, align_corners=self.align_corners)
        return functional.mean(*functional.confidence_loss(confidence, labels, offset, ignore_label=self.ignore_label))

    def _offset(self, output: OVeNetOutput, labels: Tensor) -> Tensor:
        if self.offset_target == "right_pixel":
            parts = functional.right_pixel_loss(
                output.offset, output.initial[-1], labels, ignore_label=self.ignore_label
            )
            return functional.mean(*parts)
        num_classes = output.fused[-1].shape[1]
        return functional.mean(
            *functional.offset_loss(output.offset, labels, num_classes=num_classes, ignore_label=self.ignore_label)
        )
