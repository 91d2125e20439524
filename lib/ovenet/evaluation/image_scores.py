"""Image-wise scores beside those of the whole split.

Names and definitions are those of Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation: Optimization
and Evaluation of Fine-grained Intersection over Union", NeurIPS 2023 (arXiv 2310.19252) and its code. In every image
the IoU of a class counts if the image has a labelled pixel of it. A class that is predicted in an image without it
has no IoU there: its pixels lower the IoU of the classes that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovenet.data.info import condition_of
from ovenet.evaluation.metrics import mean_of_present

TAILS_PERCENT = (1, 5, 10)
TENTH = TAILS_PERCENT[-1]
FEW_IMAGES = 10  # below, the worst tenth is one image
_AVERAGED_PERCENT = range(10, 101, 10)


@dataclass(frozen=True)
class ImageScores:
    """Image-wise scores of one prediction, in ``[0, 1]``; ``K`` classes. NaN where there is no image.

    Attributes:
        mean_iou_i: mIoU^I, the mean over the images of the mean IoU over the classes of each.
        worst_i: mIoU^{I^q}, the same of the worst q percent of the images, by q.
        worst_i_mean: mIoU^{I^q̄}, the mean of the worst 10, 20 … 100 percent.
        iou_c: ``(K,)`` mean IoU of each class over the images that have it.
        mean_iou_c: mIoU^C, the mean of these over the classes.
        worst_c: mIoU^{C^q}, the same from the worst q percent of the images of each class, by q.
        worst_c_mean: mIoU^{C^q̄}.
    """

    mean_iou_i: float
    worst_i: dict[int, float]
    worst_i_mean: float
    iou_c: np.ndarray
    mean_iou_c: float
    worst_c: dict[int, float]
    worst_c_mean: float


@dataclass(frozen=True)
class GroupScores:
    """Image-wise scores of a group of images.

    Attributes:
        num_images: number of images with labelled pixels.
        num_worst: number of images in the worst q percent, by q.
        images_by_class: ``(K,)`` number of images with each class.
        scores: by prediction name.
    """

    num_images: int
    num_worst: dict[int, int]
    images_by_class: np.ndarray
    scores: dict[str, ImageScores]


@dataclass(frozen=True)
class ImageWise:
    """Image-wise scores of a split, and of each condition that has labelled pixels."""

    overall: GroupScores
    by_condition: dict[str, GroupScores]


def image_wise_scores(
    records: Iterable[Mapping[str, Any]], names: Sequence[str], num_classes: int, conditions: Sequence[str] = ()
) -> ImageWise:
    """Image-wise scores from the records of the images.

    They depend on the order of the records, not on which process made them.

    Args:
        records: see `ovenet.evaluation.writers.image_record`; those without labelled pixels are left out.
        names: names of the predictions.
        num_classes: ``K``.
        conditions: names of subsets that are scored separately.
    """
    labelled = [record for record in records if any(s["iou"] for s in record.get("scores", {}).values())]
    tables = {name: np.full((len(labelled), num_classes), np.nan) for name in names}
    for place, record in enumerate(labelled):
        for name, table in tables.items():
            for k, iou in record["scores"][name]["iou"].items():
                table[place, int(k)] = iou
    groups = np.array([condition_of(record["name"], conditions) or "" for record in labelled], dtype=object)
    return ImageWise(
        overall=group_scores(tables),
        by_condition={
            condition: group_scores({name: table[groups == condition] for name, table in tables.items()})
            for condition in conditions
            if (groups == condition).any()
        },
    )


def group_scores(tables: Mapping[str, np.ndarray]) -> GroupScores:
    """From the IoU ``(N, K)`` of each image and class by prediction name, NaN where the image has not the class."""
    first = next(iter(tables.values()))
    return GroupScores(
        num_images=len(first),
        num_worst={percent: num_in_tail(len(first), percent) for percent in TAILS_PERCENT},
        images_by_class=(~np.isnan(first)).sum(axis=0),
        scores={name: _scores(table) for name, table in tables.items()},
    )


def num_in_tail(number: int, percent: int) -> int:
    """How many of `number` images are the worst `percent`: rounded down, at least one, as in the published code."""
    return min(number, max(1, number * percent // 100))


def _scores(iou: np.ndarray) -> ImageScores:
    by_image = _sorted_present(np.array([mean_of_present(row) for row in iou]))
    by_class = [_sorted_present(column) for column in iou.T]
    iou_c = np.array([_mean_of_tail(values, 100) for values in by_class])

    def worst_i(percent: int) -> float:
        return _mean_of_tail(by_image, percent)

    def worst_c(percent: int) -> float:
        return mean_of_present(np.array([_mean_of_tail(values, percent) for values in by_class]))

    return ImageScores(
        mean_iou_i=worst_i(100),
        worst_i={percent: worst_i(percent) for percent in TAILS_PERCENT},
        worst_i_mean=float(np.mean([worst_i(percent) for percent in _AVERAGED_PERCENT])),
        iou_c=iou_c,
        mean_iou_c=mean_of_present(iou_c),
        worst_c={percent: worst_c(percent) for percent in TAILS_PERCENT},
        worst_c_mean=float(np.mean([worst_c(percent) for percent in _AVERAGED_PERCENT])),
    )


def _sorted_present(values: np.ndarray) -> np.ndarray:
    return np.sort(values[~np.isnan(values)])


def _mean_of_tail(values: np.ndarray, percent: int) -> float:
    """Mean of the lowest `percent` of sorted values; NaN without any."""
    return float(values[: num_in_tail(len(values), percent)].mean()) if len(values) else float("nan")
