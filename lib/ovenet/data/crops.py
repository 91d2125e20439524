"""Windows of resized images, for the price of the window.

A crop of a resized image needs few of its pixels. They are computed alone, on the sampling grid of resizing first and
cropping then: images within one grey level of it (both round), labels exactly.

Sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class ResizedCrop:
    """A window of an image after resizing.

    Attributes:
        scaled_size: what the whole image would be resized to.
        top: first row of the window there.
        left: first column.
        size: of the window; what lies below or right of the image is padding.
    """

    scaled_size: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]

    def of_image(self, image: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
        """The window of an image, see `ovenet.data.transforms.resize_image`.

        Args:
            image: ``(H, W, 3)`` uint8; rows and columns that are not needed are not read.
            fill: colour of the padding.

        Returns:
            ``(h, w, 3)`` uint8.
        """
        rows, columns = self._inside()
        if image.shape[:2] == self.scaled_size:
            return self._padded(image[rows.start : rows.stop, columns.start : columns.stop], fill)
        low_y, weight_y = _linear_grid(rows, image.shape[0], self.scaled_size[0])
        low_x, weight_x = _linear_grid(columns, image.shape[1], self.scaled_size[1])
        first_x, end_x = low_x[0], min(low_x[-1] + 2, image.shape[1])
        image = image[:, first_x:end_x]
        by_row = _mixed_rows(image, low_y, weight_y)
        by_column = _mixed_rows(cv2.transpose(by_row), low_x - first_x, weight_x)
        return self._padded(cv2.transpose(by_column), fill)

    def of_labels(self, labels: np.ndarray, fill: int) -> np.ndarray:
        """The window of a label map, see `ovenet.data.transforms.resize_labels`.

        Args:
            labels: ``(H, W)`` integers; rows that are not needed are not read.
            fill: label of the padding.

        Returns:
            ``(h, w)`` int16.
        """
        rows, columns = self._inside()
        row = _nearest_grid(rows, labels.shape[0], self.scaled_size[0])
        column = _nearest_grid(columns, labels.shape[1], self.scaled_size[1])
        window = labels[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
        window = window[row - row[0]].take(column - column[0], axis=1)
        return self._padded(window.astype(np.int16, copy=False), fill)

    def _inside(self) -> tuple[range, range]:
        """Rows and columns of the resized image that the window shows."""
        height, width = (
            min(length, whole - start)
            for length, whole, start in zip(self.size, self.scaled_size, (self.top, self.left), strict=True)
        )
        return range(self.top, self.top + height), range(self.left, self.left + width)

    def _padded(self, window: np.ndarray, fill: int | tuple[int, int, int]) -> np.ndarray:
        bottom, right = (whole - inside for whole, inside in zip(self.size, window.shape[:2], strict=True))
        if not (bottom or right):
            return window
        return cv2.copyMakeBorder(window, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill)


def _linear_grid(out: range, in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before each position and the weight of the one after it, as OpenCV's INTER_LINEAR places them."""
    position = (np.arange(out.start, out.stop) + 0.5) * (in_size / out_size) - 0.5
    position = position.clip(0, in_size - 1)
    low = position.astype(np.int64)
    return low, position - low


def _nearest_grid(out: range, in_size: int, out_size: int) -> np.ndarray:
    """The pixel nearest to each position; OpenCV's versions differ where two are equally near, so it is asked."""
    pixels = np.arange(in_size, dtype=np.int32)[None]
    grid = cv2.resize(pixels, (out_size, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return grid[out.start : out.stop]


def _mixed_rows(pixels: np.ndarray, low: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Row ``low`` and the one after it, mixed by the weight of the latter: ``(len(low), W, C)`` uint8."""
    # The spare pixel keeps rows from lying a power of two apart, which makes transposing ten times slower.
    mixed = np.empty((len(low), pixels.shape[1] + 1, pixels.shape[2]), np.uint8)[:, :-1]
    first = int(low[0])
    rows = list(pixels[first : int(low[-1]) + 2])
    rows += rows[-1:]  # the last row has none after it, and gives it no weight
    for target, i, share in zip(mixed, (low - first).tolist(), weight.tolist(), strict=True):
        cv2.addWeighted(rows[i], 1.0 - share, rows[i + 1], share, 0.0, dst=target)  # whole arrays in numpy are slower
    return mixed
