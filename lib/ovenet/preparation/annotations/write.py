"""Masks, images and ``dataset.json`` from annotations of other programs: all of them, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovenet.data.catalog import DESCRIPTION
from ovenet.data.files import IMAGE_SUFFIXES, is_utf8
from ovenet.data.info import SPLITS
from ovenet.errors import UserError
from ovenet.preparation.annotations.coco import read_coco
from ovenet.preparation.annotations.frames import Frame, find_frames
from ovenet.preparation.annotations.labelme import embedded_image, read_labelme
from ovenet.preparation.annotations.shapes import Annotated, Remarks, Shape, read_json
from ovenet.preparation.annotations.spans import count_pixels, cover
from ovenet.preparation.annotations.table import ClassTable, extended_table, new_table, require_two_classes
from ovenet.preparation.prepare import prepare_dataset
from ovenet.structures import Size
from ovenet.utils.progress import tell, track
from ovenet.utils.writing import unfinished_folder, write_bytes, write_file, write_text

FORMS = ("labelme", "coco")
_NO_SHAPE = -1
_KINDS = ("labels", "images")
_SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT = rf"({'|'.join((*SPLITS, *_SPLIT_NAMES))})"
_SPLIT_IN_FILE = re.compile(rf"(?<![a-z]){_SPLIT}(?![a-z])", re.IGNORECASE)
_SPLIT_OF_FOLDER = re.compile(rf"^{_SPLIT}\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Import:
    """The result of an import.

    Attributes:
        num_images: number of images and masks.
        split: their split; None where ``val_share`` divides them.
        missing_splits: training or validation, where the dataset does not have it yet.
        added: classes that ``dataset.json`` did not have before.
        size: width and height of most masks.
        remarks: one line each, for the user.
    """

    num_images: int
    split: str | None
    missing_splits: tuple[str, ...]
    added: tuple[str, ...]
    size: Size
    remarks: tuple[str, ...]


def import_annotations(
    form: str,
    source: Path,
    folder: Path,
    *,
    background: str = "",
    split: str | None = None,
    copy: bool = False,
) -> Import:
    """Writes ``images/``, ``labels/`` and ``dataset.json`` for `prepare_dataset`.

    Everything is written beside the dataset, checked by `prepare_dataset`, and then moved into place.

    Args:
        form: ``labelme`` or ``coco``.
        source: labelme: a folder of images with JSON files; COCO: the JSON file, with the images in its folder or
            beside it.
        folder: of the dataset; with a ``dataset.json`` it gets another split, and keeps its ids.
        background: name of a class for pixels that no shape covers; "" ignores them.
        split: ``train``, ``val`` or ``test``; None takes it from the name of the file or of its folder, and divides
            the images without such a name.
        copy: copy the images instead of linking them.

    Raises:
        UserError: a file is not of the form, an image is missing, a shape is broken, or the dataset has no room for
            them.
    """
    remarks = Remarks()
    found, categories = read_coco(source, remarks) if form == "coco" else (read_labelme(source, remarks), set())
    split = split or _split_of(source)
    _require_room(folder, split)
    _require_names(found, source)
    used = {shape.name for one in found for shape in one.shapes}
    if not used:
        raise UserError("; ".join([f"{source}: there is no shape in it", *remarks.lines()]))
    description = folder / DESCRIPTION
    if description.is_file():
        table = extended_table(description, used | categories, background)
        _place_split(table.content, split)
    else:
        require_two_classes(used, background, source)
        table = new_table(used | categories, background, source)
    frames = find_frames(found, remarks, source)
    with unfinished_folder(folder) as place:
        _write_images(found, place, split, copy=copy)
        pairs = track(zip(found, frames, strict=True), "masks", len(found), tell=tell)
        sizes = _write_masks(pairs, table, place / "labels" / (split or ""), remarks, smaller_above=form == "coco")
        if not sizes:
            raise UserError("; ".join([f"{source}: no shape covers a pixel of its image", *remarks.lines()]))
        if not description.is_file() or read_json(description) != table.content:
            write_text(place / DESCRIPTION, json.dumps(table.content, indent=2, ensure_ascii=False) + "\n")
        missing = _check(place, folder, split, len(found))
        _move(place, folder, split)
    return Import(len(found), split, missing, table.added, sizes.most_common(1)[0][0], tuple(remarks.lines()))


def _split_of(source: Path) -> str | None:
    """The split in the name of a file or of its folder: ``instances_val2017.json``, ``valid/…json``."""
    words = set(_SPLIT_IN_FILE.findall(source.stem)) if source.is_file() else set()
    if len(words) != 1:
        folder = source.resolve().parent if source.is_file() else source.resolve()
        words = set(_SPLIT_OF_FOLDER.findall(folder.name))
    return next((_SPLIT_NAMES.get(word.lower(), word.lower()) for word in words), None)


def _place_split(content: dict[str, Any], split: str | None) -> None:
    """Adds a split to the layouts of a ``dataset.json`` that name others, if its files lie as in an import."""
    layouts = content.get("layouts")
    if not split or not isinstance(layouts, dict):
        return
    names = layouts.get("split_names")
    if names and "all" not in names and layouts["images"].startswith("images/{split}/"):
        names.setdefault(split, split)


def _require_room(folder: Path, split: str | None) -> None:
    """Raises `UserError` about a dataset that cannot take another split."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"{folder}: has files in it already, and no {DESCRIPTION}; name another dataset, or remove the folder"
        )
    there = [path for kind in _KINDS if (folder / kind).is_dir() for path in sorted((folder / kind).iterdir())]
    there += [folder / name for name in SPLITS if (folder / name).is_dir()]
    if not there:
        return
    whole = next((path for path in there if path.name not in SPLITS or path.parent == folder), None)
    if whole is not None:
        raise UserError(
            f"{folder}: has files in it already that are in no split ({whole.relative_to(folder)}), and an import adds "
            "a split; move them into images/train and labels/train, or import all splits into another dataset"
        )
    if split is None:
        raise UserError(f"{folder}: has splits already; say which these images are: --split val")
    if any(path.name == split for path in there):
        raise UserError(
            f"{folder}: has a split {split} already; name another with --split, or remove images/{split} and "
            f"labels/{split}"
        )


