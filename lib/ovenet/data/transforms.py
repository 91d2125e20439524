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
from ovenet.structures import Batch, Sample

IMAGE_MEAN = (0.485, 0.456, 0.406)  # RGB of ImageNet, as a share of 255
IMAGE_STD = (0.229, 0.224, 0.225)
PAD_COLOR = tuple(round(255 * m) for m in IMAGE_MEAN)  # close to zero after normalisation


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, padding, random crop, mirroring and brightness, in this order.

    Attributes:
        crop_size: ``(H, W)`` of what comes out.
        base_size: long side of the image at scale 1, in pixels.
        scale_steps: the scale is 0.5 plus 0 to `scale_steps` tenths; None keeps it at 1.
        flip: mirror half of the samples.
        brightness_shift: shift half of the samples by up to this many grey levels; 0 for never.
        ignore_label: train id of padded pixels.
        rare_class_crops: share of the crops that are laid around a pixel of a class that is drawn evenly from those
            of the image, so that rare classes are seen more often; the others are laid anywhere.
        stretch: scale to the proportions of `crop_size` instead of keeping the image's.
        mirrored_table: ``(K,)`` train ids of the mirrored image, where left and right are classes of their own.
    """

    crop_size: tuple[int, int]
    base_size: int
    scale_steps: int | None
    flip: bool
    brightness_shift: int
    ignore_label: int
    rare_class_crops: float = 0.0
    stretch: bool = False
    mirrored_table: np.ndarray | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws one variant.

        Args:
            sample: with labels.
            rng: the only source of randomness.
        """
        assert sample.labels is not None
        scale = 1.0 if self.scale_steps is None else 0.5 + int(rng.integers(self.scale_steps + 1)) / 10
        crop = self._draw_crop(sample, self._scaled_size(sample.image.shape[:2], scale), rng)
        image = crop.of_image(sample.image, PAD_COLOR)
        labels = crop.of_labels(sample.labels, self.ignore_label)
        if self.flip and rng.random() < 0.5:
            image, labels = cv2.flip(image, 1), self._mirror_classes(cv2.flip(labels, 1))
        if self.brightness_shift and rng.random() < 0.5:
            shift = int(rng.integers(-self.brightness_shift, self.brightness_shift + 1))
            image = cv2.add(image, (shift, shift, shift, 0))
        return Sample(np.ascontiguousarray(image), np.ascontiguousarray(labels), sample.name)

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
        return scaled_size(size, round(self.base_size * scale))

    def _mirror_classes(self, labels: np.ndarray) -> np.ndarray:
        if self.mirrored_table is None:
            return labels
        is_class = (labels >= 0) & (labels < len(self.mirrored_table)) & (labels != self.ignore_label)
        return np.where(is_class, self.mirrored_table[np.where(is_class, labels, 0)], labels).astype(labels.dtype)


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


def normalize_images(images: Tensor) -> Tensor:
    """Pixels as the network expects them.

    Args:
        images: ``(B, 3, H, W)`` uint8 RGB.

    Returns:
        ``(B, 3, H, W)`` float32, with the mean and the deviation of ImageNet taken out, on the same device.
    """
    mean, scale = _normalization(images.device)
    return (images.float() - mean) / scale


@cache
def _normalization(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels in grey levels; made once, since a copy to the device waits for it."""
    mean, std = (torch.tensor(values, device=device).mul(255).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return mean, std
