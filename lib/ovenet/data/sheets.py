"""Contact sheets: images with their labels overlaid."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovenet.data.info import DatasetInfo
from ovenet.structures import Sample

IGNORED_COLOR = (0, 0, 0)
_OPACITY = 0.6
_STRIPE_PX = 8  # period of the hatching, a fourth of which is drawn
_STRIPE_COLOR = (200, 200, 200)
_MARGIN = 6
_TEXT_HEIGHT = 16
_BACKGROUND = (255, 255, 255)
_INK = (30, 30, 30)


def colorize(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Train ids ``(H, W)`` to ``(H, W, 3)`` uint8 in the dataset's colours; ids that are no class are black."""
    palette = np.array((*info.palette, IGNORED_COLOR), dtype=np.uint8)
    is_class = (labels >= 0) & (labels < info.num_classes)
    return palette[np.where(is_class, labels, info.num_classes)]


def hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A copy of a picture with diagonal stripes over a part of it, which tell ignored pixels from a black class.

    Args:
        picture: ``(H, W, 3)`` uint8, at the size at which it is shown.
        where: ``(H, W)`` bool.
    """
    diagonal = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1]))
    is_stripe = where & (diagonal % _STRIPE_PX < _STRIPE_PX // 4)
    return np.where(is_stripe[..., None], np.array(_STRIPE_COLOR, np.uint8), picture)


def contact_sheet(
    samples: Sequence[Sample], info: DatasetInfo, *, num_columns: int = 4, tile_width: int = 400
) -> np.ndarray:
    """Each sample with its name, without and with its label overlaid; below, a legend of the classes shown.

    Ignored pixels are hatched, in the samples and in the legend.

    Args:
        samples: at least one; without a label only the image is shown.
        info: names and colours.
        num_columns: samples side by side.
        tile_width: width of a sample in pixels.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    tiles = [_tile(sample, info, tile_width) for sample in samples]
    num_columns = min(num_columns, len(tiles))
    rows = [tiles[i : i + num_columns] for i in range(0, len(tiles), num_columns)]
    width = num_columns * (tile_width + _MARGIN) + _MARGIN
    legend = _legend(samples, info, width)
    heights = [max(tile.height for tile in row) + _MARGIN for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN + legend.height), _BACKGROUND)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_MARGIN + column * (tile_width + _MARGIN), top))
        top += height
    sheet.paste(legend, (0, top))
    return np.asarray(sheet)


def _tile(sample: Sample, info: DatasetInfo, width: int) -> Image.Image:
    half = (width - 2) // 2
    height = max(1, round(sample.image.shape[0] * half / sample.image.shape[1]))
    views = [cv2.resize(sample.image, (half, height), interpolation=cv2.INTER_AREA)]
    if sample.labels is not None:
        overlay = cv2.addWeighted(sample.image, 1 - _OPACITY, colorize(sample.labels, info), _OPACITY, 0)
        overlay = cv2.resize(overlay, (half, height), interpolation=cv2.INTER_AREA)
        is_ignored = (sample.labels < 0) | (sample.labels >= info.num_classes)
        share = cv2.resize(is_ignored.astype(np.float32), (half, height), interpolation=cv2.INTER_AREA)
        views.append(hatch(overlay, share >= 0.5))
    tile = Image.new("RGB", (width, height + _TEXT_HEIGHT), _BACKGROUND)
    for index, view in enumerate(views):
        tile.paste(Image.fromarray(view), (index * (half + 2), 0))
    ImageDraw.Draw(tile).text((0, height + 2), _shorten(sample.name, width), _INK, font=_font())
    return tile


def _legend(samples: Sequence[Sample], info: DatasetInfo, width: int) -> Image.Image:
    shown = np.zeros(info.num_classes, dtype=bool)
    for sample in samples:
        if sample.labels is not None:
            values = np.unique(sample.labels)
            shown[values[(values >= 0) & (values < info.num_classes)]] = True
    entries = [(info.class_names[k], info.palette[k]) for k in np.flatnonzero(shown)]
    entries.append(("ignored", IGNORED_COLOR))
    cell = 24 + max(int(_font().getlength(name)) for name, _ in entries) + 2 * _MARGIN
    per_row = max(1, (width - _MARGIN) // cell)
    legend = Image.new("RGB", (width, (len(entries) + per_row - 1) // per_row * 20 + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    stripes = Image.fromarray(hatch(np.full((13, 17, 3), IGNORED_COLOR, np.uint8), np.ones((13, 17), bool)))
    for index, (name, color) in enumerate(entries):
        left, top = _MARGIN + index % per_row * cell, index // per_row * 20
        draw.rectangle((left, top, left + 18, top + 14), fill=color, outline=_INK)
        if index == len(entries) - 1:
            legend.paste(stripes, (left + 1, top + 1))
        draw.text((left + 24, top + 1), name, _INK, font=_font())
    return legend


def _shorten(name: str, width: int) -> str:
    """The end of a path that fits into a width in pixels."""
    font = _font()
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"…{name}") > width:
        name = name[1:]
    return f"…{name}"


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)
