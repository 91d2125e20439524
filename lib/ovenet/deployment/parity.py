"""Parity: compares an exported network with the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovenet.evaluation.metrics import confusion_counts, scores_from_counts

Tensors = Callable[[np.ndarray], dict[str, Tensor]]  # an image (H, W, 3) uint8 to tensors by name


@dataclass(frozen=True)
class Limits:
    """Largest allowed differences of an exported network.

    Attributes:
        changed: share of the pixels with another class.
        mean_iou: loss of mIoU, in ``[0, 1]``.
    """

    changed: float
    mean_iou: float


EXACT = Limits(changed=0.001, mean_iou=0.0005)
QUANTIZED = Limits(changed=0.05, mean_iou=0.005)


@dataclass(frozen=True)
class Parity:
    """Differences between an exported network and the trained one.

    Attributes:
        num_images: number of images compared.
        difference: largest difference of a tensor relative to its largest value; 0 for labels.
        changed: share of the pixels with another class.
        mean_iou: mIoU of the trained and of the exported network; None without labels.
    """

    num_images: int
    difference: float
    changed: float
    mean_iou: tuple[float, float] | None

    def problem(self, limits: Limits) -> str:
        """Names the limit that is exceeded; "" if none is."""
        if self.changed > limits.changed:
            return (
                f"{100 * self.changed:.3f} % of the pixels change their class, at most {100 * limits.changed:g} % may"
            )
        if self.mean_iou and self.mean_iou[0] - self.mean_iou[1] > limits.mean_iou:
            loss, most = 100 * (self.mean_iou[0] - self.mean_iou[1]), 100 * limits.mean_iou
            return f"{loss:.3f} points of mIoU are lost, at most {most:g} may be"
        return ""

    def __str__(self) -> str:
        iou = ""
        if self.mean_iou:
            iou = f", mIoU {100 * self.mean_iou[1]:.2f} (trained: {100 * self.mean_iou[0]:.2f})"
        return (
            f"{self.num_images} images: largest difference {self.difference:.1e} of the largest, "
            f"{100 * self.changed:.4f} % of the pixels change their class{iou}"
        )


@torch.inference_mode()
def compare(
    trained: Tensors,
    exported: Tensors,
    classes: Callable[[dict[str, Tensor], tuple[int, int]], Tensor],
    samples: Iterable[tuple[np.ndarray, Tensor | None]],
    class_names: tuple[str, ...],
    *,
    ignore_label: int,
) -> Parity:
    """Runs both networks on the same images.

    Args:
        trained, exported: compute the tensors of an image.
        classes: computes train ids ``(H, W)`` from the tensors, for an image of that size.
        samples: images of the network's size, each with its train ids ``(H, W)`` or None.
        class_names: ``K`` names.
        ignore_label: label of ignored pixels.
    """
    num_images, difference, changed, num_pixels = 0, 0.0, 0, 0
    counts = torch.zeros((2, len(class_names), len(class_names)), dtype=torch.int64)
    for image, labels in samples:
        ours, theirs = trained(image), exported(image)
        difference = max(difference, *(_difference(ours[name], theirs[name]) for name in theirs))
        own, other = (classes(maps, image.shape[:2]) for maps in (ours, theirs))
        changed += int((own != other).sum())
        num_pixels += own.numel()
        num_images += 1
        if labels is not None:
            for index, prediction in enumerate((own, other)):
                counts[index] += confusion_counts(prediction, labels, len(class_names), ignore_label=ignore_label)
    before, after = (scores_from_counts(table, class_names).mean_iou for table in counts)
    return Parity(num_images, difference, changed / max(1, num_pixels), (before, after) if counts.any() else None)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if not ours.is_floating_point():
        return 0.0
    if not torch.isfinite(theirs).all():
        return float("inf")
    return float((ours - theirs).abs().amax() / ours.abs().amax().clamp_min(1e-12))
