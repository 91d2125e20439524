"""Masks, images and ``dataset.json`` from annotations of other programs: all of them, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ovenet.data.files import is_utf8
from ovenet.data.info import SPLITS
from ovenet.data.layouts import IMAGE_SUFFIXES
from ovenet.data.prepare import prepare_dataset
from ovenet.dataset_tools.annotations.coco import read_coco
from ovenet.dataset_tools.annotations.drawing import draw
from ovenet.dataset_tools.annotations.frames import Frame, find_frames
from ovenet.dataset_tools.annotations.labelme import embedded_image, read_labelme
from ovenet.dataset_tools.annotations.shapes import Annotated, Remarks, read_json
from ovenet.dataset_tools.annotations.table import ClassTable, extended_table, new_table, require_two_classes
from ovenet.errors import UserError
from ovenet.utils.writing import write_bytes, write_file, write_text

FORMS = ("labelme", "coco")
_DESCRIPTION = "dataset.json"
_KINDS = ("labels", "images")
_SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT = rf"({'|'.join((*SPLITS, *_SPLIT_NAMES))})"
_SPLIT_IN_FILE = re.compile(rf"(?<![a-z]){_SPLIT}(?![a-z])", re.IGNORECASE)
_SPLIT_OF_FOLDER = re.compile(rf"^{_SPLIT}\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Import:
    """What was imported.

    Attributes:
        num_images: whose masks were written.
        split: to which they belong; None where ``val_share`` divides them.
        missing_splits: of training and validation, those that the dataset does not have yet.
        added: classes that ``dataset.json`` did not have before.
        size: width and height that most of the masks have.
        remarks: what the user should know, one line each.
    """

    num_images: int
    split: str | None
    missing_splits: tuple[str, ...]
    added: tuple[str, ...]
    size: tuple[int, int]
    remarks: tuple[str, ...]


def import_annotations(
    form: str,
    source: Path,
    folder: Path,
    *,
    background: str = "",
    split: str | None = None,
    copy: bool = False,
    show_progress: bool = False,
) -> Import:
    """Writes ``images/``, ``labels/`` and ``dataset.json`` for `prepare_dataset`.

    Everything is written beside the dataset, looked at as `prepare_dataset` will, and then moved into place.

    Args:
        form: ``labelme`` or ``coco``.
        source: labelme: a folder of images with JSON files; COCO: the JSON file, beside whose folder or in whose
            folder the images lie.
        folder: of the dataset; one that has a ``dataset.json`` gets another split, and keeps its ids.
        background: name of a class for pixels that no shape covers; "" ignores them.
        split: ``train``, ``val`` or ``test``; None takes it from the name of the file or of its folder, and divides
            the images where that names none.
        copy: copy the images instead of linking them.
        show_progress: a bar.

    Raises:
        UserError: a file is not of the form, an image is missing, a shape is broken, or the dataset cannot take them.
    """
    remarks = Remarks()
    found, categories = read_coco(source, remarks) if form == "coco" else (read_labelme(source, remarks), set())
    split = split or _split_of(source)
    _require_room(folder, split)
    _require_names(found, source)
    used = {shape.name for one in found for shape in one.shapes}
    if not used:
        raise UserError("; ".join([f"{source}: there is no shape in it", *remarks.lines()]))
    description = folder / _DESCRIPTION
    if description.is_file():
        table = extended_table(description, used | categories, background)
        _place_split(table.content, split)
    else:
        require_two_classes(used, background, source)
        table = new_table(used | categories, background, source)
    frames = find_frames(found, remarks, source)
    with _unfinished(folder) as place:
        _write_images(found, place, split, copy=copy)
        bar = tqdm(list(zip(found, frames, strict=True)), desc="masks", disable=not show_progress)
        sizes = _write_masks(bar, table, place / "labels" / (split or ""), remarks, smaller_above=form == "coco")
        if not sizes:
            raise UserError("; ".join([f"{source}: no shape covers a pixel of its image", *remarks.lines()]))
        if not description.is_file() or read_json(description) != table.content:
            write_text(place / _DESCRIPTION, json.dumps(table.content, indent=2, ensure_ascii=False) + "\n")
        missing = _check(place, folder, split, len(found))
        _move(place, folder, split)
    return Import(len(found), split, missing, table.added, sizes.most_common(1)[0][0], tuple(remarks.lines()))


def _split_of(source: Path) -> str | None:
    """The split that the name of a file or of its folder tells: ``instances_val2017.json``, ``valid/…json``."""
    words = set(_SPLIT_IN_FILE.findall(source.stem)) if source.is_file() else set()
    if len(words) != 1:
        folder = source.resolve().parent if source.is_file() else source.resolve()
        words = set(_SPLIT_OF_FOLDER.findall(folder.name))
    return next((_SPLIT_NAMES.get(word.lower(), word.lower()) for word in words), None)


def _place_split(content: dict[str, Any], split: str | None) -> None:
    """Adds a split to the layouts of a ``dataset.json`` that name others, if its files lie as those of an import."""
    layouts = content.get("layouts")
    names = layouts.get("split_names") if isinstance(layouts, dict) else None
    if split and names and "all" not in names and layouts["images"].startswith("images/{split}/"):
        names.setdefault(split, split)


def _require_room(folder: Path, split: str | None) -> None:
    """Refuses a dataset that cannot take another split.

    Raises:
        UserError: says why.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _DESCRIPTION).is_file():
        raise UserError(
            f"{folder}: has files in it already, and no {_DESCRIPTION}; name another dataset, or remove the folder"
        )
    there = [path for kind in _KINDS if (folder / kind).is_dir() for path in sorted((folder / kind).iterdir())]
    there += [folder / name for name in SPLITS if (folder / name).is_dir()]
    if not there:
        return
    whole = next((path for path in there if path.name not in SPLITS or path.parent == folder), None)
    if whole is not None:
        raise UserError(
            f"{folder}: has files in it already that are in no split ({whole.relative_to(folder)}), and an import adds "
            "a split; move them into images/train and labels/train, or import all splits anew into another dataset"
        )
    if split is None:
        raise UserError(f"{folder}: has splits already; say which these images are: --split val")
    if any(path.name == split for path in there):
        raise UserError(
            f"{folder}: has a split {split} already; name another with --split, or remove images/{split} and "
            f"labels/{split}"
        )


