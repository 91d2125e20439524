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
    return counts_by_cell(prediction, label_cells(labels, num_classes, ignore_label=ignore_label), num_classes, 1)[0]


def label_cells(labels: Tensor, num_classes: int, *, ignore_label: int, bands: Tensor | None = None) -> Tensor:
    """Number of each pixel's row among the rows of the confusion tables of all bands, for `counts_by_cell`.

    Args:
        labels: train ids, integers of any shape.
        num_classes: ``K``.
        ignore_label: pixels to leave out.
        bands: numbers from 0 of the same shape, by which pixels are counted apart; None for one band.

    Returns:
        int64 of the same shape, -1 for pixels to leave out.
    """
    cells = labels.long() if bands is None else torch.add(labels.long(), bands, alpha=num_classes)
    return cells.masked_fill(labels == ignore_label, -1)


def counts_by_cell(prediction: Tensor, cells: Tensor, num_classes: int, num_bands: int) -> Tensor:
    """Confusion tables ``(D, K, K)`` int64 of a prediction, integers of the shape of `cells` (see `label_cells`)."""
    index = torch.add(prediction, cells, alpha=num_classes).add_(num_classes)  # row 0 is left out
    counts = torch.bincount(index.flatten(), minlength=(num_bands * num_classes + 1) * num_classes)
    return counts[num_classes:].view(num_bands, num_classes, num_classes)


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
