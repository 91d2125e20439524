"""Scores of batches, for a training loop of one's own.

Shapes: ``B`` batch, ``K`` classes, ``H W`` label size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.data.description import Classes, describe_classes
from ovenet.evaluation.metrics import confusion_tables, scores_from_counts
from ovenet.geometry import at_least_float32, resize_bilinear, spatial_size
from ovenet.structures import EvalResult, OVeNetOutput
from ovenet.utils import distributed


class BatchEvaluator:
    """Counts batch by batch, and gives the scores of ``ovenet test`` by prediction: ``fused``, ``initial``, ``seed``.

        evaluator = ovenet.BatchEvaluator(["wall", "window"])
        evaluator.update(model(images), labels)
        evaluator.compute()["fused"].mean_iou

    Args:
        classes: see `ovenet.data.description.describe_classes`.
        ignore_label: label of pixels that do not count.
        align_corners: convention of resizing scores to the labels' size, the model's own.
    """

    def __init__(self, classes: Classes, *, ignore_label: int = 255, align_corners: bool = True):
        self.class_names = describe_classes(classes).class_names
        self.ignore_label = ignore_label
        self.align_corners = align_corners
        self.counts: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forgets all counts."""
        self.counts = {}

    @torch.no_grad()
    def update(self, output: OVeNetOutput, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            output: the model's prediction.
            labels: ``(B, H, W)`` class ids, on the same device.
        """
        maps = output.predictions()
        size = spatial_size(labels)
        predicted = [
            resize_bilinear(at_least_float32(scores), size, align_corners=self.align_corners).argmax(1)
            for scores in maps.values()
        ]
        tables = confusion_tables(predicted, labels, len(self.class_names), ignore_label=self.ignore_label)
        for name, table in zip(maps, tables[:, 0], strict=True):
            self.counts[name] = self.counts[name] + table if name in self.counts else table

    def compute(self) -> dict[str, EvalResult]:
        """The scores of all batches of all processes, by prediction name.

        Every process calls it, after at least one batch; a batch that two processes count counts twice.
        """
        return {
            name: scores_from_counts(distributed.all_reduce_sum(table.clone()), self.class_names)
            for name, table in self.counts.items()
        }
