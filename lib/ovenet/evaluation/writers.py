"""Results as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.details import Details
from ovenet.evaluation.evaluate import Evaluation
from ovenet.evaluation.evaluator import ImageCounts
from ovenet.evaluation.image_scores import FEW_IMAGES, TENTH, GroupScores, ImageWise
from ovenet.evaluation.metrics import class_iou, mean_of_present, ratio
from ovenet.evaluation.uncertainty import UncertaintyCurve, UncertaintyScores, average_rows
from ovenet.structures import SYMBOLS, EvalResult, Sample
from ovenet.utils.writing import write_text

_MAX_NAMES = 12
_Row = tuple[str, Sequence[float | None]]  # title, and a score of each prediction


def format_evaluation(evaluation: Evaluation) -> str:
    """`format_table` of all that was scored."""
    return format_table(
        evaluation.overall, evaluation.by_condition, evaluation.details, evaluation.images, evaluation.uncertainty
    )


def format_table(
    results: Mapping[str, EvalResult],
    by_condition: Mapping[str, Mapping[str, EvalResult]] | None = None,
    details: Details | None = None,
    images: ImageWise | None = None,
    uncertainty: UncertaintyScores | None = None,
) -> str:
    """Per-class IoU of all predictions side by side, and the means below, in percent.

    Args:
        results: scores by prediction name, all of the same classes.
        by_condition: scores of parts of the split by prediction name; their mIoU gets a line each.
        details: detailed scores; boundary scores get a line each, seeds some lines below.
        images: image-wise scores; those of the whole split get some lines.
        uncertainty: uncertainty-aware scores; their averages get a line each.
    """
    first = next(iter(results.values()))
    rows: list[_Row] = [
        (name, [result.iou[k] for result in results.values()])
        for k, name in enumerate(first.class_names)
        if name not in first.absent
    ]
    summary: list[_Row] = [
        ("mIoU", [r.mean_iou for r in results.values()]),
        ("pixel accuracy", [r.pixel_accuracy for r in results.values()]),
        ("mean accuracy", [r.mean_accuracy for r in results.values()]),
        ("mean Dice", [r.mean_dice for r in results.values()]),
        ("fw IoU", [r.frequency_weighted_iou for r in results.values()]),
        *(_boundary_rows(details) if details else []),
        *(_image_rows(images.overall) if images else []),
        *((f"mIoU, {name}", [r.mean_iou for r in part.values()]) for name, part in (by_condition or {}).items()),
        *(average_rows(uncertainty, list(results)) if uncertainty else []),
    ]
    width = max(len(name) for name, _ in (*rows, *summary))
    header = f"{'IoU in %':<{width}}" + "".join(f"{SYMBOLS[name]:>9}" for name in results)
    line = "-" * len(header)
    lines = [header, line, *(_row(*row, width) for row in rows), line, *(_row(*row, width) for row in summary)]
    if first.absent:
        names = ", ".join(first.absent[:_MAX_NAMES])
        more = f" and {len(first.absent) - _MAX_NAMES} more" if len(first.absent) > _MAX_NAMES else ""
        lines.append(f"not in the labels and left out of the means: {names}{more}")
    if images:
        lines.append(_image_line(images.overall))
    if details:
        lines += _seed_lines(details) + _class_lines(details)
    if uncertainty:
        lines.append(
            f"AUIoU: confidence {uncertainty.confidence}; {_percent(uncertainty.invalid_share)} of the labelled pixels "
            "are marked as invalid"
        )
    return "\n".join(lines)


def _image_rows(group: GroupScores) -> list[_Row]:
    scores = group.scores.values()
    return [
        ("mIoU^I", [s.mean_iou_i for s in scores]),
        ("mIoU^I, worst tenth", [s.worst_i[TENTH] for s in scores]),
        ("mIoU^C", [s.mean_iou_c for s in scores]),
    ]


def _image_line(group: GroupScores) -> str:
    number, worst = group.num_images, group.num_worst[TENTH]
    tail = "one image, too few to go by" if number < FEW_IMAGES else f"{worst} of them"
    return f"mIoU^I: mean over {number} images; the worst tenth is {tail}"


def _boundary_rows(details: Details) -> list[_Row]:
    rows: list[_Row] = []
    for title, means in (
        ("Boundary IoU", details.boundaries.mean_iou),
        ("boundary F", details.boundaries.mean_f_score),
    ):
        for index, share in enumerate(details.boundaries.ratios):
            rows.append((f"{title}, {100 * share:g} %", [values[index] for values in means.values()]))
    return rows


def _seed_lines(details: Details) -> list[str]:
    if details.seeds is None or details.calibration is None:
        return []
    seeds = details.seeds
    return [
        f"seeds on their pixel's class: {_percent(seeds.right_class)}, "
        f"where S_i is wrong: {_percent(seeds.right_class_where_wrong)}",
        f"S_f corrects {_percent(seeds.corrected['fused'])} of the pixels that S_i has wrong, "
        f"and breaks {_percent(seeds.broken['fused'])} of those it has right",
        f"confidence: expected calibration error {_percent(details.calibration.expected_error)}, "
        f"area under risk and coverage {details.calibration.area_under_risk:.4f}",
    ]


def _class_lines(details: Details) -> list[str]:
    if details.class_calibration is None:
        return []
    of = details.class_calibration.items()
    errors = ", ".join(f"{SYMBOLS[name]} {_percent(scores.expected_error)}" for name, scores in of)
    losses = ", ".join(f"{SYMBOLS[name]} {scores.nll:.4f}" for name, scores in of)
    return [f"class probabilities: expected calibration error {errors}; negative log-likelihood {losses}"]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _row(name: str, values: Sequence[float | None], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{'–':>9}" if v is None else f"{100 * v:9.2f}" for v in values)


def results_as_dict(results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """Scores as plain numbers in ``[0, 1]``, None where a class has no labelled pixel."""
    return {
        name: {
            "mean_iou": _plain(r.mean_iou),
            "pixel_accuracy": _plain(r.pixel_accuracy),
            "mean_accuracy": _plain(r.mean_accuracy),
            "mean_dice": _plain(r.mean_dice),
            "frequency_weighted_iou": _plain(r.frequency_weighted_iou),
            "num_pixels": r.num_pixels,
            "absent": list(r.absent),
            "iou": {c: _plain(v) for c, v in zip(r.class_names, r.iou, strict=True)},
            "accuracy": {c: _plain(v) for c, v in zip(r.class_names, r.accuracy, strict=True)},
            "dice": {c: _plain(v) for c, v in zip(r.class_names, r.dice, strict=True)},
        }
        for name, r in results.items()
    }


def evaluation_as_dict(evaluation: Evaluation, info: DatasetInfo) -> dict[str, Any]:
    """All scores and their classes, as plain numbers and strings."""
    content: dict[str, Any] = {
        "dataset": info.name,
        "classes": {"names": list(info.class_names), "palette": [list(color) for color in info.palette]},
        "results": results_as_dict(evaluation.overall),
        "confusion": evaluation.confusion,
    }
    if evaluation.by_condition:
        content["conditions"] = {name: results_as_dict(part) for name, part in evaluation.by_condition.items()}
    if evaluation.uncertainty:
        content["uncertainty"] = uncertainty_as_dict(evaluation.uncertainty, info)
    if evaluation.details:
        content["details"] = details_as_dict(evaluation.details)
    if evaluation.images:
        content["images"] = images_as_dict(evaluation.images, info.class_names)
    if evaluation.label_thresholds:
        content["label_quality"] = {
            "threshold_percent": dict(zip(info.class_names, evaluation.label_thresholds.by_class, strict=True)),
            "seed_threshold_percent": evaluation.label_thresholds.seed,
        }
    return content


def images_as_dict(images: ImageWise, class_names: Sequence[str]) -> dict[str, Any]:
    """The fields of `ImageWise` as plain numbers, those of classes by name; None for NaN."""

    def by_class(values: np.ndarray) -> dict[str, Any]:
        return dict(zip(class_names, values.tolist(), strict=True))

    def group(own: GroupScores) -> dict[str, Any]:
        scores = {name: {**asdict(s), "iou_c": by_class(s.iou_c)} for name, s in own.scores.items()}
        return {**asdict(own), "images_by_class": by_class(own.images_by_class), "scores": scores}

    conditions = {name: group(own) for name, own in images.by_condition.items()}
    return _plain({"overall": group(images.overall), "conditions": conditions})


def details_as_dict(details: Details) -> dict[str, Any]:
    """The fields of `Details` as plain numbers and lists; None for NaN and infinity."""
    return _plain(asdict(details))


def uncertainty_as_dict(scores: UncertaintyScores, info: DatasetInfo) -> dict[str, Any]:
    """The fields of `UncertaintyScores` as plain numbers and lists; None for NaN."""

    def plain(curves: Mapping[str, UncertaintyCurve]) -> dict[str, Any]:
        return {
            name: {
                "average": curve.average,
                "mean_uiou": curve.mean_uiou,
                "by_class": dict(zip(info.class_names, curve.by_class.tolist(), strict=True)),
            }
            for name, curve in curves.items()
        }

    by_condition = {name: plain(curves) for name, curves in scores.by_condition.items()}
    return _plain({**vars(scores), "overall": plain(scores.overall), "by_condition": by_condition})


def image_record(index: int, sample: Sample, counts: ImageCounts | None, names: Sequence[str]) -> dict[str, Any]:
    """The record of one image, as plain numbers.

    Args:
        index: index of the image in the list.
        sample: the image.
        counts: counts of the image; None without a label.
        names: names of the predictions.

    Returns:
        ``scores`` by prediction name: mean IoU, pixel accuracy, and IoU by train id of the classes in the label;
        ``pixels`` by train id of the classes that occur: number of pixels of the ``label``, and by prediction name
        numbers of right and of predicted pixels among the labelled ones;
        ``changed``: share of the pixels that S_f gets right and S_i does not, or the reverse;
        ``label_quality``: statistics that `ovenet.evaluation.label_quality.finish_records` replaces.
    """
    record: dict[str, Any] = {"index": index, "name": sample.name, "size": list(sample.image.shape[:2])}
    if counts is None:
        return record
    record["scores"] = {}
    record["pixels"] = {"label": _where_any(counts.confusion[0].sum(axis=1))}
    for name, table in zip(names, counts.confusion, strict=True):
        right, labelled = table.diagonal(), table.sum(axis=1)
        iou = class_iou(table)
        record["scores"][name] = {
            "mean_iou": mean_of_present(iou),
            "pixel_accuracy": float(ratio(right.sum(), labelled.sum())),
            "iou": {int(k): iou[k] for k in np.flatnonzero(labelled)},
        }
        record["pixels"][name] = _where_any(np.stack([right, table.sum(axis=0)], axis=1))
    if counts.seed is not None and counts.seed.sum():
        by_initial_and_fused = counts.seed.sum(axis=1)
        record["corrected"], record["broken"] = int(by_initial_and_fused[0, 1]), int(by_initial_and_fused[1, 0])
        record["changed"] = (record["corrected"] + record["broken"]) / int(counts.seed.sum())
    if counts.label_quality:
        record["label_quality"] = counts.label_quality
    return _plain(record)


def _where_any(counts: np.ndarray) -> dict[int, Any]:
    """Counts by class ``(K, ...)`` as lists, without classes of zero counts."""
    return {k: row.tolist() for k, row in enumerate(counts) if row.any()}


def _plain(value: Any) -> Any:
    """The same value in types that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes an indented JSON file, creating its folder."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
