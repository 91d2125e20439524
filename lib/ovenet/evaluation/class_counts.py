"""Counts of an image's class probabilities, from which their calibration follows.

Every fourth row is counted: networks give scores at a stride of about 4, from which all others are interpolated.

Shapes: ``P`` predictions, ``K`` classes, ``n`` rows of a band, ``W`` width, ``B`` bins of equal width.

Probabilities, squares and logarithms are counted as multiples of 2^-16, so that their sums are integers and do not
depend on the order: means are off by at most 2^-17 = 7.6e-6. A bin contains its lower end; the last one contains 1 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ovenet.evaluation.metrics import sorted_counts
from ovenet.inference.inferencer import ClassBand
from ovenet.inference.transfer import to_device

ROW_STRIDE = 4
NUM_BINS = 15  # as Guo et al. (2017) take
STEP_BITS, LEVEL_BITS = 16, 12
STEPS = 2**STEP_BITS
LEVELS = 2**LEVEL_BITS  # of the predicted class's probability, to rank pixels by it
LEAST_PROBABILITY = 1e-6  # whose logarithm is taken
PIXELS, PROBABILITY, RIGHT = range(3)  # columns of bins
TABLES = ("class_bins", "best_bins", "best_levels", "class_scores")

_SHIFT, _BITS = 128.0, 0x43000000  # the last bits of float32 from 128 on are 2^-16: adding 128 counts them
_ABOVE_FIRST = -(-STEPS // NUM_BINS)  # where the second bin begins
_PIXEL, _MAX_PIXELS = 2.0**34, 2**18  # weight of a pixel beside its steps, and pixels whose sum is exact in float64


class ImageClassCounts:
    """Counts of one image, band by band.

    Args:
        labels: ``(H, W)`` train ids; those that are no class are left out.
        names: names of the ``P`` predictions.
        num_classes: ``K``.
        ignore_label: label that is left out too.
        device: device of the bands.
    """

    def __init__(
        self, labels: np.ndarray, names: Sequence[str], num_classes: int, *, ignore_label: int, device: torch.device
    ):
        is_class = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
        dtype = np.uint8 if num_classes < 2**8 else np.int16
        labels = np.where(is_class, labels, num_classes)[::ROW_STRIDE].astype(dtype)
        self._labels = to_device(labels, device)
        self._names, self._num_classes = tuple(names), num_classes
        self._tables = empty_tables(len(names), num_classes, device)
        self._sums = torch.zeros((len(names), num_classes), dtype=torch.int64, device=device)
        self._lock = Lock()

    def add(self, band: ClassBand) -> None:
        """Counts a band, on a card without waiting for it; several threads may call this at once."""
        start = -(-band.rows.start // ROW_STRIDE) * ROW_STRIDE
        labels = self._labels[start // ROW_STRIDE : -(-band.rows.stop // ROW_STRIDE)]
        rows = slice(start - band.rows.start, None, ROW_STRIDE)
        for index, name in enumerate(self._names):
            maps = [of[name][rows] for of in (band.probabilities, band.labels, band.probability)]
            sums, tables = count_rows(maps[0].nan_to_num(0.0), maps[1], maps[2].nan_to_num(0.0), labels)
            with self._lock:
                self._sums[index] += sums
                for key, table in tables.items():
                    self._tables[key][index] += table

    def tables(self) -> dict[str, Tensor]:
        """The counts of all bands, see `empty_tables`."""
        bins = self._tables["class_bins"]
        pixels = self._tables["best_bins"][..., PIXELS].sum(dim=1, keepdim=True)  # (P, 1)
        of_class = _counts(self._labels.flatten(), self._num_classes)
        whole = torch.stack([x.expand_as(self._sums) for x in (pixels, self._sums, of_class)], dim=-1)  # (P, K, 3)
        bins[:, :, 0] = whole - bins[:, :, 1:].sum(dim=2)
        return self._tables


def empty_tables(num_predictions: int, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    """Zero counts, int64, by name.

    ``class_bins`` is ``(P, K, B, 3)`` by bins of each class's probability: `PIXELS`, the sum of their `PROBABILITY` in
    steps, and `RIGHT`, the pixels that are of the class. ``best_bins`` ``(P, B, 3)`` is the same of the predicted
    class. ``best_levels`` is ``(P, 2, LEVELS)`` wrong and right pixels by the probability of the predicted class, and
    ``class_scores`` ``(P, 3)`` the sums in steps of all classes' squared probabilities, of the negative logarithm of
    the probability of the pixel's class, and of this probability.
    """
    shapes = ((num_classes, NUM_BINS, 3), (NUM_BINS, 3), (2, LEVELS), (3,))
    return {
        name: torch.zeros((num_predictions, *shape), dtype=torch.int64, device=device)
        for name, shape in zip(TABLES, shapes, strict=True)
    }


def count_rows(shares: Tensor, predicted: Tensor, best: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The tables of one prediction in some rows.

    Args:
        shares: ``(n, K, W)`` probabilities, no NaN.
        predicted: ``(n, W)`` predicted train ids.
        best: ``(n, W)`` their probability.
        labels: ``(n, W)`` train ids, ``K`` where there is none.

    Returns:
        ``(K,)`` sums of all probabilities, in steps; and the tables, without the first bin of ``class_bins``.
    """
    num_classes = shares.shape[1]
    labels, best = labels.unsqueeze(1), best.unsqueeze(1)
    valid, is_right = labels < num_classes, labels == predicted.unsqueeze(1)
    of_best = _steps(best)
    right = _counts(_bins(of_best).where(is_right, NUM_BINS), NUM_BINS).unsqueeze(1)
    levels = (of_best >> (STEP_BITS - LEVEL_BITS)).clamp_(max=LEVELS - 1).add_(is_right, alpha=LEVELS)
    own = shares.gather(1, labels.clamp(max=num_classes - 1).long())  # probability of the pixel's class
    hits = labels.int().mul_(NUM_BINS).add_(_bins(_steps(own))).where(valid, num_classes * NUM_BINS)
    hits = _counts(hits, num_classes * NUM_BINS).view(num_classes, NUM_BINS, 1)
    squares = shares.square().sum(dim=1, keepdim=True)
    losses = own.where(valid, 1.0).clamp_(min=LEAST_PROBABILITY).log_().neg_()
    steps = _steps(shares * valid)
    bins_of = _sparse_bins if shares.device.type == "cpu" else _dense_bins
    return steps.sum(dim=(0, 2)), {
        "class_bins": torch.cat((bins_of(steps, _ABOVE_FIRST), hits), dim=2),
        "best_bins": torch.cat((bins_of(of_best.where(valid, -1), 0)[0], right), dim=1),
        "best_levels": _counts(levels.where(valid, 2 * LEVELS), 2 * LEVELS).view(2, LEVELS),
        "class_scores": torch.stack([_steps(x).sum() for x in (squares * valid, losses, own * valid)]),
    }


