"""Annotations of labelme and COCO with a slip, imported by ``prepare --from``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.data.oddities import IGNORED, NUM_IMAGES, Oddity, Truth

WIDTH, HEIGHT = 24, 16
NAN, INF = (float(text) for text in ("nan", "inf"))
Shapes = list[dict[str, Any]]


def square(label: object, left: float, top: float, side: float, **others: Any) -> dict[str, Any]:
    """A shape of labelme."""
    corners = [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
    return {"label": label, "points": corners, "shape_type": "polygon", **others}


def sound(index: int) -> Shapes:
    return [square("wall", 2, 2, 10), square("door", 4 + index % 4, 4, 4)]


def masks(index: int, *, with_door: bool = True) -> np.ndarray:
    """The classes of `sound`: a square of whole coordinates covers the pixels between them."""
    truth = np.full((HEIGHT, WIDTH), IGNORED)
    truth[2:12, 2:12] = 0
    if with_door:
        truth[4:8, 4 + index % 4 : 8 + index % 4] = 1
    return truth


def labelme(
    root: Path,
    name: str,
    *,
    odd: Shapes | None = None,
    scale: int = 1,
    size: tuple[int, int] | None = None,
    is_drawn: bool = False,
) -> Truth:
    """JSON files beside their images; the one of number 3 has the odd shapes too, its image another size.

    No truth where the odd shapes are drawn."""
    folder, truth = root / f"{name}-source", {}
    folder.mkdir(parents=True)
    for index in range(NUM_IMAGES):
        is_odd = index == 3
        width, height = (size or (WIDTH, HEIGHT)) if is_odd else (WIDTH, HEIGHT)
        factor = scale if is_odd else 1
        picture = np.random.default_rng(index).integers(0, 255, (height * factor, width * factor, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"view{index}.png")
        shapes = sound(index) + (odd or [] if is_odd else [])
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"view{index}.png",
            "imageData": None,
        }
        content |= {"imageWidth": WIDTH, "imageHeight": HEIGHT}
        (folder / f"view{index}.json").write_text(json.dumps(content))
        truth[f"view{index}"] = masks(index).repeat(factor, 0).repeat(factor, 1)
    return {} if is_drawn else truth


def coco(
    root: Path, name: str, *, change: Callable[[dict[str, Any]], object] = lambda content: None, no_door: int = -1
) -> Truth:
    """One JSON file, changed as the oddity wants."""
    folder, truth = root / f"{name}-source", {}
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 3, "name": "wall"}, {"id": 8, "name": "door"}]
    for index in range(NUM_IMAGES):
        picture = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"view{index}.png")
        content["images"].append({"id": index, "file_name": f"view{index}.png", "width": WIDTH, "height": HEIGHT})
        for shape in reversed(sound(index)):  # the small one first: it has to lie above all the same
            polygon = [value for point in shape["points"] for value in point]
            category, area = (3, 100) if shape["label"] == "wall" else (8, 16)
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": index, "category_id": category, "area": area,
                 "segmentation": [polygon], "iscrowd": 0}
            )  # fmt: skip
        truth[f"view{index}"] = masks(index, with_door=index != no_door)
    change(content)
    (folder / "instances.json").write_text(json.dumps(content))
    return truth


def for_all(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one[key] = value

    return change


def without_area(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        del one["area"]


def for_one(key: str, value: Any, number: int = 7) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][number].update({key: value})


def as_runs(content: dict[str, Any]) -> None:
    """Squares as run lengths, column by column."""
    for one in content["annotations"]:
        left, top, right, bottom = (int(v) for v in (*one["segmentation"][0][:2], *one["segmentation"][0][4:6]))
        mask = np.zeros((HEIGHT, WIDTH), int)
        mask[top:bottom, left:right] = 1
        flat = mask.T.ravel()
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *changes, flat.size]).tolist()
        one["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}


def _labelme(name: str, *, says: tuple[str, ...] = (), refused: bool = False, **options: Any) -> Oddity:
    prepare = ("--from", "labelme", "--source", f"{{root}}/{name}-source")
    return Oddity(name, partial(labelme, name=name, **options), "prepare" if refused else None, says, prepare)


def _coco(name: str, *, says: tuple[str, ...] = (), refused: bool = False, **options: Any) -> Oddity:
    prepare = ("--from", "coco", "--source", f"{{root}}/{name}-source/instances.json")
    return Oddity(name, partial(coco, name=name, **options), "prepare" if refused else None, says, prepare)


def point(kind: str, points: Any, label: object = "door") -> Shapes:
    return [{"label": label, "points": points, "shape_type": kind}]


SHAPES = [
    _labelme("shapes"),
    _labelme("photo-enlarged", scale=3, says=("view3",)),
    _labelme("photo-stretched", size=(24, 24), refused=True, says=("view3", "24x16")),
    _labelme("no-points", odd=point("polygon", []), says=("view3", "door")),
    _labelme("one-point", odd=point("polygon", [[3, 3]]), says=("view3", "door")),
    _labelme("no-number", odd=point("polygon", [[3, 3], [NAN, 5], [9, 9]]), refused=True, says=("view3", "door")),
    _labelme("infinity", odd=point("polygon", [[3, 3], [INF, 5], [9, 9]]), refused=True, says=("view3", "door")),
    _labelme("ignored-label", odd=[square("__ignore__", 0, 0, 2)]),
    _labelme("stroke", odd=point("line", [[3, 3], [9, 9]]), says=("view3", "10 pixels"), is_drawn=True),
    _labelme("dot", odd=point("point", [[3, 3]]), says=("view3", "10 pixels"), is_drawn=True),
    _labelme("number-for-label", odd=[square(7, 0, 0, 2)], is_drawn=True),
    _labelme("list-for-label", odd=[square(["door"], 0, 0, 2)], refused=True, says=("view3", "door")),
    _coco("coco"),
    _coco("coco-runs", change=as_runs),
    _coco("coco-no-area", change=without_area),
    _coco("coco-area-0", change=for_all("area", 0)),
    _coco("coco-no-ring", change=for_one("segmentation", [], number=6), says=("6",), no_door=3),
    _coco("coco-odd-number", change=for_one("segmentation", [[1, 2, 3]]), refused=True, says=("instances.json", "7")),
    _coco("coco-bad-runs", change=for_one("segmentation", {"size": [HEIGHT, WIDTH], "counts": [9**12]}), refused=True,
          says=("instances.json", "7")),
    _coco("coco-no-category", change=for_one("category_id", 99), refused=True, says=("instances.json", "99")),
    Oddity(
        "one-class",
        partial(coco, name="one-class", change=for_all("category_id", 3)),
        "prepare",
        ("--background",),
        ("--from", "coco", "--source", "{root}/one-class-source/instances.json"),
    ),
]  # fmt: skip
