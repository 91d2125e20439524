"""Detailed scores from the counts of a split: near edges, by segment size, of confidence and seeds.

Shapes: ``K`` classes, ``D`` distances, ``W`` boundary widths, ``N`` bins. All shares are in ``[0, 1]``, NaN where
nothing was counted. Dictionaries are by prediction name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ovenet.evaluation.class_calibration import ClassCalibration, class_calibration
from ovenet.evaluation.class_counts import TABLES as CLASS_TABLES
from ovenet.evaluation.evaluator import BOUNDARY_RATIOS, DISTANCES_PX, LENGTHS_PX, SegEvaluator
from ovenet.evaluation.metrics import class_iou, mean_of_present, ratio, risk_curve

SEGMENT_SIZES = ("small", "medium", "large")
NUM_RELIABILITY_BINS = 15  # as Guo et al. (2017) take


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary scores.

    Attributes:
        ratios: ``W`` widths as shares of the image's diagonal.
        iou: ``(W, K)`` Boundary IoU (Cheng et al., 2021).
        f_score: ``(W, K)`` harmonic mean of the share of predicted contour pixels with a contour pixel of the label
            within the width, and of the converse; counts of all images together.
        mean_iou: ``(W,)`` over the classes with labelled pixels.
        mean_f_score: ``(W,)`` over the classes with labelled contours.
    """

    ratios: tuple[float, ...]
    iou: dict[str, np.ndarray]
    f_score: dict[str, np.ndarray]
    mean_iou: dict[str, np.ndarray]
    mean_f_score: dict[str, np.ndarray]


@dataclass(frozen=True)
class EdgeCurve:
    """Scores by the distance to the nearest edge between two labels.

    Attributes:
        distances_px: upper ends of the bands, the last one infinite.
        pixels: ``(D,)`` pixels in each band.
        mean_iou: ``(D,)`` mIoU of the pixels in each band.
        accuracy: ``(D,)`` share of these pixels that is right.
        trimap_iou: ``(D,)`` mIoU of all pixels up to each distance (Kohli et al., 2009).
    """

    distances_px: tuple[float, ...]
    pixels: np.ndarray
    mean_iou: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    trimap_iou: dict[str, np.ndarray]


