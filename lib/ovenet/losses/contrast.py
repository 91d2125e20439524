"""Contrast between pixels (Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", 2021): pixels
of one class are to have embeddings like each other's and unlike those of other classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1
BASE_TEMPERATURE = 0.07


class PixelContrast(nn.Module):
    """The contrast of sampled pixels, the anchors.

    Anchors are drawn at random on each process for itself, with torch's generator: with another number of processes
    they are others, unlike all other terms of the loss.

    Args:
        ignore_label: of ignored pixels.
        start: iterations before the loss counts; until then it is zero, with a gradient of zero.
        max_samples: anchors of a batch.
        max_views: anchors of a class in an image; classes that have no more pixels than that in it give none.
    """

    def __init__(self, *, ignore_label: int, start: int = 5000, max_samples: int = 1024, max_views: int = 100):
        super().__init__()
        self.ignore_label, self.start = ignore_label, start
        self.max_samples, self.max_views = max_samples, max_views

    def forward(self, embedding: Tensor, scores: Tensor, labels: Tensor, *, iteration: int | None = None) -> Tensor:
        """The loss of a batch, a scalar in float32 at least.

        Args:
            embedding: ``(B, D, h, w)``, of length 1 over the channels.
            scores: ``(B, K, h, w)``; anchors are drawn half from the pixels that they have wrong.
            labels: ``(B, H, W)`` train ids.
            iteration: how many have been trained; None for enough.
        """
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        nothing = 0.0 * embedding.sum()
        if iteration is not None and iteration < self.start:
            return nothing
        size = embedding.shape[-2:]
        small = F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long().flatten(1)
        pixels, classes = draw_anchors(
            small,
            scores.detach().argmax(dim=1).flatten(1),
            ignore_label=self.ignore_label,
            max_samples=self.max_samples,
            max_views=self.max_views,
        )
        if len(pixels) == 0:
            return nothing
        anchors = embedding.flatten(2).transpose(1, 2).flatten(0, 1)[pixels]
        with torch.autocast(embedding.device.type, enabled=False):
            return contrast(anchors, classes)


def draw_anchors(
    labels: Tensor, predicted: Tensor, *, ignore_label: int, max_samples: int, max_views: int
) -> tuple[Tensor, Tensor]:
    """Draws pixels, as many of each class in each image.

    Half of them are pixels that are predicted wrong, as far as there are enough of both.

    Args:
        labels: ``(B, N)`` train ids.
        predicted: ``(B, N)`` train ids.
        ignore_label: of ignored pixels.
        max_samples: to draw in all.
        max_views: to draw of a class in an image; only classes with more pixels than that are drawn from.

    Returns:
        Places of the pixels in all images ``(A,)``, and their classes; none where there would be less than two of each.
    """
    groups = []  # right and wrong pixels of a class in an image
    for image, (own, guess) in enumerate(zip(labels, predicted, strict=True)):
        classes, counts = own.unique(return_counts=True)
        for label in classes[counts > max_views].tolist():
            if label != ignore_label:
                of_class = (own == label).nonzero()[:, 0]
                is_right = guess[of_class] == label
                places = of_class + image * labels.shape[1]
                groups.append((label, places[is_right], places[~is_right]))
    num_each = min(max_samples // len(groups), max_views) if groups else 0
    if num_each < 2:
        return labels.new_empty(0), labels.new_empty(0)
    pixels = torch.cat([_mixed(right, wrong, num_each) for _, right, wrong in groups])
    drawn = torch.tensor([label for label, _, _ in groups], device=labels.device)
    return pixels, drawn.repeat_interleave(num_each)


def _mixed(right: Tensor, wrong: Tensor, number: int) -> Tensor:
    """How many right and wrong pixels to draw, half of them wrong if possible."""
    num_wrong = min(max(number // 2, number - len(right)), len(wrong))
    wrong = wrong[torch.randperm(len(wrong), device=wrong.device)[:num_wrong]]
    right = right[torch.randperm(len(right), device=right.device)[: number - num_wrong]]
    return torch.cat((wrong, right))


def contrast(anchors: Tensor, classes: Tensor) -> Tensor:
    """InfoNCE, averaged over the anchors: each other anchor of the class against all anchors of other classes.

    Args:
        anchors: ``(A, D)``, of length 1; each class has two at least.
        classes: ``(A,)``.
    """
    likeness = anchors @ anchors.T / TEMPERATURE
    same = classes[:, None] == classes[None, :]
    others = likeness.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_share = likeness - torch.logaddexp(likeness, others)
    positive = same & ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    mean = (log_share * positive).sum(dim=1) / positive.sum(dim=1)
    return -(TEMPERATURE / BASE_TEMPERATURE) * mean.mean()
