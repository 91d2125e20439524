"""Scoring a split: exact shards, integer counts, one sum over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.details import Details, details_from_counts
from ovenet.evaluation.evaluator import ImageCounts, SegEvaluator
from ovenet.evaluation.image_scores import ImageWise
from ovenet.evaluation.label_quality import LabelProbabilities, LabelThresholds
from ovenet.evaluation.metrics import scores_from_counts
from ovenet.evaluation.uncertainty import UncertaintyScores, uncertainty_scores
from ovenet.inference.inferencer import ClassBand, Prediction, SlidingWindowInferencer
from ovenet.structures import EvalResult, Sample
from ovenet.utils.behind import finish_behind


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split.

    Attributes:
        overall: scores of all images, by prediction name.
        by_condition: scores of each condition with labelled pixels, by prediction name.
        confusion: ``(K, K)`` int64 by prediction name, rows are labels.
        details: detailed scores; None if they were not counted.
        uncertainty: uncertainty-aware scores; None if they were not counted.
        images: image-wise scores; None unless records of the images were kept.
        label_thresholds: see `ovenet.evaluation.label_quality`; None unless these records have statistics of labels.
    """

    overall: dict[str, EvalResult]
    by_condition: dict[str, dict[str, EvalResult]]
    confusion: dict[str, list[list[int]]]
    details: Details | None = None
    uncertainty: UncertaintyScores | None = None
    images: ImageWise | None = None
    label_thresholds: LabelThresholds | None = None


OnImage = Callable[[Sample, Prediction, "ImageCounts | None"], None]


def evaluate(
    predictor: SlidingWindowInferencer,
    samples: Iterable[Sample],
    info: DatasetInfo,
    prediction_names: tuple[str, ...],
    *,
    ignore_label: int,
    detailed: bool = False,
) -> Evaluation:
    """Predicts and scores this process's samples, and sums the counts of all processes.

    Args:
        predictor: predicts the images.
        samples: this process's share, see `ovenet.data.samplers.evaluation_shard`.
        info: names of the classes, and of the conditions to score separately.
        prediction_names: what the model predicts, see `OVeNetOutput.predictions`; the same on every process, also on
            one without a sample.
        ignore_label: label of ignored pixels.
        detailed: score edges, segments, confidence and seeds too.

    Returns:
        Scores by prediction name, the same on every process.
    """
    evaluator = SegEvaluator(
        info, prediction_names, ignore_label=ignore_label, detailed=detailed, device=predictor.device
    )
    count_samples(predictor, samples, evaluator)
    evaluator.all_reduce()
    return evaluation_from_counts(evaluator)


def count_samples(
    predictor: SlidingWindowInferencer,
    samples: Iterable[Sample],
    evaluator: SegEvaluator,
    *,
    on_image: OnImage | None = None,
    score_side: int = 0,
) -> None:
    """Predicts and counts samples one by one, and keeps no prediction.

    A card gets the next image before the host reads the prediction of the last one.

    Args:
        predictor: predicts the images.
        samples: those without labels are predicted but not counted.
        evaluator: adds the counts.
        on_image: called with each sample, its prediction and its counts (None without a label).
        score_side: see `SlidingWindowInferencer.predict`; scores for `on_image`.
    """

    def begin(sample: Sample, scaled: list[Tensor]) -> Callable[[], None]:
        classes = of_labels = None
        if evaluator.detailed and sample.labels is not None:
            classes = evaluator.class_counts(sample.labels, predictor.device)
            if on_image is not None:
                of_labels = LabelProbabilities(sample.labels, evaluator.info.num_classes, predictor.device)
        collectors = [collector for collector in (classes, of_labels) if collector is not None]

        def on_band(band: ClassBand) -> None:
            for collector in collectors:
                collector.add(band)

        prediction = predictor.predict(
            sample.image,
            scaled=scaled,
            seeds=evaluator.reads_seeds,
            score_side=score_side,
            probability=evaluator.reads_probability,
            on_band=on_band if collectors else None,
        )
        begun = None
        if sample.labels is not None:
            begun = evaluator.begin(
                sample.labels,
                prediction,
                sample.name,
                invalid=sample.invalid,
                classes=classes,
                of_labels=of_labels,
            )
        copied = prediction.start_copy()

        def finish() -> None:
            prediction = copied()
            counts = None if begun is None else evaluator.finish(begun, prediction)
            if on_image is not None:
                on_image(sample, prediction, counts)

        return finish

    begun = (begin(sample, scaled) for sample, scaled in _prepare(predictor, samples))
    for _ in finish_behind(begun, predictor.backend.images_ahead):
        pass


def _prepare(predictor: SlidingWindowInferencer, samples: Iterable[Sample]) -> Iterator[tuple[Sample, list[Tensor]]]:
    """Samples with their image at every scale; the next one is prepared while one is predicted."""
    iterator = iter(samples)
    is_cuda = predictor.device.type == "cuda"

    def prepare() -> tuple[Sample, list[Tensor]] | None:
        sample = next(iterator, None)
        return None if sample is None else (sample, predictor.scaled_images(sample.image))

    # A new thread is on the first card, where page-locked memory would make every process take some.
    start = partial(torch.cuda.set_device, torch.cuda.current_device()) if is_cuda else None
    with ThreadPoolExecutor(1, initializer=start) as pool:
        # The first sample starts a loader's processes. Those that a thread of a pool starts fail when they end: Python
        # lets them wait for that thread, which they are themselves.
        ready = prepare()
        while ready is not None:
            waiting = pool.submit(prepare)
            yield ready
            ready = waiting.result()


def evaluation_from_counts(evaluator: SegEvaluator) -> Evaluation:
    """The scores that follow from the counts of all processes."""
    by_group = evaluator.counts["confusion"].sum(dim=2)  # (conditions, P, K, K)
    names, class_names = evaluator.prediction_names, evaluator.info.class_names

    def scores(tables: Tensor) -> dict[str, EvalResult]:
        return {name: scores_from_counts(table, class_names) for name, table in zip(names, tables, strict=True)}

    whole = by_group.sum(dim=0)
    conditions = zip(evaluator.info.conditions, by_group[1:], strict=True)
    return Evaluation(
        overall=scores(whole),
        by_condition={condition: scores(tables) for condition, tables in conditions if tables.any()},
        confusion=dict(zip(names, whole.tolist(), strict=True)),
        details=details_from_counts(evaluator) if evaluator.detailed else None,
        uncertainty=uncertainty_of(evaluator) if evaluator.uncertain_names else None,
    )


def uncertainty_of(evaluator: SegEvaluator) -> UncertaintyScores:
    """The uncertainty-aware scores of an evaluator that holds the counts of all processes."""
    counts = evaluator.counts["uncertainty"].cpu().numpy()
    return uncertainty_scores(counts, evaluator.uncertainty, evaluator.uncertain_names, evaluator.info.conditions)
