"""Types that several packages share.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size, ``h w`` score map size (image size over the stride, rounded up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import Tensor

Size = tuple[int, int]  # (height, width), unless a name says (width, height)
SYMBOLS = {"initial": "S_i", "seed": "S_s", "fused": "S_f"}  # of the predictions, as the paper has them
ScoreKind = Literal["logits", "probabilities", "unnormalized"]  # unnormalized: at least 0, but the sum is not 1
NUM_DIRECTIONS = 8  # of `DirectionOutput`


@dataclass(frozen=True)
class Normalization:
    """Normalisation of a network's input; by default ImageNet's, which most published weights were trained with.

    Attributes:
        mean: per-channel mean, in [0, 1].
        std: per-channel standard deviation, in [0, 1].
        channel_order: channel order of the network's input; image files are read as RGB. For other numbers of
            channels than three, ``RGB`` is the order of the array.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @property
    def pad_color(self) -> tuple[int, ...]:
        """The colour of an image file or array, in 0 to 255, that is nearest to zero after normalisation."""
        color = tuple(round(255 * m) for m in self.mean)
        return color if self.channel_order == "RGB" else color[::-1]

    def for_channels(self, num_channels: int) -> Normalization:
        """The normalisation of images with another number of channels, as weights are adapted to them.

        One channel is the mean of the three; for more, the three are repeated: red, green, blue, red, …
        """
        if num_channels == len(self.mean):
            return self
        mean, std = (
            (sum(values) / len(values),) if num_channels == 1 else (values * num_channels)[:num_channels]
            for values in (self.mean, self.std)
        )
        return Normalization(mean, std)


@dataclass(frozen=True)
class Sample:
    """One image and its label, as read from disk or as transformed.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(H, W)`` int16 class ids or the ignore id; None where the list names no label.
        name: path of the image, relative to the dataset's folder.
        problem: why the sample that this one replaces could not be read; "" if it replaces none.
        changes: ``(N,)`` float32 parameters of the augmentation that the device still applies, see
            `ovenet.data.augmentation`; None for no augmentation.
        invalid: ``(H, W)`` bool, pixels marked as invalid; None where they are not read.
    """

    image: np.ndarray
    labels: np.ndarray | None
    name: str
    problem: str = ""
    changes: np.ndarray | None = None
    invalid: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB, channels last in memory; augmented and normalised on the device by
            `ovenet.data.augmentation.prepared`.
        labels: ``(B, H, W)`` int16 class ids or the ignore id.
        names: ``B`` image paths.
        problems: why each replaced sample could not be read.
        changes: ``(B, N)`` float32, see `Sample.changes`; None for no augmentation.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    changes: Tensor | None = None

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; torch's DataLoader calls this method."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    @property
    def tensors(self) -> list[Tensor]:
        """Images, labels, and changes if there are any."""
        return [self.images, self.labels, *(() if self.changes is None else (self.changes,))]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> list[Batch]:
        """Batches without names from their concatenated `tensors`; each batch starts at a 4-dimensional tensor."""
        starts = [index for index, tensor in enumerate(tensors) if tensor.ndim == 4]
        ends = [*starts[1:], len(tensors)]
        parts = [tensors[start:end] for start, end in zip(starts, ends, strict=True)]
        return [cls(part[0], part[1], (), changes=part[2] if len(part) > 2 else None) for part in parts]

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changes = None if self.changes is None else change(self.changes)
        return replace(self, images=change(self.images), labels=change(self.labels), changes=changes)


