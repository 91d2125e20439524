"""Scoring a split: exact shards, counts on the device, one sum over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.inference import Predictor
from ovenet.evaluation.metrics import confusion_counts, scores_from_counts
from ovenet.structures import EvalResult, Sample
from ovenet.utils import distributed


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split.

    Attributes:
        overall: by prediction name, of all images.
        by_condition: the same for each condition that has labelled pixels.
    """

    overall: dict[str, EvalResult]
    by_condition: dict[str, dict[str, EvalResult]]


OnPrediction = Callable[[Sample, dict[str, Tensor]], None]


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    info: DatasetInfo,
    prediction_names: tuple[str, ...],
    *,
    ignore_label: int,
    on_prediction: OnPrediction | None = None,
) -> Evaluation:
    """Predicts and scores this process's samples, and sums the counts of all processes.

    Args:
        predictor: see there.
        samples: this process's share, see `ovenet.data.samplers.evaluation_shard`; those without labels are
            predicted but not scored.
        info: names of the classes, and of the conditions to score separately.
        prediction_names: what the model predicts, see `OVeNetOutput.predictions`; the same on every process, also on
            one without a sample.
        ignore_label: label of the pixels that do not count.
        on_prediction: called with each sample and its predicted train ids ``(H, W)`` by name.

    Returns:
        Scores by prediction name, the same on every process.
    """
    num_classes, groups = info.num_classes, (None, *info.conditions)
    shape = (len(groups), len(prediction_names), num_classes, num_classes)
    counts = torch.zeros(shape, dtype=torch.int64, device=predictor.device)  # of images of no condition first
    for sample in samples:
        predicted = predictor.predict_labels(sample.image)
        if sample.labels is not None:
            labels = torch.from_numpy(sample.labels).to(predictor.device)
            group = counts[groups.index(info.condition_of(sample.name))]
            for table, name in zip(group, prediction_names, strict=True):
                table += confusion_counts(predicted[name], labels, num_classes, ignore_label=ignore_label)
        if on_prediction is not None:
            on_prediction(sample, predicted)
    distributed.all_sum(counts)

    def scores(tables: Tensor) -> dict[str, EvalResult]:
        named = zip(prediction_names, tables, strict=True)
        return {name: scores_from_counts(table, info.class_names) for name, table in named}

    return Evaluation(
        overall=scores(counts.sum(dim=0)),
        by_condition={
            condition: scores(tables) for condition, tables in zip(groups[1:], counts[1:], strict=True) if tables.any()
        },
    )
