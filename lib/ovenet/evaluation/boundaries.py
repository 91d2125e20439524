"""Contours and bands along class borders of labels and predictions.

Labels are ``(H, W)`` int16 train ids. Neighbourhoods are squares: "within d pixels" means that neither the row nor the
column differs by more than d, as in the published code of Boundary IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

IGNORE = -1  # pixels without a class
_FAR = np.iinfo(np.int16).max


def contour_mask(labels: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour, of eight, of another class; an ignored neighbour and the image's border make no contour.

    Args:
        labels: `IGNORE` where a pixel has no class.

    Returns:
        ``(H, W)`` bool.
    """
    is_class = labels != IGNORE
    kernel = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(np.where(is_class, labels, np.int16(_FAR)), kernel)
    return is_class & (lowest != cv2.dilate(labels, kernel))


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pixel to the nearest mask pixel, in pixels; far beyond the image if the mask is empty.

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
    """Band of distance of each pixel to the border of its class's mask (Cheng et al., "Boundary IoU", 2021).

    A mask ends where another class, an ignored pixel or the outside of the image begins.

    Args:
        labels: `IGNORE` where a pixel has no class.
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
    labels: np.ndarray,
    label_band: np.ndarray,
    label_counts: np.ndarray,
    prediction: np.ndarray,
    prediction_band: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Pixels of each class in the bands of both masks, of the label and of the prediction.

    Args:
        labels: `IGNORE` where a pixel is ignored.
        label_band: `inner_band` of the labels, for three widths.
        label_counts: `band_counts` of the labels and their band.
        prediction: `IGNORE` at the same pixels.
        prediction_band: `inner_band` of the prediction, for the same widths.
        num_classes: ``K``.

    Returns:
        ``(3, K, 3)`` int64: by width, class, and (both, label, prediction).
    """
    # A bin per class of the prediction, its band, and the band of both masks where the classes agree (4: they do not).
    both = np.where(labels == prediction, np.maximum(label_band, prediction_band), np.uint8(4))
    index = prediction.astype(np.int64)  # the type that bincount works on
    index += 1
    index *= 4
    index += prediction_band
    index *= 5
    index += both
    table = np.bincount(index.ravel(), minlength=20 * (num_classes + 1)).reshape(-1, 4, 5)[1:]
    in_both = table.sum(axis=1)[:, :3].cumsum(axis=1).T
    in_prediction = table.sum(axis=2)[:, :3].cumsum(axis=1).T
    return np.stack((in_both, label_counts, in_prediction), axis=-1)


def band_counts(labels: np.ndarray, band: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels ``(3, K)`` int64 of each class within each of three widths of its masks' ends, see `inner_band`."""
    index = labels.astype(np.int64)
    index += 1
    index *= 4
    index += band
    table = np.bincount(index.ravel(), minlength=4 * (num_classes + 1)).reshape(-1, 4)[1:, :3]
    return table.cumsum(axis=1).T


class Contours:
    """The contour of every class of a map, and the pixels near it.

    Args:
        labels: `IGNORE` where a pixel is ignored.
        mask: `contour_mask` of the labels.
        widths: distances that count as near, in pixels.
        num_classes: ``K``.

    Attributes:
        points: rows and columns of each class's contour pixels.
    """

    def __init__(self, labels: np.ndarray, mask: np.ndarray, widths: Sequence[int], num_classes: int):
        self.widths = widths
        self._size = labels.shape
        self._reach: dict[int, tuple[int, int, list[np.ndarray]]] = {}
        index = np.flatnonzero(mask)
        classes = labels.ravel()[index]
        order = np.argsort(classes, kind="stable")
        ends = np.searchsorted(classes[order], np.arange(num_classes + 1))
        rows, columns = np.divmod(index[order], labels.shape[1])
        self.points = [(rows[a:b], columns[a:b]) for a, b in pairwise(ends)]

    def prepare(self) -> None:
        """Computes the near pixels of every class, so that several threads can read them."""
        for k, (rows, _) in enumerate(self.points):
            if len(rows):
                self._near(k)

    def num_near(self, k: int, rows: np.ndarray, columns: np.ndarray) -> list[int]:
        """Number of the given pixels with a contour pixel of class `k` within each width."""
        top, left, near = self._near(k)
        height, width = near[0].shape
        rows, columns = rows - top, columns - left
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        at = rows[inside] * width + columns[inside]
        return [int(np.count_nonzero(mask.take(at))) for mask in near]

    def _near(self, k: int) -> tuple[int, int, list[np.ndarray]]:
        """Top, left and, by width, mask of the part of the map that can be near class `k`."""
        if k not in self._reach:
            rows, columns = self.points[k]
            margin = max(self.widths)
            top, left = (max(0, int(n.min()) - margin) for n in (rows, columns))
            bottom, right = (
                min(end, int(n.max()) + margin + 1) for n, end in zip((rows, columns), self._size, strict=True)
            )
            mask = np.zeros((bottom - top, right - left), np.uint8)
            mask[rows - top, columns - left] = 1
            near = [cv2.dilate(mask, np.ones((2 * width + 1,) * 2, np.uint8)) for width in self.widths]
            self._reach[k] = top, left, near
        return self._reach[k]


def contour_matches(true: Contours, predicted: Contours) -> np.ndarray:
    """Contour pixels of each class, and those with a contour pixel of the same class near them in the other map.

    Args:
        true: contours of the label.
        predicted: contours of the prediction, of the same widths.

    Returns:
        ``(len(widths), K, 4)`` int64: by width, class, and (predicted pixels that match, predicted pixels, label
        pixels that match, label pixels).
    """
    counts = np.zeros((len(true.widths), len(true.points), 4), np.int64)
    for k, (own, others) in enumerate(zip(true.points, predicted.points, strict=True)):
        counts[:, k, 1], counts[:, k, 3] = len(others[0]), len(own[0])
        if len(own[0]) and len(others[0]):
            counts[:, k, 0] = true.num_near(k, *others)
            counts[:, k, 2] = predicted.num_near(k, *own)
    return counts


def segment_map(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Connected regions of one class, pixels touching at a corner included.

    Args:
        labels: `IGNORE` where a pixel is ignored.
        num_classes: ``K``.

    Returns:
        ``(H, W)`` int32 numbers of the segments, 0 for ignored pixels; and the class ``(S,)`` of each
        number, `IGNORE` for 0.
    """
    segments = np.zeros(labels.shape, np.int32)
    classes = [IGNORE]
    for k in np.flatnonzero(np.bincount((labels + 1).ravel(), minlength=num_classes + 1)[1:]):
        mask = (labels == k).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = np.s_[top : top + height, left : left + width]
        num_labels, numbers = cv2.connectedComponents(np.ascontiguousarray(mask[box]), connectivity=8)
        is_new = numbers > 0
        segments[box][is_new] = numbers[is_new] + (len(classes) - 1)
        classes += [int(k)] * (num_labels - 1)
    return segments, np.array(classes)
