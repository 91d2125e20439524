"""Joint transforms of images and labels up to the crop, random numbers for its augmentation, and normalisation.

Sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from ovenet.data.corruption_kinds import SEVERITIES, kinds_of
from ovenet.data.corruptions import corrupt
from ovenet.data.crops import ResizedCrop
from ovenet.data.settings import CropSettings
from ovenet.errors import UserError
from ovenet.structures import Batch, Normalization, Sample, Size

MAX_BRIGHTNESS = 32.0  # grey levels
CONTRAST = SATURATION = (0.5, 1.5)
MAX_HUE = 18  # of OpenCV's 180
_FRACTION = 2**15  # steps per unit of drawn numbers: products with grey levels are exact in float32
IMAGENET = Normalization()
MAX_CROP_TRIES = 10


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, padding and random crop, which may be corrupted; draws flip, brightness and colours for the device.

    Attributes:
        settings: sizes, scales, augmentation, and the train id of padded pixels.
        stretch: scale to the aspect ratio of the crop instead of keeping the image's.
        flip_table: ``(K,)`` train ids of the flipped image, where left and right are different classes.
        pad_color: colour of padded pixels, see `Normalization.pad_color`.
    """

    settings: CropSettings
    stretch: bool = False
    flip_table: np.ndarray | None = None
    pad_color: tuple[int, ...] = IMAGENET.pad_color

    @property
    def crop_size(self) -> Size:
        """``(H, W)`` of the crops, in pixels."""
        width, height = self.settings.image_size
        return height, width

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws one variant.

        Args:
            sample: with labels.
            rng: the only source of randomness.

        Returns:
            The crop with its pending changes; its labels have the classes of a flipped image already.
        """
        assert sample.labels is not None
        scaled = self._scaled_size(sample.image.shape[:2], self._draw_scale(rng))
        crop, labels = self._draw_mixed_crop(sample.labels, scaled, rng)
        image = crop.of_image(sample.image, self.pad_color)
        changes = [0.0, 0.0]
        if self.settings.flip and rng.random() < 0.5:
            changes[0], labels = 1.0, self._flip_classes(labels)
        shift = self.settings.random_brightness_shift_value if self.settings.random_brightness else 0
        if shift and rng.random() < 0.5:
            changes[1] = float(rng.integers(-shift, shift + 1))
        if self.settings.photometric_distortion:
            changes += _draw_colors(rng)
        if self.settings.corruption_probability:  # drawn last: the other augmentations stay as they are without it
            image = self._draw_corrupted(image, rng)
        image, labels = np.ascontiguousarray(image), np.ascontiguousarray(labels)
        return Sample(image, labels, sample.name, changes=np.array(changes, np.float32))

    def _draw_scale(self, rng: np.random.Generator) -> float:
        if self.settings.scale_range:
            low, high = self.settings.scale_range
            return float(rng.uniform(low, high))
        return 0.5 + int(rng.integers(self.settings.scale_factor + 1)) / 10 if self.settings.multi_scale else 1.0

    def _draw_mixed_crop(
        self, whole: np.ndarray, scaled: Size, rng: np.random.Generator
    ) -> tuple[ResizedCrop, np.ndarray]:
        """A crop of the label map `whole` and its labels, in which no class has too large a share if such is found."""
        for _ in range(MAX_CROP_TRIES):
            crop = ResizedCrop(scaled, *self._draw_corner(whole, scaled, rng), self.crop_size)
            labels = crop.of_labels(whole, self.settings.ignore_label)
            if self.settings.cat_max_ratio == 1.0:
                break
            counts = np.unique(labels[labels != self.settings.ignore_label], return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.settings.cat_max_ratio * counts.sum():
                break
        return crop, labels

    def _draw_corner(self, labels: np.ndarray, scaled: Size, rng: np.random.Generator) -> tuple[int, int]:
        """First row and column of a crop of the resized image: anywhere, or so that it has a pixel of a drawn class."""
        limits = [max(n - crop, 0) for n, crop in zip(scaled, self.crop_size, strict=True)]
        if self.settings.rare_class_crops and rng.random() < self.settings.rare_class_crops:
            classes = np.unique(labels)
            classes = classes[classes != self.settings.ignore_label]
            if len(classes):
                pixel = np.unravel_index(rng.choice(np.flatnonzero(labels == rng.choice(classes))), labels.shape)
                top, left = (
                    int(np.clip((2 * at + 1) * whole // (2 * own) - rng.integers(crop), 0, limit))
                    for at, own, whole, crop, limit in zip(
                        pixel, labels.shape, scaled, self.crop_size, limits, strict=True
                    )
                )
                return top, left
        return int(rng.integers(limits[0] + 1)), int(rng.integers(limits[1] + 1))

    def _draw_corrupted(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The crop, or with `CropSettings.corruption_probability` a corrupted one."""
        if rng.random() >= self.settings.corruption_probability:
            return crop
        kinds = kinds_of(self.settings.corruptions, "TRAIN.CORRUPTIONS")
        kind, severity = kinds[rng.integers(len(kinds))], SEVERITIES[rng.integers(len(SEVERITIES))]
        return corrupt(crop, kind, severity, int(rng.integers(2**32)))

    def _scaled_size(self, size: Size, scale: float) -> Size:
        if self.stretch:
            height, width = self.crop_size
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.settings.base_box:
            return box_size(size, self.settings.base_box, scale)
        return scaled_size(size, max(1, round((self.settings.base_size or max(size)) * scale)))

    def _flip_classes(self, labels: np.ndarray) -> np.ndarray:
        if self.flip_table is None:
            return labels
        is_class = (labels >= 0) & (labels < len(self.flip_table)) & (labels != self.settings.ignore_label)
        return np.where(is_class, self.flip_table[np.where(is_class, labels, 0)], labels).astype(labels.dtype)


