"""Small drawn datasets as a user has them: a folder of photos and a folder of masks.

`write_shapes` has few classes, one of them thin and in a third of the photos; `write_textures` has classes that are
told apart by their texture. ``python tests/drawn_photos.py FOLDER`` draws those of the table in docs/data.md.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from ovenet.synthetic.scenes import write_dataset

SHAPES = ("ground", "disc", "box", "wire")
TEXTURES = ("grass", "stone", "wood", "water")


def write_shapes(folder: Path, num_photos: int, size: tuple[int, int] = (800, 600), seed: int = 0) -> None:
    """Discs and boxes of any colour on uneven ground; every third photo has a wire."""
    rng = np.random.default_rng(seed)
    width, height = size
    unit = height / 600
    for index in range(num_photos):
        mask = np.zeros((height, width), np.uint8)
        photo = _noise(rng, size, rng.uniform(90, 140, 3), 25, 60 * unit)
        for _ in range(rng.integers(3, 8)):
            kind, shape = _shape(rng, size, int(rng.uniform(25, 90) * unit))
            photo = np.where(shape[..., None] > 0, _noise(rng, size, rng.uniform(40, 210, 3), 15, 12 * unit), photo)
            mask[shape > 0] = kind
        if index % 3 == 0:
            shape = np.zeros_like(mask)
            rows = rng.uniform(0.2, 0.8) * height + rng.normal(0, 30 * unit, 8)
            points = np.stack([np.linspace(0, width, 8), rows], axis=1).astype(np.int32)
            cv2.polylines(shape, [points], False, 1, max(2, round(5 * unit)))
            photo = np.where(shape[..., None] > 0, _noise(rng, size, rng.uniform(20, 70, 3), 5, 4 * unit), photo)
            mask[shape > 0] = SHAPES.index("wire")
        _save(folder, f"shape_{index:03d}", photo, mask, rng)


def _shape(rng: np.random.Generator, size: tuple[int, int], radius: int) -> tuple[int, np.ndarray]:
    """A disc or a box somewhere: its class and where it is."""
    width, height = size
    shape = np.zeros((height, width), np.uint8)
    place = int(rng.integers(0, width)), int(rng.integers(0, height))
    if rng.random() < 0.5:
        axes = radius, int(radius * rng.uniform(0.7, 1))
        cv2.ellipse(shape, place, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        return SHAPES.index("disc"), shape
    corners = cv2.boxPoints((place, (2 * radius, radius * rng.uniform(1, 2)), float(rng.uniform(0, 90))))
    cv2.fillPoly(shape, [corners.astype(np.int32)], 1)
    return SHAPES.index("box"), shape


def write_textures(folder: Path, num_photos: int, size: tuple[int, int] = (800, 600), seed: int = 0) -> None:
    """Regions that differ by texture more than by colour, in any light; the last class is rarer."""
    rng = np.random.default_rng(seed)
    width, height = size
    unit = height / 600
    for index in range(num_photos):
        fields = np.stack([_smooth(rng, size, 110 * unit) for _ in TEXTURES])
        fields[-1] -= 0.5
        mask = fields.argmax(0).astype(np.uint8)
        light, tint = rng.uniform(0.7, 1.3), rng.normal(0, 12, 3)
        grass = _noise(rng, size, (110, 130, 90), 30, 1.5 * unit)
        stone = _noise(rng, size, (125, 120, 115), 30, 8 * unit)
        columns = np.sin(np.arange(width)[None] / (6 * unit) + 3 * _smooth(rng, size, 60 * unit))
        wood = _noise(rng, size, (130, 115, 95), 8, 2 * unit) + 28 * columns[..., None]
        rows = np.sin(np.arange(height)[:, None] / (5 * unit) + 2 * _smooth(rng, size, 40 * unit))
        water = _noise(rng, size, (105, 120, 130), 6, 3 * unit) + 20 * rows[..., None]
        photo = np.choose(mask[..., None], [grass, stone, wood, water]) * light + tint
        _save(folder, f"texture_{index:03d}", photo, mask, rng)


def _smooth(rng: np.random.Generator, size: tuple[int, int], scale: float) -> np.ndarray:
    width, height = size
    coarse = rng.normal(size=(int(height / scale) + 2, int(width / scale) + 2)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def _noise(rng: np.random.Generator, size: tuple[int, int], color, amount: float, scale: float) -> np.ndarray:
    return np.asarray(color)[None, None] + amount * _smooth(rng, size, max(1.0, scale))[..., None]


def _save(folder: Path, name: str, photo: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    for part in ("photos", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    photo = np.clip(photo + rng.normal(0, 6, photo.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "photos" / f"{name}.jpg"), photo[..., ::-1])
    cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)


def write_reduced(source: Path, folder: Path, factor: int = 4) -> None:
    """Photos and masks at a fraction of their size."""
    for part, interpolation in (("photos", cv2.INTER_AREA), ("masks", cv2.INTER_NEAREST)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / part).iterdir()):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            size = image.shape[1] // factor, image.shape[0] // factor
            cv2.imwrite(str(folder / part / path.name), cv2.resize(image, size, interpolation=interpolation))


def write_streets(folder: Path, num_photos: int, split: str) -> None:
    """Scenes of `ovenet prepare synthetic`, 800x400, with the label ids of Cityscapes; the splits have other scenes."""
    with TemporaryDirectory() as drawn:
        counts = {one: num_photos if one == split else 0 for one in ("train", "val", "test")}
        for _ in write_dataset(Path(drawn), counts, size=(400, 800), seed=0):
            pass
        for part, kind, suffix in (("photos", "leftImg8bit", ""), ("masks", "gtFine", "_labelIds")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for path in Path(drawn).glob(f"{kind}/{split}/*/*_{kind}{suffix}.png"):
                shutil.copyfile(path, folder / part / path.name.replace(f"_{kind}{suffix}", ""))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for part, count, seed, split in (("", 30, 0, "train"), ("held_out", 20, 1, "val")):
        write_shapes(place / part / "shapes", count, seed=seed)
        write_textures(place / part / "textures", count, seed=seed)
        write_streets(place / part / "street", count, split)
        for name in ("shapes", "textures", "street"):
            write_reduced(place / part / name, place / "quarter" / part / name)
