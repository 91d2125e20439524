"""Where labels and predictions change from class to class.

Labels are ``(H, W)`` int16 train ids. Neighbourhoods are squares: "within d pixels" means that neither the row nor the
column differs by more than d, as in the published code of Boundary IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

VOID = -1  # pixels that are no class
_FAR = np.iinfo(np.int16).max


def contour_mask(labels: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour, of eight, of another class; a void neighbour and the image's border make no contour.

    Args:
        labels: `VOID` where a pixel has no class.

    Returns:
        ``(H, W)`` bool.
    """
    is_class = labels != VOID
    kernel = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(np.where(is_class, labels, np.int16(_FAR)), kernel)
    return is_class & (lowest != cv2.dilate(labels, kernel))


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of every pixel to the nearest one of a mask, in pixels; far beyond the image if it is empty.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        ``(H, W)`` float32.
    """
    if not mask.any():
        return np.full(mask.shape, np.float32(np.iinfo(np.int32).max))
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def boundary_widths(size: tuple[int, int], ratios: Sequence[float]) -> tuple[int, ...]:
    """Widths in pixels, at least 1, from shares of the diagonal of an image ``(H, W)``."""
    return tuple(max(1, round(ratio * float(np.hypot(*size)))) for ratio in ratios)


def inner_band(labels: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """How near each pixel is to the end of its class's mask (Cheng et al., "Boundary IoU", 2021).

    A mask ends where another class, void or the outside of the image begins.

    Args:
        labels: `VOID` where a pixel has no class.
        widths: ascending, in pixels.

    Returns:
        ``(H, W)`` uint8: the number of widths that do not reach from the pixel to the end of its mask; it lies in the
        band of width ``widths[i]`` where this is at most i.
    """
    outside = np.zeros(labels.shape, np.uint8)
    for width in widths:
        kernel = np.ones((2 * width + 1,) * 2, np.uint8)
        lowest = cv2.erode(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=-_FAR)
        outside += lowest == cv2.dilate(labels, kernel)
    return outside


def inner_band_counts(
    labels: np.ndarray, label_band: np.ndarray, prediction: np.ndarray, prediction_band: np.ndarray, num_classes: int
) -> np.ndarray:
    """Pixels of each class in the bands of both masks, of the label's and of the prediction's.

    Args:
        labels: `VOID` where a pixel does not count.
        label_band: `inner_band` of them, for three widths.
        prediction: `VOID` at the same pixels.
        prediction_band: likewise.
        num_classes: ``K``.

    Returns:
        ``(3, K, 3)`` int64: by width, class, and (both, label, prediction).
    """
    both = np.where(labels == prediction, labels, np.int16(VOID))
    columns = (
        (both, np.maximum(label_band, prediction_band)),
        (labels, label_band),
        (prediction, prediction_band),
    )
    counts = [_counts_by_band(classes, band, num_classes) for classes, band in columns]
    return np.stack(counts, axis=-1)


def _counts_by_band(classes: np.ndarray, band: np.ndarray, num_classes: int) -> np.ndarray:
    index = classes.astype(np.int64)  # what bincount works on
    index += 1
    index *= 4
    index += band
    table = np.bincount(index.ravel(), minlength=4 * (num_classes + 1)).reshape(-1, 4)[1:, :3]
    return table.cumsum(axis=1).T


def contour_matches(
    labels: np.ndarray, label_contour: np.ndarray, prediction: np.ndarray, widths: Sequence[int], num_classes: int
) -> np.ndarray:
    """Contour pixels of each class, and those that find a contour pixel of their class in the other map.

    Args:
        labels: `VOID` where a pixel does not count.
        label_contour: `contour_mask` of them.
        prediction: `VOID` at the same pixels.
        widths: how far apart they may be, in pixels.
        num_classes: ``K``.

    Returns:
        ``(len(widths), K, 4)`` int64: by width, class, and (predicted pixels that match, predicted pixels, label
        pixels that match, label pixels).
    """
    counts = np.zeros((len(widths), num_classes, 4), np.int64)
    label_points = _points_by_class(labels, label_contour, num_classes)
    predicted_points = _points_by_class(prediction, contour_mask(prediction), num_classes)
    for k, (true, predicted) in enumerate(zip(label_points, predicted_points, strict=True)):
        counts[:, k, 1], counts[:, k, 3] = len(predicted[0]), len(true[0])
        if len(true[0]) and len(predicted[0]):
            counts[:, k, 0] = _num_near(predicted, true, widths)
            counts[:, k, 2] = _num_near(true, predicted, widths)
    return counts


def _points_by_class(labels: np.ndarray, mask: np.ndarray, num_classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the pixels of a mask, per class."""
    index = np.flatnonzero(mask)
    classes = labels.ravel()[index]
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], np.arange(num_classes + 1))
    rows, columns = np.divmod(index[order], labels.shape[1])
    return [(rows[a:b], columns[a:b]) for a, b in pairwise(ends)]


def _num_near(
    points: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], widths: Sequence[int]
) -> list[int]:
    """How many points have one of the others within each width."""
    top, left = (min(a.min(), b.min()) for a, b in zip(points, others, strict=True))
    bottom, right = (max(a.max(), b.max()) for a, b in zip(points, others, strict=True))
    near = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    near[others[0] - top, others[1] - left] = 1
    at = (points[0] - top) * near.shape[1] + (points[1] - left)
    counts = []
    for width in widths:
        counts.append(np.count_nonzero(cv2.dilate(near, np.ones((2 * width + 1,) * 2, np.uint8)).take(at)))
    return counts


def segment_map(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Connected regions of one class, pixels touching at a corner included.

    Args:
        labels: `VOID` where a pixel does not count.
        num_classes: ``K``.

    Returns:
        ``(H, W)`` int32 numbers of the segments, 0 for void; and the class ``(S,)`` of each number, `VOID` for 0.
    """
    segments = np.zeros(labels.shape, np.int32)
    classes = [VOID]
    for k in np.flatnonzero(np.bincount((labels + 1).ravel(), minlength=num_classes + 1)[1:]):
        mask = (labels == k).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = np.s_[top : top + height, left : left + width]
        num_labels, numbers = cv2.connectedComponents(np.ascontiguousarray(mask[box]), connectivity=8)
        is_new = numbers > 0
        segments[box][is_new] = numbers[is_new] + (len(classes) - 1)
        classes += [int(k)] * (num_labels - 1)
    return segments, np.array(classes)
