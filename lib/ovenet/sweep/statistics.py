"""Means, spreads and paired differences of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovenet.errors import UserError
from ovenet.evaluation.metrics import ratio
from ovenet.evaluation.sample_size import LEVEL, student_quantile
from ovenet.sweep.results import RunResult

NUM_RESAMPLES = 10_000
_BLOCK = 1000


@dataclass(frozen=True)
class VariantScores:
    """One prediction of a variant: its runs by seed.

    Attributes:
        runs: runs in the order of their seeds.
        kind: ``initial``, ``seed`` or ``fused``.
    """

    runs: tuple[RunResult, ...]
    kind: str = "fused"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.seed for run in self.runs)

    def of(self, seeds: Sequence[int]) -> VariantScores:
        """The same prediction, with only the runs of these seeds."""
        return VariantScores(tuple(run for run in self.runs if run.seed in seeds), self.kind)

    def scores(self, name: str) -> np.ndarray:
        """One score of each run, such as ``mean_iou``."""
        return np.array([run.scores[self.kind][name] for run in self.runs], dtype=np.float64)

    def class_iou(self) -> np.ndarray:
        """IoU ``(runs, K)``; NaN for classes without a labelled pixel."""
        return np.array([[_number(v) for v in run.scores[self.kind]["iou"].values()] for run in self.runs])


@dataclass(frozen=True)
class Difference:
    """Paired difference of two predictions, over the seeds that both have.

    Attributes:
        seeds: seeds of both predictions.
        by_seed: ``(seeds,)`` difference of mean IoU.
        interval: 95 % interval of the mean over these seeds, by resampling images; both predictions and all seeds have
            the same resamples.
        class_iou: ``(seeds, K)`` difference of IoU.
    """

    seeds: tuple[int, ...]
    by_seed: np.ndarray
    interval: tuple[float, float]
    class_iou: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.by_seed.mean())

    @property
    def interval_over_seeds(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean over seeds; NaN for one seed."""
        number = len(self.by_seed)
        margin = student_quantile(number - 1) * spread(self.by_seed) / number**0.5 if number > 1 else float("nan")
        return self.mean - margin, self.mean + margin


def spread(values: np.ndarray) -> float:
    """Sample standard deviation; NaN of one value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def compare(one: VariantScores, other: VariantScores, *, num_resamples: int = NUM_RESAMPLES) -> Difference | None:
    """`one` minus `other`, paired by seed and image; None if they have no seed in common.

    Raises:
        UserError: they were tested on different images or classes.
    """
    seeds = tuple(sorted(set(one.seeds) & set(other.seeds)))
    if not seeds:
        return None
    one, other = one.of(seeds), other.of(seeds)
    first = one.runs[0]
    for run in (*one.runs, *other.runs):
        if run.images != first.images or run.class_names != first.class_names:
            raise UserError(f"{run.name} and {first.name} were tested on different images or classes")
    samples = _resampled_mean_iou(one, num_resamples) - _resampled_mean_iou(other, num_resamples)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Difference(
        seeds,
        one.scores("mean_iou") - other.scores("mean_iou"),
        (float(low), float(high)),
        one.class_iou() - other.class_iou(),
    )


def _resampled_mean_iou(prediction: VariantScores, num_resamples: int) -> np.ndarray:
    """Mean IoU ``(num_resamples,)`` of bootstrap samples of the images, averaged over the runs.

    The samples are the same for every prediction of the same images.
    """
    num_images = len(prediction.runs[0].images)
    generator = np.random.default_rng(0)
    means = []
    for start in range(0, num_resamples, _BLOCK):
        size = min(_BLOCK, num_resamples - start)
        times = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)
        by_run = []
        for run in prediction.runs:
            right, predicted = times @ run.right[prediction.kind], times @ run.predicted[prediction.kind]
            labelled = times @ run.labelled
            by_run.append(np.nanmean(ratio(right, labelled + predicted - right, labelled > 0), axis=1))
        means.append(np.mean(by_run, axis=0))
    return np.concatenate(means)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
