"""Loss and scores for a training loop of one's own, from plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ovenet.builders.losses import AUXILIARY_WEIGHT
from ovenet.data.description import Classes
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError, nearest
from ovenet.evaluation.batches import BatchEvaluator
from ovenet.losses import PixelContrast, QueryLoss, SegmentationCriterion
from ovenet.losses.settings import LossSettings
from ovenet.models import Segmentor
from ovenet.models.segmentor import unwrapped
from ovenet.structures import EvalResult

_ELSEWHERE = {
    "class_balance",
    "class_weights",
    "balance_weights",
}


def create_criterion(
    model: nn.Module,
    *,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    output_weights: Sequence[float] | None = None,
    contrast_weight: float = 0.1,
    **settings: Any,
) -> SegmentationCriterion:
    """The training loss of a model built by `ovenet.create_model`, without a configuration.

        criterion = ovenet.create_criterion(model)
        criterion(model(images), labels).total.backward()

    Args:
        model: with or without a seed, of any head; may be wrapped for data-parallel training.
        ignore_label: label of pixels that do not count.
        class_weights: ``K`` weights; None for equal ones.
        output_weights: weight of each score map, auxiliary first; None is 1, and 0.4 for auxiliary ones.
        contrast_weight: weight of the contrastive loss, for heads with an embedding.
        settings: the other settings of section ``LOSS`` (docs/settings.md) in lower case, such as ``kappa``,
            ``use_ohem`` or ``terms``.

    Raises:
        UserError: there is no such setting, or a number of weights is wrong.
    """
    segmentor = unwrapped(model)
    recipe = _recipe(segmentor)
    known = {field.name: field for field in fields(LossSettings) if field.name not in _ELSEWHERE}
    unknown = next((name for name in settings if name not in known), None)
    if unknown is not None:
        raise UserError(f"{unknown}: the loss has no such setting; did you mean {nearest(unknown, known)}?")
    num_outputs, num_classes = segmentor.head.num_outputs, recipe["num_classes"]
    if output_weights is not None and len(output_weights) != num_outputs:
        raise UserError(f"output_weights has {len(output_weights)} entries; the model has {num_outputs} score map(s)")
    if class_weights is not None and len(class_weights) != num_classes:
        raise UserError(f"class_weights has {len(class_weights)} entries; the model predicts {num_classes} classes")
    has_embedding = any(key.lower() == "embedding" and value for key, value in recipe["head_args"].items())
    return SegmentationCriterion(
        LossSettings(**settings),
        ignore_label=ignore_label,
        class_weights=class_weights,
        output_weights=output_weights or (AUXILIARY_WEIGHT,) * (num_outputs - 1) + (1.0,),
        align_corners=recipe["align_corners"],
        contrast=PixelContrast(ignore_label=ignore_label) if has_embedding else None,
        contrast_weight=contrast_weight,
        queries=QueryLoss(num_classes, ignore_label=ignore_label) if segmentor.head.has_queries else None,
    )


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Classes | None = None,
    ignore_label: int = 255,
) -> dict[str, EvalResult]:
    """Scores a model on the batches of a loader; the model is in evaluation mode meanwhile.

        scores = ovenet.evaluate(model, DataLoader(validation))
        scores["fused"].mean_iou, scores["initial"].mean_iou

    Images are run whole, at the size at which they come.

    Args:
        model: built by `ovenet.create_model`, on any device.
        batches: pairs of normalised images ``(B, C, H, W)`` and labels ``(B, H, W)``, such as a DataLoader of
            `ovenet.data.pairs.SegmentationDataset` gives; or dictionaries with ``pixel_values`` and ``labels``. With
            several processes, each has its own part.
        classes: see `ovenet.data.description.describe_classes`; None asks the dataset of the loader, or the model.
        ignore_label: label of pixels that do not count.

    Returns:
        By prediction: ``fused``, and with a seed ``initial`` and ``seed``.

    Raises:
        UserError: the loader is empty or without labels, or its dataset has another normalisation or other classes.
    """
    segmentor = unwrapped(model)
    recipe = _recipe(segmentor)
    dataset = getattr(batches, "dataset", None)
    normalization = getattr(dataset, "normalization", segmentor.normalization)
    if normalization != segmentor.normalization:
        raise UserError(
            f"the dataset normalises images with mean {normalization.mean}, and the model expects "
            f"{segmentor.normalization.mean}; give the dataset normalization=model.normalization"
        )
    if classes is None:
        info = getattr(dataset, "info", None)
        classes = (
            info if isinstance(info, DatasetInfo) else segmentor.metadata.get("class_names", recipe["num_classes"])
        )
    evaluator = BatchEvaluator(classes, ignore_label=ignore_label, align_corners=recipe["align_corners"])
    if len(evaluator.class_names) != recipe["num_classes"]:
        raise UserError(
            f"classes has {len(evaluator.class_names)} names, and the model predicts {recipe['num_classes']} classes"
        )
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                images, labels = _images_and_labels(batch)
                evaluator.update(model(images.to(device)), labels.to(device))
    finally:
        model.train(was_training)
    if not evaluator.counts:
        raise UserError("the loader has no batch; expected at least one")
    return evaluator.compute()


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["pixel_values"], batch["labels"]
    if isinstance(batch, Tensor):
        raise UserError("the loader gives images without labels; give the dataset its masks")
    images, labels, *_ = batch
    return images, labels


def _recipe(model: Segmentor) -> Mapping[str, Any]:
    if model.recipe is None:
        raise UserError(
            "this model was composed from its parts; name what it needs to ovenet.SegmentationCriterion and "
            "ovenet.BatchEvaluator, or build it with ovenet.create_model"
        )
    return model.recipe
