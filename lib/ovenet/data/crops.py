"""Crops of resized images at the cost of the crop.

Only the pixels of the crop are computed, on the sampling grid of resizing the whole image and then cropping it: images
agree with that within one grey level (both round), labels exactly.

Sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ovenet.structures import Size

_MAX_FILLED = 4  # channels that OpenCV fills borders of


@dataclass(frozen=True)
class ResizedCrop:
    """A crop of an image after resizing.

    Attributes:
        scaled_size: size of the whole image after resizing.
        top: first row of the crop there.
        left: first column of the crop there.
        size: of the crop; below and right of the image it is padded.
    """

    scaled_size: Size
    top: int
    left: int
    size: Size

    def of_image(self, image: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
        """The crop of an image, see `ovenet.data.transforms.resize_image`.

        Args:
            image: ``(H, W, C)`` uint8; only the needed rows and columns are read.
            fill: colour of the padding.

        Returns:
            ``(h, w, C)`` uint8.
        """
        rows, columns = self._inside()
        if image.shape[:2] == self.scaled_size:
            return self._pad(image[rows.start : rows.stop, columns.start : columns.stop], fill)
        low_y, weight_y = _linear_grid(rows, image.shape[0], self.scaled_size[0])
        low_x, weight_x = _linear_grid(columns, image.shape[1], self.scaled_size[1])
        first_x, end_x = low_x[0], min(low_x[-1] + 2, image.shape[1])
        image = image[:, first_x:end_x]
        by_row = _blend_rows(image, low_y, weight_y)
        by_column = _blend_rows(cv2.transpose(by_row), low_x - first_x, weight_x)
        return self._pad(cv2.transpose(by_column), fill)

    def of_labels(self, labels: np.ndarray, fill: int) -> np.ndarray:
        """The crop of a label map, see `ovenet.data.transforms.resize_labels`.

        Args:
            labels: ``(H, W)`` integers; only the needed rows are read.
            fill: label of the padding.

        Returns:
            ``(h, w)`` int16.
        """
        rows, columns = self._inside()
        row = _nearest_grid(rows, labels.shape[0], self.scaled_size[0])
        column = _nearest_grid(columns, labels.shape[1], self.scaled_size[1])
        window = labels[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
        window = window[row - row[0]].take(column - column[0], axis=1)
        return self._pad(window.astype(np.int16, copy=False), fill)

    def _inside(self) -> tuple[range, range]:
        """Rows and columns of the resized image inside the crop."""
        height, width = (
            min(length, whole - start)
            for length, whole, start in zip(self.size, self.scaled_size, (self.top, self.left), strict=True)
        )
        return range(self.top, self.top + height), range(self.left, self.left + width)

    def _pad(self, window: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        bottom, right = (whole - inside for whole, inside in zip(self.size, window.shape[:2], strict=True))
        if not (bottom or right):
            return window
        if window.ndim == 3 and window.shape[2] > _MAX_FILLED:
            out = np.full((*self.size, window.shape[2]), fill, window.dtype)
            out[: len(window), : window.shape[1]] = window
            return out
        return cv2.copyMakeBorder(window, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill)


def _linear_grid(out: range, in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the pixel before each position and weight of the pixel after it, as in OpenCV's INTER_LINEAR."""
    position = (np.arange(out.start, out.stop) + 0.5) * (in_size / out_size) - 0.5
    position = position.clip(0, in_size - 1)
    low = position.astype(np.int64)
    return low, position - low


def _nearest_grid(out: range, in_size: int, out_size: int) -> np.ndarray:
    """Index of the pixel nearest to each position, from OpenCV, whose versions differ where two are equally near."""
    pixels = np.arange(in_size, dtype=np.int32)[None]
    grid = cv2.resize(pixels, (out_size, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return grid[out.start : out.stop]


def _blend_rows(pixels: np.ndarray, low: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Row ``low`` and the next, mixed by the weight of the latter: ``(len(low), W, C)`` uint8."""
    # The spare pixel keeps the row stride from being a power of two, which makes transposing ten times slower.
    mixed = np.empty((len(low), pixels.shape[1] + 1, pixels.shape[2]), np.uint8)[:, :-1]
    first = int(low[0])
    rows = list(pixels[first : int(low[-1]) + 2])
    rows += rows[-1:]  # for the last row of the image, whose next row has weight 0
    for target, i, share in zip(mixed, (low - first).tolist(), weight.tolist(), strict=True):
        cv2.addWeighted(rows[i], 1.0 - share, rows[i + 1], share, 0.0, dst=target)  # numpy on whole arrays is slower
    return mixed
