"""Areas as spans of pixels: polygons and run lengths cover the same pixels as in pycocotools.

Spans are ``(N, 2)`` int64, sorted and disjoint: indices of the first pixel and of the one after the last, counted down
the columns of an image (``x * H + y``) like COCO's run lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ovenet.errors import UserError
from ovenet.structures import Size

_UPSAMPLING = 5  # pycocotools draws outlines on a grid of a fifth of a pixel
_CENTER = 2  # of a pixel's five cells
_FAR = 1e12  # pixels; corners beyond are moved here, where floats are still exact
_MAX_CROSSED = 2000  # corners; each edge is compared with each
_MAX_CHARACTERS = 7  # of one compressed length: 35 bits
_FIRST_CHARACTER = 48  # "0"


def polygon_spans(ring: np.ndarray, size: Size) -> np.ndarray:
    """The pixels of a polygon, as in ``pycocotools.mask.frPyObjects`` (``rleFrPoly`` in its maskApi.c).

    The outline runs over the cells of a grid of a fifth of a pixel. Where it crosses the middle of a column of pixels,
    the column changes between outside and inside.

    Args:
        ring: ``(N, 2)`` finite ``(x, y)`` in pixels; may leave the image.
        size: of the image.
    """
    height, width = size
    corners = np.trunc(_UPSAMPLING * np.clip(ring, -_FAR, _FAR) + 0.5)
    before, after = corners, np.roll(corners, -1, axis=0)
    is_steep = np.abs(after - before)[:, 0] < np.abs(after - before)[:, 1]
    along = is_steep.astype(int)  # the axis on which the cells of an edge are counted
    edges = np.arange(len(ring))
    is_backward = before[edges, along] > after[edges, along]
    begin, end = (np.where(is_backward[:, None], *pair) for pair in ((after, before), (before, after)))
    length = (end - begin)[edges, along]
    slope = (end - begin)[edges, 1 - along] / np.where(length == 0, 1, length)

    left, right = np.minimum(before, after)[:, 0], np.maximum(before, after)[:, 0]
    first = np.maximum(np.ceil((left - _CENTER) / _UPSAMPLING), 0).astype(np.int64)
    last = np.minimum(np.floor((right - _CENTER - 1) / _UPSAMPLING), width - 1).astype(np.int64)
    num = np.maximum(last - first + 1, 0)
    edge = np.repeat(edges, num)
    column = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num - first, num)
    (x, y), slope, is_steep = begin[edge].T, slope[edge], is_steep[edge]

    cell = _UPSAMPLING * column + _CENTER  # the crossing lies between it and the next
    flat = [np.trunc(y + slope * (cell + one - x) + 0.5) for one in (0, 1)]
    steep = y + _last_before(x, slope, cell + 1) if is_steep.any() else y
    row = (np.where(is_steep, steep, np.minimum(*flat)) + _CENTER) // _UPSAMPLING
    crossings = np.sort(column * height + np.clip(row, 0, height).astype(np.int64)).reshape(-1, 2)
    return crossings[crossings[:, 0] < crossings[:, 1]]


def _last_before(x: np.ndarray, slope: np.ndarray, border: np.ndarray) -> np.ndarray:
    """The last step before steep edges cross a border of cells.

    The quotient may be off by rounding; the sum of `x` and the steps decides, as pycocotools computes it.
    """
    guess = np.floor((border - 0.5 - x) / np.where(slope == 0, 1, slope)) - 1
    steps = (guess + one for one in range(3))
    return guess - 1 + sum((x + slope * step + 0.5 >= border) != (slope > 0) for step in steps)


def crosses_itself(ring: np.ndarray) -> bool:
    """Whether two edges of a polygon ``(N, 2)`` cross; regions that it encloses twice are not part of its area."""
    if not 4 <= len(ring) <= _MAX_CROSSED:
        return False
    along, apart = np.roll(ring, -1, axis=0) - ring, ring[None] - ring[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # corners may lie anywhere
        side = along[:, :1] * apart[..., 1] - along[:, 1:] * apart[..., 0]  # the side of each edge of each corner
    side = np.sign(side)
    ends_differ = side * np.roll(side, -1, axis=1) < 0
    return bool((ends_differ & ends_differ.T).any())


def has_ring_in_ring(rings: Sequence[np.ndarray]) -> bool:
    """Whether all corners of a polygon ``(N, 2)`` lie inside another; the union of both is the outer one."""
    return any(
        (inner.min(0) > outer.min(0)).all() and (inner.max(0) < outer.max(0)).all() and _are_inside(inner, outer)
        for inner in rings
        for outer in rings
    )


def _are_inside(points: np.ndarray, ring: np.ndarray) -> bool:
    """Whether a line from each of the points to the right crosses the outline an odd number of times."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    for x, y in points:
        crossing = (y0 <= y) != (y1 <= y)
        at = x0[crossing] + (y - y0[crossing]) / (y1 - y0)[crossing] * (x1 - x0)[crossing]
        if (at > x).sum() % 2 == 0:
            return False
    return True


