"""Calibration of the class probabilities, from their counts.

Shapes: ``K`` classes, ``N`` bins of equal width. Shares are in ``[0, 1]``, NaN where nothing was counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ovenet.evaluation.class_counts import PIXELS, PROBABILITY, RIGHT, STEPS
from ovenet.evaluation.metrics import ratio, risk_curve


@dataclass(frozen=True)
class ClassCalibration:
    """Calibration of one prediction's class probabilities.

    Attributes:
        expected_error: expected calibration error of the predicted class's probability (Guo et al., 2017).
        classwise_expected_error: the same error of each class's probability at all pixels, mean over all classes (Kull
            et al., 2019).
        brier: Brier score (Brier, 1950): the squared distance of the probabilities from the label, summed over the
            classes, mean over the pixels; from 0 to 2.
        nll: mean negative logarithm of the probability of the pixel's class, in nats; probabilities of less than
            1e-6 count as 1e-6.
        class_error: ``(K,)`` the errors that `classwise_expected_error` is the mean of.
        bin_confidence: ``(N,)`` mean probability of the predicted class in each bin.
        bin_accuracy: ``(N,)`` share of right pixels in each bin.
        bin_pixels: ``(N,)``.
        coverage: share of the pixels kept, highest probability first.
        risk: share of the kept pixels that are wrong.
        area_under_risk: area under risk over coverage, 0 to 1; smaller is better.
    """

    expected_error: float
    classwise_expected_error: float
    brier: float
    nll: float
    class_error: np.ndarray
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray
    bin_pixels: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    area_under_risk: float


def class_calibration(counts: Mapping[str, np.ndarray]) -> ClassCalibration:
    """From the counts of one prediction, see `ovenet.evaluation.class_counts.empty_tables`."""
    best, levels = counts["best_bins"], counts["best_levels"]
    pixels, probability = best[:, PIXELS], best[:, PROBABILITY] / STEPS
    total = pixels.sum()
    squares, losses, own = counts["class_scores"] / STEPS
    class_error = ratio(_gaps(counts["class_bins"]), np.full(len(counts["class_bins"]), total))
    coverage, risk, area = risk_curve(levels[0], levels[1])
    return ClassCalibration(
        expected_error=float(ratio(_gaps(best), total)),
        classwise_expected_error=float(class_error.mean()),
        brier=float(ratio(squares - 2 * own + total, total)),
        nll=float(ratio(losses, total)),
        class_error=class_error,
        bin_confidence=ratio(probability, pixels),
        bin_accuracy=ratio(best[:, RIGHT], pixels),
        bin_pixels=pixels,
        coverage=coverage,
        risk=risk,
        area_under_risk=area,
    )


def _gaps(bins: np.ndarray) -> np.ndarray:
    """Sum over bins ``(..., N, 3)`` of the distance between the sum of probabilities and the right pixels."""
    return np.abs(bins[..., RIGHT] - bins[..., PROBABILITY] / STEPS).sum(axis=-1)
