"""Street scenes drawn by the project itself, in the folder layout and with the label ids of Cityscapes.

A scene is a function of the seed, the split and its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovenet.structures import Size
from ovenet.synthetic import objects
from ovenet.synthetic.canvas import FARTHEST_M, Canvas, noise_field, random_color
from ovenet.utils.writing import write_file

ROAD, SIDEWALK, BUILDING, WALL, FENCE, TERRAIN, SKY = 7, 8, 11, 12, 13, 22, 23
EGO_VEHICLE = 1
SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}
CITY = "drawnville"
_SCENES_AT_ONCE = 4  # of a process
Draw = Callable[[Canvas, float], None]  # draws one object at a depth


def write_dataset(folder: Path, counts: dict[str, int], *, size: Size, seed: int) -> Iterator[Path]:
    """Draws scenes into ``leftImg8bit/<split>/…`` and ``gtFine/<split>/…`` with all cores; files that exist are kept.

    Args:
        folder: of the dataset.
        counts: scenes per split.
        size: ``(H, W)`` in pixels.
        seed: of all scenes.

    Yields:
        The path of each scene's image once it is written.
    """
    scenes = [(folder, split, number, size, seed) for split, count in counts.items() for number in range(count)]
    num_missing = sum(not all(path.exists() for path in _paths(*scene[:3], seed)) for scene in scenes)
    if num_missing <= _SCENES_AT_ONCE:  # drawn before another process would have started
        yield from map(_write_scene, scenes)
        return
    # one thread each, as the processes already share the cores
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(_write_scene, scenes, chunksize=_SCENES_AT_ONCE)


def _paths(folder: Path, split: str, number: int, seed: int) -> tuple[Path, Path]:
    """Files of a scene's image and label."""
    stem = f"{CITY}_{number:06d}_{seed:06d}"
    image = folder / "leftImg8bit" / split / CITY / f"{stem}_leftImg8bit.png"
    return image, folder / "gtFine" / split / CITY / f"{stem}_gtFine_labelIds.png"


def _write_scene(scene: tuple[Path, str, int, Size, int]) -> Path:
    folder, split, number, size, seed = scene
    image_path, label_path = _paths(folder, split, number, seed)
    if not (image_path.exists() and label_path.exists()):
        image, ids = draw_scene(size, np.random.default_rng([seed, SPLIT_NUMBERS[split], number]))
        for path, pixels in ((image_path, image), (label_path, ids)):
            write_file(path, Image.fromarray(pixels).save)
    return image_path


def draw_scene(size: Size, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One street.

    Args:
        size: ``(H, W)`` in pixels.
        rng: the only source of randomness.

    Returns:
        The image ``(H, W, 3)`` uint8 RGB and Cityscapes label ids ``(H, W)`` uint8.
    """
    canvas = Canvas(size, rng)
    street = _Street(rng)
    _draw_sky(canvas)
    _draw_ground(canvas, street)
    for side in (-1, 1):
        _draw_side(canvas, street, side)
    items = _place_objects(street)
    for z, draw in sorted(items, key=lambda item: -item[0]):
        draw(canvas, z)
    if rng.random() < 0.5:
        _draw_hood(canvas)
    return _photograph(canvas), canvas.ids


class _Street:
    """The layout shared by ground, buildings and objects, in metres."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.left = -rng.uniform(3.0, 7.0)
        self.right = rng.uniform(2.5, 6.0)
        self.sidewalk = {-1: rng.uniform(1.5, 4.0), 1: rng.uniform(1.5, 4.0)}
        self.verge = {side: rng.choice((0.0, rng.uniform(1.0, 5.0))) for side in (-1, 1)}

    def kerb(self, side: int) -> float:
        """Where the road ends."""
        return self.left if side < 0 else self.right

    def front(self, side: int) -> float:
        """Where the buildings begin."""
        return self.kerb(side) + side * (self.sidewalk[side] + self.verge[side])


def _draw_sky(canvas: Canvas) -> None:
    rng, (height, width) = canvas.rng, canvas.size
    tops = [(110, 150, 200), (165, 170, 178), (210, 214, 218), (60, 75, 110), (170, 140, 150)]
    top = random_color(rng, tops[rng.integers(len(tops))], 15)
    low = np.clip(top * rng.uniform(1.0, 1.3) + rng.uniform(0, 35), 0, 250)
    blend = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.5)
    clouds = np.clip(canvas.noise[40] * 0.6 + canvas.noise[10] * 0.25 + rng.uniform(-1, 0.8), 0, 1)[..., None]
    sky = top * (1 - blend) + low * blend
    canvas.color[:] = sky * (1 - 0.6 * clouds) + random_color(rng, (225, 225, 228), 10) * 0.6 * clouds
    canvas.ids[:] = SKY
    # a distant skyline of trees and houses
    y = canvas.vanishing_px[1]
    ridge = noise_field((1, width), 14, rng)[0] * height * 0.02 + height * rng.uniform(0.01, 0.06)
    rows = np.arange(height)[:, None]
    skyline = (rows > y - ridge[None]) & (rows <= y + 2)
    is_green = np.broadcast_to(noise_field((1, width), 60, rng)[0][None] > 0, skyline.shape)
    green, grey = random_color(rng, (85, 100, 75), 15), random_color(rng, (140, 135, 132), 15)
    canvas.paint(skyline & is_green, green, label=objects.VEGETATION, z=250, grain=0.2)
    canvas.paint(skyline & ~is_green, grey, label=BUILDING, z=250, grain=0.15)


