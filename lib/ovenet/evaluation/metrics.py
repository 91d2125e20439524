"""Confusion counts, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ovenet.structures import EvalResult


def confusion_counts(
    prediction: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_label: int,
    bands: Tensor | None = None,
    num_bands: int = 1,
) -> Tensor:
    """How often each class was predicted as each.

    Args:
        prediction: train ids, integers of any shape.
        labels: train ids of the same shape.
        num_classes: ``K``.
        ignore_label: pixels to leave out.
        bands: numbers from 0 of the same shape, by which pixels are counted apart; None for one band.
        num_bands: ``D``.

    Returns:
        ``(K, K)`` int64 on the same device, rows are labels, columns predictions; ``(D, K, K)`` with bands.
    """
    valid = labels != ignore_label
    index = labels[valid].long()
    if bands is not None:
        index += bands[valid].long() * num_classes
    index = index.mul_(num_classes).add_(prediction[valid].long())
    counts = torch.bincount(index, minlength=num_bands * num_classes**2)
    return counts.view(*([] if bands is None else [num_bands]), num_classes, num_classes)


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
    iou = ratio(right, labelled + predicted - right, present)
    accuracy = ratio(right, labelled, present)
    dice = ratio(2 * right, labelled + predicted, present)
    share = labelled / max(labelled.sum(), 1)
    return EvalResult(
        class_names=tuple(class_names),
        iou=iou,
        accuracy=accuracy,
        dice=dice,
        mean_iou=mean_of_present(iou),
        mean_accuracy=mean_of_present(accuracy),
        mean_dice=mean_of_present(dice),
        frequency_weighted_iou=float((share * iou)[present].sum()) if present.any() else float("nan"),
        pixel_accuracy=float(right.sum() / labelled.sum()) if present.any() else float("nan"),
        num_pixels=int(labelled.sum()),
        absent=tuple(name for name, there in zip(class_names, present, strict=True) if not there),
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray, is_defined: np.ndarray | None = None) -> np.ndarray:
    """Quotients of counts, NaN where the denominator is 0 or they are not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = np.where(denominator > 0, numerator / denominator, np.nan)
    return quotient if is_defined is None else np.where(is_defined, quotient, np.nan)


def mean_of_present(values: np.ndarray) -> float:
    """Mean over the classes ``(K,)`` that are not NaN; NaN if all are."""
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")
