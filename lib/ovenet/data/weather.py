"""Rain and darkness, which the common corruptions lack, at five severities.

They are drawings, no simulations: rain has streaks and a veil but wets no road, darkness has a sensor's noise but no
lamps. Lengths are shares of the image's height, so that a scene looks the same at every resolution. ``H W`` is the size
of the image.
"""

from __future__ import annotations

import cv2
import numpy as np

# By severity: streaks on a square of the image's height (fewer below 400 rows, where they cannot get thinner), their
# length as a share of the height, how much they cover of what is behind them, and how much the veil of distant drops
# covers.
_RAIN = (
    (350, 0.04, 0.30, 0.10),
    (600, 0.05, 0.34, 0.18),
    (900, 0.06, 0.38, 0.26),
    (1300, 0.07, 0.42, 0.34),
    (1800, 0.08, 0.46, 0.42),
)
_MAX_SLANT = 20.0  # degrees from the vertical, in either direction
_STREAK_LEVEL, _VEIL_LEVEL = 220.0, 150.0  # grey levels
_ROWS_PER_WIDTH = 400  # rows of the image for each pixel of a streak's width

_STOPS = (1, 2, 3, 4, 5)  # by severity: halvings of the light
_GAMMA = 2.2  # grey levels to light
_FULL_WELL, _READ_NOISE = 4000.0, 4.0  # photoelectrons at white, and of the sensor's noise without light


def rain(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Bright slanted streaks before a grey veil; all streaks have one slant, drawn for the image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        severity: 1 to 5.
        rng: the only source of randomness.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    streaks, length, opacity, veil = _RAIN[severity - 1]
    height, width = image.shape[:2]
    kernel = _streak(max(3, round(length * height)), rng.uniform(-_MAX_SLANT, _MAX_SLANT), height)
    share = streaks * min(1.0, height / _ROWS_PER_WIDTH) / height**2
    drops = (rng.random((height, width), dtype=np.float32) < share).astype(np.float32)
    cover = cv2.filter2D(drops, cv2.CV_32F, kernel, borderType=cv2.BORDER_CONSTANT).clip(0, 1)[..., None] * opacity
    behind = image.astype(np.float32) * (1 - veil) + _VEIL_LEVEL * veil
    return _grey_levels(behind + cover * (_STREAK_LEVEL - behind).clip(min=0))


def _streak(length: int, slant: float, height: int) -> np.ndarray:
    """``(length, length)`` float32: a line through the centre, 1 along its middle and softer at its edges.

    Args:
        length: in pixels; the result's sides are the next odd number.
        slant: degrees from the vertical.
        height: of the image, which says how wide the line is.
    """
    side = length | 1
    reach = (side - 1) / 2
    step = reach * np.array([np.sin(np.deg2rad(slant)), np.cos(np.deg2rad(slant))])
    ends = [tuple(np.rint(reach + sign * step).astype(int).tolist()) for sign in (-1, 1)]
    line = np.zeros((side, side), np.float32)
    cv2.line(line, ends[0], ends[1], 1.0, max(1, round(height / _ROWS_PER_WIDTH)))
    soft = cv2.GaussianBlur(line, (3, 3), 0.5)
    return soft / soft.max()


def darkness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As many stops less light as the severity says, and the noise of a sensor that the rest of the light leaves.

    Grey levels are taken for light to the power of 1/2.2. The sensor counts 4000 photoelectrons at white, with a
    deviation of their root (a normal distribution in place of Poisson's), and adds noise of 4.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        severity: 1 to 5.
        rng: the only source of randomness.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    light = (np.arange(256, dtype=np.float32) / 255) ** _GAMMA * (_FULL_WELL / 2 ** _STOPS[severity - 1])
    electrons = light[image]
    deviation = np.sqrt(light + _READ_NOISE**2)[image]
    electrons += deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return _grey_levels(255 * (electrons / _FULL_WELL).clip(0, 1) ** (1 / _GAMMA))


def _grey_levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