def _draw_ground(canvas: Canvas, street: _Street) -> None:
    rng = canvas.rng
    rows = np.arange(canvas.size[0])[:, None]
    below = np.broadcast_to(rows > canvas.vanishing_px[1], canvas.size)
    grass = random_color(rng, [(95, 110, 60), (130, 120, 85), (110, 100, 80)][rng.integers(3)], 18)
    canvas.paint(below, grass, label=TERRAIN, z=None, grain=0.28)
    depth = canvas.focal_px * 1.5 / np.maximum(rows - canvas.vanishing_px[1], 0.01)
    canvas.depth[below] = np.broadcast_to(np.minimum(depth, FARTHEST_M), canvas.size)[below]
    for side in (-1, 1):
        outer = street.kerb(side) + side * street.sidewalk[side]
        slab = random_color(rng, [(165, 160, 155), (140, 120, 110), (120, 120, 122)][rng.integers(3)], 15)
        canvas.paint(_ground_mask(canvas, street.kerb(side), outer), slab, label=SIDEWALK, z=None, grain=0.16)
        kerb = _ground_mask(canvas, street.kerb(side), street.kerb(side) + side * 0.2)
        canvas.shade(kerb, rng.uniform(0.7, 1.25))
        joint = rng.uniform(0.8, 2.0)
        for z in np.arange(2.0, 30.0, joint):
            canvas.shade(_ground_mask(canvas, street.kerb(side), outer, z, z + 0.06), 0.82)
    asphalt = random_color(rng, [(95, 95, 98), (125, 122, 118), (70, 72, 78)][rng.integers(3)], 12)
    canvas.paint(_ground_mask(canvas, street.left, street.right), asphalt, label=ROAD, z=None, grain=0.12)
    _draw_markings(canvas, street)
    for _ in range(rng.integers(0, 4)):  # patches and cast shadows
        x, z = rng.uniform(street.left, street.right), rng.uniform(3, 40)
        patch = _ground_mask(canvas, x, x + rng.uniform(1, 6), z, z + rng.uniform(0.5, 8))
        canvas.shade(patch, rng.uniform(0.55, 0.9))


def _draw_markings(canvas: Canvas, street: _Street) -> None:
    rng = canvas.rng
    paint = random_color(rng, (225, 225, 215), 15)
    middle = (street.left + street.right) / 2
    dash, gap = rng.uniform(1.5, 4), rng.uniform(1.5, 5)
    for z in np.arange(rng.uniform(1.5, 4), 90, dash + gap):
        canvas.paint(_ground_mask(canvas, middle - 0.08, middle + 0.08, z, z + dash), paint, label=None, z=None)
    if rng.random() < 0.3:  # a zebra crossing
        near = rng.uniform(6, 20)
        for x in np.arange(street.left + 0.3, street.right - 0.5, 1.0):
            canvas.paint(_ground_mask(canvas, x, x + 0.5, near, near + 3), paint, label=None, z=None, grain=0.2)