@dataclass(frozen=True)
class QueryOutput:
    """Masks and their classes, predicted by a decoder with ``Q`` queries; one entry per decoder layer.

    Attributes:
        classes: logits ``(B, Q, K + 1)``; the last class is "no object".
        masks: logits ``(B, Q, h, w)``.
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class DirectionOutput:
    """Borders of the classes, and directions away from them.

    Attributes:
        boundary: logits ``(B, 1, h, w)`` of being near a border.
        direction: logits ``(B, NUM_DIRECTIONS, h, w)``; direction ``i`` is an angle of ``45° i`` from x (to the right)
            to y (down).
    """

    boundary: Tensor
    direction: Tensor


@dataclass(frozen=True)
class PointOutput:
    """Prediction at ``P`` points of each image, which need not be centres of pixels.

    Attributes:
        logits: ``(B, K, P)``.
        position: ``(B, 2, P)`` in ``(x, y)``, normalised to ``[-1, 1]`` in the model's ``align_corners`` convention.
    """

    logits: Tensor
    position: Tensor


@dataclass(frozen=True)
class OVeNetOutput:
    """Prediction of a model at the stride of its head. Score maps are tuples: auxiliary first, final last.

    A baseline, a model without a seed, has no `seed` scores, offset or confidence.

    Attributes:
        initial: ``S_i``, each ``(B, K, h, w)``.
        seed: ``S_s``, the initial scores sampled at each pixel's seed pixel; empty for a baseline.
        fused: ``S_f``; the same tensors as `initial` for a baseline.
        offset: ``(B, 2, h, w)`` from pixel to seed pixel in ``(x, y)``, normalised so that the image spans
            ``[-1, 1]``; None for a baseline.
        confidence: ``(B, 1, h, w)`` in ``[0, 1]``, the weight of the seed's scores; None for a baseline.
        score_kind: whether the score maps hold logits or probabilities (``MODEL.SEED.FUSE_LOGITS``).
        embedding: ``(B, D, h, w)`` pixel embeddings for contrastive losses; None if the head has none.
        queries: masks and their classes, in training; None if the head has none.
        directions: borders and directions, to be trained; None for all but a seed that predicts them.
        points: prediction at sampled points, in training; None if the refiner has none.
    """

    initial: tuple[Tensor, ...]
    seed: tuple[Tensor, ...]
    fused: tuple[Tensor, ...]
    offset: Tensor | None = None
    confidence: Tensor | None = None
    score_kind: ScoreKind = "logits"
    embedding: Tensor | None = None
    queries: QueryOutput | None = None
    directions: DirectionOutput | None = None
    points: PointOutput | None = None

    @property
    def has_seed(self) -> bool:
        """Whether the model has a seed."""
        return self.offset is not None

    def predictions(self, index: int = -1) -> dict[str, Tensor]:
        """The score maps to evaluate, by name.

        Args:
            index: index into each tuple of score maps; -1 is the final map.

        Returns:
            ``{"initial", "seed", "fused"}``, or ``{"fused"}`` alone for a baseline.
        """
        if not self.has_seed:
            return {"fused": self.fused[index]}
        return {"initial": self.initial[index], "seed": self.seed[index], "fused": self.fused[index]}


@dataclass(frozen=True)
class LossTerms:
    """The total loss and its unweighted terms, each a scalar.

    Attributes:
        total: the weighted sum, to call ``backward`` on.
        terms: detached terms by name, those that the model has of ``initial``, ``seed``, ``fused``, ``confidence``,
            ``offset``, ``boundary``, ``direction``, ``points``, ``contrast``, ``class``, ``mask``, ``dice``.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """Scores of one score map against the labels, all in ``[0, 1]``.

    Attributes:
        class_names: ``K`` names.
        iou: ``(K,)`` intersection over union; NaN for a class without a labelled pixel.
        accuracy: ``(K,)`` recall of each class; NaN for a class without a labelled pixel.
        dice: ``(K,)`` twice the intersection over the sum of both areas; NaN for a class without a labelled pixel.
        mean_iou: mean of ``iou`` over the classes that have labelled pixels.
        mean_accuracy: mean of ``accuracy`` over the same classes.
        mean_dice: mean of ``dice`` over the same classes.
        frequency_weighted_iou: mean of ``iou`` weighted by the classes' labelled pixels.
        pixel_accuracy: fraction of the labelled pixels that are predicted correctly.
        num_pixels: number of labelled pixels.
        absent: names of the classes without a labelled pixel.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    accuracy: np.ndarray
    dice: np.ndarray
    mean_iou: float
    mean_accuracy: float
    mean_dice: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    num_pixels: int
    absent: tuple[str, ...]