def run_spans(segmentation: Any) -> tuple[Size, np.ndarray]:
    """The size of an image and the pixels of COCO's run lengths, compressed or not.

    Args:
        segmentation: ``{"size": [H, W], "counts": …}``, as COCO's files have it.

    Raises:
        UserError: it is something else, or the lengths do not make up the image.
    """
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not (isinstance(size, Sequence) and len(size) == 2 and all(type(one) is int and one > 0 for one in size)):
        raise UserError(f"the run lengths have the size {size!r}; expected [height, width]")
    counts = segmentation.get("counts")
    lengths = _decompressed(counts) if isinstance(counts, str) else _whole(counts)
    num_pixels = size[0] * size[1]
    bad = lengths[(lengths < 0) | (lengths > num_pixels)]
    if bad.size or lengths.sum() != num_pixels:
        what = f"one of {bad[0]}" if bad.size else f"{lengths.sum()} pixels in all"
        raise UserError(f"the run lengths do not make up {size[0]} x {size[1]} pixels ({what}); export the file again")
    ends = np.cumsum(lengths)[: len(lengths) // 2 * 2].reshape(-1, 2)
    return (size[0], size[1]), ends[ends[:, 0] < ends[:, 1]]


def _whole(counts: Any) -> np.ndarray:
    if not (isinstance(counts, list) and all(type(one) in (int, float) and one == one // 1 for one in counts)):
        raise UserError("the run lengths are no integers; export the file again")
    try:
        return np.array(counts, dtype=object).astype(np.int64)
    except OverflowError:
        raise UserError("a run length has more than 63 bits; export the file again") from None


def _decompressed(text: str) -> np.ndarray:
    """COCO's compressed run lengths: 5 bits per character, lowest first; the sixth bit says that more follow, and the
    highest bit of the last is the sign. From the fourth number on they are differences to the last but one."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if codes.size and (codes.min() < 0 or codes.max() > 63):
        raise UserError("the compressed run lengths hold a character that stands for nothing; export the file again")
    ends = np.flatnonzero(codes & 32 == 0)
    if codes.size and (not ends.size or ends[-1] != codes.size - 1):
        raise UserError("the compressed run lengths are cut off; export the file again")
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    num = ends - starts + 1
    if num.size and num.max() > _MAX_CHARACTERS:
        raise UserError("a compressed run length has more than 32 bits; export the file again")
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, num))
    numbers = np.add.reduceat((codes & 31) << shift, starts) if num.size else np.zeros(0, np.int64)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * num, 0)
    for chain in (slice(1, None, 2), slice(2, None, 2)):
        numbers[chain] = np.cumsum(numbers[chain])
    return numbers


def mask_spans(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask ``(H, W)`` bool."""
    return np.flatnonzero(np.diff(mask.ravel(order="F").astype(np.int8), prepend=0, append=0)).reshape(-1, 2)


def join(spans: Sequence[np.ndarray]) -> np.ndarray:
    """The union of several areas."""
    if len(spans) == 1:
        return spans[0]
    borders = np.concatenate([np.zeros(0, np.int64), *(one.ravel() for one in spans)])
    steps = np.tile([1, -1], len(borders) // 2)
    order = np.lexsort((-steps, borders))
    borders, depth = borders[order], np.cumsum(steps[order])
    is_border = (depth == 0) | ((depth == 1) & (steps[order] == 1))
    return borders[is_border].reshape(-1, 2)


def resize(spans: np.ndarray, size: Size, new_size: Size) -> np.ndarray:
    """The area in an image of another size, nearest neighbour; no mask of the old size is made."""
    y, x = ((np.arange(new) + 0.5) * old / new for old, new in zip(size, new_size, strict=True))
    pixels = x.astype(np.int64)[None] * size[0] + y.astype(np.int64)[:, None]
    return mask_spans(np.searchsorted(spans.ravel(), pixels, side="right") % 2 == 1)


def count_pixels(spans: np.ndarray) -> int:
    """The number of pixels of an area."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def cover(spans: np.ndarray) -> tuple[slice, np.ndarray]:
    """The pixels of an image from the first to the last of an area, and which of them are covered."""
    first, last = (int(spans[0, 0]), int(spans[-1, 1])) if len(spans) else (0, 0)
    steps = np.zeros(last - first + 1, np.int8)
    steps[spans[:, 0] - first] += 1
    steps[spans[:, 1] - first] -= 1
    return slice(first, last), np.cumsum(steps[:-1], dtype=np.int8).view(bool)


def fill(spans: np.ndarray, size: Size) -> np.ndarray:
    """The mask ``(H, W)`` bool."""
    flat = np.zeros(size[0] * size[1], bool)
    where, covered = cover(spans)
    flat[where] = covered
    return flat.reshape(size[::-1]).T