@dataclass(frozen=True)
class EvalTransform:
    """Scales an image and its labels into a fixed size, so that they can be stacked; the rest is padded.

    Attributes:
        size: ``(H, W)``.
        ignore_label: label of the padding.
        pad_color: colour of the padding.
    """

    size: Size
    ignore_label: int = 255
    pad_color: tuple[int, ...] = IMAGENET.pad_color

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The scaled sample; nothing is drawn from `rng`."""
        assert sample.labels is not None
        factor = min(own / given for own, given in zip(self.size, sample.image.shape[:2], strict=True))
        height, width = (max(1, round(n * factor)) for n in sample.image.shape[:2])
        crop = ResizedCrop((height, width), 0, 0, self.size)
        image = crop.of_image(sample.image, self.pad_color)
        return Sample(image, crop.of_labels(sample.labels, self.ignore_label), sample.name)


def train_transform(
    crop: Size,
    *,
    scales: tuple[float, float] = (0.5, 2.0),
    long_side: int | None = None,
    flip: bool = True,
    colors: bool = False,
    rare_class_crops: float = 0.0,
) -> TrainTransform:
    """Random scale, crop, flip and colours, for `ovenet.data.pairs.SegmentationDataset`.

    Args:
        crop: ``(H, W)`` of the crops, in pixels.
        scales: smallest and largest scale.
        long_side: of the image at scale 1, in pixels; None is each image's own.
        flip: flip half of the samples.
        colors: change brightness, contrast, saturation and hue; of RGB images.
        rare_class_crops: share of crops around a pixel of a class drawn uniformly from those in the image.

    Raises:
        UserError: a size or a scale is not above 0.
    """
    low, high = scales
    if min(crop) < 1 or not 0 < low <= high or (long_side is not None and long_side < 1):
        raise UserError(
            f"crop is {crop}, scales {scales}, long_side {long_side}; expected sizes of at least 1 pixel, and scales "
            "(low, high) above 0"
        )
    height, width = crop
    return TrainTransform(
        CropSettings(
            image_size=(width, height),
            base_size=long_side or 0,
            scale_range=(low, high),
            flip=flip,
            photometric_distortion=colors,
            rare_class_crops=rare_class_crops,
        )
    )


def eval_transform(size: Size) -> EvalTransform:
    """Images scaled into ``(H, W)`` and padded, so that a validation set can be stacked, see `EvalTransform`.

    Without a transform, and with a batch size of 1, images are scored at their own size.
    """
    return EvalTransform(size)


def _draw_colors(rng: np.random.Generator) -> list[float]:
    """The changes of photometric distortion, each change for half of the samples; contrast first or last."""
    brightness = _draw(rng, -MAX_BRIGHTNESS, MAX_BRIGHTNESS) if rng.random() < 0.5 else 0.0
    contrast_first = rng.random() < 0.5
    contrast = _draw(rng, *CONTRAST) if rng.random() < 0.5 else 1.0
    saturation = _draw(rng, *SATURATION) if rng.random() < 0.5 else 1.0
    hue = float(rng.integers(-MAX_HUE, MAX_HUE)) if rng.random() < 0.5 else 0.0
    first, last = (contrast, 1.0) if contrast_first else (1.0, contrast)
    return [brightness, first, saturation, hue, last]


def _draw(rng: np.random.Generator, low: float, high: float) -> float:
    return round(rng.uniform(low, high) * _FRACTION) / _FRACTION


def scaled_size(size: Size, long_side: int) -> Size:
    """The size with the given long side and the same aspect ratio, at least one pixel.

    Args:
        size: ``(H, W)``.
        long_side: in pixels.
    """
    height, width = size
    if height > width:
        return long_side, max(1, round(width * long_side / height))
    return max(1, round(height * long_side / width)), long_side


def box_size(size: Size, box: Sequence[int], scale: float) -> Size:
    """The largest size with the same aspect ratio that fits into a box, rounded as in mmsegmentation.

    Args:
        size: ``(H, W)``.
        box: long and short side at scale 1, in pixels.
        scale: of the box.
    """
    long, short = (int(side * scale) for side in box)
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(n * factor + 0.5)) for n in size)
    return height, width


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear resize of ``(H, W, C)`` uint8 to `size`, with half-pixel centres."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Nearest-neighbour resize of ``(H, W)`` int16 to `size`, on the grid of `resize_image`."""
    if labels.shape == tuple(size):
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks labelled samples of one size; converting them is left to the device, which is faster."""
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([s.labels for s in samples if s.labels is not None]))
    drawn = [s.changes for s in samples if s.changes is not None]
    changes = torch.from_numpy(np.stack(drawn)) if drawn else None
    problems = tuple(s.problem for s in samples if s.problem)
    return Batch(images, labels, tuple(s.name for s in samples), problems, changes)


def normalize_images(images: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Normalised images, the input of the network.

    Args:
        images: ``(B, C, H, W)``, mostly RGB, grey levels from 0 to 255, uint8 or float32; fastest with channels last.
        normalization: of the backbone.

    Returns:
        ``(B, C, H, W)`` float32 in the network's order of channels, with zero mean and unit deviation, on the same
        device; channels last.
    """
    if normalization.channel_order == "BGR":
        images = images.flip(1)
    pixels = images.permute(0, 2, 3, 1)
    mean, std = (values.repeat(pixels.shape[2]) for values in _mean_and_std(normalization, images.device))
    rows = (pixels.flatten(2).float() - mean).div_(std)  # rows of W · C numbers, not C at a time
    return rows.view(pixels.shape).permute(0, 3, 1, 2)


@cache
def _mean_and_std(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel in grey levels; cached, since every copy to the device synchronises."""
    mean, std = (torch.tensor(v, device=device).mul(255) for v in (normalization.mean, normalization.std))
    return mean, std
