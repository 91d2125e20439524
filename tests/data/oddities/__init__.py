"""Small datasets with one real-life oddity each, made by code, and what has to be said about them.

An `Oddity` builds a folder below a root. The test prepares and audits it as a user would, looks for what has to be
said, and, where training goes on, compares the classes that training reads with the truth, up to their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIZE = (48, 72)  # height and width of an image
NUM_IMAGES = 8  # of a dataset: enough for both splits
IGNORED = -1  # in a truth: not learned from
ANY = -2  # in a truth: either is right, edges of smoothed masks for example
Truth = dict[str, np.ndarray]  # classes (H, W) of an image, by its name without folders and suffix


@dataclass(frozen=True)
class Oddity:
    """A dataset and what is expected of it.

    Attributes:
        name: of the dataset, and of the test.
        build: makes the files below ``root/name`` and gives the truth; an empty one where nothing is trained on.
        refused_by: ``prepare`` or ``audit``: ends with exit code 2; None: both end with 0.
        says: what the commands have to say, a file's name or a key among it; nothing: the audit has nothing to remark.
        prepare: arguments of ``prepare`` beside the dataset and its root; ``{root}`` stands for the root.
    """

    name: str
    build: Callable[[Path], Truth]
    refused_by: str | None = None
    says: tuple[str, ...] = ()
    prepare: tuple[str, ...] = field(default=())


def scene(index: int, num_classes: int = 3) -> np.ndarray:
    """Classes ``(H, W)`` of an image: stripes, shifted from image to image, the last class rare."""
    width = SIZE[1]
    classes = np.zeros(SIZE, np.uint8)
    classes[:, width // 3 :] = 1
    if num_classes > 2:
        for k in range(2, num_classes):
            top = 6 * (k - 2) + 6
            classes[top : top + 6, (index + k) % 8 + 30 : (index + k) % 8 + 48] = k
    return classes


def photograph(classes: np.ndarray, index: int) -> np.ndarray:
    """RGB pixels ``(H, W, 3)`` that show the classes, with noise."""
    noise = np.random.default_rng(index).integers(0, 30, (*classes.shape, 3))
    return (classes[..., None] * 50 + noise).astype(np.uint8)
