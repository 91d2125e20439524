"""Uncertainty-aware IoU: a prediction may call pixels invalid, and is right to where people could not tell either.

Sakaridis, Dai and Van Gool (ICCV 2019, ICCV 2021). A pixel is predicted as invalid where its confidence is below a
threshold. By the threshold, and for each class: TP, right and not called invalid; TI, of the class, marked as invalid
and called so; FI, of the class, called invalid and not marked; FP and FN, as always, among the pixels not called
invalid. UIoU = (TP + TI) / (TP + TI + FP + FN + FI). The average over thresholds from 1/K to 1 is AUIoU.

Shapes: ``K`` classes, ``T`` thresholds, ``P`` predictions. A pixel's bin is the number of thresholds that its
confidence reaches, 0 to ``T``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ovenet.errors import UserError
from ovenet.evaluation.metrics import byte_histogram, mean_of_present, ratio
from ovenet.inference.inferencer import Prediction

LEVELS = 2**16  # steps of the confidence, those of a map of 16 bits
NUM_THRESHOLDS = 101
# Rows of the counts: labelled pixels by their class, and in the last row, wrong ones by the predicted class.
_RIGHT, _RIGHT_MARKED, _WRONG, _WRONG_MARKED, _FALSE = range(5)
NUM_ROWS = 5


@dataclass(frozen=True)
class UncertaintyCurve:
    """Uncertainty-aware IoU of one prediction, shares in ``[0, 1]``, NaN where nothing is labelled.

    Attributes:
        average: AUIoU, the mean of `mean_uiou`.
        mean_uiou: ``(T,)`` UIoU at each threshold, the mean over the classes with labelled pixels.
        by_class: ``(K,)`` AUIoU of each class.
    """

    average: float
    mean_uiou: np.ndarray
    by_class: np.ndarray


@dataclass(frozen=True)
class UncertaintyScores:
    """Uncertainty-aware scores of a split.

    Attributes:
        confidence: what the confidence is: ``probability``, ``seed`` or ``product``.
        thresholds: ``(T,)`` confidences below which a pixel is called invalid.
        invalid_share: share of the labelled pixels that are marked as invalid.
        overall: by prediction name, those that have this confidence.
        by_condition: the same for each condition with labelled pixels.
    """

    confidence: str
    thresholds: np.ndarray
    invalid_share: float
    overall: dict[str, UncertaintyCurve]
    by_condition: dict[str, dict[str, UncertaintyCurve]]


def scored_names(confidence: str, prediction_names: Sequence[str]) -> tuple[str, ...]:
    """The predictions that have a confidence of this kind: F is that of the fused one alone.

    Raises:
        UserError: the model has no seed, and the confidence is the seed's.
    """
    if confidence == "none":
        return ()
    if confidence == "probability":
        return tuple(prediction_names)
    if "seed" not in prediction_names:
        raise UserError(
            f"TEST.UNCERTAINTY is {confidence}, and the model has no seed whose confidence that would be; expected "
            "probability, or none"
        )
    return ("fused",)


def thresholds(num_classes: int) -> np.ndarray:
    """``(T,)`` evenly spaced from 1/K, the least probability that the best class can have, to 1."""
    return np.linspace(1 / num_classes, 1, NUM_THRESHOLDS)


def confidence_levels(prediction: Prediction, confidence: str, name: str) -> np.ndarray:
    """Confidence in steps.

    Args:
        prediction: with the probability, and for the seed's confidence with that.
        confidence: see `UncertaintyScores`.
        name: of the prediction.

    Returns:
        ``(H, W)`` int32, 0 to ``LEVELS - 1``, which is a confidence of 1.
    """
    values: Tensor | None = None
    if confidence != "seed":
        values = prediction.probability[name].cpu()
    if confidence != "probability":
        assert prediction.confidence is not None
        seed = prediction.confidence[0].cpu().float()
        values = seed if values is None else values * seed
    assert values is not None
    return values.nan_to_num().clamp(0, 1).mul(LEVELS - 1).round().int().numpy()


class UncertaintyCounter:
    """Counts pixels by class, outcome and bin, which give the UIoU of every threshold exactly.

    Args:
        num_classes: ``K``.
        ignore_label: label of pixels that do not count, marked or not.
    """

    def __init__(self, num_classes: int, ignore_label: int):
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        # A threshold is a level too: rounding keeps the order, so that a confidence of 1/K reaches the first one.
        ends = np.rint(thresholds(num_classes) * (LEVELS - 1))
        self._bin = np.searchsorted(ends, np.arange(LEVELS), side="right").astype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of `count`."""
        return NUM_ROWS, self.num_classes, NUM_THRESHOLDS + 1

    def count(self, labels: np.ndarray, invalid: np.ndarray, predicted: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Counts one prediction of one image.

        Args:
            labels: ``(H, W)`` train ids.
            invalid: ``(H, W)`` bool, pixels marked as invalid.
            predicted: ``(H, W)`` predicted train ids.
            levels: ``(H, W)``, see `confidence_levels`.

        Returns:
            ``(5, K, T + 1)`` int64.
        """
        row = np.where(labels == predicted, np.uint8(_RIGHT), np.uint8(_WRONG)) + invalid
        row[labels == self.ignore_label] = NUM_ROWS
        row, true, guess = (x.ravel().astype(np.uint8, copy=False) for x in (row, labels, predicted))
        bins, (_, k, num_bins) = self._bin[levels.ravel()], self.shape
        by_label = byte_histogram([row, true, bins], [_FALSE, k, num_bins], [0, _FALSE, 0, k, 0, num_bins])
        by_guess = byte_histogram([row, guess, bins], [1, k, num_bins], [_WRONG, _FALSE, 0, k, 0, num_bins])
        return np.concatenate([by_label, by_guess])


def uncertainty_scores(
    counts: np.ndarray, confidence: str, names: Sequence[str], conditions: Sequence[str]
) -> UncertaintyScores:
    """The scores that follow from the counts of all processes.

    Args:
        counts: ``(1 + conditions, P, 5, K, T + 1)`` from `UncertaintyCounter`, images of no condition first.
        confidence: see `UncertaintyScores`.
        names: of the predictions.
        conditions: names.
    """

    def curves(tables: np.ndarray) -> dict[str, UncertaintyCurve]:
        return {name: uncertainty_curve(table) for name, table in zip(names, tables, strict=True)}

    whole = counts.sum(axis=0)
    labelled = whole[0, :_FALSE].sum(axis=(1, 2))  # of any prediction, since their pixels are the same
    return UncertaintyScores(
        confidence=confidence,
        thresholds=thresholds(counts.shape[-2]),
        invalid_share=float(ratio(labelled[_RIGHT_MARKED] + labelled[_WRONG_MARKED], labelled.sum())),
        overall=curves(whole),
        by_condition={c: curves(tables) for c, tables in zip(conditions, counts[1:], strict=True) if tables.any()},
    )


def uncertainty_curve(counts: np.ndarray) -> UncertaintyCurve:
    """The scores of one prediction from its counts ``(5, K, T + 1)``."""
    called_invalid = counts.cumsum(axis=-1)[..., :-1]  # at the t-th threshold, those in the bins 0 to t
    kept = counts.sum(axis=-1, keepdims=True) - called_invalid
    right = kept[_RIGHT] + kept[_RIGHT_MARKED] + called_invalid[_RIGHT_MARKED] + called_invalid[_WRONG_MARKED]
    labelled = counts[:_FALSE].sum(axis=(0, 2))  # TP + TI + FN + FI at every threshold
    uiou = ratio(right, labelled[:, None] + kept[_FALSE], labelled[:, None] > 0)
    mean = np.array([mean_of_present(row) for row in uiou.T])
    return UncertaintyCurve(average=float(mean.mean()), mean_uiou=mean, by_class=uiou.mean(axis=1))


def average_rows(scores: UncertaintyScores, names: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """Titles and AUIoU by prediction, of all images and of each condition; None for predictions without one."""
    parts: Mapping[str, Mapping[str, UncertaintyCurve]] = {
        "AUIoU": scores.overall,
        **{f"AUIoU, {condition}": curves for condition, curves in scores.by_condition.items()},
    }
    return [
        (title, [curves[name].average if name in curves else None for name in names]) for title, curves in parts.items()
    ]
