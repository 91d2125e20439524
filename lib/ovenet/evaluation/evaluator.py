"""The integer counts of a split, from which all scores follow.

Shapes: ``P`` predictions, ``K`` classes, ``D`` bands of distance to the nearest label edge. Sums of integers do not
depend on their order, so that the scores do not depend on how images are distributed over processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovenet.data.info import DatasetInfo
from ovenet.evaluation import boundaries
from ovenet.evaluation.boundaries import IGNORE, Contours
from ovenet.evaluation.class_counts import ImageClassCounts, empty_tables
from ovenet.evaluation.label_quality import PREDICTION, LabelProbabilities, image_statistics, seed_statistics
from ovenet.evaluation.metrics import confusion_tables
from ovenet.evaluation.uncertainty import UncertaintyCounter, confidence_levels, scored_names
from ovenet.geometry import lookup_labels, seed_position
from ovenet.inference.inferencer import Prediction
from ovenet.inference.transfer import HostCopies, to_device
from ovenet.utils import distributed

BOUNDARY_RATIOS = (
    0.005,
    0.01,
    0.02,
)  # widths as shares of the diagonal; Cityscapes takes the first, COCO the last
DISTANCES_PX = (1, 2, 4, 8, 16, 32, 64)  # upper ends of the distance bands; the last band is all beyond
SEGMENT_AREAS_PX = (32**2, 96**2)  # where small ends and large begins, as for COCO's objects
LENGTHS_PX = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # upper ends of the offset lengths; the last bin is all beyond
CONFIDENCE_LEVELS = 2**16  # steps in which the confidence is counted
_NUM_THREADS = 3
_UNKNOWN = 2  # the seed lies on a pixel without a label

# A pixel's distance is 1 on a label's contour. The table is indexed by the squared distance to the contour, which is an
# integer whatever the rounding of its root.
_SQUARES = np.arange(DISTANCES_PX[-1] ** 2 + 1)
_DISTANCE_BAND = np.searchsorted(np.square(np.array(DISTANCES_PX) - 1), _SQUARES).astype(np.uint8)


@dataclass(frozen=True)
class ImageCounts:
    """Counts of one image.

    Attributes:
        confusion: ``(P, K, K)`` int64.
        seed: ``(2, 2, 2)`` int64 pixels by whether S_i, S_s and S_f are right; None for a baseline.
        label_quality: statistics of the label's errors, see `ovenet.evaluation.label_quality`; None without them.
    """

    confusion: np.ndarray
    seed: np.ndarray | None
    label_quality: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Begun:
    """The counts of an image that the device has begun.

    Attributes:
        group: index of the condition.
        confusion: ``(P, D, K, K)`` on the device.
        host: copies to the host, under way: ``(P, K, K)``, and the maps of `LabelProbabilities` if there are any.
        label_maps: labels, `IGNORE` where a pixel is ignored, their contour, and the bands of distance to it, each
            ``(H, W)``; None where only the confusion is counted.
        marked: labels and the mask of invalid pixels; None where the uncertainty is not scored.
        classes: copies of the counts of class probabilities, see `empty_tables`, under way, by name.
    """

    group: int
    confusion: Tensor
    host: HostCopies
    label_maps: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    marked: tuple[np.ndarray, np.ndarray] | None = None
    classes: tuple[tuple[str, ...], HostCopies] | None = None


class SegEvaluator:
    """Counts that grow image by image; its memory does not.

    Args:
        info: classes and conditions.
        prediction_names: the same on every process.
        ignore_label: label of ignored pixels.
        detailed: count more than the confusion of classes.
        device: device that counts the confusion.
        uncertainty: confidence with which the uncertainty is scored, see ``TEST.UNCERTAINTY``.

    Attributes:
        num_images: number of images counted, the current one included.
        uncertain_names: predictions whose uncertainty is scored.
        counts: int64 by name. ``confusion`` is ``(1 + conditions, P, D, K, K)`` with the images of no condition first,
            ``uncertainty`` the same of `UncertaintyCounter.count`; all others are of the whole split, see
            `_empty_details`.

    Raises:
        UserError: there is no such confidence.
    """

    def __init__(
        self,
        info: DatasetInfo,
        prediction_names: tuple[str, ...],
        *,
        ignore_label: int,
        detailed: bool,
        device: torch.device,
        uncertainty: str = "none",
    ):
        self.info = info
        self.prediction_names = prediction_names
        self.ignore_label = ignore_label
        self.detailed = detailed
        self.has_seed = "seed" in prediction_names
        self.uncertainty = uncertainty
        self.uncertain_names = scored_names(uncertainty, prediction_names)
        self.num_images = 0
        self._device = device
        self._groups = (None, *info.conditions)
        num_bands = len(DISTANCES_PX) + 1 if detailed else 1
        k = info.num_classes
        shape = (len(self._groups), len(prediction_names), num_bands, k, k)
        self.counts = {"confusion": torch.zeros(shape, dtype=torch.int64, device=device)}
        if detailed:
            self.counts |= self._empty_details()
            self._pool = ThreadPoolExecutor(_NUM_THREADS)  # numpy and OpenCV count outside Python's lock
        if self.uncertain_names:
            self._counter = UncertaintyCounter(k, ignore_label)
            shape = (len(self._groups), len(self.uncertain_names), *self._counter.shape)
            self.counts["uncertainty"] = torch.zeros(shape, dtype=torch.int64)

    @property
    def reads_seeds(self) -> bool:
        """Whether offset and confidence of a prediction are needed."""
        return self.detailed or self.uncertainty in ("seed", "product")

    @property
    def reads_probability(self) -> bool:
        """Whether the probability of a prediction is needed."""
        return self.uncertainty in ("probability", "product")

    def _empty_details(self) -> dict[str, Tensor]:
        """Zero counts on the CPU."""
        num_predictions, k, num_widths = len(self.prediction_names), self.info.num_classes, len(BOUNDARY_RATIOS)
        shapes: dict[str, tuple[int, ...]] = {
            "inner_band": (num_predictions, num_widths, k, 3),  # see inner_band_counts
            "contour": (num_predictions, num_widths, k, 4),  # see contour_matches
            # by size and class: right pixels, pixels, segments found (more than half right), segments
            "segments": (num_predictions, len(SEGMENT_AREAS_PX) + 1, k, 4),
        }
        if self.has_seed:
            # by distance, seed's class (0 another one, 1 the pixel's, 2 no label), and S_i, S_s, S_f right
            shapes["seed"] = (len(DISTANCES_PX) + 1, 3, 2, 2, 2)
            shapes["confidence"] = (2, CONFIDENCE_LEVELS)  # by whether the seed's class is the pixel's
            shapes["length"] = (len(LENGTHS_PX) + 1,)
        counts = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
        return counts | empty_tables(num_predictions, k, torch.device("cpu"))

    def class_counts(self, labels: np.ndarray, device: torch.device) -> ImageClassCounts:
        """Counts of the class probabilities of an image, which `SlidingWindowInferencer.predict` adds band by band.

        Args:
            labels: ``(H, W)`` train ids.
            device: device of the probabilities.
        """
        k = self.info.num_classes
        return ImageClassCounts(labels, self.prediction_names, k, ignore_label=self.ignore_label, device=device)

    def add(
        self,
        labels: np.ndarray,
        prediction: Prediction,
        name: str,
        *,
        invalid: np.ndarray | None = None,
        classes: ImageClassCounts | None = None,
        of_labels: LabelProbabilities | None = None,
    ) -> ImageCounts:
        """Counts one image.

        Args:
            labels: ``(H, W)`` train ids.
            prediction: prediction of the same size, with offset and confidence where seeds are counted, and with all
                that the uncertainty's confidence is made of.
            name: path of the image, from which its condition follows.
            invalid: ``(H, W)`` bool, pixels marked as invalid, where the uncertainty is scored.
            classes: counts of its class probabilities; None counts none.
            of_labels: probabilities of the labels, for details about their errors; None for none.
        """
        begun = self.begin(labels, prediction, name, invalid=invalid, classes=classes, of_labels=of_labels)
        return self.finish(begun, prediction)

    def begin(
        self,
        labels: np.ndarray,
        prediction: Prediction,
        name: str,
        *,
        invalid: np.ndarray | None = None,
        classes: ImageClassCounts | None = None,
        of_labels: LabelProbabilities | None = None,
    ) -> _Begun:
        """Launches the counts that the device makes of an image, without waiting; `finish` adds them.

        Args:
            labels: see `add`, as for all arguments.
        """
        bands = label_maps = None
        if self.detailed:
            true = np.where(labels == self.ignore_label, np.int16(IGNORE), labels.astype(np.int16, copy=False))
            contour = boundaries.contour_mask(true)
            distance = np.minimum(boundaries.distance_to(contour), DISTANCES_PX[-1])
            bands = _DISTANCE_BAND[np.rint(np.square(distance)).astype(np.int32)]
            label_maps = true, contour, bands
        confusion = confusion_tables(
            [prediction.labels[n].to(self._device) for n in self.prediction_names],
            to_device(labels, self._device),
            self.info.num_classes,
            ignore_label=self.ignore_label,
            bands=None if bands is None else to_device(bands, self._device),
            num_bands=self.counts["confusion"].shape[2],
        )
        marked = None
        if self.uncertain_names:
            assert invalid is not None  # see `ListDataset.read_invalid_masks`
            marked = labels, invalid
        group = self._groups.index(self.info.condition_of(name))
        tables = classes.tables() if classes else {}
        copies = (tuple(tables), HostCopies(tables.values())) if tables else None
        maps = [] if of_labels is None else [of_labels.level, of_labels.percent]
        return _Begun(group, confusion, HostCopies([confusion.sum(dim=1), *maps]), label_maps, marked, copies)

    def finish(self, begun: _Begun, prediction: Prediction) -> ImageCounts:
        """Adds the counts that `begin` launched, and counts the rest; `prediction` may be on the host by now."""
        self.num_images += 1
        self.counts["confusion"][begun.group] += begun.confusion
        seeds = quality = None
        confusion, *of_labels = (copy.numpy() for copy in begun.host.wait())
        if begun.label_maps is not None:
            true, contour, bands = begun.label_maps
            predicted = [prediction.labels[n].cpu().numpy().astype(np.int16) for n in self.prediction_names]
            maps = [np.where(true == IGNORE, np.int16(IGNORE), labels) for labels in predicted]
            if self.has_seed:
                seeds = self._pool.submit(self._count_seeds, true, maps, bands, prediction)
            if of_labels:
                fused = predicted[self.prediction_names.index(PREDICTION)]
                quality = self._pool.submit(image_statistics, true, fused, *of_labels)
            self._count_boundaries_and_segments(true, contour, maps)
        if begun.marked is not None:
            self._count_uncertainty(begun.group, *begun.marked, prediction)
        if begun.classes is not None:
            table_names, tables = begun.classes
            for key, table in zip(table_names, tables.wait(), strict=True):
                self.counts[key] += table.to(self.counts[key].device)
        joint, at_seeds = seeds.result() if seeds else (None, None)
        statistics = quality.result() if quality else None
        if statistics and at_seeds is not None:
            statistics["seeds"] = seed_statistics(at_seeds)
        return ImageCounts(confusion, joint, statistics)

    def all_reduce(self) -> None:
        """Adds the counts of all processes, in one reduction."""
        self.counts = distributed.all_reduce_tables(self.counts, self._device)

    def merge(self, counts: Mapping[str, Tensor]) -> None:
        """Adds the counts of another evaluator with the same settings, all or none."""
        for name, table in counts.items():
            self.counts[name] += table.to(self.counts[name].device)

    def _count_boundaries_and_segments(self, true: np.ndarray, contour: np.ndarray, maps: list[np.ndarray]) -> None:
        widths, k = boundaries.boundary_widths(true.shape, BOUNDARY_RATIOS), self.info.num_classes
        true_band = boundaries.inner_band(true, widths)
        true_counts = boundaries.band_counts(true, true_band, k)
        true_contours = Contours(true, contour, widths, k)
        true_contours.prepare()
        segments, classes = boundaries.segment_map(true, k)

        def count(predicted: np.ndarray) -> dict[str, np.ndarray]:
            band = boundaries.inner_band(predicted, widths)
            predicted_contours = Contours(predicted, boundaries.contour_mask(predicted), widths, k)
            return {
                "inner_band": boundaries.inner_band_counts(true, true_band, true_counts, predicted, band, k),
                "contour": boundaries.contour_matches(true_contours, predicted_contours),
                "segments": _segment_counts(segments, classes, predicted == true, k),
            }

        for index, counts in enumerate(self._pool.map(count, maps)):
            for name, table in counts.items():
                self._add(name, index, table)

    def _count_seeds(
        self, true: np.ndarray, maps: list[np.ndarray], bands: np.ndarray, prediction: Prediction
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds to ``seed``, ``confidence`` and ``length``.

        Returns:
            The image's pixels by right predictions, and its part of ``confidence``.
        """
        assert prediction.offset is not None
        assert prediction.confidence is not None
        offset = prediction.offset.cpu()
        at_seed = lookup_labels(torch.from_numpy(true)[None], seed_position(offset[None]))[0].numpy()
        has_class = true != IGNORE
        target = np.where(at_seed == IGNORE, np.uint8(_UNKNOWN), at_seed == true)
        code = bands.astype(np.int32) * 3 + target
        for predicted in maps:
            code = code * 2 + (predicted == true)
        shape = self.counts["seed"].shape
        joint = np.bincount(code[has_class], minlength=self.counts["seed"].numel()).reshape(shape)
        self._add("seed", (), joint)

        level = (prediction.confidence[0].cpu().nan_to_num() * (CONFIDENCE_LEVELS - 1)).round_().to(torch.int32).numpy()
        known = has_class & (target != _UNKNOWN)
        level = level[known] + CONFIDENCE_LEVELS * target[known].astype(np.int32)
        by_confidence = np.bincount(level, minlength=2 * CONFIDENCE_LEVELS).reshape(2, -1)
        self._add("confidence", (), by_confidence)

        spans = torch.tensor(true.shape[::-1]).sub(1).div(2).view(2, 1, 1)
        length = (offset * spans).square_().sum(dim=0)  # squared, in pixels of the image
        edges = torch.tensor(LENGTHS_PX, dtype=length.dtype).square()
        lengths = torch.bucketize(length[torch.from_numpy(has_class)], edges)
        self._add("length", (), np.bincount(lengths.numpy(), minlength=len(LENGTHS_PX) + 1))
        return joint.sum(axis=(0, 1)), by_confidence

    def _count_uncertainty(self, group: int, labels: np.ndarray, invalid: np.ndarray, prediction: Prediction) -> None:
        for index, name in enumerate(self.uncertain_names):
            levels = confidence_levels(prediction, self.uncertainty, name)
            predicted = prediction.labels[name].cpu().numpy()
            self._add("uncertainty", (group, index), self._counter.count(labels, invalid, predicted, levels))

    def _add(self, name: str, index: int | tuple[int, ...], counts: np.ndarray) -> None:
        table = self.counts[name][index]
        table += torch.from_numpy(counts.astype(np.int64)).to(table.device)


def _segment_counts(segments: np.ndarray, classes: np.ndarray, is_right: np.ndarray, num_classes: int) -> np.ndarray:
    """``(sizes, K, 4)`` int64: right pixels, pixels, segments found, segments; see `boundaries.segment_map`."""
    by_outcome = np.bincount((segments * 2 + is_right).ravel(), minlength=2 * len(classes)).reshape(-1, 2)[1:]
    right, area = by_outcome[:, 1], by_outcome.sum(axis=1)
    cell = (
        np.searchsorted(SEGMENT_AREAS_PX, area, side="right") * num_classes + classes[1:]
    )  # number 0 is of ignored pixels
    columns = (right, area, 2 * right > area, np.ones_like(area))
    num_sizes = len(SEGMENT_AREAS_PX) + 1
    table = [np.bincount(cell, weights=column, minlength=num_sizes * num_classes) for column in columns]
    return np.stack(table, axis=-1).astype(np.int64).reshape(num_sizes, num_classes, 4)