def _ground_mask(canvas: Canvas, x0: float, x1: float, near: float = 1.2, far: float = FARTHEST_M) -> np.ndarray:
    corners = ((x0, near), (x1, near), (x1, far), (x0, far))
    return canvas.mask_of([canvas.project(x, 0, z) for x, z in corners])


def _draw_side(canvas: Canvas, street: _Street, side: int) -> None:
    """Buildings, gaps with greenery, walls and fences along one side, far ones first."""
    rng, front = canvas.rng, street.front(side)
    density = rng.uniform(0.35, 0.95)
    edges = [rng.uniform(-6, 6)]
    while edges[-1] < 110:
        edges.append(edges[-1] + rng.uniform(7, 22))
    for near, far in reversed(list(pairwise(edges))):
        if far < 3:
            continue
        kind = rng.random()
        if kind < density:
            height = rng.uniform(5, 20)
            texture = objects.facade_texture(rng, far - near, height)
            x = front + side * rng.uniform(0, 1.5)
            _draw_plane(canvas, x, near, far, height, texture, BUILDING)
            _draw_gable(canvas, x, side, near, height)
        else:
            _draw_greenery(canvas, front, side, near, far)
            if kind > 0.75 or rng.random() < 0.6:
                _draw_barrier(canvas, front, near, far)


def _draw_plane(
    canvas: Canvas, x: float, near: float, far: float, height: float, texture: np.ndarray, label: int
) -> None:
    near = max(near, 1.6)
    corners = [(near, height), (far, height), (far, 0.0), (near, 0.0)]
    if x > 0:
        corners = [corners[1], corners[0], corners[3], corners[2]]
    points = [canvas.project(x, y, z) for z, y in corners]
    canvas.paint_texture(points, texture, label=label, z=(near + far) / 2)


def _draw_gable(canvas: Canvas, x: float, side: int, near: float, height: float) -> None:
    """The end wall of a free-standing building, which faces the camera."""
    if near < 3:
        return
    corners = [(0.0, 0.0), (side * 30, 0.0), (side * 30, height), (0.0, height)]
    canvas.paint_front(x, near, corners, random_color(canvas.rng, (150, 138, 125), 25), label=BUILDING)


def _draw_greenery(canvas: Canvas, front: float, side: int, near: float, far: float) -> None:
    rng = canvas.rng
    for z in sorted(rng.uniform(max(near, 4), far, size=4), reverse=True) if far > 4 else []:
        color = random_color(rng, [(75, 100, 50), (95, 115, 65), (120, 110, 60)][rng.integers(3)], 18, 0.3)
        height, radius = rng.uniform(0.6, 4), rng.uniform(1.0, 2.8)
        center = canvas.project(front + side * rng.uniform(0.5, 5), height, z)
        objects.foliage(canvas, center, radius * canvas.scale_px(z), color, z)


def _draw_barrier(canvas: Canvas, x: float, near: float, far: float) -> None:
    rng, height = canvas.rng, canvas.rng.uniform(0.8, 2.4)
    length_px, height_px = max(8, int((far - near) * 12)), max(8, int(height * 24))
    if rng.random() < 0.5:
        color = random_color(rng, [(150, 140, 128), (120, 95, 80), (105, 108, 112)][rng.integers(3)], 18)
        texture = np.ones((height_px, length_px, 3), np.float32) * color.astype(np.float32)
        texture[:: int(rng.integers(5, 9))] *= 0.8
        texture *= 1 + 0.08 * rng.standard_normal((height_px, length_px, 1)).astype(np.float32)
        _draw_plane(canvas, x, near, far, height, texture, WALL)
        return
    # fence: slats with the background showing through; the annotation covers the gaps, as in Cityscapes
    near = max(near, 1.6)
    quad = [canvas.project(x, y, z) for z, y in ((near, height), (far, height), (far, 0.0), (near, 0.0))]
    area = canvas.mask_of(quad)
    canvas.ids[area] = FENCE
    color = random_color(rng, [(110, 85, 60), (60, 62, 66), (190, 190, 185)][rng.integers(3)], 18)
    slats = np.zeros(canvas.size, bool)
    for z in np.arange(near, far, rng.uniform(0.25, 0.6)):
        width = max(1.0, 0.1 * canvas.scale_px(z))
        slats |= canvas.line_mask([canvas.project(x, 0, z), canvas.project(x, height, z)], width)
    for y in (height * 0.25, height * 0.9):
        slats |= canvas.line_mask([canvas.project(x, y, near), canvas.project(x, y, far)], 1.5)
    canvas.paint(slats & area, color, label=None, z=(near + far) / 2)


