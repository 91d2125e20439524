"""Confusion counts, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ovenet.structures import EvalResult

_IGNORED = 255
_EXACT_FLOAT = 2**24  # float32 is exact up to here
_NUM_RISK_POINTS = 101


def confusion_counts(prediction: Tensor, labels: Tensor, num_classes: int, *, ignore_label: int) -> Tensor:
    """Confusion matrix.

    Args:
        prediction: train ids, integers of any shape.
        labels: train ids of the same shape.
        num_classes: ``K``.
        ignore_label: pixels to leave out.

    Returns:
        ``(K, K)`` int64 on the same device, rows are labels, columns predictions.
    """
    return confusion_tables([prediction], labels, num_classes, ignore_label=ignore_label)[0, 0]


def confusion_tables(
    predictions: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    ignore_label: int,
    bands: Tensor | None = None,
    num_bands: int = 1,
) -> Tensor:
    """`confusion_counts` of several predictions, by bands of pixels.

    Args:
        predictions: ``P`` maps of train ids, integers of one shape, on one device.
        labels: train ids of the same shape.
        num_classes: ``K``.
        ignore_label: pixels to leave out.
        bands: index of each pixel's band, uint8 of the same shape; None for one band.
        num_bands: ``D``.

    Returns:
        ``(P, D, K, K)`` int64 on the same device.
    """
    count = _count_on_cpu if labels.device.type == "cpu" and num_classes < _IGNORED else _count_on_device
    return count(predictions, labels, num_classes, ignore_label, bands, num_bands)


def _count_on_cpu(
    predictions: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    ignore_label: int,
    bands: Tensor | None,
    num_bands: int,
) -> Tensor:
    """By OpenCV's histogram, on all cores; values out of range are left out."""
    true = labels.to(torch.uint8)
    if ignore_label != _IGNORED:
        true[labels == ignore_label] = _IGNORED
    maps = [true.flatten()] if bands is None else [bands.flatten(), true.flatten()]
    sizes = [num_classes] * 2 if bands is None else [num_bands, num_classes, num_classes]
    ranges = [bound for size in sizes for bound in (0, size)]
    tables = torch.zeros((len(predictions), num_bands, num_classes, num_classes), dtype=torch.int64)
    for table, prediction in zip(tables, predictions, strict=True):
        channels = [x.numpy() for x in (*maps, prediction.to(torch.uint8).flatten())]
        table += torch.from_numpy(byte_histogram(channels, sizes, ranges)).view_as(table)
    return tables


def byte_histogram(channels: Sequence[np.ndarray], sizes: Sequence[int], ranges: Sequence[float]) -> np.ndarray:
    """Joint histogram of maps by OpenCV, on all cores; values out of range are left out.

    Args:
        channels: maps of one size, flattened, uint8.
        sizes: number of bins of each.
        ranges: first value, and the value after the last, of each in turn.

    Returns:
        int64 of shape `sizes`.
    """
    total = np.zeros(sizes, dtype=np.int64)
    for start in range(0, channels[0].size, _EXACT_FLOAT):  # the counts come as float32
        part = [x[start : start + _EXACT_FLOAT] for x in channels]
        total += cv2.calcHist(part, list(range(len(part))), None, sizes, ranges).reshape(sizes).astype(np.int64)
    return total


def _count_on_device(
    predictions: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    ignore_label: int,
    bands: Tensor | None,
    num_bands: int,
) -> Tensor:
    cells = labels.int() if bands is None else torch.add(labels.int(), bands, alpha=num_classes)
    cells = cells.masked_fill(labels == ignore_label, -1)
    length = (num_bands * num_classes + 1) * num_classes
    tables = []
    for prediction in predictions:
        index = torch.add(prediction, cells, alpha=num_classes).add_(num_classes)  # row 0 is left out
        tables.append(_count(index.flatten(), length)[num_classes:].view(num_bands, num_classes, num_classes))
    return torch.stack(tables)


def _count(index: Tensor, length: int) -> Tensor:
    """Number of times each integer below `length` occurs, int64; larger ones are left out."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=length)[:length]
    return sorted_counts(index, length)


def sorted_counts(index: Tensor, length: int) -> Tensor:
    """As `torch.bincount` of integers below `length`, but without waiting for the device."""
    ends = torch.arange(length + 1, dtype=index.dtype, device=index.device)
    return torch.searchsorted(index.sort().values, ends).diff()


def scores_from_counts(counts: Tensor, class_names: Sequence[str]) -> EvalResult:
    """Scores of one prediction.

    Args:
        counts: ``(K, K)`` from `confusion_counts`, summed over images.
        class_names: ``K`` names.

    Returns:
        The scores; the means leave out classes without a labelled pixel, and are NaN if there are none.
    """
    table = counts.cpu().numpy().astype(np.float64)
    right, labelled, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    present = labelled > 0
    iou = class_iou(table)
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


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU ``(K,)`` from a confusion matrix ``(K, K)`` with labels as rows; NaN for classes without a labelled pixel."""
    right, labelled = confusion.diagonal(), confusion.sum(axis=1)
    return ratio(right, labelled + confusion.sum(axis=0) - right, labelled > 0)


def ratio(numerator: np.ndarray, denominator: np.ndarray, is_defined: np.ndarray | None = None) -> np.ndarray:
    """Quotients of counts; NaN where the denominator is 0 or `is_defined` is False."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = np.where(denominator > 0, numerator / denominator, np.nan)
    return quotient if is_defined is None else np.where(is_defined, quotient, np.nan)


def mean_of_present(values: np.ndarray) -> float:
    """Mean over the classes ``(K,)`` that are not NaN; NaN if all are."""
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


def risk_curve(wrong: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Risk over coverage of selective prediction.

    Args:
        wrong: pixels that are wrong at each level of confidence, from the lowest to the highest.
        right: pixels that are right, likewise.

    Returns:
        Coverage: shares of the pixels kept, those of the highest confidence first; the share of them that is wrong;
        and the area under this curve. NaN where nothing was counted.
    """
    pixels = wrong + right
    total = pixels.sum()
    kept, wrong_kept = pixels[::-1].cumsum(), wrong[::-1].cumsum()
    is_point = pixels[::-1] > 0
    coverage, risk = kept[is_point] / max(total, 1), ratio(wrong_kept[is_point], kept[is_point])
    shown = np.linspace(0, 1, _NUM_RISK_POINTS)[1:]
    if not total:
        return shown, np.full_like(shown, np.nan), float("nan")
    # Pixels of one level are kept together, so that the risk is the level's for all of them.
    return shown, np.interp(shown, coverage, risk), float((risk * np.diff(coverage, prepend=0.0)).sum())
