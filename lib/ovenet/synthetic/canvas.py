"""A canvas for colour, label and depth, seen through a camera above a flat street.

World coordinates in metres: ``X`` to the right of the camera, ``Y`` above the ground, ``Z`` ahead. Points in the image
are ``(x, y)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ovenet.structures import Size

Color = np.ndarray  # (3,) float RGB in 0..255
Points = Sequence[tuple[float, float]]

CAMERA_HEIGHT_M = 1.5
NEAREST_M = 1.2
FARTHEST_M = 400.0
_SUBPIXEL_BITS = 4  # polygons are placed to 1/16 pixel


class Canvas:
    """Colour ``(H, W, 3)`` float32, label ids ``(H, W)`` uint8 and depth ``(H, W)`` in metres, painted back to front.

    Args:
        size: ``(H, W)`` in pixels.
        rng: the scene's random numbers.
    """

    def __init__(self, size: Size, rng: np.random.Generator):
        height, width = size
        self.size = size
        self.rng = rng
        self.color = np.zeros((height, width, 3), np.float32)
        self.ids = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), FARTHEST_M, np.float32)
        self.focal_px = width * rng.uniform(0.75, 1.1)
        self.vanishing_px = (width * rng.uniform(0.38, 0.62), height * rng.uniform(0.36, 0.5))
        self.noise = {cell: noise_field(size, cell, rng) for cell in (1, 3, 10, 40)}

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """World to image."""
        z = max(z, NEAREST_M)
        return (
            self.vanishing_px[0] + self.focal_px * x / z,
            self.vanishing_px[1] - self.focal_px * (y - CAMERA_HEIGHT_M) / z,
        )

    def scale_px(self, z: float) -> float:
        """Pixels per metre at a depth."""
        return self.focal_px / max(z, NEAREST_M)

    def mask_of(self, points: Points) -> np.ndarray:
        """Pixels inside a polygon, ``(H, W)`` bool."""
        mask = np.zeros(self.size, np.uint8)
        fixed = np.round(np.clip(points, -20000, 20000) * np.array(2**_SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 1, shift=_SUBPIXEL_BITS)
        return mask.astype(bool)

    def ellipse_mask(self, center: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
        """Pixels inside an upright ellipse."""
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return self.mask_of(list(zip(center[0] + axes[0] * np.cos(t), center[1] + axes[1] * np.sin(t), strict=True)))

    def line_mask(self, points: Points, width_px: float) -> np.ndarray:
        """Pixels on a polyline, at least one pixel wide."""
        mask = np.zeros(self.size, np.uint8)
        fixed = np.round(np.clip(points, -20000, 20000)).astype(np.int32)
        cv2.polylines(mask, [fixed], False, 1, thickness=max(1, round(width_px)))
        return mask.astype(bool)

    def paint(self, mask: np.ndarray, color: Color, *, label: int | None, z: float | None, grain: float = 0.1) -> None:
        """Fills a mask.

        Args:
            mask: ``(H, W)`` bool.
            color: base colour.
            label: id to write; None leaves the ids.
            z: depth in metres; None leaves the depth.
            grain: strength of the texture, relative to the colour.
        """
        scales = self.rng.dirichlet((1.0, 1.5, 1.5, 1.0))
        texture = sum(s * field[mask] for s, field in zip(scales, self.noise.values(), strict=True))
        self.color[mask] = np.asarray(color, np.float32) * (1 + 2.5 * grain * texture[:, None])
        self._mark(mask, label, z)

    def paint_front(self, x: float, z: float, corners: Points, color: Color, *, label: int, grain: float = 0.1) -> None:
        """Fills a polygon that faces the camera, its corners ``(dx, y)`` metres beside `x` and above the ground."""
        points = [self.project(x + dx, y, z) for dx, y in corners]
        self.paint(self.mask_of(points), color, label=label, z=z, grain=grain)

    def paint_side(self, x: float, z: float, corners: Points, color: Color, *, label: int, grain: float = 0.1) -> None:
        """Fills a polygon along the street, its corners ``(z, y)`` in metres; `z` is its depth."""
        points = [self.project(x, y, depth) for depth, y in corners]
        self.paint(self.mask_of(points), color, label=label, z=z, grain=grain)

    def paint_texture(self, corners: Points, texture: np.ndarray, *, label: int, z: float) -> None:
        """Maps a texture ``(h, w, 3)`` onto a quadrilateral given from its upper left corner clockwise."""
        h, w = texture.shape[:2]
        source = np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32)
        matrix = cv2.getPerspectiveTransform(source, np.array(corners, np.float32))
        warped = cv2.warpPerspective(texture, matrix, self.size[::-1], flags=cv2.INTER_AREA)
        mask = self.mask_of(corners)
        self.color[mask] = warped[mask] * (1 + 0.12 * self.noise[3][mask][:, None])
        self._mark(mask, label, z)

    def shade(self, mask: np.ndarray, factor: float) -> None:
        """Darkens (below 1) or lightens a mask."""
        self.color[mask] *= factor

    def _mark(self, mask: np.ndarray, label: int | None, z: float | None) -> None:
        if label is not None:
            self.ids[mask] = label
        if z is not None:
            self.depth[mask] = z


def noise_field(size: Size, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise ``(H, W)`` of about unit deviation, with blobs of `cell` pixels."""
    height, width = size
    small = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) if cell > 1 else small[:height, :width]


def random_color(rng: np.random.Generator, base: Sequence[float], spread: float = 25.0, light: float = 0.2) -> Color:
    """A colour near `base`: each channel varies by `spread` grey levels, the brightness by the fraction `light`."""
    color = np.array(base) + rng.uniform(-spread, spread, 3)
    return np.clip(color * rng.uniform(1 - light, 1 + light), 8, 247)
