"""What a label file holds, counted: ids or colours, the classes that they mean, and what they do not.

Shapes: ``H W`` size of the file, ``N`` different values in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from ovenet.data.info import Color
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import Mask, count_plain_ids, read_mask


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of a label file.

    Attributes:
        id_pixels: of each id; empty for a file that is read by its colours.
        class_pixels: of each class, by train id.
        unknown_ids: ids that the dataset does not know.
        unknown_colors: pixels of each colour that it does not know.
        num_snapped: pixels of no class that were given one.
        num_transparent: pixels that are not opaque, and whose colour or id counts.
    """

    id_pixels: Mapping[int, int] = field(default_factory=dict)
    class_pixels: Mapping[int, int] = field(default_factory=dict)
    unknown_ids: tuple[int, ...] = ()
    unknown_colors: Mapping[Color, int] = field(default_factory=dict)
    num_snapped: int = 0
    num_transparent: int = 0


def different_values(path: Path, decoder: LabelDecoder) -> tuple[Mask, np.ndarray | None]:
    """A label file, or what it comes down to where the places of its values do not matter.

    Args:
        path: the file.
        decoder: that would read it.

    Returns:
        A mask of ``(1, N)`` different values and how many pixels have each, ``(1, N)``; or the whole mask and None.

    Raises:
        UserError: the file is missing, unreadable or damaged.
    """
    plain = None if decoder.info.snap else count_plain_ids(path)
    if plain is not None:
        form, counts = plain
        samples = np.array([list(counts)], np.uint8)
        return Mask(form, samples), np.array([list(counts.values())])
    mask = read_mask(path)
    if decoder.info.snap or mask.alpha is not None or mask.samples.size == 0:
        return mask, None
    codes = mask.samples if mask.samples.ndim == 2 else _codes(mask.samples)
    counts = _count(codes)
    values = list(counts) if mask.samples.ndim == 2 else _colors(counts)
    return Mask(mask.form, np.array([values], mask.samples.dtype)), np.array([list(counts.values())])


def count_label(mask: Mask, numbers: np.ndarray | None, path: Path, decoder: LabelDecoder) -> LabelCounts:
    """Counts what a label file means.

    Args:
        mask: and
        numbers: as `different_values` gives them.
        path: the file, for messages.
        decoder: of the dataset's labels.

    Raises:
        UserError: the file cannot be read as the dataset says, or in two ways.
    """
    content = decoder.decode(mask, path)
    unknown = content.unknown

    def count(values: np.ndarray, where: np.ndarray) -> dict[int, int]:
        return _count(values[where], None if numbers is None else numbers[where])

    train_ids = count(content.train_ids, ~unknown)
    class_pixels = {k: n for k, n in train_ids.items() if 0 <= k < decoder.info.num_classes}
    if decoder.holds_colors(mask.form):
        by_code = count(_codes(mask.colors(path)), unknown) if unknown.any() else {}
        unknown_colors = dict(zip(_colors(by_code), by_code.values(), strict=True))
        counts = LabelCounts({}, class_pixels, (), unknown_colors, content.num_snapped)
    else:
        id_pixels = count(mask.samples, np.ones_like(unknown))
        counts = LabelCounts(id_pixels, class_pixels, tuple(count(mask.samples, unknown)), {}, content.num_snapped)
    if mask.alpha is None:
        return counts
    is_decided = decoder.info.transparent is not None and decoder.holds_colors(mask.form)
    doubtful = (mask.alpha < 255) & ((mask.alpha > 0) if is_decided else True)
    return replace(counts, num_transparent=int(doubtful.sum()))


def _count(values: np.ndarray, numbers: np.ndarray | None = None) -> dict[int, int]:
    """Sums the numbers of equal values, one each without; goes by runs, of which labels have few."""
    values = values.ravel()
    if not values.size:
        return {}
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, values.size]) if numbers is None else np.add.reduceat(numbers.ravel(), starts)
    found, which = np.unique(values[starts], return_inverse=True)
    sums = np.bincount(which, weights=lengths).astype(np.int64)
    return dict(zip(found.tolist(), sums.tolist(), strict=True))


def _codes(colors: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB to a number for each, ``(H, W)``."""
    return cv2.cvtColor(np.ascontiguousarray(colors), cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]


def _colors(codes: Iterable[int]) -> list[Color]:
    return [(code & 255, code >> 8 & 255, code >> 16 & 255) for code in codes]
