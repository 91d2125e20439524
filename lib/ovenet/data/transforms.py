"""Joint transforms of images and labels, and what happens to pixels on their way into the network.

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

from ovenet.data.crops import ResizedCrop
from ovenet.structures import Batch, Normalization, Sample

MAX_BRIGHTNESS = 32.0  # grey levels
CONTRAST = SATURATION = (0.5, 1.5)
MAX_HUE = 18  # of OpenCV's 180
NUM_HUES = 180
IMAGENET = Normalization()
MAX_CROP_TRIES = 10


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, padding, random crop, flipping, brightness and colours, in this order.

    Attributes:
        crop_size: ``(H, W)`` of what comes out.
        base_size: long side of the image at scale 1, in pixels.
        scale_steps: the scale is 0.5 plus 0 to `scale_steps` tenths; None keeps it at 1.
        flip: flip half of the samples.
        brightness_shift: shift half of the samples by up to this many grey levels; 0 for never.
        ignore_label: train id of padded pixels.
        rare_class_crops: share of the crops that are laid around a pixel of a class that is drawn evenly from those
            of the image, so that rare classes are seen more often; the others are laid anywhere.
        stretch: scale to the proportions of `crop_size` instead of keeping the image's.
        flip_table: ``(K,)`` train ids of the flipped image, where left and right are classes of their own.
        pad_color: RGB of padded pixels, see `Normalization.pad_color`.
        scale_range: any scale between these two, in place of the steps; None for the steps.
        base_box: long and short side that the image fits into at scale 1, in place of `base_size`; None for that.
        cat_max_ratio: crops in which one class has a larger share of the labelled pixels are drawn anew, up to
            `MAX_CROP_TRIES` times.
        photometric: change the colours at random, see `ovenet.data.transforms`.
    """

    crop_size: tuple[int, int]
    base_size: int
    scale_steps: int | None
    flip: bool
    brightness_shift: int
    ignore_label: int
    rare_class_crops: float = 0.0
    stretch: bool = False
    flip_table: np.ndarray | None = None
    pad_color: tuple[int, int, int] = IMAGENET.pad_color
    scale_range: tuple[float, float] | None = None
    base_box: tuple[int, int] | None = None
    cat_max_ratio: float = 1.0
    photometric: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws one variant.

        Args:
            sample: with labels.
            rng: the only source of randomness.
        """
        assert sample.labels is not None
        scaled = self._scaled_size(sample.image.shape[:2], self._draw_scale(rng))
        crop, labels = self._draw_mixed_crop(sample, scaled, rng)
        image = crop.of_image(sample.image, self.pad_color)
        if self.flip and rng.random() < 0.5:
            image, labels = cv2.flip(image, 1), self._flip_classes(cv2.flip(labels, 1))
        if self.brightness_shift and rng.random() < 0.5:
            shift = int(rng.integers(-self.brightness_shift, self.brightness_shift + 1))
            image = cv2.add(image, (shift, shift, shift, 0))
        if self.photometric:
            image = distort(image, rng)
        return Sample(np.ascontiguousarray(image), np.ascontiguousarray(labels), sample.name)

    def _draw_scale(self, rng: np.random.Generator) -> float:
        if self.scale_range is not None:
            return float(rng.uniform(*self.scale_range))
        return 1.0 if self.scale_steps is None else 0.5 + int(rng.integers(self.scale_steps + 1)) / 10

    def _draw_mixed_crop(
        self, sample: Sample, scaled: tuple[int, int], rng: np.random.Generator
    ) -> tuple[ResizedCrop, np.ndarray]:
        """A crop and its labels, among which no class has too large a share if a few tries find such a crop."""
        for _ in range(MAX_CROP_TRIES):
            crop = self._draw_crop(sample, scaled, rng)
            labels = crop.of_labels(sample.labels, self.ignore_label)
            if self.cat_max_ratio == 1.0:
                break
            counts = np.unique(labels[labels != self.ignore_label], return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return crop, labels

    def _draw_crop(self, sample: Sample, scaled: tuple[int, int], rng: np.random.Generator) -> ResizedCrop:
        """The crop is drawn first, so that only its pixels have to be resized."""
        if self.rare_class_crops and rng.random() < self.rare_class_crops:
            top, left = self._corner_near_class(sample.labels, scaled, rng)
        else:
            top, left = (int(rng.integers(limit + 1)) for limit in self._limits(scaled))
        return ResizedCrop(scaled, top, left, self.crop_size)

    def _limits(self, scaled: tuple[int, int]) -> list[int]:
        """The last row and column where a crop of the resized image may begin."""
        return [max(n - crop, 0) for n, crop in zip(scaled, self.crop_size, strict=True)]

    def _corner_near_class(
        self, labels: np.ndarray, scaled: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top left corner of a crop that holds a pixel of an evenly drawn class, at a random place."""
        limits = self._limits(scaled)
        classes = np.unique(labels)
        classes = classes[classes != self.ignore_label]
        if not len(classes):
            return tuple(int(rng.integers(limit + 1)) for limit in limits)
        pixel = np.unravel_index(rng.choice(np.flatnonzero(labels == rng.choice(classes))), labels.shape)
        return tuple(
            int(np.clip((2 * at + 1) * whole // (2 * own) - rng.integers(crop), 0, limit))
            for at, own, whole, crop, limit in zip(pixel, labels.shape, scaled, self.crop_size, limits, strict=True)
        )

    def _scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        if self.stretch:
            return tuple(max(1, round(n * scale)) for n in self.crop_size)
        if self.base_box is not None:
            return box_size(size, self.base_box, scale)
        return scaled_size(size, round(self.base_size * scale))

    def _flip_classes(self, labels: np.ndarray) -> np.ndarray:
        if self.flip_table is None:
            return labels
        is_class = (labels >= 0) & (labels < len(self.flip_table)) & (labels != self.ignore_label)
        return np.where(is_class, self.flip_table[np.where(is_class, labels, 0)], labels).astype(labels.dtype)


def scaled_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size with the given long side and the same proportions, at least one pixel.

    Args:
        size: ``(H, W)``.
        long_side: in pixels.
    """
    height, width = size
    if height > width:
        return long_side, max(1, round(width * long_side / height))
    return max(1, round(height * long_side / width)), long_side


def box_size(size: tuple[int, int], box: tuple[int, int], scale: float) -> tuple[int, int]:
    """The largest size with the same proportions that fits into a box, as mmsegmentation rounds it.

    Args:
        size: ``(H, W)``.
        box: long and short side at scale 1, in pixels.
        scale: of the box.
    """
    long, short = (int(side * scale) for side in box)
    factor = min(long / max(size), short / min(size))
    return tuple(max(1, int(n * factor + 0.5)) for n in size)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of ``(H, W, 3)`` uint8 to `size`, pixel centres mapped by proportion."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of ``(H, W)`` int16 to `size`, on the grid of `resize_image`."""
    if labels.shape == tuple(size):
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one size; nothing is converted here, the device does that faster."""
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([s.labels for s in samples]))
    return Batch(images, labels, tuple(s.name for s in samples), tuple(s.problem for s in samples if s.problem))


def normalize_images(images: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Pixels as the network expects them.

    Args:
        images: ``(B, 3, H, W)`` uint8 RGB.
        normalization: the backbone's.

    Returns:
        ``(B, 3, H, W)`` float32 in the network's order of channels, mean and deviation taken out, on the same device.
    """
    mean, scale = _mean_and_std(normalization, images.device)
    if normalization.channel_order == "BGR":
        images = images.flip(1)
    return (images.float() - mean) / scale


@cache
def _mean_and_std(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """In grey levels, per channel; cached, since every copy to the device synchronises."""
    values = (normalization.mean, normalization.std)
    mean, std = (torch.tensor(v, device=device).mul(255).view(3, 1, 1) for v in values)
    return mean, std


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each of half of the images; contrast first or last.

    As SSD (Liu et al., 2016) and mmsegmentation do it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; stays as it is.
        rng: the only source of randomness.
    """
    if rng.random() < 0.5:
        image = _linear(image, 1.0, rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    factor = rng.uniform(*CONTRAST) if rng.random() < 0.5 else None
    if contrast_first and factor is not None:
        image = _linear(image, factor, 0.0)
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-MAX_HUE, MAX_HUE)) if rng.random() < 0.5 else 0
    if saturation != 1.0 or hue:
        image = _recolored(image, saturation, hue)
    if not contrast_first and factor is not None:
        image = _linear(image, factor, 0.0)
    return image


def _linear(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """``factor · image + shift``, rounded down and kept within 0 to 255."""
    levels = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(image, levels)


def _recolored(image: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    levels = np.arange(256)
    table = np.stack(((levels + hue) % NUM_HUES, np.clip(levels * saturation, 0, 255), levels), axis=1).astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2RGB)
