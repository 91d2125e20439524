"""The loss of masks and their classes: each mask of the labels is given to the query that fits it best (Cheng et al.,
2022). Matching and losses are those of transformers.

Shapes: ``B`` batch, ``Q`` queries, ``K`` classes, ``H W`` size of the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.structures import QueryOutput
from ovenet.utils import distributed

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
NOTHING_WEIGHT = 0.1  # of queries that got no mask, in the loss of the classes
NUM_POINTS = 12544  # of a mask that are compared, as published


class QueryLoss(nn.Module):
    """Class, mask and Dice losses, added over the layers of the decoder and weighted as published.

    Points where masks are compared are drawn with torch's generator, most of them where the masks are unsure. A pixel
    without a label belongs to no mask, as published.

    Args:
        num_classes: ``K``.
        ignore_label: of pixels without a label.
        num_points: of a mask that are compared.

    Raises:
        UserError: transformers or scipy is not installed.
    """

    def __init__(self, num_classes: int, *, ignore_label: int, num_points: int = NUM_POINTS):
        super().__init__()
        try:
            import scipy.optimize  # noqa: F401  # transformers looks for it only when it matches
            from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
            from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
        except ImportError as error:
            raise UserError(
                "the loss of masks and classes is that of transformers, with scipy; install both with: "
                'pip install -e ".[mask2former]"'
            ) from error
        self.ignore_label = ignore_label
        weights = {"class_weight": CLASS_WEIGHT, "mask_weight": MASK_WEIGHT, "dice_weight": DICE_WEIGHT}
        config = Mask2FormerConfig(
            num_labels=num_classes, train_num_points=num_points, no_object_weight=NOTHING_WEIGHT, **weights
        )
        self._loss = Mask2FormerLoss(config, {})

    def forward(self, queries: QueryOutput, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms ``class``, ``mask`` and ``dice``, whose sum is the loss; scalars in float32.

        Args:
            queries: of all layers.
            labels: ``(B, H, W)`` int64 train ids.
        """
        with torch.autocast(labels.device.type, enabled=False):
            classes, masks = self._targets(labels)
            # The published code averages over all processes, which may see different numbers of masks.
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
        """Classes ``(M,)`` of each image, and where they are ``(M, H, W)``, 1 or 0."""
        present = [image.unique() for image in labels]
        classes = [values[values != self.ignore_label] for values in present]
        return classes, [(image == own[:, None, None]).float() for image, own in zip(labels, classes, strict=True)]
