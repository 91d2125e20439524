"""Counts of the values in a label file: ids or colours, their classes, and unknown values.

Shapes: ``H W`` size of the file, ``N`` different values in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ovenet.audit.edges import are_smoothed
from ovenet.data.info import Color
from ovenet.data.labels import LabelDecoder, color_codes, colors_of_codes, count_values
from ovenet.data.masks import Mask, count_plain_ids, read_mask

_NUM_ROWS = 16  # rows of a label in which smoothed edges are looked for


@dataclass(frozen=True)
class LabelCounts:
    """Counts of a label file's pixels.

    Attributes:
        id_pixels: pixels of each id; empty for a file that is read by its colours.
        class_pixels: pixels of each class, by train id.
        unknown_ids: ids that the dataset does not know.
        unknown_colors: pixels of each colour that the dataset does not know.
        num_snapped: pixels of no class that got the nearest class.
        num_transparent: pixels that are not opaque, but count by their colour or id.
        is_smoothed: whether edges run through the ids between those of both sides.
    """

    id_pixels: Mapping[int, int] = field(default_factory=dict)
    class_pixels: Mapping[int, int] = field(default_factory=dict)
    unknown_ids: tuple[int, ...] = ()
    unknown_colors: Mapping[Color, int] = field(default_factory=dict)
    num_snapped: int = 0
    num_transparent: int = 0
    is_smoothed: bool = False


@dataclass(frozen=True)
class LabelValues:
    """A label file, or its different values where their positions do not matter.

    Attributes:
        mask: the whole file, or its different values ``(1, N)``.
        numbers: pixels of each value ``(1, N)``; None for the whole file.
        rows: ``(R, W)`` some rows of a file of ids; None for a file of colours.
    """

    mask: Mask
    numbers: np.ndarray | None
    rows: np.ndarray | None


def read_values(path: Path, decoder: LabelDecoder) -> LabelValues:
    """Reads a label file as far as its counts require.

    Args:
        path: the file.
        decoder: of the dataset's labels.

    Raises:
        UserError: the file is missing, unreadable or damaged.
    """
    plain = None if decoder.info.snap else count_plain_ids(path, num_rows=_NUM_ROWS)
    if plain is not None:
        form, counts, some = plain
        return LabelValues(Mask(form, np.array([list(counts)], np.uint8)), np.array([list(counts.values())]), some)
    mask = read_mask(path)
    rows = mask.samples[:: -(-mask.samples.shape[0] // _NUM_ROWS)] if mask.samples.ndim == 2 else None
    if decoder.info.snap or mask.alpha is not None:
        return LabelValues(mask, None, rows)
    different, numbers = count_values(mask.samples if rows is not None else color_codes(mask.samples))
    if rows is None:
        different = np.array(colors_of_codes(different), np.uint8)
    return LabelValues(Mask(mask.form, different[None]), numbers[None], rows)


def count_label(values: LabelValues, path: Path, decoder: LabelDecoder) -> LabelCounts:
    """Counts the classes and the unknown values of a label file.

    Args:
        values: of the file.
        path: the file, for messages.
        decoder: of the dataset's labels.

    Raises:
        UserError: the file cannot be read as the dataset says, or is ambiguous.
    """
    mask, numbers = values.mask, values.numbers
    content = decoder.decode(mask, path)
    unknown = content.unknown

    def count(some: np.ndarray, where: np.ndarray) -> dict[int, int]:
        return _count(some[where], None if numbers is None else numbers[where])

    train_ids = count(content.train_ids, ~unknown)
    class_pixels = {k: n for k, n in train_ids.items() if 0 <= k < decoder.info.num_classes}
    if decoder.holds_colors(mask.form):
        by_code = count(color_codes(mask.colors(path)), unknown)
        unknown_colors = dict(zip(colors_of_codes(np.array(list(by_code), np.int64)), by_code.values(), strict=True))
        counts = LabelCounts({}, class_pixels, (), unknown_colors, content.num_snapped)
    else:
        id_pixels = count(mask.samples, np.ones_like(unknown))
        is_smoothed = values.rows is not None and are_smoothed(values.rows)
        unknown_ids = tuple(count(mask.samples, unknown))
        counts = LabelCounts(id_pixels, class_pixels, unknown_ids, {}, content.num_snapped, 0, is_smoothed)
    if mask.alpha is None:
        return counts
    is_decided = decoder.info.transparent is not None and decoder.holds_colors(mask.form)
    doubtful = (mask.alpha < 255) & ((mask.alpha > 0) if is_decided else True)
    return replace(counts, num_transparent=int(doubtful.sum()))


def _count(values: np.ndarray, numbers: np.ndarray | None) -> dict[int, int]:
    """The sum of the numbers of each value; None counts each value as one."""
    if numbers is None:
        values, numbers = count_values(values)
    sums: Counter[int] = Counter()
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        sums[value] += number
    return sums