def _require_names(found: Sequence[Annotated], source: Path) -> None:
    """Refuses images that list files could not name.

    Raises:
        UserError: says which.
    """
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


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder of the same name on the same disk, which is gone afterwards."""
    folder = folder.resolve()
    outer = folder.parent / f".{uuid.uuid4().hex}.unfinished"
    try:
        (outer / folder.name).mkdir(parents=True)
        yield outer / folder.name
    finally:
        shutil.rmtree(outer, ignore_errors=True)


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
) -> Counter[tuple[int, int]]:
    """Draws the masks.

    Returns:
        How many of them have which width and height; nothing where no pixel has a shape.
    """
    labelled = contested = 0
    sizes: Counter[tuple[int, int]] = Counter()
    overlapping = []
    for one, frame in found:
        if not one.shapes:
            remarks.add("images without any shape", one.where)
        mask, num_labelled, num_contested = draw(one.shapes, frame, table, remarks, smaller_above=smaller_above)
        mask = frame.bring(mask, upright=table.upright)
        write_file(folder / f"{one.name}.png", Image.fromarray(mask).save)
        labelled, contested = labelled + num_labelled, contested + num_contested
        sizes[mask.shape[::-1]] += 1
        overlapping += [one.where] if num_contested else []
    if contested:
        share = f"{100 * contested / labelled:.3g} % of the labelled pixels"
        above = "smaller" if smaller_above else "later"
        remarks.add_all(f"images in which classes overlap ({share}), the {above} shape lies above", overlapping)
    return sizes if labelled else Counter()


def _check(place: Path, folder: Path, split: str | None, num_images: int) -> tuple[str, ...]:
    """Looks at the dataset as it will be: what is there already is linked beside what is new, for a moment.

    Returns:
        Splits that it needs and does not have yet; the new one stands in for them.

    Raises:
        UserError: `prepare_dataset` would refuse it, or leave the images out.
    """
    missing = tuple(one for one in SPLITS[:2] if split not in (None, one) and not (folder / "images" / one).is_dir())
    links = {}
    for kind in _KINDS if split else ():
        there = (folder / kind).iterdir() if (folder / kind).is_dir() else ()
        links |= {place / kind / path.name: path.resolve() for path in there}
        links |= {place / kind / one: place / kind / split for one in missing}
    if not (place / _DESCRIPTION).exists():
        links[place / _DESCRIPTION] = folder / _DESCRIPTION
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
            f"{folder / _DESCRIPTION}: with its layouts, {num_images - num_listed} of {num_images} images of "
            f"{Path('images', split or '')} would not be listed; remove `layouts`, or name another dataset"
        )
    return missing


def _move(place: Path, folder: Path, split: str | None) -> None:
    """Moves what was written into the dataset; its table first, which fits the masks that are there too."""
    folder.mkdir(parents=True, exist_ok=True)
    if (place / _DESCRIPTION).exists():
        (place / _DESCRIPTION).replace(folder / _DESCRIPTION)
    for kind in _KINDS:
        part = Path(kind, split or "")
        (folder / part).parent.mkdir(exist_ok=True)
        (place / part).replace(folder / part)
