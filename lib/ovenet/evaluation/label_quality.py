"""Likely label errors: where a network is sure of another class than the label's.

An image's score is the soft minimum over its labelled pixels of p, the probability of the label's class: the sum of
p · w with w = softmax((1 - p) / 0.1), from 0 (wrong) to 1 (Lad and Mueller, "Estimating label quality and errors in
semantic segmentation data via any model", 2023). Whether a network is sure is told by the thresholds of confident
learning (Northcutt et al., 2021): class j's is the mean probability of j over the pixels with label j. Only the
predicted class counts here, where confident learning takes the best of those above their thresholds. Seeds get a
threshold of the same kind: the mean confidence of those on their pixel's class.

Thresholds are known after the last image, so that an image's record keeps counts by probability until then. All are
integers: they do not depend on how images are distributed over processes.

Shapes: ``K`` classes; bands of rows are ``(n, K, W)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovenet.inference.inferencer import ClassBand
from ovenet.inference.transfer import to_device

PREDICTION = "fused"  # the one that is compared with the label
TEMPERATURE = 0.1
MAX_PAIRS = 5  # pairs of classes in an image's record
_STEPS = 2**15 - 1  # steps in which the probability of the label's class is counted
_PERCENT = 101  # the predicted class's probability is counted in whole percent, rounded down
_LEVELS = np.arange(_STEPS + 1) / _STEPS
_WEIGHTS = np.exp(-_LEVELS / TEMPERATURE)


@dataclass(frozen=True)
class LabelThresholds:
    """What counts as sure.

    Attributes:
        by_class: by train id, in percent from 0 to 100, rounded up; None for a class without a labelled pixel.
        seed: confidence, in percent; None without seeds.
    """

    by_class: tuple[int | None, ...]
    seed: int | None


class LabelProbabilities:
    """Collects what a network thinks of an image's label while the image is predicted.

    Args:
        labels: ``(H, W)`` train ids.
        num_classes: ``K``.
        device: of the predictor.

    Attributes:
        level: ``(H, W)`` int16 probability of the label's class, 0 to 32767; undefined for ignored pixels.
        percent: ``(H, W)`` uint8 probability of the predicted class, rounded down.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, device: torch.device):
        self._labels = to_device(labels.clip(0, num_classes - 1), device)
        self.level = torch.zeros(labels.shape, dtype=torch.int16, device=device)
        self.percent = torch.zeros(labels.shape, dtype=torch.uint8, device=device)

    def add(self, band: ClassBand) -> None:
        """Takes a band, on a card without waiting for it; several threads may call this at once."""
        place = slice(band.rows.start, band.rows.stop)
        own = band.probabilities[PREDICTION].float().gather(1, self._labels[place].long().unsqueeze(1)).squeeze(1)
        self.level[place] = own.nan_to_num().mul(_STEPS).round().clamp(0, _STEPS).short()
        self.percent[place] = percent_of(band.probability[PREDICTION])


def percent_of(probability: Tensor) -> Tensor:
    """A probability in whole percent, rounded down, uint8."""
    return probability.nan_to_num().mul(_PERCENT - 1).floor().clamp(0, _PERCENT - 1).byte()


