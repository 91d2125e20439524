"""Labelme's JSON files: one beside each image."""

from __future__ import annotations

import base64
import io
import math
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ovenet.data.files import IMAGE_SUFFIXES
from ovenet.errors import UserError
from ovenet.preparation.annotations.shapes import (
    Annotated,
    Remarks,
    Shape,
    class_name,
    named_size,
    points_of,
    read_json,
)
from ovenet.preparation.annotations.spans import crosses_itself, mask_spans
from ovenet.structures import Size

# Width of shapes without an area in labelme's own masks, in pixels (`shape_to_mask` in its labelme/utils/shape.py).
_LINE_WIDTH = 10
_POINT_RADIUS = 5
_LEAST_CORNERS = 64  # of a circle
_NUM_POINTS = {"rectangle": (2, 4), "circle": (2,), "line": (2,), "point": (1,), "oriented_rectangle": (4,)}
_NUM_POINTS["rotation"] = _NUM_POINTS["oriented_rectangle"]  # X-AnyLabeling's name
_WITHOUT_AREA = ("line", "linestrip", "point")


def read_labelme(source: Path, remarks: Remarks) -> list[Annotated]:
    """The images of a folder, at any depth.

    Raises:
        UserError: a file is not labelme's, a shape is broken, or an image is missing.
    """
    if not source.is_dir():
        raise UserError(f"--source {source}: no such folder; labelme's JSON files are looked for in it")
    found: list[Annotated] = []
    owners: dict[Path, Path] = {}
    for path in sorted(source.rglob("*.json")):
        one = _read_file(path, source, remarks)
        image = (one.embedded_in or one.image).resolve()
        if image in owners:
            raise UserError(f"{path}: it is of the same image as {owners[image]} ({one.image}); keep one of them")
        owners[image] = path
        found.append(one)
    for image in sorted(source.rglob("*")):
        if image.suffix.lower() in IMAGE_SUFFIXES and image.resolve() not in owners:
            remarks.add("images without a JSON file, left out", image.relative_to(source).as_posix())
    return found


def embedded_image(path: Path) -> bytes:
    """The image file embedded in a JSON file of labelme.

    Raises:
        UserError: there is none.
    """
    return _decode(read_json(path).get("imageData"), f"{path}: imageData")


def _read_file(path: Path, source: Path, remarks: Remarks) -> Annotated:
    content = read_json(path)
    rows, image_path = content.get("shapes"), content.get("imagePath")
    if not isinstance(rows, list) or not isinstance(image_path, str):
        raise UserError(f"{path}: not a file of labelme (it needs `shapes` and `imagePath`)")
    where = path.relative_to(source).as_posix()
    size = named_size(content.get("imageHeight"), content.get("imageWidth"), str(path))
    image, embedded = path.parent / PurePosixPath(image_path.replace("\\", "/")), None
    if not image.is_file():
        beside = (one for one in sorted(path.parent.iterdir()) if one.stem == path.stem)
        image = next((one for one in beside if one.suffix.lower() in IMAGE_SUFFIXES), image)
    if not image.is_file():
        if not content.get("imageData"):
            raise UserError(f"{path}: its image {image} does not exist; put it beside the JSON file")
        embedded, image = path, Path(path.stem + _suffix(embedded_image(path), path))
        remarks.add("images that are no files, taken from the JSON files (imageData)", where)
    shapes = []
    for index, row in enumerate(rows):
        place = f"shape {index}"
        try:
            if not isinstance(row, dict):
                raise UserError(f"a {type(row).__name__}; expected a table")
            name = class_name(row.get("label"), "label")
            place = f"shape {index} ({name!r})"
            shape = _shape(name, row, f"{where} {place}", size, remarks)
        except UserError as error:
            raise UserError(f"{path}: {place}: {error}") from error
        shapes += [shape] if shape else []
    name = path.relative_to(source).with_suffix("").as_posix()
    return Annotated(image, name, where, size, shapes, embedded)


