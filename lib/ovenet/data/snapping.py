"""Gives a class to pixels of a mask that were changed by smoothing or JPEG.

Shapes: ``H W`` of the mask, ``C`` channels (1 for ids, 3 for colours), ``N`` values of classes, ``R`` pixels without
a class, ``U`` different values among these.
"""

from __future__ import annotations

import cv2
import numpy as np

REACH_PX = 4  # largest distance from a blended pixel to its classes
LOSSY_TOLERANCE = 32  # levels per channel, by which JPEG may change a uniform area
MAX_SHARE = 0.25  # largest share of the pixels that may be edges
MANY_VALUES = 64  # more different values on more than `MAX_SHARE` of the pixels are a photograph
# Largest distance of a blend from the straight line between the values of two classes, by channels. Blending in linear
# light bows the line between red and blue by 86, and the even blend of three classes is 104 from each line.
TOLERANCE = {1: 16.0, 3: 110.0}
ROUNDED = 3.0  # the same for blends of the stored values, which are only rounded


def snap(
    values: np.ndarray,
    index: np.ndarray,
    known: np.ndarray,
    unknown: np.ndarray,
    choices: np.ndarray,
    *,
    is_lossy: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Gives pixels of unknown values the nearest known value.

    An edge pixel gets the nearest of the values within `REACH_PX` where there are two or more, so that the edge between
    black and white never becomes grey; where there is one, as beside a thin line, the nearest of all values. A pixel
    far from all values, no blend of one nearby with any other, or of a value that covers 3 x 3 pixels somewhere, stays
    unknown: it is a forgotten class.

    Args:
        values: ``(H, W, C)`` uint8.
        index: ``(H, W)`` index into `choices`, where `known`.
        known: ``(H, W)`` bool.
        unknown: ``(H, W)`` bool; pixels that are neither known nor unknown are ignored.
        choices: ``(N, C)`` values of classes and of ignored pixels.
        is_lossy: JPEG or the like: values within `LOSSY_TOLERANCE` of a choice get that choice, anywhere in the mask.

    Returns:
        The new `index` and `unknown`.
    """
    index, known, unknown = index.copy(), known.copy(), unknown.copy()
    rest = np.flatnonzero(unknown)
    codes = np.full(unknown.shape, -1, np.int32)
    codes[unknown] = (values[unknown].astype(np.int32) << 8 * np.arange(values.shape[-1], dtype=np.int32)).sum(-1)
    found, which = np.unique(codes[unknown], return_inverse=True)
    found_values = (found[:, None] >> 8 * np.arange(values.shape[-1]) & 255).astype(np.float32)  # (U, C)
    offsets = found_values[:, None] - choices.astype(np.float32)  # (U, N, C)
    distances = np.linalg.norm(offsets, axis=2)

    def settle(some: np.ndarray, chosen: np.ndarray) -> None:
        index.ravel()[some], known.ravel()[some], unknown.ravel()[some] = chosen, True, False

    if is_lossy:
        nearest = distances.argmin(1)
        is_clear = (np.abs(offsets[np.arange(len(found)), nearest]).max(1) <= LOSSY_TOLERANCE)[which]
        settle(rest[is_clear], nearest[which[is_clear]])
        rest, which = rest[~is_clear], which[~is_clear]
    elif len(rest):
        is_even = np.isin(found, even_values(codes, np.append(found, -1)))[which]
        rest, which = rest[~is_even], which[~is_even]
    if len(rest) == 0 or len(rest) > MAX_SHARE * unknown.size:
        return index, unknown
    near = near_choices(index, known, rest, len(choices))  # (R, N)
    explained = near
    if not is_lossy:
        tolerance = TOLERANCE[values.shape[-1]]
        explained = near & is_blend(found_values, choices, np.flatnonzero(near.any(0)), tolerance)[which]
    several = near.sum(1, keepdims=True) >= 2
    nearest = np.where(near | ~several, distances[which], np.inf).argmin(1)
    is_explained = explained.any(1)
    settle(rest[is_explained], nearest[is_explained])
    return index, unknown


def near_choices(
    index: np.ndarray, known: np.ndarray, rest: np.ndarray, num_choices: int, *, reach: int = REACH_PX
) -> np.ndarray:
    """Whether each value lies within `reach` of the pixels with the flat indices `rest`; ``(R, N)`` bool."""
    near = np.zeros((len(rest), num_choices), bool)
    window = np.ones((2 * reach + 1,) * 2, np.uint8)
    for n in np.unique(index[known]):
        near[:, n] = cv2.dilate(((index == n) & known).astype(np.uint8), window).ravel()[rest] > 0
    return near


def is_blend(values: np.ndarray, choices: np.ndarray, present: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether values may be blends of two others.

    Args:
        values: ``(U, C)`` float32.
        choices: ``(N, C)`` values that may be blended.
        present: indices of the choices that may be one of the two.
        tolerance: largest distance from the line between the two, in levels.

    Returns:
        ``(U, N)`` whether a value lies near the line from a choice to any other; False for choices not `present`.
    """
    blends = np.zeros((len(values), len(choices)), bool)
    for n in present:
        blends[:, n] = (on_line(values, choices[n], choices)[1] <= tolerance).any(1)
    return blends


def on_line(values: np.ndarray, start: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of values ``(U, C)`` relative to the straight lines from `start` ``(C,)`` to `ends` ``(N, C)``.

    Returns:
        ``(U, N)`` each: the position along each line, 0 at its start and 1 at its end, and the distance from it.
    """
    line = ends.astype(np.float32) - start  # (N, C)
    from_start = values - start.astype(np.float32)  # (U, C)
    along = np.clip(from_start @ line.T / np.maximum((line**2).sum(1), 1), 0, 1)
    return along, np.linalg.norm(from_start[:, None] - along[..., None] * line, axis=2)


def even_values(codes: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The values among `found` that cover 3 x 3 pixels somewhere in a mask ``(H, W)``."""
    for step in (8, 1):  # every eighth row shows most of them
        above, centre, below = (codes[start : len(codes) - 2 + start : step] for start in range(3))
        same = (above == centre) & (centre == below)
        same = same[:, 1:-1] & same[:, :-2] & same[:, 2:]
        middle = centre[:, 1:-1]
        even = np.unique(middle[same & (middle == centre[:, :-2]) & (middle == centre[:, 2:])])
        if len(even) == len(found):
            break
    return even
