"""Mask2Former's loss of masks and their classes: each mask of the labels is matched to a query (Cheng et al., 2022).
Matching and losses come from the library transformers.

Shapes: ``B`` batch, ``Q`` queries, ``K`` classes, ``H W`` label size.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.structures import QueryOutput
from ovenet.utils import distributed

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
NO_OBJECT_WEIGHT = 0.1  # weight of unmatched queries in the class loss
NUM_POINTS = 12544  # number of points of a mask in the mask and Dice losses


class QueryLoss(nn.Module):
    """Class, mask and Dice losses with the published weights, summed over the decoder's layers.

    Masks are compared at random points, most of them where the prediction is uncertain. As published, an ignored pixel
    belongs to no mask.

    Args:
        num_classes: ``K``.
        ignore_label: label of ignored pixels.
        num_points: number of points of a mask in the mask and Dice losses.

    Raises:
        UserError: transformers or scipy is not installed.
    """

    def __init__(self, num_classes: int, *, ignore_label: int, num_points: int = NUM_POINTS):
        super().__init__()
        try:
            import scipy.optimize  # noqa: F401  # transformers imports it only when it matches

            modeling: Any = import_module("transformers.models.mask2former.modeling_mask2former")
        except ImportError as error:
            raise UserError(
                "the loss of the mask2former head needs transformers and scipy; install both with: "
                'pip install -e ".[mask2former]"'
            ) from error
        self.ignore_label = ignore_label
        weights = {"class_weight": CLASS_WEIGHT, "mask_weight": MASK_WEIGHT, "dice_weight": DICE_WEIGHT}
        config = modeling.Mask2FormerConfig(
            num_labels=num_classes, train_num_points=num_points, no_object_weight=NO_OBJECT_WEIGHT, **weights
        )
        self._loss = modeling.Mask2FormerLoss(config, {})

    def forward(self, queries: QueryOutput, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms ``class``, ``mask`` and ``dice``, float32 scalars; the loss is their sum.

        Args:
            queries: predictions of all layers.
            labels: ``(B, H, W)`` int64 class ids.
        """
        with torch.autocast(labels.device.type, enabled=False):
            classes, masks = self._targets(labels)
            # As published, the number of masks is averaged over all ranks.
            num_masks = torch.tensor(float(sum(map(len, classes))), device=labels.device)
            num_masks = (distributed.all_reduce_sum(num_masks) / distributed.world_size()).clamp_min(1.0)
            terms = {name: labels.new_zeros((), dtype=torch.float32) for name in ("class", "mask", "dice")}
            for class_logits, mask_logits in zip(queries.classes, queries.masks, strict=True):
                class_logits, mask_logits = class_logits.float(), mask_logits.float()
                pairs = self._loss.matcher(mask_logits, class_logits, masks, classes)
                of_masks = self._loss.loss_masks(mask_logits, masks, pairs, num_masks)
                of_classes = self._loss.loss_labels(class_logits, classes, pairs)
                terms["class"] = terms["class"] + CLASS_WEIGHT * of_classes["loss_cross_entropy"]
                terms["mask"] = terms["mask"] + MASK_WEIGHT * of_masks["loss_mask"]
                terms["dice"] = terms["dice"] + DICE_WEIGHT * of_masks["loss_dice"]
        return terms

    def _targets(self, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For each image, the ids of its ``M`` classes ``(M,)`` and their binary masks ``(M, H, W)``."""
        present = [image.unique() for image in labels]
        classes = [values[values != self.ignore_label] for values in present]
        return classes, [(image == own[:, None, None]).float() for image, own in zip(labels, classes, strict=True)]
