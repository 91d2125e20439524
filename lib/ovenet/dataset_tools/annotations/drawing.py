"""Masks from the shapes of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovenet.dataset_tools.annotations.frames import Frame
from ovenet.dataset_tools.annotations.shapes import Remarks, Shape
from ovenet.dataset_tools.annotations.spans import count_pixels, cover
from ovenet.dataset_tools.annotations.table import ClassTable

_NO_SHAPE = -1


def draw(
    shapes: Sequence[Shape], frame: Frame, table: ClassTable, remarks: Remarks, *, smaller_above: bool
) -> tuple[np.ndarray, int, int]:
    """The mask of an image.

    Args:
        shapes: of the image, those below first.
        frame: its size.
        table: ids of the classes.
        remarks: gets the shapes that leave the image, or have no pixel.
        smaller_above: order them by their numbers of pixels instead.

    Returns:
        Ids ``(H, W)`` uint8, how many pixels have a shape, and how many have shapes of several classes.
    """
    drawn = [(shape, shape.draw(frame.named, frame.size)) for shape in shapes]
    for shape, spans in drawn:
        if not len(spans):
            remarks.add("shapes that cover no pixel of their image", shape.where)
        elif shape.leaves(frame.named):
            remarks.add("shapes that reach out of their image, cut off there", shape.where)
    if smaller_above:
        drawn.sort(key=lambda pair: -count_pixels(pair[1]))
    labels = np.full(frame.size[0] * frame.size[1], _NO_SHAPE, np.int16)
    is_contested = np.zeros(labels.shape, bool)
    for shape, spans in drawn:
        where, covered = cover(spans)
        below, number = labels[where], table.ids[shape.name]
        is_contested[where] |= covered & (below != _NO_SHAPE) & (below != number)
        below[covered] = number
    num_labelled = int((labels != _NO_SHAPE).sum())
    labels[labels == _NO_SHAPE] = table.unlabelled
    mask = labels.astype(np.uint8).reshape(frame.size[::-1]).T
    return np.ascontiguousarray(mask), num_labelled, int(is_contested.sum())
