"""Contrastive loss of pixel embeddings (Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation",
2021): embeddings of the same class are pulled together, those of different classes pushed apart.

Shapes: ``B`` batch, ``K`` classes, ``D`` embedding channels, ``h w`` embedding size, ``H W`` label size, ``A`` anchors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.geometry import at_least_float32

TEMPERATURE = 0.1
BASE_TEMPERATURE = 0.07


class PixelContrast(nn.Module):
    """Contrastive loss of randomly drawn pixels, the anchors.

    Each rank draws its own anchors with torch's generator, so that this term, unlike all others, depends on the number
    of ranks.

    Args:
        ignore_label: label of ignored pixels.
        start: iteration from which the loss counts; before, it is zero with a zero gradient.
        max_samples: maximum number of anchors per batch.
        max_views: maximum number of anchors per class and image; classes with at most as many pixels are left out.
    """

    def __init__(self, *, ignore_label: int, start: int = 5000, max_samples: int = 1024, max_views: int = 100):
        super().__init__()
        self.ignore_label, self.start = ignore_label, start
        self.max_samples, self.max_views = max_samples, max_views

    def forward(self, embedding: Tensor, scores: Tensor, labels: Tensor, *, iteration: int | None = None) -> Tensor:
        """The loss of a batch, a scalar in at least float32.

        Args:
            embedding: ``(B, D, h, w)``, of unit length over the channels.
            scores: ``(B, K, h, w)``; half of the anchors are drawn from wrongly predicted pixels.
            labels: ``(B, H, W)`` class ids.
            iteration: number of finished iterations; None for at least `start`.
        """
        embedding = at_least_float32(embedding)
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
    """Draws pixels, the same number for each class of each image, half of them wrongly predicted if possible.

    Args:
        labels: class ids ``(B, N)``.
        predicted: class ids ``(B, N)``.
        ignore_label: label of ignored pixels.
        max_samples: maximum number of pixels in total.
        max_views: maximum number of pixels per class and image; classes with at most as many pixels are left out.

    Returns:
        Indices ``(A,)`` into the flattened labels, and the classes ``(A,)``; empty if there were fewer than two pixels
        for each class of each image.
    """
    groups = []  # indices of the correct and the wrong pixels, for each class of each image
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
    pixels = torch.cat([_draw_half_wrong(right, wrong, num_each) for _, right, wrong in groups])
    drawn = torch.tensor([label for label, _, _ in groups], device=labels.device)
    return pixels, drawn.repeat_interleave(num_each)


def _draw_half_wrong(right: Tensor, wrong: Tensor, number: int) -> Tensor:
    """Draws `number` of the pixels, half of them wrong if possible."""
    num_wrong = min(max(number // 2, number - len(right)), len(wrong))
    wrong = wrong[torch.randperm(len(wrong), device=wrong.device)[:num_wrong]]
    right = right[torch.randperm(len(right), device=right.device)[: number - num_wrong]]
    return torch.cat((wrong, right))


def contrast(anchors: Tensor, classes: Tensor) -> Tensor:
    """InfoNCE, averaged over the anchors; anchors of the same class are positives, those of other classes negatives.

    Args:
        anchors: embeddings ``(A, D)`` of unit length, at least two per class.
        classes: class ids ``(A,)``.
    """
    similarity = anchors @ anchors.T / TEMPERATURE
    same = classes[:, None] == classes[None, :]
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_probability = similarity - torch.logaddexp(similarity, negatives)
    positive = same & ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    mean = (log_probability * positive).sum(dim=1) / positive.sum(dim=1)
    return -(TEMPERATURE / BASE_TEMPERATURE) * mean.mean()
