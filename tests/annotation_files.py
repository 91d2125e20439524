"""Files of labelme and COCO for tests: images of 30 x 20 pixels and their shapes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ovenet.preparation.annotations import Import, import_annotations

SIZE = (20, 30)
ORIENTATION = 0x0112  # EXIF tag
TYPES = ("polygon", "rectangle", "oriented_rectangle", "circle", "line", "linestrip", "point", "points", "mask")


def write_image(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.zeros((*size, 3), np.uint8))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(path, **({"exif": exif} if orientation != 1 else {}))
    return path


def shape(label, points, kind="polygon", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def labelme(
    folder: Path, name: str, shapes: list[dict], *, suffix: str = ".jpg", with_image: bool = True, **more
) -> Path:
    if with_image:
        write_image(folder / f"{name}{suffix}")
    content = {"version": "5.4.1", "imagePath": f"{name}{suffix}", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "imageData": None, "shapes": shapes, **more}))
    return path


def annotation(category: int, segmentation, *, image: int = 7, **more) -> dict:
    return {"image_id": image, "category_id": category, "area": 9, "iscrowd": 0, "segmentation": segmentation, **more}


def coco(folder: Path, annotations: list[dict], /, *, name: str = "instances.json", **more) -> Path:
    """One image, a.png of number 7, and the categories 3, tree, and 5, bird."""
    write_image(folder / "images/a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "tree"}, {"id": 5, "name": "bird"}],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=100)],
    }
    path = folder / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **more}))
    return path


def imported(form: str, source: Path, **options) -> tuple[Import, Path]:
    """Imports into the folder `out` beside the source, as its training split: one image is not divided."""
    folder = source.parent / "out"
    return import_annotations(form, source, folder, **{"split": "train", **options}), folder


def mask(folder: Path, name: str = "a", split: str = "train") -> np.ndarray:
    return np.asarray(Image.open(folder / "labels" / split / f"{name}.png"))


def classes(folder: Path) -> dict[str, int]:
    return {row["name"]: row["id"] for row in json.loads((folder / "dataset.json").read_text())["classes"]}
