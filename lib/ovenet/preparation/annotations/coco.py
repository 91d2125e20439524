"""COCO's JSON file: all annotations of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ovenet.errors import UserError
from ovenet.preparation.annotations.shapes import (
    BACKGROUND,
    IGNORED,
    Annotated,
    Remarks,
    Shape,
    class_name,
    named_size,
    read_json,
)
from ovenet.preparation.annotations.spans import has_ring_in_ring, run_spans
from ovenet.structures import Size


def read_coco(source: Path, remarks: Remarks) -> tuple[list[Annotated], set[str]]:
    """The images of a file, which lie in its folder or beside it.

    Returns:
        The images, and the names of all categories, used or not, so that ids do not depend on the split; without
        labelme's names for pixels of no class.

    Raises:
        UserError: the file is not COCO's, an annotation is broken, or an image is missing.
    """
    if not source.is_file():
        raise UserError(f"--source {source}: no such file; expected COCO's JSON file (instances_train.json)")
    images, annotations, categories = _tables(source)
    names: dict[Any, str] = {}
    for key, row in _by_id(categories, "category", source).items():
        try:
            names[key] = class_name(row.get("name"), f"name of category {key!r}")
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    sizes: dict[Any, Size | None] = {}
    for key, row in _by_id(images, "image", source).items():
        sizes[key] = named_size(row.get("height"), row.get("width"), f"{source}: image {key!r}")
    shapes: dict[Any, list[Shape]] = {key: [] for key in sizes}
    for index, row in enumerate(annotations):
        where = f"annotation {row.get('id', index)!r}"
        for what, known in (("category_id", names), ("image_id", shapes)):
            if not isinstance(row.get(what), (int, str)) or row[what] not in known:
                raise UserError(f"{source}: {where}: its {what} {row.get(what)!r} is not in the file; export it again")
        key, name = row["image_id"], names[row["category_id"]]
        try:
            shape, size = _shape(name, row.get("segmentation"), f"{where} ({name!r})", remarks)
            if size is not None and size != (sizes[key] or size):
                raise UserError(f"its mask has {size[1]} x {size[0]} pixels and its image {_text(sizes[key])}")
        except UserError as error:
            raise UserError(f"{source}: {where} ({name!r}): {error}") from error
        sizes[key] = sizes[key] or size
        shapes[key] += [shape] if shape else []
        if shape and has_ring_in_ring(shape.rings):
            kind = "annotations with a polygon inside another, filled as pycocotools does (a hole needs run lengths)"
            remarks.add(kind, f"{source.name}: {shape.where}")
    _remark_on_ids(annotations, names, shapes, remarks)
    found = []
    for row in images:
        file, image = _find_image(row, source)
        key = row["id"]
        found.append(Annotated(image, file.with_suffix("").as_posix(), str(file), sizes[key], shapes[key]))
    return found, {*names.values()} - {IGNORED, BACKGROUND}


def _tables(source: Path) -> list[list[dict[str, Any]]]:
    content = read_json(source)
    tables = []
    for key in ("images", "annotations", "categories"):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{source}: not a file of COCO's instances ({key!r} is no list of tables)")
        tables.append(rows)
    annotations = tables[1]
    if annotations and not any("segmentation" in row for row in annotations):
        keys = ", ".join(sorted(annotations[0]))
        raise UserError(
            f"{source}: no annotation has a segmentation (they have {keys}); captions, key points and panoptic files "
            "have none: take the instances file"
        )
    return tables


def _by_id(rows: list[dict[str, Any]], what: str, source: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        key = row.get("id")
        if not isinstance(key, (int, str)):
            raise UserError(f"{source}: a {what} has the id {key!r}; expected a number")
        if key in found:
            raise UserError(f"{source}: two {what} entries have the id {key!r}; renumber them")
        found[key] = row
    return found


def _shape(name: str, segmentation: Any, where: str, remarks: Remarks) -> tuple[Shape | None, Size | None]:
    """A shape, None where it has no area, with a remark; and the size in run lengths."""
    if isinstance(segmentation, dict):
        size, spans = run_spans(segmentation)
        return Shape(name, where, spans=spans), size
    if not segmentation:
        remarks.add("annotations without an outline, left out", where)
        return None, None
    if not isinstance(segmentation, list):
        raise UserError(f"its segmentation is a {type(segmentation).__name__}; expected polygons or run lengths")
    rings = []
    for values in segmentation:
        ring = _ring(values)
        if len(ring) < 3:
            remarks.add("polygons with fewer than three points, left out", where)
        else:
            rings.append(ring)
    return (Shape(name, where, rings) if rings else None), None


def _ring(values: Any) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.zeros(())
    if numbers.ndim != 1:
        raise UserError("a polygon is no list of numbers [x, y, x, y, …]; export the file again")
    if numbers.size % 2:
        raise UserError(f"a polygon has {numbers.size} numbers, which are no pairs; export the file again")
    if not np.isfinite(numbers).all():
        raise UserError("a coordinate is no finite number (NaN or infinity); export the file again")
    return numbers.reshape(-1, 2)


def _remark_on_ids(
    annotations: list[dict[str, Any]], names: Mapping[Any, str], shapes: Mapping[Any, list[Shape]], remarks: Remarks
) -> None:
    for key, num in Counter(row["id"] for row in annotations if isinstance(row.get("id"), (int, str))).items():
        if num > 1:
            remarks.add("ids that several annotations have, all of which are drawn", f"annotation {key!r}")
    used = {shape.name for one in shapes.values() for shape in one}
    for name in sorted({*names.values()} - used - {IGNORED, BACKGROUND}):
        remarks.add("categories that no shape has, which are classes all the same", repr(name))


def _find_image(row: Mapping[str, Any], source: Path) -> tuple[PurePosixPath, Path]:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{source}: image {row['id']!r} has the file_name {name!r}; expected the name of a file")
    file = PurePosixPath(name.replace("\\", "/"))
    if file.is_absolute() or ".." in file.parts:
        raise UserError(f"{source}: the image {file} lies outside of the dataset")
    above, split = source.parent.parent, source.stem.split("_")[-1]  # instances_train2017.json beside train2017/
    folders = (
        source.parent,
        source.parent / "images",
        above / split,
        above / "images" / split,
        above,
        above / "images",
    )
    image = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if image is None:
        raise UserError(
            f"{source}: its image {file} does not exist; put it beside the JSON file, in images/ or in ../{split}/"
        )
    return file, image


def _text(size: Size | None) -> str:
    return f"{size[1]} x {size[0]}" if size else "no size"
