"""Label files of ids that were scaled like photographs: edges get ids of other classes."""

from __future__ import annotations

import numpy as np

_MAX_WIDTH_PX = 2  # widest blend between two areas
_MIN_BLENDS, _MIN_DIFFERENT = 30, 3
_RARE, _NEARLY_ALL = 0.05, 0.8  # of the blends
_MIN_SHARE = 0.5  # of all edges; of drawn street scenes it is below 0.1, of noise 0.4


def are_smoothed(rows: np.ndarray) -> bool:
    """Whether most edges between areas with ids apart run through ids between, one or two pixels wide.

    Smoothing makes 7, 9, 11 of an edge between the ids 7 and 11, which goes unnoticed where 9 is a class too.

    Args:
        rows: ``(R, W)`` ids of some rows.
    """
    values, width = rows.ravel(), rows.shape[1]
    begins = np.ones(values.shape, bool)
    begins[1:] = values[1:] != values[:-1]
    begins[::width] = True
    places = np.flatnonzero(begins)
    if len(places) - len(rows) < _MIN_BLENDS:
        return False
    area, row = values[places].astype(np.int64), places // width
    lengths = np.diff(places, append=values.size)
    step, same_row = np.diff(area), row[1:] == row[:-1]
    is_blend = np.zeros(area.shape, bool)
    goes_on = same_row[:-1] & same_row[1:] & (step[:-1] * step[1:] > 0)
    is_blend[1:-1] = goes_on & (lengths[1:-1] <= _MAX_WIDTH_PX)
    is_sharp = same_row & (np.abs(step) >= 2) & ~is_blend[1:] & ~is_blend[:-1]
    num_blends = int(is_blend.sum())
    if num_blends < _MIN_BLENDS or len(np.unique(area[is_blend])) < _MIN_DIFFERENT:
        return False
    places = np.flatnonzero(is_blend)
    if _are_outlines(area[places], np.stack((area[places - 1], area[places + 1]))):
        return False
    return num_blends >= _MIN_SHARE * (num_blends + int(is_sharp.sum()))


def _are_outlines(values: np.ndarray, sides: np.ndarray) -> bool:
    """Whether each id is that of outlines around another id: only this id always lies beside it.

    Args:
        values: ``(B,)`` ids between others.
        sides: ``(2, B)`` the ids on both sides.
    """
    ids, ranks = np.unique(np.stack((values, *sides)), return_inverse=True)
    ranks = ranks.reshape(3, -1)
    numbers = np.bincount(ranks[0], minlength=len(ids))
    found = np.flatnonzero(numbers >= _RARE * len(values))  # where outlines meet, a few lie otherwise
    beside = [np.bincount(ranks[1:, ranks[0] == k].ravel(), minlength=len(ids)) for k in found]
    always = np.array([counts >= _NEARLY_ALL * numbers[k] for counts, k in zip(beside, found, strict=True)])
    return len(found) > 0 and bool((always & (always.sum(0) == 1)).any(1).all())
