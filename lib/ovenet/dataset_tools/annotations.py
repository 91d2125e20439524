"""Annotations of other programs as masks: labelme's JSON files, and COCO's."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovenet.data.description import MAX_CLASSES
from ovenet.data.files import image_size
from ovenet.data.inputs import IMAGE_SUFFIXES
from ovenet.errors import UserError
from ovenet.utils.writing import write_file, write_text

FORMS = ("labelme", "coco")
UNLABELLED = 0  # id of pixels that no shape covers; classes count from 1
_CIRCLE_CORNERS = 64


@dataclass
class Shape:
    """An area of one class.

    Attributes:
        name: of the class.
        rings: polygons ``(N, 2)`` of ``(x, y)`` in pixels, whose areas are joined.
        mask: ``(H, W)`` instead of polygons; None for those.
    """

    name: str
    rings: list[np.ndarray] = field(default_factory=list)
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Annotated:
    """An image and its shapes, those below first.

    Attributes:
        image: the file.
        name: relative to the dataset, without suffix.
        size: ``(H, W)`` that its shapes are drawn on.
        shapes: drawn in this order.
    """

    image: Path
    name: str
    size: tuple[int, int]
    shapes: list[Shape]


def import_annotations(form: str, source: Path, folder: Path, *, background: str = "", copy: bool = False) -> int:
    """Writes ``images/``, ``labels/`` and ``dataset.json`` for `prepare_dataset`.

    Args:
        form: ``labelme`` or ``coco``.
        source: labelme: a folder of images with JSON files; COCO: the JSON file, beside whose folder or in whose
            folder the images lie.
        folder: of the new dataset; must not exist, or be empty.
        background: name of a class for pixels that no shape covers; "" ignores them.
        copy: copy the images instead of linking them.

    Returns:
        The number of images.

    Raises:
        UserError: a file is not of the form, an image is missing, or the folder has files in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: has files in it already; name another dataset, or remove the folder")
    found = list(_read_labelme(source) if form == "labelme" else _read_coco(source))
    if not found:
        raise UserError(f"{source}: there is no annotated image in it")
    twice = next((name for name, count in Counter(one.name for one in found).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{source}: two images are called {twice}, and so would their masks be; rename one")
    names = sorted({shape.name for one in found for shape in one.shapes} - {background})
    if len(names) + bool(background) > MAX_CLASSES - 1:
        raise UserError(f"{source}: {len(names)} classes; masks of 8 bits hold {MAX_CLASSES - 1}")
    if not names:
        raise UserError(f"{source}: there is no shape in it")
    ids = {name: index for index, name in enumerate(names, start=1)}
    if background:
        ids[background] = UNLABELLED
    for one in found:
        mask = draw(one, ids)
        image = folder / "images" / f"{one.name}{one.image.suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copy2(one.image, image)
        else:
            image.symlink_to(os.path.abspath(one.image))
        write_file(folder / "labels" / f"{one.name}.png", Image.fromarray(mask).save)
    classes = [{"name": name, "id": ids[name]} for name in sorted(ids, key=ids.get)]
    content = {"classes": classes, **({} if background else {"ignore": [UNLABELLED]}), "upright": form == "labelme"}
    write_text(folder / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return len(found)


def draw(one: Annotated, ids: dict[str, int]) -> np.ndarray:
    """The mask ``(H, W)`` uint8 of an image: later shapes lie over earlier ones."""
    mask = np.full(one.size, UNLABELLED, np.uint8)
    for shape in one.shapes:
        if shape.mask is not None:
            mask[shape.mask] = ids[shape.name]
        for ring in shape.rings:
            cv2.fillPoly(mask, [np.rint(ring).astype(np.int32)], ids[shape.name])
    return mask


def _read_labelme(source: Path) -> Iterator[Annotated]:
    if not source.is_dir():
        raise UserError(f"--source {source}: no such folder; labelme's JSON files are looked for in it")
    for path in sorted(source.rglob("*.json")):
        content = read_json(path)
        try:
            shapes = [_labelme_shape(shape, path) for shape in content["shapes"]]
            image = path.parent / PurePosixPath(str(content["imagePath"]).replace("\\", "/"))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path}: not a file of labelme ({error!r})") from error
        image = image if image.is_file() else next(iter(_beside(path)), image)
        if not image.is_file():
            raise UserError(f"{path}: its image {image} does not exist; put it beside the JSON file")
        size = image_size(image)
        if (content.get("imageWidth"), content.get("imageHeight")) == size:  # turned, as labelme shows photographs
            size = size[::-1]
        yield Annotated(image, path.relative_to(source).with_suffix("").as_posix(), size, shapes)


def _beside(path: Path) -> list[Path]:
    """Images that are called like a JSON file."""
    return [p for p in sorted(path.parent.glob(f"{path.stem}.*")) if p.suffix.lower() in IMAGE_SUFFIXES]


def _labelme_shape(shape: dict[str, Any], path: Path) -> Shape:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise UserError(f"{path}: a point of {shape['label']!r} is no number")
    if kind == "polygon":
        ring = points
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        ring = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind == "circle":
        center, edge = points
        angles = 2 * math.pi / _CIRCLE_CORNERS * np.arange(_CIRCLE_CORNERS)
        ring = center + np.hypot(*(edge - center)) * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    else:
        raise UserError(f"{path}: a shape of type {kind!r} has no area; polygons, rectangles and circles are taken")
    return Shape(str(shape["label"]), [ring])


def _read_coco(source: Path) -> Iterator[Annotated]:
    if not source.is_file():
        raise UserError(f"--source {source}: no such file; expected COCO's JSON file (instances_train.json)")
    content = read_json(source)
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        shapes: dict[Any, list[tuple[float, Shape]]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            shape = coco_shape(names[one["category_id"]], one["segmentation"], source)
            shapes[one["image_id"]].append((float(one.get("area", 0)), shape))
        files = {one["id"]: PurePosixPath(one["file_name"]) for one in content["images"]}
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not a file of COCO's ({error!r})") from error
    for key, file in files.items():
        if file.is_absolute() or ".." in file.parts:
            raise UserError(f"{source}: the image {file} lies outside of the dataset")
        folders = (source.parent, source.parent / "images", source.parent.parent, source.parent.parent / "images")
        image = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if image is None:
            raise UserError(f"{source}: its image {file} does not exist; put it beside the JSON file, or in images/")
        size = image_size(image)
        if any(shape.mask is not None and shape.mask.shape != size for _, shape in shapes[key]):
            raise UserError(f"{source}: its image {file} is {size[1]}x{size[0]} pixels, and a mask of it is not")
        ordered = sorted(shapes[key], key=lambda pair: -pair[0])  # what is small lies above
        yield Annotated(image, file.with_suffix("").as_posix(), size, [shape for _, shape in ordered])


def coco_shape(name: str, segmentation: Any, source: Path) -> Shape:
    """A shape from polygons, or from run lengths, compressed or not.

    Args:
        name: of the class.
        segmentation: as COCO's files have it.
        source: the file, for the message.

    Raises:
        UserError: run lengths that do not make up the mask.
    """
    if isinstance(segmentation, list):
        return Shape(name, [np.array(ring, dtype=np.float64).reshape(-1, 2) for ring in segmentation])
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    if values.size != height * width:
        raise UserError(f"{source}: the run lengths of a {name} make {values.size} pixels, not {height} x {width}")
    return Shape(name, mask=values.reshape(width, height).T)


def _decompressed(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, lowest first; from the third on differences to the one before
    the last."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, or is no table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {{...}}, got a {type(content).__name__}")
    return content
