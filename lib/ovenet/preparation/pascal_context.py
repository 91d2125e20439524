"""Label files of PASCAL-Context from its one annotation file, which the public code reads instead of label files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovenet.errors import UserError
from ovenet.preparation.annotations import fill, read_json, run_spans
from ovenet.utils.progress import tell, track
from ovenet.utils.writing import write_file, write_text

ANNOTATIONS = "trainval_merged.json"
# Of the file: background and the 59 frequent classes, in the order of the label files' ids.
CATEGORIES = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
_DEVKITS = ("VOCdevkit/VOC2010", "")


def write_labels(folder: Path) -> int:
    """Writes ``SegmentationClassContext/*.png`` and ``ImageSets/SegmentationContext/{train,val}.txt``.

    Does nothing where those lists exist.

    Args:
        folder: of the dataset.

    Returns:
        The number of label files.

    Raises:
        UserError: the annotation file is damaged, has a category that is none of the 59 classes, or is missing while
            there are images without labels.
    """
    devkit = find_devkit(folder)
    if devkit is None:
        return 0
    labels = devkit / "SegmentationClassContext"
    lists = {phase: devkit / f"ImageSets/SegmentationContext/{phase}.txt" for phase in ("train", "val")}
    if all(path.exists() for path in lists.values()):
        return 0
    source = devkit / ANNOTATIONS
    if not source.is_file():
        if labels.exists() or any(path.exists() for path in lists.values()):
            return 0
        raise UserError(
            f"{labels} is missing; {source} alone is enough beside the images, label files and lists are made from it"
        )
    content = read_json(source)
    names: dict[str, list[str]] = {phase: [] for phase in lists}
    try:
        shapes = defaultdict(list)
        for one in content["annos_segmentation"]:
            shapes[one["image_id"]].append((one["category_id"], one["segmentation"]))
        images = [one for one in content["images"] if one["phase"] in lists]
        for one in track(images, "labels", len(images), tell=tell):
            name = PurePosixPath(one["file_name"]).stem
            label = _draw((one["height"], one["width"]), shapes[one["image_id"]], source)
            write_file(labels / f"{name}.png", Image.fromarray(label).save)
            names[one["phase"]].append(name)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{source}: not the annotation file of PASCAL-Context ({error!r})") from error
    for phase, path in lists.items():  # last, so that an interrupted run is repeated
        write_text(path, "".join(f"{name}\n" for name in sorted(names[phase])))
    return len(images)


def find_devkit(folder: Path) -> Path | None:
    """The folder of the annotation file, otherwise of the images; None without either."""
    places = [folder / name for name in _DEVKITS]
    return next((place for what in (ANNOTATIONS, "JPEGImages") for place in places if (place / what).exists()), None)


def _draw(size: tuple[int, int], shapes: list[tuple[int, dict]], source: Path) -> np.ndarray:
    if not all(isinstance(length, int) and length > 0 for length in size):
        raise UserError(f"{source}: an image of {size[1]} x {size[0]} pixels; download the file again")
    label = np.zeros(size, np.uint8)
    for category, segmentation in shapes:
        if category not in CATEGORIES:
            raise UserError(f"{source}: the category {category} is none of the 59 classes; download the file again")
        try:
            mask_size, spans = run_spans(segmentation)
        except UserError as error:
            raise UserError(f"{source}: a mask of category {category}: {error}") from error
        if mask_size != size:
            raise UserError(f"{source}: a mask is not of its image's size; download the file again")
        label[fill(spans, size)] = CATEGORIES.index(category)
    return label