@dataclass(frozen=True)
class SegmentScores:
    """Scores by the size of the label's connected regions.

    Attributes:
        sizes: names, from small to large.
        num_segments: number of segments of each size.
        recall: share of right pixels, by size.
        mean_recall: mean over the classes of the share of right pixels, by size.
        found: share of the segments with more than half of their pixels right, by size.
    """

    sizes: tuple[str, ...]
    num_segments: np.ndarray
    recall: dict[str, np.ndarray]
    mean_recall: dict[str, np.ndarray]
    found: dict[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Calibration of the confidence: whether the seed has the pixel's class.

    Attributes:
        expected_error: expected calibration error over bins of equal width.
        bin_confidence: ``(N,)`` mean confidence of each bin.
        bin_accuracy: ``(N,)`` share of seeds of the right class in each bin.
        bin_pixels: ``(N,)``.
        coverage: share of the pixels kept, highest confidence first.
        risk: share of the kept pixels with a seed of another class.
        area_under_risk: area under risk over coverage, 0 to 1; smaller is better.
    """

    expected_error: float
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray
    bin_pixels: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    area_under_risk: float


@dataclass(frozen=True)
class SeedScores:
    """Effect of the seeds.

    Attributes:
        right_class: share of seeds that lie on the pixel's class.
        right_class_where_wrong: the same share among the pixels that S_i has wrong.
        corrected: share of the pixels that S_i has wrong and S_s, or S_f, has right.
        broken: share of the pixels that S_i has right and S_s, or S_f, has wrong.
        right_class_by_distance: ``(D,)``, bands as in `EdgeCurve`.
        corrected_by_distance: ``(D,)`` by S_f.
        broken_by_distance: ``(D,)`` by S_f.
        lengths_px: upper ends of the bins, the last one infinite.
        length_pixels: ``(N,)`` number of pixels in each bin of offset length.
    """

    right_class: float
    right_class_where_wrong: float
    corrected: dict[str, float]
    broken: dict[str, float]
    right_class_by_distance: np.ndarray
    corrected_by_distance: np.ndarray
    broken_by_distance: np.ndarray
    lengths_px: tuple[float, ...]
    length_pixels: np.ndarray


@dataclass(frozen=True)
class Details:
    """Scores beyond mIoU; confidence and seeds are None for a baseline.

    Class probabilities are None where none were counted.
    """

    boundaries: BoundaryScores
    edges: EdgeCurve
    segments: SegmentScores
    calibration: Calibration | None
    seeds: SeedScores | None
    class_calibration: dict[str, ClassCalibration] | None = None


def details_from_counts(evaluator: SegEvaluator) -> Details:
    """The detailed scores of an evaluator that holds the counts of all processes."""
    counts, names = evaluator.counts, evaluator.prediction_names
    present = _numpy(counts["confusion"]).sum(axis=(0, 1, 2, 4)) > 0
    return Details(
        boundaries=boundary_scores(_by_name(counts["inner_band"], names), _by_name(counts["contour"], names), present),
        edges=edge_curve(_by_name(counts["confusion"].sum(dim=0), names)),
        segments=segment_scores(_by_name(counts["segments"], names)),
        calibration=calibration(_numpy(counts["confidence"])) if evaluator.has_seed else None,
        seeds=seed_scores(_numpy(counts["seed"]), _numpy(counts["length"])) if evaluator.has_seed else None,
        class_calibration=_class_calibration(evaluator),
    )


def _class_calibration(evaluator: SegEvaluator) -> dict[str, ClassCalibration] | None:
    names = evaluator.prediction_names
    tables = {key: _numpy(evaluator.counts[key]) for key in CLASS_TABLES}
    if not tables["best_bins"].any():
        return None
    return {
        name: class_calibration({key: table[index] for key, table in tables.items()})
        for index, name in enumerate(names)
    }


def _numpy(counts: Tensor) -> np.ndarray:
    return counts.cpu().numpy()


def _by_name(counts: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return dict(zip(names, _numpy(counts), strict=True))


def boundary_scores(
    inner_bands: Mapping[str, np.ndarray], contours: Mapping[str, np.ndarray], present: np.ndarray
) -> BoundaryScores:
    """From ``inner_band`` and ``contour`` of an evaluator; `present` ``(K,)``: classes with labelled pixels."""
    iou, f_score = {}, {}
    for name, table in inner_bands.items():
        both, label, predicted = np.moveaxis(table, -1, 0)
        iou[name] = ratio(both, label + predicted - both, present[None])
    for name, table in contours.items():
        matched, predicted, found, label = np.moveaxis(table, -1, 0)
        precision, recall = ratio(matched, predicted), ratio(found, label)
        f = ratio(2 * precision * recall, precision + recall)
        f_score[name] = np.where(label > 0, np.nan_to_num(f), np.nan)  # no true match at all is an F-score of 0
    return BoundaryScores(BOUNDARY_RATIOS, iou, f_score, _means(iou), _means(f_score))


def _means(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array([mean_of_present(row) for row in rows]) for name, rows in scores.items()}


def edge_curve(confusion: Mapping[str, np.ndarray]) -> EdgeCurve:
    """From ``confusion`` of an evaluator, ``(D, K, K)`` each."""
    mean_iou, accuracy, trimap = {}, {}, {}
    for name, tables in confusion.items():
        mean_iou[name] = np.array([mean_of_present(class_iou(table)) for table in tables])
        accuracy[name] = ratio(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))
        trimap[name] = np.array([mean_of_present(class_iou(table)) for table in tables.cumsum(axis=0)])
    pixels = next(iter(confusion.values())).sum(axis=(1, 2))
    return EdgeCurve((*DISTANCES_PX, float("inf")), pixels, mean_iou, accuracy, trimap)


def segment_scores(counts: Mapping[str, np.ndarray]) -> SegmentScores:
    """From ``segments`` of an evaluator, ``(sizes, K, 4)`` each."""
    total = {name: table.sum(axis=1) for name, table in counts.items()}
    return SegmentScores(
        sizes=SEGMENT_SIZES,
        num_segments=next(iter(total.values()))[:, 3],
        recall={name: ratio(table[:, 0], table[:, 1]) for name, table in total.items()},
        mean_recall=_means({name: ratio(table[..., 0], table[..., 1]) for name, table in counts.items()}),
        found={name: ratio(table[:, 2], table[:, 3]) for name, table in total.items()},
    )


def calibration(counts: np.ndarray) -> Calibration:
    """Calibration and selective risk of the confidence.

    Args:
        counts: ``(2, levels)`` pixels whose seed is wrong, and right, at each level of confidence from 0 to 1.
    """
    levels = counts.shape[1]
    confidence = np.arange(levels) / (levels - 1)
    pixels, right = counts.sum(axis=0), counts[1]
    bins = np.minimum((confidence * NUM_RELIABILITY_BINS).astype(int), NUM_RELIABILITY_BINS - 1)
    bin_pixels = np.bincount(bins, weights=pixels, minlength=NUM_RELIABILITY_BINS)
    bin_confidence = ratio(np.bincount(bins, weights=pixels * confidence, minlength=NUM_RELIABILITY_BINS), bin_pixels)
    bin_accuracy = ratio(np.bincount(bins, weights=right, minlength=NUM_RELIABILITY_BINS), bin_pixels)
    total = pixels.sum()
    gap = np.nan_to_num(np.abs(bin_accuracy - bin_confidence))
    coverage, risk, area = risk_curve(counts[0], right)
    return Calibration(
        expected_error=float((gap * bin_pixels).sum() / total) if total else float("nan"),
        bin_confidence=bin_confidence,
        bin_accuracy=bin_accuracy,
        bin_pixels=bin_pixels.astype(np.int64),
        coverage=coverage,
        risk=risk,
        area_under_risk=area,
    )


def seed_scores(counts: np.ndarray, lengths: np.ndarray) -> SeedScores:
    """From ``seed`` ``(D, 3, 2, 2, 2)`` and ``length`` of an evaluator."""
    known = counts[:, :2]  # seeds on a label
    class_by_initial = known.sum(axis=(3, 4))  # (D, seed's class, S_i right)
    right_by_distance = ratio(class_by_initial[:, 1].sum(axis=1), class_by_initial.sum(axis=(1, 2)))
    totals = class_by_initial.sum(axis=0)
    after = {"seed": counts.sum(axis=(1, 4)), "fused": counts.sum(axis=(1, 3))}  # (D, S_i right, it is right)
    whole = {name: table.sum(axis=0) for name, table in after.items()}
    fused = after["fused"]
    return SeedScores(
        right_class=_share(totals[1].sum(), totals.sum()),
        right_class_where_wrong=_share(totals[1, 0], totals[:, 0].sum()),
        corrected={name: _share(table[0, 1], table[0].sum()) for name, table in whole.items()},
        broken={name: _share(table[1, 0], table[1].sum()) for name, table in whole.items()},
        right_class_by_distance=right_by_distance,
        corrected_by_distance=ratio(fused[:, 0, 1], fused[:, 0].sum(axis=1)),
        broken_by_distance=ratio(fused[:, 1, 0], fused[:, 1].sum(axis=1)),
        lengths_px=(*LENGTHS_PX, float("inf")),
        length_pixels=lengths,
    )


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else float("nan")
