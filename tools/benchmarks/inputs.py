"""Inputs of the benchmarks: random scores and labels, drawn scenes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.plain import IGNORE
from ovenet.structures import OVeNetOutput
from ovenet.synthetic.scenes import draw_scene


@dataclass(frozen=True)
class Options:
    """Attributes:
    device: where models and losses run.
    quick: tiny sizes, to test the tool itself.
    """

    device: torch.device
    quick: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (height // 8, width // 8) if self.quick else (height, width)


def random_output(
    batch: int, num_classes: int, size: tuple[int, int], device: torch.device, num_maps: int = 2
) -> OVeNetOutput:
    """Scores as a network gives them, channels last, that want a gradient."""
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> Tensor:
        values = 3 * torch.randn(batch, channels, *size, generator=generator)
        return values.to(device, memory_format=torch.channels_last).requires_grad_()

    groups = [tuple(maps(num_classes) for _ in range(num_maps)) for _ in range(3)]
    offset = (torch.rand(batch, 2, *size, generator=generator) - 0.5).to(device)
    confidence = torch.rand(batch, 1, *size, generator=generator).to(device).requires_grad_()
    return OVeNetOutput(*groups, offset, confidence)


def random_labels(batch: int, num_classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Blocks of classes with ignored pixels among them."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, num_classes, (batch, -(-size[0] // 16), -(-size[1] // 16)))
    labels = small.repeat(16, axis=1).repeat(16, axis=2)[:, : size[0], : size[1]].copy()
    labels[rng.random(labels.shape) < 0.1] = IGNORE
    return torch.from_numpy(labels).to(device)


@contextmanager
def drawn_scenes(count: int, size: tuple[int, int]) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
    """A folder in Cityscapes' manner."""
    with tempfile.TemporaryDirectory() as name:
        root, pairs = Path(name), []
        for number in range(count):
            rng = np.random.default_rng(number)
            image, ids = draw_scene((size[0] // 2, size[1] // 2), rng)
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
            image = cv2.GaussianBlur(image, (0, 0), 1.5)  # 2.2 MB, like Cityscapes' files
            ids = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST)
            pair = (f"leftImg8bit/train/{number}.png", f"gtFine/train/{number}.png")
            for path, pixels in zip(pair, (image, ids), strict=True):
                (root / "cityscapes" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / "cityscapes" / path)
            pairs.append(pair)
        (root / "train.lst").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
        yield root, pairs
