"""Random changes of an image's colours, as SSD (Liu et al., 2016) and mmsegmentation make them."""

from __future__ import annotations

import cv2
import numpy as np

MAX_BRIGHTNESS = 32.0  # grey levels
CONTRAST = SATURATION = (0.5, 1.5)
MAX_HUE = 18  # of OpenCV's 180
NUM_HUES = 180


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each of half of the images; contrast first or last.

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