def _require_names(found: Sequence[Annotated], source: Path) -> None:
    """Raises `UserError` about images that cannot stand in list files."""
    if not found:
        raise UserError(f"{source}: there is no annotated image in it")
    twice = next((name for name, count in Counter(one.name for one in found).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{source}: two images are called {twice}, and so would their masks be; rename one")
    for one in found:
        if not is_utf8(Path(one.name)) or any(character in one.name for character in "\t\r\n\0"):
            raise UserError(f"{source}: {one.name!a}: such a name cannot be listed; rename the image")
        parts = one.name.split("/")
        if any(part.startswith(".") for part in parts) or parts[-1].endswith("_labelTrainIds"):
            raise UserError(f"{source}: {one.name}: files of such names are left out of lists; rename the image")
        if one.image.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{one.image}: images of type {one.image.suffix!r} are not read; save it as PNG")


def _write_images(found: Sequence[Annotated], place: Path, split: str | None, *, copy: bool) -> None:
    for one in found:
        image = place / "images" / (split or "") / f"{one.name}{one.image.suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        if one.embedded_in is not None:
            write_bytes(image, embedded_image(one.embedded_in))
        elif copy:
            shutil.copy2(one.image, image)
        else:
            image.symlink_to(os.path.abspath(one.image))


def _write_masks(
    found: Iterable[tuple[Annotated, Frame]], table: ClassTable, folder: Path, remarks: Remarks, *, smaller_above: bool
) -> Counter[Size]:
    """Writes the masks; returns the number of masks of each width and height, empty where no pixel has a shape."""
    labelled = contested = 0
    sizes: Counter[Size] = Counter()
    overlapping = []
    for one, frame in found:
        if not one.shapes:
            remarks.add("images without any shape", one.where)
        mask, num_labelled, num_contested = _draw(one.shapes, frame, table, remarks, smaller_above=smaller_above)
        mask = frame.bring(mask, upright=table.upright)
        write_file(folder / f"{one.name}.png", Image.fromarray(mask).save)
        labelled, contested = labelled + num_labelled, contested + num_contested
        sizes[mask.shape[1], mask.shape[0]] += 1
        overlapping += [one.where] if num_contested else []
    share = f"{100 * contested / max(1, labelled):.3g} % of the labelled pixels"
    above = "smaller" if smaller_above else "later"
    for where in overlapping:
        remarks.add(f"images in which classes overlap ({share}), the {above} shape lies above", where)
    return sizes if labelled else Counter()


def _draw(
    shapes: Sequence[Shape], frame: Frame, table: ClassTable, remarks: Remarks, *, smaller_above: bool
) -> tuple[np.ndarray, int, int]:
    """The mask of an image.

    Args:
        shapes: of the image, from bottom to top.
        frame: of the image.
        table: ids of the classes.
        remarks: receives the shapes that leave the image, or have no pixel.
        smaller_above: order the shapes by decreasing numbers of pixels instead.

    Returns:
        Ids ``(H, W)`` uint8, the number of pixels with a shape, and of those with shapes of several classes.
    """
    drawn = [(shape, shape.draw(frame.named, frame.size)) for shape in shapes]
    for shape, spans in drawn:
        if not len(spans):
            remarks.add("shapes that cover no pixel of their image", shape.where)
        elif shape.leaves(frame.named):
            remarks.add("shapes that reach out of their image, cut off there", shape.where)
    if smaller_above:
        drawn.sort(key=lambda pair: -count_pixels(pair[1]))
    labels = np.full(frame.size[0] * frame.size[1], _NO_SHAPE, np.int16)
    is_contested = np.zeros(labels.shape, bool)
    for shape, spans in drawn:
        where, covered = cover(spans)
        below, number = labels[where], table.ids[shape.name]
        is_contested[where] |= covered & (below != _NO_SHAPE) & (below != number)
        below[covered] = number
    num_labelled = int((labels != _NO_SHAPE).sum())
    labels[labels == _NO_SHAPE] = table.unlabelled
    mask = labels.astype(np.uint8).reshape(frame.size[::-1]).T
    return np.ascontiguousarray(mask), num_labelled, int(is_contested.sum())


def _check(place: Path, folder: Path, split: str | None, num_images: int) -> tuple[str, ...]:
    """Checks the future dataset, for which existing files are linked beside the new ones, for a moment.

    Returns:
        Splits that it needs and does not have yet; the new split stands in for them.

    Raises:
        UserError: `prepare_dataset` would refuse it, or leave the images out.
    """
    missing = tuple(one for one in SPLITS[:2] if split not in (None, one) and not (folder / "images" / one).is_dir())
    links: dict[Path, Path] = {}
    for kind in _KINDS if split else ():
        there = (folder / kind).iterdir() if (folder / kind).is_dir() else ()
        links |= {place / kind / path.name: path.resolve() for path in there}
        links |= {place / kind / one: place / kind / (split or "") for one in missing}
    if not (place / DESCRIPTION).exists():
        links[place / DESCRIPTION] = folder / DESCRIPTION
    try:
        for link, target in links.items():
            link.symlink_to(target.resolve())
        num_lines = prepare_dataset(place.name, place.parent).num_lines
    except UserError as error:
        raise UserError(str(error).replace(str(place), str(folder))) from error
    finally:
        for link in links:
            link.unlink(missing_ok=True)
    num_listed = sum(num_lines.get(one, 0) for one in ([split] if split else SPLITS))
    if num_listed < num_images:
        raise UserError(
            f"{folder / DESCRIPTION}: with its layouts, {num_images - num_listed} of {num_images} images of "
            f"{Path('images', split or '')} would not be listed; remove `layouts`, or name another dataset"
        )
    return missing


def _move(place: Path, folder: Path, split: str | None) -> None:
    """Moves the new files into the dataset; ``dataset.json`` first, since it also fits the existing masks."""
    folder.mkdir(parents=True, exist_ok=True)
    if (place / DESCRIPTION).exists():
        (place / DESCRIPTION).replace(folder / DESCRIPTION)
    for kind in _KINDS:
        part = Path(kind, split or "")
        (folder / part).parent.mkdir(exist_ok=True)
        (place / part).replace(folder / part)
