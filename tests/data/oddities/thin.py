"""Clean masks with thin classes, whose ids or colours lie between those of wide ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tests.data.oddities import Oddity
from tests.data.oddities.masks import Save, dataset, save_grey

from ovenet.data.description import voc_color

VOC = np.array([voc_color(k) for k in range(256)], np.uint8)


def curbs(index: int, *, left: int, right: int, thin: Sequence[int]) -> np.ndarray:
    """Two halves, and between them a column of one pixel, whose parts are of classes of their own."""
    classes = np.full((60, 80), left, np.uint8)
    column = 20 + 5 * index
    classes[:, column:] = right
    classes[:, column] = np.repeat(thin, 60 // len(thin))
    return classes


def cells(index: int, *, width: int) -> np.ndarray:
    """Cells of classes 2, 4, 6 with outlines of classes 1, 3, 5."""
    rng, classes = np.random.default_rng(index), np.zeros((80, 100), np.uint8)
    for _ in range(8):
        top, left = rng.integers(0, 60), rng.integers(0, 80)
        bottom, right = top + rng.integers(10, 25), left + rng.integers(10, 25)
        kind = 2 * rng.integers(1, 4)
        classes[top:bottom, left:right] = kind - 1
        classes[top + width : bottom - width, left + width : right - width] = kind
    return classes


def lamps(index: int) -> np.ndarray:
    """Ids 0, 10 and 11; in two masks also small things of other classes, where two of these meet."""
    classes = np.zeros((60, 80), np.uint8)
    classes[20:], classes[40:] = 10, 11
    if index in (3, 12):
        for place, kind in enumerate((2, 4, 5, 6, 8) * 2):
            classes[16:22, 4 + 7 * place : 6 + 7 * place] = kind
    return classes


def save_voc(classes: np.ndarray, path: Path, index: int) -> None:
    image = Image.fromarray(classes, "P")
    image.putpalette(VOC.tobytes())
    image.save(f"{path}.png")


def save_voc_colors(classes: np.ndarray, path: Path, index: int) -> None:
    Image.fromarray(VOC[classes]).save(f"{path}.png")


def _thin(name: str, draw: Callable[[int], np.ndarray], save: Save, says: tuple[str, ...] = (), num: int = 8) -> Oddity:
    return Oddity(name, partial(dataset, name=name, save=save, draw=draw, num_images=num), says=says)


NOTE = ("masks look smoothed, or have thin classes",)
CURBS = partial(curbs, left=0, right=10, thin=(3, 5, 7))
THIN = [
    _thin("curbs", CURBS, save_grey, (*NOTE, "id 3 (0.42 %)")),
    _thin("curbs-of-near-ids", partial(curbs, left=0, right=1, thin=(2, 3, 4)), save_grey),
    _thin("curbs-beyond-both", partial(curbs, left=20, right=21, thin=(3, 5, 7)), save_grey),
    _thin("curbs-in-a-palette", CURBS, save_voc),
    _thin("curbs-in-colours", partial(curbs, left=0, right=7, thin=(1, 2, 3, 4)), save_voc_colors),
    _thin("thin-outlines", partial(cells, width=1), save_grey, NOTE),
    _thin("outlines", partial(cells, width=2), save_grey, NOTE),
    _thin("outlines-in-colours", partial(cells, width=1), save_voc_colors),
    _thin("lamps", lamps, save_grey, num=20),
]
