"""Scoring a split: exact shards, counts on the device, one sum over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ovenet.evaluation.inference import Predictor
from ovenet.evaluation.metrics import confusion_counts, scores_from_counts
from ovenet.structures import EvalResult, Sample
from ovenet.utils import distributed

OnPrediction = Callable[[Sample, dict[str, Tensor]], None]


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    class_names: tuple[str, ...],
    prediction_names: tuple[str, ...],
    *,
    ignore_label: int,
    on_prediction: OnPrediction | None = None,
) -> dict[str, EvalResult]:
    """Predicts and scores this process's samples, and sums the counts of all processes.

    Args:
        predictor: see there.
        samples: this process's share, see `ovenet.data.samplers.evaluation_shard`; those without labels are
            predicted but not scored.
        class_names: ``K`` names.
        prediction_names: what the model predicts, see `OVeNetOutput.predictions`; the same on every process, also on
            one without a sample.
        ignore_label: label of the pixels that do not count.
        on_prediction: called with each sample and its predicted train ids ``(H, W)`` by name.

    Returns:
        Scores by prediction name, the same on every process.
    """
    num_classes = len(class_names)
    counts = torch.zeros((len(prediction_names), num_classes, num_classes), dtype=torch.int64, device=predictor.device)
    for sample in samples:
        predicted = predictor.predict_labels(sample.image)
        if sample.labels is not None:
            labels = torch.from_numpy(sample.labels).to(predictor.device)
            for table, name in zip(counts, prediction_names, strict=True):
                table += confusion_counts(predicted[name], labels, num_classes, ignore_label=ignore_label)
        if on_prediction is not None:
            on_prediction(sample, predicted)
    distributed.all_sum(counts)
    return {name: scores_from_counts(table, class_names) for name, table in zip(prediction_names, counts, strict=True)}
