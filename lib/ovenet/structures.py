"""Dataclasses that cross the layers of the package.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size, ``h w`` score map size (that over the stride, rounded up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import Tensor

Size = tuple[int, int]  # (height, width) or (width, height), as the name of the variable says
ScoreKind = Literal["logits", "probabilities", "unnormalized"]  # the last: shares whose sum is not 1


@dataclass(frozen=True)
class Normalization:
    """Normalisation of a network's input; the default is ImageNet's, which most published weights were trained with.

    Attributes:
        mean: per channel, as a share of 255.
        std: per channel, likewise.
        channel_order: of the image that enters the network; images are read as RGB.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @property
    def pad_color(self) -> tuple[int, int, int]:
        """The RGB grey levels that come out nearest to zero."""
        color = tuple(round(255 * m) for m in self.mean)
        return color if self.channel_order == "RGB" else color[::-1]


@dataclass(frozen=True)
class Sample:
    """One image as it lies on disk, or as the transforms left it.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(H, W)`` int16 train ids, the ignore id included; None where the list names no label.
        name: the image's path relative to its dataset's folder.
        problem: why another sample was to be here but could not be read; "" for nothing.
        changes: ``(N,)`` float32, what is still to be done to it, see `ovenet.data.augmentation`; None is nothing.
    """

    image: np.ndarray
    labels: np.ndarray | None
    name: str
    problem: str = ""
    changes: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB, channels last in memory; augmented and normalised on the device, see
            `ovenet.data.augmentation.prepared`.
        labels: ``(B, H, W)`` int16 train ids.
        names: the image paths, ``B`` of them.
        problems: why samples that were to be here could not be read.
        changes: ``(B, N)`` float32, what is still to be done to each sample; None is nothing.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    changes: Tensor | None = None

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; torch's loader calls this method."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    @property
    def tensors(self) -> list[Tensor]:
        """Images, labels, and changes if there are any."""
        return [self.images, self.labels, *(() if self.changes is None else (self.changes,))]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> list[Batch]:
        """Nameless batches from their `tensors` in a row; images, of four dimensions, begin the next one."""
        starts = [index for index, tensor in enumerate(tensors) if tensor.ndim == 4]
        ends = [*starts[1:], len(tensors)]
        parts = [tensors[start:end] for start, end in zip(starts, ends, strict=True)]
        return [cls(part[0], part[1], (), changes=part[2] if len(part) > 2 else None) for part in parts]

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changes = None if self.changes is None else change(self.changes)
        return replace(self, images=change(self.images), labels=change(self.labels), changes=changes)


@dataclass(frozen=True)
class QueryOutput:
    """Masks and their classes, from each layer of a decoder with ``Q`` queries, the last one last.

    Attributes:
        classes: logits ``(B, Q, K + 1)``, the last of "nothing".
        masks: logits ``(B, Q, h, w)``.
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class OVeNetOutput:
    """What a segmentor predicts, at the stride of its head. Tuples hold auxiliary maps first and the final one last.

    Attributes:
        initial: ``S_i``, each ``(B, K, h, w)``.
        seed: ``S_s``, each pixel's scores fetched from its seed pixel; empty for a baseline.
        fused: ``S_f``; the same tensors as ``initial`` for a baseline.
        offset: ``(B, 2, h, w)`` from pixel to seed in ``(x, y)``, normalised so that the image spans ``[-1, 1]``;
            None for a baseline.
        confidence: ``(B, 1, h, w)`` in ``[0, 1]``, the weight of the seed's scores; None for a baseline.
        score_kind: what the maps hold: logits, or probabilities (``MODEL.SEED.FUSE_LOGITS``).
        embedding: ``(B, D, h, w)`` for losses that compare pixels; None where the head has none.
        queries: masks and their classes, while training; None where the head has none.
    """

    initial: tuple[Tensor, ...]
    seed: tuple[Tensor, ...]
    fused: tuple[Tensor, ...]
    offset: Tensor | None = None
    confidence: Tensor | None = None
    score_kind: ScoreKind = "logits"
    embedding: Tensor | None = None
    queries: QueryOutput | None = None

    @property
    def has_seed(self) -> bool:
        """Whether the model has a seed."""
        return self.offset is not None

    def predictions(self, index: int = -1) -> dict[str, Tensor]:
        """The score maps to evaluate, by name.

        Args:
            index: which map of each tuple; -1 is the final one.

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
        total: what is differentiated.
        terms: detached values by name: ``initial``, ``seed``, ``fused``, ``confidence``, ``offset``, ``contrast``,
            ``class``, ``mask``, ``dice``, as far as they exist.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """Scores of one prediction against the labels, all in ``[0, 1]``.

    Attributes:
        class_names: ``K`` names.
        iou: ``(K,)`` intersection over union; NaN for a class without a labelled pixel.
        accuracy: ``(K,)`` recall of each class; NaN likewise.
        dice: ``(K,)`` twice the intersection over the sum of both areas; NaN likewise.
        mean_iou: mean of ``iou`` over the classes that have labelled pixels.
        mean_accuracy: mean of ``accuracy`` over the same classes.
        mean_dice: mean of ``dice`` over the same classes.
        frequency_weighted_iou: mean of ``iou`` weighted by the classes' labelled pixels.
        pixel_accuracy: share of the labelled pixels that are right.
        num_pixels: labelled pixels that were scored.
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
