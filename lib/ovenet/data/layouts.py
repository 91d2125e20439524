"""Finds the files of a dataset on disk by the patterns of its layouts, and pairs images with labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ovenet.data.files import read_lines
from ovenet.data.info import DatasetInfo, Layout
from ovenet.errors import UserError

Pairs = list[tuple[str, str | None]]  # image and label, relative to the dataset's folder
SplitLayouts = Mapping[str, Layout]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
_OPTIONAL_SPLITS = ("test",)
_MAX_FOLDERS = 200  # of a wrong root, so that naming a home folder does not search it all
_MAX_NAMED = 3


def find_layout(folder: Path, info: DatasetInfo) -> SplitLayouts:
    """The layout in which the data lies.

    Args:
        folder: of the dataset.
        info: its layouts.

    Returns:
        Layouts of the splits that are there: training and validation, and those further ones that exist.

    Raises:
        UserError: none fits; names what is missing, or the folder above or below that does fit.
    """
    for layouts in info.layouts:
        if not _missing(folder, layouts):
            return {
                split: layout
                for split, layout in layouts.items()
                if split not in _OPTIONAL_SPLITS or _is_there(folder, layout, info.conditions)
            }
    nearest = min(info.layouts, key=lambda layouts: len(_missing(folder, layouts)))
    missing = _missing(folder, nearest)
    if len(missing) == len(_needed(nearest)):
        for other in _folders_around(folder):
            if any(not _missing(other, layouts) for layouts in info.layouts):
                level = "above" if other in folder.resolve().parents else "below"
                raise UserError(f"{folder}: {info.name} does not begin here but {level}; use {other}")
    raise UserError(f"{folder}: {', '.join(missing)} missing; unpack {info.archives} there")


def collect_pairs(folder: Path, layout: Layout, conditions: Sequence[str]) -> Pairs:
    """The images of a split with their labels, in the order of the conditions and of their names.

    Raises:
        UserError: there are none, an image or a label lacks its partner, or is empty.
    """
    if "{condition}" in layout.images:
        return [pair for condition in conditions for pair in collect_pairs(folder, _at(layout, condition), ())]
    images = _files(folder, layout.images)
    if not images:
        raise UserError(f"{folder / _anchor(layout.images)}: no images like {layout.images}; unpack the data there")
    labels = _files(folder, layout.labels) if layout.labels else None
    keys = _keys_of_split(folder, layout, images, labels)
    if labels is not None:
        _require_all(keys, labels, folder, layout.labels, "label")
    _require_all(keys, images, folder, layout.images, "image")
    pairs = [(images[key], labels[key] if labels is not None else None) for key in keys]
    for path in (path for pair in pairs for path in pair if path is not None):
        if not (folder / path).exists():
            raise UserError(f"{folder / path}: a link to {os.readlink(folder / path)}, which does not exist")
        if (folder / path).stat().st_size == 0:
            raise UserError(f"{folder / path}: the file is empty; unpack its archive again")
    return pairs


def _is_there(folder: Path, layout: Layout, conditions: Sequence[str]) -> bool:
    """Whether a split has any image; its lists of names must exist."""
    if not all((folder / path).exists() for path in _anchors(layout)):
        return False
    parts = [_at(layout, condition) for condition in conditions] if "{condition}" in layout.images else [layout]
    return any(_files(folder, part.images) for part in parts)


def _keys_of_split(
    folder: Path, layout: Layout, images: Mapping[str, str], labels: Mapping[str, str] | None
) -> list[str]:
    if layout.names:
        return _read_names(folder / layout.names)
    if layout.names_not_in:
        others = set(_read_names(folder / layout.names_not_in))
        return sorted(key for key in (labels or images) if key not in others)
    return sorted({*images, *(labels or ())})


def _read_names(path: Path) -> list[str]:
    """The first word of every line; VOC's lists may carry a second column."""
    return [words[0] for line in read_lines(path) if (words := re.split("[ \t]+", line.strip(" \t")))[0]]


def _require_all(keys: Sequence[str], files: Mapping[str, str], folder: Path, pattern: str, role: str) -> None:
    missing = [key for key in keys if key not in files]
    if missing:
        names = ", ".join(str(folder / _fill(pattern, key)) for key in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise UserError(
            f"{len(missing)} of {len(keys)} {role}s missing: {names}{more}; unpack the archive of the {role}s again"
        )


def _fill(pattern: str, key: str) -> str:
    texts = iter(key.split("|"))
    return re.sub(r"\*+", lambda _: next(texts), pattern) + ".*"


def _at(layout: Layout, condition: str) -> Layout:
    labels = layout.labels.replace("{condition}", condition) if layout.labels else None
    return Layout(layout.images.replace("{condition}", condition), labels)


def _anchor(pattern: str) -> str:
    """The folders before the first wildcard."""
    parts = PurePosixPath(pattern.split("*")[0] + "x").parts[:-1]
    return "/".join(parts)


def _anchors(layout: Layout) -> list[str]:
    """What must exist for a layout to fit: the folders of images and labels, and the files of names."""
    patterns = [pattern.split("{condition}")[0] for pattern in (layout.images, layout.labels) if pattern]
    return [*map(_anchor, patterns), *filter(None, (layout.names, layout.names_not_in))]


def _needed(layouts: SplitLayouts) -> list[str]:
    splits = [layout for split, layout in layouts.items() if split not in _OPTIONAL_SPLITS]
    return list(dict.fromkeys(path for layout in splits for path in _anchors(layout)))


def _missing(folder: Path, layouts: SplitLayouts) -> list[str]:
    return [path for path in _needed(layouts) if not (folder / path).exists()]


def _folders_around(folder: Path) -> Iterator[Path]:
    """Up to two levels above, then up to two levels below."""
    folder = folder.resolve()
    yield from list(folder.parents)[:2]
    below = _subfolders(folder)
    yield from below
    for child in below:
        yield from _subfolders(child)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))[:_MAX_FOLDERS]
    except OSError:
        return []


def _files(folder: Path, pattern: str) -> dict[str, str]:
    """Files that match a pattern, relative to the folder, by what stands for the wildcards."""
    expression = re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^/]+)")
    matcher = re.compile(expression + r"\.[^./]+", re.DOTALL)
    depth = None if "**" in pattern else pattern.count("/") - _anchor(pattern).count("/")
    files: dict[str, str] = {}
    for path in _walk(folder / _anchor(pattern), depth):
        name = path.relative_to(folder).as_posix()
        match = matcher.fullmatch(name)
        if match is None or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        key = "|".join(match.groups())
        if key in files:
            raise UserError(f"{folder / files[key]} and {path}: two files for one name; remove or rename one")
        files[key] = name
    return files


def _walk(folder: Path, depth: int | None, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder, links followed, hidden ones left out."""
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(real):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth is None or depth > 1:
                yield from _walk(Path(entry.path), None if depth is None else depth - 1, seen | {real})
        else:
            yield Path(entry.path)