def _shape(name: str, row: dict[str, Any], where: str, size: Size | None, remarks: Remarks) -> Shape | None:
    """A shape; None where it has no area, with a remark."""
    kind, points = row.get("shape_type") or "polygon", points_of(row.get("points"))
    if kind == "mask":
        return Shape(name, where, spans=_mask_spans(row, points, size))
    if kind == "points":
        remarks.add("shapes of type 'points', which mark an object and not its pixels, left out", where)
        return None
    if kind not in (*_NUM_POINTS, "polygon", "linestrip"):
        raise UserError(f"its type {kind!r} is none of labelme's; draw it as a polygon, or remove it")
    least = {"polygon": 3, "linestrip": 2}.get(kind)
    if len(points) < least if least else len(points) not in _NUM_POINTS[kind]:
        expected = f"at least {least}" if least else " or ".join(map(str, _NUM_POINTS[kind]))
        remarks.add(f"shapes of type {kind!r} without {expected} points, left out", where)
        return None
    if kind in _WITHOUT_AREA:
        remarks.add(
            f"shapes without area, drawn as labelme's own masks have them (lines {_LINE_WIDTH} pixels wide, "
            f"points {2 * _POINT_RADIUS})",
            where,
        )
    if kind == "polygon" and crosses_itself(points):
        remarks.add("polygons that cross themselves, regions that they enclose twice are left out", where)
    return Shape(name, where, _rings(kind, points))


def _rings(kind: str, points: np.ndarray) -> list[np.ndarray]:
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]
    if kind == "circle":
        center, edge = points
        return [_circle(center, float(np.hypot(*(edge - center))))]
    if kind == "point":
        return [_circle(points[0], _POINT_RADIUS)]
    if kind in ("line", "linestrip"):
        return [_band(begin, end) for begin, end in pairwise(points)]
    return [points]


def _circle(center: np.ndarray, radius: float) -> np.ndarray:
    """A polygon that deviates from the circle by a tenth of a pixel at most, except for very large ones."""
    num = int(min(max(_LEAST_CORNERS, math.pi * math.sqrt(5 * radius)), 10_000))
    angles = 2 * math.pi / num * np.arange(num)
    return center + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _band(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - begin
    length = np.hypot(*along) or 1.0
    across = np.array([-along[1], along[0]]) / length * _LINE_WIDTH / 2
    return np.array([begin + across, end + across, end - across, begin - across])


def _mask_spans(row: dict[str, Any], points: np.ndarray, size: Size | None) -> np.ndarray:
    """The pixels of a shape of type mask: an image, and the inclusive corners of its box."""
    if size is None:
        raise UserError("a mask in a file without imageHeight and imageWidth; save it again with labelme")
    if len(points) != 2 or np.abs(points).max() > 1e6:
        raise UserError("a mask needs the two corners of its box; draw it again, or remove it")
    (x0, y0), (x1, y1) = points.astype(int)
    try:
        with Image.open(io.BytesIO(_decode(row.get("mask"), "its mask"))) as image:
            if image.size != (x1 - x0 + 1, y1 - y0 + 1):
                raise UserError(
                    f"its mask has {image.width} x {image.height} pixels and its box {x1 - x0 + 1} x {y1 - y0 + 1}; "
                    "draw it again, or remove it"
                )
            mask = np.asarray(image) != 0
    except UserError:
        raise
    except Exception as error:  # damaged content can fail anywhere in Pillow's decoders
        raise UserError(f"its mask cannot be read ({type(error).__name__}); draw it again, or remove it") from error
    if mask.ndim != 2:
        raise UserError("its mask has colours; draw it again, or remove it")
    canvas = np.zeros(size, bool)
    top, left = max(y0, 0), max(x0, 0)
    inside = mask[top - y0 :, left - x0 :][: max(size[0] - top, 0), : max(size[1] - left, 0)]
    canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask_spans(canvas)


def _decode(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} is no base64 text; save the file again with labelme") from error


def _suffix(content: bytes, path: Path) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())
    except Exception as error:  # damaged content, as in `_mask_spans`
        raise UserError(f"{path}: its imageData cannot be read as an image ({type(error).__name__})") from error
