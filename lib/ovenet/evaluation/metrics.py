"""Confusion counts, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ovenet.structures import EvalResult


def confusion_counts(prediction: Tensor, labels: Tensor, num_classes: int, *, ignore_label: int) -> Tensor:
    """How often each class was predicted as each.

    Args:
        prediction: train ids, integers of any shape.
        labels: train ids of the same shape.
        num_classes: ``K``.
        ignore_label: pixels to leave out.

    Returns:
        ``(K, K)`` int64 on the same device, rows are labels, columns predictions.
    """
    valid = labels != ignore_label
    index = labels[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def scores_from_counts(counts: Tensor, class_names: Sequence[str]) -> EvalResult:
    """Scores of one prediction.

    Args:
        counts: ``(K, K)`` from `confusion_counts`, summed over images.
        class_names: ``K`` names.

    Returns:
        The scores; the means leave out classes without a labelled pixel, and are NaN if there is none at all.
    """
    table = counts.cpu().numpy().astype(np.float64)
    right, labelled, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    present = labelled > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(present, right / (labelled + predicted - right), np.nan)
        accuracy = np.where(present, right / labelled, np.nan)
        pixel_accuracy = float(right.sum() / labelled.sum())
    any_present = bool(present.any())
    return EvalResult(
        class_names=tuple(class_names),
        iou=iou,
        accuracy=accuracy,
        mean_iou=float(iou[present].mean()) if any_present else float("nan"),
        mean_accuracy=float(accuracy[present].mean()) if any_present else float("nan"),
        pixel_accuracy=pixel_accuracy,
        num_pixels=int(labelled.sum()),
        absent=tuple(name for name, there in zip(class_names, present, strict=True) if not there),
    )