def _sparse_bins(steps: Tensor, least: int) -> Tensor:
    """Pixels and steps ``(C, B, 2)`` of the values ``(n, C, W)`` of at least `least` steps, which may be few."""
    _, num_maps, width = steps.shape
    values = steps.numpy().ravel()
    found = (values >= least).nonzero()[0]
    chosen = torch.from_numpy(values[found])
    cells = torch.from_numpy(found // width % num_maps).mul_(NUM_BINS).add_(_bins(chosen))
    total = torch.zeros((num_maps * NUM_BINS, 2), dtype=torch.int64)
    for part, weights in zip(cells.split(_MAX_PIXELS), chosen.split(_MAX_PIXELS), strict=True):
        sums = torch.bincount(part, weights=weights.double().add_(_PIXEL), minlength=len(total)).long()
        pixels = sums >> 34
        total += torch.stack((pixels, sums - (pixels << 34)), dim=-1)
    return total.view(num_maps, NUM_BINS, 2)


def _dense_bins(steps: Tensor, least: int) -> Tensor:
    """As `_sparse_bins`, without waiting for the device."""
    bins = _bins(steps).where(steps >= least, NUM_BINS).to(torch.uint8)
    chosen = (bins == number for number in range(NUM_BINS))
    return torch.stack([torch.stack((c.sum(dim=(0, 2)), (steps * c).sum(dim=(0, 2))), dim=-1) for c in chosen], dim=1)


def _steps(values: Tensor) -> Tensor:
    """Values from 0 to 127 as multiples of 2^-16, int32."""
    return values.add(_SHIFT).view(torch.int32).sub_(_BITS)


def _bins(steps: Tensor) -> Tensor:
    """The bin of each probability."""
    return (steps * NUM_BINS).bitwise_right_shift_(STEP_BITS).clamp_(max=NUM_BINS - 1)


def _counts(cells: Tensor, length: int) -> Tensor:
    """Number of times each integer below `length` occurs, ``(length,)``; larger ones are left out."""
    if cells.device.type == "cpu":
        return torch.bincount(cells.flatten(), minlength=length)[:length]
    return sorted_counts(cells.flatten(), length)