def image_statistics(labels: np.ndarray, predicted: np.ndarray, level: np.ndarray, percent: np.ndarray) -> Any:
    """The part of `finish_records` that one image's pixels give, as plain numbers.

    Args:
        labels: ``(H, W)`` train ids, below 0 for ignored pixels.
        predicted: ``(H, W)`` predicted train ids.
        level, percent: see `LabelProbabilities`.

    Returns:
        ``score``; ``own``, sum of the levels and number of pixels by class of the label; ``other``, lists of the label,
        the predicted class, a percentage and the numbers of pixels from there on; None without a labelled pixel.
    """
    is_labelled = labels >= 0
    if not is_labelled.any():
        return None
    true, levels = labels[is_labelled].astype(np.int64), level[is_labelled]
    histogram = np.bincount(levels, minlength=_STEPS + 1) * _WEIGHTS
    sums, counts = np.bincount(true, weights=levels), np.bincount(true)
    guess = predicted[is_labelled].astype(np.int64)
    is_other = guess != true
    span = int(guess.max()) + 1
    cells = (true[is_other] * span + guess[is_other]) * _PERCENT + percent[is_labelled][is_other]
    by_pair: dict[int, dict[int, int]] = {}
    for cell, number in zip(*(x.tolist() for x in np.unique(cells, return_counts=True)), strict=True):
        by_pair.setdefault(cell // _PERCENT, {})[cell % _PERCENT] = number
    return {
        "score": float((histogram * _LEVELS).sum() / histogram.sum()),
        "own": {int(k): [int(sums[k]), int(counts[k])] for k in np.flatnonzero(counts)},
        "other": [[*divmod(pair, span), *_dense(numbers)] for pair, numbers in by_pair.items()],
    }


def seed_statistics(table: np.ndarray) -> Any:
    """The same of an image's seeds.

    Args:
        table: ``(2, levels)`` pixels by whether the seed is on their class, and by its confidence, the last level is 1.

    Returns:
        ``stay``, sum of the percentages and number of the seeds on their pixel's class; ``leave``, of the others a
        percentage and the numbers of seeds from there on.
    """
    percent = np.arange(table.shape[1]) * (_PERCENT - 1) // (table.shape[1] - 1)
    numbers = np.bincount(percent, weights=table[0], minlength=_PERCENT).astype(np.int64)
    return {
        "stay": [int((percent * table[1]).sum()), int(table[1].sum())],
        "leave": _dense({int(p): int(numbers[p]) for p in np.flatnonzero(numbers)}),
    }


def _dense(numbers: Mapping[int, int]) -> list[int]:
    """The lowest percentage, and the numbers from there to the highest one."""
    if not numbers:
        return [0]
    return [min(numbers), *(numbers.get(p, 0) for p in range(min(numbers), max(numbers) + 1))]


def _from(threshold: int | None, dense: list[int]) -> int:
    """How many of `_dense` counts are at the threshold or above."""
    return 0 if threshold is None else sum(dense[1 + max(0, threshold - dense[0]) :])


def finish_records(records: Iterable[dict[str, Any]], num_classes: int) -> LabelThresholds | None:
    """Replaces the statistics in the records of all images by what follows from them.

    ``label_quality`` then has ``score``; ``disagree``, the number of labelled pixels that are surely predicted as
    another class; ``pairs``, label, predicted class and number of these pixels, the most frequent first; ``seeds``,
    the number of seeds that surely lie on another class, None without seeds.

    Args:
        records: see `ovenet.evaluation.writers.image_record`; those without statistics stay as they are.
        num_classes: ``K``.

    Returns:
        The thresholds; None where no record has statistics.
    """
    found = [record for record in records if record.get("label_quality")]
    if not found:
        return None
    thresholds = _thresholds([record["label_quality"] for record in found], num_classes)
    for record in found:
        raw = record["label_quality"]
        pairs = [[a, b, _from(thresholds.by_class[b], dense)] for a, b, *dense in raw["other"]]
        pairs.sort(key=lambda pair: -pair[2])
        record["label_quality"] = {
            "score": raw["score"],
            "disagree": sum(number for _, _, number in pairs),
            "pairs": [pair for pair in pairs[:MAX_PAIRS] if pair[2]],
            "seeds": _from(thresholds.seed, raw["seeds"]["leave"]) if raw.get("seeds") else None,
        }
    return thresholds


def _thresholds(statistics: list[Any], num_classes: int) -> LabelThresholds:
    sums = np.zeros((num_classes, 2), dtype=np.int64)
    seeds = np.zeros(2, dtype=np.int64)
    for raw in statistics:
        for k, counts in raw["own"].items():  # keys of JSON are strings
            sums[int(k)] += counts
        if raw.get("seeds"):
            seeds += raw["seeds"]["stay"]

    def mean(total: int, number: int) -> int | None:
        return -(-total // number) if number else None

    return LabelThresholds(
        by_class=tuple(mean((_PERCENT - 1) * total, _STEPS * number) for total, number in sums.tolist()),
        seed=mean(*seeds.tolist()),
    )