def _place_objects(street: _Street) -> list[tuple[float, Draw]]:
    """The objects of the street, as ``(depth, drawing)``."""
    rng = street.rng
    items: list[tuple[float, Draw]] = []

    def add(low: float, high: float, draw: Draw) -> None:
        items.append((float(rng.uniform(low, high)), draw))

    def x_on_road() -> float:
        return float(rng.uniform(street.left + 1.1, street.right - 1.1))

    def x_on_sidewalk(side: int) -> float:
        return street.kerb(side) + side * float(rng.uniform(0.4, street.sidewalk[side]))

    def vehicle(label: int, x: float) -> Draw:
        return lambda canvas, z: objects.vehicle(canvas, label, x, z)

    def placed(draw: Callable[..., None], x: float, **options: Any) -> Draw:
        return lambda canvas, z: draw(canvas, x=x, z=z, **options)

    for _ in range(rng.integers(1, 6)):
        add(7, 70, vehicle(objects.CAR, x_on_road()))
    for side in (-1, 1):
        if rng.random() < 0.6:  # a row of parked cars
            start = rng.uniform(5, 15)
            for i in range(rng.integers(2, 7)):
                x = street.kerb(side) - side * 1.0
                items.append((start + i * rng.uniform(5.2, 6.5), vehicle(objects.CAR, x)))
    for label, chance in ((objects.TRUCK, 0.3), (objects.BUS, 0.3), (objects.TRAIN, 0.22)):
        if rng.random() < chance:
            add(12, 50, vehicle(label, x_on_road()))
    for _ in range(rng.integers(1, 9)):
        side = rng.choice((-1, 1))
        x = x_on_sidewalk(side) if rng.random() < 0.8 else x_on_road()
        add(5, 50, placed(objects.person, x))
    for label, chance in ((objects.BICYCLE, 0.55), (objects.MOTORCYCLE, 0.4)):
        for _ in range(2):
            if rng.random() < chance:
                ridden = rng.random() < 0.6
                x = x_on_road() if ridden else x_on_sidewalk(rng.choice((-1, 1)))
                add(5, 35, placed(objects.two_wheeler, x, label=label, ridden=ridden))
    for side in (-1, 1):
        for draw, count in ((objects.pole, 6), (objects.tree, 4), (objects.clutter, 3)):
            for _ in range(rng.integers(0, count)):
                x = x_on_sidewalk(side)
                add(5, 60, placed(draw, x))
    return items


def _draw_hood(canvas: Canvas) -> None:
    """The hood of the camera car, which is not scored."""
    rng, (height, width) = canvas.rng, canvas.size
    center, axes = (width * rng.uniform(0.45, 0.55), height * 1.08), (width * 0.55, height * rng.uniform(0.12, 0.2))
    canvas.paint(canvas.ellipse_mask(center, axes), random_color(rng, (60, 62, 66), 30), label=EGO_VEHICLE, z=1.5)


def _photograph(canvas: Canvas) -> np.ndarray:
    """Fog by depth, exposure, colour cast, uneven light, blur and sensor noise."""
    rng, (height, width) = canvas.rng, canvas.size
    image: np.ndarray = canvas.color
    if rng.random() < 0.35:
        clear = np.exp(-canvas.depth / rng.uniform(40, 200))[..., None]
        image = image * clear + random_color(rng, (195, 198, 202), 10) * (1 - clear)
    light = 1 + rng.uniform(0, 0.25) * noise_field((height, width), max(height, width) // 3, rng)[..., None]
    cast = 1 + rng.uniform(-0.1, 0.1, 3)
    image = np.clip(image * light * cast * rng.uniform(0.65, 1.2), 0, 255)
    image = 255 * (image / 255) ** rng.uniform(0.75, 1.35)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.3, 0.7))
    image = image + rng.normal(0, rng.uniform(1, 5), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
